"""Lua as Redis runs it: the gateway's own scripts, unchanged, in Lua 5.1.

One interpreter does for all simulated servers of a process, because a script keeps nothing between two calls: what
Redis forbids to write is read off the globals by nobody here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any

import msgspec
from lupa import lua51

from tests.simulation.keyspace import Refusal, Status, repr_of

__all__ = ["Scripts"]

Caller = Callable[[list[bytes]], Any]
"""Runs one command of a script. Raises :class:`Refusal`."""

_PRELUDE = b"""
local call, decode, encode, unpacked, packed, sha1, of_struct, to_struct = ...
redis = {REPL_ALL = 3, LOG_DEBUG = 0, LOG_VERBOSE = 1, LOG_NOTICE = 2, LOG_WARNING = 3}
cjson, cmsgpack, struct = {null = newproxy()}, {}, {}
function redis.pcall(...) return call(...) end
function redis.call(...)
    local reply = call(...)
    if type(reply) == 'table' and reply.err then error(OLDEST and reply.err or reply, 0) end
    return reply
end
function redis.error_reply(text) return {err = text:find('^%-') and text:sub(2) or text} end
function redis.status_reply(text) return {ok = text} end
function redis.sha1hex(text) return sha1(text) end
function redis.log() end
function redis.setresp() end
function redis.replicate_commands() return true end
function cjson.decode(text)
    local done, value = decode(text)
    if not done then error(value, 0) end
    return value
end
function cjson.encode(value) return encode(value) end
function cmsgpack.unpack(text) return unpacked(text) end
function struct.unpack(format, text) return of_struct(format, text) end
function struct.pack(format, ...) return to_struct(format, ...) end
function cmsgpack.pack(value) return packed(value) end
return cjson.null, pcall
"""


class Scripts:
    """The interpreter. ``run`` gives what Redis would answer; ``call`` is what its commands are run by meanwhile."""

    def __init__(self) -> None:
        self._lua = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=True, register_eval=False)
        self._globals = self._lua.globals()
        self._table = self._lua.table_from
        self._lua_type = lua51.lua_type
        self._compiled: dict[bytes, Any] = {}
        self._caller: Caller | None = None
        prelude = self._lua.compile(_PRELUDE)
        self._null, self._pcall = prelude(
            self._call,
            self._decode,
            self._encode,
            self._unpack,
            self._pack,
            self._sha1,
            self._of_struct,
            self._to_struct,
        )

    def run(
        self, source: bytes, keys: Sequence[bytes], args: Sequence[bytes], call: Caller, *, oldest: bool = False
    ) -> Any:
        """Run a script. Raises :class:`Refusal` with what it failed of. ``oldest``: in the words of Redis 6.2."""
        if oldest and source.startswith(b"#!"):
            raise Refusal("ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'")
        function = self._compiled.get(source)
        if function is None:
            function = self._compiled[source] = self._compile(source)
        self._globals[b"KEYS"] = self._table(keys)
        self._globals[b"ARGV"] = self._table(args)
        return self._run(function, (), call, oldest=oldest)

    def library(self, source: bytes) -> dict[bytes, Any]:
        """The Functions of a library, by name. What it keeps in locals is that of this library: of one server."""
        functions: dict[bytes, Any] = {}
        self._globals[b"redis"][b"register_function"] = functions.__setitem__
        self._compile(source)()
        return functions

    def run_function(self, function: Any, keys: Sequence[bytes], args: Sequence[bytes], call: Caller) -> Any:
        """Run one of a library. Raises :class:`Refusal`."""
        return self._run(function, (self._table(keys), self._table(args)), call)

    def _compile(self, source: bytes) -> Any:
        code = source.split(b"\n", 1)[1] if source.startswith(b"#!") else source
        try:
            return self._lua.compile(code)
        except lua51.LuaSyntaxError as error:
            raise Refusal(f"ERR Error compiling script (new function): {_shown(error.args[0])}") from None

    def _run(self, function: Any, given: Sequence[Any], call: Caller, *, oldest: bool = False) -> Any:
        self._globals[b"OLDEST"] = oldest
        self._caller = call
        done, value = self._pcall(function, *given)
        self._caller = None
        if done:
            return self._reply(value)
        text = _shown(value[b"err"]) if self._lua_type(value) == "table" else f"ERR {_shown(value)}"
        if oldest:
            text = text.removeprefix("ERR ")
            raise Refusal(f"ERR Error running script (call to f_simulated): @user_script:1: {text}")
        raise Refusal(f"{text} script: simulated, on @user_script:1.")

    # What scripts call

    def _call(self, *words: Any) -> Any:
        assert self._caller is not None
        try:
            reply = self._caller([_word(word) for word in words])
        except Refusal as error:
            return self._table({b"err": str(error).encode()})
        return self._value(reply)

    def _decode(self, text: bytes) -> Any:
        try:
            return True, self._json(msgspec.json.decode(text))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return False, str(error).encode()

    def _encode(self, value: Any) -> bytes:
        return msgspec.json.encode(self._plain(value))

    def _unpack(self, data: bytes) -> Any:
        return self._json(msgspec.msgpack.decode(data))

    def _pack(self, value: Any) -> bytes:
        return msgspec.msgpack.encode(self._plain(value))

    def _of_struct(self, form: bytes, data: bytes) -> Any:
        return struct.unpack(form, data)

    def _to_struct(self, form: bytes, *values: float) -> bytes:
        return struct.pack(form, *values)

    def _sha1(self, text: bytes) -> bytes:
        return sha1(text, usedforsecurity=False).hexdigest().encode()

    # Values

    def _value(self, reply: Any) -> Any:
        """Redis to Lua."""
        kind = type(reply)
        if kind is bytes or kind is int:
            return reply
        if reply is None:
            return False
        if kind is list:
            return self._table([self._value(inner) for inner in reply])
        assert kind is Status
        return self._table({b"ok": bytes(reply)})

    def _reply(self, value: Any) -> Any:
        """Lua to Redis."""
        kind = type(value)
        if kind is bytes:
            return value
        if kind is int:
            return value
        if kind is float:
            return int(value)
        if value is True:
            return 1
        if self._lua_type(value) != "table":
            return None
        if (error := value[b"err"]) is not None:
            raise Refusal(_shown(error))
        if (status := value[b"ok"]) is not None:
            return Status(status)
        replies, i = [], 1
        while (inner := value[i]) is not None:
            try:
                replies.append(self._reply(inner))
            except Refusal as refusal:
                replies.append(refusal)
            i += 1
        return replies

    def _json(self, value: Any) -> Any:
        """JSON or MessagePack to Lua."""
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, list):
            return self._table([self._json(inner) for inner in value])
        if isinstance(value, dict):
            return self._table({self._json(key): self._json(inner) for key, inner in value.items()})
        return self._null if value is None else value

    def _plain(self, value: Any) -> Any:
        """Lua to what JSON and MessagePack have."""
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, float) and value == int(value):
            return int(value)
        if self._lua_type(value) == "table":
            items = dict(value.items())
            if items and all(isinstance(key, int) for key in items):
                return [self._plain(items[i]) for i in range(1, len(items) + 1)]
            return {self._plain(key): self._plain(inner) for key, inner in items.items()}
        return None if value == self._null else value


def _word(word: Any) -> bytes:
    if type(word) is bytes:
        return word
    if type(word) is int:
        return b"%d" % word
    if type(word) is float:
        return b"%d" % word if word == int(word) and abs(word) < 1e17 else repr_of(word)
    raise Refusal("ERR Lua redis lib command arguments must be strings or integers")


def _shown(error: Any) -> str:
    text = error if isinstance(error, bytes) else str(error).encode()
    return text.decode("utf-8", "replace")

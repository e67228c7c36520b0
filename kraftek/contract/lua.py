"""A Lua script that Redis runs in one piece, as a value.

Made by whoever decides something in Redis, run by :meth:`kraftek.contract.interfaces.IBus.call`; those for many
messages at once by :meth:`kraftek.contract.interfaces.IBus.run`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha1
from importlib.resources import files
from typing import Any, ClassVar

import msgspec
from msgspec import Struct

__all__ = ["Argument", "ForEach", "Receipt", "Script", "TrackingScript", "Value", "lua"]

Argument = bytes | str | int | float
"""A word of a command for Redis."""

Receipt = Callable[[Any], None]
"""Called with the result for a message, as :meth:`kraftek.contract.interfaces.IBus.run` has it."""

Value = str | int
"""What a script gets of a message beside its body: the name of a key, or an argument."""

Pack = Callable[[list[Any]], tuple[Sequence[Sequence[Value]], Sequence[bytes]]]
"""Makes of messages what :class:`ForEach` gives to Redis: each value of all of them, then the next, and the bodies."""


def lua(package: str, *names: str, **numbers: int) -> str:
    """The files ``NAME.lua`` of a package, joined in this order; those that it does not have come from this one.

    ``numbers`` come before them as local variables. Raises ``FileNotFoundError`` for a file that neither has.
    """
    given = [f"local {name} = {number:d}" for name, number in numbers.items()]
    return "\n".join([*given, *(_text(package, f"{name}.lua") for name in names)])


def _text(package: str, name: str) -> str:
    own = files(package).joinpath(name)
    return (own if own.is_file() else files(__package__).joinpath(name)).read_text("utf-8")


class Script(Struct, frozen=True, dict=True):
    """``source`` is Lua; it names its keys by ``KEYS`` and everything else by ``ARGV``."""

    tracks: ClassVar[bool] = False

    source: str

    @cached_property
    def digest(self) -> str:
        """The name under which Redis remembers the script: the source's SHA-1 in hex (``EVALSHA``)."""
        return sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class TrackingScript(Script, frozen=True, dict=True):
    """A script whose keys are tracked: :meth:`kraftek.contract.interfaces.IBus.track`.

    It declares each of them in ``KEYS``, also those that it reads by a name that it has made, and reads each again
    after it has written to it. Redis up to 7.0 tracks what is declared, when something is read; later versions track
    what is read. All of them stop at the connection's own write.
    """

    tracks: ClassVar[bool] = True


class ForEach(Script, frozen=True, dict=True):
    """A script that does something for each message of many, and answers with what came of which.

    It has no ``KEYS``, but is given what :meth:`arguments` makes of them. Its answer is a list: the position, from 0,
    of a message of which something came, and what; then the next. What fails for one message does not for the others.

    ``pack`` is called once for all messages that leave together: a loop over one thing at a time stays in the
    processor's cache, which saved 2 of the 28 µs that a request cost. ``keys``: how many of a message's values, the
    first, are names of keys.
    """

    pack: Pack
    keys: int

    @classmethod
    def make(cls, keys: str, args: str, pack: Pack, does: str, before: str = "", after: str = "") -> ForEach:
        """``keys`` and ``args`` are the names by which ``does`` calls the values of one message (``"stream, claim"``),
        whose ``body`` it has too. It returns a number or a string, or nil when nobody needs to know. ``before`` comes
        before the first, ``after`` after the last.
        """
        names = [name for part in (keys, args) for name in part.split(", ") if name]
        given = ", ".join(f"given[{number}][i]" for number in range(1, len(names) + 1))
        source = f"""{before}
local function each({", ".join(("body", *names))}) {does} end
local given, answers = cmsgpack.unpack(ARGV[1]), {{}}
for i = 1, #ARGV - 1 do
    local done, answer = pcall(each, ARGV[i + 1], {given})
    if not done and type(answer) ~= 'table' then answer = {{err = tostring(answer)}} end
    if answer then
        answers[#answers + 1] = i - 1
        answers[#answers + 1] = answer
    end
end
{after}
return answers
"""
        return cls(source, pack, len(keys.split(", ")))

    def arguments(self, messages: list[Any], prefix: str) -> list[bytes]:
        """What the script is given of these messages: all their values as MessagePack, then their bodies.

        A value that is an argument of its own takes us 1,100 processor instructions, and this way 100. A body takes
        Redis a dozen for each byte, as often as it becomes a string of Lua: so it is not cut out of another, nor made
        part of one.
        """
        values, bodies = self.pack(messages)
        if prefix:
            names = [[f"{prefix}{name}" for name in column] for column in values[: self.keys]]
            values = [*names, *values[self.keys :]]
        return [_pack(values), *bodies]


_pack = msgspec.msgpack.Encoder().encode

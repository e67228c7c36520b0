"""What the simulated Redis keeps, and the commands on it: those that the gateway and its scripts use.

``tests/simulation/test_redis.py`` holds them to the answers of a real redis-server. A command that is missing here is
an error of the simulation, not one that the gateway is told: see :class:`Missing`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from heapq import heappush
from math import inf
from random import Random
from typing import Any, TypeVar

__all__ = ["COMMANDS", "Command", "Keyspace", "Missing", "Refusal", "SortedSet", "Status", "Stream"]


class Status(bytes):
    """A reply like ``+OK``."""


class Refusal(Exception):  # noqa: N818  # an answer of Redis, which begins with its kind
    """A reply like ``-ERR``."""


class Missing(BaseException):
    """The simulation lacks a command or an option. No guard of the gateway's catches it."""


class Set(dict[bytes, None]):
    """A set, in the order in which its members came."""


class SortedSet(dict[bytes, float]):
    """Members by score."""


class Stream:
    """A stream without consumers' state: what is appended, and the groups that were made."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, int], list[bytes]] = {}
        self.last = (0, 0)
        self.groups: dict[bytes, tuple[int, int]] = {}


OK = Status(b"OK")
WRONG_TYPE = Refusal("WRONGTYPE Operation against a key holding the wrong kind of value")
SYNTAX = Refusal("ERR syntax error")
NO_INTEGER = Refusal("ERR value is not an integer or out of range")
NO_FLOAT = Refusal("ERR value is not a valid float")

_NAMES = {bytes: b"string", dict: b"hash", Set: b"set", SortedSet: b"zset", Stream: b"stream"}


class Command:
    """``writes``, ``grows`` (refused without memory), ``reads``: as Redis flags it. ``keys``: where its keys stand."""

    def __init__(self, run: Callable[..., Any], arity: int, flags: str, keys: slice) -> None:
        self.run = run
        self.arity = arity
        self.writes = "w" in flags
        self.grows = "m" in flags
        self.reads = "r" in flags
        self.keys = keys


COMMANDS: dict[bytes, Command] = {}

Method = TypeVar("Method", bound=Callable[..., Any])

ONE, ALL, NONE = slice(0, 1), slice(0, None), slice(0, 0)


def command(name: str, arity: int, flags: str, keys: slice = ONE) -> Callable[[Method], Method]:
    """Make a method of :class:`Keyspace` a command. ``arity`` is Redis's: with the name, negative for "at least"."""

    def register(method: Method) -> Method:
        COMMANDS[name.encode()] = Command(method, arity, flags, keys)
        return method

    return register


class Keyspace:
    """The data. ``now`` is Redis's clock, in seconds; ``changed`` is called with every key that changes, ``appended``
    with a stream and the fields of an entry.
    """

    def __init__(self, now: Callable[[], float], random: Random, changed: Callable[[bytes], None]) -> None:
        self.now = now
        self.random = random
        self.changed = changed
        self.appended: Callable[[bytes, list[bytes]], None] = lambda *_: None
        self.data: dict[bytes, Any] = {}
        self.expires: dict[bytes, int] = {}
        self.due: list[tuple[int, bytes]] = []

    # What commands share

    def milliseconds(self) -> int:
        """Redis's clock."""
        return int(self.now() * 1000)

    def copy(self) -> tuple[dict[bytes, Any], dict[bytes, int]]:
        """A snapshot."""
        return copy.deepcopy((self.data, self.expires))

    def load(self, snapshot: tuple[dict[bytes, Any], dict[bytes, int]]) -> None:
        """Begin with a snapshot."""
        self.data, self.expires = copy.deepcopy(snapshot)
        self.due = sorted((at, key) for key, at in self.expires.items())

    def find(self, key: bytes) -> Any:
        """The value of a key, or ``None``; one whose time is over is deleted."""
        value = self.data.get(key)
        if value is not None and self.expires:
            at = self.expires.get(key)
            if at is not None and at <= self.milliseconds():
                self.remove(key)
                return None
        return value

    def typed(self, key: bytes, kind: type, *, make: bool = False) -> Any:
        """The value of that type, or ``None``; or a new one that the key has from now on."""
        value = self.find(key)
        if value is None:
            if make:
                value = self.data[key] = kind()
        elif type(value) is not kind:
            raise WRONG_TYPE
        return value

    def remove(self, key: bytes) -> None:
        """Delete a key that exists."""
        del self.data[key]
        self.expires.pop(key, None)
        self.changed(key)

    def tidy(self, key: bytes, value: Any) -> None:
        """A collection lost members: without any it is gone."""
        if value:
            self.changed(key)
        else:
            self.remove(key)

    def expire_at(self, key: bytes, at: int) -> None:
        """Let a key expire."""
        self.expires[key] = at
        heappush(self.due, (at, key))

    # Keys

    @command("DEL", -2, "w", ALL)
    @command("UNLINK", -2, "w", ALL)
    def delete(self, *keys: bytes) -> int:
        count = 0
        for key in keys:
            if self.find(key) is not None:
                self.remove(key)
                count += 1
        return count

    @command("EXISTS", -2, "r", ALL)
    def exists(self, *keys: bytes) -> int:
        return sum(self.find(key) is not None for key in keys)

    @command("TYPE", 2, "r")
    def type(self, key: bytes) -> Status:
        value = self.find(key)
        return Status(b"none" if value is None else _NAMES[type(value)])

    @command("PTTL", 2, "r")
    def pttl(self, key: bytes) -> int:
        if self.find(key) is None:
            return -2
        at = self.expires.get(key)
        return -1 if at is None else at - self.milliseconds()

    @command("PEXPIRE", -3, "w")
    def pexpire(self, key: bytes, milliseconds: bytes) -> int:
        return self._expire(key, self.milliseconds() + _int(milliseconds))

    @command("EXPIRE", -3, "w")
    def expire(self, key: bytes, seconds: bytes) -> int:
        return self._expire(key, self.milliseconds() + _int(seconds) * 1000)

    @command("PERSIST", 2, "w")
    def persist(self, key: bytes) -> int:
        if self.find(key) is None or self.expires.pop(key, None) is None:
            return 0
        self.changed(key)
        return 1

    def _expire(self, key: bytes, at: int) -> int:
        if self.find(key) is None:
            return 0
        if at <= self.milliseconds():
            self.remove(key)
        else:
            self.expire_at(key, at)
            self.changed(key)
        return 1

    @command("SCAN", -2, "r", NONE)
    def scan(self, cursor: bytes, *options: bytes) -> list[Any]:
        match = None
        for name, value in _pairs(options):
            if name.upper() == b"MATCH":
                match = value
            elif name.upper() != b"COUNT":
                raise Missing(f"SCAN {name!r}")
        keys = [key for key in tuple(self.data) if match is None or _matches(match, key)]
        return [b"0", [key for key in keys if self.find(key) is not None]]

    # Strings

    @command("GET", 2, "r")
    def get(self, key: bytes) -> bytes | None:
        value: bytes | None = self.typed(key, bytes)
        return value

    @command("MGET", -2, "r", ALL)
    def mget(self, *keys: bytes) -> list[bytes | None]:
        return [value if type(value := self.find(key)) is bytes else None for key in keys]

    @command("SET", -3, "wm")
    def set(self, key: bytes, value: bytes, *options: bytes) -> Any:
        words = iter(options)
        condition, keeps, at, gets = b"", False, None, False
        for word in words:
            match word.upper():
                case b"NX" | b"XX" as condition:
                    pass
                case b"KEEPTTL":
                    keeps = True
                case b"GET":
                    gets = True
                case b"PX":
                    at = self.milliseconds() + _int(next(words))
                case b"EX":
                    at = self.milliseconds() + _int(next(words)) * 1000
                case b"PXAT":
                    at = _int(next(words))
                case _:
                    raise SYNTAX
        before: bytes | None = self.typed(key, bytes) if gets else self.find(key)
        if (condition == b"NX" and before is not None) or (condition == b"XX" and before is None):
            return before if gets else None
        self.data[key] = value
        if at is not None:
            self.expire_at(key, at)
        elif not keeps:
            self.expires.pop(key, None)
        self.changed(key)
        return before if gets else OK

    @command("SETNX", 3, "wm")
    def setnx(self, key: bytes, value: bytes) -> int:
        return int(self.set(key, value, b"NX") is OK)

    @command("GETDEL", 2, "w")
    def getdel(self, key: bytes) -> bytes | None:
        value = self.get(key)
        if value is not None:
            self.remove(key)
        return value

    @command("INCRBY", 3, "wm")
    def incrby(self, key: bytes, by: bytes) -> int:
        number = _int(self.typed(key, bytes) or b"0") + _int(by)
        self.data[key] = b"%d" % number
        self.changed(key)
        return number

    @command("INCR", 2, "wm")
    def incr(self, key: bytes) -> int:
        return self.incrby(key, b"1")

    @command("GETRANGE", 4, "r")
    def getrange(self, key: bytes, start: bytes, end: bytes) -> bytes:
        value: bytes = self.typed(key, bytes) or b""
        first, last = (number if number >= 0 else max(number + len(value), 0) for number in (_int(start), _int(end)))
        return value[first : last + 1]

    @command("STRLEN", 2, "r")
    def strlen(self, key: bytes) -> int:
        return len(self.typed(key, bytes) or b"")

    # Hashes

    @command("HSET", -4, "wm")
    def hset(self, key: bytes, *pairs: bytes) -> int:
        if len(pairs) % 2:
            raise Refusal("ERR wrong number of arguments for 'hset' command")
        value = self.typed(key, dict, make=True)
        before = len(value)
        value.update(_pairs(pairs))
        self.changed(key)
        return len(value) - before

    @command("HSETNX", 4, "wm")
    def hsetnx(self, key: bytes, field: bytes, value: bytes) -> int:
        known = self.typed(key, dict, make=True)
        if field in known:
            return 0
        known[field] = value
        self.changed(key)
        return 1

    @command("HGET", 3, "r")
    def hget(self, key: bytes, field: bytes) -> bytes | None:
        value: bytes | None = (self.typed(key, dict) or {}).get(field)
        return value

    @command("HMGET", -3, "r")
    def hmget(self, key: bytes, *fields: bytes) -> list[bytes | None]:
        value = self.typed(key, dict) or {}
        return [value.get(field) for field in fields]

    @command("HGETALL", 2, "r")
    def hgetall(self, key: bytes) -> list[bytes]:
        return [word for pair in (self.typed(key, dict) or {}).items() for word in pair]

    @command("HKEYS", 2, "r")
    def hkeys(self, key: bytes) -> list[bytes]:
        return list(self.typed(key, dict) or ())

    @command("HVALS", 2, "r")
    def hvals(self, key: bytes) -> list[bytes]:
        return list((self.typed(key, dict) or {}).values())

    @command("HLEN", 2, "r")
    def hlen(self, key: bytes) -> int:
        return len(self.typed(key, dict) or ())

    @command("HEXISTS", 3, "r")
    def hexists(self, key: bytes, field: bytes) -> int:
        return int(field in (self.typed(key, dict) or ()))

    @command("HDEL", -3, "w")
    def hdel(self, key: bytes, *fields: bytes) -> int:
        return self._drop(key, self.typed(key, dict), fields)

    @command("HINCRBY", 4, "wm")
    def hincrby(self, key: bytes, field: bytes, by: bytes) -> int:
        value = self.typed(key, dict, make=True)
        number = _int(value.get(field, b"0")) + _int(by)
        value[field] = b"%d" % number
        self.changed(key)
        return number

    @command("HRANDFIELD", -2, "r")
    def hrandfield(self, key: bytes, count: bytes | None = None, with_values: bytes = b"") -> Any:
        value = self.typed(key, dict) or {}
        found = self._sample(list(value), count)
        if with_values and isinstance(found, list):
            return [word for field in found for word in (field, value[field])]
        return found

    @command("HSCAN", -3, "r")
    def hscan(self, key: bytes, cursor: bytes, *options: bytes) -> list[Any]:
        return [b"0", self.hgetall(key)]

    # Sets

    @command("SADD", -3, "wm")
    def sadd(self, key: bytes, *members: bytes) -> int:
        value = self.typed(key, Set, make=True)
        before = len(value)
        value.update(dict.fromkeys(members))
        if len(value) > before:
            self.changed(key)
        return len(value) - before

    @command("SREM", -3, "w")
    def srem(self, key: bytes, *members: bytes) -> int:
        return self._drop(key, self.typed(key, Set), members)

    @command("SMEMBERS", 2, "r")
    def smembers(self, key: bytes) -> list[bytes]:
        return list(self.typed(key, Set) or ())

    @command("SISMEMBER", 3, "r")
    def sismember(self, key: bytes, member: bytes) -> int:
        return int(member in (self.typed(key, Set) or ()))

    @command("SMISMEMBER", -3, "r")
    def smismember(self, key: bytes, *members: bytes) -> list[int]:
        value = self.typed(key, Set) or ()
        return [int(member in value) for member in members]

    @command("SCARD", 2, "r")
    def scard(self, key: bytes) -> int:
        return len(self.typed(key, Set) or ())

    @command("SRANDMEMBER", -2, "r")
    def srandmember(self, key: bytes, count: bytes | None = None) -> Any:
        return self._sample(list(self.typed(key, Set) or ()), count)

    @command("SPOP", -2, "w")
    def spop(self, key: bytes, count: bytes | None = None) -> Any:
        found = self._sample(list(self.typed(key, Set) or ()), count)
        members = found if isinstance(found, list) else [found]
        if found:
            self._drop(key, self.data[key], members)
        return found

    @command("SSCAN", -3, "r")
    def sscan(self, key: bytes, cursor: bytes, *options: bytes) -> list[Any]:
        return [b"0", self.smembers(key)]

    @command("SUNIONSTORE", -3, "wm", ALL)
    def sunionstore(self, target: bytes, *keys: bytes) -> int:
        union = Set()
        for key in keys:
            union.update(self.typed(key, Set) or {})
        if self.find(target) is not None:
            self.remove(target)
        if union:
            self.data[target] = union
            self.changed(target)
        return len(union)

    # Sorted sets

    @command("ZADD", -4, "wm")
    def zadd(self, key: bytes, *words: bytes) -> Any:
        options, rest = set(), list(words)
        while rest and rest[0].upper() in {b"NX", b"XX", b"GT", b"LT", b"CH"}:
            options.add(rest.pop(0).upper())
        pairs = [(_float(score), member) for score, member in _pairs(rest)]
        value = self.typed(key, SortedSet, make=True)
        added, updated = 0, 0
        for score, member in pairs:
            known = value.get(member)
            if known is None:
                if b"XX" in options:
                    continue
                added += 1
            elif b"NX" in options or (b"GT" in options and score <= known) or (b"LT" in options and score >= known):
                continue
            elif known != score:
                updated += 1
            value[member] = score
        if not value:
            del self.data[key]
        elif added or updated:
            self.changed(key)
        return added + updated if b"CH" in options else added

    @command("ZREM", -3, "w")
    def zrem(self, key: bytes, *members: bytes) -> int:
        return self._drop(key, self.typed(key, SortedSet), members)

    @command("ZSCORE", 3, "r")
    def zscore(self, key: bytes, member: bytes) -> bytes | None:
        score = (self.typed(key, SortedSet) or {}).get(member)
        return None if score is None else _text(score)

    @command("ZMSCORE", -3, "r")
    def zmscore(self, key: bytes, *members: bytes) -> list[bytes | None]:
        value = self.typed(key, SortedSet) or {}
        return [None if (score := value.get(member)) is None else _text(score) for member in members]

    @command("ZCARD", 2, "r")
    def zcard(self, key: bytes) -> int:
        return len(self.typed(key, SortedSet) or ())

    @command("ZCOUNT", 4, "r")
    def zcount(self, key: bytes, low: bytes, high: bytes) -> int:
        return len(self._between(key, low, high))

    @command("ZRANGEBYSCORE", -4, "r")
    def zrangebyscore(self, key: bytes, low: bytes, high: bytes, *options: bytes) -> list[bytes]:
        return _ranged(self._between(key, low, high), options)

    @command("ZREVRANGEBYSCORE", -4, "r")
    def zrevrangebyscore(self, key: bytes, high: bytes, low: bytes, *options: bytes) -> list[bytes]:
        return _ranged(self._between(key, low, high)[::-1], options)

    @command("ZREMRANGEBYSCORE", 4, "w")
    def zremrangebyscore(self, key: bytes, low: bytes, high: bytes) -> int:
        members = [member for member, _ in self._between(key, low, high)]
        return self._drop(key, self.data.get(key), members) if members else 0

    @command("ZRANGE", -4, "r")
    def zrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> list[bytes]:
        words = {word.upper() for word in options}
        found = self._ordered(key)
        if b"REV" in words:
            found = found[::-1]
        if words - {b"REV", b"WITHSCORES"}:
            raise Missing(f"ZRANGE {options!r}")
        return _ranged(_sliced(found, first, last), [word for word in options if word.upper() == b"WITHSCORES"])

    @command("ZREVRANGE", -4, "r")
    def zrevrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> list[bytes]:
        return _ranged(_sliced(self._ordered(key)[::-1], first, last), options)

    @command("ZREMRANGEBYRANK", 4, "w")
    def zremrangebyrank(self, key: bytes, first: bytes, last: bytes) -> int:
        members = [member for member, _ in _sliced(self._ordered(key), first, last)]
        return self._drop(key, self.data.get(key), members) if members else 0

    @command("ZPOPMIN", -2, "w")
    def zpopmin(self, key: bytes, count: bytes = b"1") -> list[bytes]:
        found = self._ordered(key)[: _int(count)]
        if found:
            self._drop(key, self.data[key], [member for member, _ in found])
        return [word for member, score in found for word in (member, _text(score))]

    def _ordered(self, key: bytes) -> list[tuple[bytes, float]]:
        return sorted((self.typed(key, SortedSet) or {}).items(), key=lambda item: (item[1], item[0]))

    def _between(self, key: bytes, low: bytes, high: bytes) -> list[tuple[bytes, float]]:
        (least, without_least), (most, without_most) = _bound(low), _bound(high)
        return [
            (member, score)
            for member, score in self._ordered(key)
            if (score > least if without_least else score >= least)
            and (score < most if without_most else score <= most)
        ]

    # Streams

    @command("XADD", -5, "wm")
    def xadd(self, key: bytes, *words: bytes) -> bytes:
        rest, most = list(words), None
        if rest[0].upper() == b"MAXLEN":
            rest.pop(0)
            if rest[0] in {b"~", b"="}:
                rest.pop(0)
            most = _int(rest.pop(0))
        given = rest.pop(0)
        stream = self.typed(key, Stream) or Stream()
        following = max((self.milliseconds(), 0), (stream.last[0], stream.last[1] + 1))
        at = following if given == b"*" else _entry_id(given)
        if at <= stream.last:
            raise Refusal("ERR The ID specified in XADD is equal or smaller than the target stream top item")
        self.data[key] = stream
        stream.last = at
        stream.entries[at] = rest
        while most is not None and len(stream.entries) > most:
            del stream.entries[next(iter(stream.entries))]
        self.changed(key)
        self.appended(key, rest)
        return b"%d-%d" % at

    @command("XLEN", 2, "r")
    def xlen(self, key: bytes) -> int:
        stream = self.typed(key, Stream)
        return 0 if stream is None else len(stream.entries)

    @command("XRANGE", -4, "r")
    def xrange(self, key: bytes, first: bytes, last: bytes, *options: bytes) -> list[Any]:
        if last != b"+" or (options and options[0].upper() != b"COUNT"):
            raise Missing(f"XRANGE to {last!r} {options!r}")
        least = (0, 0) if first == b"-" else _entry_id(first)
        stream = self.typed(key, Stream)
        found = [
            [b"%d-%d" % at, fields] for at, fields in ({} if stream is None else stream.entries).items() if at >= least
        ]
        return found[: _int(options[1])] if options else found

    @command("XDEL", -3, "w")
    def xdel(self, key: bytes, *entries: bytes) -> int:
        stream = self.typed(key, Stream)
        gone = [at for at in map(_entry_id, entries) if stream is not None and stream.entries.pop(at, None) is not None]
        if gone:
            self.changed(key)
        return len(gone)

    @command("XTRIM", -4, "w")
    def xtrim(self, key: bytes, how: bytes, first: bytes) -> int:
        if how.upper() != b"MINID":
            raise Missing(f"XTRIM {how!r}")
        stream, least = self.typed(key, Stream), _entry_id(first)
        gone = [at for at in (stream.entries if stream else ()) if at < least]
        for at in gone:
            del stream.entries[at]
        if gone:
            self.changed(key)
        return len(gone)

    @command("XGROUP", -2, "wm", slice(1, 2))
    def xgroup(self, what: bytes, key: bytes, group: bytes, first: bytes, option: bytes = b"") -> Status:
        if what.upper() != b"CREATE" or first != b"0":
            raise Missing(f"XGROUP {what!r} {first!r}")
        stream = self.typed(key, Stream, make=option.upper() == b"MKSTREAM")
        if stream is None:
            raise Refusal("ERR The XGROUP subcommand requires the key to exist. Note that")
        if group in stream.groups:
            raise Refusal("BUSYGROUP Consumer Group name already exists")
        stream.groups[group] = (0, 0)
        self.changed(key)
        return OK

    @command("XREADGROUP", -7, "w", slice(6, 7))
    def xreadgroup(self, *words: bytes) -> list[Any] | None:
        """``GROUP g c COUNT n NOACK STREAMS key >``: what is read is handled."""
        _, group, _, _, count, noack, _, key, _ = words
        if noack.upper() != b"NOACK":
            raise Missing("XREADGROUP with pending entries")
        stream = self.typed(key, Stream)
        if stream is None or group not in stream.groups:
            names = f"No such key '{key.decode()}' or consumer group '{group.decode()}'"
            raise Refusal(f"NOGROUP {names} in XREADGROUP with GROUP option")
        new = [at for at in stream.entries if at > stream.groups[group]][: _int(count)]
        if not new:
            return None
        stream.groups[group] = new[-1]
        self.changed(key)
        return [[key, [[b"%d-%d" % at, stream.entries[at]] for at in new]]]

    @command("XINFO", -2, "r", slice(1, 2))
    def xinfo(self, what: bytes, key: bytes) -> list[Any]:
        stream = self.typed(key, Stream)
        if stream is None:
            raise Refusal("ERR no such key")
        if what.upper() == b"STREAM":
            return [b"length", len(stream.entries), b"last-generated-id", b"%d-%d" % stream.last]
        if what.upper() != b"GROUPS":
            raise Missing(f"XINFO {what!r}")
        return [
            [b"name", name, b"pending", 0, b"last-delivered-id", b"%d-%d" % at] for name, at in stream.groups.items()
        ]

    @command("MEMORY", -2, "r", slice(1, 2))
    def memory(self, what: bytes, key: bytes, *_: bytes) -> int | None:
        stream = self.typed(key, Stream)
        if stream is None:
            return None
        return 600 + sum(50 + sum(map(len, fields)) for fields in stream.entries.values())

    # For several types

    def _drop(self, key: bytes, value: Any, members: Sequence[bytes]) -> int:
        if value is None:
            return 0
        before = len(value)
        for member in members:
            value.pop(member, None)
        gone = before - len(value)
        if gone:
            self.tidy(key, value)
        return gone

    def _sample(self, members: list[bytes], count: bytes | None) -> Any:
        if count is None:
            return self.random.choice(members) if members else None
        number = _int(count)
        if number < 0:
            return [self.random.choice(members) for _ in range(-number)] if members else []
        return self.random.sample(members, min(number, len(members)))


def _entry_id(word: bytes) -> tuple[int, int]:
    ms, _, sequence = word.partition(b"-")
    return int(ms), int(sequence or 0)


def _int(word: bytes) -> int:
    try:
        return int(word)
    except ValueError:
        raise NO_INTEGER from None


def _float(word: bytes) -> float:
    try:
        return float(word)
    except ValueError:
        raise NO_FLOAT from None


def _text(score: float) -> bytes:
    if score in {inf, -inf}:
        return b"inf" if score > 0 else b"-inf"
    return (b"%d" % score) if score == int(score) and abs(score) < 1e17 else repr_of(score)


def repr_of(number: float) -> bytes:
    """As C's ``%.17g`` prints it."""
    return f"{number:.17g}".encode()


def _bound(word: bytes) -> tuple[float, bool]:
    without = word.startswith(b"(")
    try:
        return float(word[without:]), without
    except ValueError:
        raise Refusal("ERR min or max is not a float") from None


def _pairs(words: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    if len(words) % 2:
        raise SYNTAX
    return zip(words[::2], words[1::2], strict=True)


def _sliced(found: list[tuple[bytes, float]], first: bytes, last: bytes) -> list[tuple[bytes, float]]:
    begin, end = _int(first), _int(last)
    begin = max(begin + len(found), 0) if begin < 0 else begin
    end = end + len(found) if end < 0 else end
    return found[begin : end + 1]


def _ranged(found: list[tuple[bytes, float]], options: Sequence[bytes]) -> list[bytes]:
    words, scores = list(options), False
    while words:
        word = words.pop(0).upper()
        if word == b"WITHSCORES":
            scores = True
        elif word == b"LIMIT":
            offset, count = _int(words.pop(0)), _int(words.pop(0))
            found = found[offset:] if count < 0 else found[offset : offset + count]
        else:
            raise SYNTAX
    return [word for member, score in found for word in ((member, _text(score)) if scores else (member,))]


def _matches(pattern: bytes, key: bytes) -> bool:
    if not pattern.endswith(b"*") or any(char in pattern[:-1] for char in b"*?[\\"):
        raise Missing(f"the pattern {pattern!r}")
    return key.startswith(pattern[:-1])

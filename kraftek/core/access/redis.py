"""The access cache in Redis, shared by all gateway processes. Called by the other modules of this package.

======================================  ======================================================================
``access:token:<digest of a token>``    a hash: room → the grant, as JSON; the room is empty for a grant without one.
                                        While the auth service is asked for the first time, the time and the epoch alone
``access:user:<userId>``                the set of the digests for which the user has such hashes
``access-ledger:<userId>``              a hash, the gateways' own: when the set and each of those hashes expire, and
                                        when one of them was last found missing
======================================  ======================================================================

A cached grant is valid only while its digest is a member of its user's set, so that deleting either key revokes it. A
deleted key leaves no trace, though, and a check that is in flight would store an answer from before the deletion. So
the look-up before a check leaves something in the token's hash, and what the check stores takes its place. For the set,
whose user is known only when the answer is, the scripts keep a ledger, compare it with the keys that exist, and reject
the answer to a check that began before a deletion. Its name does not begin with ``access:``: nobody hears of it.

The two keys live a minute longer than the answers in them: who asks again in time finds them, and a key that is missing
before its time in the ledger was deleted.

All times in Redis are by its own clock, and of one epoch (:attr:`kraftek.contract.interfaces.IBus.epoch`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus
from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.lua import Script, TrackingScript, lua
from kraftek.contract.messages import Grant
from kraftek.contract.names import ledger_key, token_key, user_key

__all__ = [
    "CLEAR",
    "COMPARE",
    "HOLD",
    "LOOK_UP",
    "STORE",
    "CachedGrant",
    "Compared",
    "Found",
    "SharedAnswers",
]

MOST_ROOMS = 10_000
"""Rooms that a token may have answers for, in two megabytes. Further ones are not cached."""

HELD_AT_ONCE = 500
"""Keys that one script reads so that they are tracked: Redis does nothing else for a fifth of a millisecond."""


class CachedGrant(Grant, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A grant, and until when it may be used without asking again: in Unix seconds, of Redis's clock in Redis, and of
    this machine's in memory. ``asked_at``: microseconds by Redis's clock at which, or shortly before, the auth service
    was asked, in this ``epoch``.
    """

    fresh_until: float
    asked_at: int = 0
    epoch: str = ""


class Found(Struct, frozen=True):
    """The result of a look-up at ``time``, microseconds by Redis's clock, and ``read_at``, Unix seconds by ours.
    ``grant``: valid, but perhaps not fresh, or of another epoch.
    """

    time: int
    read_at: float
    grant: CachedGrant | None


class Compared(Struct, frozen=True):
    """What Redis has of a user's answers.

    ``missing``: the user's set was deleted. ``taken``: when something of the user was last found missing. ``expected``:
    the digests whose hashes cannot have expired; ``gone``: those of them without any answer. ``answers``: by digest and
    room.
    """

    time: int
    missing: bool
    taken: int
    expected: frozenset[str]
    gone: frozenset[str]
    answers: Mapping[tuple[str, str | None], CachedGrant]


LOOK_UP = TrackingScript(lua(__package__, "time", "ledger", "look_up"))
STORE = TrackingScript(lua(__package__, "time", "ledger", "store"))
COMPARE = TrackingScript(lua(__package__, "time", "compare"))
HOLD = TrackingScript("return redis.call('EXISTS', unpack(KEYS))")
CLEAR = Script(lua(__package__, "time", "ledger", "keep_type", "clear"))


class SharedAnswers:
    """The answers in Redis. Methods return ``None`` when Redis is unavailable or refuses: that keeps no client out.

    ``patience``: seconds that a check may take; ``memory``: seconds for which a deletion is remembered, which is more.
    ``now`` returns Unix seconds.
    """

    _log = Logger()

    def __init__(
        self, bus: IBus, clock: IReactorTime, now: Callable[[], float], *, patience: float, memory: float
    ) -> None:
        self._bus = bus
        self.now = now
        self._patience = int(patience * 1000)
        self._memory = int(memory * 1000)
        self._once_a_minute = OnceAMinute(clock.seconds)

    async def look_up(self, digest: str, room_id: str | None, user_id: str | None) -> Found | None:
        """The cached grant for this token in this room. ``user_id``: the token's user, if known. If not, only changes
        of the token's key will be announced.
        """
        prefixes = token_key(""), user_key(""), ledger_key("")
        keys = (token_key(digest),) if user_id is None else (token_key(digest), user_key(user_id))
        args = digest, room_id or "", user_id or "", self._bus.epoch or "", self._memory, self._patience
        reply = await self._run(LOOK_UP, (*prefixes, *keys), args)
        if reply is None:
            return None
        text, answer, *unreadable = reply
        time = int(text)
        cached = self._read(digest, answer, time)
        if unreadable:
            self._unreadable(digest)
        return Found(time, self.now(), cached)

    async def has(self, digest: str, room_id: str | None) -> bool:
        """Whether there is an answer for this token in this room, whatever it is worth: a look-up that leaves nothing
        behind, not even a key that is tracked.
        """
        answer = await self._run("HGET", (token_key(digest),), (room_id or "",))
        return answer is not None and not _is_note(answer)

    async def store(
        self, digest: str, room_id: str | None, cached: CachedGrant, seconds: float, found: Found
    ) -> bool | None:
        """Store an answer for so many seconds; 0 stores nothing and only returns the result. ``found``: by the look-up
        before the check. ``False``: access of this user was revoked since then, and the answer may be older; or another
        process has stored a later one. ``None``, too, if there are :data:`MOST_ROOMS` of this token.
        """
        fresh_until = found.time / 1_000_000 + cached.fresh_until - found.read_at
        reply = await self._run(
            STORE,
            (token_key(digest), user_key(cached.user_id), ledger_key(cached.user_id)),
            (
                digest,
                room_id or "",
                msgspec.json.encode(replace(cached, fresh_until=fresh_until)),
                int(seconds * 1000),
                found.time,
                self._memory,
                MOST_ROOMS,
            ),
        )
        return None if reply not in (0, 1) else reply == 1

    async def compare(self, user_id: str, tokens: Mapping[str, Sequence[str | None]]) -> Compared | None:
        """What there is for rooms of the user's tokens. Further changes of all these keys will be announced."""
        keys = user_key(user_id), ledger_key(user_id), *map(token_key, tokens)
        args: list[str | int] = []
        for digest, rooms in tokens.items():
            args += [digest, len(rooms), *(room_id or "" for room_id in rooms)]
        reply = await self._run(COMPARE, keys, args)
        if reply is None:
            return None
        text, missing, taken, *rows = reply
        time = int(text)
        answers: dict[tuple[str, str | None], CachedGrant] = {}
        for (digest, rooms), (_, values, _) in zip(tokens.items(), rows, strict=True):
            for room_id, answer in zip(rooms, values, strict=False):
                cached = self._read(digest, answer, time)
                if cached is not None:
                    answers[digest, room_id] = cached
        expected = {digest: answered for digest, (due, _, answered) in zip(tokens, rows, strict=True) if due}
        gone = frozenset(digest for digest, answered in expected.items() if not answered)
        return Compared(time, bool(missing), int(taken), frozenset(expected), gone, answers)

    def hold(self, names: Iterable[str]) -> None:
        """Changes of these keys will be announced."""
        keys = list(dict.fromkeys(names))
        for first in range(0, len(keys), HELD_AT_ONCE):
            Deferred.fromCoroutine(self._run(HOLD, keys[first : first + HELD_AT_ONCE], ()))

    async def clear(self, user_id: str, room_id: str | None) -> list[str] | None:
        """Remove a user's cached answers, only those for ``room_id`` if given, and reject checks in flight. Returns the
        digests of tokens that others of the user's answers are cached for: changes of those are not announced any more.
        """
        reply = await self._run(
            CLEAR,
            (user_key(user_id), token_key(""), ledger_key(user_id)),
            (int(room_id is not None), room_id or "", self._memory),
        )
        return None if reply is None else [digest.decode("utf-8", "replace") for digest in reply]

    async def _run(self, script: Script | str, keys: Sequence[str], args: Sequence[bytes | str | int]) -> Any:
        try:
            return await self._bus.call(script, keys, args)
        except NotPublished:
            return None
        except Exception as error:  # noqa: BLE001  # whatever the reason for which Redis refuses: see the class
            self._refused(error)
            return None

    def _read(self, digest: str, answer: bytes | None, time: int) -> CachedGrant | None:
        if answer is None:
            return None
        try:
            answer.decode()
            cached = msgspec.json.decode(answer, type=CachedGrant)
            return replace(cached, fresh_until=self.now() + cached.fresh_until - time / 1_000_000)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            if not _is_note(answer):
                self._unreadable(digest)
            return None  # written by another program, or by another version

    def _unreadable(self, digest: str) -> None:
        text = "Ignored an answer in Redis that cannot be read, at {key} (logged once a minute)"
        self._once_a_minute(self._log.warn, text, key=token_key(digest))

    def _refused(self, error: Exception) -> None:
        self._once_a_minute(
            self._log.error, "Redis refuses to cache access (logged once a minute): {error}", error=str(error)
        )


def _is_note(answer: bytes) -> bool:
    """Whether it says only that the auth service is being asked."""
    return answer.startswith(b'{"epoch":') and b'"userId"' not in answer

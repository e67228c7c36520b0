"""The access cache in Redis, shared by all gateway processes. Called by :mod:`kraftek.core.access.cache`.

======================================  ======================================================================
``access:token:<digest of a token>``    a hash: room → the grant, as JSON; the room is empty for a grant without one
``access:user:<userId>``                the set of the digests for which the user has such hashes
``access-ledger:<userId>``              a hash, the gateways' own: when the set and each of those hashes expire, and
                                        when one of them was last found missing
======================================  ======================================================================

A cached grant is valid only while its digest is a member of its user's set, so that deleting either key revokes it.
A deleted key leaves no trace, though, and a check that is in flight would store an answer from before the deletion.
Redis's invalidation messages do not help: one stands for all changes of a key in one iteration of Redis's event loop,
the gateway's own writes included. So the scripts keep a ledger, compare it with the keys that exist, and reject the
answer to a check that began before a deletion. The ledger's name does not begin with ``access:``, so that its changes
are not announced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus
from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.lua import Script, lua
from kraftek.contract.messages import Grant
from kraftek.contract.names import ledger_key, token_key, user_key

__all__ = ["CLEAR", "LOOK_UP", "STORE", "CachedGrant", "Found", "SharedAnswers"]


class CachedGrant(Grant, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A grant, and until when (in Unix seconds) it may be used without asking again."""

    fresh_until: float


class Found(Struct, frozen=True):
    """The result of a look-up at ``time``, microseconds by Redis's clock. ``grant``: valid, but perhaps not fresh."""

    time: int
    grant: CachedGrant | None


LOOK_UP = Script(lua(__package__, "time", "ledger", "look_up"))
STORE = Script(lua(__package__, "time", "ledger", "store"))
CLEAR = Script(lua(__package__, "time", "ledger", "keep_type", "clear"))


class SharedAnswers:
    """The answers in Redis. Methods return ``None`` when Redis is unavailable or refuses: that keeps no client out.

    ``memory``: seconds for which a deletion is remembered; no check may take longer.
    """

    _log = Logger()

    def __init__(self, bus: IBus, clock: IReactorTime, memory: float) -> None:
        self._bus = bus
        self._memory = int(memory * 1000)
        self._once_a_minute = OnceAMinute(clock.seconds)

    async def look_up(self, digest: str, room_id: str | None, user_id: str = "") -> Found | None:
        """The cached grant for this token in this room. ``user_id``: the token's user when last known."""
        reply = await self._run(
            LOOK_UP,
            (token_key(""), user_key(""), ledger_key("")),
            (digest, room_id or "", user_id, self._memory),
        )
        if reply is None:
            return None
        time, answer, *unreadable = reply
        cached = None if answer is None else _read(answer)
        if unreadable or (answer is not None and cached is None):
            text = "Ignored an answer in Redis that cannot be read, at {key} (logged once a minute)"
            self._once_a_minute(self._log.warn, text, key=token_key(digest))
        return Found(int(time), cached)

    async def store(
        self, digest: str, room_id: str | None, cached: CachedGrant, seconds: float, asked: int
    ) -> bool | None:
        """Store an answer for so many seconds; 0 stores nothing and only returns the result. ``asked``: the time of the
        last look-up before the check. ``False``: access of this user was revoked since then, and the answer may be
        older.
        """
        reply = await self._run(
            STORE,
            (token_key(""), user_key(cached.user_id), ledger_key(cached.user_id)),
            (digest, room_id or "", msgspec.json.encode(cached), int(seconds * 1000), asked, self._memory),
        )
        return None if reply is None else reply == 1

    async def clear(self, user_id: str, room_id: str | None) -> bool | None:
        """Remove a user's cached answers, only those for ``room_id`` if given, and reject checks in flight."""
        reply = await self._run(
            CLEAR,
            (user_key(user_id), token_key(""), ledger_key(user_id)),
            (int(room_id is not None), room_id or "", self._memory),
        )
        return None if reply is None else True

    async def _run(self, script: Script, keys: Sequence[str], args: Sequence[bytes | str | int]) -> Any:
        try:
            return await self._bus.call(script, keys, args)
        except NotPublished:
            return None
        except Exception as error:  # noqa: BLE001  # whatever the reason for which Redis refuses: see the class
            self._refused(error)
            return None

    def _refused(self, error: Exception) -> None:
        self._once_a_minute(
            self._log.error, "Redis refuses to cache access (logged once a minute): {error}", error=str(error)
        )


def _read(answer: bytes) -> CachedGrant | None:
    try:
        answer.decode()
        return msgspec.json.decode(answer, type=CachedGrant)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # written by another program, or by another version

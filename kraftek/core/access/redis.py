"""What all gateway processes know of access, in Redis. Called by :mod:`kraftek.core.access.cache`.

======================================  ======================================================================
``access:token:<digest of a token>``    a hash: room → the yes, as JSON; the room is empty for a yes without one
``access:user:<userId>``                the set of the digests that the user has such hashes for
``access-ledger:<userId>``              a hash, ours alone: until when the set and each of those hashes should
                                        live, and when one of them was last found missing
======================================  ======================================================================

A yes counts while its digest is in its user's set, so that deleting either key takes it back. A deleted key leaves
no trace, though, and the question that is just being asked would fill it again with what was true before. Redis's
invalidation messages cannot tell: one stands for everything that happened to a key in one turn of Redis's loop, our
own writes included. So the scripts keep the ledger, compare it with what there is, and take no answer to a question
that is older than a deletion. The ledger's name does not begin with ``access:``: nobody is told of its changes.
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

__all__ = ["CLEAR", "LOOK_UP", "STORE", "Found", "Kept", "SharedAnswers"]


class Kept(Grant, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """A yes, and until when (in Unix seconds) it may be used without asking again."""

    fresh_until: float


class Found(Struct, frozen=True):
    """What a look found. ``time`` is when, by Redis's clock in microseconds; ``kept`` counts, but may be old."""

    time: int
    kept: Kept | None


LOOK_UP = Script(lua(__package__, "time", "ledger", "look_up"))
STORE = Script(lua(__package__, "time", "ledger", "store"))
CLEAR = Script(lua(__package__, "time", "ledger", "keep_type", "clear"))


class SharedAnswers:
    """The answers in Redis. Every method gives ``None`` when Redis is away or refuses: nobody is kept out by that.

    ``memory``: seconds for which a deletion is remembered; no question may take longer.
    """

    _log = Logger()

    def __init__(self, bus: IBus, clock: IReactorTime, memory: float) -> None:
        self._bus = bus
        self._memory = int(memory * 1000)
        self._once_a_minute = OnceAMinute(clock.seconds)

    async def look(self, digest: str, room_id: str | None, user_id: str = "") -> Found | None:
        """What is kept for this token in this room. ``user_id``: whose it was when last known."""
        reply = await self._run(
            LOOK_UP,
            (token_key(""), user_key(""), ledger_key("")),
            (digest, room_id or "", user_id, self._memory),
        )
        if reply is None:
            return None
        time, answer, *unreadable = reply
        kept = None if answer is None else _read(answer)
        if unreadable or (answer is not None and kept is None):
            text = "{key} in Redis has an answer that cannot be read, and does not count (logged once a minute)"
            self._once_a_minute(self._log.warn, text, key=token_key(digest))
        return Found(int(time), kept)

    async def store(self, digest: str, room_id: str | None, kept: Kept, seconds: float, asked: int) -> bool | None:
        """Keep an answer for so many seconds; 0 is for the verdict alone. ``asked``: the time of the last look before
        the question. ``False``: something of this user was taken back since then, and the answer may be older.
        """
        reply = await self._run(
            STORE,
            (token_key(""), user_key(kept.user_id), ledger_key(kept.user_id)),
            (digest, room_id or "", msgspec.json.encode(kept), int(seconds * 1000), asked, self._memory),
        )
        return None if reply is None else reply == 1

    async def clear(self, user_id: str, room_id: str | None) -> bool | None:
        """Forget what is kept for a user, in one room alone when it is given; answers on their way as well."""
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
            self._log.error, "Redis refuses to keep access (logged once a minute): {error}", error=str(error)
        )


def _read(answer: bytes) -> Kept | None:
    try:
        answer.decode()
        return msgspec.json.decode(answer, type=Kept)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # somebody else's writing, or another version's

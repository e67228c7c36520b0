"""Revocation where tokens speak for themselves: asked again, the same token would say yes again. So a revocation is a
time, and a token that was issued at or before it is not valid any more.

======================================  ======================================================================
``access-not-before:<userId>``          a hash: room → Unix seconds; the room is empty for all rooms. It lives as long
                                        as a token may that was issued before
======================================  ======================================================================

Made by :mod:`kraftek.daemon.checkers` before the access cache, so that it hears of a revocation first: what is checked
from then on knows of it, here at once, and on other gateways because the write is sent before the cache is cleared.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus, IBusListener, INotBefore
from kraftek.contract.log_once import OnceUntilItWorks, failing
from kraftek.contract.lua import Script, lua
from kraftek.contract.names import INVALIDATION, not_before_key, user_key
from kraftek.contract.settings import Jwt
from kraftek.core.access.invalidation import Invalidation

__all__ = ["NOT_BEFORE", "NotBefore"]

AT_ONCE = 1000
"""Times that one sweep writes: Redis does nothing else for ten milliseconds."""

AGAIN = 1.0
"""Seconds until a time that Redis did not take is written again."""

MARGIN = 60.0
"""Seconds for which a time is kept beyond the life of tokens: the clocks of gateways differ."""

NOT_BEFORE = Script(lua(__package__, "keep_type", "not_before"))

_Place = tuple[str, str | None]


@implementer(INotBefore, IBusListener)
class NotBefore:
    """The times in Redis, and the newest of them in memory: ``size`` at most.

    What Redis lost, or would not take, is written from memory when it takes it, and the user's access is asked about
    again. ``jwt``: how long tokens live at most. ``clock`` measures when to write again, ``now`` returns Unix seconds,
    as tokens have them.
    """

    _log = Logger()

    def __init__(
        self, bus: IBus, jwt: Jwt, size: int, clock: IReactorTime, now: Callable[[], float] = time.time
    ) -> None:
        self._bus = bus
        self._jwt = jwt
        self._size = size
        self._clock = clock
        self._now = now
        self._times: OrderedDict[_Place, float] = OrderedDict()
        self._unwritten: OrderedDict[_Place, None] = OrderedDict()
        self._again = 0.0
        self._once = OnceUntilItWorks()
        bus.subscribe(INVALIDATION, self._invalidated)
        bus.add_listener(self)

    def find(self, user_id: str, room_id: str | None) -> Deferred[float]:
        places = dict.fromkeys(((user_id, None), (user_id, room_id)))
        known = [self._times.get(place, 0.0) for place in places]
        found = self._bus.call("HMGET", [not_before_key(user_id)], [room or "" for _, room in places])
        return found.addCallback(lambda values: max(*known, *map(_seconds, values), 0.0))

    def sweep(self) -> None:
        """Write what Redis has not taken, if the time has come."""
        if self._unwritten and self._bus.available and self._again <= self._clock.seconds():
            for place in tuple(islice(self._unwritten, AT_ONCE)):
                self._write(place, again=True)

    # IBusListener

    def bus_up(self) -> None:
        self._unwritten = OrderedDict.fromkeys(self._times)
        self._again = 0.0
        self.sweep()

    def bus_down(self) -> None:
        pass

    def epoch_changed(self) -> None:
        self.bus_up()

    # Within

    @property
    def _longest(self) -> float:
        return self._jwt.longest + 2 * self._jwt.leeway + MARGIN

    def _invalidated(self, body: bytes) -> None:
        try:
            message = msgspec.json.decode(body, type=Invalidation)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return  # the access cache logs it
        place, now = (message.user_id, message.room_id or None), self._now()
        self._times[place] = max(now, self._times.pop(place, 0.0))
        while len(self._times) > self._size or next(iter(self._times.values())) < now - self._longest:
            self._times.popitem(last=False)
        self._write(place)

    def _write(self, place: _Place, *, again: bool = False) -> None:
        self._unwritten.pop(place, None)
        if place in self._times:
            (user_id, room_id), longest = place, self._longest
            at, horizon = repr(self._times[place]), repr(self._now() - longest)
            args = room_id or "", at, int(longest * 1000), horizon, int(again)
            written = self._bus.call(NOT_BEFORE, [not_before_key(user_id), user_key(user_id)], args)
            written.addCallbacks(lambda _: self._once.works(), self._failed, errbackArgs=(place,))

    def _failed(self, failure: Failure, place: _Place) -> None:
        self._unwritten[place] = None
        self._again = self._clock.seconds() + AGAIN
        if failure.check(NotPublished) is None:
            text = "Redis does not keep when access was revoked, until it can: only gateways that heard of it know"
            self._once.failed(failing(self._log, failure), text)


def _seconds(value: bytes | None) -> float:
    try:
        return float(value or 0)
    except ValueError:
        return 0.0

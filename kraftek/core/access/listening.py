"""Since when no invalidation can have been missed: the age of cached answers that are believed.

An invalidation that is published on ``auth:invalidate`` while a gateway process is not connected leaves no trace. So no
process believes an answer that was asked for before it last began to listen, unless others listened in its place: each
process writes to Redis since when, and until when, it has heard every invalidation and removed from the cache what that
concerns. Made and called by :mod:`kraftek.core.access.cache`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus
from kraftek.contract.log_once import OnceUntilItWorks, failing
from kraftek.contract.lua import Script, lua
from kraftek.contract.names import LISTENED, new_gateway_id
from kraftek.core.access.revocations import Revocations

__all__ = ["LISTEN", "RENEW_INTERVAL", "Listening"]

RENEW_INTERVAL = 1.0
"""Seconds between two records of this process."""

SETTLING = 2.5
"""Seconds after a gap for which others have the time to renew their records. They are asked to, so it takes less."""

AT_ONCE = 0.05
"""Seconds between two renewals when somebody waits for them: logins do, when a connection to Redis was lost."""

PATIENCE = 5.0
"""Seconds without a new record after which a process is presumed dead. Its last one is of no use to anybody then."""

LISTEN = Script(lua(__package__, "time", "keep_type", "listened"))


class Listening:
    """The record of this process, and what follows from those of all.

    ``gateways``: how many processes there are, this one included. ``settled``: it is known whether others have listened
    when this one had not.
    """

    _log = Logger()

    def __init__(self, bus: IBus, revocations: Revocations, clock: IReactorTime) -> None:
        self._bus = bus
        self._revocations = revocations
        self._clock = clock
        self._me = new_gateway_id()
        self._since: int | None = None
        self._until = 0
        self._gap = 0
        self._next = self._renewed = self._began = 0.0
        self._alarm: IDelayedCall | None = None
        self._once = OnceUntilItWorks()
        self._waiting: list[Deferred[None]] = []
        self.gateways = 1
        self.settled = True
        bus.subscribe(LISTENED, self._asked)

    def believes(self, asked_at: int) -> bool:
        """Whether no invalidation since ``asked_at`` can have been missed: microseconds, by Redis's clock."""
        return self._since is not None and self._since <= asked_at

    def settle(self) -> Deferred[None]:
        """Fires when ``settled``, at once or soon."""
        settling: Deferred[None] = Deferred()
        self._waiting.append(settling)
        self._settle(self.settled)
        return settling

    def begin(self) -> None:
        """There was a gap in listening, which is over."""
        self._began = self._clock.seconds()
        self._gap += 1
        self._since = None
        self.settled = False
        self._renew()

    def lost(self) -> None:
        """The connection to Redis was lost."""
        self._gap += 1
        self._since = None
        if self._alarm is not None and self._alarm.active():
            self._alarm.cancel()
        self._settle(True)

    def sweep(self) -> None:
        """Renew the record, if the time has come."""
        if self._bus.available and self._next <= self._clock.seconds():
            self._renew()
        if not self.settled and self._clock.seconds() >= self._began + SETTLING:
            self._settle(True)

    def _asked(self, _: bytes) -> None:
        """Another process has begun to listen."""
        self._next = min(self._next, self._renewed + AT_ONCE)
        self.sweep()
        self._watch()

    def _renew(self) -> None:
        self._renewed = self._clock.seconds()
        self._next = self._renewed + (RENEW_INTERVAL if self.settled else AT_ONCE)
        self._watch()
        Deferred.fromCoroutine(self._record(self._gap)).addCallbacks(lambda _: self._once.works(), self._failed)

    def _watch(self) -> None:
        """Sweeps come too seldom for who waits."""
        left = self._next - self._clock.seconds()
        if 0 < left < 2 * AT_ONCE and (self._alarm is None or not self._alarm.active()):
            self._alarm = self._clock.callLater(left, self.sweep)

    async def _record(self, gap: int) -> None:
        since, until = self._since or 0, 0
        if since:
            until = await self._heard() or self._until
            if gap != self._gap:
                return
        epoch = self._bus.epoch
        if epoch is None:
            return
        args = self._me, epoch, since, until, int(PATIENCE * 1_000_000)
        text, gateways, behind = await self._bus.call(LISTEN, [LISTENED], args)
        if gap == self._gap and epoch == self._bus.epoch:
            self._since, self._until = int(text), max(until, int(text))
            self.gateways = gateways
            self._settle(self.settled or not behind)

    def _settle(self, settled: bool) -> None:
        self.settled = settled
        if settled:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)

    async def _heard(self) -> int | None:
        """A moment until which everything was heard, and done in Redis; ``None`` if it is not done."""
        seconds, microseconds = await self._bus.call("TIME")
        await self._bus.settled()
        to_do = self._revocations.pending()
        if to_do:
            await self._bus.call("PING")  # what was sent before is done now, or refused
            if not to_do.isdisjoint(self._revocations.pending()):
                return None
        return int(seconds) * 1_000_000 + int(microseconds)

    def _failed(self, failure: Failure) -> Any:
        if failure.check(NotPublished) is None:
            self._settle(True)  # nobody else can write either who has listened
            text = "When this gateway listened is not recorded, until it can be: others ask for more access anew"
            self._once.failed(failing(self._log, failure), text)

"""Keeps the room cache equal to what should stand in it: the entries of this process's sessions.

:mod:`kraftek.core.membership` says which entries those are. Each change is written at once. What Redis refused, did not
answer or lost is no errand to be remembered: what stands is compared with what should, in small steps, and the
difference is mended. That is done at once when something may be wrong, and slowly all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from msgspec import Struct
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import NotPublished
from kraftek.contract.fleet import Fleet
from kraftek.contract.interfaces import IBus, IBusListener, IRooms, Mended, RoomEntry
from kraftek.contract.log_once import OnceUntilItWorks, failing
from kraftek.core.rooms.room_cache import ENTRIES_AT_ONCE

__all__ = ["Reconciliation", "StandingState"]

HASTE = 0.004
"""Seconds between two steps while something may be wrong. A step takes Redis one or two milliseconds."""

LEISURE = 0.25
"""Seconds between two steps otherwise: 100,000 entries are compared in about three minutes."""

RETRY = 0.5
"""Seconds until what failed is tried again."""

DRIFT = 0.0005
"""Seconds by which two clocks may diverge in a second. While one is corrected it goes at most as wrong as that."""

MOST_DOUBTFUL = 10_000
"""Entries that are known to be doubtful. When there are more all are compared, and the reasons for leaving are lost."""

_PAUSE = 0.025
"""Seconds between two attempts while the process stops and waits for nothing else."""

_START = b"0"
"""The cursor of a scan at its start, and at its end."""


class StandingState(Struct, kw_only=True):
    """For another version of the gateway: the entries that should stand, each with when it entered; those that are in
    doubt, each with why it left, if it did; when entries entered that Redis was never sent; and by how much Redis's
    clock is ahead of ours, at least and at most, and when that was measured.
    """

    standing: list[tuple[RoomEntry, int]]
    doubtful: list[tuple[RoomEntry, str]]
    unsent: list[tuple[RoomEntry, float]]
    ahead: tuple[float, float]
    measured: float | None


class _Comparison:
    """One comparison of everything. ``remaining``: entries that have not been compared yet. ``cursor``: then, where the
    scan of those that stand is, if there are others than should be.
    """

    def __init__(self, entries: Iterable[RoomEntry]) -> None:
        self.remaining = iter(tuple(entries))
        self.cursor: bytes | None = None


@implementer(IBusListener)
class Reconciliation:
    """``standing``: the entries that should stand, each with when it entered, in microseconds of Redis's clock.
    ``found`` is called with each that is not its user's only one in the room.

    Nothing is compared while Redis is unavailable or the epoch of its data is not known.
    """

    _log = Logger()

    def __init__(
        self, rooms: IRooms, bus: IBus, clock: IReactorTime, fleet: Fleet, found: Callable[[Mended], None]
    ) -> None:
        self._rooms = rooms
        self._bus = bus
        self._clock = clock
        self._fleet = fleet
        self._found = found
        self.standing: dict[RoomEntry, int] = {}
        # Seconds by which Redis's clock is ahead of ours, at least and at most, and when that was measured last.
        self._low = self._high = 0.0
        self._measured: float | None = None
        # Entries that may be other than they should, each with why it left, if it did: they are looked at first.
        self._doubtful: dict[RoomEntry, str] = {}
        # When entries entered by our clock that Redis was never sent: its own may be another one by then, and is not
        # known before it was told of the epoch.
        self._unsent: dict[RoomEntry, float] = {}
        self._comparison = _Comparison(())
        self._urgent = False
        self._epoch_untold = True
        self._telling: Deferred[None] | None = None
        self._working = False
        self._not_before = 0.0
        self._once = OnceUntilItWorks()
        bus.add_listener(self)

    @property
    def settled(self) -> bool:
        """Nothing is known that may be wrong."""
        return not (self._doubtful or self._urgent or self._epoch_untold)

    @property
    def _ahead(self) -> float:
        return (self._low + self._high) / 2

    def enter(self, entry: RoomEntry, *, given: bool = False) -> None:
        """The entry should stand, as the newest of its user in the room; if ``given``, as older than others."""
        seconds = self._clock.seconds()
        at = self.standing[entry] = round(seconds * 1_000) if given else self._by_redis(seconds)
        if not self._bus.available or self._epoch_untold:
            if not given:
                self._unsent[entry] = seconds
            if self._bus.available:
                self.doubt(entry)
        elif given:
            self._mend([(entry, at)])
        else:
            entering = self._rooms.enter(entry, at).addCallback(self._entered, entry)
            entering.addCallbacks(self._written, self._not_written, errbackArgs=([(entry, "")],))

    def leave(self, entry: RoomEntry, reason: str) -> None:
        """The entry should not stand any more. Services get the reason, unless it is lost in an outage."""
        del self.standing[entry]
        self._unsent.pop(entry, None)
        if self._bus.available:
            self._leave([(entry, reason)])
        else:
            self.doubt(entry, reason)

    def doubt(self, entry: RoomEntry, reason: str = "") -> None:
        """Something about the entry failed: look at it soon. ``reason``: why it left, if it did."""
        seconds = self._clock.seconds()
        if self._not_before <= seconds:
            self._not_before = seconds + RETRY
        if len(self._doubtful) < MOST_DOUBTFUL:
            self._doubtful[entry] = reason
        else:
            self._doubtful.clear()
            self.doubt_all()

    def doubt_all(self) -> None:
        """Anything may be wrong: compare everything soon."""
        self._urgent = True
        self._comparison = _Comparison(self.standing)

    def sweep(self) -> None:
        """Called several times a second: does what is due."""
        if self._bus.epoch is not None:
            self._start()

    def give(self) -> StandingState:
        """For another version, which compares everything once more."""
        return StandingState(
            standing=[*self.standing.items()],
            doubtful=[*self._doubtful.items()],
            unsent=[*self._unsent.items()],
            ahead=(self._low, self._high),
            measured=self._measured,
        )

    def take(self, state: StandingState) -> None:
        """Go on with it."""
        self.standing.update(state.standing)
        self._doubtful.update(state.doubtful)
        self._unsent.update(state.unsent)
        (self._low, self._high), self._measured = state.ahead, state.measured

    async def finish(self) -> None:
        """Return when nothing is known that may be wrong, or when Redis is unavailable."""
        while self._bus.available and (self._doubtful or self._urgent):
            self._not_before = 0.0
            self._start()
            await deferLater(self._clock, _PAUSE)

    # IBusListener

    def bus_up(self) -> None:
        """Redis may have lost anything. Services are told so before they are told of anybody who enters."""
        self._not_before = 0.0
        self.doubt_all()
        self._epoch_untold = True
        self._telling = None  # what is under way is about the epoch before
        if self._bus.epoch is not None:
            self._tell_epoch()  # at once, whatever the step under way waits for
        self.sweep()

    def bus_down(self) -> None:
        """Nothing to do: all is compared when Redis is back."""

    def epoch_changed(self) -> None:
        self.bus_up()

    # Steps

    def _start(self) -> None:
        if not self._working:
            self._working = True
            Deferred.fromCoroutine(self._work())

    async def _work(self) -> None:
        """Take steps until nothing is known that may be wrong, or one step if there is nothing."""
        try:
            while self._bus.available and self._not_before <= self._clock.seconds():
                whole = await self._step()
                if self.settled:
                    self._not_before = self._clock.seconds() + self._fleet.pause(LEISURE)
                elif whole:
                    await deferLater(self._clock, self._fleet.pause(HASTE))
        except Exception:  # noqa: BLE001  # the one guard of what is done by and by: it is tried again
            self._failed(Failure())
            self._not_before = self._clock.seconds() + RETRY
        finally:
            self._working = False

    async def _step(self) -> bool:
        """Returns whether this was as much as one step may be."""
        if self._epoch_untold and self._bus.epoch is not None:
            await self._tell_epoch()
            if self._epoch_untold:
                return False
        if self._doubtful:
            return await self._settle(list(islice(self._doubtful, ENTRIES_AT_ONCE)))
        comparison = self._comparison
        if entries := list(islice(comparison.remaining, ENTRIES_AT_ONCE)):
            return await self._settle(entries)
        if comparison.cursor is None:
            # All that should stand do. What is sent until now is done before Redis counts: so equal numbers say that
            # nothing else stands.
            expected, asked = len(self.standing), self._clock.seconds()
            number, now = await self._rooms.count()
            self._set_clock(now, asked)
            if number == expected:
                self._compared(comparison)
            else:
                comparison.cursor = _START
            return False
        cursor, entries = await self._rooms.scan(comparison.cursor)
        whole = await self._settle([entry for entry in entries if entry not in self.standing])
        comparison.cursor = cursor
        if cursor == _START:
            self._compared(comparison)
        return whole or len(entries) >= ENTRIES_AT_ONCE

    def _compared(self, comparison: _Comparison) -> None:
        if comparison is self._comparison:
            self._urgent = False
            self._comparison = _Comparison(self.standing)

    async def _settle(self, entries: Sequence[RoomEntry]) -> bool:
        """Have these stand, or not stand, as they should. All is sent before this waits: what changes later is sent
        later.
        """
        departed = [(entry, self._doubtful.get(entry) or "closed") for entry in entries if entry not in self.standing]
        standing = self.standing
        for entry in entries:
            if entry in self._unsent:
                standing[entry] = self._by_redis(self._unsent.pop(entry))
        present = [(entry, standing[entry]) for entry in entries if entry in standing]
        for entry in entries:
            self._doubtful.pop(entry, None)
        sent = []
        if departed:
            sent.append(self._leave(departed))
        if present:
            sent.append(self._mend(present))
        await DeferredList(sent)
        return len(entries) >= ENTRIES_AT_ONCE

    def _mend(self, present: list[tuple[RoomEntry, int]]) -> Deferred[None]:
        again = [(entry, "") for entry, _ in present]
        mending = self._rooms.mend(present).addCallback(self._mended)
        return mending.addCallbacks(self._written, self._not_written, errbackArgs=(again,))

    def _leave(self, departed: list[tuple[RoomEntry, str]]) -> Deferred[None]:
        leaving = self._rooms.leave(departed)
        return leaving.addCallbacks(self._written, self._not_written, errbackArgs=(departed,))

    def _tell_epoch(self) -> Deferred[None]:
        """Tell services of the epoch, unless that is under way. Fires when it was done, or failed."""
        if self._telling is None:
            telling: Deferred[None] = Deferred()
            self._telling = telling
            asked = self._clock.seconds()

            def told(now: int) -> None:
                self._set_clock(now, asked)
                if self._telling is telling:
                    self._epoch_untold = False
                    self._not_before = 0.0

            def untold(failure: Failure) -> None:
                self._not_before = self._clock.seconds() + RETRY
                self._failed(failure)

            def done(_: None) -> None:
                if self._telling is telling:
                    self._telling = None
                telling.callback(None)

            self._rooms.begin_epoch().addCallbacks(told, untold).addCallback(done)
        else:
            telling = self._telling
        waiting: Deferred[None] = Deferred()
        telling.addCallback(waiting.callback)
        return waiting

    # Answers

    def _by_redis(self, seconds: float) -> int:
        """The time by Redis's clock, in microseconds."""
        return round((seconds + self._ahead) * 1_000_000)

    def _set_clock(self, microseconds: int, asked: float) -> None:
        """Redis's time, and when we asked for it: its answer is from some time between then and now. So each answer
        bounds by how much Redis's clock is ahead, and the quickest ones say it best.

        Redis's clock may have been set back, or be that of another server after a fail-over. Entries that stand have
        the times of before, so ours does not follow it, but drifts back.
        """
        seconds, redis = self._clock.seconds(), microseconds / 1_000_000
        low, high = redis - seconds, redis - asked
        if self._measured is None:
            self._low, self._high = low, high
        else:
            drift = (seconds - self._measured) * DRIFT
            self._low, self._high = self._low - drift, self._high + drift
            if low > self._high:
                self._low, self._high = low, high
            elif high >= self._low:
                self._low, self._high = max(low, self._low), min(high, self._high)
        self._measured = seconds

    def _entered(self, answer: tuple[int, Sequence[str]], entry: RoomEntry) -> None:
        at, older = answer
        if entry in self.standing:  # it has not left meanwhile
            self.standing[entry] = max(at, self.standing[entry])
            if older:
                self._found(Mended(entry, True, older))

    def _mended(self, answers: Sequence[Mended]) -> None:
        for mended in answers:
            if mended.entry in self.standing:  # it has not left meanwhile
                self._found(mended)

    def _written(self, _: object) -> None:
        self._once.works()

    def _not_written(self, failure: Failure, entries: Iterable[tuple[RoomEntry, str]]) -> None:
        self._failed(failure)
        for entry, reason in entries:
            self.doubt(entry, reason)

    def _failed(self, failure: Failure) -> None:
        # What Redis refuses, as without memory, it refuses for all entries.
        if failure.check(NotPublished) is None:
            self._once.failed(failing(self._log, failure), "The room cache is not written, until it can be")

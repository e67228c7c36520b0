"""Turns: what clients have sent is handled a little at a time, so that nobody's keeps the others waiting.

One for all connections, made by :mod:`kraftek.daemon.assembly`. The :mod:`kraftek.edge.websocket.unhandled` of a
WebSocket and the :mod:`kraftek.edge.engineio.posts` of polling clients wait here when they have more than one step; and
so does who gives clients what they have missed (:mod:`kraftek.core.resuming`, :mod:`kraftek.core.following`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from kraftek.contract.accounts import Accounts

__all__ = ["BUDGET", "FROZEN", "HELD", "STEP", "TURN", "Keeper", "Reader", "Slowed", "Turns"]

HELD: Final = 1
"""Why a client is not read: its session holds as many messages as it may."""

BUDGET: Final = 2
"""It has sent more than its share, and is slowed."""

TURN: Final = 4
"""Something that it sent waits for its turn."""

FROZEN: Final = 8
"""Another version of the gateway is about to go on with it."""

STEP: Final = 16
"""Messages that are handled in one step: about half a millisecond of the usual ones."""

_SHARE = 0.004
"""Seconds that all who wait have together of one iteration of the reactor. A client that is not among them waits for
its answer no longer than that, and one step."""

_AT_ONCE = 0.001
"""Seconds that one has at first, before all who wait longer: a read with a few messages need not be put off."""

_FIRST = _SHARE / 2
"""Seconds of an iteration that those have who are new while others wait longer, who go on in the rest of it."""

_LONGEST = 1.0
"""Seconds that a client is slowed at a time at most."""


class Reader(Protocol):
    """Has something to handle."""

    def step(self) -> bool:
        """Handle a little of it. Whether more can be handled now."""

    def rest(self) -> None:
        """It had nothing left an iteration ago, and may have got something since."""

    def failed(self) -> None:
        """A step raised an exception, which is logged: end the connection."""


class Keeper(Protocol):
    """Keeps bytes that are not handled yet."""

    def give_up(self) -> None:
        """There is no memory for them: drop them, and end the connection."""


class Slowed(Protocol):
    """Is slowed."""

    def unslowed(self) -> None:
        """The time for which it was slowed is over."""


class _Turn:
    """A coroutine goes on in it."""

    def __init__(self) -> None:
        self.comes: Deferred[None] = Deferred()

    def step(self) -> bool:
        self.comes.callback(None)
        return False

    def rest(self) -> None:
        """It has had its turn."""

    failed = rest


def _step(reader: Reader) -> bool:
    return reader.step()


class Turns:
    """Who waits with something to handle, each a step at a time, in rotation; and who is slowed, until when. What they
    keep meanwhile is in the account ``unhandled``.

    Who is new goes before all that have had a turn, with what takes a moment: most have no more. So who sends little
    does not wait for those who send much, however many they are.

    Whoever has handled all is kept in the rotation for an iteration more: a client that sends without a break is read
    in that time, and goes on in its turn instead of at once.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, accounts: Accounts) -> None:
        self._clock = clock
        self.accounts = accounts
        self._kept: dict[Keeper, int] = {}
        self._new: OrderedDict[Reader, None] = OrderedDict()
        self._waiting: OrderedDict[Reader, None] = OrderedDict()
        self._resting: list[Reader] = []
        self._scheduled = False
        self._until: dict[Slowed, float] = {}
        self._slowed: list[tuple[float, int, Slowed]] = []
        self._numbers = count()
        self._timer: IDelayedCall | None = None

    def __len__(self) -> int:
        return len(self._new) + len(self._waiting)

    def start(self, reader: Reader) -> None:
        """It has something to handle: at once what takes a moment, or before the others if some wait, and the rest in
        its turns.
        """
        if self._waiting or self._new:
            self.begin(reader)
        elif self._goes_on(reader):
            self.add(reader)

    def begin(self, reader: Reader) -> None:
        """It has something to handle, and so may many that begin now, none of them at once: what takes a moment before
        all who wait longer, the rest in its turns.
        """
        if reader not in self._waiting:
            self._new[reader] = None
            self._schedule()

    def add(self, reader: Reader) -> None:
        """It has something to handle, in its turns."""
        if reader not in self._new:
            self._waiting[reader] = None
            self._schedule()

    def next_turn(self) -> Deferred[None]:
        """Fires when it is the turn of whoever asks, for a step."""
        turn = _Turn()
        self.add(turn)
        return turn.comes

    def remove(self, reader: Reader) -> None:
        """It has nothing any more."""
        self._new.pop(reader, None)
        self._waiting.pop(reader, None)

    def keep(self, keeper: Keeper, size: int) -> None:
        """It keeps so many bytes that wait for their turn, 0 when there are none any more."""
        kept = self._kept
        self.accounts.unhandled += size - kept.get(keeper, 0)
        if size:
            kept[keeper] = size
        else:
            kept.pop(keeper, None)

    def shed(self, size: int) -> int:
        """A :data:`kraftek.contract.accounts.Shed`: those who keep most give it up."""
        before = self.accounts.unhandled
        for keeper in sorted(self._kept, key=self._kept.__getitem__, reverse=True):
            if before - self.accounts.unhandled >= size:
                break
            keeper.give_up()
        return before - self.accounts.unhandled

    def slow(self, slowed: Slowed, seconds: float) -> None:
        """Call its ``unslowed`` in so many seconds, or when it was to be called before if that is later."""
        now = self._clock.seconds()
        until = now + min(seconds, _LONGEST)
        if until <= self._until.get(slowed, 0.0):
            return
        self._until[slowed] = until
        heappush(self._slowed, (until, next(self._numbers), slowed))
        if self._timer is None:
            self._timer = self._clock.callLater(until - now, self._look)
        elif until < self._timer.getTime():
            self._timer.reset(until - now)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._run)

    def _run(self) -> None:
        """An iteration's turns."""
        self._scheduled = False
        resting, self._resting = self._resting, []
        begun = self._clock.seconds()
        self._take(self._new, begun + (_FIRST if self._waiting else _SHARE), self._goes_on)
        self._take(self._waiting, begun + _SHARE, _step)
        for reader in resting:
            reader.rest()
        if self._new or self._waiting or self._resting:
            self._schedule()

    def _take(self, waiting: OrderedDict[Reader, None], until: float, handle: Callable[[Reader], bool]) -> None:
        """Let those go on that wait here, each as ``handle`` does it, until that time."""
        while waiting:
            reader, _ = waiting.popitem(last=False)
            try:
                more = handle(reader)
            except Exception:  # noqa: BLE001  # as the reactor has it: one's fault must not keep the others waiting
                self._log.failure("Handling what a client sent failed: a bug, please report it")
                reader.failed()
                more = False
            if more:
                self._waiting[reader] = None
            elif reader not in self._waiting and reader not in self._new:
                self._resting.append(reader)
            if self._clock.seconds() >= until:
                break

    def _goes_on(self, reader: Reader) -> bool:
        """Handle what takes a moment. Whether there is more."""
        until = self._clock.seconds() + _AT_ONCE
        while reader.step():
            if self._clock.seconds() >= until:
                return True
        return False

    def _look(self) -> None:
        self._timer = None
        queue, now = self._slowed, self._clock.seconds()
        while queue and queue[0][0] <= now:
            until, _, slowed = heappop(queue)
            if self._until.get(slowed) == until:
                del self._until[slowed]
                slowed.unslowed()
        if queue and self._timer is None:
            self._timer = self._clock.callLater(queue[0][0] - now, self._look)

"""The events that a service has received and not begun: those of a room in order, the rooms beside each other.

Used by :mod:`kraftek.service.sources`. What is kept in order is a *lane*: the events of a room, or of a socket that is
in none, as partitions have it. One event of a lane is in hand at a time, and the next begins when it has ended. A reset
of the rooms concerns all lanes: it is handled alone, after what came before it and before what comes after.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable
from functools import partial
from heapq import heappop, heappush, nlargest
from itertools import count
from typing import Final, Generic, TypeVar

from kraftek.contract.names import ROOMS_RESET
from kraftek.service.processor import Incoming

__all__ = ["ALONE", "EVENTS", "SIZE", "Hand", "Hands", "Lanes", "user_of"]

EVENTS: Final = 10_000
"""Events that may wait."""

SIZE: Final = 64 * 1024 * 1024
"""Bytes that they may have together."""

LANE_EVENTS: Final = 100
"""Events of a room that are read ahead from a stream; of the ones after them only the ids are kept."""

LANE_SIZE: Final = 1024 * 1024
"""Bytes that they may have together."""

ALONE: Final = object()
"""The lane of events that are handled alone."""

T = TypeVar("T")


LEAST: Final = 0.0001
"""Seconds that an event counts for at least."""

FORGOTTEN: Final = 1000
"""Users with nothing waiting whose time is known, beyond which those are forgotten who have had the least."""


class Lanes(Generic[T]):
    """Each lane's events in order. Of the lanes that may go on, the one is next whose first event is of the user who
    has had the least of the service's time since it has something waiting; what comes from no user goes by the service
    that sent it. So one whose events take long waits for those whose events do not. (It is start-time fair queueing,
    Goyal, Vin and Cheng, 1996.)

    A user and a room may have as many waiting, and as large ones, as is still free: one alone half of what there is. So
    one who sends without end, from however many sockets and into whose rooms, is refused, and the others wait for one
    event of that one each time; nor does a room whose handler is slow take it all. ``waiting``: how many wait.
    """

    def __init__(self) -> None:
        self._lanes: dict[Hashable, deque[tuple[T, str, int]]] = {}
        # From the first event on that waits to be handled alone, or comes after such a one.
        self._behind: deque[tuple[T, Hashable, str, int]] = deque()
        # The lanes that may go on, by the user of their first event; and when it is whose turn, in seconds of the
        # service's time: for each of these users one entry.
        self._users: dict[str, deque[Hashable]] = {}
        self._turns: list[tuple[float, int, str]] = []
        self._numbers = count()
        self._had: dict[str, float] = {}
        self._now = 0.0
        self._events, self._sizes = Counter[Hashable](), Counter[Hashable]()
        self._free_events, self._free_bytes = EVENTS, SIZE
        self._ready = 0

    def __len__(self) -> int:
        """How many lanes may go on."""
        return self._ready

    @property
    def waiting(self) -> int:
        return EVENTS - self._free_events

    def takes(self, lane: Hashable, user: str, size: int) -> bool:
        """Whether an event of so many bytes may wait."""
        if self._free_events == EVENTS:
            return True
        return all(
            self._events[who] < self._free_events and self._sizes[who] + size <= self._free_bytes
            for who in ((user,), lane)
        )

    def keeps(self, lane: Hashable, size: int) -> bool:
        """Whether one of so many bytes is among the first of its lane, those that are kept in memory."""
        return self._free_bytes >= size and (
            lane not in self._events or (self._events[lane] < LANE_EVENTS and self._sizes[lane] + size <= LANE_SIZE)
        )

    def put(self, item: T, lane: Hashable, user: str, size: int) -> None:
        """Have the event wait."""
        self._count(lane, user, 1, size)
        if self._behind or self._bars(lane):
            self._behind.append((item, lane, user, size))
        else:
            self._put(item, lane, user, size)

    def take(self) -> tuple[T, Hashable]:
        """The next event, and its lane, which stands still until it has ended. Raises :class:`IndexError` for none."""
        while True:
            at, _, user = heappop(self._turns)
            if self._had[user] <= at:
                break
            self._wait(user)  # it has had more since
        self._now = at
        self._had[user] += LEAST
        lanes = self._users[user]
        lane = lanes.popleft()
        if lanes:
            self._wait(user)
        else:
            del self._users[user]
        self._ready -= 1
        item, user, size = self._lanes[lane].popleft()
        self._count(lane, user, -1, -size)
        self._forget()
        return item, lane

    def charge(self, user: str, seconds: float) -> None:
        """To handle an event of the user took so long."""
        self._had[user] = self._had.get(user, self._now) + seconds

    def ended(self, lane: Hashable) -> None:
        """The event that was taken of the lane has ended."""
        waiting = self._lanes[lane]
        if waiting:
            self._may_go_on(lane, waiting[0][1])
        else:
            del self._lanes[lane]
            while self._behind and not self._bars(self._behind[0][1]):
                self._put(*self._behind.popleft())

    def _bars(self, lane: Hashable) -> bool:
        """Whether the next event of the lane has to wait for others to end."""
        return ALONE in self._lanes or (lane is ALONE and bool(self._lanes))

    def _put(self, item: T, lane: Hashable, user: str, size: int) -> None:
        waiting = self._lanes.get(lane)
        if waiting is None:
            waiting = self._lanes[lane] = deque()
            self._may_go_on(lane, user)
        waiting.append((item, user, size))

    def _may_go_on(self, lane: Hashable, user: str) -> None:
        self._ready += 1
        lanes = self._users.get(user)
        if lanes is None:
            lanes = self._users[user] = deque()
            self._had[user] = max(self._had.get(user, 0.0), self._now)
            self._wait(user)
        lanes.append(lane)

    def _wait(self, user: str) -> None:
        heappush(self._turns, (self._had[user], next(self._numbers), user))

    def _forget(self) -> None:
        had, users = self._had, self._users
        if self._free_events == EVENTS:
            had.clear()
            self._now = 0.0
        elif len(had) > len(users) + FORGOTTEN:
            idle = nlargest(FORGOTTEN // 2, had.keys() - users.keys(), had.__getitem__)
            self._had = {user: had[user] for user in (*users, *idle)}

    def _count(self, lane: Hashable, user: str, events: int, size: int) -> None:
        self._free_events -= events
        self._free_bytes -= size
        for who in ((user,), lane):
            self._events[who] += events
            self._sizes[who] += size
            if not self._events[who]:
                del self._events[who], self._sizes[who]


def user_of(event: Incoming) -> str:
    """By whom it takes its turn."""
    return event.user_id or event.source or ""


class Hand(Generic[T]):
    """What may be in hand at a time, and the lanes that wait for it. ``begin`` is called when there may be something to
    take; ``begun``: a number that is the caller's.
    """

    def __init__(self, free: int, begin: Callable[[Hand[T]], None]) -> None:
        self.lanes: Lanes[T] = Lanes()
        self.begun = 0
        self._free = free
        self._begin = begin
        self._calls = False

    @property
    def ready(self) -> int:
        """How many may be taken."""
        return min(self._free, len(self.lanes))

    def take(self) -> tuple[T, Callable[[], None]]:
        """The next event, and what to call when it has ended."""
        self._free -= 1
        item, lane = self.lanes.take()
        return item, partial(self._ended, lane)

    def next(self) -> None:
        """See what there is to begin."""
        if self._calls:
            return  # under Twisted an event may end while it begins
        self._calls = True
        self._begin(self)
        self._calls = False

    def _ended(self, lane: Hashable) -> None:
        self._free += 1
        self.lanes.ended(lane)
        self.next()


class Hands(Generic[T]):
    """The hand for events, and one of its own for requests of other services: what a handler waits for may lead back
    here, and would wait for that handler's room, or for a free hand. For the same reason requests keep no order.

    ``concurrency``: how many of each may be in hand at a time. ``unordered``: no event waits for another.
    """

    def __init__(self, concurrency: int, unordered: bool, begin: Callable[[Hand[T]], None]) -> None:
        self._unordered = unordered
        self._events, self._requests = Hand(concurrency, begin), Hand(concurrency, begin)

    def next(self) -> None:
        """See what there is to begin."""
        self._events.next()
        self._requests.next()

    @property
    def waiting(self) -> int:
        """How many events and requests wait."""
        return self._events.lanes.waiting + self._requests.lanes.waiting

    def keeps(self, event: Incoming, size: int) -> bool:
        """Whether an event that can be read again is kept in memory until then."""
        hand, lane = self._place(event)
        return hand.lanes.keeps(lane, size)

    def put(self, item: T, event: Incoming, size: int, *, bounded: bool = True) -> bool:
        """Have the event, of so many bytes, begun when it is its turn. ``False``: it may not wait."""
        hand, lane = self._place(event)
        user = user_of(event)
        if bounded and not hand.lanes.takes(lane, user, size):
            return False
        hand.lanes.put(item, lane, user, size)
        hand.next()
        return True

    def _place(self, event: Incoming) -> tuple[Hand[T], Hashable]:
        if event.source is not None and event.id is not None:
            return self._requests, object()
        if self._unordered:
            return self._events, object()
        place = event.room_id or event.socket_id
        return self._events, ALONE if not place and event.event_type == ROOMS_RESET else place

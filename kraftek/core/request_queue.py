"""Requests that wait for their answers, in queues. Made by :mod:`kraftek.core.requests`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from msgspec import Struct
from twisted.internet.interfaces import IReactorTime

from kraftek.contract.lua import ForEach
from kraftek.contract.messages import RequestId
from kraftek.contract.rates import share
from kraftek.contract.settings import Registration
from kraftek.core.session import Session

__all__ = ["AwaitedRequests", "Request", "RequestQueue"]


class Request(Struct, eq=False, gc=False):
    """``record``: the key of its record in Redis, the same whenever it is sent again. ``lasts``: it may be sent again,
    by another socket too. ``sent_at``: by the clock. ``answer``: what is being stored in the record, once settled.

    It does not hold the event: with a thousand that wait, the payloads alone would fill a processor's cache. It is its
    own receipt callback, for the same reason, also when its answer is stored. The garbage collector need not track it:
    it is referenced until it is settled.
    """

    session: Session
    name: str
    record: str
    lasts: bool
    queue: RequestQueue
    id: RequestId
    sent_at: float
    answer: bytes = b""

    def __call__(self, receipt: int | bytes) -> None:
        self.queue.receipt(self, receipt)

    @property
    def waits(self) -> bool:
        """Whether it is not settled."""
        return self in self.queue.requests or self in self.queue.refused


class RequestQueue:
    """Requests of one service, in the order in which they are due. ``receipt`` is called with the receipt of each.
    ``target``: the channel or stream of all of them, or empty. ``script``: sends each once.

    ``requests``: those that are on their way to the service, which are bounded, and of which each user has a share.
    ``refused``: those that are refused unless an earlier copy of them turns out to be with the service. ``free``: with
    fewer ``requests`` than these none is refused. ``held_by``: how many are whose, as long as so many wait that each
    user has a share.
    """

    __slots__ = ("free", "held_by", "receipt", "refused", "requests", "script", "service", "target")

    def __init__(self, service: Registration, script: ForEach, receipt: Callable[[Request, int | bytes], None]) -> None:
        self.service = service
        self.script = script
        self.receipt = receipt
        self.target = "" if service.transport == "stream" and service.partitions else service.channel
        self.requests: dict[Request, None] = {}
        self.refused: dict[Request, None] = {}
        # A stream has shares of its own.
        self.free = 0 if service.transport == "stream" else (service.requests + 1) // 2
        self.held_by: Counter[str | None] | None = None

    def remove(self, request: Request) -> None:
        """It waits no longer."""
        try:
            del self.requests[request]
        except KeyError:
            del self.refused[request]
            return
        held_by = self.held_by
        if held_by is not None:
            user_id = request.session.user_id
            held_by[user_id] -= 1
            if not held_by[user_id]:
                del held_by[user_id]
            if 4 * len(self.requests) < self.service.requests:
                self.held_by = None

    @property
    def full(self) -> bool:
        """Whether as many wait as may."""
        return len(self.requests) >= self.service.requests

    def has_share(self, user_id: str | None) -> bool:
        """Whether so many of this user wait that the rest is for others."""
        held, most = len(self.requests), self.service.requests
        if 2 * held < most:
            return False
        if self.held_by is None:
            self.held_by = Counter(request.session.user_id for request in self.requests)
        return self.held_by.get(user_id, 0) >= max(share(held, most, len(self.held_by)), 1)


class AwaitedRequests:
    """Who waits for the end of which requests, while the process stops. ``requests``: all of these, usually none."""

    def __init__(self, clock: IReactorTime) -> None:
        self.requests: dict[Request, tuple[set[Request], Callable[[], None]]] = {}
        self._clock = clock

    def add(self, requests: Iterable[Request], call: Callable[[], None]) -> None:
        """Call it when all of these are settled; at once when there are none. Each is awaited by one."""
        awaited = set(requests)
        if not awaited:
            call()
        for request in awaited:
            self.requests[request] = (awaited, call)

    def settled(self, request: Request) -> None:
        """A request is about to be answered."""
        found = self.requests.pop(request, None)
        if found is None:
            return
        awaited, call = found
        awaited.remove(request)
        if not awaited:
            # After the answer was written, and before the client's next request is read.
            self._clock.callLater(0, call)

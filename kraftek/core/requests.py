"""Events that want an answer: each request gets exactly one, from its service or from here.

The gateway hands it clients' requests; :mod:`kraftek.core.deliveries` hands it what services answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from math import ceil
from zlib import crc32

import msgspec
from msgspec import Struct
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.contract.errors import Code, NotPublished, PeerError
from kraftek.contract.interfaces import IBus, Undelivered
from kraftek.contract.lua import ForEach, Receipt
from kraftek.contract.messages import (
    Ack,
    Broadcast,
    Delivery,
    Envelope,
    ErrorMessage,
    ErrorPayload,
    Outbound,
    RequestId,
)
from kraftek.contract.metrics import Counters
from kraftek.contract.names import REQUESTS, gateway_of
from kraftek.contract.settings import Limits, Registration
from kraftek.core.dispatch import Dispatch, once, target_of
from kraftek.core.session import Session

__all__ = ["Requests", "not_taken"]

_RETRY_AFTER = 1.0
"""Seconds after which a request is better tried again, when too many wait."""

_KEPT_AT_ONCE = 100
"""Answers that one command keeps, which takes Redis two thirds of a millisecond. A command for each costs 3 µs more."""

_KEEP_AFTER = 0.02
"""Seconds that an answer waits for others at most, before Redis keeps it."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Broadcast).decode


class _Request(Struct, eq=False, gc=False):
    """``claim`` tells the event from others. ``lasts``: it may be sent again, by another socket too.
    ``sent_at``: by the clock.

    It does not hold the event: of a thousand that wait, the payloads alone would fill a processor's cache. It is its
    own receipt, for the same reason. The collector of cycles need not know it: it is held until it is settled.
    """

    session: Session
    name: str
    claim: str
    lasts: bool
    queue: _Queue
    id: RequestId
    sent_at: float

    def __call__(self, taken: int | bytes) -> None:
        self.queue.receipt(self, taken)


def _to_keep(answered: list[tuple[str, bytes, Receipt]]) -> tuple[Sequence[Sequence[str]], Sequence[bytes]]:
    claims, bodies, _ = zip(*answered, strict=True)
    return (claims,), bodies


# Nearly always nothing but the request's own claim is there. To look first would be one command of Redis more for each.
KEEP = ForEach.make(
    "claim",
    "",
    _to_keep,
    """
local known = redis.call('SET', claim, body, 'XX', 'GET', 'KEEPTTL')
if known and known:sub(1, 1) ~= '?' then redis.call('SET', claim, known, 'KEEPTTL') end
""",
)


class _Queue:
    """Requests of one service, in the order in which they are due. ``receipt`` is called with what became of each.
    ``target``: where all of them go, or nothing.
    """

    __slots__ = ("receipt", "requests", "script", "service", "target")

    def __init__(self, service: Registration, window: float, receipt: Callable[[_Request, int | bytes], None]) -> None:
        self.service = service
        self.receipt = receipt
        self.target = "" if service.transport == "stream" and service.partitions else service.channel
        known = window + service.timeout if service.reply else window
        self.script = once(service.transport, service.reply, ceil(known * 1000), service.max_length)
        self.requests: dict[_Request, None] = {}


class Requests:
    """The requests of this process's clients that wait for their answers.

    A request that is sent again, by the same user under the same id, runs once: for as long as it may wait and
    ``request_window`` more a key in Redis is its claim, and there its answer is put. Whoever comes second finds the
    answer, or waits for it. When the gateway that asked is gone, any other puts the answer under the name of the socket
    that did, which the claim tells.
    """

    _log = Logger()

    def __init__(
        self,
        dispatch: Dispatch,
        bus: IBus,
        gateway_id: str,
        limits: Limits,
        counters: Counters,
        clock: IReactorTime,
    ) -> None:
        self._dispatch = dispatch
        self._bus = bus
        self._gateway_id = gateway_id
        self._bound = limits.requests
        self._window = limits.request_window
        self._lasts = limits.request_window > 0
        self._counters = counters
        self._clock = clock
        # By socket: of all that are open and have asked, and of those that departed until all is answered.
        self._waiting: dict[str, dict[RequestId, _Request]] = {}
        self._departed: set[str] = set()
        # By the identity of the service: under its name another one may be registered by now.
        self._queues: dict[int, _Queue] = {}
        self._elsewhere: dict[_Request, tuple[str, str]] = {}
        self._answered: list[tuple[str, bytes, Receipt]] = []
        self._keeps = False
        self._unkept: Receipt = self._not_kept  # bound once for all answers

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def send(self, session: Session, request_id: RequestId, service: Registration, envelope: Envelope) -> None:
        """Hand the event to its service, unless it was before. Raises ``PeerError`` when too many wait already."""
        claim = _claim(envelope, request_id)
        waiting = self._waiting.get(session.socket_id)
        if waiting is None:
            waiting = self._waiting[session.socket_id] = {}
        if request_id in waiting:
            if waiting[request_id].claim != claim:
                raise PeerError(Code.INVALID_MESSAGE, "another request of this id waits for its answer", id=request_id)
            self._counters.requests_repeated += 1
            return  # the answer on its way is this one's too
        if len(waiting) >= self._bound:
            message = "too many of this socket's requests wait for their answers"
            raise _too_many(envelope.event_type, request_id, Code.RATE_LIMITED, message)
        queue = self._queues.get(id(service))
        if queue is None:
            queue = self._queues[id(service)] = _Queue(service, self._window, self._sent)
        if len(queue.requests) >= service.requests:
            message = "too many requests wait for this service's answers"
            raise _too_many(envelope.event_type, request_id, Code.SERVICE_UNAVAILABLE, message)
        lasts = self._lasts and session.dialect.lasting_ids
        request = _Request(session, envelope.event_type, claim, lasts, queue, request_id, self._clock.seconds())
        if lasts:
            target = queue.target or target_of(service, envelope)
            self._bus.run(queue.script, (target, claim, envelope, request))
        else:
            self._dispatch.send(service, envelope, request)
        waiting[request_id] = request
        queue.requests[request] = None

    def departed(self, session: Session) -> None:
        """The session has ended. What waits for it is answered all the same: it may be asked for again."""
        if self._waiting.get(session.socket_id):
            self._departed.add(session.socket_id)
        else:
            self._waiting.pop(session.socket_id, None)

    def answered(self, message: Broadcast, body: bytes) -> None:
        """A service answers, with these bytes. Only who waits for it gets it, and nobody a second one."""
        request_id = message.in_reply_to
        assert request_id is not None
        self._counters.broadcasts += 1
        delivery = Delivery(message.type, message.payload, None, request_id)
        late = False
        for socket_id in message.recipients or ():
            waiting = self._waiting.get(socket_id)
            request = waiting.pop(request_id, None) if waiting else None
            if request is not None:
                self._settle(request, delivery, body)
                self._counters.delivered += 1
            elif gateway_of(socket_id) == self._gateway_id:
                late = True
            elif message.user_ids and self._lasts:
                self._adopt(socket_id, request_id, body)  # said to all gateways: that of the socket may be gone
        if late:
            self._counters.replies_late += 1

    def sweep(self) -> None:
        """What time brings: answers that are overdue, and those that another request of the same id was given."""
        now = self._clock.seconds()
        for number, queue in tuple(self._queues.items()):
            timeout = queue.service.timeout
            while queue.requests:
                request = next(iter(queue.requests))
                if request.sent_at + timeout > now:
                    break
                self._time_out(request)
            if not queue.requests:
                del self._queues[number]
        for socket_id in tuple(self._departed):
            if not self._waiting[socket_id]:
                del self._waiting[socket_id]
                self._departed.remove(socket_id)
        self.keep()  # at once: what a service says after a time-out is too late
        self._look(self._elsewhere)

    def keep(self) -> None:
        """Have Redis keep what was answered since the last time. To be called before the process stops."""
        answered, self._answered = self._answered, []
        if answered:
            try:
                self._bus.run_all(KEEP, answered)
            except NotPublished:
                self._counters.answers_not_kept += len(answered)

    def _sent(self, request: _Request, taken: int | bytes) -> None:
        if type(taken) is int and taken > 0 and request.queue.service.reply:
            return
        waiting = self._waiting.get(request.session.socket_id)
        if waiting is None or waiting.get(request.id) is not request:
            return  # it was answered before Redis said that it was sent, and its id may be in use again
        if isinstance(taken, bytes):
            self._counters.requests_repeated += 1
            if taken.startswith(b"?"):
                first = taken[1:].decode()
                self._elsewhere[request] = request.claim, _adopted(first, request.id)
                self._look([request])
            else:
                self._give(request, taken)
            return
        del waiting[request.id]
        if taken > 0:
            self._settle(request, Ack(request.id, taken))
        else:
            self._settle(request, None)
            request.session.refuse(not_taken(request.name, request.id, taken, self._counters))

    def _adopt(self, socket_id: str, request_id: RequestId, body: bytes) -> None:
        # Who waits for it here finds it at the next sweep. To look at once, for each of all that such a gateway left,
        # asks Redis about all others each time: 8 million keys for 2,000 requests.
        kept = ceil((self._window + self._dispatch.longest_timeout()) * 1000)
        keeping = self._bus.call("SET", (_adopted(socket_id, request_id),), (body, "NX", "PX", kept))
        keeping.addErrback(self._not_asked)

    def _look(self, requests: Collection[_Request]) -> None:
        if requests and self._bus.available:
            asked = tuple(requests)
            asking = self._bus.call("MGET", [name for request in asked for name in self._elsewhere[request]])
            asking.addCallback(self._found, asked).addErrback(self._not_asked)

    def _found(self, answers: list[bytes | None], requests: tuple[_Request, ...]) -> None:
        for request, kept, adopted in zip(requests, answers[::2], answers[1::2], strict=True):
            if request not in self._elsewhere:
                continue
            if kept is not None and not kept.startswith(b"?"):
                self._give(request, kept)
            elif adopted is not None:
                self._give(request, adopted, adopted)

    def _give(self, request: _Request, answer: bytes, body: bytes | None = None) -> None:
        """What another socket's request was answered; ``body`` if Redis is to keep it."""
        try:
            known = _decode(answer)
        except msgspec.DecodeError as error:
            self._log.error("A request's answer in Redis cannot be read: {error}", error=str(error))
            self._elsewhere.pop(request, None)
            return
        del self._waiting[request.session.socket_id][request.id]
        self._settle(request, Delivery(known.type, known.payload, None, request.id), body)

    def _not_asked(self, failure: Failure) -> None:
        if failure.check(NotPublished) is None:
            self._log.failure("Cannot ask Redis about repeated requests", failure=failure)

    def _time_out(self, request: _Request) -> None:
        del self._waiting[request.session.socket_id][request.id]
        self._counters.requests_timed_out += 1
        message, name = f"no answer within {request.queue.service.timeout:g} s", request.name
        body = _encode({"type": "error", "payload": ErrorPayload(Code.TIMEOUT, message, name)})
        self._settle(request, ErrorMessage(Code.TIMEOUT, message, name, None, request.id), body)

    def _settle(self, request: _Request, outbound: Outbound | None, body: bytes | None = None) -> None:
        """It waits no longer: the client is told, and Redis is to keep the ``body``."""
        del request.queue.requests[request]
        if self._elsewhere:
            self._elsewhere.pop(request, None)
        if body is not None and request.lasts:
            answered = self._answered
            answered.append((request.claim, body, self._unkept))
            if len(answered) == _KEPT_AT_ONCE:
                self.keep()
            elif not self._keeps:
                self._keeps = True
                self._clock.callLater(_KEEP_AFTER, self._keep_soon)
        if outbound is not None:
            request.session.say(outbound)

    def _keep_soon(self) -> None:
        self._keeps = False
        self.keep()

    def _not_kept(self, _: int) -> None:
        self._counters.answers_not_kept += 1


def not_taken(name: str, id: RequestId | None, receipt: int, counters: Counters) -> PeerError:
    """What the client is told of an event that nobody took, for the reason that its ``receipt`` names."""
    if receipt == Undelivered.FULL:
        counters.streams_full += 1
        return _too_many(name, id, Code.SERVICE_UNAVAILABLE, "too many events wait for this service")
    if receipt == Undelivered.LOST:
        counters.publishes_lost += 1
        message = "the connection was lost: the event may not have arrived"
    elif receipt == Undelivered.REFUSED:
        counters.publishes_refused += 1
        message = "the event could not be handed over at present"
    else:
        counters.published_to_nobody += 1
        message = "nobody listens for this event at present"
    return PeerError(Code.SERVICE_UNAVAILABLE, message, id=id, event_type=name)


def _too_many(name: str, id: RequestId | None, code: Code, message: str) -> PeerError:
    return PeerError(code, message, retry_after=_RETRY_AFTER, id=id, event_type=name)


def _claim(envelope: Envelope, request_id: RequestId) -> str:
    claims, kind = _claims_of(envelope.user_id, envelope.event_type, envelope.room_id)
    number = crc32(envelope.payload, kind)
    return f"{claims}{number}:{request_id}" if isinstance(request_id, str) else f"{claims}{number}#{request_id}"


@lru_cache(10_000)
def _claims_of(user_id: str, name: str, room_id: str | None) -> tuple[str, int]:
    return f"{REQUESTS}{len(user_id)}:{user_id}:", crc32(repr((name, room_id)).encode())


def _adopted(socket_id: str, request_id: RequestId) -> str:
    mark = ":" if isinstance(request_id, str) else "#"
    return f"{REQUESTS}adopted:{socket_id}{mark}{request_id}"

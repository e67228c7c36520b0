"""Requests: events with an ``id``. Each gets exactly one answer, from its service or from this module.

The gateway passes it clients' requests; :mod:`kraftek.core.deliveries` passes it the answers of services.
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
from kraftek.contract.log_once import OnceAMinute
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

__all__ = ["Requests", "undelivered_error"]

_RETRY_AFTER = 1.0
"""Seconds after which a request should be retried when too many were waiting."""

_STORED_AT_ONCE = 100
"""Answers that one command stores in two thirds of a millisecond. A command for each would take Redis 3 µs more."""

_STORE_AFTER = 0.02
"""Seconds that an answer waits for others at most, before it is stored in Redis."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Broadcast).decode


class _Request(Struct, eq=False, gc=False):
    """``record``: the key of its record in Redis, the same whenever it is sent again. ``lasts``: it may be sent again,
    by another socket too. ``sent_at``: by the clock.


    It does not hold the event: with a thousand that wait, the payloads alone would fill a processor's cache. It is its
    own receipt callback, for the same reason. The garbage collector need not track it: it is referenced until it is
    settled.
    """

    session: Session
    name: str
    record: str
    lasts: bool
    queue: _Queue
    id: RequestId
    sent_at: float

    def __call__(self, receipt: int | bytes) -> None:
        self.queue.receipt(self, receipt)


def _to_store(answered: list[tuple[str, bytes, Receipt]]) -> tuple[Sequence[Sequence[str]], Sequence[bytes]]:
    records, bodies, _ = zip(*answered, strict=True)
    return (records,), bodies


# Almost always the record holds no answer yet. Checking that first would cost one command of Redis more for each.
STORE_ANSWER = ForEach.make(
    "record",
    "",
    _to_store,
    """
local known = redis.call('SET', record, body, 'XX', 'GET', 'KEEPTTL')
if known and known:sub(1, 1) ~= '?' then redis.call('SET', record, known, 'KEEPTTL') end
""",
)


class _Queue:
    """Requests of one service, in the order in which they are due. ``receipt`` is called with the receipt of each.
    ``target``: the channel or stream of all of them, or empty.
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

    A request that the same user sends again under the same id runs once. Its record, a key in Redis, lives for as long
    as the request may wait and ``request_window`` more, and holds first the socket that sent the request, then the
    answer. A duplicate gets the stored answer, or waits for the first one. When the gateway of that socket has died,
    another gateway stores the late answer under the id of the socket, where duplicates find it through the record.
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
        # By socket: those that are open and have sent a request, and closed ones until all their requests are settled.
        self._waiting: dict[str, dict[RequestId, _Request]] = {}
        self._departed: set[str] = set()
        # By the identity of the registration: another one may be registered under its name by now.
        self._queues: dict[int, _Queue] = {}
        # Duplicates of requests of other sockets, with the keys of the record and of the late answer.
        self._duplicates: dict[_Request, tuple[str, str]] = {}
        self._once_a_minute = OnceAMinute(clock.seconds)
        self._answered: list[tuple[str, bytes, Receipt]] = []
        self._storing = False
        self._unstored: Receipt = self._not_stored  # bound once for all answers

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def send(self, session: Session, request_id: RequestId, service: Registration, envelope: Envelope) -> None:
        """Send the event to its service, unless it was sent before. Raises ``PeerError`` when too many wait."""
        record = _record_key(envelope, request_id)
        waiting = self._waiting.get(session.socket_id)
        if waiting is None:
            waiting = self._waiting[session.socket_id] = {}
        if request_id in waiting:
            if waiting[request_id].record != record:
                raise PeerError(
                    Code.INVALID_MESSAGE, "another request with this id waits for its answer", id=request_id
                )
            self._counters.requests_repeated += 1
            return  # the first one's answer answers this one, too
        if len(waiting) >= self._bound:
            message = f"{self._bound} requests of this connection wait for their answers"
            raise _too_many(envelope.event_type, request_id, Code.RATE_LIMITED, message)
        queue = self._queues.get(id(service))
        if queue is None:
            queue = self._queues[id(service)] = _Queue(service, self._window, self._sent)
        if len(queue.requests) >= service.requests:
            message = f"too many requests wait for answers of service {service.name}"
            raise _too_many(envelope.event_type, request_id, Code.SERVICE_UNAVAILABLE, message)
        lasts = self._lasts and session.dialect.lasting_ids
        request = _Request(session, envelope.event_type, record, lasts, queue, request_id, self._clock.seconds())
        if lasts:
            target = queue.target or target_of(service, envelope)
            self._bus.run(queue.script, (target, record, envelope, request))
        else:
            self._dispatch.send(service, envelope, request)
        waiting[request_id] = request
        queue.requests[request] = None

    def departed(self, session: Session) -> None:
        """The session has ended. Answers to its requests are still stored, because a duplicate may ask for them."""
        if self._waiting.get(session.socket_id):
            self._departed.add(session.socket_id)
        else:
            self._waiting.pop(session.socket_id, None)

    def answered(self, message: Broadcast, body: bytes) -> None:
        """A service answers, with these bytes. Only the request that waits for it gets it, and none gets two."""
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
                self._store_late(socket_id, request_id, body)  # sent to all gateways: the socket's own may have died
        if late:
            self._counters.replies_late += 1

    def sweep(self) -> None:
        """Answer requests that have timed out, and look for stored answers to duplicates."""
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
        self.store_answers()  # at once: an answer of a service after the time-out is too late
        self._look(self._duplicates)

    def store_answers(self) -> None:
        """Store the answers since the last call in Redis. Called before the process stops, too."""
        answered, self._answered = self._answered, []
        if answered:
            try:
                self._bus.run_all(STORE_ANSWER, answered)
            except NotPublished:
                self._counters.answers_not_kept += len(answered)

    def _sent(self, request: _Request, receipt: int | bytes) -> None:
        if type(receipt) is int and receipt > 0 and request.queue.service.reply:
            return
        waiting = self._waiting.get(request.session.socket_id)
        if waiting is None or waiting.get(request.id) is not request:
            return  # the answer came before the receipt, and the id may be in use again
        if isinstance(receipt, bytes):
            self._counters.requests_repeated += 1
            if receipt.startswith(b"?"):
                self._await_first(request, receipt)
            elif not self._answer(request, receipt):
                self._unreadable(request.record)
            return
        del waiting[request.id]
        if receipt > 0:
            self._settle(request, Ack(request.id, receipt))
        else:
            self._settle(request, None)
            request.session.refuse(undelivered_error(request.name, request.id, receipt, self._counters))

    def _store_late(self, socket_id: str, request_id: RequestId, body: bytes) -> None:
        # Duplicates here find it at the next sweep. Looking at once, for each request that such a gateway left behind,
        # would ask Redis about all the others each time: 8 million keys for 2,000 requests.
        lifetime = ceil((self._window + self._dispatch.longest_timeout()) * 1000)
        storing = self._bus.call("SET", (_late_answer_key(socket_id, request_id),), (body, "NX", "PX", lifetime))
        storing.addErrback(self._failed)

    def _look(self, requests: Collection[_Request]) -> None:
        if requests and self._bus.available:
            asked = tuple(requests)
            asking = self._bus.call("MGET", [name for request in asked for name in self._duplicates[request]])
            asking.addCallback(self._found, asked).addErrback(self._failed)

    def _found(self, answers: list[bytes | None], requests: tuple[_Request, ...]) -> None:
        for request, stored, late in zip(requests, answers[::2], answers[1::2], strict=True):
            if request not in self._duplicates:
                continue
            if stored is not None and not stored.startswith(b"?"):
                if self._answer(request, stored):
                    continue
                self._unreadable(request.record)
            if late is not None and not self._answer(request, late, late):
                self._unreadable(self._duplicates[request][1])

    def _await_first(self, request: _Request, record: bytes) -> None:
        """Wait for the answer to the request of the socket that the record names."""
        try:
            first = record[1:].decode()
        except UnicodeDecodeError:
            self._unreadable(request.record)
            return
        self._duplicates[request] = request.record, _late_answer_key(first, request.id)
        self._look([request])

    def _answer(self, request: _Request, answer: bytes, body: bytes | None = None) -> bool:
        """Answer a duplicate with the stored ``answer``; ``body`` if it is to be stored in the record, too. ``False``
        if it cannot be read.
        """
        try:
            answer.decode()
            known = _decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        del self._waiting[request.session.socket_id][request.id]
        self._settle(request, Delivery(known.type, known.payload, None, request.id), body)
        return True

    def _unreadable(self, key: str) -> None:
        """What no gateway wrote counts as no answer. It is removed, so that the request is sent when it is repeated."""
        text = "{key} in Redis cannot be read, and is removed (logged once a minute)"
        self._once_a_minute(self._log.error, text, key=key)
        self._bus.call("DEL", (key,)).addErrback(self._failed)

    def _failed(self, failure: Failure) -> None:
        if failure.check(NotPublished) is None:
            self._log.failure("Sharing answers to duplicate requests through Redis failed", failure=failure)

    def _time_out(self, request: _Request) -> None:
        del self._waiting[request.session.socket_id][request.id]
        self._counters.requests_timed_out += 1
        message, name = f"no answer within {request.queue.service.timeout:g} s", request.name
        body = _encode({"type": "error", "payload": ErrorPayload(Code.TIMEOUT, message, name)})
        self._settle(request, ErrorMessage(Code.TIMEOUT, message, name, None, request.id), body)

    def _settle(self, request: _Request, outbound: Outbound | None, body: bytes | None = None) -> None:
        """The request no longer waits: send the client ``outbound``, and store ``body``, the answer, in Redis."""
        del request.queue.requests[request]
        if self._duplicates:
            self._duplicates.pop(request, None)
        if body is not None and request.lasts:
            answered = self._answered
            answered.append((request.record, body, self._unstored))
            if len(answered) == _STORED_AT_ONCE:
                self.store_answers()
            elif not self._storing:
                self._storing = True
                self._clock.callLater(_STORE_AFTER, self._store_soon)
        if outbound is not None:
            request.session.send(outbound)

    def _store_soon(self) -> None:
        self._storing = False
        self.store_answers()

    def _not_stored(self, _: int) -> None:
        self._counters.answers_not_kept += 1


def undelivered_error(name: str, id: RequestId | None, receipt: int, counters: Counters) -> PeerError:
    """The error for an event that reached no service, for the reason that its ``receipt`` names."""
    if receipt == Undelivered.FULL:
        counters.streams_full += 1
        return _too_many(name, id, Code.SERVICE_UNAVAILABLE, "too many events wait for this service")
    if receipt == Undelivered.LOST:
        counters.publishes_lost += 1
        message = "the connection was lost: the event may not have arrived"
    elif receipt == Undelivered.REFUSED:
        counters.publishes_refused += 1
        message = "Redis refused the event"
    else:
        counters.published_to_nobody += 1
        message = f"service {name.partition(':')[0]} has no subscriber at present"
    return PeerError(Code.SERVICE_UNAVAILABLE, message, id=id, event_type=name)


def _too_many(name: str, id: RequestId | None, code: Code, message: str) -> PeerError:
    return PeerError(code, message, retry_after=_RETRY_AFTER, id=id, event_type=name)


def _record_key(envelope: Envelope, request_id: RequestId) -> str:
    records, kind = _keys_of(envelope.user_id, envelope.event_type, envelope.room_id)
    number = crc32(envelope.payload, kind)
    return f"{records}{number}:{request_id}" if isinstance(request_id, str) else f"{records}{number}#{request_id}"


@lru_cache(10_000)
def _keys_of(user_id: str, name: str, room_id: str | None) -> tuple[str, int]:
    return f"{REQUESTS}{len(user_id)}:{user_id}:", crc32(repr((name, room_id)).encode())


def _late_answer_key(socket_id: str, request_id: RequestId) -> str:
    mark = ":" if isinstance(request_id, str) else "#"
    return f"{REQUESTS}adopted:{socket_id}{mark}{request_id}"

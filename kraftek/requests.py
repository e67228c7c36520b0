"""Events that want an answer: each request gets exactly one, from its service or from here.

The gateway hands it clients' requests; :mod:`kraftek.broadcasts` hands it what services answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from math import ceil
from zlib import crc32

import msgspec
from msgspec import Struct
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.config import Limits, Service
from kraftek.dispatch import FULL, Dispatch, once
from kraftek.errors import Code, NotPublished, PeerError
from kraftek.interfaces import LOST, REFUSED, IBus
from kraftek.messages import Ack, Broadcast, Delivery, Envelope, ErrorMessage, Event, Outbound, RequestId
from kraftek.metrics import Counters
from kraftek.names import gateway_of
from kraftek.scripts import ForEach, Script
from kraftek.session import Session

__all__ = ["Requests", "not_taken"]

_RETRY_AFTER = 1.0
"""Seconds after which a request is better tried again, when too many wait."""

Key = tuple[str, RequestId]
"""A request by its socket and its id."""

_KEPT_AT_ONCE = 100
"""Answers that one command keeps, which takes Redis two thirds of a millisecond. A command for each costs 3 µs more."""

_KEEP_AFTER = 0.02
"""Seconds that an answer waits for others at most, before Redis keeps it."""

ADOPT = Script("""
local known = redis.call('GET', KEYS[1])
local event, socket = (known or ''):match('^%?(%d+:)(.*)$')
if socket == ARGV[1] then redis.call('SET', KEYS[1], '=' .. event .. ARGV[2], 'KEEPTTL') end
return 0
""")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Broadcast).decode


class _Request(Struct, eq=False, gc=False):
    """``number`` tells its event, of this ``name``, from others. ``claim`` is empty when it cannot be sent again.
    ``sent_at``: Unix milliseconds.

    It does not hold the event: of a thousand that wait, the payloads alone would fill a processor's cache. It is its
    own receipt, for the same reason. The collector of cycles need not know it: it leaves its queue when it is settled.
    """

    session: Session
    name: str
    number: int
    claim: str
    queue: _Queue
    key: Key
    sent_at: int

    def __call__(self, taken: int | bytes) -> None:
        self.queue.receipt(self, taken)


def _to_keep(answered: list[tuple[_Request, bytes]]) -> tuple[list[str], list[bytes]]:
    claims = [request.claim for request, _ in answered]
    return claims, [b"=%d:%b" % (request.number, body) for request, body in answered]


# Nearly always the claim is the request's own; to look first would be one command of Redis more for each.
KEEP = ForEach.make("claim", "", _to_keep, """
local known = redis.call('SET', claim, body, 'XX', 'GET', 'KEEPTTL')
if known and known:match('^%?%d+:') ~= '?' .. body:match('%d+:') then
    redis.call('SET', claim, known, 'KEEPTTL')
end
""")


class _Queue:
    """Requests of one service, in the order in which they are due. ``receipt`` is called with what became of each."""

    __slots__ = ("receipt", "requests", "script", "service")

    def __init__(self, service: Service, window: float, receipt: Callable[[_Request, int | bytes], None]) -> None:
        self.service = service
        self.receipt = receipt
        known = window + service.timeout if service.reply else window
        self.script = once(service.transport, service.reply, ceil(known * 1000), service.max_length)
        self.requests: dict[_Request, None] = {}


class Requests:
    """The requests of this process's clients that wait for their answers.

    A request that is sent again, by the same user under the same id, runs once: for as long as it may wait and
    ``request_window`` more a key in Redis is its claim, and there its answer is put. Whoever comes second finds the
    answer, or waits for it; any gateway may put it there, for the one that asked may be gone.
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
        now: Callable[[], float] = time.time,
    ) -> None:
        self._dispatch = dispatch
        self._bus = bus
        self._gateway_id = gateway_id
        self._bound = limits.requests
        self._window = limits.request_window
        self._counters = counters
        self._clock = clock
        self._now = now
        self._waiting: dict[Key, _Request] = {}
        # By the identity of the service: under its name another one may be registered by now.
        self._queues: dict[int, _Queue] = {}
        self._elsewhere: dict[Key, _Request] = {}
        self._answered: list[tuple[_Request, bytes]] = []
        self._keeps = False

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, session: Session, event: Event, service: Service, envelope: Envelope) -> None:
        """Hand the event to its service, unless it was before. Raises ``PeerError`` when too many wait already."""
        assert event.id is not None
        key = session.socket_id, event.id
        number = crc32(envelope.payload, _number_of_kind(event.name, envelope.room_id))
        waiting = self._waiting
        if key in waiting:
            if waiting[key].number != number:
                raise PeerError(Code.INVALID_MESSAGE, "another request of this id waits for its answer", id=event.id)
            self._counters.requests_repeated += 1
            return  # the answer on its way is this one's too
        if session.requests >= self._bound:
            message = "too many of this socket's requests wait for their answers"
            raise _too_many(event.name, event.id, Code.RATE_LIMITED, message)
        queue = self._queues.get(id(service))
        if queue is None:
            queue = self._queues[id(service)] = _Queue(service, self._window, self._sent)
        if len(queue.requests) >= service.requests:
            message = "too many requests wait for this service's answers"
            raise _too_many(event.name, event.id, Code.SERVICE_UNAVAILABLE, message)
        claim = _claim(envelope.user_id, event.id) if self._window and session.dialect.lasting_ids else ""
        request = _Request(session, event.name, number, claim, queue, key, envelope.timestamp)
        if claim:
            self._dispatch.send_once(service, envelope, claim, number, queue.script, request)
        else:
            self._dispatch.send(service, envelope, request)
        waiting[key] = request
        queue.requests[request] = None
        session.requests += 1

    def answered(self, message: Broadcast, body: bytes) -> None:
        """A service answers, with these bytes. Only who waits for it gets it, and nobody a second one."""
        request_id = message.in_reply_to
        assert request_id is not None
        self._counters.broadcasts += 1
        delivery = Delivery(message.type, message.payload, None, request_id)
        late = False
        for socket_id in message.recipients or ():
            request = self._waiting.pop((socket_id, request_id), None)
            if request is not None:
                self._settle(request, delivery, body)
                self._counters.delivered += 1
            elif gateway_of(socket_id) == self._gateway_id:
                late = True
            else:
                for user_id in message.user_ids or ():
                    self._adopt(_claim(user_id, request_id), socket_id, body)
        if late:
            self._counters.replies_late += 1

    def sweep(self) -> None:
        """What time brings: answers that are overdue, and those that another request of the same id was given."""
        now = self._now() * 1000
        for number, queue in tuple(self._queues.items()):
            while queue.requests:
                request = next(iter(queue.requests))
                if request.sent_at + queue.service.timeout * 1000 > now:
                    break
                self._time_out(request)
            if not queue.requests:
                del self._queues[number]
        self.keep()  # at once: what a service says after a time-out is too late
        self._look()

    def keep(self) -> None:
        """Have Redis keep what was answered since the last time. To be called before the process stops."""
        answered, self._answered = self._answered, []
        if answered:
            try:
                self._bus.run_all(KEEP, answered, self._not_kept)
            except NotPublished:
                self._counters.answers_not_kept += len(answered)

    def _sent(self, request: _Request, taken: int | bytes) -> None:
        if type(taken) is int and taken > 0 and request.queue.service.reply:
            return
        if self._waiting.get(request.key) is not request:
            return  # it was answered before Redis said that it was sent, and its id may be in use again
        if isinstance(taken, bytes):
            self._counters.requests_repeated += 1
            self._elsewhere[request.key] = request
            self._found([taken], (request,))
            return
        del self._waiting[request.key]
        self._forget(request)
        if taken > 0:
            request.session.say(Ack(request.key[1], taken))
        else:
            request.session.refuse(not_taken(request.name, request.key[1], taken, self._counters))

    def _adopt(self, claim: str, socket_id: str, body: bytes) -> None:
        """The gateway of that socket is gone, and the service answers all others instead."""
        # Who waits for it here finds it at the next sweep. To look at once, for each of all that such a gateway left,
        # asks Redis about all others each time: 4 million keys for 2,000 requests.
        self._bus.call(ADOPT, (claim,), (socket_id, body)).addErrback(self._not_asked)

    def _look(self) -> None:
        if self._elsewhere and self._bus.available:
            requests = tuple(self._elsewhere.values())
            asking = self._bus.call("MGET", [request.claim for request in requests])
            asking.addCallback(self._found, requests).addErrback(self._not_asked)

    def _found(self, answers: list[bytes | None], requests: tuple[_Request, ...]) -> None:
        for request, answer in zip(requests, answers, strict=True):
            # By now the claim may be that of another event under the same id.
            kept = b"=%d:" % request.number
            if answer is None or not answer.startswith(kept) or self._elsewhere.get(request.key) is not request:
                continue
            known = _decode(answer.removeprefix(kept))
            del self._waiting[request.key]
            self._forget(request)
            request.session.say(Delivery(known.type, known.payload, None, request.key[1]))

    def _not_asked(self, failure: Failure) -> None:
        if failure.check(NotPublished) is None:
            self._log.failure("Cannot ask Redis about repeated requests", failure=failure)

    def _time_out(self, request: _Request) -> None:
        del self._waiting[request.key]
        self._counters.requests_timed_out += 1
        message, name = f"no answer within {request.queue.service.timeout:g} s", request.name
        body = _encode({"type": "error", "payload": {"code": Code.TIMEOUT, "message": message, "eventType": name}})
        self._settle(request, ErrorMessage(Code.TIMEOUT, message, name, None, request.key[1]), body)

    def _settle(self, request: _Request, outbound: Outbound, body: bytes) -> None:
        """It waits no longer: the client is told, and Redis is to keep what."""
        if request.claim:
            if not self._keeps:
                self._keeps = True
                self._clock.callLater(_KEEP_AFTER, self._keep_soon)
            self._answered.append((request, body))
            if len(self._answered) == _KEPT_AT_ONCE:
                self.keep()
        self._forget(request)
        request.session.say(outbound)

    def _keep_soon(self) -> None:
        self._keeps = False
        self.keep()

    def _not_kept(self, _: int) -> None:
        self._counters.answers_not_kept += 1

    def _forget(self, request: _Request) -> None:
        del request.queue.requests[request]
        if self._elsewhere:
            self._elsewhere.pop(request.key, None)
        request.session.requests -= 1


def not_taken(name: str, id: RequestId | None, receipt: int, counters: Counters) -> PeerError:
    """What the client is told of an event that nobody took, for the reason that its ``receipt`` names."""
    if receipt == FULL:
        counters.streams_full += 1
        return _too_many(name, id, Code.SERVICE_UNAVAILABLE, "too many events wait for this service")
    if receipt == LOST:
        counters.publishes_lost += 1
        message = "the connection was lost: the event may not have arrived"
    elif receipt == REFUSED:
        counters.publishes_refused += 1
        message = "the event could not be handed over at present"
    else:
        counters.published_to_nobody += 1
        message = "nobody listens for this event at present"
    return PeerError(Code.SERVICE_UNAVAILABLE, message, id=id, event_type=name)


def _too_many(name: str, id: RequestId | None, code: Code, message: str) -> PeerError:
    return PeerError(code, message, retry_after=_RETRY_AFTER, id=id, event_type=name)


def _claim(user_id: str, request_id: RequestId) -> str:
    claims = _claims_of(user_id)
    return f"{claims}:{request_id}" if isinstance(request_id, str) else f"{claims}#{request_id}"


@lru_cache(10_000)
def _claims_of(user_id: str) -> str:
    return f"request:{len(user_id)}:{user_id}"


@lru_cache(10_000)
def _number_of_kind(name: str, room_id: str | None) -> int:
    return crc32(name.encode(), crc32((room_id or "").encode()))

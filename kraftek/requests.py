"""Events that want an answer: each request gets exactly one, from its service or from here.

The gateway hands it clients' requests; :mod:`kraftek.broadcasts` hands it what services answer.
"""

from __future__ import annotations

from functools import partial
from zlib import crc32

import msgspec
from msgspec import Struct
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.config import Limits, Service
from kraftek.dispatch import FULL, Dispatch
from kraftek.errors import Code, NotPublished, PeerError
from kraftek.interfaces import LOST, REFUSED, IBus
from kraftek.messages import Ack, Broadcast, Delivery, Envelope, ErrorMessage, Event, Outbound, RequestId
from kraftek.metrics import Counters
from kraftek.names import gateway_of
from kraftek.scripts import Script
from kraftek.session import Session

__all__ = ["Requests", "not_taken"]

_RETRY_AFTER = 1.0
"""Seconds after which a request is better tried again, when too many wait."""

Key = tuple[str, RequestId]
"""A request by its socket and its id."""

_KEEP_AFTER = 0.02
"""Seconds for which answers are collected before Redis keeps them: a command for each costs 3 µs more."""

_KEPT_AT_ONCE = 100
"""Answers that one command keeps: half a millisecond in which Redis does nothing else."""

KEEP = Script("""
local lost = 0
for i, claim in ipairs(KEYS) do
    local mark, body = ARGV[2 * i], ARGV[2 * i + 1]
    local done = pcall(function()
        if redis.call('GET', claim) == '?' .. mark then
            redis.call('SET', claim, '=' .. mark:match('^%d+:') .. body, 'PX', ARGV[1])
        end
    end)
    if not done then lost = lost + 1 end
end
return lost
""")

ADOPT = Script("""
local known = redis.call('GET', KEYS[1])
local event, socket = (known or ''):match('^%?(%d+:)(.*)$')
if socket == ARGV[1] then redis.call('SET', KEYS[1], '=' .. event .. ARGV[2], 'PX', ARGV[3]) end
return 0
""")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Broadcast).decode


class _Request(Struct, eq=False):
    session: Session
    event: Event
    queue: _Queue
    key: Key
    claim: str
    mark: str
    deadline: float


class _Queue:
    """Requests of one service, in the order in which they are due. ``kept``: milliseconds that a claim stands."""

    __slots__ = ("kept", "requests", "service")

    def __init__(self, service: Service, kept: int) -> None:
        self.service = service
        self.kept = str(kept + int(service.timeout * 1000))
        self.requests: dict[Key, _Request] = {}


class Requests:
    """The requests of this process's clients that wait for their answers.

    A request that is sent again, by the same user under the same id, runs once: while ``request_window`` lasts, its
    answer stands in Redis under a key that is its claim. Whoever comes second finds the answer there, or waits for it;
    any gateway may put it there, for the one that asked may be gone.
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
        self._kept = int(limits.request_window * 1000)
        self._counters = counters
        self._clock = clock
        self._waiting: dict[Key, _Request] = {}
        # By the identity of the service: under its name another one may be registered by now.
        self._queues: dict[int, _Queue] = {}
        self._elsewhere: dict[Key, _Request] = {}
        # Claim, mark and answer of those that Redis is still to keep.
        self._answers: list[tuple[str, str, bytes]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, session: Session, event: Event, service: Service, envelope: Envelope) -> None:
        """Hand the event to its service, unless it was before. Raises ``PeerError`` when too many wait already."""
        assert event.id is not None
        key = (session.socket_id, event.id)
        waiting = self._waiting.get(key)
        if waiting is not None:
            if not _alike(waiting.event, event):
                raise PeerError(Code.INVALID_MESSAGE, "another request of this id waits for its answer", id=event.id)
            self._counters.requests_repeated += 1
            return  # the answer on its way is this one's too
        if session.requests >= self._bound:
            raise _too_many(event, Code.RATE_LIMITED, "too many of this socket's requests wait for their answers")
        queue = self._queues.get(id(service))
        if queue is None:
            queue = self._queues[id(service)] = _Queue(service, self._kept)
        if len(queue.requests) >= service.requests:
            raise _too_many(event, Code.SERVICE_UNAVAILABLE, "too many requests wait for this service's answers")
        claim = mark = ""
        if self._kept and session.dialect.lasting_ids:
            claim, mark = _claim(envelope.user_id, event.id), _mark(envelope)
        deadline = self._clock.seconds() + service.timeout
        request = _Request(session, event, queue, key, claim, mark, deadline)
        sent = partial(self._sent, request)
        if claim:
            self._dispatch.send_once(service, envelope, claim, mark, queue.kept, sent)
        else:
            self._dispatch.send(service, envelope, sent)
        self._waiting[key] = queue.requests[key] = request
        session.requests += 1

    def answered(self, message: Broadcast, body: bytes) -> None:
        """A service answers, with these bytes. Only who waits for it gets it, and nobody a second one."""
        request_id = message.in_reply_to
        assert request_id is not None
        self._counters.broadcasts += 1
        delivery = Delivery(message.type, message.payload, None, request_id)
        late = False
        for socket_id in message.recipients or ():
            request = self._waiting.get((socket_id, request_id))
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
        now = self._clock.seconds()
        for number, queue in tuple(self._queues.items()):
            while queue.requests:
                request = next(iter(queue.requests.values()))
                if request.deadline > now:
                    break
                self._time_out(request)
            if not queue.requests:
                del self._queues[number]
        self.keep()  # at once: what a service says after a time-out is too late
        self._look()

    def keep(self) -> None:
        """Have Redis keep what was answered since the last time. To be called before the process stops."""
        answers, self._answers = self._answers, []
        for start in range(0, len(answers), _KEPT_AT_ONCE):
            some = answers[start : start + _KEPT_AT_ONCE]
            notes: list[str | bytes | int] = [self._kept]
            for _, mark, body in some:
                notes += (mark, body)
            keeping = self._bus.call(KEEP, [claim for claim, _, _ in some], notes)
            keeping.addErrback(self._none_kept, len(some)).addCallback(self._not_kept)

    def _sent(self, request: _Request, taken: int | bytes) -> None:
        if self._waiting.get(request.key) is not request:
            return  # it was answered before Redis said that it was sent, and its id may be in use again
        if isinstance(taken, bytes):
            self._counters.requests_repeated += 1
            self._elsewhere[request.key] = request
            request.mark = taken[1:].decode()
            self._found([taken], (request,))
        elif taken > 0:
            if not request.queue.service.reply:
                self._close(request, Ack(request.key[1], taken))
        else:
            self._forget(request)
            request.session.refuse(not_taken(request.event, taken, self._counters))

    def _adopt(self, claim: str, socket_id: str, body: bytes) -> None:
        """The gateway of that socket is gone, and the service answers all others instead."""
        # Who waits for it here finds it at the next sweep. To look at once, for each of all that such a gateway left,
        # asks Redis about all others each time: 4 million keys for 2,000 requests.
        self._bus.call(ADOPT, (claim,), (socket_id, body, self._kept)).addErrback(self._not_asked)

    def _look(self) -> None:
        if self._elsewhere and self._bus.available:
            requests = tuple(self._elsewhere.values())
            asking = self._bus.call("MGET", [request.claim for request in requests])
            asking.addCallback(self._found, requests).addErrback(self._not_asked)

    def _found(self, answers: list[bytes | None], requests: tuple[_Request, ...]) -> None:
        for request, answer in zip(requests, answers, strict=True):
            # By now the claim may be that of another event under the same id.
            kept = f"={request.mark.partition(':')[0]}:".encode()
            if answer is None or not answer.startswith(kept) or self._elsewhere.get(request.key) is not request:
                continue
            known = _decode(answer.removeprefix(kept))
            self._close(request, Delivery(known.type, known.payload, None, request.key[1]))

    def _not_asked(self, failure: Failure) -> None:
        if failure.check(NotPublished) is None:
            self._log.failure("Cannot ask Redis about repeated requests", failure=failure)

    def _time_out(self, request: _Request) -> None:
        self._counters.requests_timed_out += 1
        message, name = f"no answer within {request.queue.service.timeout:g} s", request.event.name
        body = _encode({"type": "error", "payload": {"code": Code.TIMEOUT, "message": message, "eventType": name}})
        self._settle(request, ErrorMessage(Code.TIMEOUT, message, name, None, request.key[1]), body)

    def _settle(self, request: _Request, outbound: Outbound, body: bytes) -> None:
        if request.claim:
            if not self._answers:
                self._clock.callLater(_KEEP_AFTER, self.keep)
            self._answers.append((request.claim, request.mark, body))
        self._close(request, outbound)

    def _none_kept(self, failure: Failure, answers: int) -> int:
        if failure.check(NotPublished) is None:
            self._log.failure("Answers to requests could not be kept", failure=failure)
        return answers

    def _not_kept(self, answers: int) -> None:
        self._counters.answers_not_kept += answers

    def _close(self, request: _Request, outbound: Outbound) -> None:
        self._forget(request)
        request.session.say(outbound)

    def _forget(self, request: _Request) -> None:
        key = request.key
        del self._waiting[key], request.queue.requests[key]
        if self._elsewhere:
            self._elsewhere.pop(key, None)
        request.session.requests -= 1


def not_taken(event: Event, receipt: int, counters: Counters) -> PeerError:
    """What the client is told of an event that nobody took, for the reason that its ``receipt`` names."""
    if receipt == FULL:
        counters.streams_full += 1
        return _too_many(event, Code.SERVICE_UNAVAILABLE, "too many events wait for this service")
    if receipt == LOST:
        counters.publishes_lost += 1
        message = "the connection was lost: the event may not have arrived"
    elif receipt == REFUSED:
        counters.publishes_refused += 1
        message = "the event could not be handed over at present"
    else:
        counters.published_to_nobody += 1
        message = "nobody listens for this event at present"
    return PeerError(Code.SERVICE_UNAVAILABLE, message, id=event.id, event_type=event.name)


def _too_many(event: Event, code: Code, message: str) -> PeerError:
    return PeerError(code, message, retry_after=_RETRY_AFTER, id=event.id, event_type=event.name)


def _claim(user_id: str, request_id: RequestId) -> str:
    return f"request:{_encode((user_id, request_id)).decode()}"


def _mark(envelope: Envelope) -> str:
    """Which event it is, and who sent it."""
    room_id = envelope.room_id or ""
    event = crc32(envelope.payload, crc32(envelope.event_type.encode(), crc32(room_id.encode())))
    return f"{event}:{envelope.socket_id}"


def _alike(one: Event, other: Event) -> bool:
    return (one.name, one.room_id, bytes(one.payload)) == (other.name, other.room_id, bytes(other.payload))

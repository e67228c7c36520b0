"""Requests: events with an ``id``. Each gets exactly one answer, from its service or from this module.

The gateway passes it clients' requests; :mod:`kraftek.core.deliveries` passes it the answers of services.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from math import ceil

import msgspec
from twisted.internet.interfaces import IReactorTime

from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import Code, Limit, NotPublished, PeerError
from kraftek.contract.interfaces import IBus, Undelivered
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
from kraftek.contract.names import gateway_of, late_answer_key
from kraftek.contract.settings import Limits, Registration
from kraftek.core.answer_budget import INCLUDED, AnswerBudget
from kraftek.core.dispatch import Dispatch, target_of
from kraftek.core.request_cancels import RequestCancels
from kraftek.core.request_look_ups import LookUps
from kraftek.core.request_moving import RequestMove
from kraftek.core.request_progress import RequestProgress
from kraftek.core.request_queue import AwaitedRequests, Request, RequestQueue
from kraftek.core.request_records import AnsweredTogether, AnswerStore, record_key
from kraftek.core.session import Session, SessionState

__all__ = ["Requests", "undelivered_error", "unreachable_error"]

_RETRY_AFTER = 1.0
"""Seconds after which a request should be retried when too many were waiting, or Redis refused it."""

_UNCERTAIN = (Undelivered.LOST, Undelivered.REFUSED)
"""Receipts of an event that may have been sent: Redis also refuses to look."""

_encode = msgspec.json.Encoder().encode


class Requests:
    """The requests of this process's clients that wait for their answers.

    A request that the same user sends again under the same id runs once. Its record, a key in Redis, lives for as long
    as the request may wait and ``request_window`` more, and holds first the socket that sent the request, then the
    answer. A duplicate gets the stored answer, or waits for the first one. When the gateway of that socket has died,
    another gateway stores the late answer under the id of the socket, where duplicates find it through the record.

    Requests and answers are kept within a ``budget``. Who is beyond it is refused, and of an answer that is, only that
    there was one is kept.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        bus: IBus,
        gateway_id: str,
        limits: Limits,
        counters: Counters,
        clock: IReactorTime,
        *,
        accounts: Accounts,
    ) -> None:
        self._dispatch, self._send_once, self._bus = dispatch, dispatch.send_once, bus
        self._gateway_id, self._limits, self._window = gateway_id, limits, limits.request_window
        self._lasts = self._window > 0
        self._counters, self._clock, self._accounts = counters, clock, accounts
        self.budget = AnswerBudget(limits.answer_bytes, clock.seconds, self._lifetime, counters)
        # By socket: those that are open and have sent a request, and closed ones until all their requests are settled.
        self._waiting: dict[str, dict[RequestId, Request]] = {}
        self._departed: set[str] = set()
        self._awaited = AwaitedRequests(clock)
        # By the identity of the registration: another one may be registered under its name by now.
        self._queues: dict[int, RequestQueue] = {}
        self._store = AnswerStore(bus, clock, counters, accounts, limits.request_window)
        self._answered = AnsweredTogether(self._store, clock, accounts)
        self.look_ups = LookUps(
            bus, clock, self._store, settle=self._found, refuse=self._not_handed, requests=self._requests
        )
        self._looked_up, self._forget = self.look_ups.waiting, self.look_ups.forget
        self.cancels = RequestCancels(self._waiting, bus, counters, self._end, self.store_answers)
        self.progress = RequestProgress(self._waiting, bus, self.look_ups, clock, self.budget, self._window)
        self._in_parts = self.progress.under_way
        self.moving = RequestMove(self._waiting, self._departed, self._queues, self._queue, self.progress, self.budget)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def send(
        self, session: Session, request_id: RequestId, service: Registration, envelope: Envelope, resent: bool = False
    ) -> None:
        """Send the event to its service, unless it was sent before. ``resent``: the client says that it was.

        Raises ``PeerError`` when too many wait or Redis cannot be asked, and it is not sent again as far as is known.
        """
        record = record_key(envelope.user_id, envelope.event_type, envelope.room_id, envelope.payload, request_id)
        waiting = self._waiting.get(session.socket_id)
        if waiting is None:
            waiting = self._waiting[session.socket_id] = {}
        if request_id in waiting:
            _check_same(waiting[request_id], record)
            self._counters.requests_repeated += 1
            return  # the first one's answer answers this one, too
        if len(waiting) >= self._limits.requests:
            message = f"{self._limits.requests} requests of this connection wait for their answers"
            bound = _try_again(envelope.event_type, request_id, Code.RATE_LIMITED, message, Limit.REQUESTS)
            if not resent:
                raise bound
            self.find(session, request_id, service, record, bound)
            return
        queue = self._queues.get(id(service)) or self._queue(service)
        lasts = self._lasts and session.dialect.lasting_ids
        request = Request(session, envelope.event_type, record, lasts, queue, request_id, self._clock.seconds())
        if len(queue.requests) >= queue.free and (error := _refusal(self._dispatch, queue, request, envelope)):
            self._refuse_unless_known(request, resent, error)
        elif lasts and not self.budget.admits(envelope.user_id, record, request.sent_at):
            self._refuse_unless_known(request, resent, _beyond_budget(request))
        else:
            try:
                if service.reply and not self._bus.available:
                    raise NotPublished("its answer would not be heard")
                if lasts:
                    target = queue.target or target_of(service, envelope)
                    self._send_once(queue.script, (target, record, envelope, request))
                else:
                    self._dispatch.send(service, envelope, request)
            except NotPublished:
                self._refuse_unless_known(request, resent, unreachable_error(request.name, request_id))
            else:
                queue.requests[request] = None
                if queue.held_by is not None:
                    queue.held_by[session.user_id] += 1
        waiting[request_id] = request

    def find(
        self, session: Session, request_id: RequestId, service: Registration, record: str, error: PeerError
    ) -> None:
        """Answer a request that was sent before, and is not allowed now, if its service has got it. Otherwise, or when
        that cannot be looked up, the error is its answer. ``record``: the key of its record.
        """
        waiting = self._waiting.setdefault(session.socket_id, {})
        if request_id in waiting:
            if waiting[request_id].record == record:
                return
            raise error
        if len(waiting) >= 2 * self._limits.requests:
            message = "too many requests of this connection were sent again, and wait for their answers"
            raise PeerError(Code.TIMEOUT, message, id=request_id, event_type=error.event_type)
        queue = self._queues.get(id(service)) or self._queue(service)
        lasts = self._lasts and session.dialect.lasting_ids
        request = Request(session, error.event_type or "", record, lasts, queue, request_id, self._clock.seconds())
        self._refuse_unless_known(request, True, error)
        waiting[request_id] = request

    def departed(self, session: Session) -> None:
        """The session has ended. Answers to its requests are still stored, because a duplicate may ask for them; those
        that are duplicates themselves wait no longer.
        """
        for request in tuple(self._waiting.get(session.socket_id, {}).values()):
            if self.look_ups.repeats(request):
                self._drop(request)
        if self._waiting.get(session.socket_id):
            self._departed.add(session.socket_id)
        else:
            self._waiting.pop(session.socket_id, None)

    def after_answers(self, session: Session, call: Callable[[], None]) -> None:
        """Call it when all requests that the session has sent until now are answered; at once when none waits."""
        self._awaited.add(self._waiting.get(session.socket_id, {}).values(), call)

    def answered(self, message: Broadcast, body: bytes) -> None:
        """A service answers, with these bytes. Only the request that waits for it gets it, and none gets two. Those to
        services without ``reply`` wait for the receipt alone, although an answer may come before it.
        """
        request_id = message.in_reply_to
        assert request_id is not None
        self._counters.broadcasts += 1
        delivery = Delivery(message.type, message.payload, None, request_id)
        late = False
        for socket_id in message.recipients or ():
            waiting = self._waiting.get(socket_id)
            request = waiting.get(request_id) if waiting else None
            if waiting and request is not None and request.queue.service.reply:
                del waiting[request_id]
                self._settle(request, delivery, body, socket_id)
                self._counters.delivered += 1
            elif request is not None or gateway_of(socket_id) == self._gateway_id:
                late = True
            elif self._lasts and message.user_ids and len(message.recipients or ()) == len(message.user_ids) == 1:
                # Sent to all gateways: the socket's own may have died. An answer is to one socket of one user: as many
                # copies as a message names sockets would be 140 MB for one of 70 kB.
                key = late_answer_key(socket_id, request_id)
                kept = self.budget.kept_late(key, body, message.user_ids[0])
                if kept is not None:
                    self._store.store_late(key, kept, self._lifetime()).addErrback(self.look_ups.failed)
        if late and not _says_cancelled(message):
            self._counters.replies_late += 1

    def sweep(self) -> None:
        """Answer requests that have timed out, and look for stored answers to duplicates."""
        now = self._clock.seconds()
        for number, queue in tuple(self._queues.items()):
            timeout = queue.service.timeout
            for requests in (queue.requests, queue.refused):
                while requests:
                    request = next(iter(requests))
                    if request.sent_at + timeout > now:
                        break
                    self._time_out(request)
            if not queue.requests and not queue.refused:
                del self._queues[number]
        for socket_id in tuple(self._departed):
            if not self._waiting[socket_id]:
                del self._waiting[socket_id]
                self._departed.remove(socket_id)
        self.store_answers()  # at once: an answer of a service after the time-out is too late
        self._store.sweep()
        self.progress.sweep()
        self.look_ups.sweep()

    def store_answers(self) -> None:
        """Store the answers since the last call in Redis. Called before the process stops, too."""
        self._answered.store()

    def _sent(self, request: Request, receipt: int | bytes) -> None:
        if type(receipt) is int and receipt > 0 and request.queue.service.reply:
            return
        waiting = self._waiting.get(request.session.socket_id)
        if waiting is None or waiting.get(request.id) is not request:
            # The answer came before the receipt, and the id may be in use again; or the answer was not stored.
            if request.answer and receipt in _UNCERTAIN:
                self._store.keep(request.record, request.answer)
            return
        if isinstance(receipt, bytes):
            self._counters.requests_repeated += 1
            if request.session.state is SessionState.CLOSED:
                self._drop(request)
            else:
                self.look_ups.known(request, receipt)
        elif receipt > 0:
            del waiting[request.id]
            self._settle(request, Ack(request.id, receipt))
        elif request.lasts and receipt in _UNCERTAIN:
            self.look_ups.uncertain(request, receipt)
        else:
            self._not_handed(request, receipt)

    def _queue(self, service: Registration) -> RequestQueue:
        known = self._window + service.timeout if service.reply else self._window
        script = self._dispatch.once_of(service, ceil(known * 1000))
        queue = self._queues[id(service)] = RequestQueue(service, script, self._sent)
        return queue

    def _drop(self, request: Request) -> None:
        del self._waiting[request.session.socket_id][request.id]
        self._settle(request, None)

    def _requests(self) -> Iterable[Request]:
        return chain.from_iterable(chain(queue.requests, queue.refused) for queue in self._queues.values())

    def _refuse_unless_known(self, request: Request, resent: bool, error: PeerError) -> None:
        self.look_ups.not_sent(request, resent, error)
        request.queue.refused[request] = None

    def _found(self, request: Request, answer: Broadcast, body: bytes | None) -> None:
        del self._waiting[request.session.socket_id][request.id]
        first = answer.recipients[0] if answer.recipients else None
        self._settle(request, Delivery(answer.type, answer.payload, None, request.id), body, first)

    def _not_handed(self, request: Request, why: int | PeerError) -> None:
        if isinstance(why, int):
            why = undelivered_error(request.name, request.id, why, self._counters, sure=request.lasts)
        del self._waiting[request.session.socket_id][request.id]
        self._settle(request, None)
        request.session.refuse(why)

    def _lifetime(self) -> float:
        """Seconds for which a record lives at most."""
        return self._window + self._dispatch.longest_timeout()

    def _time_out(self, request: Request) -> None:
        self._counters.requests_timed_out += 1
        self._end(request, Code.TIMEOUT, f"no answer within {request.queue.service.timeout:g} s")

    def _end(self, request: Request, code: Code, message: str) -> None:
        """Answer it with this error, also when it is sent again."""
        del self._waiting[request.session.socket_id][request.id]
        body = _encode({"type": "error", "payload": ErrorPayload(code, message, request.name)})
        self._settle(request, ErrorMessage(code, message, request.name, None, request.id), body)

    def _settle(
        self, request: Request, outbound: Outbound | None, body: bytes | None = None, first: str | None = None
    ) -> None:
        """The request no longer waits: send the client ``outbound``, and store ``body``, the answer, in Redis.
        ``first``: the socket that the service has answered, if it has.
        """
        request.queue.remove(request)
        if self._looked_up:
            self._forget(request)
        if body is not None and request.lasts:
            if len(body) > INCLUDED:
                body = self.budget.kept(body, request.queue.service.name, request.session.user_id or "")
            request.answer = body
            self._answered.add(request.record, body, request)
        if not (self._in_parts and first is not None and self._holds(request, first, outbound)):
            self._tell(request, outbound)

    def _holds(self, request: Request, first: str, outbound: Outbound | None) -> bool:
        return self.progress.holds(request, first, partial(self._tell, request, outbound))

    def _tell(self, request: Request, outbound: Outbound | None) -> None:
        if self._awaited.requests:
            self._awaited.settled(request)
        if outbound is not None:
            request.session.send(outbound)


def _says_cancelled(answer: Broadcast) -> bool:
    """Whether a service has heard that the request was cancelled: then its answer is expected to be too late."""
    return answer.type == "error" and b'"CANCELLED"' in bytes(answer.payload)


def undelivered_error(
    name: str, id: RequestId | None, receipt: int, counters: Counters, *, sure: bool = False
) -> PeerError:
    """The error for an event that reached no service, for the reason that its ``receipt`` names. ``sure``: it is known
    that no service got it, also when the connection was lost before Redis said so.
    """
    if receipt == Undelivered.FULL:
        counters.streams_full += 1
        return _try_again(name, id, Code.SERVICE_UNAVAILABLE, "too many events wait for this service")
    if receipt == Undelivered.LOST:
        counters.publishes_lost += 1
        message = f"the connection was lost: the event {'did not arrive' if sure else 'may not have arrived'}"
    elif receipt == Undelivered.REFUSED:
        counters.publishes_refused += 1
        return _try_again(name, id, Code.SERVICE_UNAVAILABLE, "Redis refused the event")
    else:
        counters.published_to_nobody += 1
        message = f"service {name.partition(':')[0]} has no subscriber at present"
    return PeerError(Code.SERVICE_UNAVAILABLE, message, id=id, event_type=name)


def unreachable_error(name: str, id: RequestId | None) -> PeerError:
    """The error for an event that could not be sent, because Redis is unavailable or too much waits for it."""
    return PeerError(Code.SERVICE_UNAVAILABLE, "the service cannot be reached at present", id=id, event_type=name)


def _refusal(dispatch: Dispatch, queue: RequestQueue, request: Request, envelope: Envelope) -> PeerError | None:
    """Why it cannot wait in its queue, if it cannot."""
    service = queue.service
    if service.transport == "stream" and (error := dispatch.refusal(service, envelope)) is not None:
        return error
    if queue.full:
        message = f"too many requests wait for answers of service {service.name}"
        return _try_again(request.name, request.id, Code.SERVICE_UNAVAILABLE, message)
    if queue.has_share(request.session.user_id):
        message = f"too many requests of this user wait for answers of service {service.name}"
        return _try_again(request.name, request.id, Code.RATE_LIMITED, message, Limit.SHARE)
    return None


def _check_same(request: Request, record: str) -> None:
    if request.record != record:
        raise PeerError(Code.INVALID_MESSAGE, "another request with this id waits for its answer", id=request.id)


def _beyond_budget(request: Request) -> PeerError:
    message = "too many requests of this user are remembered"
    return _try_again(request.name, request.id, Code.RATE_LIMITED, message, Limit.SHARE)


def _try_again(name: str, id: RequestId | None, code: Code, message: str, limit: Limit | None = None) -> PeerError:
    return PeerError(code, message, retry_after=_RETRY_AFTER, id=id, event_type=name, limit=limit)

"""Requests that wait for what their records in Redis say. Made by :mod:`kraftek.core.requests`."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import Code, Limit, NotPublished, PeerError
from kraftek.contract.interfaces import IBus, IBusListener
from kraftek.contract.log_once import OnceAMinute, failing
from kraftek.contract.lua import Script, lua
from kraftek.contract.messages import Broadcast, RequestId
from kraftek.contract.names import EPOCH, late_answer_key
from kraftek.contract.rates import share
from kraftek.core.answer_budget import LARGE
from kraftek.core.request_large_answers import LargeAnswers, overdrawn
from kraftek.core.request_queue import Request
from kraftek.core.request_records import AnswerStore
from kraftek.core.session import Session

__all__ = ["LookUpState", "LookUps"]

_MOST = 1000
"""Requests that may wait to be looked up and that nobody says to be sent again; further ones are refused without it. Of
so many that have waited through an outage one command looks up the answers, in a millisecond."""

_AT_ONCE = 500
"""Requests that one command looks up, under two keys each, in a millisecond. Others are when it is answered."""

_SHARED = 10_000
"""Requests that may wait to be looked up because clients say that they were sent before: each user has a share."""

_FOR_ONE = 16
"""Requests that are looked up again and count as one event. The first time each counts."""

_READ = Script(lua(__package__, "other_epoch", "request_answers"))

_LOST_BYTES = 8 * 1024 * 1024
"""Names of records that are remembered through an outage: those of some 100,000 requests. When there are more, any
request may have been sent before."""

_MISSED = 1.0
"""Seconds after Redis is back until answers are looked up that were published meanwhile: by then other gateways have
stored them."""

_decode = msgspec.json.Decoder(Broadcast).decode


_NOT_SHARED = "Sharing answers to duplicate requests through Redis failed (logged once a minute)"
_UNREADABLE = "{key} in Redis cannot be read, and is removed (logged once a minute)"


class _LookUp(Struct, frozen=True):
    """``late``: the key under which the answer is when the gateway of the first one has died; empty until it is known
    that there is a first one.

    ``why``: the reason why the request may not have been handed to its service, as a receipt or an error; ``None`` once
    it is known that it was. ``data``: the number of the data in which the absence of a record proves that it was not;
    ``None`` if it does in any.
    """

    late: str
    why: int | PeerError | None = None
    data: int | None = None


class LookUpState(Struct, kw_only=True):
    """A look-up for another version of the gateway. ``code`` and what follows: of the error that is the reason.
    ``lost``: the data are gone in which the absence of a record would prove something; ``any_data``: any prove it.
    """

    late: str = ""
    receipt: int | None = None
    code: str | None = None
    message: str = ""
    retry_after: float | None = None
    id: RequestId | None = None
    event_type: str | None = None
    limit: str | None = None
    lost: bool = False
    any_data: bool = False


class _Names:
    """A set of names. With more than :data:`_LOST_BYTES` it holds all that there are."""

    def __init__(self) -> None:
        self._names: set[str] | None = set()
        self._bytes = 0

    def add(self, name: str) -> None:
        if self._names is not None and name not in self._names:
            self._names.add(name)
            self._bytes += len(name)
            if self._bytes > _LOST_BYTES:
                self._names = None

    def __contains__(self, name: str) -> bool:
        return self._names is None or name in self._names


@implementer(IBusListener)
class LookUps:
    """Looks at the records of duplicates, for the answer to the first, and of requests that may be with their service
    or not, for whether they are.

    A client takes ``SERVICE_UNAVAILABLE`` for the proof that its service never got the request, and may ask anew. So a
    request is not refused before its record was looked up, if it may have been handed to the service, now or when it
    was sent for the first time: Redis was lost before its receipt, or refused it; or it may be a duplicate, and Redis
    cannot be asked at once. What nobody can tell in time is answered ``TIMEOUT``.

    ``waiting``: the requests that are looked up at each sweep, one command after the other; those of a user or an
    address that is over budget are when it is not. They are charged for it, and for the answers to requests that were
    sent again. ``outages``: how often Redis was lost; ``epoch``: that of its data when it was available last.
    ``settle`` is called with a request, its answer, and what of it is to be stored; ``refuse`` with a request that no
    service has, and the reason. ``requests`` returns all requests that wait.

    An answer that a service published while nobody listened here is not lost if another gateway was told it, which took
    this one for dead: it is looked up once, under the id of the socket.
    """

    _log = Logger()

    def __init__(
        self,
        bus: IBus,
        clock: IReactorTime,
        store: AnswerStore,
        *,
        settle: Callable[[Request, Broadcast, bytes | None], None],
        refuse: Callable[[Request, int | PeerError], None],
        requests: Callable[[], Iterable[Request]],
    ) -> None:
        self.waiting: dict[Request, _LookUp] = {}
        # How many of them are whose.
        self._of_users: Counter[str | None] = Counter()
        # Those that are to be looked up now, and whether others are being looked up.
        self._next: OrderedDict[Request, None] = OrderedDict()
        self._looking = False
        self._large = LargeAnswers(bus, self._not_read)
        self.outages = 0
        self._bus = bus
        self.store = store
        self._settle = settle
        self._refuse = refuse
        self.requests = requests
        # The records of requests that waited when Redis was lost, and of those that came since.
        self._lost: _Names | None = None
        # Those that waited when it was back, and when their answers are looked up that were missed.
        self._behind: deque[Request] = deque()
        self._look_behind_at = 0.0
        self._clock, self._now = clock, clock.seconds
        self.epoch: str | None = None
        self._data = 0
        self._once_a_minute = OnceAMinute(clock.seconds)
        bus.add_listener(self)

    # IBusListener

    def bus_up(self) -> None:
        self._lost = None
        self._behind = deque(self.requests())
        self._look_behind_at = self._now() + _MISSED
        epoch = self._bus.epoch
        if epoch is None or epoch != self.epoch:
            self._data += 1
        self.epoch = epoch

    def epoch_changed(self) -> None:
        self._data += 1
        self.epoch = self._bus.epoch

    def bus_down(self) -> None:
        self.outages += 1

    # For another version of the gateway

    def take(self, outages: int, epoch: str | None) -> None:
        """Go on where another version had lost Redis so often, and had data of this epoch."""
        self.outages, self.epoch = outages, epoch

    def give(self, request: Request) -> LookUpState | None:
        """Why it is looked up, if it is."""
        found = self.waiting.get(request)
        return None if found is None else _state_of(found, self._data)

    def restore(self, request: Request, state: LookUpState) -> None:
        """Look it up as another version did."""
        self._wait(request, _look_up_of(state, self._data))

    # For requests

    def known(self, request: Request, record: bytes) -> None:
        """Its record holds this: answer it, read the answer that has so many bytes, or wait for the answer to the
        request of the socket that is named.
        """
        if record.startswith(b"="):
            self._wait(request, _LookUp(""))
            self._large.read(request, request.record, int(record[1:]), self._read)
            return
        if not record.startswith(b"?"):
            if not self._repeat(request, record):
                self._unreadable(request.record)
            return
        try:
            first = record[1:].decode()
        except UnicodeDecodeError:
            self._unreadable(request.record)
            return
        self._wait(request, _LookUp(late_answer_key(first, request.id)))
        self._next[request] = None
        if not self._looking:
            self._look_up()

    def uncertain(self, request: Request, receipt: int) -> None:
        """It was sent, and this receipt does not say whether it arrived."""
        self._wait(request, _LookUp("", receipt, self._data))

    def not_sent(self, request: Request, resent: bool, error: PeerError) -> None:
        """It could not be sent. ``resent``: the client says that it was sent before. Raises the error unless it may
        have been; ``TIMEOUT`` where nobody knows, and too many of its user are looked up.
        """
        if not (request.lasts and (resent or self._may_repeat(request))):
            raise error
        if resent and self._has_share(request.session.user_id):
            message = "too many requests of this user were sent again, and wait for their answers"
            raise PeerError(Code.TIMEOUT, message, id=request.id, event_type=request.name)
        if self._lost is not None:
            self._lost.add(request.record)
        # Data that are lost prove nothing about a request that was sent before.
        self._wait(request, _LookUp("", error, self._data if resent else None))

    def forget(self, request: Request) -> None:
        """It is settled."""
        self._next.pop(request, None)
        if self.waiting.pop(request, None) is not None:
            user_id = request.session.user_id
            self._of_users[user_id] -= 1
            if not self._of_users[user_id]:
                del self._of_users[user_id]

    def repeats(self, request: Request) -> bool:
        """Whether it was not sent, because another one may have been, or was."""
        found = self.waiting.get(request)
        if found is None or isinstance(found.why, int):
            return False
        return found.late != late_answer_key(request.session.socket_id, request.id)

    def sweep(self) -> None:
        """Look all of them up."""
        self._next.update(dict.fromkeys(self.waiting))
        if self._next and not self._looking:
            self._look_up()
        if self._behind and self._bus.available and self._now() >= self._look_behind_at:
            self._look_behind()

    def failed(self, failure: Failure) -> None:
        """Redis refused a command about records."""
        if failure.check(NotPublished) is None:
            self._once_a_minute(failing(self._log, failure), _NOT_SHARED)

    # Within

    def _may_repeat(self, request: Request) -> bool:
        if self._bus.available:
            return len(self.waiting) < _MOST
        if request.session.outages == self.outages:
            return True  # a client has reconnected since, and what it sends may be what it had sent before
        if self._lost is None:
            self._lost = _Names()
            for waiting in self.requests():
                self._lost.add(waiting.record)
        return request.record in self._lost

    def _has_share(self, user_id: str | None) -> bool:
        held = len(self.waiting)
        return 2 * held >= _SHARED and self._of_users[user_id] >= max(share(held, _SHARED, len(self._of_users)), 1)

    def _wait(self, request: Request, look_up: _LookUp) -> None:
        if request not in self.waiting:
            self._of_users[request.session.user_id] += 1
        self.waiting[request] = look_up

    def _look_up(self) -> None:
        """Look some of them up, and others when these were."""
        self._looking = False
        asked: list[tuple[Request, str]] = []
        for request in self._due():
            answer = self.store.find(request.record)
            if answer is None or not self._repeat(request, answer):
                asked.append((request, self.waiting[request].late))
        if asked and self._bus.available:
            self._looking = True
            keys = [key for request, late in asked for key in (request.record, late) if key]
            found = _read_all(self._bus, keys).addCallback(self._found, asked)
            found.addErrback(self._not_found).addCallback(lambda _: self._look_up())
        elif self._next:
            self._looking = True
            self._clock.callLater(0, self._look_up)

    def _due(self) -> list[Request]:
        """The next of them whose users and addresses are not over budget. These are charged, if Redis can be asked."""
        due: list[Request] = []
        available = self._bus.available
        costs: dict[Session, int] = {}
        over = cache(overdrawn)
        for _ in range(min(len(self._next), _AT_ONCE)):
            request, _ = self._next.popitem(last=False)
            look_up, session = self.waiting.get(request), request.session
            if look_up is not None and not (available and over(session)):
                due.append(request)
                costs[session] = costs.get(session, 0) + (_FOR_ONE if isinstance(look_up.why, PeerError) else 1)
        for session, cost in costs.items() if available else ():
            session.charge(-(-cost // _FOR_ONE), 0)
        return due

    def _look_behind(self) -> None:
        """A thousand at each sweep: Redis takes a millisecond for them, and so do we."""
        behind = self._behind
        asked: list[Request] = []
        while behind and len(asked) < _MOST:
            request = behind.popleft()
            if request in request.queue.requests and request not in self.waiting:
                asked.append(request)
        if asked:
            keys = [late_answer_key(request.session.socket_id, request.id) for request in asked]
            found = _read_all(self._bus, keys).addCallback(self._found_behind, asked, keys)
            found.addErrback(self._not_read, asked)

    def _found_behind(
        self, answers: list[bytes | int | None], requests: Sequence[Request], keys: Sequence[str]
    ) -> None:
        for request, answer, key in zip(requests, answers, keys, strict=True):
            if isinstance(answer, int):
                self._large.read(request, key, answer, self._missed, repeated=False)
            elif answer is not None:
                self._missed(request, key, answer)

    def _not_read(self, failure: Failure, requests: Iterable[Request]) -> None:
        """The answers that these have missed are looked up again."""
        self._behind.extend(requests)
        self.failed(failure)

    def _missed(self, request: Request, key: str, answer: bytes) -> None:
        if request in request.queue.requests and not self._answer(request, answer, answer):
            self._unreadable(key)

    def _found(self, answers: list[bytes | int | None], asked: Sequence[tuple[Request, str]]) -> None:
        values = iter(answers)
        for request, late_key in asked:
            stored = next(values)
            late = next(values) if late_key else None
            look_up = self.waiting.get(request)
            if look_up is None:
                continue
            if look_up.why is not None:
                self._decide(request, look_up.why, look_up.data, stored)
            elif not self._holds_answer(request, request.record, stored):
                self._holds_answer(request, late_key, late)

    def _not_found(self, failure: Failure) -> None:
        self._next.clear()
        self.failed(failure)

    def _holds_answer(self, request: Request, key: str, held: bytes | int | None) -> bool:
        """Whether this is the answer to it under this key: then it gets it."""
        if held is None or (isinstance(held, bytes) and held.startswith(b"?")):
            return False
        if isinstance(held, int):
            self._large.read(request, key, held, self._read)
            return True
        request.session.charge(0, len(held))
        return self._read(request, key, held)

    def _read(self, request: Request, key: str, answer: bytes) -> bool:
        """Answer it with what its record holds, or with a late answer, which is to be stored in the record, too."""
        if self._answer(request, answer, None if key == request.record else answer):
            return True
        self._unreadable(key)
        return False

    def _repeat(self, request: Request, answer: bytes) -> bool:
        request.session.charge(0, len(answer))
        return self._answer(request, answer)

    def _decide(self, request: Request, why: int | PeerError, data: int | None, record: bytes | int | None) -> None:
        """Whether its service has the request, by the record."""
        self.forget(request)
        if record is not None:
            self.known(request, b"=%d" % record if isinstance(record, int) else record)
        elif data is None or data == self._data:
            self._refuse(request, why)
        # Otherwise nobody knows: it waits for an answer or its time-out.

    def _answer(self, request: Request, answer: bytes, body: bytes | None = None) -> bool:
        """Answer a duplicate with the stored ``answer``; ``body`` if it is to be stored in the record, too. ``False``
        if it cannot be read.
        """
        try:
            answer.decode()
            known = _decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        self._settle(request, known, body)
        return True

    def _unreadable(self, key: str) -> None:
        """What no gateway wrote counts as no answer. It is removed, so that the request is sent when it is repeated."""
        self._once_a_minute(self._log.error, _UNREADABLE, key=key)
        self._bus.call("DEL", (key,)).addErrback(self.failed)


def _read_all(bus: IBus, keys: Sequence[str]) -> Deferred[list[bytes | int | None]]:
    """What these hold. Fails with ``NotPublished`` also when Redis has lost its data and that is not known yet."""

    def known(held: list[bytes | int | None] | None) -> list[bytes | int | None]:
        if held is None:
            raise NotPublished("the data are of another epoch")
        return held

    return bus.call(_READ, [*keys, EPOCH], (LARGE, bus.epoch or "")).addCallback(known)


def _state_of(look_up: _LookUp, data: int) -> LookUpState:
    why = look_up.why
    state = LookUpState(late=look_up.late, any_data=look_up.data is None, lost=look_up.data not in (None, data))
    if isinstance(why, PeerError):
        state.code, state.message, state.limit = why.code, why.message, why.limit
        state.retry_after, state.id, state.event_type = why.retry_after, why.id, why.event_type
    elif why is not None:
        state.receipt = int(why)
    return state


def _look_up_of(state: LookUpState, data: int) -> _LookUp:
    why: int | PeerError | None = state.receipt
    if state.code is not None:
        why = PeerError(
            Code(state.code),
            state.message,
            retry_after=state.retry_after,
            id=state.id,
            event_type=state.event_type,
            limit=None if state.limit is None else Limit(state.limit),
        )
    return _LookUp(state.late, why, None if state.any_data else data - state.lost)

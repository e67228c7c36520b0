"""Requests that wait for what their records in Redis say. Made by :mod:`kraftek.core.requests`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import msgspec
from msgspec import Struct
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import Code, Limit, NotPublished, PeerError
from kraftek.contract.interfaces import IBus, IBusListener
from kraftek.contract.log_once import OnceAMinute, failing
from kraftek.contract.messages import Broadcast, RequestId
from kraftek.contract.names import late_answer_key
from kraftek.core.request_queue import Request
from kraftek.core.request_records import AnswerStore

__all__ = ["LookUpState", "LookUps"]

_MOST = 1000
"""Requests that one command looks up, in a millisecond. As many may wait to be looked up that nobody says to be sent
again; further ones are refused without it."""

_LOST_BYTES = 8 * 1024 * 1024
"""Names of records that are remembered through an outage: those of some 100,000 requests. When there are more, any
request may have been sent before."""

_MISSED = 1.0
"""Seconds after Redis is back until answers are looked up that were published meanwhile: by then other gateways have
stored them."""

_decode = msgspec.json.Decoder(Broadcast).decode


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

    ``waiting``: the requests that are looked up at each sweep. ``outages``: how often Redis was lost.
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
        self._now = clock.seconds
        self._epoch: str | None = None
        self._data = 0
        self._once_a_minute = OnceAMinute(clock.seconds)
        bus.add_listener(self)

    # IBusListener

    def bus_up(self) -> None:
        self._lost = None
        self._behind = deque(self.requests())
        self._look_behind_at = self._now() + _MISSED
        epoch = self._bus.epoch
        if epoch is None or epoch != self._epoch:
            self._data += 1
        self._epoch = epoch

    def epoch_changed(self) -> None:
        self._data += 1
        self._epoch = self._bus.epoch

    def bus_down(self) -> None:
        self.outages += 1

    # For another version of the gateway

    @property
    def epoch(self) -> str | None:
        """That of the data when Redis was available last."""
        return self._epoch

    def take(self, outages: int, epoch: str | None) -> None:
        """Go on where another version had lost Redis so often, and had data of this epoch."""
        self.outages, self._epoch = outages, epoch

    def give(self, request: Request) -> LookUpState | None:
        """Why it is looked up, if it is."""
        found = self.waiting.get(request)
        if found is None:
            return None
        why = found.why
        state = LookUpState(late=found.late, any_data=found.data is None, lost=found.data not in (None, self._data))
        if isinstance(why, PeerError):
            state.code, state.message, state.limit = why.code, why.message, why.limit
            state.retry_after, state.id, state.event_type = why.retry_after, why.id, why.event_type
        elif why is not None:
            state.receipt = int(why)
        return state

    def restore(self, request: Request, state: LookUpState) -> None:
        """Look it up as another version did."""
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
        data = None if state.any_data else self._data - state.lost
        self.waiting[request] = _LookUp(state.late, why, data)

    # For requests

    def known(self, request: Request, record: bytes) -> None:
        """Its record holds this: answer it, or wait for the answer to the request of the socket that is named."""
        if not record.startswith(b"?"):
            if not self._answer(request, record):
                self._unreadable(request.record)
            return
        try:
            first = record[1:].decode()
        except UnicodeDecodeError:
            self._unreadable(request.record)
            return
        self.waiting[request] = _LookUp(late_answer_key(first, request.id))
        self._look_up([request])

    def uncertain(self, request: Request, receipt: int) -> None:
        """It was sent, and this receipt does not say whether it arrived."""
        self.waiting[request] = _LookUp("", receipt, self._data)

    def not_sent(self, request: Request, resent: bool, error: PeerError) -> None:
        """It could not be sent. ``resent``: the client says that it was sent before. Raises the error unless it may
        have been.
        """
        if not (request.lasts and (resent or self._may_repeat(request))):
            raise error
        if self._lost is not None:
            self._lost.add(request.record)
        # Data that are lost prove nothing about a request that was sent before.
        self.waiting[request] = _LookUp("", error, self._data if resent else None)

    def sweep(self) -> None:
        """Look all of them up."""
        requests = iter(tuple(self.waiting))
        while some := tuple(islice(requests, _MOST)):
            self._look_up(some)
        if self._behind and self._bus.available and self._now() >= self._look_behind_at:
            self._look_behind()

    def failed(self, failure: Failure) -> None:
        """Redis refused a command about records."""
        if failure.check(NotPublished) is None:
            text = "Sharing answers to duplicate requests through Redis failed (logged once a minute)"
            self._once_a_minute(failing(self._log, failure), text)

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

    def _look_up(self, requests: Sequence[Request]) -> None:
        asked = []
        for request in requests:
            answer = self.store.find(request.record)
            if answer is None or not self._answer(request, answer):
                asked.append((request, self.waiting[request].late))
        if asked and self._bus.available:
            keys = [key for request, late in asked for key in (request.record, late or request.record)]
            self._bus.call("MGET", keys).addCallback(self._found, asked).addErrback(self.failed)

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
            self._bus.call("MGET", keys).addCallback(self._found_behind, asked, keys).addErrback(self.failed)

    def _found_behind(self, answers: list[bytes | None], requests: Sequence[Request], keys: Sequence[str]) -> None:
        for request, answer, key in zip(requests, answers, keys, strict=True):
            if answer is not None and request in request.queue.requests and not self._answer(request, answer, answer):
                self._unreadable(key)

    def _found(self, answers: list[bytes | None], asked: Sequence[tuple[Request, str]]) -> None:
        for (request, late_key), stored, late in zip(asked, answers[::2], answers[1::2], strict=True):
            look_up = self.waiting.get(request)
            if look_up is None:
                continue
            if look_up.why is not None:
                self._decide(request, look_up.why, look_up.data, stored)
                continue
            if stored is not None and not stored.startswith(b"?"):
                if self._answer(request, stored):
                    continue
                self._unreadable(request.record)
            if late is not None and late_key and not self._answer(request, late, late):
                self._unreadable(late_key)

    def _decide(self, request: Request, why: int | PeerError, data: int | None, record: bytes | None) -> None:
        """Whether its service has the request, by the record."""
        del self.waiting[request]
        if record is not None:
            self.known(request, record)
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
        text = "{key} in Redis cannot be read, and is removed (logged once a minute)"
        self._once_a_minute(self._log.error, text, key=key)
        self._bus.call("DEL", (key,)).addErrback(self.failed)

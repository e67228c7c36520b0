"""Requests in flight, and answers that Redis has not stored, for another version of the gateway.

Made by :mod:`kraftek.core.requests`, whose own they are; called by :mod:`kraftek.core.moving`.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct
from zope.interface import implementer

from kraftek.contract.interfaces import IClientLink, IDialect, IServiceRegistry
from kraftek.contract.messages import Inbound, Outbound, Outgoing, RequestId
from kraftek.contract.settings import Registration
from kraftek.core.answer_budget import AnswerBudget
from kraftek.core.request_look_ups import LookUpState
from kraftek.core.request_progress import PartsState, RequestProgress
from kraftek.core.request_queue import Request, RequestQueue
from kraftek.core.session import Session, SessionState

__all__ = ["RequestMove", "RequestState", "RequestsState"]


class RequestState(Struct, kw_only=True):
    """A request that waits, as :class:`kraftek.core.request_queue.Request`. ``timeout``: that of its ``service``.
    ``refused``: it is refused unless an earlier copy turns out to be with the service. ``parts``: of its answer.
    """

    socket_id: str
    user_id: str | None
    id: RequestId
    name: str
    record: str
    lasts: bool
    service: str
    timeout: float
    sent_at: float
    refused: bool = False
    look_up: LookUpState | None = None
    parts: PartsState | None = None


class RequestsState(Struct, kw_only=True):
    """``answers``: those that Redis has not stored, each with its record and since when. ``kept``: bytes of records and
    answers in Redis, without parts. ``outages``: how often it was lost; ``epoch``: of its data.
    """

    waiting: list[RequestState]
    answers: list[tuple[str, bytes, float]]
    kept: int
    outages: int
    epoch: str | None


class RequestMove:
    """Gives and takes them. What it is made of is that of :class:`kraftek.core.requests.Requests`."""

    def __init__(
        self,
        waiting: dict[str, dict[RequestId, Request]],
        departed: set[str],
        queues: dict[int, RequestQueue],
        queue: Callable[[Registration], RequestQueue],
        progress: RequestProgress,
        budget: AnswerBudget,
    ) -> None:
        self._waiting = waiting
        self._departed = departed
        self._queues = queues
        self._queue = queue
        self._look_ups = progress.look_ups
        self._budget = budget
        self._progress = progress

    def give(self) -> RequestsState:
        """All of them, in the order in which they time out."""
        return RequestsState(
            waiting=[self._state(request) for request in self._look_ups.requests()],
            answers=self._look_ups.store.give(),
            kept=self._budget.used - self._budget.parts,
            outages=self._look_ups.outages,
            epoch=self._look_ups.epoch,
        )

    def take(
        self,
        state: RequestsState,
        registry: IServiceRegistry,
        find: Callable[[str], Session | None],
        make: Callable[[str, IClientLink, IDialect], Session],
    ) -> None:
        """Go on with them. ``find`` the session of a socket; ``make`` one for a client that is gone."""
        self._look_ups.store.take(state.answers)
        self._budget.take(state.kept)
        self._look_ups.take(state.outages, state.epoch)
        gone: dict[str, Session] = {}
        for each in state.waiting:
            session = find(each.socket_id) or gone.get(each.socket_id)
            if session is None:
                session = gone[each.socket_id] = make(each.socket_id, _Nobody(), _Mute())
                session.user_id, session.state = each.user_id, SessionState.CLOSED
                self._departed.add(each.socket_id)
            self._restore(each, session, registry.find(each.service))

    def _state(self, request: Request) -> RequestState:
        service = request.queue.service
        return RequestState(
            socket_id=request.session.socket_id,
            user_id=request.session.user_id,
            id=request.id,
            name=request.name,
            record=request.record,
            lasts=request.lasts,
            service=service.name,
            timeout=service.timeout,
            sent_at=request.sent_at,
            refused=request in request.queue.refused,
            look_up=self._look_ups.give(request),
            parts=self._progress.give(request),
        )

    def _restore(self, state: RequestState, session: Session, service: Registration | None) -> None:
        if service is None:
            # It is not configured any more, and may answer all the same.
            service = Registration(name=state.service, channel=state.service, reply=True, timeout=state.timeout)
        queue = self._queues.get(id(service)) or self._queue(service)
        request = Request(session, state.name, state.record, state.lasts, queue, state.id, state.sent_at)
        self._waiting.setdefault(state.socket_id, {})[state.id] = request
        self._progress.restore(request, state.parts)
        if state.refused:
            queue.refused[request] = None
        else:
            queue.requests[request] = None
        if state.look_up is not None:
            self._look_ups.restore(request, state.look_up)


@implementer(IClientLink)
class _Nobody:
    """The link of a client that is gone."""

    peer = ""

    def write(self, outgoing: Outgoing) -> None:
        """Nobody reads it."""

    def close(self, code: int, reason: str) -> None:
        """It is."""

    def pause(self) -> None:
        """Nothing comes."""

    resume = pause

    def slow(self, seconds: float) -> None:
        """Nothing comes."""


@implementer(IDialect)
class _Mute:
    """The dialect of a client that is gone."""

    codec = ""
    recovers = False
    lasting_ids = True

    def received(self, data: bytes, binary: bool) -> Inbound | None:
        """Nothing comes."""

    def encode(self, message: Outbound) -> Outgoing | None:
        """Nobody reads it."""

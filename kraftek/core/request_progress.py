"""Answers that come in parts: the parts, in order, on their way to whoever waits. Made by :mod:`kraftek.core.requests`.

A service publishes each part to the gateway that it has the request from, and keeps the last ones in Redis for a while
(``progress.lua`` of the service kit). There those who have sent the request again find them, through whichever gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heappop, heappush
from math import ceil
from typing import Any

import msgspec
from msgspec import Raw, Struct
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from kraftek.contract.interfaces import IBus, IBusListener
from kraftek.contract.lua import Script, lua
from kraftek.contract.messages import (
    NULL,
    PARTS_KEPT,
    REQUEST_KNOWN,
    REQUEST_LONGEST,
    Broadcast,
    Place,
    Progress,
    RequestId,
)
from kraftek.contract.names import parts_beside, parts_key
from kraftek.core.answer_budget import PARTS, AnswerBudget
from kraftek.core.request_look_ups import LookUps
from kraftek.core.request_queue import Request
from kraftek.core.session import Session, SessionState

__all__ = ["AT_ONCE", "LINGER", "READ_PARTS", "PartsState", "RequestProgress", "counted"]

RENEWED = 10.0
"""Seconds after which its record in Redis gets its lifetime anew, too: at most a tenth of that."""

AT_ONCE = 100
"""Parts that are read at once; further ones when these were sent."""

_PART = 40
"""Bytes that Redis needs for a part beside its payload, as ``progress.lua`` of the service kit has it."""

LINGER = 5.0
"""Seconds for which Redis keeps the parts after the answer: others may wait for both, and look at each sweep."""

_FOR_ONE = 4
"""Parts that were read and count as one event."""


READ_PARTS = Script(lua(__package__, "request_parts"))


class _Part(Struct, frozen=True):
    run: str
    number: int
    payload: Raw = NULL


class PartsState(Struct, kw_only=True):
    """The parts of a request, for another version of the gateway: the last that was sent, since when it waits, and as
    :class:`_Parts` what Redis keeps of them.
    """

    run: str
    number: int
    began: float
    key: str = ""
    kept: int = 0


class _Parts(Struct, eq=False):
    """``run``, ``number``: of the last part that was sent. ``began``: when the request came; ``renewed``: when its
    record was. ``reading``: they are looked up. ``behind``: they are to be. ``key``: under which Redis has the parts;
    ``kept``: so many bytes of them. ``answer``: to be called when the client has them all.
    """

    run: str
    number: int
    began: float
    renewed: float
    reading: bool = False
    behind: bool = False
    key: str = ""
    kept: int = 0
    answer: Callable[[], None] | None = None


_decode = msgspec.json.Decoder(_Part).decode


def counted(size: int) -> int:
    """As how many bytes a part of that size counts: Redis's allocator rounds large ones up by a quarter."""
    return _PART + size + size // 4


@implementer(IBusListener)
class RequestProgress:
    """The requests whose clients take parts. ``waiting``: that of :class:`kraftek.core.requests.Requests`.

    The parts of one's own request come by themselves, and are read in Redis where some are missing. Those of a request
    that another socket has sent before are read at each sweep, and once more before its answer, which waits for that.
    After the answer there are no parts, and those in Redis end soon; those of a client that has lost its socket end by
    themselves. They count in the ``budget`` until then; beyond it only the last one is kept. ``under_way``: where all
    these requests are.
    """

    def __init__(
        self,
        waiting: Mapping[str, Mapping[RequestId, Request]],
        bus: IBus,
        look_ups: LookUps,
        clock: IReactorTime,
        budget: AnswerBudget,
        window: float,
    ) -> None:
        self._budget = budget
        # Keys of parts whose request was answered.
        self._over: dict[str, None] = {}
        # What Redis still has of requests that are over: until when, whose, and how many bytes.
        self._ending: list[tuple[float, str, int]] = []
        self._waiting = waiting
        self._bus = bus
        self.look_ups = look_ups
        self._now = clock.seconds
        self._window = window
        self.under_way: dict[Request, _Parts] = {}
        bus.add_listener(self)

    def __len__(self) -> int:
        return len(self.under_way)

    # IBusListener

    def bus_up(self) -> None:
        """Parts that were published meanwhile were not heard."""
        for parts in self.under_way.values():
            parts.behind = True

    def bus_down(self) -> None:
        """Nothing to do: nothing comes."""

    def epoch_changed(self) -> None:
        """Nothing to do: of parts that Redis has lost those who wait have had all but the last."""

    # For requests

    def begin(self, session: Session, request_id: RequestId, progress: bool | Place) -> None:
        """It was sent; its client takes parts, after this one if it has had some."""
        request = self._waiting[session.socket_id].get(request_id)
        if progress and request is not None and request not in self.under_way and request.queue.service.reply:
            run, number = (progress.run, progress.number) if isinstance(progress, Place) else ("", 0)
            self.under_way[request] = _Parts(run, number, request.sent_at, request.sent_at)

    def heard(self, message: Broadcast) -> None:
        """A service has published a part. Raises what msgspec does."""
        part, request_id = _decode(message.payload), message.in_reply_to
        for socket_id in message.recipients or ():
            request = None if request_id is None else self._waiting.get(socket_id, {}).get(request_id)
            parts = None if request is None else self.under_way.get(request)
            if request is None or parts is None:
                continue
            if parts.reading:
                parts.behind = True
            elif part.number == (parts.number + 1 if part.run == parts.run else 1):
                parts.key = parts_key(socket_id, request.id)
                self._send(request, parts, Place(part.run, part.number), part.payload)
            elif part.run != parts.run or part.number > parts.number:
                self._read(request, parts, parts_key(socket_id, request.id))

    def holds(self, request: Request, first: str, answer: Callable[[], None]) -> bool:
        """Whether the answer is to wait for parts that come before it: it is called then. ``first``: the socket that
        sent the request for the first time.
        """
        parts, session = self.under_way.get(request), request.session
        if parts is None or session.state is SessionState.CLOSED or not self._bus.available:
            return False
        if first != session.socket_id:
            parts.behind = True
        if not (parts.reading or parts.behind):
            return False
        parts.answer = answer
        parts.key = parts_key(first, request.id)
        self._read(request, parts, parts.key)
        return True

    def sweep(self) -> None:
        """Look for parts that do not come by themselves, before answers are looked for."""
        for request, parts in tuple(self.under_way.items()):
            socket_id = request.session.socket_id
            if self._waiting.get(socket_id, {}).get(request.id) is not request:
                if parts.answer is None:
                    self._end(request, self.under_way.pop(request))
                continue
            look_up = self.look_ups.waiting.get(request)
            if look_up is not None and look_up.late:
                self._read(request, parts, parts_beside(look_up.late))
            elif parts.behind:
                self._read(request, parts, parts_key(socket_id, request.id))
        now = self._now()
        while self._ending and self._ending[0][0] <= now:
            _, user_id, size = heappop(self._ending)
            self._budget.part(user_id, -size)
        if self._bus.available:
            over, self._over = self._over, {}
            for key in over:
                self._bus.call("PEXPIRE", (key,), (round(1000 * LINGER),)).addErrback(self.look_ups.failed)

    # For another version of the gateway

    def give(self, request: Request) -> PartsState | None:
        """Where it is, if its client takes parts."""
        parts = self.under_way.get(request)
        if parts is None:
            return None
        return PartsState(run=parts.run, number=parts.number, began=parts.began, key=parts.key, kept=parts.kept)

    def restore(self, request: Request, state: PartsState | None) -> None:
        """Go on where another version was."""
        if state is not None:
            parts = _Parts(state.run, state.number, state.began, self._now(), behind=True, key=state.key)
            self.under_way[request] = parts
            self._keep(request, parts, state.kept)

    # Within

    def _read(self, request: Request, parts: _Parts, key: str) -> None:
        session = request.session
        if parts.reading or not self._bus.available or session.state is SessionState.CLOSED:
            return
        if parts.answer is None and session.budgets.overdrawn(session.user_id or "", session.address):
            parts.behind = True  # it sends requests again and again, to have parts read
            return
        parts.reading, parts.behind, parts.key = True, False, key
        reading = self._bus.call(READ_PARTS, (key,), (parts.run, parts.number, AT_ONCE))
        reading.addBoth(self._has_read, parts).addCallback(self._found, request, parts)
        reading.addErrback(self.look_ups.failed).addCallback(self._has_them, request, parts)

    def _has_read(self, found: Any, parts: _Parts) -> Any:
        parts.reading = False
        return found

    def _found(self, found: list[Any], request: Request, parts: _Parts) -> None:
        if not found or self.under_way.get(request) is not parts:
            return
        run, entries, socket_id = found[0].decode(), found[1], request.session.socket_id
        request.session.charge(-(-len(entries) // _FOR_ONE), sum(len(payload) for _, (*_, payload) in entries))
        for entry_id, (*_, payload) in entries:
            if parts.answer is None and self._waiting.get(socket_id, {}).get(request.id) is not request:
                return
            self._send(request, parts, Place(run, int(entry_id.partition(b"-")[0])), Raw(payload))
        if len(entries) == AT_ONCE:
            self._read(request, parts, parts.key)

    def _has_them(self, _: object, request: Request, parts: _Parts) -> None:
        if parts.answer is not None and parts.behind:
            self._read(request, parts, parts.key)
        if parts.answer is not None and not parts.reading:
            answer, parts.answer = parts.answer, None
            answer()

    def _send(self, request: Request, parts: _Parts, place: Place, payload: Raw) -> None:
        if parts.key == parts_key(request.session.socket_id, request.id):
            self._count(request, parts, place.run, counted(len(payload)))
        parts.run, parts.number = place.run, place.number
        if request.session.state is not SessionState.CLOSED:
            request.session.send(Progress(request.id, payload, place))
        now = self._now()
        if now >= parts.began + REQUEST_LONGEST:
            return
        queue = request.queue
        for requests in (queue.requests, queue.refused):
            if request in requests:
                del requests[request]
                request.sent_at = now
                requests[request] = None  # it is due last
        if request.lasts and now >= parts.renewed + RENEWED:
            parts.renewed = now
            known = ceil(1000 * (self._window + queue.service.timeout))
            self._bus.call("PEXPIRE", (request.record,), (known,)).addErrback(self.look_ups.failed)

    def _count(self, request: Request, parts: _Parts, run: str, size: int) -> None:
        """Redis has one more, of that size. Another gateway's are counted there."""
        kept = PARTS + size
        if parts.kept and run == parts.run:
            kept = min(parts.kept + size, PARTS + max(counted(PARTS_KEPT), size))
        if not self._keep(request, parts, kept):
            self._keep(request, parts, PARTS + size)
            # Not all of them: over Pub/Sub another instance of the service would begin.
            self._bus.call("XTRIM", (parts.key,), ("MAXLEN", 1)).addErrback(self.look_ups.failed)

    def _keep(self, request: Request, parts: _Parts, size: int) -> bool:
        """Redis keeps so many bytes of them. Whether it may."""
        assert request.session.user_id is not None
        grows, parts.kept = size - parts.kept, size
        return self._budget.part(request.session.user_id, grows)

    def _end(self, request: Request, parts: _Parts) -> None:
        """It is over."""
        if not parts.kept:
            return
        session = request.session
        if request.id in self._waiting.get(session.socket_id, {}):
            self._keep(request, parts, 0)  # it has begun anew, and so have its parts
            return
        # Whoever has lost its socket asks again, and has yet to get them.
        lost = session.state is SessionState.CLOSED
        if not lost:
            self._over[parts.key] = None
        assert session.user_id is not None
        heappush(self._ending, (self._now() + (REQUEST_KNOWN if lost else LINGER), session.user_id, parts.kept))

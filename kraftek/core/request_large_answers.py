"""Answers that are too large to be looked up with others. Made by :mod:`kraftek.core.request_look_ups`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from twisted.python.failure import Failure

from kraftek.contract.interfaces import IBus
from kraftek.core.request_queue import Request
from kraftek.core.session import Session

__all__ = ["LargeAnswers", "overdrawn"]

_TOGETHER = 256 * 1024
"""Bytes that are asked for at a time, unless one is larger: whatever else Redis answers waits for them."""


class _Large(Struct, frozen=True):
    """``found`` is called with the request, the key, and what it holds."""

    key: str
    size: int
    found: Callable[[Request, str, bytes], object]
    repeated: bool


def overdrawn(session: Session) -> bool:
    """Whether its user or its address is over budget."""
    return session.budgets.overdrawn(session.user_id or "", session.address) > 0


class LargeAnswers:
    """Reads them one after the other. A request that was sent again is charged with its answer, and one whose user or
    address is over budget is put off: it is found again by the next sweep.

    A client that sends a hundred bytes again gets its answer again, which may have megabytes. ``failed`` is called with
    the requests that were not sent again, and have to be looked up once more.
    """

    def __init__(self, bus: IBus, failed: Callable[[Failure, Sequence[Request]], None]) -> None:
        self._bus = bus
        self._failed = failed
        self._waiting: dict[Request, _Large] = {}
        self._reading: dict[Request, int] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._reading)

    def read(
        self,
        request: Request,
        key: str,
        size: int,
        found: Callable[[Request, str, bytes], object],
        *,
        repeated: bool = True,
    ) -> None:
        """There are so many bytes under this key. ``repeated``: the request was sent again."""
        if request not in self._waiting and request not in self._reading:
            self._waiting[request] = _Large(key, size, found, repeated)
            self._read()

    def _read(self) -> None:
        waiting, reading = self._waiting, self._reading
        while waiting:
            request, large = next(iter(waiting.items()))
            if reading and sum(reading.values()) + large.size > _TOGETHER:
                break
            del waiting[request]
            if not request.waits or (large.repeated and overdrawn(request.session)):
                continue
            if large.repeated:
                request.session.charge(1, large.size)
            reading[request] = large.size
            answer = self._bus.call("GET", (large.key,)).addBoth(self._has_read, request)
            answer.addCallback(self._was_read, request, large).addErrback(self._not_read, request, large)
            answer.addCallback(self._go_on)

    def _has_read(self, answer: Any, request: Request) -> Any:
        del self._reading[request]
        return answer

    def _was_read(self, answer: bytes | None, request: Request, large: _Large) -> None:
        if answer is not None and request.waits:
            large.found(request, large.key, answer)

    def _not_read(self, failure: Failure, request: Request, large: _Large) -> None:
        again = [each for each, its in {request: large, **self._waiting}.items() if not its.repeated]
        self._waiting.clear()
        self._failed(failure, again)

    def _go_on(self, _: object) -> None:
        self._read()

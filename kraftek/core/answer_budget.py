"""Which answers Redis keeps for requests that are sent again, by their bytes. Asked by :mod:`kraftek.core.requests`."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import msgspec

from kraftek.contract.errors import Code
from kraftek.contract.messages import ErrorPayload
from kraftek.contract.metrics import Counters

__all__ = ["SMALL", "TOMBSTONE", "AnswerBudget"]

SMALL = 512
"""Bytes of an answer that is always kept, and not counted: its record, which must be there so that the request does not
run again, takes as much in Redis without it."""

_PER_SERVICE = 2
_PER_USER = 8
"""One service has at most a half of the budget, one user an eighth."""

_PER_ANSWER = 8
"""One answer takes at most an eighth of what is left. So large ones are refused first, and nearly all of the budget
remains for small ones."""

TOMBSTONE = msgspec.json.encode(
    {"type": "error", "payload": ErrorPayload(Code.TIMEOUT, "it was done, and its answer is not kept")}
)
"""Kept in place of an answer that is not: the request does not run again."""


class AnswerBudget:
    """``size``: bytes of answers of this process that are kept at a time. ``lasts``: seconds for which one is kept.

    Bytes are given back together, when the last of them is certainly gone: those of one period at the end of the next.
    So no entry is needed for each answer, and what is counted is at least what Redis holds.
    """

    def __init__(self, size: int, now: Callable[[], float], lasts: Callable[[], float], counters: Counters) -> None:
        self._size = size
        self._now = now
        self._lasts = lasts
        self._counters = counters
        self._before: dict[Hashable, int] = {}
        self._used: dict[Hashable, int] = {}
        self._ends = now()

    @property
    def used(self) -> int:
        """Bytes that are counted."""
        return self._before.get(None, 0) + self._used.get(None, 0)

    def take(self, used: int) -> None:
        """Another version has had so many bytes kept. All of them count for as long as the last of them may live."""
        self._before, self._ends = {None: used}, self._now() + self._lasts()

    def kept(self, body: bytes, service: str, user_id: str) -> bytes:
        """What is kept of this answer: itself, and otherwise :data:`TOMBSTONE`. ``service``: empty if it is unknown."""
        size = len(body)
        if size <= SMALL:
            return body
        self._turn()
        before, used = self._before, self._used
        accounts = (None, 1), (("service", service), _PER_SERVICE), (("user", user_id), _PER_USER)
        for owner, share in accounts:
            left = self._size // share - before.get(owner, 0) - used.get(owner, 0)
            if size * _PER_ANSWER > left:
                self._counters.answers_too_large += 1
                return TOMBSTONE
        for owner, _ in accounts:
            used[owner] = used.get(owner, 0) + size
        return body

    def _turn(self) -> None:
        now = self._now()
        if now < self._ends:
            return
        next_end = self._ends + self._lasts()
        self._before, self._used = (self._used if now < next_end else {}), {}
        self._ends = next_end if now < next_end else now + self._lasts()

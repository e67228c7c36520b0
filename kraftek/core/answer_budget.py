"""What Redis keeps for requests that are sent again, by its bytes: their records, and the answers in these. Asked by
:mod:`kraftek.core.requests`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct

from kraftek.contract.errors import Code
from kraftek.contract.messages import ErrorPayload
from kraftek.contract.metrics import Counters
from kraftek.contract.rates import share

__all__ = ["RECORD", "SMALL", "TOMBSTONE", "AnswerBudget"]

RECORD = 270
"""Bytes that Redis needs for a record beside its key, with what it holds at first or with :data:`TOMBSTONE`, and for
its place among the keys and the times when they end: 222 to 265 in Redis 7.0 and 200 to 240 in 6.2, by how many there
are. ``MEMORY USAGE`` leaves the last two out."""

SMALL = 512
"""Bytes of an answer that this process does not count while it waits to be stored."""

_ANSWERS = 2
_PER_SERVICE = 4
_PER_USER = 8
"""Answers have at most a half of the budget, those of one service a quarter, and of one user an eighth."""

_PER_ANSWER = 8
"""One answer takes at most an eighth of what is left. So large ones are refused first, and nearly all of the budget
remains for small ones."""

TOMBSTONE = msgspec.json.encode(
    {"type": "error", "payload": ErrorPayload(Code.TIMEOUT, "it was done, and its answer is not kept")}
)
"""Kept in place of an answer that is not: the request does not run again."""

_INCLUDED = len(TOMBSTONE)
"""Bytes of an answer that are no more than what its record takes anyway."""


class _Period(Struct):
    """What is counted in a time as long as the longest life of a record. ``total``: records and ``answers``."""

    total: int = 0
    answers: int = 0
    records_of: dict[str, int] = {}
    answers_of: dict[str, int] = {}
    answers_by: dict[str, int] = {}


class AnswerBudget:
    """``size``: bytes that Redis holds for requests of this process at a time. ``lasts``: seconds for which a record
    lives.

    Bytes are given back together, when the last of them is certainly gone: those of one period at the end of the next.
    So no entry is needed for each record, and what is counted is at least what Redis holds.
    """

    def __init__(self, size: int, now: Callable[[], float], lasts: Callable[[], float], counters: Counters) -> None:
        self._size = size
        self._now = now
        self._lasts = lasts
        self._counters = counters
        self._before = _Period()
        self._period = _Period()
        self._ends = now()

    @property
    def used(self) -> int:
        """Bytes that are counted."""
        return self._before.total + self._period.total

    def take(self, used: int) -> None:
        """Another version has had so many bytes kept. All of them count for as long as the last of them may live."""
        self._before, self._ends = _Period(total=used), self._now() + self._lasts()

    def admits(self, user_id: str, record: str, now: float) -> bool:
        """A request of this user gets a record under this key, unless the user has its share of records. ``now`` is
        the time.
        """
        if now >= self._ends:
            self._turn(now)
        before, period = self._before, self._period
        size = RECORD + len(record)
        used = period.records_of.get(user_id, 0) + size
        held = before.total + period.total
        if 2 * held >= self._size:
            holders = max(len(before.records_of), len(period.records_of))
            if used + before.records_of.get(user_id, 0) > share(held, self._size, holders):
                return False
        period.records_of[user_id] = used
        period.total += size
        return True

    def kept(self, body: bytes, service: str, user_id: str) -> bytes:
        """What is kept of this answer: itself, and otherwise :data:`TOMBSTONE`. ``service``: empty if it is unknown."""
        size = len(body)
        if size <= _INCLUDED:
            return body
        size += size // 4  # Redis's allocator rounds up by so much at most
        now = self._now()
        if now >= self._ends:
            self._turn(now)
        before, period, bound = self._before, self._period, self._size
        of_user = period.answers_of.get(user_id, 0)
        by_service = period.answers_by.get(service, 0)
        left = min(
            bound - before.total - period.total,
            bound // _ANSWERS - before.answers - period.answers,
            bound // _PER_SERVICE - before.answers_by.get(service, 0) - by_service,
            bound // _PER_USER - before.answers_of.get(user_id, 0) - of_user,
        )
        if size * _PER_ANSWER > left:
            self._counters.answers_too_large += 1
            return TOMBSTONE
        period.answers_of[user_id] = of_user + size
        period.answers_by[service] = by_service + size
        period.answers += size
        period.total += size
        return body

    def kept_late(self, key: str, body: bytes, user_id: str) -> bytes | None:
        """What is kept, under this key, of an answer to a request of another process; ``None`` for nothing."""
        if self.admits(user_id, key, self._now()):
            return self.kept(body, "", user_id)
        self._counters.answers_not_kept += 1
        return None

    def _turn(self, now: float) -> None:
        next_end = self._ends + self._lasts()
        self._before, self._period = (self._period if now < next_end else _Period()), _Period()
        self._ends = next_end if now < next_end else now + self._lasts()

"""What Redis keeps for requests that are sent again, by its bytes: their records, the answers in these, and parts of
answers. Asked by :mod:`kraftek.core.requests` and :mod:`kraftek.core.request_progress`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct

from kraftek.contract.errors import Code
from kraftek.contract.messages import ErrorPayload
from kraftek.contract.metrics import Counters
from kraftek.contract.rates import share

__all__ = ["INCLUDED", "LARGE", "PARTS", "RECORD", "SMALL", "TOMBSTONE", "AnswerBudget"]

RECORD = 420
"""Bytes that Redis needs for a record beside its key, with what it holds at first or with an answer of up to
:data:`INCLUDED` bytes, and for its place among the keys and the times when they end: up to 409 in Redis 7.0 and 396 in
6.2, by how many there are. ``MEMORY USAGE`` leaves the last two out."""

INCLUDED = 250
"""Bytes of an answer that are no more than what its record is counted with. To count each by itself would take a
microsecond."""

PARTS = 5_000
"""Bytes that Redis needs for the parts of an answer before there is the first one: it reserves 4 KiB."""

LARGE = 1024
"""Bytes of an answer that are looked up with others. A larger one is read by itself, when its user is not over budget:
a hundred requests that are sent again may have ten megabytes of answers."""

SMALL = 512
"""Bytes of an answer that this process does not count while it waits to be stored."""

_ANSWERS = 2
_PER_SERVICE = 4
_PER_USER = 8
"""Answers have at most a half of the budget, those of one service a quarter, and of one user an eighth."""

_FOR_PARTS = 4
"""Parts of answers have a quarter of it, one user alone the half of that."""

_PER_ANSWER = 8
"""One answer takes at most an eighth of what is left. So large ones are refused first, and nearly all of the budget
remains for small ones."""

TOMBSTONE = msgspec.json.encode(
    {"type": "error", "payload": ErrorPayload(Code.TIMEOUT, "it was done, and its answer is not kept")}
)
"""Kept in place of an answer that is not: the request does not run again."""


class _Answers(Struct):
    """Those that are counted in a time as long as the longest life of a record, and whose they are."""

    size: int = 0
    of_users: dict[str, int] = {}
    by_services: dict[str, int] = {}


class AnswerBudget:
    """``size``: bytes that Redis holds for requests of this process at a time. ``lasts``: seconds for which a record
    lives.

    Bytes are given back together, when the last of them is certainly gone: those of one period at the end of the next.
    So no entry is needed for each record, and what is counted is at least what Redis holds. Those of parts are given
    back when Redis has removed them. ``used``: bytes that are counted; ``parts``: those of parts.
    """

    def __init__(self, size: int, now: Callable[[], float], lasts: Callable[[], float], counters: Counters) -> None:
        self._size = size
        self._half = size // 2
        self._now = now
        self._lasts = lasts
        self._counters = counters
        # Of the period before this one, and of this one.
        self.used = self._used_before = self.parts = 0
        self._parts: dict[str, int] = {}
        self._records_before: dict[str, int] = {}
        self._records: dict[str, int] = {}
        self._answers_before = _Answers()
        self._answers = _Answers()
        self._ends = now()

    def take(self, used: int) -> None:
        """Another version has had so many bytes kept, without parts. They count for as long as the last may live."""
        self.used = self._used_before = used
        self._ends = self._now() + self._lasts()

    def admits(self, user_id: str, record: str, now: float) -> bool:
        """A request of this user gets a record under this key, unless the user has its share of records. ``now`` is
        the time.
        """
        if now >= self._ends:
            self._turn(now)
        size = RECORD + len(record)
        records = self._records
        used = records.get(user_id, 0) + size
        if self.used >= self._half and used + self._records_before.get(user_id, 0) > self._share():
            return False
        records[user_id] = used
        self.used += size
        return True

    def kept(self, body: bytes, service: str, user_id: str) -> bytes:
        """What is kept of this answer: itself, and otherwise :data:`TOMBSTONE`. ``service``: empty if it is unknown."""
        size = len(body)
        if size <= INCLUDED:
            return body
        size += size // 4  # Redis's allocator rounds up by so much at most
        now = self._now()
        if now >= self._ends:
            self._turn(now)
        before, period, bound = self._answers_before, self._answers, self._size
        of_user, by_service = period.of_users.get(user_id, 0), period.by_services.get(service, 0)
        left = min(
            bound - self.used,
            bound // _ANSWERS - before.size - period.size,
            bound // _PER_SERVICE - before.by_services.get(service, 0) - by_service,
            bound // _PER_USER - before.of_users.get(user_id, 0) - of_user,
        )
        if size * _PER_ANSWER > left:
            self._counters.answers_too_large += 1
            return TOMBSTONE
        period.of_users[user_id] = of_user + size
        period.by_services[service] = by_service + size
        period.size += size
        self.used += size
        return body

    def kept_late(self, key: str, body: bytes, user_id: str) -> bytes | None:
        """What is kept, under this key, of an answer to a request of another process; ``None`` for nothing."""
        if self.admits(user_id, key, self._now()):
            return self.kept(body, "", user_id)
        self._counters.answers_not_kept += 1
        return None

    def part(self, user_id: str, grows: int) -> bool:
        """What is kept of the parts of a user's answers grows by so many bytes, or shrinks. Whether it may."""
        used = self._parts.get(user_id, 0) + grows
        if used:
            self._parts[user_id] = used
        else:
            self._parts.pop(user_id, None)
        self.used += grows
        self.parts += grows
        within = used <= share(self.parts, self._size // _FOR_PARTS, len(self._parts))
        self._counters.parts_trimmed += grows >= 0 and not within
        return within

    def _share(self) -> int:
        return share(self.used, self._size, max(len(self._records), len(self._records_before)))

    def _turn(self, now: float) -> None:
        next_end = self._ends + self._lasts()
        if now < next_end:
            self._records_before, self._answers_before = self._records, self._answers
            self._used_before = self.used - self.parts - self._used_before
            self._ends = next_end
        else:
            self._records_before, self._answers_before = {}, _Answers()
            self._used_before = 0
            self._ends = now + self._lasts()
        self.used = self._used_before + self.parts
        self._records, self._answers = {}, _Answers()

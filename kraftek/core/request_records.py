"""Records of requests in Redis: their keys, and the answers that are stored in them.

Used by :mod:`kraftek.core.requests`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from math import ceil
from zlib import crc32

from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus, Undelivered
from kraftek.contract.lua import ForEach, Receipt
from kraftek.contract.messages import RequestId
from kraftek.contract.metrics import Counters
from kraftek.contract.names import REQUESTS
from kraftek.core.answer_budget import SMALL, TOMBSTONE

__all__ = ["AnswerStore", "AnsweredTogether", "record_key"]

_KEPT = 10_000
_KEPT_BYTES = 16 * 1024 * 1024
"""How many answers wait until Redis stores them, those of a second or so; and of what size the large ones together."""

_STORED_AT_ONCE = 100
"""Answers that one command stores in two thirds of a millisecond. A command for each would take Redis 3 µs more."""

_STORED_BYTES = 1024 * 1024
"""Answers of more than :data:`SMALL` bytes that one command stores: their size together, unless one is larger."""

_STORE_AFTER = 0.02
"""Seconds that an answer waits for others at most, before it is stored in Redis."""

_AT_ONCE = 1000
"""Of these are stored with one command, which takes Redis some ten milliseconds."""


def record_key(user_id: str, name: str, room_id: str | None, payload: Raw, request_id: RequestId) -> str:
    """The key of the record of a request: the same whenever it is sent again, and that of no other request."""
    records, kind = _keys_of(user_id, name, room_id)
    number = crc32(payload, kind)
    return f"{records}{number}:{request_id}" if isinstance(request_id, str) else f"{records}{number}#{request_id}"


@lru_cache(10_000)
def _keys_of(user_id: str, name: str, room_id: str | None) -> tuple[str, int]:
    return f"{REQUESTS}{len(user_id)}:{user_id}:", crc32(repr((name, room_id)).encode())


def _to_store(answered: list[tuple[str, bytes, Receipt]]) -> tuple[Sequence[Sequence[str]], Sequence[bytes]]:
    records, bodies, _ = zip(*answered, strict=True)
    return (records,), bodies


# Almost always the record holds no answer yet. Checking that first would cost one command of Redis more for each.
_STORE_ANSWER = ForEach.make(
    "record",
    "",
    _to_store,
    """
local known = redis.call('SET', record, body, 'XX', 'GET', 'KEEPTTL')
if known and known:sub(1, 1) ~= '?' then redis.call('SET', record, known, 'KEEPTTL') end
""",
)


class AnswerStore:
    """Stores answers in the records of their requests. The first answer to a request stands.

    What Redis does not store, because it is unavailable, refuses, or is lost before it says, is kept and tried again
    for ``lasts`` seconds.
    """

    def __init__(self, bus: IBus, clock: IReactorTime, counters: Counters, accounts: Accounts, lasts: float) -> None:
        self._bus = bus
        self._clock = clock
        self._counters = counters
        self._accounts = accounts
        self._lasts = lasts
        # By the record, with the time since when it is kept.
        self._kept: dict[str, tuple[bytes, float]] = {}
        self._large = 0  # bytes of the large ones
        accounts.shed_by("answers", self._shed)

    def store(self, answers: Sequence[tuple[str, bytes, Receipt]]) -> None:
        """Store each under the key of its record, in one command. Its receipt is called if that fails, and calls
        :meth:`keep`.
        """
        try:
            self._bus.run_all(_STORE_ANSWER, answers)
        except NotPublished:
            for _, _, receipt in answers:
                receipt(Undelivered.LOST)

    def store_late(self, key: str, body: bytes, lifetime: float) -> Deferred[object]:
        """Store the answer to a request of a socket whose gateway is not there under this key, for so many seconds."""
        # Duplicates here find it at the next sweep. Looking at once, for each request that such a gateway left behind,
        # would ask Redis about all the others each time: 8 million keys for 2,000 requests.
        return self._bus.call("SET", (key,), (body, "NX", "PX", ceil(lifetime * 1000)))

    def keep(self, record: str, body: bytes, since: float | None = None) -> None:
        """Redis did not store it; ``since`` it is kept, if that is not now. Of what is too large only that there was an
        answer is kept, and of too many the last are dropped.
        """
        if record in self._kept:
            return
        if len(self._kept) == _KEPT:
            self._counters.answers_not_kept += 1
            return
        if len(body) > SMALL and self._large + len(body) > _KEPT_BYTES:
            self._counters.answers_too_large += 1
            body = TOMBSTONE
        self._kept[record] = body, self._clock.seconds() if since is None else since
        self._count(len(body))

    def find(self, record: str) -> bytes | None:
        """The answer that Redis has not stored in this record."""
        kept = self._kept.get(record)
        return None if kept is None else kept[0]

    def give(self) -> list[tuple[str, bytes, float]]:
        """What is kept: each with its record, and since when."""
        return [(record, body, since) for record, (body, since) in self._kept.items()]

    def take(self, kept: Iterable[tuple[str, bytes, float]]) -> None:
        """Go on with what another version has kept."""
        for record, body, since in kept:
            self.keep(record, body, since)

    def sweep(self) -> None:
        """Try again to store what is kept."""
        if not self._kept or not self._bus.available:
            return
        messages: list[tuple[str, bytes, Receipt]] = []
        too_old = self._clock.seconds() - self._lasts
        while self._kept and len(messages) < _AT_ONCE:
            record = next(iter(self._kept))
            body, since = self._kept.pop(record)
            self._count(len(body), -1)
            if since > too_old:
                messages.append((record, body, partial(self._refused, record, body, since)))
            else:
                self._counters.answers_not_kept += 1
        if messages:
            self.store(messages)

    def _refused(self, record: str, body: bytes, since: float, _: int) -> None:
        self.keep(record, body, since)

    def _count(self, size: int, sign: int = 1) -> None:
        if size > SMALL:
            self._large += sign * size
            self._accounts.answers += sign * size

    def _shed(self, size: int) -> int:
        freed = 0
        for record, (body, since) in sorted(self._kept.items(), key=lambda kept: -len(kept[1][0])):
            if freed >= size or len(body) <= SMALL:
                break
            self._count(len(body), -1)
            self._kept[record] = TOMBSTONE, since
            self._counters.answers_too_large += 1
            freed += len(body)
        return freed


class AnsweredTogether:
    """Gathers answers for a moment, so that one command stores many of them."""

    def __init__(self, store: AnswerStore, clock: IReactorTime, accounts: Accounts) -> None:
        self._store = store
        self._clock = clock
        self._accounts = accounts
        self._answers: list[tuple[str, bytes, Receipt]] = []
        self._large, self._waits = 0, False  # bytes of the large ones

    def add(self, record: str, body: bytes, receipt: Receipt) -> None:
        """One more, as for :meth:`AnswerStore.store`."""
        size = len(body)
        if size > SMALL:
            if self._large and self._large + size > _STORED_BYTES:
                self.store()
            self._large += size
            self._accounts.answers += size
        self._answers.append((record, body, receipt))
        if len(self._answers) == _STORED_AT_ONCE:
            self.store()
        elif not self._waits:
            self._waits = True
            self._clock.callLater(_STORE_AFTER, self._store_soon)

    def store(self) -> None:
        """Store at once what there is."""
        answers, self._answers = self._answers, []
        self._accounts.answers -= self._large
        self._large = 0
        if answers:
            self._store.store(answers)

    def _store_soon(self) -> None:
        self._waits = False
        self.store()

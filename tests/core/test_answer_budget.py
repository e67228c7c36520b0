"""Bytes of answers are kept within bounds, of small answers first."""

from __future__ import annotations

import json

from twisted.internet.task import Clock

from kraftek.contract.metrics import Counters
from kraftek.core.answer_budget import SMALL, TOMBSTONE, AnswerBudget

SIZE = 1_000_000
LASTS = 130.0


class Subject:
    """A budget, and what it keeps."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.counters = Counters()
        self.budget = AnswerBudget(SIZE, self.clock.seconds, lambda: LASTS, self.counters)

    def keeps(self, size: int, service: str = "chat", user: str = "ann") -> bool:
        """Whether an answer of this size is kept."""
        body = b"x" * size
        kept = self.budget.kept(body, service, user)
        assert kept in (body, TOMBSTONE)
        return kept == body

    def fill(self, size: int, service: str = "chat", user: str = "ann") -> int:
        """How many bytes are kept of as many answers of this size as there may be."""
        number = 0
        while self.keeps(size, service, user):
            number += 1
        return number * size


def test_the_tombstone_is_a_small_answer() -> None:
    told = json.loads(TOMBSTONE)
    assert told == {
        "type": "error",
        "payload": {"code": "TIMEOUT", "message": "it was done, and its answer is not kept"},
    }
    assert len(TOMBSTONE) < SMALL


def test_an_answer_has_an_eighth_of_what_its_user_may_have() -> None:
    subject = Subject()
    assert not subject.keeps(SIZE // 64 + 1)
    assert subject.keeps(SIZE // 64)
    assert subject.counters.answers_too_large == 1
    assert subject.budget.used == SIZE // 64


def test_small_ones_come_first() -> None:
    subject = Subject()
    large = subject.fill(10_000)
    assert not subject.keeps(10_000)
    smaller = subject.fill(2_000)
    assert not subject.keeps(2_000)
    assert large + smaller < SIZE // 8
    assert subject.keeps(1_000)
    assert all(subject.keeps(SMALL) for _ in range(1000))
    assert subject.budget.used == large + smaller + 1_000


def test_neither_a_user_nor_a_service_has_all_of_it() -> None:
    subject = Subject()
    assert SIZE / 8 - 8 * 1000 <= subject.fill(1000) <= SIZE / 8
    users = [f"user{number}" for number in range(100)]
    chat = subject.budget.used + sum(subject.fill(1000, "chat", user) for user in users)
    assert SIZE / 2 - 8 * 1000 <= chat <= SIZE / 2
    assert not subject.keeps(1000, "chat", "new")
    assert subject.keeps(1000, "mail", "new")
    others = sum(subject.fill(1000, service, user) for user in users for service in ("mail", "notes"))
    assert SIZE - 8 * 1000 <= chat + others <= SIZE
    assert subject.budget.used <= SIZE


def test_bytes_are_given_back_when_they_are_gone() -> None:
    subject = Subject()
    first = subject.fill(1000)
    subject.clock.advance(LASTS - 1)
    assert not subject.keeps(1000)
    subject.clock.advance(LASTS - 1)
    assert not subject.keeps(1000)
    subject.clock.advance(2)
    assert subject.fill(1000) == first
    subject.clock.advance(10 * LASTS)
    assert subject.fill(1000) == first
    assert subject.budget.used == first


def test_no_more_is_kept_at_a_time_whatever_comes_when() -> None:
    subject = Subject()
    kept: list[float] = []
    for _ in range(3000):
        subject.clock.advance(0.3)
        now = subject.clock.seconds()
        kept += [now] * (subject.fill(1000) // 1000)
        assert 1000 * sum(now - at < LASTS for at in kept) <= SIZE / 8
    assert len(kept) > 3 * SIZE / 8 / 1000

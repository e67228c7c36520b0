"""Requests and answers are kept within bounds: of users each a share, of answers the small ones first."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw
from twisted.internet.task import Clock

from kraftek.contract.messages import PARTS_KEPT
from kraftek.contract.metrics import Counters
from kraftek.contract.names import new_gateway_id, new_socket_id, parts_key
from kraftek.core.answer_budget import INCLUDED, PARTS, RECORD, TOMBSTONE, AnswerBudget
from kraftek.core.request_progress import counted
from kraftek.core.request_records import record_key
from kraftek.service.progress import PROGRESS
from tests.support.redis_server import PrivateRedis, oldest_redis_server

SIZE = 1_000_000
LASTS = 130.0


def used_memory(client: Any) -> int:
    """But for what clients' buffers take for a while."""
    memory = client.info("memory")
    return int(memory["used_memory"] - memory["mem_clients_normal"])


class Subject:
    """A budget, and what it keeps."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.counters = Counters()
        self.budget = AnswerBudget(SIZE, self.clock.seconds, lambda: LASTS, self.counters)

    def keeps(self, size: int, service: str = "chat", user: str = "ann") -> bool:
        """Whether an answer is kept that is counted with this size: its own, and a quarter."""
        body = b"x" * (size * 4 // 5)
        kept = self.budget.kept(body, service, user)
        assert kept in (body, TOMBSTONE)
        return kept == body

    def asks(self, user: str = "ann", record: str = "r") -> bool:
        """Whether a request gets its record."""
        return self.budget.admits(user, record, self.clock.seconds())

    def ask(self, user: str = "ann") -> int:
        """How many records one user gets, until it has its share."""
        number = 0
        while self.asks(user):
            number += 1
        return number

    def fill(self, size: int, service: str = "chat", user: str = "ann") -> int:
        """With how many bytes as many answers of this size as may be kept are counted."""
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
    assert len(TOMBSTONE) < INCLUDED


def test_what_is_no_longer_than_that_is_always_kept_and_part_of_the_record() -> None:
    subject = Subject()
    subject.fill(1000)
    assert all(subject.keeps(INCLUDED) for _ in range(10_000))
    assert subject.budget.used <= SIZE // 8
    assert subject.counters.answers_too_large == 1


def test_an_answer_has_an_eighth_of_what_its_user_may_have() -> None:
    subject = Subject()
    assert not subject.keeps(SIZE // 64 + 5)
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
    assert subject.keeps(len(TOMBSTONE))
    assert subject.budget.used == large + smaller + 1_000


def test_neither_a_user_nor_a_service_has_all_of_it() -> None:
    subject = Subject()
    assert SIZE / 8 - 8 * 1000 <= subject.fill(1000) <= SIZE / 8
    users = [f"user{number}" for number in range(100)]
    chat = subject.budget.used + sum(subject.fill(1000, "chat", user) for user in users)
    assert SIZE / 4 - 8 * 1000 <= chat <= SIZE / 4
    assert not subject.keeps(1000, "chat", "new")
    assert subject.keeps(1000, "mail", "new")
    others = sum(subject.fill(1000, service, user) for user in users for service in ("mail", "notes"))
    assert SIZE / 2 - 8 * 1000 <= chat + others <= SIZE / 2
    assert subject.budget.used == chat + 1000 + others


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


# Records.


@pytest.mark.parametrize("oldest", [False, True], ids=["", "6.2"])
def test_redis_needs_no_more_than_what_is_counted(oldest: bool) -> None:
    binary = oldest_redis_server() if oldest else None
    if oldest and binary is None:
        pytest.skip("no Redis 6.2 for this platform: the other server is tested")
    socket = f"?{new_socket_id(new_gateway_id())}"
    for body in (b"x" * INCLUDED, TOMBSTONE, b"x" * 700, b"x" * 2100):
        server = PrivateRedis(binary)
        server.start()
        try:
            with server.client() as client:
                before = used_memory(client)
                budget = AnswerBudget(10**9, lambda: 0.0, lambda: LASTS, Counters())
                pipeline = client.pipeline(transaction=False)
                # As many as make the tables of keys large in proportion: a little more than 2 ** 14.
                for number in range(17_000):
                    record = record_key(f"user{number % 100}", "chat:note:add", "r1", Raw(b"{}"), f"{number:032}")
                    assert budget.admits("ann", record, 0.0)
                    kept = budget.kept(body, f"service{number}", f"user{number}")
                    pipeline.set(record, socket, nx=True, px=130_000)
                    pipeline.set(record, kept, xx=True, keepttl=True)
                pipeline.execute()
                grown = used_memory(client) - before
            counted = budget.used
            assert 0.5 * counted < grown <= counted, f"{len(body)}: {grown / 17_000} bytes, counted {counted / 17_000}"
        finally:
            server.close()


def test_a_record_takes_what_it_takes_in_redis_with_its_key() -> None:
    subject = Subject()
    assert subject.asks(record="request:3:ann:123:q")
    assert subject.budget.used == RECORD + 19


def test_a_user_alone_has_half_and_there_is_room_for_others() -> None:
    subject = Subject()
    most = SIZE // (RECORD + 1)
    assert subject.ask() == pytest.approx(most / 2, abs=2)
    assert subject.ask("bob") == pytest.approx(most / 6, abs=2), "half of what is left, his own included"
    assert not subject.asks()
    for number in range(20):
        assert subject.ask(f"user{number}") > 0
    assert subject.budget.used <= SIZE


def test_records_are_given_back_when_they_are_gone() -> None:
    subject = Subject()
    first = subject.ask()
    subject.clock.advance(LASTS - 1)
    assert not subject.asks()
    subject.clock.advance(LASTS - 1)
    assert not subject.asks()
    subject.clock.advance(2)
    assert subject.ask() == first


def test_large_answers_leave_room_for_records() -> None:
    subject = Subject()
    for number in range(100):
        subject.fill(1000, f"service{number % 3}", f"user{number}")
    assert subject.ask("bob") * (RECORD + 1) > SIZE / 4


def test_records_leave_room_for_small_answers() -> None:
    subject = Subject()
    for number in range(50):
        subject.ask(f"user{number}")
    assert not subject.keeps(5000)
    assert subject.keeps(len(TOMBSTONE))
    assert subject.budget.used <= SIZE


def test_a_late_answer_has_a_record_of_its_own_or_is_not_kept() -> None:
    subject = Subject()
    body = b"x" * 1000
    assert subject.budget.kept_late("key", body, "ann") == body
    assert subject.budget.used == RECORD + 3 + 1250
    subject.ask()
    assert subject.budget.kept_late("key", body, "ann") is None
    assert subject.counters.answers_not_kept == 1


def test_what_another_version_has_kept_counts() -> None:
    subject, other = Subject(), Subject()
    other.ask()
    subject.budget.take(other.budget.used)
    assert subject.budget.used == other.budget.used
    assert subject.ask("bob") * (RECORD + 1) == pytest.approx(SIZE / 4, abs=1000)
    subject.clock.advance(LASTS)
    assert subject.budget.used <= SIZE


# Parts of answers.


def test_parts_have_a_quarter_and_a_user_alone_the_half_of_that() -> None:
    subject = Subject()
    budget = subject.budget
    assert budget.part("ann", SIZE // 8)
    assert not budget.part("ann", 1)
    assert budget.part("bob", SIZE // 24 - 10), "a third of what is left, his own included"
    assert not budget.part("bob", SIZE // 24)
    assert (budget.parts, budget.used) == (budget.parts, budget.parts)


def test_parts_are_given_back_when_they_are_gone() -> None:
    subject = Subject()
    budget = subject.budget
    first = subject.ask()
    records = budget.used
    assert budget.part("ann", 10_000)
    subject.clock.advance(LASTS + 1)
    assert not subject.asks("ann")
    assert budget.used == records + 10_000
    budget.part("ann", -10_000)
    assert (budget.parts, budget.used) == (0, records)
    budget.part("ann", 10_000)
    subject.clock.advance(LASTS)
    assert first - 50 < subject.ask() <= first
    subject.clock.advance(10 * LASTS)
    assert subject.asks()
    assert budget.used == 10_000 + RECORD + 1


def test_parts_leave_room_for_records_and_take_some() -> None:
    subject = Subject()
    alone = subject.ask()
    other = Subject()
    other.budget.part("bob", SIZE // 8)
    assert alone - SIZE // 8 // RECORD - 2 <= other.ask() < alone


@pytest.mark.parametrize("size", [1, 20, 300, 4100, 5000])
def test_redis_needs_no_more_for_parts_than_what_is_counted(size: int) -> None:
    server = PrivateRedis()
    server.start()
    requests, parts = 200, min(200, 400_000 // size)
    try:
        with server.client() as client:
            progress = client.register_script(PROGRESS.source)
            progress(["warm"], ["x", 1, "p", "m", "c", PARTS_KEPT, 130_000, 1])
            before = used_memory(client)
            pipeline = client.pipeline(transaction=False)
            for request in range(requests):
                key = parts_key(new_socket_id(new_gateway_id()), f"{request:032}")
                for number in range(1, parts + 1):
                    words = ["0123abcd", number, "x" * size, "m", "c", PARTS_KEPT, 130_000, 1]
                    pipeline.evalsha(progress.sha, 1, key, *words)
                pipeline.execute()
            grown = used_memory(client) - before
    finally:
        server.close()
    most = requests * (PARTS + min(parts * counted(size), counted(PARTS_KEPT)))
    assert 0.5 * most < grown <= most, f"{grown / requests} bytes, counted {most / requests}"

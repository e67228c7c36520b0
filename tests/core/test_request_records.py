"""Answers that Redis did not store are kept, within bounds, and stored when it does."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from kraftek.contract.accounts import Accounts
from kraftek.contract.interfaces import Undelivered
from kraftek.contract.metrics import Counters
from kraftek.core import request_records
from kraftek.core.answer_budget import SMALL, TOMBSTONE
from kraftek.core.request_records import AnsweredTogether, AnswerStore
from tests.support.fakes import FakeBus

ANSWER = b'{"type":"r"}'
LARGE = b'{"type":"large","payload":"%b"}' % (SMALL * b"x")


class Subject:
    """A store, its bus, and what is to be stored through it."""

    def __init__(self) -> None:
        self.bus = FakeBus()
        self.clock = Clock()
        self.counters = Counters()
        self.accounts = Accounts()
        self.store = AnswerStore(self.bus, self.clock, self.counters, self.accounts, 120.0)

    def answer(self, *records: str, body: bytes = ANSWER) -> None:
        """Answers to these requests are to be stored."""

        def receipt(record: str) -> Any:
            return lambda _: self.store.keep(record, body)

        self.store.store([(record, body, receipt(record)) for record in records])

    def stored(self) -> list[str]:
        """The records whose answers Redis is told to store, which it has not done yet."""
        return [call.keys[0] for call in self.bus.calls]

    def say(self, result: int | None) -> None:
        """Redis answers all of that."""
        calls, self.bus.calls = self.bus.calls, []
        for call in calls:
            if result is not None:
                call.reply.callback(result)


def test_redis_is_away() -> None:
    subject = Subject()
    subject.bus.down()
    subject.answer("a", "b")
    assert subject.store.find("a") == ANSWER
    subject.store.sweep()
    subject.bus.up()
    subject.store.sweep()
    assert subject.stored() == ["a", "b"]
    subject.say(None)
    subject.store.sweep()
    assert subject.stored() == []
    assert subject.store.find("a") is None


def test_redis_is_lost_before_it_says() -> None:
    subject = Subject()
    subject.answer("a")
    subject.bus.down()
    assert subject.store.find("a") == ANSWER
    subject.bus.up()
    subject.store.sweep()
    assert subject.stored() == ["a"]


def test_redis_refuses_for_a_while() -> None:
    subject = Subject()
    subject.answer("a")
    for _ in range(3):
        subject.say(Undelivered.REFUSED)
        assert subject.store.find("a") == ANSWER
        subject.clock.advance(0.25)
        subject.store.sweep()
    assert subject.stored() == ["a"]
    assert subject.counters.answers_not_kept == 0


def test_redis_refuses_for_too_long() -> None:
    subject = Subject()
    subject.answer("a")
    subject.say(Undelivered.REFUSED)
    subject.clock.advance(60)
    subject.store.sweep()
    subject.say(Undelivered.REFUSED)
    subject.clock.advance(60)
    subject.store.sweep()
    assert subject.stored() == []
    assert subject.store.find("a") is None
    assert subject.counters.answers_not_kept == 1


def test_the_first_answer_stands() -> None:
    subject = Subject()
    subject.bus.down()
    subject.answer("a", body=b"first")
    subject.answer("a", body=b"second")
    assert subject.store.find("a") == b"first"
    assert subject.counters.answers_not_kept == 0


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_records, "_KEPT", 2)
    subject = Subject()
    subject.bus.down()
    subject.answer("a", "b", "c")
    assert [record for record in "abc" if subject.store.find(record)] == ["a", "b"]
    assert subject.counters.answers_not_kept == 1
    subject.bus.up()
    subject.store.sweep()
    subject.bus.down()
    assert [record for record in "abc" if subject.store.find(record)] == ["a", "b"]
    assert subject.counters.answers_not_kept == 1


def test_of_too_large_ones_only_that_they_were_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_records, "_KEPT_BYTES", 2 * len(LARGE))
    subject = Subject()
    subject.bus.down()
    subject.answer("a", "b", "c", body=LARGE)
    subject.answer("d")
    assert [subject.store.find(record) for record in "abcd"] == [LARGE, LARGE, TOMBSTONE, ANSWER]
    assert (subject.counters.answers_too_large, subject.counters.answers_not_kept) == (1, 0)
    assert subject.accounts.answers == 2 * len(LARGE)
    subject.bus.up()
    subject.store.sweep()
    assert subject.accounts.answers == 0
    subject.bus.down()
    assert [subject.store.find(record) for record in "abcd"] == [LARGE, LARGE, TOMBSTONE, ANSWER]
    assert subject.accounts.answers == 2 * len(LARGE)
    subject.clock.advance(121)
    subject.bus.up()
    subject.store.sweep()
    assert subject.accounts.answers == 0


def test_the_largest_are_given_up_first() -> None:
    subject = Subject()
    subject.bus.down()
    larger = LARGE.replace(b"x", b"xx")
    subject.answer("a", "b", body=LARGE)
    subject.answer("c", body=larger)
    subject.answer("d")
    assert subject.accounts.shed(1) == len(larger)
    assert [subject.store.find(record) for record in "abcd"] == [LARGE, LARGE, TOMBSTONE, ANSWER]
    assert subject.accounts.shed(10**9) == 2 * len(LARGE)
    assert [subject.store.find(record) for record in "abcd"] == [TOMBSTONE, TOMBSTONE, TOMBSTONE, ANSWER]
    assert subject.accounts.answers == 0
    assert subject.counters.answers_too_large == 3


def test_many_are_stored_by_and_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_records, "_AT_ONCE", 2)
    subject = Subject()
    subject.bus.down()
    subject.answer("a", "b", "c")
    subject.bus.up()
    subject.store.sweep()
    assert subject.stored() == ["a", "b"]
    subject.store.sweep()
    assert subject.stored() == ["a", "b", "c"]


def test_answers_of_a_moment_are_stored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or as soon as there are many, or large ones; an answer that is larger than all these by itself."""
    monkeypatch.setattr(request_records, "_STORED_AT_ONCE", 3)
    monkeypatch.setattr(request_records, "_STORED_BYTES", 2 * len(LARGE))
    subject = Subject()
    stored: list[list[str]] = []
    monkeypatch.setattr(subject.store, "store", lambda answers: stored.append([record for record, _, _ in answers]))
    together = AnsweredTogether(subject.store, subject.clock, subject.accounts)
    for record in ("a", "b"):
        together.add(record, ANSWER, lambda _: None)
    assert stored == []
    subject.clock.advance(0.02)
    assert stored == [["a", "b"]]
    for record in ("c", "d", "e", "f"):
        together.add(record, ANSWER, lambda _: None)
    assert stored[1:] == [["c", "d", "e"]]
    together.add("g", LARGE, lambda _: None)
    assert subject.accounts.answers == len(LARGE)
    together.add("h", 2 * LARGE, lambda _: None)
    assert stored[2:] == [["f", "g"]]
    together.store()
    assert stored[3:] == [["h"]]
    assert subject.accounts.answers == 0
    subject.clock.advance(1.0)
    assert len(stored) == 4

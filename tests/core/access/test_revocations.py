"""What Redis has not forgotten is tried again, so many at a time."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from kraftek.core.access import revocations
from kraftek.core.access.redis import CLEAR, SharedAnswers
from kraftek.core.access.revocations import AGAIN, Revocations
from tests.support.fakes import FakeBus


class Refused(Exception):  # noqa: N818  # as the bus names what Redis refuses
    """Redis refuses a command."""


class Subject:
    """Revocations that were heard while Redis refused to forget what it had cached."""

    def __init__(self, users: int) -> None:
        self.bus = FakeBus()
        self.clock = Clock()
        shared = SharedAnswers(self.bus, self.clock, self.clock.seconds, patience=3.0, memory=60.0)
        self.revocations = Revocations(shared, 1000, self.clock, lambda *_: None, lambda: None)
        for number in range(users):
            self.revocations.add(f"user{number}", None)
        self.say(Refused("READONLY"))
        assert len(self.revocations) == users

    def asked(self) -> int:
        """How many clearings Redis is asked for now."""
        assert all(call.command is CLEAR for call in self.bus.calls)
        return len(self.bus.calls)

    def say(self, answer: Any) -> None:
        """Redis answers what it was asked until now."""
        calls, self.bus.calls = self.bus.calls, []
        for call in calls:
            if isinstance(answer, Exception):
                call.reply.errback(answer)
            else:
                call.reply.callback(answer)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocations, "AT_ONCE", 10)


def test_all_are_done_so_many_at_a_time() -> None:
    subject = Subject(35)
    subject.revocations.clear()
    for left in (35, 25, 15, 5):
        assert len(subject.revocations) == left
        assert subject.asked() == min(10, left)
        subject.say([])
    assert not subject.revocations
    assert subject.asked() == 0


def test_while_redis_refuses_some_are_tried_each_second() -> None:
    subject = Subject(35)
    subject.revocations.clear()
    for number in (10, 10, 10, 5, 10):
        assert subject.asked() == number
        subject.say(Refused("READONLY"))
        assert subject.asked() == 0
        subject.revocations.sweep()
        assert subject.asked() == 0
        subject.clock.advance(AGAIN)
        subject.revocations.sweep()
    assert len(subject.revocations) == 35
    for _ in range(8):
        subject.say([])
        subject.revocations.sweep()
        subject.clock.advance(AGAIN)
    assert not subject.revocations


def test_without_redis_no_more_is_tried_than_at_a_time() -> None:
    subject = Subject(35)
    subject.revocations.clear()
    subject.bus.down()
    assert len(subject.revocations) == 35
    subject.clock.advance(AGAIN)
    subject.revocations.sweep()
    subject.bus.up()
    subject.revocations.clear()
    assert subject.asked() == 10
    for _ in range(4):
        subject.say([])
    assert not subject.revocations


def test_one_that_was_done_meanwhile_is_not_tried_again() -> None:
    subject = Subject(25)
    subject.revocations.clear()
    subject.revocations.add("user24", None)
    assert subject.asked() == 11
    subject.bus.calls.pop().reply.callback([])
    assert not subject.revocations.concern("user24", None)
    for _ in range(3):
        subject.say([])
    assert not subject.revocations

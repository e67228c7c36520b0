"""Answers in parts and cancelled requests: each hole is found, and none where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.ledger import REDIS, Ledger
from tests.chaos.talks import ENDS, Talks


class Conversation:
    """One request of three parts, to the service ``desk``."""

    def __init__(self, *parts: int, outcome: str | None = "ok", done: int = 1, service: str = "desk") -> None:
        self.ledger = Ledger(processes={"g": "gateway-0"})
        self.talks = Talks(self.ledger)
        self._done = {f"{service} k": done}
        self.talks.asked("k", service, "g", 3, 100.0)
        self.runs("begins", 100.1)
        for number in parts:
            self.part(number)
        if outcome is not None:
            self.runs("ends", 102.0)
            self.talks.settled("k", outcome, 102.1)

    def part(self, number: int, run: str = "r", at: float = 101.0) -> None:
        self.talks.part("k", run, number, {"n": number}, at)

    def runs(self, how: str, at: float, run: str = "r") -> None:
        self.talks.ran({"payload": "k", "run": run, "how": how, "at": at})

    def holes(self) -> list[str]:
        self.talks.judge(self._done)
        return self.ledger.holes


def test_an_answer_in_parts_is_no_hole() -> None:
    assert Conversation(1, 2, 3).holes() == []
    begun_anew = Conversation(1, 2, outcome=None)
    begun_anew.runs("begins", 101.5, "s")
    for number in (1, 2, 3):
        begun_anew.part(number, "s")
    begun_anew.talks.settled("k", "ok", 103.0)
    assert begun_anew.holes() == []


@pytest.mark.parametrize(
    ("parts", "hole"),
    [
        ((1, 2), "('r', 2) was the last"),
        ((), "none was the last"),
        ((1, 3), "gets part 3 of r at 101.000, after 1 of r"),
        ((2, 3), "gets part 2 of r at 101.000, after 0 of "),
        ((1, 2, 2, 3), "gets part 2 of r at 101.000, after 2 of r"),
    ],
)
def test_parts_come_in_order_and_all(parts: tuple[int, ...], hole: str) -> None:
    (found,) = Conversation(*parts).holes()
    assert hole in found


def test_parts_may_be_missing_after_a_trouble_and_never_come_twice() -> None:
    for parts, holes in (((1, 3), 0), ((1, 1), 1)):
        conversation = Conversation(*parts)
        conversation.ledger.troubles.add(REDIS, 99.0, 99.5)
        assert len(conversation.holes()) == holes


def test_a_part_is_what_its_number_says() -> None:
    conversation = Conversation(1, 2, outcome=None)
    conversation.talks.part("k", "r", 3, {"n": 2}, 101.0)
    assert "it is {'n': 2}" in conversation.ledger.holes[0]


@pytest.mark.parametrize(
    ("outcome", "done", "service", "hole"),
    [
        (None, 1, "desk", "no answer"),
        ("TIMEOUT", 1, "desk", "nothing was wrong"),
        ("ok", 0, "desk", "nobody has done it"),
        ("ok", 2, "desk", "done 2 times"),
        ("CANCELLED", 0, "desk", "nobody had cancelled it"),
    ],
)
def test_a_request_leaves_a_hole(outcome: str | None, done: int, service: str, hole: str) -> None:
    (found, *_) = Conversation(1, 2, 3, outcome=outcome, done=done, service=service).holes()
    assert hole in found


def test_over_pubsub_a_request_is_handled_once() -> None:
    conversation = Conversation(1, 2, 3, service="chat")
    conversation.runs("begins", 105.0, "s")
    (found,) = conversation.holes()
    assert "handled 2 times" in found


def cancelled(*, at: float = 100.5, ends: float | None = 100.6, outcome: str = "CANCELLED") -> Conversation:
    conversation = Conversation(1, outcome=None, done=0)
    conversation.talks.cancelled("k", at)
    if ends is not None:
        conversation.runs("is cancelled", ends)
    conversation.talks.settled("k", outcome, at + 0.1)
    return conversation


def test_a_cancelled_request_ends_its_handler() -> None:
    conversation = cancelled()
    assert conversation.holes() == []
    assert conversation.ledger.seen["handlers that ended when cancelled"] == 1


@pytest.mark.parametrize("ends", [None, 100.6 + ENDS])
def test_a_handler_that_goes_on_is_a_hole(ends: float | None) -> None:
    (found,) = cancelled(ends=ends).holes()
    assert "cancelled at 100.500, and a handler ran from 100.100 to" in found
    excused = cancelled(ends=ends)
    excused.ledger.troubles.add("desk-1", 95.0, 95.5)
    excused.ledger.troubles.add("chat-0", 100.0, 101.0)
    assert excused.holes() == []
    other = cancelled(ends=ends)
    other.ledger.troubles.add("chat-0", 100.0, 101.0)
    assert len(other.holes()) == 1


def test_a_handler_that_begins_after_the_cancel_is_a_hole() -> None:
    conversation = cancelled()
    conversation.runs("begins", 101.0, "s")
    (found,) = conversation.holes()
    assert "a handler ran from 101.000 to inf" in found


def test_who_asks_again_is_told_the_same() -> None:
    conversation = cancelled()
    conversation.talks.settled("k", "CANCELLED", 103.0)
    assert conversation.holes() == []
    conversation.talks.settled("k", "ok", 104.0)
    (found,) = conversation.holes()
    assert found == "k is answered ok at 104.000, and was CANCELLED before"


def test_an_answer_long_after_the_cancel_is_a_hole() -> None:
    conversation = Conversation(1, 2, 3, outcome=None)
    conversation.talks.cancelled("k", 100.5)
    conversation.runs("ends", 101.0)
    conversation.talks.settled("k", "ok", 100.6 + ENDS)
    (found,) = conversation.holes()
    assert "and it was cancelled at 100.500" in found


def test_unless_the_handler_had_ended_before() -> None:
    """The client came back with its cancel, and the answer was there."""
    conversation = Conversation(1, 2, 3, outcome=None)
    conversation.runs("ends", 101.0)
    conversation.talks.cancelled("k", 101.1)
    conversation.talks.settled("k", "ok", 102.0 + ENDS)
    assert conversation.holes() == []


def test_what_was_done_may_be_lost_later() -> None:
    conversation = Conversation(1, 2, 3, done=0)
    conversation.ledger.lost_data(500.0, 501.0)
    assert conversation.holes() == []


def test_who_has_cancelled_by_its_library_hears_nothing_more() -> None:
    conversation = Conversation(1, outcome=None, done=0)
    conversation.talks.cancelled("k", 100.5)
    conversation.talks.given_up("k")
    conversation.runs("is cancelled", 100.6)
    assert conversation.holes() == []


def test_a_handler_that_nobody_has_asked_for_is_a_hole() -> None:
    conversation = Conversation(1, 2, 3)
    line: dict[str, Any] = {"payload": "other", "run": "s", "how": "begins", "at": 1.0}
    conversation.talks.ran(line)
    assert len(conversation.holes()) == 1

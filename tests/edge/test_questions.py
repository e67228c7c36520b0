"""Whose question is asked next: rotation, shares, bounds, and what is cancelled."""

from __future__ import annotations

import pytest
from twisted.internet.defer import CancelledError, Deferred

from kraftek.contract.errors import Code, Limit, PeerError
from kraftek.edge.questions import AT_ONCE, FullError, Questions
from tests.support.iterations import Iterations


class Desk:
    """Asks, and notes in which order it is let to. Each question is of an iteration of its own."""

    def __init__(self, at_a_time: int, waiting: int = 1000) -> None:
        self.clock = Iterations()
        self.questions = Questions(at_a_time, waiting, self.clock)
        self.asked: list[str] = []

    def ask(self, turn: str) -> Deferred[None]:
        question = self.ask_as_well(turn)
        self.clock.advance(0)
        return question

    def ask_as_well(self, turn: str) -> Deferred[None]:
        """In the same iteration as what follows."""
        return self.questions.begin(turn).addCallback(lambda _: self.asked.append(turn))

    def ask_all(self, turns: str) -> None:
        for turn in turns:
            self.ask(turn)

    def end(self, turns: str) -> str:
        """These questions are answered; returns whose are asked then."""
        self.asked.clear()
        for turn in turns:
            self.questions.end(turn)
            self.clock.advance(0)
        return "".join(self.asked)


def test_one_alone_is_asked_about_half_as_often_at_a_time() -> None:
    desk = Desk(4)
    desk.ask_all("aaaa")
    assert desk.asked == ["a", "a"]
    desk.ask_all("bc")
    assert desk.asked == ["a", "a", "b", "c"]
    assert len(desk.questions) == 2


def test_those_that_wait_are_asked_in_rotation() -> None:
    desk = Desk(2)
    desk.ask_all("xy" + "aaaa" + "bb" + "c")
    assert desk.asked == ["x", "y"]
    assert desk.end("x") + desk.end("y") + desk.end("a") + desk.end("b") == "abca"
    assert desk.end("c") + desk.end("a") == "ba"
    # It is alone now.
    assert (desk.end("b"), desk.end("a")) == ("", "a")


def test_a_few_are_begun_in_each_iteration() -> None:
    desk = Desk(1000)
    for number in range(3 * AT_ONCE):
        desk.ask_as_well(f"user {number}")
    assert (len(desk.asked), len(desk.questions)) == (AT_ONCE, 2 * AT_ONCE)
    desk.ask_as_well("late")
    for number in (2, 3):
        desk.clock.iterate()
        assert len(desk.asked) == number * AT_ONCE
    desk.clock.iterate()
    assert desk.asked == [*(f"user {number}" for number in range(3 * AT_ONCE)), "late"]
    desk.clock.iterate()
    assert not desk.clock.getDelayedCalls()


def test_what_ends_in_an_iteration_begins_no_more_in_it() -> None:
    desk = Desk(2 * AT_ONCE)
    for number in range(3 * AT_ONCE):
        desk.ask_as_well(f"user {number}")
    for number in range(AT_ONCE):
        desk.questions.end(f"user {number}")
    assert len(desk.asked) == AT_ONCE
    desk.clock.iterate()
    assert len(desk.asked) == 2 * AT_ONCE


def test_eight_hundred_rooms_of_one_user_keep_nobody_waiting() -> None:
    desk = Desk(100, 10_000)
    desk.ask_all("a" * 800)
    assert len(desk.asked) == 50
    for other in "bcdefg":
        desk.ask(other)
        assert desk.asked[-1] == other
    # The flooder's next one is asked when there is room for others again.
    assert desk.end("aaaaaaa") == "a"


def test_a_question_without_a_turn_may_have_all() -> None:
    desk = Desk(2, 1)
    for _ in range(3):
        desk.ask("")
    assert desk.asked == ["", ""]
    with pytest.raises(FullError):
        desk.ask("")


def test_one_alone_may_fill_half_of_what_waits() -> None:
    desk = Desk(1, 4)
    desk.ask_all("aaa")
    with pytest.raises(PeerError) as refused:
        desk.ask("a")
    assert (refused.value.code, refused.value.limit, refused.value.retry_after) == (
        Code.RATE_LIMITED,
        Limit.SHARE,
        1.0,
    )
    desk.ask_all("bc")
    with pytest.raises(FullError):
        desk.ask("d")
    assert desk.end("a") == "a"


def test_what_is_cancelled_is_not_asked_and_makes_room() -> None:
    desk = Desk(1, 1)
    desk.ask("a")
    waiting = desk.ask("b")
    waiting.addErrback(lambda failure: failure.trap(CancelledError))
    waiting.cancel()
    assert len(desk.questions) == 0
    desk.ask("c")
    assert desk.end("a") == "c"
    assert desk.end("c") == ""
    desk.ask("d")
    assert desk.asked == ["d"]


def test_any_number_of_questions_may_end_at_once() -> None:
    desk = Desk(1, 100_000)
    desk.ask("")
    ended: list[int] = []

    def end(_: None, number: int) -> None:
        ended.append(number)
        desk.questions.end("")

    for number in range(5000):
        desk.questions.begin("").addCallback(end, number)
    desk.questions.end("")
    desk.clock.advance(0)
    assert ended == [*range(5000)]

"""Turns: who waits goes on a step at a time, in rotation, and all together have their share of an iteration."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from kraftek.contract.accounts import Accounts
from kraftek.contract.turns import Turns
from tests.support.iterations import Iterations


class Work:
    """So many steps, each of which takes ``seconds``. ``done`` is shared by all: their names, step by step."""

    def __init__(self, clock: Iterations, done: list[str], name: str, steps: int, seconds: float = 0.0005) -> None:
        self.name, self.steps, self.rested, self.ended = name, steps, 0, False
        self._clock, self._done, self._seconds = clock, done, seconds

    def step(self) -> bool:
        if not self.steps:
            return False
        self._clock.take(self._seconds)
        self._done.append(self.name)
        self.steps -= 1
        return self.steps > 0

    def rest(self) -> None:
        self.rested += 1

    def failed(self) -> None:
        self.ended = True


class Broken(Work):
    def step(self) -> bool:
        raise ZeroDivisionError


class Slowed:
    """Notes when it is read again."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.at: list[float] = []

    def unslowed(self) -> None:
        self.at.append(self.clock.seconds())


@pytest.fixture
def clock() -> Iterations:
    return Iterations()


def test_what_takes_a_moment_is_done_at_once(clock: Iterations) -> None:
    done: list[str] = []
    Turns(clock, Accounts()).start(Work(clock, done, "a", 2))
    assert done == ["a", "a"]
    assert clock.getDelayedCalls() == []


def test_the_rest_has_its_share_of_each_iteration(clock: Iterations) -> None:
    done: list[str] = []
    turns = Turns(clock, Accounts())
    work = Work(clock, done, "a", 25)
    turns.start(work)
    shares = [len(done)]
    while clock.getDelayedCalls():
        before = len(done)
        clock.iterate()
        shares.append(len(done) - before)
    assert shares == [2, 8, 8, 7, 0]
    assert work.rested == 1


def test_all_together_have_it_in_rotation(clock: Iterations) -> None:
    done: list[str] = []
    turns = Turns(clock, Accounts())
    for name in "abc":
        turns.start(Work(clock, done, name, 5))
    assert done == ["a", "a"]  # while it waits nobody else begins at once
    clock.iterate()
    assert "".join(done[2:]) == "bbccabca"  # each has what takes a moment before the others go on
    clock.iterate()
    assert "".join(done[10:]) == "bcabc"


def test_who_sends_little_waits_for_nobody_who_sends_much(clock: Iterations) -> None:
    """It waited for a step of each of them, which of 1,000 took 125 iterations."""
    done: list[str] = []
    turns = Turns(clock, Accounts())
    for _ in range(1000):
        turns.add(Work(clock, done, "much", 100))
    clock.iterate()
    assert done == ["much"] * 8
    turns.start(Work(clock, done, "little", 1))
    turns.begin(Work(clock, done, "held", 1))
    clock.iterate()
    assert done[8:] == ["little", "held"] + ["much"] * 6


def test_who_waits_longer_goes_on_however_many_are_new(clock: Iterations) -> None:
    done: list[str] = []
    turns = Turns(clock, Accounts())
    for _ in range(4):
        turns.add(Work(clock, done, "much", 2))
    for _ in range(100):
        turns.begin(Work(clock, done, "new", 1))
    for _ in range(3):
        clock.iterate()
    assert done == [*["new"] * 4, *["much"] * 4] * 2 + ["new"] * 8
    assert len(turns) == 84


def test_who_is_new_waits_for_its_turn_once(clock: Iterations) -> None:
    done: list[str] = []
    turns = Turns(clock, Accounts())
    work, other = Work(clock, done, "a", 9), Work(clock, done, "b", 9)
    turns.begin(work)
    turns.add(work)
    turns.add(other)
    turns.begin(other)
    assert len(turns) == 2
    clock.iterate()
    assert "".join(done) == "aabababa"
    turns.remove(work)
    turns.remove(other)
    assert len(turns) == 0


def test_who_has_nothing_left_rests_for_an_iteration(clock: Iterations) -> None:
    """A client that sends without a break is read in that time, and does not begin anew."""
    done: list[str] = []
    turns = Turns(clock, Accounts())
    work = Work(clock, done, "a", 3)
    turns.add(work)
    clock.iterate()
    assert (done, work.rested) == (["a"] * 3, 0)
    clock.iterate()
    assert work.rested == 1
    assert clock.getDelayedCalls() == []


def test_who_was_removed_has_no_turn(clock: Iterations) -> None:
    done: list[str] = []
    turns = Turns(clock, Accounts())
    work = Work(clock, done, "a", 3)
    turns.add(work)
    turns.remove(work)
    turns.remove(work)
    clock.iterate()
    assert done == []
    assert clock.getDelayedCalls() == []


def test_a_coroutine_goes_on_in_its_turn(clock: Iterations) -> None:
    done: list[str] = []
    turns = Turns(clock, Accounts())
    turns.add(Work(clock, done, "a", 1))
    turns.next_turn().addCallback(lambda _: done.append("turn"))
    turns.add(Work(clock, done, "b", 1))
    assert (done, len(turns)) == ([], 3)
    clock.advance(0)
    clock.advance(0)
    assert (done, len(turns)) == (["a", "turn", "b"], 0)


def test_a_fault_ends_its_own_connection_and_no_other(clock: Iterations) -> None:
    done: list[str] = []
    turns = Turns(clock, Accounts())
    broken, work = Broken(clock, done, "a", 1), Work(clock, done, "b", 1)
    turns.add(broken)
    turns.add(work)
    with capturedLogs() as logged:
        clock.iterate()
    assert [event["log_failure"].type for event in logged] == [ZeroDivisionError]
    assert (broken.ended, work.ended, done) == (True, False, ["b"])


# Slowed.


def test_who_is_slowed_is_read_again_in_time(clock: Iterations) -> None:
    turns = Turns(clock, Accounts())
    first, second = Slowed(clock), Slowed(clock)
    turns.slow(first, 0.5)
    turns.slow(second, 0.25)
    assert len(clock.getDelayedCalls()) == 1  # one timer for all
    clock.pump([0.25] * 4)
    assert (first.at, second.at) == ([0.5], [0.25])
    assert clock.getDelayedCalls() == []


def test_the_later_of_two_counts_and_no_more_than_a_second(clock: Iterations) -> None:
    turns = Turns(clock, Accounts())
    slowed = Slowed(clock)
    turns.slow(slowed, 0.5)
    turns.slow(slowed, 0.25)
    turns.slow(slowed, 60)
    clock.pump([0.25] * 10)
    assert slowed.at == [1.0]


def test_who_is_slowed_again_at_once_waits_again(clock: Iterations) -> None:
    turns = Turns(clock, Accounts())

    class Again(Slowed):
        def unslowed(self) -> None:
            super().unslowed()
            if len(self.at) == 1:
                turns.slow(self, 0.5)

    slowed = Again(clock)
    turns.slow(slowed, 0.5)
    clock.pump([0.25] * 8)
    assert slowed.at == [0.5, 1.0]
    assert clock.getDelayedCalls() == []


class Passing(Iterations):
    """Time passes while it is asked for. As Twisted's reactors it calls nothing in the past."""

    def seconds(self) -> float:
        self.rightNow += 0.00001
        return self.rightNow

    def callLater(self, delay: float, *call: Any, **words: Any) -> Any:
        assert delay >= 0
        return super().callLater(delay, *call, **words)


def test_slowing_for_less_than_looking_at_the_clock_takes() -> None:
    clock = Passing()
    slowed = Slowed(clock)
    Turns(clock, Accounts()).slow(slowed, 0.000001)
    clock.advance(0.01)
    assert len(slowed.at) == 1

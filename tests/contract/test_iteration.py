"""The end of a reactor turn."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kraftek.contract.iteration import Iteration


class Writer:
    """Counts its flushes; ``again`` is asked for another one while flushing."""

    def __init__(self) -> None:
        self.flushed = 0
        self.again: Iteration | None = None

    def flush(self) -> None:
        self.flushed += 1
        if self.again is not None:
            iteration, self.again = self.again, None
            iteration.at_end(self)


def test_everybody_is_flushed_once_at_the_end_of_the_turn_by_one_call() -> None:
    clock = Clock()
    iteration = Iteration(clock)
    writers = [Writer() for _ in range(100)]
    for writer in writers:
        iteration.at_end(writer)
    assert len(clock.getDelayedCalls()) == 1
    assert {writer.flushed for writer in writers} == {0}
    clock.advance(0)
    assert {writer.flushed for writer in writers} == {1}
    assert clock.getDelayedCalls() == []


def test_flushes_come_in_the_order_of_asking() -> None:
    clock = Clock()
    iteration = Iteration(clock)
    order: list[str] = []

    class Named(Writer):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def flush(self) -> None:
            order.append(self.name)

    for name in "abc":
        iteration.at_end(Named(name))
    clock.advance(0)
    assert order == ["a", "b", "c"]


def test_who_writes_while_being_flushed_is_flushed_by_another_call() -> None:
    clock = Clock()
    iteration = Iteration(clock)
    writer = Writer()
    writer.again = iteration
    iteration.at_end(writer)
    clock.advance(0)  # a Clock goes on to what was scheduled meanwhile; a reactor does that in its next turn
    assert writer.flushed == 2
    assert clock.getDelayedCalls() == []


def test_each_turn_has_its_own_end() -> None:
    clock = Clock()
    iteration = Iteration(clock)
    writer = Writer()
    for flushed in (1, 2, 3):
        iteration.at_end(writer)
        clock.advance(0)
        assert writer.flushed == flushed
    assert clock.getDelayedCalls() == []


def test_a_turn_that_is_driven_schedules_nothing_and_ends_when_it_is_told() -> None:
    clock = Clock()
    iteration = Iteration(clock)
    iteration.driven = True
    writers = [Writer(), Writer()]
    for writer in writers:
        iteration.at_end(writer)
    assert clock.getDelayedCalls() == []
    iteration.end()
    iteration.end()
    assert [writer.flushed for writer in writers] == [1, 1]


def test_a_turn_that_began_undriven_ends_once() -> None:
    clock = Clock()
    iteration = Iteration(clock)
    writer = Writer()
    iteration.at_end(writer)
    iteration.driven = True
    iteration.end()
    clock.advance(0)
    assert writer.flushed == 1
    assert clock.getDelayedCalls() == []


class Broken:
    """Cannot be flushed."""

    def flush(self) -> None:
        raise RuntimeError("broken")


class FaultTest(SynchronousTestCase):
    def test_one_that_fails_is_logged_and_keeps_nobody_from_writing(self) -> None:
        iteration = Iteration(Clock())
        iteration.driven = True
        writer = Writer()
        iteration.at_end(Broken())
        iteration.at_end(writer)
        iteration.end()
        assert writer.flushed == 1
        assert len(self.flushLoggedErrors(RuntimeError)) == 1


class Busy(Writer):
    """Takes a millisecond to be flushed."""

    def __init__(self, clock: Clock, order: list[str], name: str) -> None:
        super().__init__()
        self._clock, self._order, self._name = clock, order, name

    def flush(self) -> None:
        super().flush()
        self._order.append(self._name)
        self._clock.rightNow += 0.0001


def test_what_takes_too_long_goes_on_in_the_next_turns_and_others_come_in_between() -> None:
    clock = Clock()
    iteration = Iteration(clock)
    iteration.driven = True
    order: list[str] = []
    for number in range(200):
        iteration.at_end(Busy(clock, order, f"many {number}"))
    steps = []
    for turn in range(20):
        iteration.at_end(Busy(clock, order, f"turn {turn}"))
        before, began = len(order), clock.seconds()
        iteration.end()
        steps.append(clock.seconds() - began)
        assert f"turn {turn}" in order[before:] or not turn
        if clock.getDelayedCalls():
            assert clock.getDelayedCalls()[0].getTime() <= clock.seconds()  # the reactor does not wait
            clock.advance(0)
    many = [name for name in order if name.startswith("many")]
    assert many == [f"many {number}" for number in range(200)]
    assert sorted(set(order)) == sorted(order)
    assert max(steps) < 0.0025 + 2 * 32 * 0.0001
    assert clock.getDelayedCalls() == []


def test_what_takes_too_long_goes_on_by_itself_where_nothing_drives_the_turn() -> None:
    clock = Clock()
    iteration = Iteration(clock)
    order: list[str] = []
    for number in range(200):
        iteration.at_end(Busy(clock, order, str(number)))
    clock.advance(0)  # a Clock goes on to what was scheduled meanwhile
    assert order == [str(number) for number in range(200)]
    assert clock.getDelayedCalls() == []


def test_first_is_before_all_others() -> None:
    clock = Clock()
    iteration = Iteration(clock)
    order: list[str] = []
    iteration.at_end(Busy(clock, order, "other"))
    iteration.at_end(Busy(clock, order, "first"), first=True)
    clock.advance(0)
    assert order == ["first", "other"]

"""The end of a reactor turn."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from kraftek.contract.iteration import Turn


class Writer:
    """Counts its flushes; ``again`` is asked for another one while flushing."""

    def __init__(self) -> None:
        self.flushed = 0
        self.again: Turn | None = None

    def flush(self) -> None:
        self.flushed += 1
        if self.again is not None:
            turn, self.again = self.again, None
            turn.at_end(self)


def test_everybody_is_flushed_once_at_the_end_of_the_turn_by_one_call() -> None:
    clock = Clock()
    turn = Turn(clock)
    writers = [Writer() for _ in range(100)]
    for writer in writers:
        turn.at_end(writer)
    assert len(clock.getDelayedCalls()) == 1
    assert {writer.flushed for writer in writers} == {0}
    clock.advance(0)
    assert {writer.flushed for writer in writers} == {1}
    assert clock.getDelayedCalls() == []


def test_flushes_come_in_the_order_of_asking() -> None:
    clock = Clock()
    turn = Turn(clock)
    order: list[str] = []

    class Named(Writer):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def flush(self) -> None:
            order.append(self.name)

    for name in "abc":
        turn.at_end(Named(name))
    clock.advance(0)
    assert order == ["a", "b", "c"]


def test_who_writes_while_being_flushed_is_flushed_by_another_call() -> None:
    clock = Clock()
    turn = Turn(clock)
    writer = Writer()
    writer.again = turn
    turn.at_end(writer)
    clock.advance(0)  # a Clock goes on to what was scheduled meanwhile; a reactor does that in its next turn
    assert writer.flushed == 2
    assert clock.getDelayedCalls() == []


def test_each_turn_has_its_own_end() -> None:
    clock = Clock()
    turn = Turn(clock)
    writer = Writer()
    for flushed in (1, 2, 3):
        turn.at_end(writer)
        clock.advance(0)
        assert writer.flushed == flushed
    assert clock.getDelayedCalls() == []


def test_a_turn_that_is_driven_schedules_nothing_and_ends_when_it_is_told() -> None:
    clock = Clock()
    turn = Turn(clock)
    turn.driven = True
    writers = [Writer(), Writer()]
    for writer in writers:
        turn.at_end(writer)
    assert clock.getDelayedCalls() == []
    turn.end()
    turn.end()
    assert [writer.flushed for writer in writers] == [1, 1]


def test_a_turn_that_began_undriven_ends_once() -> None:
    clock = Clock()
    turn = Turn(clock)
    writer = Writer()
    turn.at_end(writer)
    turn.driven = True
    turn.end()
    clock.advance(0)
    assert writer.flushed == 1
    assert clock.getDelayedCalls() == []


class Broken:
    """Cannot be flushed."""

    def flush(self) -> None:
        raise RuntimeError("broken")


class FaultTest(SynchronousTestCase):
    def test_one_that_fails_is_logged_and_keeps_nobody_from_writing(self) -> None:
        turn = Turn(Clock())
        turn.driven = True
        writer = Writer()
        turn.at_end(Broken())
        turn.at_end(writer)
        turn.end()
        assert writer.flushed == 1
        assert len(self.flushLoggedErrors(RuntimeError)) == 1

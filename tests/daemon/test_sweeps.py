"""What is done by and by."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from kraftek.contract.metrics import Counters
from kraftek.daemon.assembly import Edge
from kraftek.daemon.sweeps import Sweeps, core_sweeps, edge_sweeps
from tests.support.world import House


def test_they_are_done_again_and_again_and_one_that_fails_too() -> None:
    clock, counters = Clock(), Counters()
    done: list[str] = []

    def fails() -> None:
        done.append("fails")
        raise ZeroDivisionError

    sweeps = Sweeps(clock, counters)
    sweeps.add((lambda: done.append("works"), 1.0), (fails, 2.0))
    sweeps.start()
    with capturedLogs() as events:
        clock.pump([0.5] * 8)
    assert (done.count("works"), done.count("fails"), counters.errors_internal, len(events)) == (4, 2, 2, 2)
    sweeps.stop()
    sweeps.stop()
    clock.advance(5.0)
    assert len(done) == 6
    sweeps.start()
    clock.advance(1.0)
    assert len(done) == 7
    sweeps.stop()
    assert clock.getDelayedCalls() == []


def test_every_part_that_has_something_to_do_by_and_by_does_it() -> None:
    house = House()
    edge = Edge(house.given, house.core, house.clock, fastpath=False)
    for made, sweeps in ((house.core, core_sweeps(house.core)), (edge, edge_sweeps(edge))):
        called = [sweep for sweep, _ in sweeps]
        assert len(called) == len({*called})
        assert {part.sweep for part in vars(made).values() if hasattr(part, "sweep")} <= {*called}

"""What stands in the room cache is made equal to what should, in steps, however calls to Redis fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from kraftek.contract.errors import NotPublished
from kraftek.contract.fleet import Fleet
from kraftek.contract.interfaces import IBusListener, Mended, RoomEntry
from kraftek.core.rooms.reconciliation import HASTE, MOST_DOUBTFUL, RETRY, Reconciliation
from kraftek.core.rooms.room_cache import ENTRIES_AT_ONCE
from tests.support.fakes import FakeBus, FakeRooms


class Process:
    """A reconciliation by itself. ``found``: what it said of users with several sockets."""

    def __init__(self, jitter: float = 0.5, *, available: bool = True) -> None:
        self.rooms = FakeRooms()
        self.bus = FakeBus(available=available)
        self.clock = Clock()
        self.fleet = Fleet(lambda: jitter)
        self.found: list[Mended] = []
        self.reconciliation = Reconciliation(self.rooms, self.bus, self.clock, self.fleet, self.found.append)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.clock.pump([HASTE] * round(0.25 / HASTE))
            self.reconciliation.sweep()

    def should(self) -> dict[tuple[str, str], str]:
        """What services should read, when each user has one socket in a room."""
        return {(room, user): socket for user, room, socket in self.reconciliation.standing}

    def is_right(self) -> bool:
        standing = set(self.reconciliation.standing)
        return self.rooms.entries == self.should() and self.rooms.named == standing and self.reconciliation.settled


def entry(number: int) -> RoomEntry:
    return f"user {number}", f"room {number % 7}", f"gw.{number}"


def times_of_mending(process: Process) -> list[int]:
    """When the entries that are mended from now on entered, as Redis is told."""
    times: list[int] = []

    def mend(entries: Sequence[tuple[RoomEntry, int]]) -> Deferred[list[Mended]]:
        times.extend(at for _, at in entries)
        return succeed([])

    process.rooms.mend = mend  # type: ignore[method-assign]
    return times


def test_it_listens_to_the_bus() -> None:
    assert verifyObject(IBusListener, Process().reconciliation)


def test_what_redis_lost_is_written_again_and_what_should_not_be_there_removed() -> None:
    process = Process()
    for number in range(3):
        process.reconciliation.enter(entry(number))
    process.bus.down()
    process.rooms.forget()
    process.rooms.enter(entry(9), 1)
    process.bus.up("e2")
    assert process.is_right()


def test_what_another_program_changed_is_right_after_a_while() -> None:
    process = Process()
    for number in range(2 * ENTRIES_AT_ONCE):
        process.reconciliation.enter(entry(number))
    process.rooms.sockets.clear()
    process.rooms.enter(entry(-1), 1)
    process.pass_time(3)
    assert process.is_right()


def calls(process: Process) -> list[str]:
    """The names of all calls of the room cache from now on."""
    names: list[str] = []

    def noted(name: str, call: Callable[..., Deferred[object]]) -> Callable[..., Deferred[object]]:
        def called(*args: object) -> Deferred[object]:
            names.append(name)
            return call(*args)

        return called

    for name in ("begin_epoch", "enter", "leave", "mend", "count", "scan"):
        setattr(process.rooms, name, noted(name, getattr(process.rooms, name)))
    return names


def test_after_an_outage_it_takes_small_steps() -> None:
    process = Process()
    for number in range(3 * ENTRIES_AT_ONCE):
        process.reconciliation.enter(entry(number))
    process.fleet.counted(4)
    process.bus.down()
    names = calls(process)
    process.bus.up()
    assert names == ["begin_epoch", "mend"]
    process.clock.advance(4 * HASTE * 0.99)
    assert names == ["begin_epoch", "mend"]
    process.clock.advance(4 * HASTE * 0.01)
    assert names == ["begin_epoch", "mend", "mend"]
    process.clock.pump([4 * HASTE] * 2)
    assert names == ["begin_epoch", *["mend"] * 3, "count"]


def test_all_gateways_together_take_one_step_in_a_quarter_of_a_second_when_nothing_is_wrong() -> None:
    process = Process()
    process.reconciliation.enter(entry(1))
    process.pass_time(5)
    process.fleet.counted(8)
    names = calls(process)
    process.pass_time(16)
    assert 7 <= len(names) <= 9
    assert set(names) == {"mend", "count"}


def test_the_epoch_is_told_before_anybody_enters_in_it() -> None:
    process = Process()
    process.bus.down()
    names = calls(process)
    process.bus.up(None)
    process.reconciliation.sweep()
    assert names == []
    process.bus.begin_epoch("e2")
    process.reconciliation.enter(entry(1))
    assert names[0] == "begin_epoch"
    assert process.is_right()


def test_an_epoch_is_told_once_and_the_next_one_at_once() -> None:
    process = Process()
    asked: list[Deferred[int]] = []

    def begin_epoch() -> Deferred[int]:
        asked.append(Deferred())
        return asked[-1]

    process.rooms.begin_epoch = begin_epoch  # type: ignore[method-assign]
    process.bus.begin_epoch("e2")
    process.pass_time(1)
    assert len(asked) == 1
    process.bus.begin_epoch("e3")
    assert len(asked) == 2
    asked[0].callback(1)  # which says nothing of e3
    process.pass_time(1)
    assert not process.reconciliation.settled
    asked[1].errback(NotPublished())
    process.pass_time(RETRY + 0.25)
    assert len(asked) == 3
    asked[2].callback(1)
    process.pass_time(0.25)
    assert process.is_right()


def test_nothing_is_compared_while_the_epoch_is_not_known() -> None:
    process = Process()
    process.reconciliation.enter(entry(1))
    process.bus.down()
    process.bus.up(None)
    names = calls(process)
    process.pass_time(5)
    assert names == []


def test_an_epoch_that_could_not_be_told_is_told_later() -> None:
    process = Process()
    process.bus.down()
    process.rooms.failure = RuntimeError("OOM")
    with capturedLogs() as logged:
        process.bus.up("e2")
        process.pass_time(3)
    assert len(logged) == 1
    process.rooms.failure = None
    names = calls(process)
    process.pass_time(1)
    assert "begin_epoch" in names
    assert process.is_right()


def test_a_failed_write_alone_is_looked_at_again_and_not_everything() -> None:
    process = Process()
    for number in range(5 * ENTRIES_AT_ONCE):
        process.reconciliation.enter(entry(number))
    process.rooms.failure = NotPublished("too much is in flight")
    process.reconciliation.enter(entry(-1))
    process.reconciliation.leave(entry(0), "left")
    process.rooms.failure = None
    process.clock.advance(RETRY)
    process.reconciliation.sweep()
    assert process.is_right()
    assert process.rooms.told[-2:] == [("left", *entry(0)[:2]), ("joined", *entry(-1)[:2])]


def test_too_many_failed_writes_have_everything_looked_at() -> None:
    process = Process()
    many = MOST_DOUBTFUL + 100
    for number in range(many):
        process.reconciliation.enter(entry(number))
    process.rooms.failure = NotPublished("too much is in flight")
    for number in range(1, many):
        process.reconciliation.leave(entry(number), "left")
    assert len(process.reconciliation._doubtful) <= MOST_DOUBTFUL
    process.rooms.failure = None
    process.pass_time(5)
    assert process.is_right()
    assert {kind for kind, _, _ in process.rooms.told[many:]} == {"left", "closed"}


def test_what_fails_is_not_tried_in_a_hurry() -> None:
    process = Process()
    process.reconciliation.enter(entry(1))
    process.rooms.failure = RuntimeError("MISCONF")
    process.reconciliation.doubt_all()
    names = calls(process)
    with capturedLogs() as logged:
        process.pass_time(4)
    assert 4 <= len(names) <= 8
    assert len(logged) == 1


def test_what_always_has_to_be_repeated_is_not_repeated_in_a_hurry() -> None:
    """Redis permits the script, but not the order to close that follows from it."""
    process = Process()
    process.reconciliation._found = lambda mended: process.reconciliation.doubt(mended.entry)
    process.rooms.sockets["room 1", "user 1"] = {"elsewhere.1": 1}
    process.reconciliation.enter(entry(1))
    names = calls(process)
    process.pass_time(4)
    assert 4 <= names.count("mend") <= 8


def test_an_answer_for_who_left_meanwhile_is_nobodys() -> None:
    process = Process()
    answer: Deferred[list[Mended]] = Deferred()
    process.reconciliation.enter(entry(1))
    process.rooms.mend = lambda entries: answer  # type: ignore[method-assign]
    process.reconciliation.doubt_all()
    process.pass_time(0.5)
    process.reconciliation.leave(entry(1), "left")
    answer.callback([Mended(entry(1), False, [])])
    assert process.found == []


def test_who_leaves_while_it_is_mended_is_gone_afterwards() -> None:
    """What is sent says what should stand then, and Redis takes it in this order."""
    process = Process()
    sent: list[str] = []
    answers: list[Deferred[None]] = []

    def leave(entries: object) -> Deferred[None]:
        sent.append("leave")
        answers.append(Deferred())
        return answers[-1]

    def mend(entries: object) -> Deferred[list[Mended]]:
        sent.append("mend")
        return succeed([])

    process.reconciliation.enter(entry(1))
    process.rooms.leave, process.rooms.mend = leave, mend  # type: ignore[method-assign]
    process.reconciliation.doubt(entry(2), "closed")
    process.reconciliation.doubt(entry(1))
    process.pass_time(1)
    assert sent == ["leave", "mend"]
    process.reconciliation.leave(entry(1), "left")
    answers[0].callback(None)
    assert sent == ["leave", "mend", "leave"]


def test_times_are_those_of_redis_also_of_who_came_before_it() -> None:
    process = Process(available=False)
    process.clock.advance(100)
    times = times_of_mending(process)
    process.rooms.begin_epoch = lambda: succeed(5_000_000_000)  # type: ignore[method-assign]
    process.reconciliation.enter(entry(1))
    process.clock.advance(10)
    process.bus.up()
    assert times == [4_990_000_000]


def test_times_are_those_at_which_entries_entered_whatever_the_clock_does_then() -> None:
    process = Process()
    times = times_of_mending(process)
    process.reconciliation.enter(entry(1))
    for redis in (5_000_000_000, 6_000_000_000, 4_000_000_000):
        process.rooms.begin_epoch = lambda redis=redis: succeed(redis)  # type: ignore[method-assign,misc]
        process.bus.down()
        process.bus.up()
    assert len(times) == 3
    assert len(set(times)) == 1


def test_who_entered_while_redis_was_away_has_the_time_of_the_redis_that_comes() -> None:
    process = Process()
    times = times_of_mending(process)
    process.bus.down()
    process.reconciliation.enter(entry(1))
    process.clock.advance(1)
    process.rooms.begin_epoch = lambda: succeed(8_000_000_000)  # type: ignore[method-assign]
    process.bus.up("e2")
    assert times == [7_999_000_000]


def test_nobody_who_entered_is_timed_before_the_redis_that_comes_has_said_what_time_it_is() -> None:
    """Its first answer may come late, or not at all, when the link is lost again."""
    process = Process()
    times = times_of_mending(process)
    process.bus.down()
    process.reconciliation.enter(entry(1))
    answers: list[Deferred[int]] = []

    def begin_epoch() -> Deferred[int]:
        answers.append(Deferred())
        return answers[-1]

    process.rooms.begin_epoch = begin_epoch  # type: ignore[method-assign]
    process.bus.up("e2")
    process.reconciliation.enter(entry(2))
    process.bus.down()
    for answer in answers:
        answer.errback(NotPublished())
    process.clock.advance(1)
    process.rooms.begin_epoch = lambda: succeed(8_000_000_000)  # type: ignore[method-assign]
    process.bus.up("e2")
    assert set(times) == {7_999_000_000}


def test_times_do_not_go_back_with_the_clock_of_redis() -> None:
    process = Process()
    times: list[int] = []

    def enter(entry: RoomEntry, at: int) -> Deferred[tuple[int, list[str]]]:
        times.append(at)
        return succeed((at, []))

    process.rooms.enter = enter  # type: ignore[method-assign]
    for redis, elapsed in ((5000, 0), (5010, 10), (4011, 1), (6012, 1), (5011, 1)):
        process.clock.advance(elapsed)
        process.rooms.begin_epoch = lambda redis=redis: succeed(redis * 1_000_000)  # type: ignore[method-assign,misc]
        process.bus.down()
        process.bus.up()
        process.reconciliation.enter(entry(len(times)))
    assert times == [5_000_000_000, 5_010_000_000, 5_011_000_000, 6_012_000_000, 6_013_000_000]


def test_the_quickest_answer_says_best_what_the_time_is() -> None:
    process = Process()
    process.bus.down()
    process.reconciliation._measured = None
    for redis, sent, answered in ((1000.0, 0.0, 1.0), (1010.0, 9.5, 9.5), (1020.3, 19.0, 20.0)):
        process.clock.advance(sent - process.clock.seconds())
        asked = process.clock.seconds()
        process.clock.advance(answered - asked)
        process.reconciliation._set_clock(round(redis * 1_000_000), asked)
    assert abs(process.reconciliation._ahead - 1000.5) < 0.01


def test_who_entered_after_another_one_is_newer_also_when_all_is_lost() -> None:
    process = Process()
    process.rooms.sockets["room 1", "user 1"] = {"elsewhere.1": 5_000_000}
    process.reconciliation.enter(entry(1))
    assert process.found == [Mended(entry(1), True, ["elsewhere.1"])]
    process.rooms.forget()
    process.rooms.sockets["room 1", "user 1"] = {"elsewhere.1": 5_000_000}
    process.reconciliation.doubt_all()
    process.pass_time(0.5)
    assert process.rooms.entries["room 1", "user 1"] == "gw.1"


def test_an_error_of_ours_ends_nothing() -> None:
    process = Process()
    process.reconciliation.enter(entry(1))
    process.rooms.sockets["room 1", "user 1"]["elsewhere.1"] = 1

    def broken(mended: Mended) -> None:
        raise ZeroDivisionError

    process.reconciliation._found = broken
    with capturedLogs() as logged:
        process.reconciliation.doubt_all()
        process.pass_time(2)
    assert [event["log_failure"].type for event in logged] == [ZeroDivisionError]
    process.reconciliation._found = process.found.append
    process.pass_time(1)
    assert process.reconciliation.settled


def test_at_the_end_it_waits_for_what_is_not_done() -> None:
    process = Process()
    for number in range(3):
        process.reconciliation.enter(entry(number))
    process.rooms.failure = RuntimeError("NOREPLICAS")
    with capturedLogs():
        for number in range(3):
            process.reconciliation.leave(entry(number), "closed")
        finishing = Deferred.fromCoroutine(process.reconciliation.finish())
        process.clock.pump([0.025] * 10)
    assert not finishing.called
    process.rooms.failure = None
    process.clock.pump([0.025] * 2)
    assert finishing.called
    assert process.rooms.entries == {}


def test_at_the_end_nothing_waits_for_an_epoch() -> None:
    process = Process()
    process.bus.down()
    process.bus.up(None)
    process.reconciliation._urgent = False
    assert Deferred.fromCoroutine(process.reconciliation.finish()).called


@pytest.mark.parametrize("failing", ["count", "scan"])
def test_a_comparison_that_fails_goes_on(failing: str) -> None:
    process = Process()
    process.reconciliation.enter(entry(1))
    process.rooms.enter(entry(2), 1)
    working = getattr(process.rooms, failing)
    setattr(process.rooms, failing, lambda *args: fail(NotPublished("too much is in flight")))
    process.reconciliation.doubt_all()
    process.pass_time(1)
    assert not process.is_right()
    setattr(process.rooms, failing, working)
    process.pass_time(1)
    assert process.is_right()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_whatever_fails_all_is_right_in_the_end(seed: int) -> None:
    """Calls fail before or after they had their effect; links are lost; all data are."""
    random = Random(seed)
    process = Process(jitter=random.random())
    here: set[RoomEntry] = set()
    with capturedLogs():
        for _ in range(random.randrange(300)):
            one = entry(random.randrange(30))
            match random.randrange(12):
                case 0 | 1 | 2 | 3 if one not in here:
                    here.add(one)
                    process.reconciliation.enter(one)
                case 4 | 5 | 6 if one in here:
                    here.remove(one)
                    process.reconciliation.leave(one, "left")
                case 7:
                    process.rooms.failure = RuntimeError("refused")
                    process.rooms.unanswered = False
                case 8:
                    process.rooms.failure = NotPublished("the connection was lost")
                    process.rooms.unanswered = random.random() < 0.5
                case 9:
                    process.rooms.failure = None
                case 10 if process.bus.available:
                    process.bus.down()
                case 11:
                    if random.random() < 0.2:
                        process.rooms.forget()
                    if not process.bus.available:
                        process.bus.up(f"e{random.random()}")
                case _:
                    process.pass_time(0.25)
        process.rooms.failure = None
        if not process.bus.available:
            process.bus.up()
    process.pass_time(3)
    assert set(process.reconciliation.standing) == here
    assert process.is_right()

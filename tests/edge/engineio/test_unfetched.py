"""What waits for a client that polls: in time, late, and behind an answer that it does not read."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from kraftek.contract.messages import Delivery, Gap, Outgoing
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import EventPolicy, Limits
from kraftek.edge.engineio.connection import CLOSE_TIMEOUT
from kraftek.edge.engineio.unfetched import Unfetched
from tests.support.backlogs import make_backlogs

LIMIT = 1000


class Client:
    """Notes whether it was given up."""

    def __init__(self) -> None:
        self.given_up = 0

    def give_up(self) -> None:
        self.given_up += 1

    def gap(self, gap: Gap) -> Outgoing | None:
        return Outgoing(b"gap")


class Answer:
    """One that is not read."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


class Place:
    """One client."""

    def __init__(self) -> None:
        self.clock, self.client = Clock(), Client()
        policies = (EventPolicy(pattern="typing", policy="drop"),)
        self.backlogs = make_backlogs(self.clock, Counters(), Limits(unsent_bytes=LIMIT), policies)
        self.unfetched = Unfetched(self.client, self.backlogs)

    @property
    def unsent(self) -> int:
        return self.backlogs.accounts.unsent

    def put(self, size: int) -> bool:
        return self.unfetched.put(Outgoing(b"x" * size))


@pytest.fixture
def place() -> Place:
    return Place()


def typing() -> Outgoing:
    outgoing = Outgoing(b"typing")
    outgoing.about = Delivery("typing", room_id="r")
    return outgoing


def test_in_time_all_waits_and_late_what_policies_leave(place: Place) -> None:
    place.unfetched.answered()
    assert place.unfetched.put(typing())
    place.clock.advance(1.0)
    assert place.unfetched.put(typing())
    assert [outgoing.text for outgoing in place.unfetched.take()] == [b"gap", b"typing"]
    assert place.unfetched.take() == []


def test_in_time_16_times_as_much_may_wait_as_late(place: Place) -> None:
    place.unfetched.answered()
    put = 0
    while place.put(84):
        put += 1
    assert (put, place.unsent) == (16 * LIMIT // 100, 16 * LIMIT)
    assert len(place.unfetched.take()) == put
    place.clock.advance(1.0)
    put = 0
    while place.put(84):
        put += 1
    assert (put, place.unsent) == (LIMIT // 2 // 100, LIMIT // 2)


@pytest.mark.parametrize("late", [True, False])
def test_one_that_is_larger_by_itself_may_wait(place: Place, late: bool) -> None:
    if not late:
        place.unfetched.answered()
    assert place.put(100 * LIMIT)
    place.clock.advance(1.0)
    assert place.put(84)
    assert place.unsent == 100 * LIMIT + 16 + 100
    assert len(place.unfetched.take()) == 2
    assert (place.unsent, len(place.backlogs)) == (0, 0)


def test_when_an_answer_is_read_the_client_has_time_again(place: Place) -> None:
    place.unfetched.answered()
    answer = Answer(LIMIT)
    place.unfetched.begin(answer)
    place.clock.advance(5.0)
    assert place.unfetched.unread
    answer.left = 0
    place.unfetched.progress()
    assert not place.unfetched.unread
    assert place.unfetched.put(typing())
    assert [outgoing.text for outgoing in place.unfetched.take()] == [b"typing"]


@pytest.mark.parametrize("left", [LIMIT, LIMIT + 1])
def test_of_an_answer_that_is_given_up_so_much_may_be_read(place: Place, left: int) -> None:
    answer = Answer(left)
    place.unfetched.begin(answer)
    assert place.put(84)
    place.unfetched.drop()
    assert (answer.aborted, place.unsent, len(place.backlogs)) == (left > LIMIT, 0, 0)
    place.unfetched.end()
    place.clock.advance(CLOSE_TIMEOUT)
    assert answer.aborted


def test_an_answer_whose_connection_is_gone_is_not_aborted(place: Place) -> None:
    answer = Answer(1)
    place.unfetched.begin(answer)
    place.unfetched.lost()
    place.unfetched.progress()
    place.unfetched.end()
    assert place.clock.getDelayedCalls() == []


def test_who_holds_most_is_given_up_first(place: Place) -> None:
    other = Client()
    waits = Unfetched(other, place.backlogs)
    assert waits.put(Outgoing(b"x" * 400))
    place.unfetched.begin(Answer(500))
    place.unfetched.put(Outgoing(b"x"))
    place.backlogs.shed(1)
    assert (place.client.given_up, other.given_up) == (1, 1)  # neither frees anything here
    place.client.give_up = waits.end  # type: ignore[method-assign]
    place.backlogs.shed(1)
    assert other.given_up == 1

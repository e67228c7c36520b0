"""What a client has heard of rooms. What all three libraries do alike is in ``transcripts/recovery.json``."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from kraftek.client import Message, Recovered, Refused
from kraftek.client.deadlines import Deadlines
from kraftek.client.messages import Action, Fetch, Hear
from kraftek.client.outbox import Outbox, ids
from kraftek.client.recovery import HELD, Recovery

AT_10 = {"epoch": "e", "offset": 10}


class Play:
    """A client's memory of rooms, and what it does with it."""

    def __init__(self) -> None:
        self.actions: deque[Action] = deque()
        self.deadlines = Deadlines()
        self.it = Recovery(lambda: 0.5, self.actions, self.deadlines, ids(), Outbox(), lambda _: None)

    def say(self, offset: int | None, room: str = "r1", size: int = 20) -> None:
        self.it.hear(Message("a:b:c", offset, room_id=room, offset=offset), size)

    def done(self) -> list[Any]:
        """What was done since: offsets that were heard, and the rest as it is."""
        actions = [*self.actions]
        self.actions.clear()
        return [each.message.offset if isinstance(each, Hear) else each for each in actions]


@pytest.fixture
def play() -> Play:
    return Play()


def test_it_says_the_names_of_its_last_eight_sockets(play: Play) -> None:
    play.it.entered("r1", AT_10)
    for number in range(10):
        play.it.socket_lost(f"s{number}")
    play.it.socket_lost(None)  # it was not authenticated: nothing can have excluded it
    assert play.it.since("r1") == {"since": {**AT_10, "socketIds": [f"s{number}" for number in range(2, 10)]}}


def test_it_says_nothing_on_the_socket_on_which_it_is_in_the_room(play: Play) -> None:
    play.it.entered("r1", AT_10)
    assert [play.it.since("r1"), play.it.since("r2"), play.it.since(None)] == [{}, {}, {}]
    play.say(11)
    play.it.entered("r1", {"epoch": "e", "offset": 17})  # it has asked to join twice
    play.say(12)
    assert play.done() == [11, 12]


@pytest.mark.parametrize("payload", [None, 7, {}, {"epoch": 1, "offset": 10}, {"epoch": "e", "offset": "10"}])
def test_what_is_no_position(payload: Any, play: Play) -> None:
    play.it.entered("r1", AT_10)
    play.it.socket_lost("s")
    play.it.entered("r1", payload)
    play.it.hear(Message("position", payload, room_id="r1"), 20)
    play.say(3)
    assert play.done() == [Recovered("r1", recovered=False), None, 3]
    play.it.socket_lost("s")
    assert play.it.since("r1") == {}


def test_too_much_waits(play: Play) -> None:
    key = play.it.snapshot("r1")
    play.it.entered("r1", AT_10)
    play.say(11, size=HELD)
    assert play.done() == [Fetch(key)]
    play.say(12, size=1)
    play.say(13)
    assert play.done() == [Recovered("r1", recovered=False, reason="too_many")]
    play.it.fetched(key, None, 0.0)
    assert play.done() == [13, Fetch(key)]
    play.say(14, size=HELD)
    play.it.fetched(key, None, 0.0)
    play.say(15)
    assert play.done() == [14, 15]


def test_messages_wait_for_all_who_fetch(play: Play) -> None:
    play.it.entered("r1", AT_10)
    one, two = play.it.snapshot("r1"), play.it.snapshot("r1")
    play.say(11)
    play.it.fetched(one, None, 0.0)
    assert play.done() == [Fetch(one), Fetch(two)]
    play.it.no_snapshot(two)
    assert play.done() == [11]
    play.it.no_snapshot(two)
    play.it.fetched(two, None, 0.0)
    play.it.left("r1")
    play.it.no_snapshot(one)
    play.it.entered("r1", AT_10)
    assert play.done() == []


def test_who_fails_is_not_asked_again_because_another_has_not(play: Play) -> None:
    one, two = play.it.snapshot("r1"), play.it.snapshot("r1")
    play.it.entered("r1", AT_10)
    play.it.fetched(one, OSError("no"), 100.0)
    play.done()
    play.it.fetched(two, None, 100.0)
    assert play.done() == []
    assert play.deadlines.first() == 101.5


def test_what_a_service_asks_for_is_waited_for(play: Play) -> None:
    key = play.it.snapshot("r1")
    play.it.entered("r1", AT_10)
    play.it.fetched(key, Refused("RATE_LIMITED", "later", 20.0), 100.0)
    name = play.deadlines.take(130.0)
    assert name is not None
    play.done()
    assert play.it.wake(name)
    assert play.done() == [Fetch(key)]
    assert not play.it.wake("another")


def test_a_failure_without_a_connection_waits_for_the_next_one(play: Play) -> None:
    key = play.it.snapshot("r1")
    play.it.entered("r1", AT_10)
    play.it.socket_lost("s")
    play.done()
    play.it.fetched(key, OSError("no"), 100.0)
    assert play.done() == []
    assert play.deadlines.first() is None
    play.it.entered("r1", {**AT_10, "recovered": True})
    assert play.done() == [Recovered("r1", recovered=True), Fetch(key)]

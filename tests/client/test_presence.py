"""Who is in the rooms of a client: what the transcripts in ``transcripts/presence.json`` do not reach."""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import Any

import msgspec
import pytest

from kraftek.client.deadlines import Deadlines
from kraftek.client.messages import Action, Message, Presence
from kraftek.client.outbox import Outbox
from kraftek.client.presence import Watching


class World:
    """What a conversation has, and what it would send."""

    def __init__(self) -> None:
        self.actions: deque[Action] = deque()
        self.outbox = Outbox()
        ids = (f"q{number}" for number in count(1))
        self.watching = Watching(lambda: 0.5, self.actions, Deadlines(), self.outbox, ids)

    def sent(self) -> list[Any]:
        """What was sent since the last look."""
        found = []
        while (frame := self.outbox.take_early()) is not None:
            found.append(msgspec.json.decode(frame)["payload"])
        return found

    def told(self, payload: Any, id: str = "q1") -> list[Action]:
        """What comes of an answer."""
        self.watching.answered(Message("presence", payload, id), None, 0.0)
        actions = [*self.actions]
        self.actions.clear()
        return actions


def watching() -> World:
    world = World()
    world.watching.entered("r")
    world.watching.watch("r")
    assert world.sent() == [{"roomId": "r"}]
    return world


@pytest.mark.parametrize("payload", [None, [], {"count": "1"}, {"count": 1, "users": [{}]}, {"count": 1, "left": [1]}])
def test_what_no_gateway_says_is_ignored(payload: Any) -> None:
    world = watching()
    assert world.told(payload) == []
    assert world.watching.now("r") is None


def test_what_is_known_can_be_had_again() -> None:
    world = watching()
    (told,) = world.told({"count": 2, "version": "v", "users": [{"userId": "a", "data": [1]}]})
    assert told == Presence("r", {"a": [1]}, 2, {"a": [1]})
    assert world.watching.now("r") == told


def test_an_answer_that_nobody_waits_for_is_ignored() -> None:
    world = watching()
    world.watching.unwatch("r")
    assert world.sent() == [{"roomId": "r", "changes": False}]
    assert world.told({"count": 1, "version": "v"}) == []
    world.watching.hear(Message("presence", {"count": 1, "version": "v"}, None, "r"))
    assert not world.actions


def test_what_was_not_sent_yet_is_not_sent_any_more() -> None:
    world = World()
    world.watching.entered("r")
    world.watching.watch("r")
    world.watching.unwatch("r")
    assert world.sent() == [{"roomId": "r", "changes": False}]
    world.watching.watch("elsewhere")
    world.watching.unwatch("elsewhere")
    assert world.sent() == []


def test_a_name_of_another_is_not_its_own() -> None:
    assert not World().watching.wake("other")

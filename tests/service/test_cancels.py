"""What a service knows of requests that their clients have cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from kraftek.contract.messages import REQUEST_KNOWN
from kraftek.service import EventProcessor
from kraftek.service.backend import Backend
from kraftek.service.cancels import MOST, OF_USER, SKEW, Cancels
from kraftek.service.processor import Incoming


class Listening:
    """A backend that has a channel."""

    def __init__(self) -> None:
        self.channels: dict[str, Callable[[bytes], None]] = {}

    async def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        self.channels[channel] = listener


class Place:
    """A service, and what it hears. ``found``: the tests of events in hand that were made."""

    def __init__(self) -> None:
        self.now = 0.0
        self.warnings: list[str] = []
        self.found: list[Callable[[Incoming], bool]] = []
        backend = Listening()
        processor = EventProcessor("chat", prefix="k:")
        self.cancels = Cancels(
            processor, cast("Backend", backend), self.found.append, self.warnings.append, lambda: self.now
        )
        asyncio.run(self.cancels.begin())
        self.hear = backend.channels["k:events:cancel:chat"]

    def has(self, **words: Any) -> bool:
        event = Incoming(event_type="chat:a:b", **{"user_id": "ada", "id": 1, "socket_id": "g.1", **words})
        return self.cancels.has(event)


def test_a_request_is_named_by_its_user() -> None:
    place = Place()
    assert not place.cancels
    assert not place.has()
    place.hear(b'{"eventType":"chat:a:b","userId":"ada","id":1,"timestamp":1000,"more":1}')
    assert place.cancels
    assert place.has()
    assert place.has(socket_id="elsewhere.7")
    assert not place.has(user_id="eve")
    assert not place.has(id="1")
    assert not place.has(id=None)
    assert len(place.found) == 1


def test_or_by_its_socket() -> None:
    place = Place()
    place.hear(b'{"eventType":"chat:a:b","userId":"ada","id":1,"socketId":"g.1","timestamp":1000}')
    assert place.has()
    assert not place.has(socket_id="g.2")


def test_one_that_came_later_is_another_one() -> None:
    place = Place()
    place.hear(b'{"eventType":"chat:a:b","userId":"ada","id":1,"timestamp":5000}')
    assert place.has(timestamp=5000 + SKEW)
    assert not place.has(timestamp=5001 + SKEW)
    place.hear(b'{"eventType":"chat:a:b","userId":"ada","id":1}')  # without a time it is any
    assert place.has(timestamp=5001 + SKEW)


def test_only_so_many_are_known_and_for_so_long() -> None:
    place = Place()
    for number in range(MOST + 1):
        place.hear(b'{"eventType":"chat:a:b","userId":"%d","id":1,"timestamp":1000}' % number)
    assert not place.has(user_id="0")
    assert place.has(user_id="1")
    place.now = REQUEST_KNOWN
    place.hear(b'{"eventType":"chat:a:b","userId":"ada","id":"new","timestamp":1000}')
    assert not place.has(user_id=str(MOST))
    assert place.has(id="new")
    assert len(place.cancels._known) == len(place.cancels._of_users) == 1


def test_the_flood_of_a_user_pushes_out_its_own_alone() -> None:
    place = Place()
    place.hear(b'{"eventType":"chat:a:b","userId":"eve","id":1,"timestamp":1000}')
    for number in range(MOST):
        place.hear(b'{"eventType":"chat:a:b","userId":"ada","id":%d,"timestamp":1000}' % number)
    place.hear(b'{"eventType":"chat:a:b","userId":"ada","id":%d,"timestamp":1000}' % (MOST - OF_USER))
    assert place.has(user_id="eve")
    assert [place.has(id=MOST - OF_USER + number) for number in (-1, 0, 1)] == [False, True, True]
    assert len(place.cancels._known) == OF_USER + 1
    assert place.found[-1](Incoming(event_type="chat:a:b", user_id="ada", id=MOST - OF_USER, socket_id="g.1"))
    assert not place.found[-1](Incoming(event_type="chat:a:b", user_id="ada", id=MOST - 1, socket_id="g.1"))


@pytest.mark.parametrize("body", [b"", b"\xff", b"[1]", b'{"eventType":"chat:a:b","userId":"ada"}', b"[" * 100_000])
def test_what_cancels_nothing_is_told_and_ignored(body: bytes) -> None:
    place = Place()
    place.hear(body)
    assert not place.cancels
    assert [warning.partition(":")[0] for warning in place.warnings] == ["Ignored a message that cancels no request"]

"""The state of a room. What all three libraries do alike is in ``transcripts/recovery.json``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from kraftek.client import Message, Refused, RoomState


class Client:
    """What a client does for it."""

    def __init__(self) -> None:
        self.listeners: dict[str, Callable[[Any], object]] = {}
        self.fetch: Callable[[], Any] | None = None

    def on(self, type: str, listener: Callable[[Any], object]) -> Callable[[], None]:
        self.listeners[type] = listener

        def end() -> None:
            del self.listeners[type]

        return end

    def snapshot(self, room: str, fetch: Callable[[], Any]) -> Callable[[], None]:
        self.fetch = fetch

        def end() -> None:
            self.fetch = None

        return end

    def user_snapshot(self, fetch: Callable[[], Any]) -> Callable[[], None]:
        return self.snapshot("", fetch)

    def fetched(self) -> None:
        assert self.fetch is not None
        asyncio.run(self.fetch())

    def say(self, payload: Any, room: str | None = "r1") -> None:
        self.listeners["a:b:added"](Message("a:b:added", payload, room_id=room))


async def later(value: Any) -> Any:
    return value


def added(state: list[int], payload: int) -> list[int]:
    return [*state, payload]


def test_each_change_is_heard_until_it_is_closed() -> None:
    client, heard, other = Client(), list[list[int]](), list[list[int]]()
    state = RoomState(client, "r1", lambda: later([1]), {"a:b:added": added})
    state.subscribe(heard.append)
    client.say(0)
    assert (state.value, heard) == (None, [])
    client.fetched()
    end = state.subscribe(other.append)
    client.say(2)
    end()
    client.say(3, room=None)
    client.say(4)
    assert heard == [[1], [1, 2], [1, 2, 4]]
    assert other == [[1], [1, 2]]
    state.close()
    state.close()
    assert (client.listeners, client.fetch, state.value) == ({}, None, [1, 2, 4])


def test_who_ends_it_hears_no_more() -> None:
    client, heard = Client(), list[list[int]]()
    state: RoomState[list[int]] = RoomState(client, "r1", list, {})
    state.subscribe(lambda _: end())
    end = state.subscribe(heard.append)
    client.fetched()
    assert (state.value, heard) == ([], [])


def test_what_is_wrong_with_it() -> None:
    client = Client()
    states: list[list[int] | Exception] = [[2], ZeroDivisionError(), [1]]

    def snapshot() -> list[int]:
        fetched = states.pop()
        if isinstance(fetched, Exception):
            raise fetched
        return fetched

    state = RoomState(client, "r1", snapshot, {"a:b:added": added})
    state.joined(None)
    assert state.error is None
    state.joined(Refused("ACCESS_DENIED", "no"))
    assert str(state.error) == "ACCESS_DENIED: no"
    client.fetched()
    assert (state.error, state.value) == (None, [1])
    with pytest.raises(ZeroDivisionError):
        client.fetched()
    client.say(5)
    error = {"code": "NO_SNAPSHOT", "message": "it could not be fetched"}
    client.listeners["error"](Message("error", {**error, "code": "OTHER"}, room_id="r2"))
    client.listeners["error"](Message("error", error, room_id="r1"))
    assert str(state.error) == "NO_SNAPSHOT: it could not be fetched"
    assert state.value == [1]
    client.fetched()
    assert (state.error, state.value) == (None, [2])


def test_the_state_of_the_user() -> None:
    """It is changed by what was told outside of rooms, and only what concerns it is wrong with it."""
    client = Client()
    state = RoomState(client, None, lambda: [1], {"a:b:added": added})
    client.fetched()
    client.say(2)
    client.say(3, room=None)
    client.listeners["error"](Message("error", {"code": "RATE_LIMITED", "message": "later"}))
    assert (state.value, state.error) == ([1, 3], None)
    client.listeners["error"](Message("error", {"code": "NO_SNAPSHOT", "message": "no"}, room_id="r1"))
    assert state.error is None
    client.listeners["error"](Message("error", {"code": "NO_SNAPSHOT", "message": "no"}))
    assert str(state.error) == "NO_SNAPSHOT: no"

"""Receipts of messages, as an instance of a service waits for them: with a Redis that answers what the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kraftek.service import EventProcessor, OldGateway, Receipt, TooLarge
from kraftek.service.commits import UNAWARE
from kraftek.service.messages import Message
from kraftek.service.receipts import ADDRESSED
from kraftek.service.requests import Requests

ROOM = Message("news:item:new", room_id="r", exclude_socket_ids=("a.9",))
USERS = Message("news:item:new", user_ids=("ann", "bob"))


class Signal:
    """Something that happens once, in asyncio."""

    def __init__(self) -> None:
        self._value: Any = None
        self._happened = asyncio.Event()

    def set(self, value: Any = True) -> None:
        self._value = value
        self._happened.set()

    async def wait(self, seconds: float | None) -> Any:
        try:
            await asyncio.wait_for(self._happened.wait(), None if seconds is None else seconds / 100)
        except TimeoutError:
            return None
        return self._value


class Redis:
    """The backend, as much of it as is used. ``said``: what gateways say once the message is published; ``found``: what
    Redis knows of gateways and the room; ``published``: what it was sent. A second takes ten milliseconds.
    """

    signal = Signal

    def __init__(self, *said: dict[str, Any] | bytes, found: Sequence[Any] = ((b"a",), ()), old: bool = False) -> None:
        self.said = said
        self.found = found
        self.old = old
        self.keys: list[str] = []
        self.published: list[dict[str, Any]] = []
        self.warned: list[str] = []
        self._hear: Callable[[bytes], None] = print

    async def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        assert channel == "k:events:reply:me"
        self._hear = listener

    async def run(self, script: Any, keys: list[str], args: list[Any]) -> Any:
        if script is ADDRESSED:
            self.keys = keys
            return self.found
        if script is UNAWARE:
            return [b"old", b"gateway:receipt"] if self.old else []
        at = [number for number, word in enumerate(args) if word == "PUBLISH"]
        assert {args[number + 1] for number in at} == {"k:events:broadcast"}
        self.published = [json.loads(args[number + 2]) for number in at]
        for each in self.said:
            if isinstance(each, bytes):
                self._hear(each)
            else:
                answer = {"type": "gateway:receipt", "inReplyTo": self.published[0]["receipt"]["id"], "payload": each}
                self._hear(json.dumps(answer).encode())
        return 1

    def receipt(self, message: Message | None = USERS, seconds: float = 1.0) -> Receipt:
        async def wait() -> Receipt:
            requests = Requests("me", EventProcessor("chat", prefix="k:"), self, self.warned.append)  # type: ignore[arg-type]
            await requests.begin()
            receipt = await requests.receipt(message, seconds)
            assert requests._answers == {}
            return receipt

        return asyncio.run(wait())


def test_the_command_comes_before_the_message() -> None:
    redis = Redis({"gatewayId": "a", "acknowledged": ["ann"], "waiting": ["bob"], "done": True})
    assert redis.receipt() == Receipt(("ann",), ("bob",))
    name = {"replyTo": "k:events:reply:me", "id": 1}
    command, message = redis.published
    assert command == {
        "type": "gateway:receipt",
        "payload": {"seconds": 1.0},
        "userIds": ["ann", "bob"],
        "receipt": name,
    }
    assert message == {"type": "news:item:new", "userIds": ["ann", "bob"], "receipt": name}
    assert redis.keys == ["k:gateways"]


def test_who_was_in_a_room_on_a_gateway_that_does_not_answer() -> None:
    found = [[b"a", b"b"], [b"ann", b"a.1", b"bob", b"b.1", b"cid", b"a.9"]]
    redis = Redis({"gatewayId": "a", "acknowledged": ["ann"], "done": True}, found=found)
    assert redis.receipt(ROOM) == Receipt(("ann",), owed=("bob",), complete=False)
    assert redis.keys == ["k:gateways", "k:room:r"]


def test_what_is_no_answer_is_told_and_changes_nothing() -> None:
    redis = Redis(
        b"nothing",
        b'{"type":"gateway:receipt","inReplyTo":1,"payload":7}',
        b'{"type":"other","inReplyTo":1,"payload":{"gatewayId":"a","done":true}}',
        b'{"type":"gateway:receipt","inReplyTo":2,"payload":{"gatewayId":"a","done":true}}',
    )
    assert redis.receipt() == Receipt(owed=("ann", "bob"), complete=False)
    assert len(redis.warned) == 2


def test_to_nobody_and_to_whom_there_is_no_receipt() -> None:
    redis = Redis()
    assert redis.receipt(None) == Receipt()
    with pytest.raises(ValueError, match="no receipt for others"):
        redis.receipt(Message("t", everybody=True))
    assert (redis.keys, redis.published) == ([], [])


def test_nothing_is_sent_to_a_room_with_too_many_and_while_a_gateway_is_too_old() -> None:
    redis = Redis(found=[[b"a"]])
    with pytest.raises(TooLarge, match="more than 1000 users"):
        redis.receipt(ROOM)
    assert redis.published == []
    redis = Redis(old=True)
    with pytest.raises(OldGateway, match="gateway:receipt"):
        redis.receipt()
    assert redis.published == []

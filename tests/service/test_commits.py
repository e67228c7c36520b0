"""What is looked up before a command to gateways is sent, and what is not sent then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from kraftek.service.commits import UNAWARE, Command, Full, NotNow, OldGateway, Wants, commit, publish, wants

PUT = Command(("PUBLISH", "said", b"put"), wants=wants("k:", "gateway:room:put"))
SAY = Command(("PUBLISH", "said", b"say"))


class Redis:
    """Answers as it is told, and notes what it was asked."""

    def __init__(self, unaware: Sequence[bytes] = (), done: int = 1) -> None:
        self.asked: list[Any] = []
        self._unaware, self._done = unaware, done

    async def call(self, *command: Any) -> int:
        self.asked.append(command)
        return 3

    async def run(self, script: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        self.asked.append("unaware" if script is UNAWARE else "script")
        if script is UNAWARE:
            assert (keys, args) == (["k:gateways", "k:gateways:registrations"], ["gateway:room:put"])
            return self._unaware
        return self._done


def test_what_gateways_must_know() -> None:
    assert wants("k:", "gateway:room:put") == Wants("k:gateways", "k:gateways:registrations", "gateway:room:put")
    assert wants("k:", "disconnect") is None


def test_gateways_are_looked_at_only_for_their_commands() -> None:
    redis: Any = Redis()
    assert asyncio.run(publish(redis, SAY)) == 3
    assert asyncio.run(publish(redis, PUT)) == 3
    assert asyncio.run(commit(redis, [PUT, SAY, PUT]))
    assert asyncio.run(commit(redis, []))
    assert redis.asked == [SAY.parts, "unaware", PUT.parts, "unaware", "script"]


def test_nothing_is_sent_while_a_gateway_does_not_know_it() -> None:
    redis: Any = Redis([b"3f0c", b"gateway:room:put"])
    for sent in (publish(redis, PUT), commit(redis, [SAY, PUT])):
        with pytest.raises(OldGateway, match="gateway 3f0c is of a version that does not know gateway:room:put"):
            asyncio.run(sent)
    assert redis.asked == ["unaware", "unaware"]
    assert issubclass(OldGateway, NotNow)


def test_a_full_stream_is_told() -> None:
    redis: Any = Redis(done=-1)
    with pytest.raises(Full, match="too many events between services"):
        asyncio.run(commit(redis, [Command(("events:gateway", b"{}"), "emit")]))

"""What is looked up before a command to gateways is sent, and what is not sent then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from kraftek.service.commits import UNAWARE, Command, Commits, Full, NotNow, OldGateway, Told, Topic, Wants, wants

PUT = Command(("PUBLISH", "said", b"put"), wants=wants("k:", "gateway:room:put"))
SAY = Command(("PUBLISH", "said", b"say"))
TELL = Command(("PUBLISH", "k:said", b"tell"), topic=Topic("room:r", "k:", "m"))


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
    commits = Commits(redis)
    assert asyncio.run(commits.publish(SAY)) == asyncio.run(commits.publish(PUT)) == Told(3)
    assert asyncio.run(commits.commit([PUT, SAY, PUT]))
    assert asyncio.run(commits.commit([]))
    assert redis.asked == [SAY.parts, "unaware", PUT.parts, "unaware", "script"]


def test_nothing_is_sent_while_a_gateway_does_not_know_it() -> None:
    redis: Any = Redis([b"3f0c", b"gateway:room:put"])
    for sent in (Commits(redis).publish(PUT), Commits(redis).commit([SAY, PUT])):
        with pytest.raises(OldGateway, match="gateway 3f0c is of a version that does not know gateway:room:put"):
            asyncio.run(sent)
    assert redis.asked == ["unaware", "unaware"]
    assert issubclass(OldGateway, NotNow)


def test_a_full_stream_is_told() -> None:
    redis: Any = Redis(done=-1)
    with pytest.raises(Full, match="too many events between services"):
        asyncio.run(Commits(redis).commit([Command(("events:gateway", b"{}"), "emit")]))


class Histories:
    """A Redis in which there are rules of histories, or none; and what it was asked for rooms."""

    def __init__(self) -> None:
        self.kept = False
        self.asked: list[tuple[str, tuple[Any, ...]]] = []

    async def call(self, *command: Any) -> int:
        self.asked.append(("plain", command))
        return 3

    async def run(self, script: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        short = "EXISTS" in script.source
        self.asked.append(("short" if short else "long", tuple(args)))
        if short:
            return -2 if self.kept else 1
        return [2, 7, b"e"] if "commit" not in script.source and "tellings" not in script.source else 1


def test_one_message_is_published_as_ever_until_there_are_histories() -> None:
    redis: Any = Histories()
    commits = Commits(redis)
    assert asyncio.run(commits.publish(TELL)) == Told(1, 0, "")
    redis.kept = True
    assert [asyncio.run(commits.publish(TELL)) for _ in range(2)] == [Told(2, 7, "e")] * 2
    assert asyncio.run(commits.commit([TELL]))
    asked = "short", ("k:said", b"tell", "k:gateways:history:rules")
    assert redis.asked == [asked, asked, *[("long", ("k:", "k:said", "room:r", b"tell", "m"))] * 3]


def test_what_a_handler_does_goes_on_as_ever_until_there_are_histories() -> None:
    redis: Any = Histories()
    commits = Commits(redis)
    commands = [TELL, SAY]
    short = "", "", "always", 3, *TELL.parts, "always", 3, *SAY.parts, "rules", 1, "k:gateways:history:rules"
    long = "", "", "tell", 5, "k:", "k:said", "room:r", b"tell", "m", "always", 3, *SAY.parts
    assert asyncio.run(commits.commit(commands))
    redis.kept = True
    assert asyncio.run(commits.commit(commands))
    assert asyncio.run(commits.commit(commands))
    assert redis.asked == [("short", short), ("short", short), ("long", long), ("long", long)]
    assert asyncio.run(commits.commit([SAY, SAY]))
    assert redis.asked[-1][1] == ("", "", *("always", 3, *SAY.parts) * 2)


def test_what_nobody_has_is_false() -> None:
    assert [bool(told) for told in (Told(0), Told(1), Told(0, 1, "e"))] == [False, True, True]

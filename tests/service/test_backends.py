"""A service is not deaf for ever because Redis went away between its subscriptions: a real Redis, killed just then."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from kraftek.bus import RedisBus
from kraftek.contract.iteration import Iteration
from kraftek.contract.lua import Script
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Redis
from kraftek.service import asyncio as over_asyncio
from kraftek.service import twisted as over_twisted
from kraftek.service.backend import Rejected
from tests.support.redis_server import PrivateRedis
from tests.support.waiting import until, wait_until


class Place:
    """A Redis that is killed and started again, and what was heard over it."""

    def __init__(self) -> None:
        self.redis = PrivateRedis()
        self.redis.start()
        self.heard: list[bytes] = []

    def restart(self) -> None:
        self.redis.kill()
        self.redis.start()

    def tell(self) -> None:
        self.redis.call("PUBLISH", "first", b"1")
        self.redis.call("PUBLISH", "second", b"2")


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.redis.close()


# redis-py leaves the socket to the garbage collector when it connects again while somebody reads.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_asyncio(place: Place) -> None:
    async def play() -> None:
        backend = over_asyncio._Backend(place.redis.url)
        await backend.subscribe("first", place.heard.append)
        place.restart()
        await backend.subscribe("second", place.heard.append)
        place.tell()
        await asyncio.to_thread(wait_until, lambda: len(place.heard) == 2, lambda: f"two messages in {place.heard}")
        await backend.close()

    asyncio.run(asyncio.wait_for(play(), 20.0))
    assert place.heard == [b"1", b"2"]


def test_channels_come_and_go_while_messages_are_heard(place: Place) -> None:
    async def play() -> None:
        backend = over_asyncio._Backend(place.redis.url)
        await backend.subscribe("steady", place.heard.append)
        for number in range(20):
            names = [f"{number}.{part}" for part in range(3)]
            place.redis.call("PUBLISH", "steady", b"%d" % number)
            await asyncio.gather(*(backend.subscribe(name, place.heard.append) for name in names))
            for name in names:
                place.redis.call("PUBLISH", name, name.encode())
            await asyncio.gather(*(backend.unsubscribe(name) for name in names))
        assert place.redis.call("PUBSUB", "CHANNELS") == [b"steady"]
        await backend.close()

    asyncio.run(asyncio.wait_for(play(), 20.0))
    assert place.heard == [
        text for number in range(20) for text in (b"%d" % number, *(b"%d.%d" % (number, part) for part in range(3)))
    ]


def test_nobody_waits_for_a_channel_to_end_while_redis_is_away(place: Place) -> None:
    async def play() -> None:
        backend = over_asyncio._Backend(place.redis.url)
        for name in ("first", "second"):
            await backend.subscribe(name, place.heard.append)
        place.redis.kill()
        await backend.unsubscribe("first")
        place.redis.start()
        await backend.unsubscribe("second")
        await backend.unsubscribe("never")
        assert place.redis.call("PUBSUB", "CHANNELS") == []
        await backend.close()

    asyncio.run(asyncio.wait_for(play(), 20.0))


def test_a_door_closes_though_a_channel_is_about_to_end(place: Place) -> None:
    async def play() -> None:
        backend = over_asyncio._Backend(place.redis.url)
        await backend.subscribe("first", place.heard.append)
        backend.spawn(backend.unsubscribe("first"))
        await backend.close()

    asyncio.run(asyncio.wait_for(play(), 20.0))
    wait_until(lambda: place.redis.call("PUBSUB", "CHANNELS") == [], "the end of the connection")


def test_the_text_of_a_script_is_sent_once_to_each_redis(place: Place) -> None:
    script = Script("return redis.call('INCR', KEYS[1]) + ARGV[1]")

    def calls(command: str) -> int:
        return int(place.redis.call("INFO", "commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])

    async def play() -> None:
        backend = over_asyncio._Backend(place.redis.url)
        answers = [await backend.run(script, ["n"], [10]) for _ in range(3)]
        assert (answers, calls("eval"), calls("evalsha")) == ([11, 12, 13], 1, 2)
        place.redis.call("SCRIPT", "FLUSH")
        answers = await asyncio.gather(*(backend.run(script, ["n"], [10]) for _ in range(3)))
        assert (answers, place.redis.call("GET", "n")) == ([14, 15, 16], b"6")
        with pytest.raises(Rejected, match="arithmetic"):
            await backend.run(script, ["n"], ["none"])
        await backend.close()

    asyncio.run(asyncio.wait_for(play(), 20.0))


class OverTwisted(TestCase):
    timeout = 20

    async def test_twisted(self) -> None:
        place = Place()
        self.addCleanup(place.redis.close)
        config, iteration = Redis(url=place.redis.url), Iteration(reactor)
        bus = RedisBus(reactor, config, iteration, Counters(), keeps_epoch=False)
        backend = over_twisted.TwistedBackend(reactor, config, bus)
        bus.startService()
        self.addCleanup(bus.stopService)
        await backend.subscribe("first", place.heard.append)
        place.restart()
        await backend.subscribe("second", place.heard.append)
        place.tell()
        await until(lambda: len(place.heard) == 2, lambda: f"two messages in {place.heard}")
        assert place.heard == [b"1", b"2"]

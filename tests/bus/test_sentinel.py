"""The way to Redis through sentinels: three real ones, a master and a replica; and, for what Twisted's part of it must
not meet, none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.trial.unittest import TestCase

from kraftek.bus import RedisBus
from kraftek.bus.endpoint import ConnectionService
from kraftek.bus.sentinel import SentinelEndpoint, SentinelError
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters
from kraftek.contract.redis_url import redis_address
from kraftek.contract.settings import Redis
from tests.support.ports import free_port
from tests.support.redis_server import PrivateRedis
from tests.support.sentinels import Sentinels
from tests.support.waiting import until, until_logged


def start(test: TestCase, url: str, **config: Any) -> RedisBus:
    bus = RedisBus(reactor, Redis(url=url, ping_timeout=1.0, **config), Iteration(reactor), Counters())
    bus.startService()
    test.addCleanup(bus.stopService)
    return bus


async def port_of(bus: RedisBus) -> int:
    """Of the server that the bus is connected to."""
    await until(lambda: bus.available, "a connection to Redis", 20.0)
    answer = await bus.call("CONFIG", [], ["GET", "port"])
    return int(answer[1])


def lines(events: Sequence[LogEvent]) -> list[str]:
    return [formatEvent(event) or "" for event in events]


def test_who_stops_while_it_connects_to_a_sentinel_asks_no_other() -> None:
    # The next one would lead to a connection that Twisted's machine is too late for: nobody closes it.
    config = Redis(url="redis+sentinel://127.0.0.1:26379,127.0.0.2:26379/mymaster")
    reactor: Any = MemoryReactorClock()
    endpoint = SentinelEndpoint(reactor, reactor, redis_address(config.url), config)
    service = ConnectionService(endpoint, Protocol, lambda _: 1.0, reactor, lambda _: None)
    service.startService()
    assert [host for host, *_ in reactor.tcpClients] == ["127.0.0.1"]
    stopped: list[object] = []
    service.stopService().addCallback(stopped.append)
    assert len(stopped) == 1
    reactor.advance(60.0)
    assert [host for host, *_ in reactor.tcpClients] == ["127.0.0.1"]
    assert not reactor.getDelayedCalls()


class AskingTest(TestCase):
    """What sentinels are asked, and what they answer. None of these tests lets the master change."""

    timeout = 60
    sentinels: ClassVar[Sentinels]

    @classmethod
    def setUpClass(cls) -> None:
        cls.sentinels = Sentinels(password="hunter2")
        cls.sentinels.start()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.sentinels.close()

    def url(self, *places: str, name: str = "mymaster", password: str = "hunter2") -> str:
        query = f"?sentinel_password={password}" if password else ""
        return f"redis+sentinel://{','.join(places or self.places)}/{name}{query}"

    @property
    def places(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.sentinels.ports]

    async def refused(self, url: str, *reasons: str) -> None:
        """It never works, and the log says why, without the password."""
        with capturedLogs() as events:
            bus = start(self, url)
            for reason in reasons:
                await until_logged(events, reason)
        assert not bus.available
        assert "hunter2" not in repr(events)

    async def test_the_master_is_found_by_any_sentinel_that_answers(self) -> None:
        silent = free_port()
        with capturedLogs() as events:
            bus = start(self, self.url(f"127.0.0.1:{silent}", f"localhost:{self.sentinels.ports[2]}"))
            assert await port_of(bus) == self.sentinels.server_ports[0]
            await until_logged(events, f"The sentinel at 127.0.0.1:{silent} is unavailable, trying again: ")
        found = f"The master mymaster is at 127.0.0.1:{self.sentinels.server_ports[0]}, says the sentinel at localhost:"
        assert sum(found in line for line in lines(events)) == 1
        assert "hunter2" not in repr(events)

    async def test_a_sentinel_that_does_not_answer_is_given_up_after_a_while(self) -> None:
        mute = PrivateRedis()
        self.addCleanup(mute.close)
        port = free_port()
        mute.start("--port", str(port))
        mute.freeze()
        bus = start(self, self.url(f"127.0.0.1:{port}", self.places[1]))
        assert await port_of(bus) == self.sentinels.server_ports[0]
        mute.thaw()

    async def test_an_unknown_name(self) -> None:
        unknown = f"the sentinel at {self.places[2]}: it knows no master named other"
        await self.refused(self.url(name="other"), unknown)

    async def test_no_password_for_the_sentinels(self) -> None:
        await self.refused(
            self.url(password=""), "it wants a password, as sentinel_password at the end of the URL: NOAUTH"
        )

    async def test_a_wrong_password_for_the_sentinels(self) -> None:
        wrong = "it refuses sentinel_username and sentinel_password of the URL: WRONGPASS"
        await self.refused(self.url(password="hunter22"), wrong)

    async def test_a_server_that_is_no_sentinel(self) -> None:
        place = f"127.0.0.1:{self.sentinels.server_ports[0]}"
        await self.refused(
            self.url(place, password=""), f"the sentinel at {place}: it is no sentinel: ERR unknown command"
        )

    async def test_no_sentinel_there(self) -> None:
        places = [f"127.0.0.1:{free_port()}", f"[::1]:{free_port()}"]
        name = f"Redis at mymaster (sentinels {places[0]}, {places[1].replace('[', '').replace(']', '')})"
        await self.refused(
            self.url(*places), f"{name} is unavailable, trying again: the sentinel at {places[0]}: Connection"
        )

    async def test_a_password_that_the_master_refuses(self) -> None:
        url = self.url().replace("//", "//:hunter3@")
        await self.refused(url, "is unavailable, trying again: ")

    async def test_readers_of_streams_connect_there_too(self) -> None:
        bus = start(self, self.url())
        arrived: Deferred[str] = Deferred()
        reading = bus.read("g", "c", "s", lambda entry_id, event, delivered: arrived.callback(entry_id))
        await until(lambda: bus.available, "a connection to Redis")
        entry_id = await bus.call("XADD", ["s"], ["*", "event", "{}"])
        assert await arrived == entry_id.decode()
        await reading.end()


class FailOverTest(TestCase):
    """The master changes."""

    timeout = 120

    async def test_the_old_master_is_left_at_once(self) -> None:
        """After SENTINEL FAILOVER. That one dies is tested with the daemon."""
        sentinels = Sentinels()
        self.addCleanup(sentinels.close)
        sentinels.start()
        bus = start(self, sentinels.url)
        arrived: list[str] = []
        reading = bus.read("g", "c", "s", lambda entry_id, event, delivered: arrived.append(entry_id))
        heard: list[bytes] = []
        bus.subscribe("channel", heard.append)
        assert await port_of(bus) == sentinels.server_ports[0]

        with capturedLogs() as events:
            sentinels.fail_over()
            now = f"127.0.0.1:{sentinels.server_ports[1]}"
            await until_logged(events, f"the master is at {now} now", timeout=20.0)
            assert await port_of(bus) == sentinels.server_ports[1]
        # It is demoted ten seconds later. Nobody is to be there until then.
        with sentinels.servers[0].client() as old:
            assert old.info("replication")["role"] == "master"
            assert old.pubsub_numsub("channel") == [(b"channel", 0)]
            assert "xreadgroup" not in [client["cmd"] for client in old.client_list()]
        await self.works(bus, sentinels, 1, heard, arrived)

        await reading.end()

    async def works(
        self, bus: RedisBus, sentinels: Sentinels, master: int, heard: list[bytes], arrived: list[str]
    ) -> None:
        """Publishing, listening and reading a stream, at this master."""
        count = len(heard)
        with sentinels.servers[master].client() as client:
            assert client.publish("channel", "x") == 1
            await until(lambda: len(heard) > count, "the message")
            entry_id = client.xadd("s", {"event": "{}"})
        await until(lambda: entry_id.decode() in arrived, "the entry")
        receipts: list[int] = []
        bus.publish("channel", b"y", receipts.append)
        await until(lambda: receipts, "a receipt")
        assert receipts == [1]

    async def test_a_sentinel_that_knows_less_is_not_believed(self) -> None:
        """One that was cut off goes on naming a former master. Here what it names is a master indeed."""
        sentinels, behind = Sentinels(), Sentinels()
        self.addCleanup(sentinels.close)
        self.addCleanup(behind.close)
        sentinels.start()
        behind.start()
        sentinels.fail_over()
        bus = start(self, sentinels.url.replace("//", f"//127.0.0.1:{behind.ports[0]},"))
        for _ in range(3):
            while await port_of(bus) != sentinels.server_ports[1]:
                await until(lambda: not bus.available, "the loss of the wrong master")
            with sentinels.servers[1].client() as client:
                client.client_kill_filter(_type="normal", skipme=True)
            await until(lambda: not bus.available, "the loss of Redis")

        for port in sentinels.ports:
            sentinels.kill_sentinel(port)
        with pytest.raises(SentinelError, match="what the others know is older than what was known before"):
            await bus.endpoint.connect(Factory())

"""The stand-ins keep what the interfaces promise: each contract is held by the stand-in and by the real part alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.bus import RedisBus
from kraftek.contract.errors import Code, NotPublished, PeerError
from kraftek.contract.interfaces import (
    Here,
    IAccess,
    IAccessListener,
    IBus,
    IBusListener,
    IClientLink,
    IReading,
    IRooms,
    Mended,
)
from kraftek.contract.iteration import Iteration
from kraftek.contract.lua import ForEach
from kraftek.contract.messages import Outgoing, Token
from kraftek.contract.metrics import Counters
from kraftek.contract.names import LOST_GATEWAYS, entries_key
from kraftek.contract.settings import Redis, RoomPolicy
from kraftek.core.registry import ServiceRegistry
from kraftek.core.rooms.room_cache import RedisRooms
from kraftek.core.rooms.shown import Shown
from tests.support.fakes import FakeAccess, FakeBus, FakeLink, FakeRooms
from tests.support.redis_server import PrivateRedis, private_redis
from tests.support.waiting import until

EACH = ForEach.make(
    "key", "", lambda given: (([key for key, _, _ in given],), [body for _, body, _ in given]), "return 1"
)

PREFIX = "k:"


@implementer(IBusListener)
class Told:
    """Notes what a bus tells it."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def bus_up(self) -> None:
        self.events.append("up")

    def bus_down(self) -> None:
        self.events.append("down")

    def epoch_changed(self) -> None:
        self.events.append("epoch")


async def real_bus(case: TestCase, in_flight: int = 10) -> tuple[RedisBus, PrivateRedis]:
    """A bus on a redis-server of its own, up."""
    server = private_redis(case)
    config = Redis(url=server.url, prefix=PREFIX, in_flight=in_flight)
    bus = RedisBus(reactor, config, Iteration(reactor), Counters())
    bus.startService()
    case.addCleanup(bus.stopService)
    await until(lambda: bus.available, "a connection to Redis")
    return bus, server


class BusContract:
    """What everybody who publishes relies on. The bus has ``PREFIX``, and a bound of ten in flight."""

    bus: IBus

    async def answered(self) -> None:
        """Return once all that was published has been delivered and answered."""
        raise NotImplementedError

    async def cut(self) -> None:
        """Take Redis away."""
        raise NotImplementedError

    async def test_it_is_a_bus(self) -> None:
        assert verifyObject(IBus, self.bus)
        assert self.bus.available is True
        assert isinstance(self.bus.epoch, str)
        assert self.bus.channel_name("channel") == "k:channel"

    async def test_a_listener_is_told_at_once_and_of_what_happens_then(self) -> None:
        told = Told()
        self.bus.add_listener(told)
        assert told.events == ["up"]
        await self.cut()
        assert told.events == ["up", "down"]

    async def test_what_is_published_is_heard_and_counted_later_and_in_order(self) -> None:
        heard: list[bytes] = []
        receipts: list[int] = []
        self.bus.subscribe("one", heard.append)
        await self.bus.settled()
        for number, channel in enumerate(("one", "none", "one")):
            self.bus.publish(channel, b"%d" % number, receipts.append)
        assert (heard, receipts) == ([], [])
        await self.answered()
        assert (heard, receipts) == ([b"0", b"2"], [1, 0, 1])

    async def test_a_channel_is_followed_until_it_is_not(self) -> None:
        first: list[bytes] = []
        second: list[bytes] = []
        receipts: list[int] = []

        async def publish(body: bytes) -> None:
            self.bus.publish("one", body, receipts.append)
            await self.answered()

        await self.bus.follow("one", first.append)
        await publish(b"1")
        self.bus.unfollow("one")
        await self.bus.settled()
        await publish(b"2")
        await self.bus.follow("one", first.append)
        self.bus.unfollow("one")
        await self.bus.follow("one", second.append)
        await publish(b"3")
        assert (first, second, receipts) == ([b"1"], [b"3"], [1, 0, 1])

    async def test_too_much_in_flight_is_refused_without_a_receipt(self) -> None:
        receipts: list[int] = []
        for _ in range(10):
            self.bus.publish("none", b"", receipts.append)
        with pytest.raises(NotPublished):
            self.bus.publish("none", b"", receipts.append)
        await self.answered()
        assert receipts == [0] * 10
        self.bus.publish("none", b"", receipts.append)

    async def test_what_is_in_flight_when_redis_goes_is_lost_and_said_so(self) -> None:
        receipts: list[int] = []
        self.bus.publish("none", b"", receipts.append)
        calling: Deferred[object] = self.bus.call("GET", ["key"])
        await self.cut()
        assert receipts == [-1]
        await self.failed(calling)

    async def test_without_redis_everything_is_refused(self) -> None:
        await self.cut()
        assert self.bus.available is False
        assert self.bus.epoch is None
        with pytest.raises(NotPublished):
            self.bus.publish("none", b"", lambda receivers: None)
        await self.failed(self.bus.call("GET", ["key"]))
        await self.failed(self.bus.settled())

    async def deafen(self) -> None:
        """Take away the connection that listens alone."""
        raise NotImplementedError

    async def test_who_does_not_listen_still_publishes(self) -> None:
        told = Told()
        receipts: list[Any] = []
        self.bus.add_listener(told)
        await self.deafen()
        assert told.events == ["up", "down"]
        assert (self.bus.available, self.bus.epoch) == (False, None)
        self.bus.publish("none", b"", receipts.append)
        self.bus.run(EACH, ("k", b"", receipts.append))
        with pytest.raises(NotPublished):
            self.bus.run_all(EACH, [("k", b"", receipts.append)])
        await self.failed(self.bus.call("GET", ["key"]))
        await self.failed(self.bus.settled())

    async def failed(self, result: Deferred[Any]) -> None:
        try:
            await result
        except NotPublished:
            return
        raise AssertionError("NotPublished was expected")


class FakeBusTest(BusContract, TestCase):
    """The stand-in."""

    def setUp(self) -> None:
        self.bus = self.fake = FakeBus(prefix=PREFIX, in_flight=10)

    async def answered(self) -> None:
        self.fake.deliver()

    async def cut(self) -> None:
        self.fake.down()

    async def deafen(self) -> None:
        self.fake.deafen()

    async def test_it_comes_back(self) -> None:
        told = Told()
        bus = FakeBus(available=False)
        bus.add_listener(told)
        bus.up()
        assert told.events == ["up"]
        bus.publish("channel", b"", lambda receivers: None)

    async def test_buses_may_share_a_redis(self) -> None:
        channels: dict[str, list[Callable[[bytes], None]]] = {}
        heard: list[bytes] = []
        one = FakeBus(channels)
        FakeBus(channels).subscribe("channel", heard.append)
        one.publish("channel", b"x", lambda receivers: None)
        one.deliver()
        assert heard == [b"x"]

    async def test_what_is_read_is_the_tests_to_hand_out(self) -> None:
        handed: list[object] = []
        reading = self.fake.read("group", "me", "s", lambda *entry: handed.append(entry))
        assert verifyObject(IReading, reading)
        assert self.fake.readings == [reading]
        assert reading.stream == "s"
        reading.hand("1-0", b"event")
        reading.ack("1-0")
        assert (handed, reading.acked) == ([("1-0", b"event", 1)], ["1-0"])
        await reading.end()
        assert reading.ended

    async def test_what_is_tracked_is_the_tests_to_tell(self) -> None:
        told: list[list[str] | None] = []
        self.fake.track("access:", told.append)
        self.fake.tracked["access:"](["access:user:a"])
        assert told == [["access:user:a"]]


class RedisBusTest(BusContract, TestCase):
    """The real part."""

    timeout = 30

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.bus, self.redis = await real_bus(self)

    async def answered(self) -> None:
        await self.bus.settled()
        commands = self.bus.commands  # type: ignore[attr-defined]
        await until(lambda: not commands.waiting, lambda: f"all answers; {commands.waiting} are missing")
        await self.bus.settled()

    async def cut(self) -> None:
        self.redis.kill()
        await until(lambda: not self.bus.available, "the loss of Redis")

    async def deafen(self) -> None:
        subscriber: Any = self.bus.subscriber  # type: ignore[attr-defined]
        self.redis.call("CLIENT", "KILL", "ID", str(subscriber.id))
        await until(lambda: not self.bus.available, "the loss of the subscription")


WATCHED = (RoomPolicy(pattern="*", presence=True),)


class RoomsContract:
    """What reconciliation relies on, and presence."""

    rooms: IRooms
    shown: Shown

    async def dies(self) -> None:
        """The process that wrote what there is counts as gone."""

    async def older(self, user_id: str, room_id: str, socket_id: str) -> list[str]:
        """The older sockets that a user has when another one enters."""
        _, older = await self.rooms.enter((user_id, room_id, socket_id), 1)
        return older

    async def test_it_is_a_room_cache(self) -> None:
        assert verifyObject(IRooms, self.rooms)

    async def test_who_enters_learns_of_the_same_users_older_sockets_there(self) -> None:
        assert await self.older("u", "r", "g.1") == []
        assert await self.older("v", "r", "g.2") == []
        assert await self.older("u", "s", "g.1") == []
        assert await self.older("u", "r", "g.1") == []
        assert await self.older("u", "r", "g.3") == ["g.1"]

    async def test_who_enters_is_newer_than_all_that_stand(self) -> None:
        first, _ = await self.rooms.enter(("u", "r", "g.1"), 1000)
        second, _ = await self.rooms.enter(("u", "r", "g.2"), 10)
        assert (first, second) == (1000, 1001)

    async def test_a_goodbye_takes_away_the_own_entry_alone(self) -> None:
        await self.older("u", "r", "g.1")
        await self.older("u", "r", "g.2")
        for _ in range(2):
            await self.rooms.leave([(("u", "r", "g.1"), "left")])
        assert await self.older("u", "r", "g.4") == ["g.2"]
        await self.rooms.leave([(("u", "r", "g.2"), "left"), (("u", "r", "g.4"), "left")])
        assert await self.older("u", "r", "g.5") == []

    async def test_the_dead_are_buried_once(self) -> None:
        await self.older("u", "r", "g.1")
        await self.older("v", "r", "g.2")
        await self.dies()
        await self.older("v", "r", "g.3")
        for _ in range(2):
            await self.rooms.bury([("u", "r", "g.1"), ("v", "r", "g.2")])
        assert await self.older("u", "r", "g.4") == []
        await self.rooms.bury([("u", "r", "g.1")])
        assert await self.older("u", "r", "g.5") == ["g.4"]
        assert await self.older("v", "r", "g.6") == ["g.3"]

    async def test_what_is_mended_keeps_its_place_among_its_users_sockets(self) -> None:
        at, _ = await self.rooms.enter(("u", "r", "g.2"), 1000)
        assert await self.rooms.mend([(("u", "r", "g.2"), at)]) == []
        older, newer = ("u", "r", "g.1"), ("u", "r", "g.3")
        assert await self.rooms.mend([(older, at - 1), (("v", "r", "g.1"), 1)]) == [Mended(older, False, [])]
        assert await self.rooms.mend([(newer, at + 1)]) == [Mended(newer, True, ["g.2", "g.1"])]

    async def test_redis_has_a_clock(self) -> None:
        began = await self.rooms.begin_epoch()
        _, later = await self.rooms.count()
        assert 0 < began <= later

    async def test_what_stands_can_be_counted_and_scanned(self) -> None:
        for number in range(3):
            await self.older("u", f"r{number}", "g.1")
        await self.rooms.leave([(("u", "r1", "g.1"), "left")])
        number, _ = await self.rooms.count()
        assert number == 2
        cursor, entries = await self.rooms.scan(b"0")
        assert (cursor, sorted(entries)) == (b"0", [("u", "r0", "g.1"), ("u", "r2", "g.1")])

    async def test_who_is_in_a_room_is_known_with_what_each_shows(self) -> None:
        assert await self.rooms.here("r", 2, []) == Here(0, {})
        self.shown.show(("v", "r", "g.2"), b"[1]")
        for user_id, socket_id in (("u", "g.1"), ("v", "g.2"), ("w", "g.3")):
            await self.older(user_id, "r", socket_id)
        assert await self.rooms.here("r", 3, []) == Here(3, {"u": b"", "v": b"[1]", "w": b""})
        some = await self.rooms.here("r", 2, ["gone", "w", "v"])
        assert some == Here(3, {"w": b"", "v": b"[1]"})
        more = await self.rooms.here("r", 2, ["gone", "w"])
        assert (more.count, len(more.users), "w" in more.users) == (3, 2, True)
        await self.rooms.leave([(("v", "r", "g.2"), "left")])
        assert await self.rooms.here("r", 2, ["v"]) == Here(2, {"u": b"", "w": b""})


class FakeRoomsTest(RoomsContract, TestCase):
    """The stand-in."""

    def setUp(self) -> None:
        self.rooms = self.fake = FakeRooms()
        self.shown = self.fake.shown = Shown(WATCHED)

    async def test_it_fails_when_it_is_told_to(self) -> None:
        self.fake.failure = NotPublished("Redis is unavailable")
        for failing in (
            self.fake.begin_epoch(),
            self.fake.enter(("u", "r", "g.1"), 1),
            self.fake.leave([(("u", "r", "g.1"), "left")]),
            self.fake.mend([(("u", "r", "g.1"), 1)]),
            self.fake.count(),
            self.fake.scan(b"0"),
            self.fake.bury([("u", "r", "g.1")]),
            self.fake.here("r", 1, []),
        ):
            self.failureResultOf(failing, NotPublished)


class RedisRoomsTest(RoomsContract, TestCase):
    """The real part."""

    timeout = 30

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.bus, _ = await real_bus(self)
        self.rooms = RedisRooms(self.bus, ServiceRegistry(), "g", "k:events:reply:g", policies=WATCHED)
        self.shown = self.rooms.shown

    async def dies(self) -> None:
        await self.bus.call("RENAME", [entries_key("g"), LOST_GATEWAYS])


class FakeLinkTest(TestCase):
    """The real link is held to the same by tests/edge/websocket/test_protocol.py."""

    def test_it_is_a_link(self) -> None:
        assert verifyObject(IClientLink, FakeLink())

    def test_after_the_end_nothing_is_written(self) -> None:
        link = FakeLink()
        link.write(Outgoing(b'"one"'))
        link.close(4401, "AUTH_FAILED")
        link.write(Outgoing(b'"two"'))
        link.close(1001, "later")
        assert link.read() == ["one"]
        assert link.read() == []
        assert link.closed == (4401, "AUTH_FAILED")

    def test_it_is_paused_and_resumed(self) -> None:
        link = FakeLink()
        link.pause()
        assert link.paused
        link.resume()
        assert not link.paused


@implementer(IAccessListener)
class Listening:
    """Notes what grew stale."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    def access_stale(self, digest: str | None, user_id: str | None, room_id: str | None, revoked: bool) -> None:
        self.told.append((digest, user_id, room_id, revoked))


class FakeAccessTest(TestCase):
    """Of the real one's answers, and when it gives them, tests/access/ tells."""

    def test_it_is_access(self) -> None:
        assert verifyObject(IAccess, FakeAccess())

    def test_a_question_is_answered_when_the_test_says_so(self) -> None:
        access = FakeAccess()
        asked = [access.check(Token("t"), room_id) for room_id in ("r", None, "s")]
        self.assertNoResult(asked[0])
        access.next().yes("u", expiresAt=5)
        access.next().no("never")
        access.next().away()
        grant = self.successResultOf(asked[0])
        assert (grant.user_id, grant.room_id, grant.expires_at) == ("u", "r", 5)
        codes = [self.failureResultOf(each, PeerError).value.code for each in asked[1:]]
        assert codes == [Code.AUTH_FAILED, Code.AUTH_UNAVAILABLE]

    def test_what_is_known_is_answered_at_once(self) -> None:
        access = FakeAccess()
        access.known["t", "r"] = PeerError(Code.AUTH_FAILED, "no")
        self.failureResultOf(access.check(Token("t"), "r"), PeerError)
        assert access.questions == []

    def test_its_listeners_are_told(self) -> None:
        access, listening = FakeAccess(), Listening()
        assert verifyObject(IAccessListener, listening)
        access.add_listener(listening)
        access.stale(user_id="u", revoked=False)
        assert listening.told == [(None, "u", None, False)]

"""Who is in which room, as services are told, while gateway processes are killed, paused and ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import connect as connect_async

from kraftek.contract.names import ROOMS_RESET
from kraftek.core.rooms.leases import LEASE, OUTAGE
from tests.integration.test_processes import READY
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from websockets.asyncio.client import ClientConnection

    from tests.integration.conftest import Connect, Gateway, RedisServer, StartGateway

SERVICES = {
    "board": {"channel": "events:board", "presence": True},
    "log": {"channel": "events:log", "presence": True, "transport": "stream", "partitions": 2},
    "stickyNotes": "events:stickyNotes",
}
WITHIN = 20.0
"""Seconds within which services must hear of a gateway's death: ten, and on a busy machine twice as many."""

PATIENCE = 60.0
"""Seconds for what has no promise about time, on a busy machine."""

Told = tuple[str, str, str, str | None]
"""joined or left, the user, the room, and why."""


_SNAPSHOT = """
local entries = {}
for _, key in ipairs(redis.call('KEYS', 'room:*')) do
    local room, users = key:sub(6), redis.call('HGETALL', key)
    for i = 1, #users, 2 do
        local own = redis.call('GET', 'socket:' .. users[i] .. ':' .. room)
        entries[#entries + 1] = {room, users[i], users[i + 1], own}
    end
end
return {entries, #redis.call('KEYS', 'socket:*')}
"""


class Presence:
    """What services hear of users: one over Pub/Sub, and one over two streams."""

    def __init__(self, server: RedisServer) -> None:
        self.redis: Any = server.client()
        self.channel: Any = self.redis.pubsub(ignore_subscribe_messages=True)
        self.channel.subscribe("events:board")
        self.channel.get_message(timeout=5)
        self._heard: list[Told] = []

    def heard(self) -> list[Told]:
        """All that came over Pub/Sub, in order."""
        while (message := self.channel.get_message()) is not None:
            self._heard += told(message["data"])
        return list(self._heard)

    def streamed(self) -> list[Told]:
        """All that came over the streams."""
        entries = [entry for number in range(2) for entry in self.redis.xrange(f"events:log:{number}")]
        ordered = sorted(entries, key=lambda entry: order(entry[0]))
        return [event for _, entry in ordered for event in told(entry["event"])]

    def until(self, number: int, timeout: float = PATIENCE) -> list[Told]:
        """What was heard, as soon as it is so much."""
        return wait_until(
            lambda: heard if len(heard := self.heard()) >= number else [],
            lambda: f"{number} events but {len(self._heard)}, the last of them {self._heard[-3:]}",
            timeout,
        )

    def cache(self) -> dict[tuple[str, str], str]:
        """The socket of each user in each room, as Redis has them."""
        # In one script, or a gateway may write between two looks.
        entries, sockets = self.redis.eval(_SNAPSHOT, 0)
        assert all(socket == own for _, _, socket, own in entries), entries
        assert sockets == len(entries)
        return {(user, room): socket for room, user, socket, _ in entries}

    def looks(self, number: int) -> None:
        """Returns when the gateways have looked for dead ones so often."""
        for _ in range(number):
            self._look()

    def _look(self) -> None:
        before = self.redis.get("gateways:looked")
        wait_until(lambda: self.redis.get("gateways:looked") != before, "a look", PATIENCE)


def told(event: str) -> list[Told]:
    words = json.loads(event)
    if words["eventType"] == ROOMS_RESET:
        return []
    kind = words["eventType"].removeprefix("gateway:client:")
    return [(kind, words["userId"], words["roomId"], words["payload"].get("reason"))]


def order(entry_id: str) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split("-")))


def user(token: str) -> str:
    """The user of a token, in open mode."""
    return f"user_{token}"


async def admit(gateway: Gateway, token: str, room: str) -> ClientConnection:
    """A client that is in a room. Hundreds of these are no hundreds of threads."""
    client = await connect_async(f"{gateway.url}?token={token}&roomId={room}", compression=None, proxy=None)
    for expected in ("connected", "authenticated"):
        async with asyncio.timeout(30):
            assert json.loads(await client.recv())["type"] == expected
    return client


def test_a_gateway_is_killed_under_500_clients(redis_server: RedisServer, gateway: StartGateway) -> None:
    presence = Presence(redis_server)
    dying, *living = [gateway(redis_server, services=SERVICES) for _ in range(3)]
    at_home = {number: f"room{number % 5}" for number in range(500)}
    moving = range(0, 500, 5)
    elsewhere = {number: f"room{number % 5}" for number in range(500, 540)}

    async def story() -> None:
        clients = [await admit(dying, f"t{number}", room) for number, room in at_home.items()]
        clients += [await admit(living[number % 2], f"t{number}", room) for number, room in elsewhere.items()]
        before = await asyncio.to_thread(presence.until, 540)
        everybody = {("joined", user(f"t{n}"), room, None) for n, room in {**at_home, **elsewhere}.items()}
        assert len(before) == 540
        assert set(before) == everybody

        dying.kill()
        killed = time.monotonic()
        clients += await asyncio.gather(
            *(admit(living[number % 2], f"t{number}", at_home[number]) for number in moving)
        )
        after = await asyncio.to_thread(presence.until, 540 + 400, WITHIN - (time.monotonic() - killed))
        print(f"the last of 400 users was told to have left {time.monotonic() - killed:.1f} s after the kill")

        # Both others look again and again: nothing more comes.
        await asyncio.to_thread(presence.looks, 4)
        after = presence.heard()
        gone = {n: room for n, room in at_home.items() if n not in moving}
        expected = {("left", user(f"t{n}"), room, "gateway_lost") for n, room in gone.items()}
        assert Counter(after[540:]) == Counter(dict.fromkeys(expected, 1))
        assert Counter(presence.streamed()) == Counter(dict.fromkeys(everybody | expected, 1))

        ids = {each.wait_log(READY)["id"] for each in living}
        cache = presence.cache()
        here = {**elsewhere, **{n: at_home[n] for n in moving}}
        assert set(cache) == {(user(f"t{n}"), room) for n, room in here.items()}
        assert {socket.partition(".")[0] for socket in cache.values()} == ids
        assert set(presence.redis.zrange("gateways", 0, -1)) == ids
        assert set(presence.redis.scan_iter("gateway:*:entries")) == {f"gateway:{id_}:entries" for id_ in ids}
        assert len(list(presence.redis.scan_iter("sockets:*"))) == len(here)

        for client in clients[500:]:
            await client.close()
        await asyncio.to_thread(presence.until, 540 + 400 + 140)
        assert Counter(presence.heard()[940:]) == Counter(
            {("left", user(f"t{n}"), room, "closed"): 1 for n, room in here.items()}
        )
        assert presence.cache() == {}

    asyncio.run(story())


def test_a_paused_gateway_is_swept_and_comes_back(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, stage: ExitStack
) -> None:
    presence = Presence(redis_server)
    paused, other = gateway(redis_server, services=SERVICES), gateway(redis_server, services=SERVICES)
    stays, moves = connect(paused, "stays", "r"), connect(paused, "moves", "r")
    connect(other, "other", "r")
    presence.until(3)

    stage.callback(os.kill, paused.pid, signal.SIGCONT)
    os.kill(paused.pid, signal.SIGSTOP)
    assert sorted(presence.until(5)[3:]) == [
        ("left", "user_moves", "r", "gateway_lost"),
        ("left", "user_stays", "r", "gateway_lost"),
    ]
    assert presence.cache().keys() == {("user_other", "r")}
    moved = connect(other, "moves", "r")
    os.kill(paused.pid, signal.SIGCONT)

    assert presence.until(7)[5:] == [("joined", "user_moves", "r", None), ("joined", "user_stays", "r", None)]
    moves.expect_error("DUPLICATE_CONNECTION")
    wait_until(lambda: len(presence.cache()) == 3, lambda: f"three entries in {presence.cache()}")
    assert presence.cache()["user_stays", "r"] == stays.socket_id
    assert presence.cache()["user_moves", "r"] == moved.socket_id
    ids = {each.wait_log(READY)["id"] for each in (paused, other)}
    wait_until(lambda: set(presence.redis.zrange("gateways", 0, -1)) == ids, "both leases")
    stays.close()
    assert presence.until(8)[7:] == [("left", "user_stays", "r", "closed")]
    presence.looks(2)
    assert len(presence.heard()) == 8
    assert presence.streamed() == presence.heard()


def test_nobody_leaves_because_redis_was_away(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    presence = Presence(redis_server)
    gateways = [gateway(redis_server, services=SERVICES) for _ in range(3)]
    clients = [connect(each, f"t{number}", "r") for number, each in enumerate(gateways)]
    presence.until(3)
    cache = presence.cache()
    assert redis_server.process is not None
    logged = [len(each.log()) for each in gateways]
    redis_server.process.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    assert LEASE > OUTAGE
    wait_until(lambda: time.monotonic() > stopped + LEASE + 1, "all leases to run out")
    redis_server.process.send_signal(signal.SIGCONT)
    for each, after in zip(gateways, logged, strict=True):
        each.wait_log("is back after", PATIENCE, after=after)
    presence.looks(6)
    assert len(presence.heard()) == 3
    assert presence.cache() == cache
    for client in clients:
        client.expect_nothing()


def test_a_gateway_that_ends_in_order_takes_its_entries_with_it(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    presence = Presence(redis_server)
    ending, staying = gateway(redis_server, services=SERVICES), gateway(redis_server, services=SERVICES)
    client, _ = connect(ending, "one", "r"), connect(staying, "two", "r")
    presence.until(2)
    ending.terminate()
    client.expect_stop()
    assert presence.until(3)[2:] == [("left", "user_one", "r", "closed")]
    id_ = staying.wait_log(READY)["id"]
    assert presence.redis.zrange("gateways", 0, -1) == [id_]
    assert list(presence.redis.scan_iter("gateway:*:entries")) == [f"gateway:{id_}:entries"]


def test_a_gateway_that_ends_takes_more_entries_with_it_than_it_may_say_at_once(
    redis_server: RedisServer, gateway: StartGateway
) -> None:
    presence = Presence(redis_server)
    narrow = {"redis": {"in_flight": 20}}
    ending, staying = gateway(redis_server, services=SERVICES, config=narrow), gateway(redis_server, services=SERVICES)

    async def story() -> None:
        clients = [await admit(ending, f"t{number}", "r") for number in range(300)]
        await asyncio.to_thread(presence.until, 300)
        ending.terminate()
        left = await asyncio.to_thread(presence.until, 600)
        assert Counter(left[300:]) == Counter({("left", user(f"t{n}"), "r", "closed"): 1 for n in range(300)})
        for client in clients:
            async with asyncio.timeout(30):
                await client.wait_closed()

    asyncio.run(story())
    id_ = staying.wait_log(READY)["id"]
    wait_until(lambda: presence.redis.zrange("gateways", 0, -1) == [id_], "the end of the lease")
    assert presence.cache() == {}
    assert list(presence.redis.scan_iter("gateway:*:entries")) == []


def test_sockets_of_one_user_on_several_gateways_are_one_user(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    presence = Presence(redis_server)
    here, there = (gateway(redis_server, services=SERVICES, config={"sessions": "many"}) for _ in range(2))

    def holds(sockets: Sequence[str]) -> None:
        found = wait_until(
            lambda: {presence.cache().get(("user_ann", "r"))} & set(sockets),
            lambda: f"one of {sockets} in {presence.cache()}",
        )
        assert found

    first, second, third = connect(here, "ann", "r"), connect(there, "ann", "r"), connect(there, "ann", "r")
    holds([third.socket_id])
    third.close()
    holds([first.socket_id, second.socket_id])
    second.close()
    holds([first.socket_id])
    first.close()
    assert presence.until(2) == [("joined", "user_ann", "r", None), ("left", "user_ann", "r", "closed")]
    assert presence.cache() == {}
    assert presence.streamed() == presence.heard()

"""Who has got a message, as its service is told: two gateways, killed and paused, and clients of all kinds."""

from __future__ import annotations

import asyncio
import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kraftek.client.asyncio import Client as AsyncioClient
from kraftek.service import Receipt
from kraftek.service.asyncio import Publisher
from tests.service.instances import Instances
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from playwright.sync_api import Browser

    from tests.integration.conftest import Client, Connect, Gateway, RedisServer, Shared, StartGateway

SOCKETIO = Path(__file__).resolve().parent / "socketio"
SAMPLE = {"channel": "events:sample", "reply": True, "timeout": 60}
TYPE = "news:item:new"
CONFIG = {"sessions": "many", "rooms": {"kept-*": {"history": 10}}}
KEPT = {**CONFIG, "users": {"history": 10}}


@pytest.fixture
def gateways(shared: Shared) -> list[Gateway]:
    return [shared.gateway(number, services={"sample": SAMPLE}, config=KEPT) for number in range(2)]


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Where a service waits, while clients do what the test says."""
    with ThreadPoolExecutor() as pool:
        yield pool


def tell(pool: ThreadPoolExecutor, url: str, **how: Any) -> Future[Receipt]:
    """A service says something, and wants to know who has it."""

    async def told() -> Receipt:
        async with Publisher(url) as publisher:
            return await publisher.broadcast_with_receipt(TYPE, "hi", **how)

    return pool.submit(lambda: asyncio.run(told()))


def acknowledge(client: Client) -> None:
    client.send("receipt", id=client.expect(TYPE)["receipt"])


@pytest.mark.parametrize("room", ["plain-1", "kept-1"])
def test_who_has_it_who_was_too_slow_and_who_is_offline(
    shared: Shared, gateways: list[Gateway], connect: Connect, pool: ThreadPoolExecutor, room: str
) -> None:
    here, there = gateways
    url = shared.redis_server.url
    ann, ann_again = connect(here, "ann", room), connect(there, "ann", room)
    bob = connect(there, "bob", room)
    connect(there, "cid", room)  # its socket is open, and nobody reads it
    four = ["user_ann", "user_bob", "user_cid", "user_dan"]
    asked: tuple[dict[str, Any], ...] = ({"room_id": room}, {"user_ids": four})
    telling = [tell(pool, url, timeout=5.0, **how) for how in asked]
    for _ in asked:
        acknowledge(ann)  # once is enough
        ann_again.expect(TYPE)
        acknowledge(bob)
    for how, told in zip(asked, telling, strict=True):
        receipt = told.result(20)
        assert {*receipt.acknowledged} == {"user_ann", "user_bob"}
        assert receipt.slow == ("user_cid",)
        assert receipt.offline == (("user_dan",) if "user_ids" in how else ())
        assert (receipt.owed, receipt.complete) == ((), True)
    with shared.redis_server.client() as redis:
        assert [key for key in redis.keys("*") if "receipt" in key] == []


def test_nobody_waits_longer_than_it_takes(
    shared: Shared, gateways: list[Gateway], connect: Connect, pool: ThreadPoolExecutor
) -> None:
    """As soon as all have it, although a socket of one of them does not answer; and where nobody is."""
    url, (here, there) = shared.redis_server.url, gateways
    ann = connect(here, "ann", "quick")
    connect(there, "ann", "quick")
    telling = tell(pool, url, room_id="quick", timeout=30.0)
    acknowledge(ann)
    assert telling.result(20) == Receipt(("user_ann",))
    assert tell(pool, url, room_id="empty", timeout=30.0).result(20) == Receipt()
    assert tell(pool, url, user_ids=["x", "y"], timeout=30.0).result(20) == Receipt(offline=("x", "y"))
    assert tell(pool, url, user_ids=[]).result(20) == Receipt()


def test_a_gateway_that_is_paused_or_killed_owes_it(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, pool: ThreadPoolExecutor
) -> None:
    here, there = (gateway(redis_server, config=CONFIG) for _ in range(2))
    url = redis_server.url
    ann, bob = connect(here, "ann", "room"), connect(there, "bob", "room")
    connect(here, "cid", "room")
    with redis_server.client() as redis:
        wait_until(lambda: redis.hlen("room:room") == 3, "all three in the room")
    everybody = ["user_ann", "user_bob", "user_cid", "user_dan"]
    os.kill(there.process.pid, signal.SIGSTOP)
    # Both at once: soon it is taken for dead.
    in_room, to_users = tell(pool, url, room_id="room", timeout=2.0), tell(pool, url, user_ids=everybody, timeout=2.0)
    for _ in range(2):
        acknowledge(ann)
    assert in_room.result(20) == Receipt(("user_ann",), ("user_cid",), owed=("user_bob",), complete=False)
    # Nobody knows whether dan is connected to it.
    assert to_users.result(20) == Receipt(("user_ann",), ("user_cid",), owed=("user_bob", "user_dan"), complete=False)
    os.kill(there.process.pid, signal.SIGCONT)
    for _ in range(2):
        bob.expect(TYPE, 20)
    to_users = tell(pool, url, user_ids=everybody, timeout=5.0)
    acknowledge(ann)
    bob.expect(TYPE)
    bob.send("ping")
    bob.expect("pong")
    there.kill()  # it has said that bob is there, and dan is not
    assert to_users.result(20) == Receipt(("user_ann",), ("user_cid",), ("user_dan",), ("user_bob",), complete=False)


def test_a_gateway_that_stops_says_what_it_knows(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, pool: ThreadPoolExecutor
) -> None:
    here, there = (gateway(redis_server, config=CONFIG) for _ in range(2))
    ann, bob, cid = connect(here, "ann", "r"), connect(there, "bob", "r"), connect(there, "cid", "r")
    telling = tell(pool, redis_server.url, user_ids=["user_ann", "user_bob", "user_cid", "user_dan"], timeout=30.0)
    acknowledge(bob)
    cid.expect(TYPE)
    bob.expect_nothing()
    there.terminate()
    acknowledge(ann)
    assert telling.result(20) == Receipt(("user_ann", "user_bob"), ("user_cid",), ("user_dan",))


def test_with_the_client_for_python(shared: Shared, gateways: list[Gateway]) -> None:
    heard: list[Any] = []

    async def play() -> list[Receipt]:
        def fail(message: Any) -> None:
            heard.append(message.payload)
            raise RuntimeError("not handled")

        async with (
            AsyncioClient(gateways[0].url, lambda _: "ann", room="python") as client,
            AsyncioClient(gateways[1].url, lambda _: "bob", room="python") as other,
            Publisher(shared.redis_server.url) as publisher,
        ):
            await asyncio.gather(client.connect(), other.connect())
            end = client.on(TYPE, lambda message: heard.append(message.payload))
            other.on(TYPE, fail)
            receipts = [await publisher.broadcast_with_receipt(TYPE, 1, room_id="python", timeout=3.0)]
            end()
            receipts.append(await publisher.broadcast_with_receipt(TYPE, 2, user_ids=["user_ann"], timeout=1.0))
        return receipts

    first, second = asyncio.run(play())
    assert first == Receipt(("user_ann",), ("user_bob",))
    assert second == Receipt(slow=("user_ann",))  # nobody listened
    assert sorted(heard) == [1, 1]


# A page acknowledges with each of the two libraries, and one of its sockets does not: all in the same receipt.
PAGE = """
    (async () => {
        const { connect } = await import("/kraftek.js");
        const told = [];
        const client = connect(location.origin.replace("http", "ws") + "/", { token: () => "page", roomId: ROOM });
        client.on("sample:told:heard", (what) => told.push(["page", what]));
        const deaf = connect(location.origin.replace("http", "ws") + "/", { token: () => "deaf", roomId: ROOM });
        const [sue, mute] = ["sue", "mute"].map((token) => io({ forceNew: true, auth: { token, roomId: ROOM } }));
        sue.on("sample:told:heard", (what, acknowledge) => {
            told.push(["sue", what]);
            acknowledge();
        });
        mute.on("sample:told:heard", (what) => told.push(["mute", what]));
        await Promise.all([
            ...[sue, mute].map((socket) => new Promise((resolve) => socket.on("authenticated", resolve))),
            ...[client, deaf].map((each) => new Promise((resolve) => {
                each.on("state", ({ state }) => state === "ready" && resolve());
            })),
        ]);
        const inRoom = await client.request("sample:tell:heard", { payload: 1, timeout: 3 });
        const users = ["user_page", "user_sue", "user_nobody"];
        const toUsers = await client.request("sample:tell:heard", { payload: 2, users, timeout: 10 });
        for (const each of [client, deaf, sue, mute]) each.close();
        return { inRoom, toUsers, told: told.sort() };
    })()
"""


@pytest.mark.parametrize("kit", ["asyncio", "twisted", "node"])
def test_in_a_browser_and_over_each_kit(
    shared: Shared, gateways: list[Gateway], stage: ExitStack, browser: Browser, kit: str
) -> None:
    instances = Instances()
    stage.callback(instances.stop)
    instances.start(kit, shared.redis_server.url)
    with shared.redis_server.client() as redis:
        wait_until(lambda: redis.pubsub_numsub("events:sample")[0][1] == 1, "the instance", 20)
    with closing(browser.new_context()) as context:
        page = context.new_page()
        page.goto(f"{gateways[0].http_url}kraftek.js")
        page.add_script_tag(path=SOCKETIO / "node_modules/socket.io-client/dist/socket.io.min.js")
        found = page.evaluate(PAGE.replace("ROOM", f'"browser-{kit}"'))
    in_room, to_users = found["inRoom"], found["toUsers"]
    assert {*in_room.pop("acknowledged")} == {"user_page", "user_sue"}
    assert {*in_room.pop("slow")} == {"user_deaf", "user_mute"}
    assert in_room == {"offline": [], "owed": [], "complete": True}
    assert {*to_users.pop("acknowledged")} == {"user_page", "user_sue"}
    assert to_users == {"slow": [], "offline": ["user_nobody"], "owed": [], "complete": True}
    assert found["told"] == [["mute", 1], ["page", 1], ["page", 2], ["sue", 1], ["sue", 2]]

"""A client cancels its request: the handlers end, in every instance and through whichever gateway it was sent."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kraftek.client import Refused
from kraftek.client.asyncio import Client as AsyncioClient
from tests.service.instances import Instances
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from playwright.sync_api import Browser

    from tests.integration.conftest import Connect, Gateway, Shared

SOCKETIO = Path(__file__).resolve().parent / "socketio"
SAMPLE = {"channel": "events:sample", "reply": True, "timeout": 60}
STREAM = {**SAMPLE, "channel": "events:streamed", "transport": "stream"}
KITS = ("asyncio", "twisted", "node")


@pytest.fixture
def gateways(shared: Shared) -> list[Gateway]:
    return [shared.gateway(number, services={"sample": SAMPLE}) for number in range(2)]


@pytest.fixture
def instances(stage: ExitStack) -> Instances:
    """Of the sample service."""
    made = Instances()
    stage.callback(made.stop)
    return made


def begun(shared: Shared, room: str) -> int:
    """How many handlers have begun there."""
    with shared.redis_server.client() as redis:
        return int(redis.llen(f"begun:{room}"))


def test_everywhere_where_the_request_was_sent_again(
    shared: Shared, gateways: list[Gateway], instances: Instances, connect: Connect
) -> None:
    """Over Pub/Sub each instance has it; each has said something about that before it ended."""
    for kit in KITS:
        instances.start(kit, shared.redis_server.url)
    with shared.redis_server.client() as redis:
        wait_until(lambda: redis.pubsub_numsub("events:sample")[0][1] == len(KITS), "the instances", 20)
    event = {"type": "sample:do:wait", "payload": "tidy", "id": "q", "roomId": "kits"}
    first = connect(gateways[0], "ada", "kits")
    first.send(**event)
    wait_until(lambda: begun(shared, "kits") == len(KITS), "the handlers")
    first.close()
    second = connect(gateways[1], "ada", "kits")
    second.send(**event, resent=True)
    second.expect_nothing()
    second.expect_nothing_through(shared.redis_server)  # that the connection was lost has cancelled nothing
    second.send("cancel", id="q")
    heard = [second.receive() for _ in range(1 + len(KITS))]
    assert [each["payload"]["code"] for each in heard if each.get("id") == "q"] == ["CANCELLED"]
    assert [each["payload"] for each in heard if each["type"] == "sample:told:room"] == ["cancelled"] * len(KITS)
    second.send(**event, resent=True)
    assert second.expect_error("CANCELLED")["id"] == "q"
    assert begun(shared, "kits") == len(KITS)


def test_one_that_waits_in_a_stream_is_not_begun(shared: Shared, instances: Instances, connect: Connect) -> None:
    gateway = shared.gateway(services={"sample": STREAM})
    instances.start("asyncio", shared.redis_server.url, channel="events:streamed", transport="stream")
    ada = connect(gateway, "ada", "stream")
    ada.send("sample:do:wait", payload=1, id=1)
    ada.send("sample:do:wait", payload=2, id=2)
    ada.send("sample:say:back", payload="next", id=3)
    wait_until(lambda: begun(shared, "stream") == 1, "the first", 20)
    ada.send("cancel", id=2)
    assert ada.expect_error("CANCELLED")["id"] == 2
    ada.send("cancel", id=1)
    assert ada.expect_error("CANCELLED")["id"] == 1
    assert ada.expect("sample:say:back")["payload"] == "next"
    assert begun(shared, "stream") == 1
    with shared.redis_server.client() as redis:
        assert not redis.exists("events:streamed:dead")


def test_a_task_that_is_cancelled_cancels_its_request(
    shared: Shared, gateways: list[Gateway], instances: Instances
) -> None:
    instances.start("twisted", shared.redis_server.url)
    with shared.redis_server.client() as redis:
        wait_until(lambda: redis.pubsub_numsub("events:sample")[0][1] == 1, "the instance", 20)

    async def play() -> list[Any]:
        told: list[Any] = []
        client = AsyncioClient(gateways[0].url, lambda _: "ada", room="task")
        async with asyncio.timeout(30), client:
            client.on("sample:told:room", lambda message: told.append(message.payload))

            async def ask() -> None:
                await client.request("sample:do:wait", "tidy")

            asking = asyncio.create_task(ask())
            while begun(shared, "task") < 1:
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            # The room's next event is handled when that has ended.
            with pytest.raises(Refused, match="NOT_NOW"):
                await client.request("sample:do:refuse", room="task")
        return told

    assert asyncio.run(play()) == ["cancelled"]


# Asks for an answer in parts, and gives it up at the first.
PAGE = """
    Promise.race([
        new Promise((_, reject) => setTimeout(() => reject(new Error("no end within 30 s")), 30_000)),
        (async () => {
            const { connect } = await import("/kraftek.js");
            const url = location.origin.replace("http", "ws") + "/";
            const client = connect(url, { token: () => "page", roomId: "page" });
            const told = [];
            client.on("sample:told:room", (what) => told.push(what));
            const parts = [];
            const onProgress = (part, { number }) => parts.push([part, number]);
            const answer = await client.request("sample:say:parts", ["Be", "cause"], { onProgress });
            const control = new AbortController();
            const asking = client.request("sample:do:wait", "tidy", { signal: control.signal });
            while (!(await begun("page"))) {}
            control.abort(new Error("given up"));
            const { message } = await asking.catch((error) => error);
            while (!told.length) await new Promise((resolve) => setTimeout(resolve, 10));
            client.close();
            return { parts, answer, message, told };
        })(),
    ])
"""
# The same with Socket.IO's client, whose pages name what they ask.
SOCKETIO_PAGE = """
    new Promise((resolve, reject) => {
        setTimeout(() => reject(new Error("no end within 30 s")), 30_000);
        const socket = io({ auth: { token: "sue", roomId: "sue" } });
        const told = [];
        const parts = [];
        socket.on("connect_error", reject);
        socket.on("sample:told:room", (what) => told.push(what));
        socket.on("progress", ({ id, number, payload }) => parts.push([id, payload, number]));
        socket.on("authenticated", async () => {
            const answer = await socket.emitWithAck("sample:say:parts", ["Be", "cause"], { progress: "ask" });
            socket.emit("sample:do:wait", "tidy", ({ error }) => {
                const look = () =>
                    told.length ? resolve({ parts, answer, code: error.code, told }) : setTimeout(look, 10);
                look();
            });
            const cancel = async () => {
                while (!(await begun("sue"))) {}
                socket.emit("cancel", { eventType: "sample:do:wait" });
            };
            cancel();
        });
    })
"""


def test_in_a_browser(shared: Shared, gateways: list[Gateway], instances: Instances, browser: Browser) -> None:
    """With kraftek.js, and with Socket.IO's client."""
    instances.start("asyncio", shared.redis_server.url)
    with shared.redis_server.client() as redis:
        wait_until(lambda: redis.pubsub_numsub("events:sample")[0][1] == 1, "the instance", 20)
    with closing(browser.new_context()) as context:
        page = context.new_page()
        page.expose_function("begun", lambda room: begun(shared, room))
        page.goto(f"{gateways[0].http_url}kraftek.js")
        assert page.evaluate(PAGE) == {
            "parts": [["Be", 1], ["cause", 2]],
            "answer": [True, True],
            "message": "given up",
            "told": ["cancelled"],
        }
        page.add_script_tag(path=SOCKETIO / "node_modules/socket.io-client/dist/socket.io.min.js")
        assert page.evaluate(SOCKETIO_PAGE) == {
            "parts": [["ask", "Be", 1], ["ask", "cause", 2]],
            "answer": [True, True],
            "code": "CANCELLED",
            "told": ["cancelled"],
        }

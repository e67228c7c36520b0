"""What Socket.IO clients as they are published get of histories, and of answers that come in parts."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from kraftek.contract.history import FUNCTION
from tests.integration.test_socketio import NODE, PYTHON, SocketIOClient
from tests.service.instances import Instances
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import Gateway, Json, Shared

SHARED: Json = {
    "config": {"rooms": {"board-*": {"history": 200}}},
    "services": {"sample": {"channel": "events:sample", "reply": True, "timeout": 60}},
}

numbers = count(1)


@pytest.fixture
def room() -> str:
    """A room of this test alone."""
    return f"board-{next(numbers)}"


@pytest.fixture
def process(shared: Shared) -> Gateway:
    """It listens before it has given Redis its Functions."""
    gateway = shared.gateway(**SHARED)
    with shared.redis_server.client() as redis:
        wait_until(lambda: FUNCTION in str(redis.execute_command("FUNCTION", "LIST")), "the Functions")
    return gateway


@pytest.fixture(
    params=[(NODE, "websocket"), (NODE, "polling"), (PYTHON, "websocket")], ids=["node", "node-polling", "python"]
)
def client(request: pytest.FixtureRequest, process: Gateway, room: str, stage: ExitStack) -> SocketIOClient:
    """In the room, with its last two messages where it has some."""
    library, transport = request.param
    made = SocketIOClient(library)
    stage.callback(made.close)
    made.connect(process.http_url, [transport], {"token": "ann", "roomId": room, "history": 2})
    made.reports.expect("connect")
    return made


def tell(shared: Shared, room: str, *texts: str) -> None:
    """A service tells the room these."""
    with shared.redis_server.client() as redis:
        for text in texts:
            redis.execute_command("FCALL", FUNCTION, 0, room, json.dumps({"type": "a:b:said", "payload": text}))


@pytest.fixture
def told(shared: Shared, process: Gateway, room: str) -> None:
    """The room was told these before."""
    tell(shared, room, "one", "two", "three", "four", "five")


def page(answer: Any, room: str, *texts: str) -> Any:
    """Where the page goes on that has these messages."""
    assert answer["roomId"] == room
    assert [(each["type"], each["payload"]) for each in answer["messages"]] == [("a:b:said", text) for text in texts]
    return answer.get("before")


@pytest.mark.usefixtures("told")
def test_who_comes_late_reads_back(shared: Shared, room: str, client: SocketIOClient) -> None:
    reports = client.reports
    (entered,) = reports.expect("event", "authenticated")
    assert (entered["roomId"], entered["offset"]) == (room, 3)
    for text in ("four", "five"):
        assert reports.expect("event", "a:b:said") == [text]
    tell(shared, room, "six")
    assert reports.expect("event", "a:b:said") == ["six"]

    before = {"epoch": entered["epoch"], "offset": entered["offset"] + 1}
    client.request("history", {"roomId": room, "limit": 2, "before": before})
    before = page(reports.expect("ack")[0], room, "two", "three")
    client.emit("history", {"roomId": room, "limit": 2, "before": before})
    assert page(reports.expect("event", "history")[0], room, "one") is None
    client.request("history", {"roomId": room, "limit": 1})
    page(reports.expect("ack")[0], room, "six")

    client.emit("leave", {"roomId": room})
    reports.expect("event", "left")
    client.request("join", {"roomId": room, "history": 1})
    (joined,) = reports.expect("event", "joined")
    assert (joined["roomId"], joined["offset"]) == (room, 5)
    # The acknowledgement and the first message come in the order in which they were sent.
    assert reports.expect("ack") == [joined]
    assert reports.expect("event", "a:b:said") == ["six"]


def test_what_is_refused(client: SocketIOClient, room: str) -> None:
    reports = client.reports
    reports.expect("event", "authenticated")
    client.request("join", {"roomId": "kitchen", "history": 5})
    assert reports.expect("event", "joined") == [{"roomId": "kitchen"}]
    assert reports.expect("ack") == [{"roomId": "kitchen"}]
    for where, code in (("kitchen", "NO_HISTORY"), ("elsewhere", "ACCESS_DENIED")):
        client.request("history", {"roomId": where})
        assert reports.expect("ack")[0]["error"]["code"] == code
    client.request("history", {"roomId": room, "limit": 0})
    assert reports.expect("ack")[0]["error"]["code"] == "INVALID_MESSAGE"
    client.request("sample:say:parts", [], {"parts": True})
    assert reports.expect("ack")[0]["error"]["code"] == "INVALID_MESSAGE"


@pytest.fixture
def instance(shared: Shared, process: Gateway, stage: ExitStack) -> None:
    """An instance of the sample service."""
    instances = Instances()
    stage.callback(instances.stop)
    instances.start("asyncio", shared.redis_server.url)
    with shared.redis_server.client() as redis:
        wait_until(lambda: redis.pubsub_numsub("events:sample")[0][1] == 1, "the instance", 20)


@pytest.mark.usefixtures("instance")
def test_an_answer_comes_in_parts_to_who_names_it(client: SocketIOClient) -> None:
    reports = client.reports
    reports.expect("event", "authenticated")
    texts = ["Be", "cause", " it is so."]
    client.request("sample:say:parts", texts, {"progress": "q-1"})
    for number, payload in enumerate(texts, 1):
        assert reports.expect("event", "progress") == [{"id": "q-1", "number": number, "payload": payload}]
    assert reports.expect("ack") == [[True, True, True]]
    client.request("sample:say:parts", texts)
    assert reports.expect("ack") == [[False, False, False]]
    # Its name is free again.
    client.request("sample:say:parts", ["again"], {"progress": "q-1"})
    assert reports.expect("event", "progress") == [{"id": "q-1", "number": 1, "payload": "again"}]
    assert reports.expect("ack") == [[True]]


@pytest.mark.usefixtures("instance")
def test_one_of_several_is_cancelled_by_its_name(shared: Shared, client: SocketIOClient, room: str) -> None:
    reports = client.reports
    reports.expect("event", "authenticated")
    client.request("sample:do:wait", "tidy", {"progress": "first"})
    with shared.redis_server.client() as redis:
        wait_until(lambda: redis.llen(f"begun:{room}") == 1, "the handler", 20)
    client.request("sample:do:wait", "tidy", {"progress": "second"})
    client.emit("cancel", {"id": "second"})
    assert reports.expect("ack")[0]["error"]["code"] == "CANCELLED"
    client.emit("cancel", {"id": "nobody"})
    client.request("cancel", {"id": "first"})
    said = [reports.next() for _ in range(3)]
    assert ["ack", {}] in said
    assert [each for each in said if each[:2] == ["event", "sample:told:room"]] == [
        ["event", "sample:told:room", "cancelled"]
    ]
    assert [each[1]["error"]["code"] for each in said if each[0] == "ack" and each[1]] == ["CANCELLED"]

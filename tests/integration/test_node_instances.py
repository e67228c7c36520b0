"""Instances of a service with the kit for Node, alone and in one group with Python: killed, stopped, frozen."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration import test_service_instances as in_python
from tests.integration.test_service_instances import PARTITIONS, STREAM, Stage
from tests.service.instances import registered, stopped
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import RedisServer


@pytest.fixture
def service(redis_server: RedisServer, stage: ExitStack) -> Stage:
    return Stage("node", redis_server, stage)


globals().update({name: test for name, test in vars(in_python).items() if name.startswith("test_")})


def test_it_goes_on_listening_while_nothing_is_sent(service: Stage) -> None:
    """On the same connection: what is published while it connects again is lost. It asks every two seconds."""
    service.start({})
    service.contract.wait_for(registered())

    def ages() -> dict[str, int]:
        return {client["id"]: int(client["age"]) for client in service.redis.client_list(_type="pubsub")}

    before = ages()
    wait_until(lambda: min(ages().values()) >= 5, "connections of five seconds")
    assert ages().keys() == before.keys()


@pytest.mark.parametrize("killed", [0, 1], ids=["node-killed", "python-killed"])
@pytest.mark.parametrize(
    "settings", [{**STREAM, "unordered": True}, STREAM, PARTITIONS], ids=["unordered", "stream", "partitions"]
)
def test_node_and_python_share_a_group(
    service: Stage, redis_server: RedisServer, stage: ExitStack, settings: dict[str, Any], killed: int
) -> None:
    """What one had in hand when it was killed the other does: nothing is lost, done twice or answered twice."""
    python = Stage("asyncio", redis_server, stage)
    settings = {**settings, "concurrency": 4}
    processes = [service.start(settings), python.launch(settings)]
    service.wait_listening(2)
    if "partitions" in settings:
        service.wait_shared()
    rooms = [f"room{number}" for number in range(8)]
    clients = [service.contract.client("ada", room) for room in rooms]
    number = 40

    for mark in range(number):
        for client in clients:
            client.send("sample:do:sleep", {"seconds": 0.025, "mark": mark}, id=mark)
    # One reads a stream that is in order, and it is killed; the other one stands by.
    working = 1 if settings == {**STREAM, "concurrency": 4} else 2
    wait_until(lambda: service.redis.hlen("by") == working, "their work", 30)
    if working == 1:
        (by,) = service.redis.hkeys("by")
        killed = [str(process.pid) for process in processes].index(str(by))
    processes.pop(killed).kill()
    service.wait_done(number, *rooms)

    for client, room in zip(clients, rooms, strict=True):
        assert sorted(service.done(room)) == list(range(number))
        if not settings.get("unordered"):
            assert service.done(room) == list(range(number))
        assert Counter(client.receive()["id"] for _ in range(number)) == Counter(range(number))
    service.contract.settle()
    assert not any(client.inbox for client in clients)
    stopped(processes[0])

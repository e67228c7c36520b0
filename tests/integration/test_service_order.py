"""The order of rooms in a service, whatever becomes of its instances, and what may not stop a room for ever.

Each test runs through both backends of the kit for Python, and with the kit for Node. The gateway is its contract.
"""

from __future__ import annotations

import re
import signal
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from kraftek.service import Refused
from tests.integration.test_service_instances import PARTITIONS, STREAM, Stage, dead_letters
from tests.service.instances import registered, stopped
from tests.service.ordering import Ordering
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from kraftek.service.testing import Contract
    from tests.integration.conftest import RedisServer

WAYS = pytest.mark.parametrize("settings", [{}, STREAM, PARTITIONS], ids=["pubsub", "stream", "partitions"])


@pytest.fixture(params=["asyncio", "twisted", "node"])
def service(request: pytest.FixtureRequest, redis_server: RedisServer, stage: ExitStack) -> Stage:
    return Stage(request.param, redis_server, stage)


def send(service: Stage, rooms: list[str], marks: range, waits: Random) -> None:
    """To each room an event for each mark, with a wait for its handler."""
    for mark in marks:
        for room in rooms:
            payload = {"seconds": waits.choice((0, 0, 0.001, 0.005, 0.02)), "mark": mark}
            event = {"eventType": "sample:do:sleep", "userId": f"user {mark % 3}", "socketId": "g.1", "roomId": room}
            service.contract.deliver({**event, "payload": payload, "timestamp": 1})


@WAYS
def test_each_room_is_in_order_and_rooms_are_beside_each_other(service: Stage, settings: dict[str, Any]) -> None:
    service.start({**settings, "concurrency": 16, "timeout": 60})
    service.contract.wait_for(registered(**settings))
    slow = service.contract.client("ada", "slow")
    assert slow.request("sample:say:back", 1, timeout=30) == 1
    slow.send("sample:ask:other", {"event": "other:say:when", "timeout": 60})
    slow.send("sample:do:sleep", {"seconds": 0, "mark": 1})
    question = service.contract.emitted()
    rooms = [f"room{number}" for number in range(20)]

    send(service, rooms, range(30), Random(1))

    service.wait_done(30, *rooms)
    assert [service.begun(room) for room in rooms] == [service.done(room) for room in rooms] == [[*range(30)]] * 20
    assert service.begun("slow") == [], "and nobody waited for it"
    service.contract.answer(question, "now")
    service.wait_done(1, "slow")


@WAYS
@pytest.mark.parametrize("backends", ["asyncio asyncio", "twisted twisted", "node asyncio"])
def test_order_holds_while_instances_are_killed_and_frozen(
    backends: str, settings: dict[str, Any], redis_server: RedisServer, stage: ExitStack
) -> None:
    """The large form is ``python -m bench.service_order``."""
    first, second = backends.split()
    ordering = Ordering(redis_server.url, (first, second), {**settings, "timeout": 60}, rooms=20, events=1000)
    stage.callback(ordering.close)
    ordering.play()


@pytest.mark.parametrize("settings", [STREAM, PARTITIONS], ids=["stream", "partitions"])
def test_order_holds_when_another_instance_takes_over(service: Stage, settings: dict[str, Any]) -> None:
    rooms, number = [f"room{number}" for number in range(20)], 60
    first = service.start(settings)
    send(service, rooms, range(30), Random(2))
    wait_until(lambda: service.done(rooms[0]), "the beginning", 30)
    second = service.start(settings)
    first.send_signal(signal.SIGTERM)
    send(service, rooms, range(30, number), Random(3))
    service.wait_done(number, *rooms)

    for room in rooms:
        assert service.done(room) == service.begun(room) == [*range(number)]
    assert "Traceback" not in stopped(second)


def test_one_instance_reads_a_stream_and_another_stands_by(service: Stage) -> None:
    processes = {service.start(STREAM).pid: 0, service.start(STREAM).pid: 0}
    ada = service.contract.client("ada", "room")
    by = [ada.request("sample:do:sleep", {"seconds": 0})["pid"] for _ in range(10)]
    assert len(set(by)) == 1
    assert by[0] in processes


@WAYS
def test_a_handler_that_never_ends_does_not_stop_its_room(service: Stage, settings: dict[str, Any]) -> None:
    service.start({**settings, "timeout": 0.3, "attempts": 2})
    service.contract.wait_for(registered(**settings))
    ada = service.contract.client("ada", "room")
    ada.send("sample:do:hang", 7, id="hangs")
    ada.send("sample:do:long", 0.7, id="long")

    hangs, long = ada.receive(), ada.receive()

    assert (hangs["id"], hangs["payload"]["code"]) == ("hangs", "EVENT_PROCESSING_ERROR")
    assert (long["id"], long["payload"]) == ("long", "done")
    if settings:
        assert service.begun("room") == [7, 7]
        (letter,) = dead_letters(service)
        assert letter["reason"].startswith("TimeoutError: the handler of sample:do:hang has not ended within 0.3 s")


@WAYS
def test_services_that_ask_each_other_do_not_wait_for_themselves(service: Stage, settings: dict[str, Any]) -> None:
    """64 requests at once ask another service, which asks back before it answers, in the same room: all in one room,
    and then each in a room of its own.
    """
    service.start(settings)
    service.contract.wait_for(registered(**settings))
    for rooms in (1, 64):
        ask_each_other(service.contract, rooms)


def ask_each_other(contract: Contract, rooms: int) -> None:
    clients = [contract.client("ada", f"of {rooms}: {number % rooms}") for number in range(64)]
    for number, client in enumerate(clients):
        asking = {"event": "other:thing:get", "payload": number}
        client.send("sample:ask:other", asking, id=f"{number} of {rooms}")
    waiting: list[dict[str, Any]] = []
    for _ in range(64):
        waiting.append(contract.emitted())
        if rooms > 1 and len(waiting) < 64:
            continue  # until all hands are full
        for asked in waiting:
            back = {"eventType": "sample:say:back", "source": "other", "socketId": "", "userId": "", "timestamp": 1}
            payload = f"back {asked['payload']} of {rooms}"
            reply = {"id": 1, "replyTo": contract.reply_to, "roomId": asked["roomId"], "payload": payload}
            contract.deliver(back | reply)
            while (heard := contract.hear(10)) is not None and heard["payload"] != payload:
                pass
            assert heard is not None
            contract.answer(asked, asked["payload"])
        waiting.clear()
    assert [client.receive()["payload"] for client in clients] == [{"answer": number} for number in range(64)]


def test_an_instance_that_keeps_no_order_is_noticed(service: Stage) -> None:
    process = service.start(STREAM)
    assert service.contract.client("ada", "room").request("sample:say:back", 1) == 1

    service.redis.xgroup_createconsumer("events:sample", "sample", "host.1.00000000")
    for _ in range(10):
        service.redis.xreadgroup("sample", "host.1.00000000", {"events:sample": "0"})
        service.contract.client("ada", "room").request("sample:do:sleep", {"seconds": 0.1})
    assert stopped(process).count("host.1.00000000 reads events:sample, too, and keeps no order") == 1


def test_a_room_far_ahead_is_kept_in_redis(service: Stage) -> None:
    """More events of one room than are kept in memory: the others are read again when it is their turn."""
    service.start(STREAM)
    ada, number = service.contract.client("ada", "room"), 250
    ada.send("sample:do:sleep", {"seconds": 0.5, "mark": 0})
    with service.redis.pipeline(transaction=False) as pipeline:
        for mark in range(1, number):
            event = (
                f'{{"eventType": "sample:do:sleep", "userId": "ada", "socketId": "{ada.socket_id}", "roomId": "room", '
                f'"payload": {{"seconds": 0, "mark": {mark}}}}}'
            )
            pipeline.xadd("events:sample", {"event": event})
        pipeline.execute()
    assert service.contract.client("bob", "another").request("sample:say:back", 1) == 1
    service.wait_done(number, "room")
    assert service.done("room") == [*range(number)]


def test_a_handler_may_block_and_its_instance_is_alive(service: Stage) -> None:
    """Longer than its lease lasts, and than its time limit; another instance stands by."""
    settings = {**STREAM, "timeout": 1.0}
    process = service.start(settings)
    ada = service.contract.client("ada", "room")
    assert ada.request("sample:say:back", 1) == 1
    other = service.start(settings)
    assert ada.request("sample:do:block", 4.0)["pid"] == process.pid
    assert service.begun("room") == [0]
    logged = stopped(process)
    place = "(?:the handler of sample:do:block, at |a function at .*/sample.js:)"
    assert len(re.findall(f"The loop is blocked for more than 1 s, by {place}", logged)) == 1
    assert "Traceback" not in logged + stopped(other)


def test_an_unordered_instance_that_blocks_keeps_its_entries(service: Stage) -> None:
    settings = {**STREAM, "unordered": True}
    for _ in range(2):
        service.start(settings)
    ada = service.contract.client("ada", "room")
    ada.request("sample:do:block", 4.0)
    assert service.begun("room") == [0]


def test_what_a_handler_with_a_time_limit_refuses(service: Stage) -> None:
    with pytest.raises(ValueError, match="timeout"):
        registered(timeout=0)
    service.start({"timeout": 0.3})
    service.contract.wait_for(registered())
    with pytest.raises(Refused, match="EVENT_PROCESSING_ERROR"):
        service.contract.client("ada", "room").request("sample:do:sleep", {"seconds": 5})

"""Instances of a service, as real processes that are killed, stopped and frozen: nothing is lost, and order holds.

Each test runs through both backends. The gateway is its contract; with a real one see test_service_requests.py.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from kraftek.contract.names import GATEWAY_LENGTH
from kraftek.service import Refused
from kraftek.service.lanes import EVENTS
from kraftek.service.testing import Contract
from tests.service.instances import Instances, registered, stopped
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack
    from subprocess import Popen

    from tests.integration.conftest import RedisServer

STREAM = {"transport": "stream", "claim_after": 2.0}
PARTITIONS = {**STREAM, "partitions": 4}


class Stage:
    """A Redis, the contract of a gateway, and instances through one backend."""

    def __init__(self, backend: str, server: RedisServer, started: ExitStack) -> None:
        self._backend = backend
        self._server = server
        self._instances = Instances()
        started.callback(self._instances.stop)
        self.contract = Contract(server.url)
        started.callback(self.contract.close)
        self.redis = self.contract.redis

    def start(self, settings: dict[str, Any]) -> Popen[bytes]:
        self.contract.register(registered(**settings))
        return self.launch(settings)

    def launch(self, settings: dict[str, Any]) -> Popen[bytes]:
        return self._instances.start(self._backend, self._server.url, **settings)

    def wait_listening(self, number: int) -> None:
        """Return once so many instances listen: the names of theirs have dots, those of gateways have none."""

        def listening() -> list[str]:
            return [str(channel) for channel in self.redis.pubsub_channels("events:reply:*.*")]

        wait_until(lambda: len(listening()) == number, lambda: f"{number} instances, but {listening()}", 30)

    def done(self, room: str) -> list[int]:
        """What the handlers have done for a room, as they committed it."""
        return [int(mark) for mark in self.redis.lrange(f"done:{room}", 0, -1)]

    def begun(self, room: str) -> list[int]:
        """What they have begun."""
        return [int(mark) for mark in self.redis.lrange(f"begun:{room}", 0, -1)]

    def wait_done(self, number: int, *rooms: str) -> None:
        def seen() -> dict[str, int]:
            return {room: self.redis.llen(f"done:{room}") for room in rooms}

        wait_until(lambda: all(done >= number for done in seen().values()), lambda: f"{number} done of {seen()}", 60)

    def holders(self, partitions: int) -> dict[str, int]:
        """How many partitions each instance holds."""
        leases = self.redis.mget([f"events:sample:{number}:lease:sample" for number in range(partitions)])
        return Counter(str(lease).split()[0] for lease in leases if lease)

    def wait_shared(self) -> None:
        """Return once two instances hold two partitions each."""
        wait_until(lambda: sorted(self.holders(4).values()) == [2, 2], lambda: f"shares, not {self.holders(4)}", 30)


@pytest.fixture(params=["asyncio", "twisted"])
def service(request: pytest.FixtureRequest, redis_server: RedisServer, stage: ExitStack) -> Stage:
    return Stage(request.param, redis_server, stage)


def test_two_instances_share_the_load_and_killing_one_loses_nothing(service: Stage) -> None:
    concurrency = 4
    settings = {**STREAM, "concurrency": concurrency, "unordered": True}
    first, second = service.start(settings), service.start(settings)
    service.wait_listening(2)
    ada = service.contract.client("ada", "room")
    number = 200

    for mark in range(number):
        ada.send("sample:do:sleep", {"seconds": 0.05, "mark": mark}, id=mark)
    wait_until(lambda: len(service.redis.hgetall("by")) == 2, "work of both", 30)
    wait_until(lambda: len(service.begun("room")) > len(service.done("room")), "work in hand")
    first.kill()
    killed = time.monotonic()
    service.wait_done(number, "room")
    took = time.monotonic() - killed

    # What it had in hand was done by the other; what it had done was not done again.
    assert sorted(service.done("room")) == list(range(number))
    assert set(service.begun("room")) == set(range(number))
    twice = len(service.begun("room")) - number
    assert 0 <= twice <= 2 * concurrency
    answers = Counter(ada.receive()["id"] for _ in range(number))
    service.contract.settle()
    assert answers == Counter(range(number))
    assert not ada.inbox
    by = service.redis.hgetall("by")
    print(f"{by}, {twice} handled twice, all done {took:.1f} s after the kill")
    stopped(second)
    assert service.redis.xpending("events:sample", "sample")["pending"] == 0


def test_what_was_handled_does_not_wait_behind_what_is_in_hand(service: Stage) -> None:
    service.start(STREAM)
    ada = service.contract.client("ada", "room")
    service.contract.client("bob", "slow").send("sample:do:sleep", {"seconds": 60})
    wait_until(lambda: service.begun("slow"), "a slow handler")
    for number in range(5):
        assert ada.request("sample:say:back", number) == number
    assert service.redis.xlen("events:sample") == 1

    # Somebody else reads along: what he has not seen is left to him.
    service.redis.xgroup_create("events:sample", "another", "$")
    for number in range(5):
        assert ada.request("sample:say:back", number) == number
    assert service.redis.xlen("events:sample") == 6


def test_what_is_published_while_redis_goes_is_lost_and_no_fault_of_the_handler(
    service: Stage, redis_server: RedisServer
) -> None:
    process = service.start({})
    service.contract.wait_for(registered())
    service.contract.client("ada", "room").send("sample:do:sleep", {"seconds": 2.0})
    wait_until(lambda: service.begun("room"), "a handler")
    redis_server.kill()
    logged = stopped(process)
    assert logged.count("Events were lost") == 1
    assert "Traceback" not in logged


def test_what_was_done_waits_until_redis_takes_writes_and_the_gateways_have_room(service: Stage) -> None:
    redis: Any = service.redis

    def refused() -> int:
        """How often Redis has refused what a commit writes. It refuses other scripts, too: leases are renewed."""
        return int(redis.info("commandstats").get("cmdstat_rpush", {}).get("rejected_calls", 0))

    process = service.start({**STREAM, "attempts": 1, "claim_after": 60})
    ada = service.contract.client("ada", "room")
    refusals = {"maxmemory": "1", "min-replicas-to-write": "1"}
    for mark, (setting, refuses) in enumerate(refusals.items()):
        ada.send("sample:do:sleep", {"seconds": 1.5, "mark": mark}, id=mark)
        wait_until(lambda: len(service.begun("room")) > len(service.done("room")), "a handler")
        redis.config_set(setting, refuses)
        redis.config_resetstat()
        wait_until(refused, "a commit that is refused")
        redis.config_set(setting, "0")
        assert ada.receive()["id"] == mark
    assert service.begun("room") == service.done("room") == [0, 1], "handled once each"

    # Services of an older version have filled the gateways' stream.
    fill = "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'event', 'theirs') end"
    redis.eval(fill, 1, "events:gateway", GATEWAY_LENGTH)
    service.contract.client("bob", "another").send("sample:ask:nobody", {"event": "wiki:page:read"})
    with pytest.raises(Refused, match="SERVICE_UNAVAILABLE"):
        ada.request("sample:ask:other", {"event": "wiki:page:read"})
    assert redis.xlen("events:gateway") == GATEWAY_LENGTH, "nothing was thrown away"
    assert redis.xpending("events:sample", "sample")["pending"] == 1, "it waits"
    redis.delete("events:gateway")
    assert service.contract.emitted()["eventType"] == "wiki:page:read"
    wait_until(lambda: redis.xpending("events:sample", "sample")["pending"] == 0, "the acknowledgement")
    logged = stopped(process)
    for reason in ("OOM", "NOREPLICAS", "too many events between services"):
        assert len(re.findall(f"is committed as soon as possible: .*{reason}", logged)) == 1
    assert "Traceback" not in logged


def test_who_floods_a_service_is_refused_and_nobody_else(service: Stage) -> None:
    process = service.start({"concurrency": 1})
    service.contract.wait_for(registered())
    ada, bob = service.contract.client("ada", "room"), service.contract.client("bob", "another")
    ada.send("sample:ask:other", {"event": "other:say:when", "timeout": 30})
    question = service.contract.emitted()
    envelope = {"eventType": "sample:say:back", "userId": "bob", "socketId": bob.socket_id, "roomId": "another"}
    flood = json.dumps(envelope | {"replyTo": service.contract.reply_to, "payload": 0})
    began = time.monotonic()
    with service.redis.pipeline(transaction=False) as pipeline:
        for _ in range(EVENTS + 20):
            pipeline.publish("events:sample", flood)
            pipeline.publish("events:sample", "nothing")
        pipeline.execute()
    first = bob.receive()
    service.contract.answer(question, "now")
    assert ada.request("sample:say:back", 1) == 1
    refused = [first["payload"]] + [message["payload"] for message in bob.inbox if message["type"] == "error"]
    assert (refused[0]["code"], refused[0]["retryAfter"]) == ("SERVICE_UNAVAILABLE", 1)
    assert len(refused) <= 1 + time.monotonic() - began
    logged = stopped(process)
    assert logged.count("Ignored a message that is not an event") == 1
    assert "Traceback" not in logged


def test_a_slow_handler_keeps_its_event(service: Stage) -> None:
    for _ in range(2):
        service.start(STREAM)
    ada = service.contract.client("ada", "room")

    assert ada.request("sample:do:sleep", {"seconds": 4.0})["mark"] == 0

    assert service.begun("room") == [0]


def test_who_was_frozen_meanwhile_says_nothing_twice(service: Stage) -> None:
    settings = {**STREAM, "claim_after": 0.5}
    frozen = service.start(settings)
    ada = service.contract.client("ada", "room")
    ada.send("sample:do:sleep", {"seconds": 2.0}, id=1)
    wait_until(lambda: service.begun("room"), "the first attempt")
    frozen.send_signal(signal.SIGSTOP)
    other = service.start(settings)

    assert ada.receive()["payload"]["pid"] == other.pid
    frozen.send_signal(signal.SIGCONT)
    stopped(frozen)

    service.contract.settle()
    assert not ada.inbox
    assert (service.begun("room"), service.done("room")) == ([0, 0], [0])


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_order_per_room_holds_across_rebalances(service: Stage, end: signal.Signals) -> None:
    rooms = [f"room{number}" for number in range(12)]
    clients = [service.contract.client("ada", room) for room in rooms]
    number = 120

    def send(marks: range) -> None:
        for mark in marks:
            for client in clients:
                client.send("sample:do:sleep", {"seconds": 0, "mark": mark})

    first = service.start(PARTITIONS)
    send(range(40))
    wait_until(lambda: service.done(rooms[0]), "the beginning", 30)
    second = service.start(PARTITIONS)
    send(range(40, 80))
    service.wait_shared()
    send(range(80, number))
    first.send_signal(end)
    service.wait_done(number, *rooms)
    if end == signal.SIGSTOP:
        first.send_signal(signal.SIGCONT)
        stopped(first)

    for room in rooms:
        assert service.done(room) == list(range(number))
        if end != signal.SIGSTOP:  # the frozen one goes on where it was, unaware; what it then says is dropped
            # What was interrupted is begun again, next to its first time: nothing later was begun before.
            begun = service.begun(room)
            once = [mark for mark, before in zip(begun, [-1, *begun], strict=False) if mark != before]
            assert once == list(range(number))
    stopped(second)


def test_partitions_are_shared_fairly(service: Stage) -> None:
    processes = [service.start(PARTITIONS) for _ in range(3)]
    wait_until(
        lambda: sorted(service.holders(4).values()) == [1, 1, 2], lambda: f"fair shares: {service.holders(4)}", 30
    )

    stopped(processes.pop())

    wait_until(lambda: sorted(service.holders(4).values()) == [2, 2], lambda: f"of two: {service.holders(4)}", 30)


@pytest.mark.parametrize("settings", [STREAM, PARTITIONS], ids=["stream", "partitions"])
def test_what_fails_is_tried_again_and_then_put_aside(service: Stage, settings: dict[str, Any]) -> None:
    service.start(settings)
    ada = service.contract.client("ada", "room")

    # It said something each time. Only the time that went well is heard.
    ada.send("sample:do:flaky", 2, id=1)
    assert ada.receive() == {"type": "sample:tried:once", "payload": 3}
    assert ada.receive() == {"type": "sample:do:flaky", "id": 1, "payload": 3}
    ada.send("sample:do:flaky", 100, id=2)
    assert ada.receive()["payload"]["code"] == "EVENT_PROCESSING_ERROR"

    assert service.redis.get("tried:ada") == "6"
    (letter,) = dead_letters(service)
    assert (letter["attempts"], letter["reason"]) == ("3", "RuntimeError: not yet")
    assert '"sample:do:flaky"' in letter["event"]


@pytest.mark.parametrize("settings", [STREAM, PARTITIONS], ids=["stream", "partitions"])
def test_what_kills_its_instances_is_put_aside_and_nothing_else(service: Stage, settings: dict[str, Any]) -> None:
    settings = {**settings, "claim_after": 0.5}
    service.contract.register(registered(**settings))
    ada, bob = service.contract.client("ada", "room"), service.contract.client("bob", "room")
    for mark in range(5):
        bob.send("sample:do:sleep", {"seconds": 0.1, "mark": mark}, id=mark)
    ada.send("sample:do:die", 100, id=1)
    for mark in range(5, 10):
        bob.send("sample:do:sleep", {"seconds": 0.1, "mark": mark}, id=mark)

    process = service.start(settings)
    for _ in range(3):
        process.wait(30)
        process = service.start(settings)
    assert ada.receive(30)["payload"]["code"] == "EVENT_PROCESSING_ERROR"

    (letter,) = dead_letters(service)
    assert (letter["attempts"], letter["reason"]) == ("3", "delivered 3 times and never finished")
    service.wait_done(10, "room")
    assert sorted(service.done("room")) == list(range(10))
    assert service.redis.get("died:room") == "3"


def dead_letters(service: Stage) -> list[dict[str, str]]:
    letters: list[dict[str, str]] = []
    for key in service.redis.keys("events:sample*:dead"):
        entries: Any = service.redis.xrange(key)
        letters += [fields for _, fields in entries]
    return letters


@pytest.mark.parametrize("settings", [STREAM, PARTITIONS], ids=["stream", "partitions"])
def test_a_stop_finishes_what_was_begun(service: Stage, settings: dict[str, Any]) -> None:
    process = service.start(settings)
    ada = service.contract.client("ada", "room")
    ada.send("sample:do:sleep", {"seconds": 0.5, "mark": 1}, id=1)
    wait_until(lambda: service.begun("room"), "the beginning", 30)

    logged = stopped(process)

    assert ada.receive()["payload"]["mark"] == 1
    assert service.done("room") == [1]
    assert "Traceback" not in logged
    # What came later waits for the next one, which has nothing of the old one's to wait for.
    ada.send("sample:say:back", "later", id=2)
    service.start({**settings, "claim_after": 60.0})
    assert ada.receive(10)["payload"] == "later"


def test_a_stop_finishes_what_was_published(service: Stage) -> None:
    process = service.start({"concurrency": 5})
    service.contract.wait_for(registered())
    ada = service.contract.client("ada", "room")
    for mark in range(50):
        ada.send("sample:do:sleep", {"seconds": 0.02, "mark": mark}, id=mark)

    stopped(process)

    assert {ada.receive()["payload"]["mark"] for _ in range(50)} == set(range(50))


def test_a_stop_does_not_wait_forever(service: Stage) -> None:
    settings = {**STREAM, "claim_after": 0.6, "grace": 0.2, "attempts": 2}
    process = service.start(settings)
    ada = service.contract.client("ada", "room")
    ada.send("sample:do:sleep", {"seconds": 2.0, "mark": 1}, id=1)
    wait_until(lambda: service.begun("room"), "the beginning", 30)

    stopped(process)
    assert service.done("room") == []
    service.start(settings)

    assert ada.receive(10)["payload"]["mark"] == 1


@pytest.mark.parametrize("settings", [{}, STREAM, PARTITIONS], ids=["pubsub", "stream", "partitions"])
def test_redis_may_come_and_go(service: Stage, redis_server: RedisServer, settings: dict[str, Any]) -> None:
    redis_server.kill()
    process = service.launch(settings)
    redis_server.start()
    client = Contract(redis_server.url)
    client.register(registered(**settings))
    client.wait_for(registered(**settings))
    assert client.client("ada", "room").request("sample:say:back", 1, timeout=20) == 1
    client.redis.ping()  # the instance has been told by then that its commit is done
    client.close()

    redis_server.kill()
    redis_server.start()
    client = Contract(redis_server.url)
    client.register(registered(**settings))
    client.wait_for(registered(**settings))
    assert client.client("ada", "room").request("sample:say:back", 2, timeout=20) == 2
    client.redis.ping()  # the instance has been told by then that its commit is done
    client.close()

    redis_server.kill()
    began = time.monotonic()
    stopped(process)
    assert time.monotonic() - began < registered().grace

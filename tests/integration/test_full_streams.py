"""A service on a stream that handles nothing for a while: what waits is bounded, shared, and none of it is lost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Connect, RedisServer, StartGateway

MIB = 1_048_576
SERVICES = {
    "files": {"channel": "events:files", "transport": "stream", "max_bytes": 4 * MIB},
    "small": {"channel": "events:small", "transport": "stream", "max_bytes": 65_536},
    "board": {"channel": "events:board", "transport": "stream", "max_length": 20, "presence": True},
}


def acked(client: Client, event: str, number: int, payload: Any = None) -> str:
    """What a request is answered with: ``ack``, or the code of an error."""
    client.send(event, id=number, payload=payload)
    message = client.receive()
    while message.get("id") != number:
        message = client.receive()
    return str(message["type"] if message["type"] == "ack" else message["payload"]["code"])


def test_what_waits_is_bounded_and_shared_and_presence_costs_no_event(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    redis: Any = redis_server.client()
    process = gateway(redis_server, services=SERVICES)
    flood, *others = [connect(process, f"u{number}", "r") for number in range(11)]

    # One user floods a stream that nobody reads.
    answers = [acked(flood, "files:file:save", number, "x" * 65_000) for number in range(80)]
    taken = answers.count("ack")
    assert set(answers[taken:]) == {"RATE_LIMITED"}
    assert 30 <= taken <= 36, "half of what 4 MiB hold"
    for number in range(10):
        assert [acked(other, "files:file:save", number, "x" * 10_000) for other in others] == ["ack"] * 10
    used = redis.memory_usage("events:files", samples=0)
    print(f"{taken} events of 65 kB, and 100 of 10 kB: Redis uses {used} bytes for them, and 4 MiB may wait")
    assert used < 1.3 * 4 * MIB
    more = [acked(flood, "files:file:save", number, "x" * 65_000) for number in range(100, 105)]
    assert more[-3:] == ["RATE_LIMITED"] * 3, "after a look at what Redis has"

    # The same with as little as there is of an event, at a time, and in a small stream.
    for number in range(1000, 1500):
        flood.send("small:file:save", id=number)
    heard = [flood.receive() for _ in range(500)]
    answers = [message["type"] if message["type"] == "ack" else message["payload"]["code"] for message in heard]
    assert set(answers) == {"ack", "RATE_LIMITED"}
    assert 90 <= answers.count("ack") <= 180, "half of it, and what was sent before Redis was looked at"
    assert [acked(other, "small:file:save", 2000, "x" * 500) for other in others] == ["ack"] * 10

    # Presence finds a full stream.
    redis.xgroup_create("events:board", "board", "0")
    redis.xreadgroup("board", "one", {"events:board": ">"}, noack=True)
    numbers = iter(range(1000, 2000))
    for _ in range(2):
        assert [acked(other, "board:note:add", next(numbers)) for other in others] == ["ack"] * 10
    assert acked(others[0], "board:note:add", next(numbers)) == "SERVICE_UNAVAILABLE"
    before = redis.xrange("events:board")
    for number in range(50):
        for command, told in (("join", "joined"), ("leave", "left")):
            flood.send(command, id=f"{command} {number}", payload={"roomId": "elsewhere"})
            flood.expect(told)
    others[0].close()
    wait_until(lambda: redis.hlen("events:board:presence") == 1, "one event about presence that waits")
    assert redis.xrange("events:board") == before, "no event was lost"

    def handled() -> list[str]:
        read = redis.xreadgroup("board", "one", {"events:board": ">"}, noack=True)
        events = [json.loads(fields["event"]) for _, entries in read for _, fields in entries]
        return [f"{event['eventType']} {event['userId']}" for event in events]

    assert len(handled()) == 20
    assert wait_until(handled, "what waited") == ["gateway:client:left user_u1"]
    assert acked(others[1], "board:note:add", next(numbers)) == "ack"

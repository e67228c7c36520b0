"""Clients that do not read what they are sent, and what they are told when they read again; large messages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.wire import Wire, handshake

if TYPE_CHECKING:
    from tests.integration.conftest import RedisServer, StartGateway

EVENTS = {"typing:*:*": {"policy": "drop"}, "cursors:*:*": {"policy": "latest", "key": "who"}}
PATIENT = {"ping_interval": 600.0, "ping_timeout": 500.0}
LARGE = 5_000_000


def publish(redis: Any, type: str, **payload: Any) -> None:
    redis.publish("events:broadcast", json.dumps({"type": type, "roomId": "r1", "payload": payload}))


def messages(wire: Wire, last: str) -> list[dict[str, Any]]:
    """The messages up to one of this type."""
    heard: list[dict[str, Any]] = []
    while not heard or heard[-1]["type"] != last:
        opcode, payload = wire.frame()
        if opcode == 1:
            heard.append(json.loads(payload))
    return heard


def enter(wire: Wire, user: str) -> None:
    wire.send(handshake(f"/?token={user}&roomId=r1"))
    assert wire.response(body=False).status == 101
    messages(wire, "authenticated")


def test_slow_clients_get_the_newest_and_are_told_the_gap(redis_server: RedisServer, gateway: StartGateway) -> None:
    process, redis = gateway(redis_server, config={"events": EVENTS, "limits": PATIENT}), redis_server.client()
    with Wire(process.port) as slow, Wire(process.port) as quick:
        enter(slow, "slow")
        enter(quick, "quick")

        # More than the kernel takes for a client that does not read: 10 MiB on Linux.
        publish(redis, "notes:note:filled", text="x" * 4 * LARGE)
        messages(quick, "notes:note:filled")
        for number in range(3):
            publish(redis, "typing:user:begun")
            publish(redis, "cursors:user:moved", who="ann", number=number)
        publish(redis, "notes:note:made")
        messages(quick, "notes:note:made")
        *_, gap, cursor, note = messages(slow, "notes:note:made")
        assert gap == {"type": "gap", "payload": {"rooms": {"r1": {"typing:*:*": 3}}}}
        assert cursor["payload"] == {"who": "ann", "number": 2}
        assert note["roomId"] == "r1"


@pytest.mark.parametrize("times", [1, 3])
def test_a_large_message_reaches_a_client_that_reads(
    redis_server: RedisServer, gateway: StartGateway, times: int
) -> None:
    process, redis = gateway(redis_server), redis_server.client()
    with Wire(process.port) as wire:
        enter(wire, "ann")
        for number in range(times):
            publish(redis, "a:b:c", number=number, text="x" * (LARGE // times))
            heard = messages(wire, "a:b:c")
            assert (heard[-1]["payload"]["number"], len(heard[-1]["payload"]["text"])) == (number, LARGE // times)

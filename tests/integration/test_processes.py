"""Several gateway processes on one port, and a gateway whose port systemd holds."""

from __future__ import annotations

import json
import re
import socket
from typing import TYPE_CHECKING

from websockets.sync.client import connect as websocket_connect

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Connect, Gateway, RedisServer, StartGateway, StartService

READY = re.compile(r"Gateway (?P<id>\S+) is ready")

ATTEMPTS = 200
"""The kernel chooses the process by a hash of both addresses: so many clients all at one of two is 1 in 2^199."""


def gateway_id(client: Client) -> str:
    """The process that a client is connected to."""
    return client.socket_id.partition(".")[0]


def one_each(connect: Connect, gateway: Gateway) -> list[Client]:
    """Two clients of one port, on two processes; both are in the room ``board``."""
    seen: dict[str, Client] = {}
    for _ in range(ATTEMPTS):
        client = connect(gateway)
        if seen.setdefault(gateway_id(client), client) is not client:
            client.close()
        elif len(seen) == 2:
            break
    assert len(seen) == 2, "all clients reached the same process"
    for number, client in enumerate(seen.values()):
        client.authenticate(f"t{number}", "board")
    return list(seen.values())


def test_two_processes_serve_one_port(
    redis_server: RedisServer, gateway: StartGateway, service: StartService, connect: Connect
) -> None:
    service(redis_server, "events:stickyNotes")
    first = gateway(redis_server, args=["--listen", "reuseport:0:interface=127.0.0.1"])
    second = gateway(redis_server, args=["--listen", f"reuseport:{first.port}:interface=127.0.0.1"])
    assert first.port == second.port
    here, there = one_each(connect, first)

    here.send("stickyNotes:note:shout", payload={"text": "to both"})
    for client in (here, there):
        assert client.expect("stickyNotes:note:shout")["payload"]["text"] == "to both"
    for client in (here, there):
        client.expect_nothing_through(redis_server)

    # One of them ends: its clients are told, the others stay, and whoever comes next reaches the one that is left.
    ends = first.wait_log(READY)["id"]
    leaving, staying = (here, there) if gateway_id(here) == ends else (there, here)
    first.terminate()
    leaving.expect_stop()
    assert {gateway_id(connect(second)) for _ in range(20)} == {gateway_id(staying)} == {second.wait_log(READY)["id"]}
    staying.send("stickyNotes:note:shout", payload={"text": "still here"})
    assert staying.expect("stickyNotes:note:shout")["payload"]["text"] == "still here"


def test_a_socket_that_systemd_holds(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as held:
        arguments = ["--listen", "systemd:domain=INET:index=0"]
        before = gateway(redis_server, args=arguments, held=held)
        assert before.port == held.getsockname()[1]
        client = connect(before)
        client.authenticate("t", "board")
        before.terminate()
        client.expect_stop()

        # Nobody is refused meanwhile: who comes now waits in the socket for the next process.
        with socket.create_connection(held.getsockname(), timeout=30) as waiting:
            after = gateway(redis_server, args=arguments, held=held)
            assert after.port == before.port
            with websocket_connect(after.url, sock=waiting, compression=None, proxy=None) as late:
                connected = json.loads(late.recv(10))
    assert connected["type"] == "connected"
    assert not connected["payload"]["socketId"].startswith(f"{gateway_id(client)}.")

"""Redis killed and restarted under connected clients, and the daemon's own end."""

from __future__ import annotations

import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from redis import Redis

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Connect, RedisServer, StartGateway, StartService

CHANNEL = "events:stickyNotes"


def until_echoed(client: Client) -> None:
    """Send until it works again; meanwhile every event is answered SERVICE_UNAVAILABLE, and nothing else."""

    def echoed() -> bool:
        client.send("stickyNotes:note:echo", payload="again")
        message = client.receive()
        if message["type"] == "stickyNotes:note:echo":
            return True
        assert message["payload"]["code"] == "SERVICE_UNAVAILABLE", message
        return False

    wait_until(echoed, "an echo; every event was answered SERVICE_UNAVAILABLE", 30.0)


def wait_members(redis: Redis, **sockets: str) -> None:
    """Return once r1 has these members."""
    wait_until(lambda: redis.hgetall("room:r1") == sockets, lambda: f"{sockets}, but {redis.hgetall('room:r1')}")


def test_redis_killed_and_restarted(
    redis_server: RedisServer, gateway: StartGateway, service: StartService, connect: Connect
) -> None:
    first, second = gateway(redis_server), gateway(redis_server)
    notes = service(redis_server, CHANNEL)
    ada = connect(first, token="ada", room="r1")
    bob = connect(second, token="bob", room="r1")
    redis_server.kill()
    first.wait_log("is unavailable")
    ada.send("stickyNotes:note:echo", payload={}, id=5)
    refusal = ada.expect_error("SERVICE_UNAVAILABLE")
    assert refusal["id"] == 5
    cy = connect(first, token="cy", room="r1")
    redis_server.start()
    notes.wait_subscribed()
    for client in (ada, bob, cy):
        until_echoed(client)
    redis = redis_server.client()
    wait_members(redis, user_ada=ada.socket_id, user_bob=bob.socket_id, user_cy=cy.socket_id)
    assert redis.get("socket:user_cy:r1") == cy.socket_id
    ada.send("stickyNotes:note:shout", payload={})
    for client in (ada, bob, cy):
        client.expect("stickyNotes:note:shout")


def test_flushall_restores_the_room_cache(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    ada = connect(gateway(redis_server), token="ada", room="r1")
    redis = redis_server.client()
    wait_members(redis, user_ada=ada.socket_id)
    redis.flushall()
    wait_members(redis, user_ada=ada.socket_id)
    assert redis.get("socket:user_ada:r1") == ada.socket_id
    ada.expect_nothing()


def test_frozen_redis_is_noticed_within_seconds(
    redis_server: RedisServer, gateway: StartGateway, service: StartService, connect: Connect
) -> None:
    process = gateway(redis_server, config={"redis": {"ping_interval": 0.2, "ping_timeout": 1.0}})
    service(redis_server, CHANNEL)
    ada = connect(process, token="ada", room="r1")
    assert redis_server.process is not None
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        process.wait_log("no answer for 1.0 s")
        ada.send("stickyNotes:note:echo", payload={})
        ada.expect_error("SERVICE_UNAVAILABLE")
    finally:
        redis_server.process.send_signal(signal.SIGCONT)
    until_echoed(ada)


def test_start_without_redis(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    redis_server.stop()
    process = gateway(redis_server)
    ada = connect(process, token="ada", room="r1")
    ada.send("stickyNotes:note:echo", payload={})
    ada.expect_error("SERVICE_UNAVAILABLE")
    redis_server.start()
    redis = redis_server.client()
    wait_members(redis, user_ada=ada.socket_id)


def test_sigterm(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    first, second = gateway(redis_server), gateway(redis_server)
    ada = connect(first, token="ada", room="r1")
    bob = connect(second, token="bob", room="r1")
    redis = redis_server.client()
    wait_members(redis, user_ada=ada.socket_id, user_bob=bob.socket_id)
    first.process.terminate()
    ada.expect_stop()
    first.process.wait(15)
    assert redis.hgetall("room:r1") == {"user_bob": bob.socket_id}
    assert not redis.exists("socket:user_ada:r1")


def test_sigint(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    # Where it is ignored, as in what a script runs in the background (POSIX shell, "Signals and Error Handling"), it is
    # ignored in all that is started from there, and Twisted leaves it so. Where it is handled, exec brings the default.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = gateway(redis_server)
    finally:
        signal.signal(signal.SIGINT, before)
    ada = connect(process, token="ada", room="r1")
    process.process.send_signal(signal.SIGINT)
    ada.expect_stop()
    process.process.wait(15)
    assert not redis_server.client().keys("room:*")


@pytest.mark.redis
def test_embedded_redis_goes_with_the_gateway(gateway: StartGateway, connect: Connect) -> None:
    with TemporaryDirectory() as place:
        process = gateway(args=("--redis", "embedded:"), env={"TMPDIR": place})
        ada = connect(process, token="ada", room="r1")
        ada.send("stickyNotes:note:echo", payload={})
        ada.expect_error("SERVICE_UNAVAILABLE")
        (directory,) = Path(place).iterdir()
        with Redis(unix_socket_path=str(directory / "redis.sock")) as client:
            server = Path("/proc", str(client.info()["process_id"]))
        process.terminate()
        assert not server.exists()
        assert not directory.exists()


def test_port_in_use(redis_server: RedisServer, gateway: StartGateway) -> None:
    first = gateway(redis_server)
    import subprocess
    import sys

    second = subprocess.run(
        [sys.executable, str(Path(sys.prefix) / "bin/twistd"), "--nodaemon", "--pidfile=", "kraftek-gateway",
         "--redis", redis_server.url, "--auth", "open", "--listen", f"tcp:{first.port}:interface=127.0.0.1"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert second.returncode == 1
    assert "Cannot start: " in second.stdout + second.stderr
    assert "Traceback" not in second.stdout + second.stderr

"""Another Redis than the right one: after a fail-over, at the start, and one that refuses to be written."""

from __future__ import annotations

import json
import re
import socketserver
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hiredis

from tests.integration.test_operator import asked
from tests.integration.test_outage import until_echoed, wait_members
from tests.support.forwarder import Forwarder
from tests.support.ports import free_port
from tests.support.redis_server import info_reply
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import Connect, Gateway, RedisServer, StartGateway, StartRedis, StartService

CHANNEL = "events:stickyNotes"
OPERATOR = {"operator": {"listen": ["tcp:0:interface=127.0.0.1"]}}


class Health:
    """What the operator's port of a gateway says."""

    def __init__(self, process: Gateway) -> None:
        self._url = "http://" + process.wait_log(re.compile(r"Answering the operator on (\S+)"))[1]

    def now(self) -> tuple[int, bool, str]:
        """The status, ``redis``, and the reason."""
        status, body = asked(f"{self._url}/health")
        health = json.loads(body)
        return status, health["redis"], health.get("reason", "")

    def wait(self, status: int, reason: str = "") -> None:
        """Return once it says so, and the metric, too."""
        wait_until(
            lambda: (now := self.now())[0] == status and now[1] is not bool(reason) and reason in now[2],
            lambda: f"{status} for {reason or 'nothing'}, but {self.now()}",
        )
        up = f"kraftek_redis_up {float(not reason)}"
        wait_until(lambda: up in asked(f"{self._url}/metrics")[1], up)


def test_a_fail_over_that_leaves_the_old_primary_alive(
    redis_server: RedisServer,
    redis_servers: StartRedis,
    gateway: StartGateway,
    service: StartService,
    connect: Connect,
    stage: ExitStack,
) -> None:
    new = redis_servers("--replicaof", f"127.0.0.1 {redis_server.port}", "--repl-diskless-sync-delay", "0")
    wait_until(lambda: new.client().info("replication")["master_link_status"] == "up", "a replica")
    name = Forwarder(redis_server.port)
    stage.callback(name.close)
    url = f"redis://127.0.0.1:{name.port}/0"
    process = gateway(redis_server, config={**OPERATOR, "redis": {"url": url}})
    health = Health(process)
    service(redis_server, CHANNEL)
    ada = connect(process, token="ada", room="r1")
    until_echoed(ada)
    health.wait(200)

    new.client().replicaof("NO", "ONE")
    redis_server.client().replicaof("127.0.0.1", new.port)
    process.wait_log(re.compile(r"unavailable, trying again: (it is no primary any more|READONLY)"))
    health.wait(503, f"it is a replica of 127.0.0.1:{new.port}; expected the primary")
    ada.send("stickyNotes:note:echo", payload={})
    ada.expect_error("SERVICE_UNAVAILABLE")

    service(new, CHANNEL)
    name.target = new.port
    moved = time.monotonic()
    until_echoed(ada)
    assert time.monotonic() - moved < 10
    health.wait(200)
    wait_members(new.client(), user_ada=ada.socket_id)


def test_a_fail_over_while_the_gateway_starts(
    redis_server: RedisServer, redis_servers: StartRedis, gateway: StartGateway, connect: Connect
) -> None:
    other = redis_servers()
    redis = redis_server.client()
    redis.replicaof("127.0.0.1", other.port)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(gateway, redis_server)
        wait_until(lambda: "cmdstat_client|id" in redis.info("commandstats"), "an attempt", 30.0)
        assert not starting.done()
        redis.replicaof("NO", "ONE")
        process = starting.result()
    process.wait_log(f"unavailable, trying again: it is a replica of 127.0.0.1:{other.port}; expected the primary")
    connect(process, token="ada", room="r1")


def refused(url: str) -> str:
    """What a gateway says that cannot start with this Redis."""
    ended = subprocess.run(
        [sys.executable, str(Path(sys.prefix) / "bin/twistd"), "--nodaemon", "--pidfile=", "kraftek-gateway",
         "--redis", url, "--auth", "open", "--listen", "tcp:0:interface=127.0.0.1"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert ended.returncode == 1, said
    assert "Traceback" not in said
    (line,) = re.findall(r"Cannot start: (.*)", said)
    return str(line)


def test_a_cluster_is_no_redis_for_us(redis_servers: StartRedis) -> None:
    cluster = redis_servers("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    assert refused(cluster.url) == (
        f"Redis at 127.0.0.1:{cluster.port}: it is a Redis Cluster; expected one server, or one with replicas"
    )


class OldRedis(socketserver.BaseRequestHandler):
    """As much of a Redis 6.0 as a client sees that asks for its version."""

    def handle(self) -> None:
        reader = hiredis.Reader()
        while data := self.request.recv(65536):
            reader.feed(data)
            while (command := reader.gets()) is not False:
                reply = info_reply(redis_version="6.0.16") if command == [b"INFO"] else b"+OK\r\n"
                self.request.sendall(reply)


def test_an_old_redis_is_none_for_us(stage: ExitStack) -> None:
    server: Any = stage.enter_context(socketserver.ThreadingTCPServer(("127.0.0.1", 0), OldRedis))
    server.daemon_threads = True
    stage.callback(server.shutdown)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    port = server.server_address[1]
    line = refused(f"redis://127.0.0.1:{port}")
    assert line == f"Redis at 127.0.0.1:{port}: it is Redis 6.0.16; expected 6.2 or newer"


def test_writes_that_are_refused_are_told_and_events_flow(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    process = gateway(redis_server, config=OPERATOR)
    health = Health(process)
    ada = connect(process, token="ada", room="r1")
    redis = redis_server.client()
    service = redis.pubsub(ignore_subscribe_messages=True)
    service.subscribe(CHANNEL)
    wait_until(lambda: redis.pubsub_numsub(CHANNEL) == [(CHANNEL, 1)], "a subscription")
    health.wait(200)
    for option, refuses, reason in (("min-replicas-to-write", 1, "NOREPLICAS"), ("maxmemory", 1, "OOM")):
        redis.config_set(option, refuses)
        health.wait(200, reason)
        process.wait_log(f"refuses to be written, trying again: {reason}")
        ada.send("stickyNotes:note:echo", payload=reason)
        event = wait_until(lambda: service.get_message(timeout=0.1), "an event")
        assert json.loads(event["data"])["payload"] == reason
        redis.publish("events:broadcast", json.dumps({"type": "a:b:c", "roomId": "r1"}))
        ada.expect("a:b:c")
        redis.config_set(option, 0)
        health.wait(200)
    process.wait_log("takes writes again after")

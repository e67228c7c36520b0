"""HTTP long-polling, request by request: the gateway beside the server of Socket.IO's own.

What both must do is asked of both; the last tests are about the gateway alone.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pytest

from tests.integration.test_socketio import NODE, SocketIOClient
from tests.support.waiting import Lines, wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import RedisServer, Shared, StartGateway

CLIENTS = Path(__file__).resolve().parent / "socketio"
PING_TIMEOUT = 0.3
OPERATOR = {"operator": {"listen": ["tcp:0:interface=127.0.0.1"]}}


class Site(NamedTuple):
    """A server, and the credentials that its clients connect with."""

    port: int
    auth: str = ""


class Poller:
    """A client of long-polling that does what the test says, one request after the other or at the same time."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.path = "/socket.io/?EIO=4&transport=polling"
        status, body = self.get()
        assert status == 200
        self.path += f"&sid={json.loads(body[1:])['sid']}"

    def ask(self, method: str, body: str | None = None) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.site.port, timeout=60)
        try:
            connection.request(method, self.path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def get(self) -> tuple[int, str]:
        return self.ask("GET")

    def hold(self) -> Callable[[], tuple[int, str]]:
        """A poll that the server holds; the result is called for its answer."""
        connection = HTTPConnection("127.0.0.1", self.site.port, timeout=60)
        connection.request("GET", self.path)
        Poller(self.site)  # when another client has been answered it has been read

        def wait() -> tuple[int, str]:
            answer = connection.getresponse()
            status, body = answer.status, answer.read().decode()
            connection.close()
            return status, body

        return wait

    def post(self, body: str) -> tuple[int, str]:
        return self.ask("POST", body)

    def packets(self) -> list[str]:
        """What the next poll brings, without pings, which are answered."""
        status, body = self.get()
        assert status == 200, body
        packets = body.split("\x1e")
        if "2" in packets:
            self.post("3")
        return [packet for packet in packets if packet != "2"]

    def next(self) -> str:
        """The next packet, which comes alone."""
        while not (packets := self.packets()):
            pass
        (packet,) = packets
        return packet

    def join(self) -> str:
        """Enter the namespace; the socket's id."""
        assert self.post(f"40{self.site.auth}") == (200, "ok")
        packets = self.packets()
        while self.site.auth and not packets[-1].startswith('42["authenticated"'):
            packets += self.packets()
        return str(json.loads(packets[0][2:])["sid"])

    def head(self, length: int) -> socket.socket:
        """The head of a POST, whose body does not come."""
        sock = socket.create_connection(("127.0.0.1", self.site.port), timeout=10)
        sock.sendall(f"POST {self.path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n\r\n".encode())
        return sock


class StartSite(Protocol):
    """Starts one of the two servers. Times in seconds."""

    def __call__(self, *, ping_interval: float = 25.0, ping_timeout: float = 20.0) -> Site: ...


@pytest.fixture(params=["reference", "gateway"])
def start(request: pytest.FixtureRequest, shared: Shared, stage: ExitStack) -> StartSite:
    """Each of the two."""

    def reference(*, ping_interval: float = 25.0, ping_timeout: float = 20.0) -> Site:
        options = json.dumps({"pingInterval": ping_interval * 1000, "pingTimeout": ping_timeout * 1000})
        server = stage.enter_context(
            subprocess.Popen(
                ["node", str(CLIENTS / "reference.js"), options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert server.stdin is not None
        stage.callback(server.stdin.close)
        assert server.stdout is not None
        return Site(int(Lines(server.stdout).next("its port", 30.0)))

    def ours(*, ping_interval: float = 25.0, ping_timeout: float = 20.0) -> Site:
        times = {"ping_interval": ping_interval, "ping_timeout": ping_timeout}
        # A slow Redis must not get in the way: past in_flight, events are refused.
        config = {"socketio": times, "redis": {"in_flight": 100_000}}
        process = shared.gateway(services={"test": "events:test"}, config=config)
        service = threading.Thread(target=serve, args=(shared.redis_server, stop := threading.Event()))
        service.start()
        stage.callback(service.join)
        stage.callback(stop.set)
        redis = shared.redis_server.client()
        wait_until(lambda: redis.pubsub_numsub("events:test")[0][1], "the service's subscription")
        return Site(process.port, '{"token":"ann","roomId":"kitchen"}')

    return reference if request.param == "reference" else ours


@pytest.fixture
def site(start: StartSite) -> Site:
    return start()


def serve(redis_server: RedisServer, stop: threading.Event) -> None:
    """What the reference server does by itself, as a service."""
    redis, events = redis_server.client(), 0
    with redis.pubsub(ignore_subscribe_messages=True) as listening:
        listening.subscribe("events:test")
        while not stop.is_set():
            message = listening.get_message(timeout=0.02)
            if message is None:
                continue
            event = json.loads(message["data"])

            def said(type: str, payload: Any, event: Any = event) -> str:
                return json.dumps({"type": type, "payload": payload, "recipients": [event["socketId"]]})

            match event["eventType"]:
                case "test:all:count":
                    redis.publish("events:broadcast", said("counted", events))
                case "test:all:burst":
                    pipeline = redis.pipeline(transaction=False)
                    for _ in range(event["payload"]["number"]):
                        pipeline.publish("events:broadcast", said("said", "x" * event["payload"]["size"]))
                    pipeline.execute()
                case _:
                    events += 1


@pytest.mark.parametrize(("number", "size"), [(1, 1_100_000), (30, 50_000)])
def test_what_a_polling_client_is_told_at_once_arrives(site: Site, number: int, size: int) -> None:
    client = Poller(site)
    client.join()
    for _ in range(3):
        poll = client.hold()
        client.post(f'42["test:all:burst",{{"number":{number},"size":{size}}}]')
        status, body = poll()
        assert status == 200
        packets = body.split("\x1e")
        while len(packets) < number:
            packets += client.packets()
        assert {packet[:10] for packet in packets} == {'42["said",'}
        assert [len(packet) for packet in packets] == [size + 13] * number


def test_as_many_packets_in_a_post_as_fit(site: Site) -> None:
    client = Poller(site)
    client.join()
    assert client.post("\x1e".join(['42["test:a:b",1]'] * 20_000)) == (200, "ok")
    client.post('42["test:all:count"]')
    assert client.next() == '42["counted",20000]'


def test_who_left_the_namespace_may_close_or_come_back(site: Site) -> None:
    client = Poller(site)
    first = client.join()
    assert client.post("41") == (200, "ok")
    assert client.join() != first
    client.post('42["test:all:count"]')
    assert client.next() == '42["counted",0]'
    assert client.post("41") == (200, "ok")
    poll = client.hold()
    assert client.post("1") == (200, "ok")
    assert poll() == (200, "6")
    assert client.get()[0] == 400


def test_overlapping_posts_are_refused(site: Site) -> None:
    client = Poller(site)
    client.join()
    with client.head(100) as first:
        first.sendall(b'42["test:a')
        # Its head has been read when another client has been answered.
        Poller(site)
        assert client.post('42["test:a:b",1]')[0] == 400
    assert client.get()[0] == 400


def test_a_post_that_breaks_off_ends_the_session(site: Site) -> None:
    client = Poller(site)
    client.join()
    poll = client.hold()
    with client.head(100) as first:
        first.sendall(b'42["test:a')
        Poller(site)
    assert poll() == (200, "1")
    assert client.get()[0] == 400


def test_overlapping_polls_are_refused(site: Site) -> None:
    client = Poller(site)
    client.join()
    poll = client.hold()
    assert client.get()[0] == 400
    assert poll() == (200, "1")
    assert client.get()[0] == 400


def test_a_ping_is_waited_for_as_long_as_was_said(start: StartSite) -> None:
    site = start(ping_interval=1.0, ping_timeout=PING_TIMEOUT)

    def lateness() -> float:
        came = time.monotonic()
        client = Poller(site)
        client.join()
        status, body = client.get()
        assert (status, body) == (200, "2")
        pinged = time.monotonic()
        assert client.get()[1][:1] in "1{"
        closed = time.monotonic()
        assert closed - came > 1.0 + PING_TIMEOUT - 0.05
        return closed - pinged - PING_TIMEOUT

    # On a busy machine a client hears of it late: of five fours of them, one in which nobody does is enough.
    fours: list[list[float]] = []
    while not fours or max(fours[-1]) >= 0.2:
        assert len(fours) < 5, fours
        fours.append([lateness() for _ in range(4)])


def test_who_left_the_namespace_has_a_time_to_come_back(redis_server: RedisServer, gateway: StartGateway) -> None:
    process = gateway(redis_server, config={"limits": {"authenticate_timeout": 3.0}})
    client = Poller(Site(process.port, '{"token":"ann","roomId":"kitchen"}'))
    client.join()
    time.sleep(1.2)  # what is left of the first time would be too short
    left = time.monotonic()
    client.post("41")
    redis = redis_server.client()
    wait_until(lambda: not redis.hkeys("room:kitchen"), lambda: f"nobody in {redis.hgetall('room:kitchen')}")
    assert client.get() == (200, "1")
    assert 2.9 < time.monotonic() - left < 8.0  # a ping would come after 25


def test_a_client_that_fetches_nothing_is_closed(redis_server: RedisServer, gateway: StartGateway) -> None:
    process = gateway(redis_server, config={"limits": {"unsent_bytes": 100_000}})
    client = Poller(Site(process.port, '{"token":"ann","roomId":"kitchen"}'))
    client.join()
    redis = redis_server.client()
    message = json.dumps({"type": "big:big:big", "payload": {"roomId": "kitchen", "text": "x" * 60_000}})
    for _ in range(400):
        redis.publish("events:broadcast", message)
        if "user_ann" not in redis.hkeys("room:kitchen"):
            break
        time.sleep(0.01)
    else:
        pytest.fail("the slow client was kept")
    assert '"SLOW_CONSUMER"' in client.get()[1]


def test_an_answer_that_is_not_read_counts_until_its_session_ends(
    redis_server: RedisServer, gateway: StartGateway
) -> None:
    unsent = 'kraftek_accounted_bytes{account="unsent"}'
    process = gateway(redis_server, config={**OPERATOR, "limits": {"unsent_bytes": 50_000_000}})
    client = Poller(Site(process.port, '{"token":"ann","roomId":"kitchen"}'))
    client.join()
    message = json.dumps({"type": "big:big:big", "payload": {"roomId": "kitchen", "text": "x" * 900_000}})
    redis = redis_server.client()

    def tell() -> None:
        for _ in range(12):  # the kernel takes some of them
            redis.publish("events:broadcast", message)
        wait_until(lambda: process.metric(unsent) > 12 * 900_000, "all of it waits")

    tell()
    packets = client.packets()
    assert [len(packet) > 900_000 for packet in packets] == [True] * 12
    assert process.metric(unsent) == 0
    tell()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", process.port))
        sock.sendall(f"GET {client.path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        wait_until(lambda: 1_000_000 < process.metric(unsent) < 12 * 900_000, "the answer was begun")
        assert client.get()[0] == 400
        wait_until(lambda: process.metric(unsent) == 0, "nothing is kept")
        assert process.metric("kraftek_slow_consumers_total") == 1


@pytest.mark.parametrize("transports", [["polling"], ["websocket"]])
def test_the_official_client_leaves_and_comes_back(
    redis_server: RedisServer, gateway: StartGateway, stage: ExitStack, transports: list[str]
) -> None:
    process = gateway(redis_server)
    client = SocketIOClient(NODE)
    stage.callback(client.close)
    client.connect(process.http_url, transports, {"token": "ann", "roomId": "kitchen"})
    client.reports.expect("connect")
    client.reports.expect("event", "authenticated")
    client.disconnect()
    assert client.reports.expect("disconnect") == ["io client disconnect"]
    redis = redis_server.client()
    wait_until(lambda: not redis.hkeys("room:kitchen"), lambda: f"nobody in {redis.hgetall('room:kitchen')}")
    client.reconnect()
    client.reports.expect("connect")
    client.reports.expect("event", "authenticated")

"""How many may connect, to a gateway process: from one address, and in all, whatever their connections are for."""

from __future__ import annotations

import json
import resource
import select
import shlex
import ssl
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.x509 import DNSName

from tests.bus.test_endpoint import Authority
from tests.integration.wire import Wire, handshake, request
from tests.support.ports import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import AuthService, Gateway, RedisServer, Shared, StartGateway

POLLING = "/socket.io/?EIO=4&transport=polling"
OPERATOR = {"operator": {"listen": ["tcp:0:interface=127.0.0.1"]}}


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Closes what a test opened."""
    with ExitStack() as stack:
        yield stack


def idle(wire: Wire) -> None:
    """Say nothing."""


def slow_head(wire: Wire) -> None:
    wire.send(b"GET / HTTP/1.1\r\nHost: gate")


def slow_body(wire: Wire) -> None:
    wire.send(request(f"{POLLING}&sid=x", "POST", b"4", Content_Length="100"))


def kept(wire: Wire) -> None:
    wire.send(request("/kraftek.js"))
    assert wire.response().status == 200


def polling(wire: Wire) -> None:
    wire.send(request(POLLING))
    assert wire.response().status == 200


def held_poll(wire: Wire) -> None:
    wire.send(request(POLLING))
    sid = json.loads(wire.response().body[1:])["sid"]
    wire.send(request(f"{POLLING}&sid={sid}"))


def websocket(wire: Wire) -> None:
    wire.send(handshake())
    assert wire.response().status == 101


KINDS: list[Callable[[Wire], None]] = [idle, slow_head, slow_body, kept, polling, held_poll, websocket]


def refused(wire: Wire) -> bool:
    """Whether the connection is refused as one too many of its address."""
    try:
        response = wire.response()
    except (AssertionError, TimeoutError):
        return False
    assert response.status == 429
    assert response.body == b"too many connections from this address\n"
    return wire.closed()


def served(port: int, timeout: float = 10.0, source: str = "") -> bool:
    """Whether a new connection gets an answer."""
    with Wire(port, timeout, source=source) as wire:
        wire.send(request("/kraftek.js"))
        try:
            return wire.response().status == 200
        except (AssertionError, OSError):
            return False


class TestOfAnAddress:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_every_kind(self, shared: Shared, opened: ExitStack, kind: Callable[[Wire], None]) -> None:
        """Each kind from an address of its own."""
        limits = {"connections_per_address": 3, "handshake_timeout": 60}
        process = shared.gateway(config={**OPERATOR, "limits": limits})
        address = f"127.0.1.{1 + KINDS.index(kind)}"
        wait_until(lambda: process.metric("kraftek_connections_open") == 0, "no connection")
        refusals = 'kraftek_connections_refused_total{reason="address"}'
        before, lines = process.metric(refusals), len(process.log().splitlines())
        wires = [opened.enter_context(Wire(process.port, source=address)) for _ in range(3)]
        for wire in wires:
            kind(wire)
        for number in range(40):
            with Wire(process.port, source=address) as wire:
                if number % 2:
                    wire.send([request("/"), handshake(), request(POLLING)][number % 3])
                assert refused(wire)
        assert process.metric(refusals) - before == 40
        assert process.metric("kraftek_connections_open") == 3
        for wire in wires:
            wire.socket.close()
        wait_until(lambda: process.metric("kraftek_connections_open") == 0, "no connection")
        assert served(process.port, source=address)
        assert len(process.log().splitlines()) - lines < 20

    def test_sessions_of_polling_count_without_a_connection(
        self, gateway: StartGateway, redis_server: RedisServer
    ) -> None:
        process = gateway(redis_server, config={"limits": {"connections_per_address": 3}})

        def ask(target: str) -> tuple[int, Any]:
            with Wire(process.port) as wire:
                wire.send(request(target, Connection="close"))
                response = wire.response()
            return response.status, response.body

        sids = []
        for _ in range(3):
            status, body = ask(POLLING)
            assert status == 200
            sids.append(json.loads(body[1:])["sid"])
        status, body = ask(POLLING)
        assert (status, json.loads(body)["message"]) == (429, "too many connections from this address")
        with Wire(process.port) as wire:
            wire.send(handshake())
            assert wire.response().status == 429
        # And those that are in may go on.
        with Wire(process.port) as wire:
            wire.send(request(f"{POLLING}&sid={sids[0]}", "POST", b"40"))
            assert wire.response().body == b"ok"
            wire.send(request(f"{POLLING}&sid={sids[0]}"))
            assert b'40{"sid"' in wire.response().body

    def test_a_network_of_ipv6_is_one(self, gateway: StartGateway, redis_server: RedisServer) -> None:
        port = free_port()
        gateway(
            redis_server,
            config={"limits": {"connections_per_address": 1}},
            args=["--listen", f"tcp:{port}:interface=\\:\\:"],
        )
        with Wire(port, host="::1"), Wire(port) as mapped:  # the latter comes as ::ffff:127.0.0.1
            for host in ("::1", "127.0.0.1"):
                with Wire(port, host=host) as another:
                    assert refused(another)
            mapped.send(request("/kraftek.js"))
            assert mapped.response().status == 200

    def test_refused_connections_stay_neither_open_nor_in_the_log(
        self, gateway: StartGateway, redis_server: RedisServer, opened: ExitStack
    ) -> None:
        limits = {"connections_per_address": 2, "handshake_timeout": 60}
        process = gateway(redis_server, config={**OPERATOR, "limits": limits})
        for _ in range(2):
            opened.enter_context(Wire(process.port))
        files = Path(f"/proc/{process.pid}/fd")
        wait_until(lambda: process.metric("kraftek_connections_open") == 2, "two connections")
        before = len(list(files.iterdir()))
        for _ in range(300):  # each stays open on this side
            opened.enter_context(Wire(process.port))
        refusals = 'kraftek_connections_refused_total{reason="address"}'
        wait_until(lambda: process.metric(refusals) == 300, "300 refusals")
        assert len(list(files.iterdir())) < before + 30
        wait_until(lambda: len(list(files.iterdir())) <= before + 1, "those closed that were refused")
        assert len(process.log().splitlines()) < 20


class TestBehindProxies:
    """With ``forwarded_for`` an address counts from the head of a request to its answer, and for the process before."""

    @pytest.fixture
    def process(self, gateway: StartGateway, redis_server: RedisServer) -> Gateway:
        limits = {"connections_per_address": 2, "handshake_timeout": 30}
        return gateway(redis_server, config={**OPERATOR, "forwarded_for": 1, "limits": limits})

    def test_idle_connections_are_nobodys(self, process: Gateway, opened: ExitStack) -> None:
        for kind in (idle, slow_head) * 3:
            kind(opened.enter_context(Wire(process.port)))
        assert served(process.port)
        assert process.metric("kraftek_connections_open") >= 6

    def test_a_kept_connection_counts_for_whoever_asks(self, process: Gateway, opened: ExitStack) -> None:
        for _ in range(2):
            websocket = opened.enter_context(Wire(process.port))
            websocket.send(handshake(X_Forwarded_For="192.0.2.1"))
            assert websocket.response().status == 101
        with Wire(process.port) as wire:
            for address, status in [("192.0.2.2", 200), ("192.0.2.3", 200), ("192.0.2.2", 200), ("192.0.2.1", 429)]:
                wire.send(request("/kraftek.js", X_Forwarded_For=f"192.0.2.1, {address}"))
                assert wire.response().status == status
            assert wire.closed()

    def test_of_every_kind(self, process: Gateway, opened: ExitStack) -> None:
        for kind in ("slow", "poll", "websocket"):
            address = {"slow": "192.0.2.1", "poll": "192.0.2.2", "websocket": "2001:db8::1"}[kind]
            for number in range(2):
                wire = opened.enter_context(Wire(process.port))
                if kind == "slow":
                    slow = request(f"{POLLING}&sid=x", "POST", b"4", Content_Length="100", X_Forwarded_For=address)
                    wire.send(slow)
                elif kind == "poll":
                    wire.send(request(POLLING, X_Forwarded_For=address))
                    sid = json.loads(wire.response().body[1:])["sid"]
                    wire.send(request(f"{POLLING}&sid={sid}", X_Forwarded_For=address))
                else:
                    wire.send(handshake(X_Forwarded_For=f"2001:db8::{number}"))
                    assert wire.response().status == 101
            with Wire(process.port) as wire:
                wire.send(request("/kraftek.js", X_Forwarded_For="192.0.2.9"))
                assert wire.response().status == 200
                wire.send(handshake(X_Forwarded_For=address))
                response = wire.response()
                assert (response.status, response.body) == (429, b"too many connections from this address\n")
                assert wire.closed()


class TestBehindTheProxyProtocol:
    def test_an_address_is_that_of_the_client(
        self, gateway: StartGateway, redis_server: RedisServer, opened: ExitStack
    ) -> None:
        port = free_port()
        limits = {"connections_per_address": 2}
        gateway(redis_server, config={"limits": limits}, args=["--listen", f"haproxy:tcp:{port}:interface=127.0.0.1"])
        for address in ("192.0.2.1", "192.0.2.2"):
            for number in range(4):
                wire = opened.enter_context(Wire(port))
                wire.send(f"PROXY TCP4 {address} 127.0.0.1 50000 {port}\r\n".encode() + handshake())
                assert wire.response().status == (101 if number < 2 else 429)


class TestOfTheProcess:
    @pytest.mark.parametrize("kind", KINDS)
    def test_accepting_pauses_until_a_connection_ends(
        self, shared: Shared, opened: ExitStack, kind: Callable[[Wire], None]
    ) -> None:
        """The sessions of polling stay for a while, so that each kind which has them gets a gateway of its own."""
        limits = {"connections": 5, "handshake_timeout": 60, "authenticate_timeout": 60}
        number = (polling, held_poll).index(kind) if kind in (polling, held_poll) else 2
        process = shared.gateway(number, config={**OPERATOR, "limits": limits})
        wait_until(lambda: process.metric("kraftek_connections_open") == 0, "no connection")
        before, line = process.metric("kraftek_accepting_paused_total"), "connections that this process may have"
        said = process.log().count(line)
        wires = [opened.enter_context(Wire(process.port)) for _ in range(5)]
        for wire in wires:
            kind(wire)
        waiting = [opened.enter_context(Wire(process.port)) for _ in range(20)]
        for wire in waiting:
            wire.send(request("/kraftek.js", Connection="close"))
        assert process.metric("kraftek_connections_open") == 5
        processor = cpu(process)
        assert select.select([wire.socket for wire in waiting], [], [], 0.5)[0] == []
        assert cpu(process) - processor < 0.2  # it does not spin
        for wire in wires:
            wire.socket.close()
        for wire in waiting:  # they are accepted in the order in which they came
            assert wire.response().status == 200
            wire.socket.close()
        wait_until(lambda: process.metric("kraftek_connections_open") == 0, "no connection")
        assert process.metric("kraftek_accepting_paused_total") - before >= 1
        assert process.log().count(line) >= 1
        assert process.log().count(line) - said <= 1  # in a minute

    def test_over_tls_too(
        self, gateway: StartGateway, redis_server: RedisServer, opened: ExitStack, tmp_path: Path
    ) -> None:
        Authority("ours").issue(tmp_path, DNSName("localhost"))
        keys = f"privateKey={tmp_path}/redis.key:certKey={tmp_path}/redis.crt"
        limits = {"connections": 4, "connections_per_address": 2, "handshake_timeout": 60}
        process = gateway(
            redis_server,
            config={**OPERATOR, "limits": limits},
            args=["--listen", f"ssl:0:interface=127.0.0.1:{keys}"],
        )
        anybody = ssl.create_default_context()
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE

        def secured(source: str) -> Wire:
            wire = opened.enter_context(Wire(process.port, source=source))
            wire.socket = anybody.wrap_socket(wire.socket)
            return wire

        opened.enter_context(Wire(process.port))  # it never begins with TLS
        secured("127.0.0.1")
        for _ in range(3):
            assert refused(secured("127.0.0.1"))
        others = [secured("127.0.0.2") for _ in range(2)]
        wait_until(lambda: process.metric("kraftek_connections_open") == 4, "four connections")
        waiting = opened.enter_context(Wire(process.port, source="127.0.0.3"))
        assert process.metric("kraftek_connections_open") == 4
        others[0].socket.close()
        waiting.socket = anybody.wrap_socket(waiting.socket)
        waiting.send(request("/kraftek.js"))
        assert waiting.response().status == 200

    def test_a_stop_at_the_bound(self, gateway: StartGateway, redis_server: RedisServer, opened: ExitStack) -> None:
        process = gateway(redis_server, config={"limits": {"connections": 2}})
        for kind in (idle, websocket, idle, idle):
            kind(opened.enter_context(Wire(process.port)))
        process.wait_log("connections that this process may have")
        process.terminate()


def cpu(process: Gateway) -> float:
    """Seconds of the processor that it has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.fixture
def with_files(tmp_path: Path) -> Callable[[int], Path]:
    """A program: twistd, which may open so many files. The test itself may have more of them open."""

    def program(number: int) -> Path:
        file = tmp_path / f"twistd-{number}"
        twistd = shlex.join([sys.executable, str(Path(sys.prefix) / "bin/twistd")])
        file.write_text(f'#!/bin/sh\nulimit -S -n {number}\nexec {twistd} "$@"\n')
        file.chmod(0o755)
        return file

    return program


class TestOpenFiles:
    def test_whoever_is_let_in_can_be_asked_about(
        self,
        gateway: StartGateway,
        redis_server: RedisServer,
        auth_service: AuthService,
        opened: ExitStack,
        with_files: Callable[[int], Path],
    ) -> None:
        """With 256 files and 100 connections to the auth service all that the process accepts can authenticate."""
        for number in range(192):
            auth_service.allow(f"t{number}", f"user{number}")
        auth_service.mode = "slow"
        config = {**OPERATOR, "auth": {"timeout": 30}}
        process = gateway(redis_server, auth=auth_service.url, config=config, program=with_files(256))
        wires = [opened.enter_context(Wire(process.port, 30)) for _ in range(192)]
        for number, wire in enumerate(wires):
            wire.send(handshake(f"/?token=t{number}"))
        possible = 256 - 64 - 100
        auth_service.wait_questions(possible)
        assert process.metric("kraftek_connections_open") == possible
        assert auth_service.held == possible
        auth_service.mode = "ok"
        auth_service.release()

        def answers(wire: Wire) -> list[str]:
            assert wire.response().status == 101
            return [json.loads(wire.frame()[1])["type"] for _ in range(2)]

        for wire in wires[:possible]:
            assert answers(wire) == ["connected", "authenticated"]
        for wire in wires[:possible]:
            wire.socket.close()
        for wire in wires[possible : 2 * possible]:
            assert answers(wire) == ["connected", "authenticated"]
        assert process.metric("kraftek_access_failed_total") == 0
        assert len(process.log().splitlines()) < 20

    def test_more_than_the_files_allow_is_not_believed(
        self,
        gateway: StartGateway,
        redis_server: RedisServer,
        opened: ExitStack,
        with_files: Callable[[int], Path],
    ) -> None:
        config = {**OPERATOR, "limits": {"connections": 10_000}}
        process = gateway(redis_server, config=config, program=with_files(128))
        process.wait_log("limits.connections is 10000, but the limit of open files (ulimit -n) is 128")
        for _ in range(100):
            idle(opened.enter_context(Wire(process.port)))
        wait_until(lambda: process.metric("kraftek_connections_open") == 64, "64 connections")

    def test_a_process_that_has_no_more_of_them_says_so_once_and_goes_on_later(
        self, gateway: StartGateway, redis_server: RedisServer, opened: ExitStack
    ) -> None:
        process = gateway(redis_server)
        files = Path(f"/proc/{process.pid}/fd")
        before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        highest = max(int(file.name) for file in files.iterdir())
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (highest + 2, before[1]))
        lines, processor = len(process.log().splitlines()), cpu(process)
        for _ in range(3):
            for _ in range(100):
                opened.enter_context(Wire(process.port))
            time.sleep(1)
        assert len(process.log().splitlines()) - lines <= 2
        assert cpu(process) - processor < 1.5
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
        assert served(process.port)

    def test_too_few_of_them_are_a_mistake(
        self,
        gateway: StartGateway,
        redis_server: RedisServer,
        stage: ExitStack,
        with_files: Callable[[int], Path],
    ) -> None:
        with pytest.raises(pytest.fail.Exception, match="the limit of open files") as failed:
            gateway(redis_server, auth="http://127.0.0.1:1", program=with_files(150))
        assert "expected more than 164" in str(failed.value)
        assert "Traceback" not in str(failed.value)


def test_sessions_that_are_gone_before_they_authenticated_do_not_count_for_long(
    gateway: StartGateway, redis_server: RedisServer
) -> None:
    limits = {"connections_per_address": 1, "authenticate_timeout": 1}
    process = gateway(redis_server, config={"limits": limits})

    def ask() -> int:
        with Wire(process.port) as wire:
            wire.send(request(POLLING, Connection="close"))
            return wire.response().status

    assert ask() == 200
    assert ask() == 429
    wait_until(lambda: ask() == 200, "a place", timeout=20)

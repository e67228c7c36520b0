"""Where a gateway listens and what it connects to, in the shapes that machines, containers and networks give them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import unix_connect

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import AuthService, Connect, Gateway, RedisServer, StartGateway

CONFIGURATION_MISTAKE = 78
"""EX_CONFIG of sysexits.h, on which the units do not restart."""


def twistd(
    directory: Path, *arguments: str, env: dict[str, str] | None = None, pidfile: str = ""
) -> subprocess.CompletedProcess[str]:
    """A gateway that is to end by itself."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PORT"}}
    program = [sys.executable, str(Path(sys.prefix) / "bin/twistd"), "--nodaemon", f"--pidfile={pidfile}"]
    return subprocess.run(
        [*program, "kraftek-gateway", *arguments],
        cwd=directory,
        env={**environment, **(env or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# What it connects to


@contextmanager
def _forwarded(front: socket.socket, port: int) -> Iterator[list[Any]]:
    """What connects to ``front`` is forwarded to this port of 127.0.0.1. Gives the connections that were accepted."""
    accepted: list[socket.socket] = []

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = front.accept()
                far = socket.create_connection(("127.0.0.1", port))
                accepted.extend((near, far))
                threading.Thread(target=copy, args=(near, far), daemon=True).start()
                threading.Thread(target=copy, args=(far, near), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield accepted
    finally:
        with suppress(OSError):
            front.shutdown(socket.SHUT_RDWR)
        for each in accepted:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def test_an_auth_service_at_an_ipv6_address(
    auth_service: AuthService, redis_server: RedisServer, gateway: StartGateway, connect: Connect, stage: ExitStack
) -> None:
    auth_service.allow("t", "ada")
    forwarding = socket.create_server(("::1", 0), family=socket.AF_INET6)
    stage.callback(forwarding.close)
    stage.enter_context(_forwarded(forwarding, auth_service.port))
    process = gateway(redis_server, auth=f"http://[::1]:{forwarding.getsockname()[1]}")
    assert connect(process).authenticate("t", "r1")["payload"]["userId"] == "ada"


NAMES = """
import os, socket, time
from pathlib import Path
looked_up = socket.getaddrinfo
def getaddrinfo(host, port=None, *args, **keywords):
    if host == "auth.test":
        # As the system's own: what it waits for does not come sooner because the name server is back.
        host = Path(os.environ["AUTH_TEST"]).read_text()
        if host == "hangs":
            time.sleep(60)
    return looked_up(host, port, *args, **keywords)
socket.getaddrinfo = getaddrinfo
"""


class NameServer:
    """Says where ``auth.test`` is, to gateways with its environment. ``hangs`` is no answer for a minute."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "auth.test"
        (directory / "sitecustomize.py").write_text(NAMES)
        self.environment = {"PYTHONPATH": str(directory), "AUTH_TEST": str(self._file)}

    def say(self, address: str) -> None:
        written = self._file.with_suffix(".new")
        written.write_text(address)
        written.rename(self._file)


@pytest.fixture
def name_server(tmp_path: Path) -> NameServer:
    return NameServer(tmp_path)


AUTH_TIMEOUT = {"auth": {"timeout": 3.0, "cache_ttl": 0.0}}


def test_a_name_server_that_hangs(
    name_server: NameServer,
    auth_service: AuthService,
    redis_server: RedisServer,
    gateway: StartGateway,
    connect: Connect,
) -> None:
    """Log-ins go on as soon as it is back, and it never keeps the gateway from stopping."""
    name_server.say("hangs")
    auth_service.allow("t", "ada")
    url = f"http://auth.test:{auth_service.port}"
    process = gateway(redis_server, auth=url, config=AUTH_TIMEOUT, env=name_server.environment)
    clients = [connect(process) for _ in range(30)]
    for number, client in enumerate(clients):
        client.send("authenticate", payload={"token": "t", "roomId": f"r{number}"})
    for client in clients:
        client.expect_error("AUTH_UNAVAILABLE")

    name_server.say("127.0.0.1")
    clients[0].authenticate("t", "r1")
    time.sleep(1.5)  # the connection to the auth service is closed by now

    # Where the name server said once where it is, it is found while that hangs.
    name_server.say("hangs")
    for client in clients[1:3]:
        client.authenticate("t", "r1")

    process.terminate()  # does not wait for what the name server owes, which is a minute


def test_a_name_that_moves(
    name_server: NameServer,
    auth_service: AuthService,
    redis_server: RedisServer,
    gateway: StartGateway,
    connect: Connect,
    stage: ExitStack,
) -> None:
    """Also while connections to where it was are busy and never closed."""
    name_server.say("127.0.0.1")
    auth_service.allow("t", "ada")
    elsewhere = socket.create_server(("127.0.0.2", auth_service.port))
    stage.callback(elsewhere.close)
    moved: list[Any] = stage.enter_context(_forwarded(elsewhere, auth_service.port))
    url = f"http://auth.test:{auth_service.port}"
    process = gateway(redis_server, auth=url, config=AUTH_TIMEOUT, env=name_server.environment)
    client = connect(process)
    client.authenticate("t", "r0")
    name_server.say("127.0.0.2")
    for number in range(1, 150):
        connect(process).authenticate("t", f"r{number}")
        if moved:
            break
        time.sleep(0.1)
    assert moved


# Where it listens


def test_a_unix_socket_left_by_a_killed_gateway(
    redis_server: RedisServer, gateway: StartGateway, tmp_path: Path
) -> None:
    """In a container, where the next one has the process id of the last one."""
    path = tmp_path / "gateway.sock"
    arguments = ["--listen", "tcp:0:interface=127.0.0.1", "--listen", f"unix:{path}"]
    killed = gateway(redis_server, args=arguments)
    killed.wait_log(f"Listening on {path}")
    with unix_connect(str(path), "ws://gateway/") as client:
        client.recv(10)
    killed.kill()
    assert path.is_socket()
    lock = Path(f"{path}.lock")
    lock.unlink(missing_ok=True)
    lock.symlink_to(str(os.getpid()))  # what Twisted leaves: a process that runs

    again = gateway(redis_server, args=arguments)
    again.wait_log(f"Listening on {path}")
    with unix_connect(str(path), "ws://gateway/") as client:
        client.recv(10)

    # One that listens is not robbed of it.
    refused = twistd(tmp_path, "--redis", redis_server.url, "--auth", "open", "--listen", f"unix:{path}")
    assert refused.returncode == 1
    assert "Cannot start: " in refused.stdout
    assert "in use" in refused.stdout
    with unix_connect(str(path), "ws://gateway/") as client:
        client.recv(10)
    again.terminate()
    assert not path.exists()


def test_a_file_is_not_taken_for_a_socket(redis_server: RedisServer, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    refused = twistd(tmp_path, "--redis", redis_server.url, "--auth", "open", "--listen", f"unix:{path}")
    assert refused.returncode == 1
    assert "Cannot start: " in refused.stdout
    assert "Traceback" not in refused.stdout + refused.stderr
    assert path.read_text() == "data"


# A killed container leaves its pid file, and the next gateway may have the process id that it names.
LEFT = {
    "by itself": "$$",
    "by another program": str(os.getpid()),
    "by a crash while it was written": "",
    "by a process that is gone": "4194303",
}


@pytest.mark.parametrize("pid", LEFT.values(), ids=LEFT)
def test_a_pid_file_that_was_left(pid: str, tmp_path: Path) -> None:
    # It gets as far as a port that is taken.
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = (
            f'printf "%s" "{pid}" > twistd.pid; exec "{sys.executable}" "{Path(sys.prefix) / "bin/twistd"}" '
            f"--nodaemon kraftek-gateway --redis redis://127.0.0.1:1 --auth open "
            f"--listen tcp:{port}:interface=127.0.0.1"
        )
        tried = subprocess.run(
            ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
        )
    assert f"Cannot start: Couldn't listen on 127.0.0.1:{port}" in tried.stdout, tried.stdout + tried.stderr
    assert not (tmp_path / "twistd.pid").exists()


def test_the_pid_file_of_a_gateway_that_runs(redis_server: RedisServer, gateway: StartGateway, tmp_path: Path) -> None:
    pidfile = tmp_path / "gateway.pid"
    running = gateway(redis_server, twistd=[f"--pidfile={pidfile}"])
    assert int(pidfile.read_text()) == running.pid
    refused = twistd(tmp_path, "--auth", "open", pidfile=str(pidfile))
    assert refused.returncode == 1
    assert f"PID {running.pid}" in refused.stderr
    assert int(pidfile.read_text()) == running.pid


def test_a_socket_of_systemds_without_a_name(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    """Not every program that passes sockets names them."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as held:
        arguments = ["--listen", "systemd:domain=INET:index=0"]
        process = gateway(redis_server, args=arguments, held=held, env={"LISTEN_FDNAMES": ""})
        assert process.port == held.getsockname()[1]
        connect(process, token="t", room="board")


@pytest.mark.parametrize("which", ["index=0", "name=web"])
def test_no_socket_of_systemds(which: str, tmp_path: Path) -> None:
    endpoint = f"systemd:domain=INET:{which}"
    refused = twistd(tmp_path, "--auth", "open", "--listen", endpoint)
    assert f"Cannot start: {endpoint}: systemd has passed no such socket" in refused.stdout
    assert refused.returncode == CONFIGURATION_MISTAKE
    assert "Traceback" not in refused.stdout + refused.stderr


# Who has given up root's rights may bind no port below 1024. A test need not be root, and in a container everybody may
# bind any: so here it is all ports.
UNPRIVILEGED = """
import socket, twisted.python.util
def give_up(*_):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")
    socket.socket.bind = refuse
    print("rights are given up", flush=True)
twisted.python.util.switchUID = give_up
"""


def test_ports_are_bound_before_rights_are_given_up(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, tmp_path: Path
) -> None:
    """``twistd --uid``."""
    (tmp_path / "sitecustomize.py").write_text(UNPRIVILEGED)
    process = gateway(redis_server, twistd=["--pidfile=", f"--uid={os.getuid()}"], env={"PYTHONPATH": str(tmp_path)})
    assert "rights are given up" in process.log()
    connect(process, token="t", room="board")


# What stops it


def test_mistakes_come_first(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('listn = []\n[redis]\nurl = "redis://:hunter2@h:port"\n')
    stopped = twistd(tmp_path, "--config", str(file), "--auth", "opne")
    assert stopped.returncode == CONFIGURATION_MISTAKE
    lines = (stopped.stdout + stopped.stderr).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("Cannot start: --auth: auth.check: expected ")
    assert lines[1] == f"Cannot start: {file}: listn: unknown key; did you mean listen?"
    assert lines[2].startswith(f"Cannot start: {file}: redis.url: expected HOST or HOST:PORT")
    assert "hunter2" not in stopped.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lisen", "tcp:1"], "option --lisen not recognized"),
        (["--redis"], "option --redis requires argument"),
        (["now"], "expected options only, found 'now'"),
    ],
)
def test_a_mistake_on_the_command_line(arguments: list[str], expected: str, tmp_path: Path) -> None:
    stopped = twistd(tmp_path, *arguments)
    assert stopped.returncode == CONFIGURATION_MISTAKE
    assert (stopped.stdout + stopped.stderr).splitlines() == [
        f"Cannot start: {expected}; twistd kraftek-gateway --help lists the options"
    ]


def test_a_key_that_cannot_be_read(redis_server: RedisServer, tmp_path: Path) -> None:
    endpoint = f"ssl:0:privateKey={tmp_path / 'missing.pem'}"
    stopped = twistd(tmp_path, "--redis", redis_server.url, "--auth", "open", "--listen", endpoint)
    assert stopped.returncode == CONFIGURATION_MISTAKE
    assert f"Cannot start: {endpoint}: " in stopped.stdout
    assert "No such file" in stopped.stdout
    assert "Traceback" not in stopped.stdout + stopped.stderr


# While Redis is away


def lines_about_redis(process: Gateway, after: int = 0) -> list[str]:
    return [line for line in process.log()[after:].splitlines() if "edis" in line or "retry" in line]


def test_redis_goes_and_is_back(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    process = gateway(redis_server, services={"chat": {"channel": "events:chat", "transport": "stream"}})
    ada = connect(process, token="ada", room="r1")
    before = len(process.log())
    redis_server.kill()
    ada.send("chat:message:send")
    ada.expect_error("SERVICE_UNAVAILABLE")
    time.sleep(5.0)
    redis_server.start()
    process.wait_log("is back after", after=before)
    away, back = lines_about_redis(process, before)
    name = f"Redis at 127.0.0.1:{redis_server.port}"
    assert f"{name} is unavailable" in away
    assert re.search(rf"{name} is back after \d+ s$", back)
    assert " object at 0x" not in process.log()


def test_no_redis_from_the_start_to_the_stop(redis_server: RedisServer, gateway: StartGateway) -> None:
    redis_server.stop()
    process = gateway(redis_server)
    time.sleep(2.0)
    process.terminate()
    (away,) = lines_about_redis(process)
    assert f"Redis at 127.0.0.1:{redis_server.port} is unavailable" in away
    assert "refused" in away


# What it tells of itself


def test_the_board_says_where_it_is(gateway: StartGateway) -> None:
    process = gateway(args=["--demo", "--listen", "tcp:0"])
    process.wait_log(f"The board is at http://localhost:{process.port}/")

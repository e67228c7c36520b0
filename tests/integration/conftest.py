"""The real parts that integration tests are made of.

Real redis-server, the real daemon started by twistd from the installed package, real sockets, an auth service that
listens, and services in processes of their own. Each can be stopped, killed and looked at in the middle of a test,
and all are taken down, in the reverse order of their start, when it ends.

Tests import the types below for their annotations only, because pytest owns this module::

    if TYPE_CHECKING:
        from tests.integration.conftest import Connect, StartGateway

Nothing waits for time: every wait ends with the condition it waits for, and a time-out is a failure that says what
was seen instead. Nothing is skipped: what is missing on the machine fails with what to install.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.request import urlopen

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect as websocket_connect
from websockets.typing import Origin, Subprotocol

from kraftek.bus.embedded import EmbeddedRedisError, redis_server_path
from tests.support.ports import free_port, give_back
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from playwright.sync_api import Browser
    from websockets.sync.client import ClientConnection

Json = dict[str, Any]

ECHO_SERVICE = Path(__file__).resolve().parent / "echo_service.py"
# What would tell a gateway where to listen and whom to ask: only the test may. The fast path is for who runs the tests.
GATEWAY_VARIABLE = re.compile(
    r"(?!KRAFTEK_FASTPATH$)(KRAFTEK|REDIS|LISTEN)_\w+|PORT|AUTH_SERVICE_URL|NOTIFY_SOCKET|PYTHONPATH"
)
LISTENING = re.compile(r"Listening on (?P<host>\S+):(?P<port>\d+)")
# sd_listen_fds(3): the sockets that a service is given are numbered from 3, and are for the process named only.
PASS_SOCKET = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.environ.setdefault("LISTEN_FDNAMES", "web")
os.execv(sys.argv[2], sys.argv[2:])
"""
START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0


@pytest.fixture
def stage() -> Iterator[ExitStack]:
    """Takes down what the other fixtures start, last started first, whatever order a test asks for them in."""
    with ExitStack() as started:
        yield started


# Redis


class RedisServer:
    """A redis-server of one test, on a port of its own. It keeps nothing: started again, it is empty, unless it was
    killed with ``keep``, which leaves what it had saved.
    """

    def __init__(self, binary: str, directory: Path, *options: str) -> None:
        self._binary = binary
        self._directory = directory
        self._options = options
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []

    def start(self) -> None:
        """Start it, on the same port every time, and return once it answers."""
        assert self.process is None, "this redis-server runs already"
        self._directory.mkdir(exist_ok=True)
        log = self._directory / "redis.log"
        self.process = subprocess.Popen(
            [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
             "--dir", str(self._directory), "--logfile", str(log), *self._options],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

        probe = self.client()

        def answers() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                pytest.fail(f"redis-server ended: {log.read_text()}")
            with suppress(redis.exceptions.ConnectionError):
                return bool(probe.ping())
            return False

        wait_until(answers, "an answer of redis-server")

    def client(self, **options: Any) -> redis.Redis:
        """A client that speaks ``str`` and tells of a lost connection at once; closed with the server."""
        options = {"decode_responses": True, "retry": Retry(NoBackoff(), 0), **options}
        client = redis.Redis(port=self.port, **options)
        self._clients.append(client)
        return client

    def _wait(self, keep: bool = False) -> None:
        assert self.process is not None
        self.process.wait(STOP_TIMEOUT)
        self.process = None
        if not keep:
            shutil.rmtree(self._directory)

    def stop(self) -> None:
        """End it as an operator would."""
        if self.process is not None:
            self.process.terminate()
            self._wait()

    def kill(self, keep: bool = False) -> None:
        """End it as a power cut would."""
        assert self.process is not None, "this redis-server does not run"
        self.process.kill()
        self._wait(keep)

    def close(self) -> None:
        """Give back everything: the end of the test."""
        for client in self._clients:
            client.close()
        self.stop()


class StartRedis(Protocol):
    """Starts a fresh, empty redis-server with these options; as often as the test likes. ``binary``: another one."""

    def __call__(self, *options: str, binary: str = "") -> RedisServer: ...


@pytest.fixture
def redis_servers(starter: Starter) -> StartRedis:
    """Further redis-servers: call it to start one."""
    return starter.redis


@pytest.fixture
def redis_server(redis_servers: StartRedis) -> RedisServer:
    """A fresh, empty redis-server."""
    return redis_servers()


# The gateway


class Gateway:
    """A process that a gateway runs in, from the installed package. ``held``: a listening socket for it."""

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        environment: Mapping[str, str],
        held: socket.socket | None = None,
    ) -> None:
        self._log: list[str] = []
        self._news = threading.Condition()
        self._traceback_expected = False
        self.process = subprocess.Popen(
            [*([sys.executable, "-c", PASS_SOCKET, str(held.fileno())] if held else []), *command],
            cwd=directory,
            env=environment,
            pass_fds=[held.fileno()] if held else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
        )
        self.pid = self.process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._log.append(line)
                self._news.notify_all()
        with self._news:
            self._log.append("")
            self._news.notify_all()

    def log(self) -> str:
        """All it has logged so far, standard output and error together."""
        with self._news:
            return "".join(self._log)

    def wait_log(self, what: str | re.Pattern[str], timeout: float = 10.0, *, after: int = 0) -> re.Match[str]:
        """The first place where the log says ``what``; ``after`` is a length of :meth:`log` to look behind."""
        wanted = re.compile(re.escape(what)) if isinstance(what, str) else what
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                text = "".join(self._log)
                if found := wanted.search(text, after):
                    return found
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._reader.is_alive():
                    break
                self._news.wait(min(remaining, 1.0))
        pytest.fail(f"the gateway did not log {wanted.pattern!r}, but:\n{text[after:]}")

    @property
    def operator_port(self) -> int:
        """Where it answers the operator, if its configuration has it listen there."""
        return int(self.wait_log(re.compile(r"Answering the operator on \S+:(\d+)"))[1])

    def metric(self, name: str) -> float:
        """What the operator is told, by the name of the metric with its labels."""
        with urlopen(f"http://127.0.0.1:{self.operator_port}/metrics", timeout=10.0) as answer:
            text = answer.read().decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])

    def wait_listening(self) -> None:
        """Return once clients can connect."""
        self.port = int(self.wait_log(LISTENING, START_TIMEOUT)["port"])
        self.url = f"ws://127.0.0.1:{self.port}/"
        self.http_url = f"http://127.0.0.1:{self.port}/"

    def _ended(self) -> int:
        try:
            code = self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT)
            pytest.fail(f"the gateway did not end within {STOP_TIMEOUT:g} s of SIGTERM:\n{self.log()}")
        self._reader.join(STOP_TIMEOUT)
        return code

    def terminate(self) -> int:
        """SIGTERM, and its exit code: twistd, stopped cleanly, ends by that signal itself, ``-SIGTERM``."""
        self.process.terminate()
        return self._ended()

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self._ended()

    def expect_traceback(self) -> None:
        """This test is about something that is logged with its traceback."""
        self._traceback_expected = True

    def close(self) -> None:
        """End it, and hold that it never logged what it did not handle: the end of the test."""
        if self.process.poll() is None:
            self.process.terminate()
        self._ended()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._hold_handled(self.log())

    def check(self, after: int) -> None:
        """Hold that it runs, and never logged what it did not handle: the end of a test that leaves it to others.
        ``after`` is what :meth:`log` had as its length before that test.
        """
        log = self.log()[after:]
        if self.process.poll() is not None:
            pytest.fail(f"the gateway ended:\n{log}")
        self._hold_handled(log)

    def _hold_handled(self, log: str) -> None:
        if not self._traceback_expected and re.search("Unhandled|Traceback", log):
            pytest.fail(f"the gateway logged a failure that nobody handled:\n{log}")


def toml(table: Mapping[str, Any], path: str = "") -> str:
    """``table`` as TOML. Strings, numbers, booleans and lists of them look there as they look in JSON."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    lines = [f"[{path}]"] if path else []
    lines += [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in plain.items()]
    blocks = [toml(value, f"{path}.{json.dumps(key)}".lstrip(".")) for key, value in inner.items()]
    return "\n".join([*lines, *blocks])


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Json:
    """``above`` over ``below``, table by table."""
    result = dict(below)
    for key, value in above.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


class StartGateway(Protocol):
    """Starts a gateway process and returns once it listens; as often as the test likes.

    ``redis``: the server it uses. ``auth``: ``open`` or the base URL of an auth service. ``services``: channel, or
    table, by service name. ``config``: merged over the file made from these. ``args``, ``env``: appended.
    ``held``: a listening socket that it is handed as systemd does it. ``twistd``: that program's own options;
    ``program``: another one than that of this environment.
    It listens on a free port of 127.0.0.1 unless ``args`` name another ``--listen``.
    """

    def __call__(
        self,
        redis: RedisServer | None = None,
        *,
        auth: str = "open",
        services: Mapping[str, Any] = ...,
        config: Mapping[str, Any] | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        held: socket.socket | None = None,
        twistd: Sequence[str] = ("--pidfile=",),
        program: Path | None = None,
    ) -> Gateway: ...


@pytest.fixture
def gateway(starter: Starter) -> StartGateway:
    """Gateways: call it to start one."""
    return starter.gateway


# Clients


class Client:
    """A client of the native dialect. A wait that ends badly is the test's failure, and says what came instead."""

    _barriers = count(1)

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.socket_id: str = self.expect("connected")["payload"]["socketId"]

    def send(self, type: str, **fields: Any) -> None:
        """Send ``{"type": type, **fields}``; the fields are ``payload``, ``id`` and ``roomId``."""
        self.connection.send(json.dumps({"type": type, **fields}))

    def send_raw(self, data: str | bytes) -> None:
        """Send one message as it stands: ``str`` as text, ``bytes`` as binary."""
        self.connection.send(data)

    def receive(self, timeout: float = 10.0) -> Json:
        """The next message."""
        try:
            message = json.loads(self.connection.recv(timeout))
        except TimeoutError:
            pytest.fail(f"nothing came within {timeout:g} s")
        except ConnectionClosed as closed:
            pytest.fail(f"the gateway closed the socket instead: {closed}")
        assert isinstance(message, dict), message
        return message

    def expect(self, type: str, timeout: float = 10.0) -> Json:
        """The next message, which must be of this type."""
        message = self.receive(timeout)
        assert message["type"] == type, message
        return message

    def expect_error(self, code: str, timeout: float = 10.0) -> Json:
        """The next message, which must be the error ``code``."""
        message = self.expect("error", timeout)
        assert message["payload"]["code"] == code, message
        return message

    def expect_close(self, code: int, timeout: float = 10.0) -> None:
        """Nothing more but the gateway's close frame with ``code``."""
        try:
            message = self.connection.recv(timeout)
        except TimeoutError:
            pytest.fail(f"still open after {timeout:g} s")
        except ConnectionClosed as closed:
            if closed.rcvd is None or closed.rcvd.code != code:
                pytest.fail(f"closed otherwise: {closed}")
        else:
            pytest.fail(f"got a message, not the end: {message!r}")

    def expect_stop(self) -> None:
        """Nothing more but what a gateway that stops says to its clients."""
        self.expect("drain")
        self.expect_close(1012)

    def expect_nothing(self) -> None:
        """Nothing was sent to this client that the gateway process had already done.

        Proved without waiting: a malformed event name is answered at once and behind everything older. What still
        travels through Redis can come later; see :meth:`expect_nothing_through`.
        """
        barrier = f"barrier-{next(self._barriers)}"
        self.send("barrier::", id=barrier)
        message = self.expect("error")
        assert message["id"] == barrier, message

    def expect_nothing_through(self, server: RedisServer, channel: str = "events:broadcast") -> None:
        """Nothing was sent to this client by what had been published to ``channel`` before, on any connection."""
        barrier = f"barrier:through:{next(self._barriers)}"
        with server.client() as publisher:
            broadcast = {"type": barrier, "recipients": [self.socket_id], "payload": None}
            publisher.publish(channel, json.dumps(broadcast))
        self.expect(barrier)

    def authenticate(self, token: str, room: str | None) -> Json:
        """Authenticate by message; the ``authenticated`` answer."""
        self.send("authenticate", payload={"token": token, "roomId": room})
        answer = self.expect("authenticated")
        assert answer["payload"]["success"] is True, answer
        return answer

    def close(self) -> None:
        """Leave politely."""
        self.connection.close()


class Connect(Protocol):
    """Opens a WebSocket to a gateway and reads its ``connected``; with a token, authenticates by message too.

    ``query``: what follows the ``?`` of the URL. ``origin``: what a browser would send there.
    """

    def __call__(
        self,
        gateway: Gateway,
        token: str | None = None,
        room: str | None = None,
        subprotocols: Sequence[str] = ("kraftek.v1.json",),
        headers: Mapping[str, str] | None = None,
        query: str = "",
        origin: str | None = None,
    ) -> Client: ...


@pytest.fixture
def connect(stage: ExitStack) -> Connect:
    """Clients: call it to connect one."""

    def opened(
        gateway: Gateway,
        token: str | None = None,
        room: str | None = None,
        subprotocols: Sequence[str] = ("kraftek.v1.json",),
        headers: Mapping[str, str] | None = None,
        query: str = "",
        origin: str | None = None,
    ) -> Client:
        opening = websocket_connect(
            gateway.url + (f"?{query}" if query else ""),
            subprotocols=[Subprotocol(name) for name in subprotocols],
            additional_headers=dict(headers or {}),
            origin=None if origin is None else Origin(origin),
            compression=None,
            proxy=None,
            max_size=None,
            close_timeout=1,  # one that has not read all that it was sent does not see the answer to its goodbye
        )
        client = Client(stage.enter_context(opening))
        if token is not None:
            client.authenticate(token, room)
        return client

    return opened


# The auth service


class AuthService:
    """An auth service that listens, answers ``POST /auth/check`` and does what the test tells it.

    Tokens nobody spoke of are denied. ``mode`` is how it behaves from now on:

    ``ok``        it answers.
    ``down``      its port refuses connections, and those that were open are cut.
    ``slow``      it holds each question until :meth:`release`, then answers what was true when it was asked.
    ``error500``  it answers with status 500.
    ``garbage``   it answers with bytes that are no JSON.
    ``lying``     it answers with status 200 and wrong types.

    ``broken``: rooms about which it answers as in ``error500``, whatever the mode.
    """

    def __init__(self) -> None:
        self.questions: list[tuple[str, str | None]] = []
        self.broken: set[str] = set()
        self._answers: dict[str, Json] = {}
        self._rooms: dict[str, Sequence[str]] = {}
        self._held: list[threading.Event] = []
        self._mode = "ok"
        self._server: AuthServer | None = None
        self.port = 0
        self._listen()
        self.url = f"http://127.0.0.1:{self.port}"

    def allow(
        self,
        token: str,
        userId: str,
        rooms: Sequence[str] | None = None,
        permissions: Sequence[str] | None = None,
        expiresAt: int | None = None,
        ttl: float | None = None,
    ) -> None:
        """Say yes to ``token``, in these rooms only when there are any; what is ``None`` is left out."""
        optional = {"permissions": permissions, "expiresAt": expiresAt, "ttl": ttl}
        present = {key: value for key, value in optional.items() if value is not None}
        self._answers[token] = {"success": True, "userId": userId, **present}
        if rooms is None:
            self._rooms.pop(token, None)
        else:
            self._rooms[token] = tuple(rooms)

    def deny(self, token: str, message: str = "Invalid token") -> None:
        """Say no to ``token``."""
        self._answers[token] = {"success": False, "message": message}

    @property
    def mode(self) -> str:
        """How it behaves; see the class."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        assert mode in {"ok", "down", "slow", "error500", "garbage", "lying"}, mode
        self._mode = mode
        if mode == "down":
            self.close()
        elif self._server is None:
            self._listen()

    @property
    def held(self) -> int:
        """How many questions wait for :meth:`release`."""
        return len(self._held)

    def release(self) -> None:
        """Answer the questions held so far. Later ones are held as well while ``mode`` is ``slow``."""
        held, self._held = self._held, []
        for question in held:
            question.set()

    def wait_questions(self, number: int, timeout: float = 10.0) -> None:
        """Return once it has been asked so often, since its start."""
        wait_until(lambda: len(self.questions) >= number, lambda: f"{number} questions in {self.questions}", timeout)

    def ask(self, token: str, roomId: str | None) -> tuple[int, bytes]:
        """The status and the body that answer a question; on the thread of its connection."""
        mode, answer = self._mode, self._answer(token, roomId)
        release = threading.Event()
        if mode == "slow":
            self._held.append(release)
        self.questions.append((token, roomId))
        if mode == "slow":
            assert release.wait(60), "nobody released the question"
        if mode == "error500" or roomId in self.broken:
            return 500, b'{"success": true, "userId": "nobody", "roomId": null}'
        if mode == "garbage":
            return 200, b"\x80<html>It works!</html>"
        if mode == "lying":
            return 200, b'{"success": "yes", "userId": {"admin": true}, "roomId": 7}'
        return 200 if answer["success"] else 401, json.dumps(answer).encode()

    def _answer(self, token: str, room: str | None) -> Json:
        answer = self._answers.get(token, {"success": False, "message": "Invalid token"})
        if answer["success"] and token in self._rooms and room not in self._rooms[token]:
            return {"success": False, "message": "No access to this room"}
        return {**answer, "roomId": room} if answer["success"] else answer

    def _listen(self) -> None:
        self._server = AuthServer(self, self.port)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop listening and end every thread: the end of the test."""
        if self._server is not None:
            self._server.close()
            self._server = None


class AuthServer(ThreadingHTTPServer):
    """The port an :class:`AuthService` listens on, between two times of being down."""

    request_queue_size = 256

    def __init__(self, service: AuthService, port: int) -> None:
        self.service = service
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), AuthConnection)

    def close(self) -> None:
        """Refuse connections, and cut those that are open."""
        self.shutdown()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.service.release()
        self.server_close()


class AuthConnection(BaseHTTPRequestHandler):
    """A connection to an :class:`AuthServer`, kept open between questions as real ones are."""

    server: AuthServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self) -> None:
        self.server.connections.add(self.connection)
        with suppress(OSError):  # either side may cut it
            super().handle()
        self.server.connections.discard(self.connection)

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, body = 404, b"{}"
        if self.path == "/auth/check" and set(question) == {"token", "roomId"}:
            status, body = self.server.service.ask(**question)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def auth_service(stage: ExitStack) -> AuthService:
    """An auth service that denies everything until told otherwise."""
    service = AuthService()
    stage.callback(service.close)
    return service


# Services


class Service:
    """A service in its own process, speaking the Redis contract only; what it does is in echo_service.py."""

    def __init__(self, server: RedisServer, channel: str, on_event: Callable[[Json], Json | None] | None) -> None:
        self.channel = channel
        self._redis = server.client()
        self._on_event = on_event
        mode = "asking" if on_event else "echoing"
        subscribed = self._subscribers()
        self.process = subprocess.Popen(
            [sys.executable, str(ECHO_SERVICE), server.url, channel, mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        if on_event is not None:
            threading.Thread(target=self._answer, daemon=True).start()
        self.wait_subscribed(subscribed + 1)

    def wait_subscribed(self, number: int = 1) -> None:
        """Return once ``number`` services listen on the channel: after its start, or Redis's."""
        wait_until(lambda: self._subscribers() >= number, lambda: f"a subscription to {self.channel}", START_TIMEOUT)

    def _subscribers(self) -> int:
        ((_, number),) = self._redis.pubsub_numsub(self.channel)
        return int(number)

    def _answer(self) -> None:
        assert self._on_event is not None
        assert self.process.stdout is not None
        assert self.process.stdin is not None
        for line in self.process.stdout:
            self.process.stdin.write(json.dumps(self._on_event(json.loads(line))) + "\n")
            self.process.stdin.flush()

    def received(self) -> list[Json]:
        """Every event it got, oldest first."""
        return [json.loads(event) for event in self._redis.lrange(f"test:received:{self.channel}", 0, -1)]

    def wait_received(self, number: int = 1, timeout: float = 10.0) -> list[Json]:
        """The events it got, as soon as there are so many."""
        return wait_until(
            lambda: received if len(received := self.received()) >= number else [],
            lambda: f"{number} events in {self.received()}",
            timeout,
        )

    def stop(self) -> None:
        """End it; Redis has noticed when this returns."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(STOP_TIMEOUT)

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait(STOP_TIMEOUT)

    def close(self) -> None:
        """Give back everything: the end of the test."""
        self.stop()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()


class StartService(Protocol):
    """Starts a service on ``channel`` and returns once it is subscribed.

    ``on_event`` is called in the test's process, on a thread, with every event; what it returns is published to
    the broadcast channel, ``None`` is silence. Without it the service answers as echo_service.py says.
    """

    def __call__(
        self,
        redis_server: RedisServer,
        channel: str,
        on_event: Callable[[Json], Json | None] | None = None,
    ) -> Service: ...


@pytest.fixture
def service(starter: Starter) -> StartService:
    """Services: call it to start one."""
    return starter.service


# What starts all these


class Starter:
    """Starts what integration tests are made of; ``stage`` takes it down."""

    def __init__(self, stage: ExitStack, directories: pytest.TempPathFactory) -> None:
        self._stage = stage
        self._directories = directories

    def redis(self, *options: str, binary: str = "") -> RedisServer:
        """See :class:`StartRedis`."""
        try:
            binary = binary or redis_server_path()
        except EmbeddedRedisError as missing:
            pytest.fail(str(missing))
        server = RedisServer(binary, self._directories.mktemp("redis"), *options)
        self._stage.callback(server.close)
        server.start()
        return server

    def gateway(
        self,
        redis: RedisServer | None = None,
        *,
        auth: str = "open",
        services: Mapping[str, Any] = {"stickyNotes": "events:stickyNotes"},
        config: Mapping[str, Any] | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        held: socket.socket | None = None,
        twistd: Sequence[str] = ("--pidfile=",),
        program: Path | None = None,
    ) -> Gateway:
        """See :class:`StartGateway`."""
        directory = self._directories.mktemp("gateway")
        tables: Json = {"auth": {"check": auth}, "services": dict(services)}
        if redis is not None:
            tables["redis"] = {"url": redis.url}
        file = directory / "kraftek-gateway.toml"
        file.write_text(toml(merged(tables, config or {})), encoding="utf-8")
        listen = () if "--listen" in args else ("--listen", f"tcp:{self._port()}:interface=127.0.0.1")
        own = [sys.executable, str(Path(sys.prefix) / "bin/twistd")]
        command = [*([str(program)] if program else own), "--nodaemon", *twistd, "kraftek-gateway"]
        return self.run([*command, "--config", str(file), *listen, *args], directory, env, held)

    def _port(self) -> int:
        """One that stays free when the gateway ends: a test may start another one there."""
        port = free_port()
        self._stage.callback(give_back, port)
        return port

    def run(
        self,
        command: Sequence[str],
        directory: Path,
        env: Mapping[str, str] | None = None,
        held: socket.socket | None = None,
    ) -> Gateway:
        """Start a program that a gateway runs in, and return once that listens."""
        environment = {key: value for key, value in os.environ.items() if not GATEWAY_VARIABLE.fullmatch(key)}
        process = Gateway(command, directory, {**environment, **(env or {})}, held)
        self._stage.callback(process.close)
        process.wait_listening()
        return process

    def service(
        self,
        redis_server: RedisServer,
        channel: str,
        on_event: Callable[[Json], Json | None] | None = None,
    ) -> Service:
        """See :class:`StartService`."""
        started = Service(redis_server, channel, on_event)
        self._stage.callback(started.close)
        return started


@pytest.fixture
def starter(stage: ExitStack, tmp_path_factory: pytest.TempPathFactory) -> Starter:
    """Starts what one test uses."""
    return Starter(stage, tmp_path_factory)


class Shared:
    """What the tests of a module share: a Redis, and a gateway for each configuration. What a test finds there may be
    left of others, so that these are for tests of connections, messages and rooms; and no test may stop any of it.
    """

    def __init__(self, starter: Starter) -> None:
        self.redis_server = starter.redis()
        self.service = starter.service
        self._start = starter.gateway
        self._gateways: dict[str, Gateway] = {}

    def gateway(self, number: int = 0, **settings: Any) -> Gateway:
        """The one that was started with these settings, which are those of :class:`StartGateway`. ``number``: for
        several with the same.
        """
        key = json.dumps([number, settings])
        if key not in self._gateways:
            self._gateways[key] = self._start(self.redis_server, **settings)
        return self._gateways[key]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Hold that no gateway fails meanwhile."""
        before = {process: len(process.log()) for process in self._gateways.values()}
        yield
        for process in self._gateways.values():
            process.check(before.get(process, 0))


@pytest.fixture(scope="module")
def of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """What :func:`shared` gives to each test."""
    with ExitStack() as stage:
        yield Shared(Starter(stage, tmp_path_factory))


@pytest.fixture
def shared(of_module: Shared) -> Iterator[Shared]:
    """What all tests of the module use, where one start for each would be most of what they cost."""
    with of_module.used():
        yield of_module


# Browsers


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """The browser, for Playwright's ``executable_path``."""
    from tests.support.browser import chromium

    try:
        return chromium()
    except RuntimeError as missing:
        pytest.fail(str(missing))


# As root it starts with no sandbox alone; the rest has it ask the network for nothing.
BROWSER_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    """One browser for the module; of its contexts none knows of the others."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path, args=BROWSER_OPTIONS)
        yield browser
        browser.close()

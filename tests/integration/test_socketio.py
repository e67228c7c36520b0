"""Socket.IO clients as they are published, against a gateway process: the official one in Node, and python-socketio's.

Each over the transports it chooses by itself (polling, then WebSocket), over WebSocket alone and over polling alone.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from base64 import b64decode, b64encode
from contextlib import ExitStack, closing
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from playwright.sync_api import Browser, ConsoleMessage, expect

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import (
        AuthService,
        Connect,
        RedisServer,
        Shared,
        StartGateway,
        StartService,
    )

CLIENTS = Path(__file__).resolve().parent / "socketio"
TRANSPORTS = {"default": None, "websocket": ["websocket"], "polling": ["polling"]}
ECHO = {"echo": "events:echo"}
ANSWERS = {"echo": {"channel": "events:echo", "reply": True}}
WATCHED = {"rooms": {"watched-*": {"presence": True}}}


class Reports:
    """What a client tells of what happens to it, in order."""

    def __init__(self) -> None:
        self.queue: queue.Queue[list[Any]] = queue.Queue()

    def next(self, timeout: float = 10.0) -> list[Any]:
        try:
            return self.queue.get(timeout=timeout)
        except queue.Empty:
            pytest.fail(f"nothing came within {timeout:g} s")

    def expect(self, *what: Any, timeout: float = 10.0) -> list[Any]:
        """The next report, which must begin with these words; what follows them."""
        report = self.next(timeout)
        assert report[: len(what)] == list(what), f"expected {what}, got {str(report)[:500]}"
        return report[len(what) :]

    def until(self, *what: Any) -> list[Any]:
        """As :meth:`expect`, after failed attempts to connect."""
        failed: list[Any] = []
        while (report := self.next())[0] == "connect_error":
            failed.append(report)
            assert len(failed) < 1000, f"expected {what}, and attempts to connect fail: {report}"
        assert report[: len(what)] == list(what), f"expected {what}, got {str(report)[:500]}"
        return report[len(what) :]


class Library(NamedTuple):
    """A published client, in a process of its own."""

    command: tuple[str, ...]
    put_out: frozenset[str]
    """Its reasons for a disconnect when the server put it out,"""
    left: str
    """when it left,"""
    lost: frozenset[str]
    """and when the server went away, by WebSocket and by polling, after which it comes back."""


NODE = Library(
    ("node", str(CLIENTS / "client.js")),
    frozenset({"io server disconnect"}),
    "io client disconnect",
    frozenset({"transport close", "transport error"}),
)
PYTHON = Library(
    (sys.executable, str(CLIENTS / "client.py")),
    frozenset({"server disconnect"}),
    "client disconnect",
    frozenset({"transport error"}),
)


class SocketIOClient:
    """A client. Buffers are ``bytes`` in what it is given and reports."""

    def __init__(self, library: Library) -> None:
        assert (CLIENTS / "node_modules").exists(), f"npm ci in {CLIENTS}, or make test"
        self.library = library
        self.reports = Reports()
        self._process = subprocess.Popen(
            library.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.reports.queue.put(json.loads(line, object_hook=_from_wire))

    def _say(self, *command: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command, default=_to_wire) + "\n")
        self._process.stdin.flush()

    def connect(
        self, url: str, transports: list[str] | None, auth: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """``tokens``, of Node's: shown one after the other, at each connection."""
        options |= {"reconnectionDelay": 50, "reconnectionDelayMax": 200}
        if transports is not None:
            options["transports"] = transports
        if auth is not None:
            options["auth"] = auth
        self._say("connect", url, options)

    def wait_started(self) -> None:
        """Return once its process takes commands: before what it is given lasts for some seconds only."""
        self._say("started")
        self.reports.expect("started", timeout=30.0)

    def emit(self, name: str, *payload: Any) -> None:
        """Emit an event."""
        self._say("emit", name, *payload)

    def request(self, name: str, *payload: Any) -> None:
        """Emit an event and ask for an acknowledgement, which is reported as ``ack``."""
        self._say("request", name, *payload)

    def transport(self) -> str:
        """What it is connected by now."""
        self._say("transport")
        (name,) = self.reports.expect("transport")
        return str(name)

    def disconnect(self) -> None:
        """Leave."""
        self._say("disconnect")

    def drop(self) -> None:
        """Lose the connection, with Node's client alone."""
        self._say("drop")

    def recovered(self) -> list[Any]:
        """Whether it is what it was, and the id of its socket, with Node's client alone."""
        self._say("recovered")
        return self.reports.expect("recovered")

    def reconnect(self) -> None:
        """Come back, with Node's client alone."""
        self._say("reconnect")

    def close(self) -> None:
        """End its process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._reader.join(10)
        self._process.stdout.close()


def _to_wire(value: bytes) -> dict[str, str]:
    return {"$": b64encode(value).decode()}


def _from_wire(value: dict[str, Any]) -> Any:
    return b64decode(value["$"]) if "$" in value else value


@pytest.fixture(scope="module")
def auth_service() -> Iterator[AuthService]:
    from tests.integration.conftest import AuthService

    with closing(AuthService()) as service:
        yield service


@pytest.fixture(params=[NODE, PYTHON], ids=["node", "python"])
def client(request: pytest.FixtureRequest, stage: ExitStack) -> SocketIOClient:
    made = SocketIOClient(request.param)
    stage.callback(made.close)
    return made


@pytest.fixture(params=list(TRANSPORTS))
def transports(request: pytest.FixtureRequest) -> list[str] | None:
    return TRANSPORTS[request.param]


def test_a_conversation(
    shared: Shared,
    service: StartService,
    connect: Connect,
    client: SocketIOClient,
    transports: list[str] | None,
) -> None:
    """With a service on the existing contract, and a native client in the same room."""
    redis = shared.redis_server.client()
    redis.delete("test:received:events:echo")  # of the other clients
    echo = service(shared.redis_server, "events:echo")
    process = shared.gateway(services=ECHO)
    client.connect(process.http_url, transports)
    reports = client.reports
    (socket_id,) = reports.expect("connect")

    client.emit("echo:test:echo", {})
    (error,) = reports.expect("event", "error")
    assert (error["code"], error["eventType"]) == ("NOT_AUTHENTICATED", "echo:test:echo")

    client.emit("authenticate", {"token": "ann", "roomId": "kitchen"})
    answer = {"success": True, "userId": "user_ann", "roomId": "kitchen"}
    assert reports.expect("event", "authenticated") == [answer]
    native = connect(process, "bob", "kitchen")

    client.emit("echo:test:echo", {"text": "Grüße, мир 😀"})
    assert reports.expect("event", "echo:test:echo") == [{"text": "Grüße, мир 😀"}]
    (event,) = echo.wait_received()
    assert (event["socketId"], event["userId"], event["roomId"]) == (socket_id, "user_ann", "kitchen")
    assert event["payload"] == {"text": "Grüße, мир 😀"}

    large = {"text": "😀x" * 20_000}  # 100 kB
    client.emit("echo:test:echo", large)
    assert reports.expect("event", "echo:test:echo") == [large]

    binary = {"name": "file", "data": bytes(range(256)), "more": [b"", b"\xff"]}
    client.emit("echo:test:echo", binary)
    assert reports.expect("event", "echo:test:echo") == [binary]
    shape = {
        "name": "file",
        "data": {"_binary": b64encode(bytes(range(256))).decode()},
        "more": [{"_binary": ""}, {"_binary": "/w=="}],
    }
    assert echo.received()[-1]["payload"] == shape

    client.request("echo:test:silent", {})
    assert reports.expect("ack") == [{"receivers": 1}]
    client.request("echo:test:reply", {"n": 1})
    # Not registered with reply = true, so the gateway acknowledges; and what the service answers comes as well.
    assert reports.expect("ack") == [{"receivers": 1}]

    client.emit("echo:test:shoutOthers", {"text": "😀"})
    said = native.expect("echo:test:shoutOthers")
    assert said["payload"] == {"roomId": "kitchen", "text": "😀"}
    native.send("echo:test:shout", payload={"from": "native"})
    assert reports.expect("event", "echo:test:shout") == [{"roomId": "kitchen", "from": "native"}]
    native.expect("echo:test:shout")

    client.emit("join", {"roomId": "cellar"})
    assert reports.expect("event", "joined") == [{"roomId": "cellar"}]
    client.request("leave", {"roomId": "cellar"})
    assert reports.expect("event", "left") == [{"roomId": "cellar"}]
    assert reports.expect("ack") == [{"roomId": "cellar"}]

    refusal = {
        "code": "INVALID_EVENT",
        "message": "Event type is not valid or service is not registered",
        "eventType": "nobody:a:b",
    }
    client.emit("nobody:a:b", {})
    assert reports.expect("event", "error") == [refusal]
    client.request("nobody:a:b", {})
    assert reports.expect("ack") == [{"error": refusal}]

    assert client.transport() == ("websocket" if transports is None else transports[0])
    client.disconnect()
    assert reports.expect("disconnect") == [client.library.left]
    wait_until(
        lambda: redis.hkeys("room:kitchen") == ["user_bob"], lambda: f"bob alone, but {redis.hkeys('room:kitchen')}"
    )
    native.expect_nothing()


def test_a_service_answers_a_request(
    shared: Shared,
    service: StartService,
    client: SocketIOClient,
    transports: list[str] | None,
) -> None:
    service(shared.redis_server, "events:echo")
    process = shared.gateway(services=ANSWERS, config=WATCHED)
    client.connect(process.http_url, transports, {"token": "ann", "roomId": "kitchen"})
    client.reports.expect("connect")
    client.reports.expect("event", "authenticated")
    for n in range(3):
        client.request("echo:test:reply", {"n": n, "data": bytes([n])})
        assert client.reports.expect("ack") == [{"n": n, "data": bytes([n])}]


def test_who_is_in_a_room(shared: Shared, connect: Connect, client: SocketIOClient) -> None:
    room, reports = f"watched-{client.library.left}", client.reports
    process = shared.gateway(services=ANSWERS, config=WATCHED)
    client.connect(process.http_url, ["websocket"], {"token": "ann", "roomId": room, "data": {"name": "Ann"}})
    reports.expect("connect")
    reports.expect("event", "authenticated")
    ann = {"userId": "user_ann", "data": {"name": "Ann"}}
    client.request("presence", {"roomId": room})
    (answer,) = reports.expect("ack")
    version = answer.pop("version")
    assert answer == {"roomId": room, "count": 1, "users": [ann]}
    bob = connect(process, "bob", room)
    (change,) = reports.expect("event", "presence")
    assert change.pop("version") != version
    assert change == {"roomId": room, "count": 2, "joined": [{"userId": "user_bob"}]}
    bob.close()
    (change,) = reports.expect("event", "presence")
    assert change == {"roomId": room, "count": 1, "left": ["user_bob"], "version": version}
    client.request("presence", {"roomId": "elsewhere"})
    (refusal,) = reports.expect("ack")
    assert refusal["error"]["code"] == "ACCESS_DENIED"


def test_a_service_refuses_a_request(
    shared: Shared,
    service: StartService,
    client: SocketIOClient,
) -> None:
    refusal = {"code": "FULL", "message": "no room", "retryAfter": 2}

    def refuse(event: dict[str, Any]) -> dict[str, Any]:
        about = {"recipients": [event["socketId"]], "inReplyTo": event["id"]}
        return {"type": "error", "payload": refusal, **about}

    service(shared.redis_server, "events:echo", refuse)
    process = shared.gateway(services=ANSWERS, config=WATCHED)
    client.connect(process.http_url, ["websocket"], {"token": "ann", "roomId": "kitchen"})
    client.reports.expect("connect")
    client.reports.expect("event", "authenticated")
    client.request("echo:test:reply", 1)
    assert client.reports.expect("ack") == [{"error": refusal}]


def test_who_is_not_let_in_is_told_and_put_out(
    shared: Shared,
    auth_service: AuthService,
    client: SocketIOClient,
    transports: list[str] | None,
) -> None:
    auth_service.deny("wrong", "No such token")
    process = shared.gateway(auth=auth_service.url)
    client.connect(process.http_url, transports)
    client.reports.expect("connect")
    client.emit("authenticate", {"token": "wrong", "roomId": "kitchen"})
    assert client.reports.expect("event", "error") == [{"code": "AUTH_FAILED", "message": "No such token"}]
    (reason,) = client.reports.expect("disconnect")
    assert reason in client.library.put_out


def test_a_newer_login_puts_out_the_older(
    shared: Shared,
    connect: Connect,
    client: SocketIOClient,
    transports: list[str] | None,
) -> None:
    process = shared.gateway(services=ECHO)
    client.connect(process.http_url, transports, {"token": "ann", "roomId": "kitchen"})
    client.reports.expect("connect")
    client.reports.expect("event", "authenticated")
    connect(process, "ann", "kitchen")
    (error,) = client.reports.expect("event", "error")
    assert error["code"] == "DUPLICATE_CONNECTION"
    (reason,) = client.reports.expect("disconnect")
    assert reason in client.library.put_out


def test_a_token_is_refreshed(
    shared: Shared, service: StartService, auth_service: AuthService, stage: ExitStack
) -> None:
    service(shared.redis_server, "events:echo")
    process = shared.gateway(auth=auth_service.url, services=ECHO)
    clients: list[tuple[str, SocketIOClient, list[str] | None]] = []
    for library, (name, transports) in product((NODE, PYTHON), TRANSPORTS.items()):
        client = SocketIOClient(library)
        stage.callback(client.close)
        clients.append((f"{library.command[0]} {name}", client, transports))
    for _, client, _ in clients:
        client.wait_started()
    expiry = int(time.time()) + 8
    for user, client, transports in clients:
        auth_service.allow(f"first of {user}", user, expiresAt=expiry)
        auth_service.allow(f"second of {user}", user, expiresAt=expiry + 900)
        client.connect(process.http_url, transports, {"token": f"first of {user}", "roomId": "kitchen"})
    for user, client, _ in clients:
        client.reports.expect("connect")
        (told,) = client.reports.expect("event", "authenticated")
        assert 0 < told["expiresIn"] <= 8
        client.request("authenticate", {"token": f"second of {user}"})
        (told,) = client.reports.expect("event", "authenticated")
        assert (told["userId"], told["roomId"]) == (user, "kitchen")
        assert 890 < told["expiresIn"] <= 910
        assert client.reports.expect("ack") == [told]
    number = 0
    while time.time() < expiry + 1:  # nothing comes of the end of the first one
        for _, client, _ in clients:
            client.emit("echo:test:echo", number)
            assert client.reports.expect("event", "echo:test:echo") == [number]
        number += 1
        time.sleep(0.2)


def test_a_token_that_has_expired_is_asked_for_anew(
    shared: Shared, service: StartService, auth_service: AuthService, stage: ExitStack
) -> None:
    """By the client as it is published: it has lost its transport."""
    service(shared.redis_server, "events:echo")
    process = shared.gateway(auth=auth_service.url, services=ECHO)
    clients = {name: SocketIOClient(NODE) for name in TRANSPORTS}
    for client in clients.values():
        stage.callback(client.close)
    for client in clients.values():
        client.wait_started()
    for name, client in clients.items():
        auth_service.allow(f"old {name}", name, expiresAt=int(time.time()) + 6)
        auth_service.allow(f"new {name}", name)
        client.connect(process.http_url, TRANSPORTS[name], tokens=[f"old {name}", f"new {name}"])
    for name, client in clients.items():
        client.reports.expect("asked")
        client.reports.expect("connect")
        client.reports.expect("event", "authenticated")
        (error,) = client.reports.expect("event", "error")
        assert (error["code"], error["roomId"]) == ("TOKEN_EXPIRED", "kitchen"), name
        client.emit("echo:test:echo", 1)
        (error,) = client.reports.expect("event", "error")
        assert (error["code"], error["eventType"]) == ("TOKEN_EXPIRED", "echo:test:echo")
    for client in clients.values():
        (error,) = client.reports.expect("event", "error", timeout=20.0)
        assert error["code"] == "TOKEN_EXPIRED"
        (reason,) = client.reports.expect("disconnect")
        assert reason in client.library.lost
        client.reports.expect("asked")
        client.reports.expect("connect")
        (told,) = client.reports.expect("event", "authenticated")
        assert told["roomId"] == "kitchen"
        client.emit("echo:test:echo", 2)
        assert client.reports.expect("event", "echo:test:echo") == [2]


def test_clients_come_back_after_a_restart(
    redis_server: RedisServer, gateway: StartGateway, service: StartService, stage: ExitStack
) -> None:
    """Those of both libraries, over each transport."""
    service(redis_server, "events:echo")
    first = gateway(redis_server, services=ECHO)
    clients: list[tuple[SocketIOClient, list[str] | None, str]] = []
    for library, name in product((NODE, PYTHON), TRANSPORTS):
        client = SocketIOClient(library)
        stage.callback(client.close)
        user = f"{name} of {Path(library.command[0]).name}"
        client.connect(first.http_url, TRANSPORTS[name], {"token": user, "roomId": "kitchen"})
        (socket_id,) = client.reports.expect("connect")
        client.reports.expect("event", "authenticated")
        clients.append((client, TRANSPORTS[name], socket_id))
    first.terminate()
    for client, transports, _ in clients:
        report = client.reports.next()
        assert report[:2] == ["event", "drain"] or transports != ["websocket"]
        if report[:2] == ["event", "drain"]:  # by long polling it may not come any more
            report = client.reports.next()
        assert report[0] == "disconnect"
        assert report[1] in client.library.lost
    gateway(redis_server, services=ECHO, args=["--listen", f"tcp:{first.port}:interface=127.0.0.1"])
    for client, _, socket_id in clients:
        (another,) = client.reports.until("connect")
        assert another != socket_id
        client.reports.expect("event", "authenticated")
        client.emit("echo:test:echo", 1)
        assert client.reports.expect("event", "echo:test:echo") == [1]


def test_a_namespace_that_does_not_exist(shared: Shared, transports: list[str] | None, stage: ExitStack) -> None:
    process = shared.gateway(services=ECHO)
    client = SocketIOClient(NODE)
    stage.callback(client.close)
    client.connect(f"{process.http_url}admin", transports)
    assert client.reports.expect("connect_error") == ["Invalid namespace"]


def test_a_page_that_leaves_sees_no_error(redis_server: RedisServer, gateway: StartGateway, browser: Browser) -> None:
    """Over long-polling its library says goodbye to the namespace, and then to the connection, in a POST of its own."""
    process = gateway(redis_server, args=["--demo"])
    with closing(browser.new_context(bypass_csp=True)) as context:
        page = context.new_page()
        said: list[ConsoleMessage] = []

        def hear(message: ConsoleMessage) -> None:
            said.append(message)

        page.on("console", hear)
        page.goto(process.http_url)
        page.add_script_tag(path=CLIENTS / "node_modules/socket.io-client/dist/socket.io.min.js")
        with page.expect_response(lambda answer: answer.request.post_data == "1") as goodbye:
            page.evaluate(LEAVE)
        assert goodbye.value.status == 200
        assert [message.text for message in said if "socket.io" in message.location["url"]] == []


# Enters a room and leaves.
LEAVE = """
    () => new Promise((resolve) => {
        const socket = io({ transports: ["polling"], auth: { token: "page", roomId: "kitchen" } });
        socket.on("authenticated", () => resolve(socket.disconnect().connected));
    })
"""


def test_a_page_beside_a_native_one(redis_server: RedisServer, gateway: StartGateway, browser: Browser) -> None:
    """On the demo's board in a real browser: their library, put into a page of the gateway, and the board itself."""
    process = gateway(redis_server, args=["--demo"])
    process.wait_log("Service stickyNotes receives events", 20.0)
    # The board's own policy would keep a script from elsewhere out, as it should.
    with closing(browser.new_context()) as own, closing(browser.new_context(bypass_csp=True)) as lenient:
        board = own.new_page()
        board.goto(f"{process.http_url}?room=kitchen")
        expect(board.locator("body")).to_have_attribute("data-state", "ready", timeout=40_000)
        page = lenient.new_page()
        page.goto(process.http_url)
        page.add_script_tag(path=CLIENTS / "node_modules/socket.io-client/dist/socket.io.min.js")
        for transports in TRANSPORTS.values():
            text = f"by {transports} 😀"
            seen = page.evaluate(PAGE, [transports, text])
            assert seen == {"text": text, "transport": transports[0] if transports else "websocket"}
            expect(board.locator(".note .text", has_text=text)).to_have_count(1, timeout=10_000)


# Connects, makes a note in the room of the board, and comes back with what the room was told of it.
PAGE = """
    ([transports, text]) => new Promise((resolve, reject) => {
        const socket = io(transports ? { transports } : {});
        setTimeout(() => reject(new Error("no answer within 30 s")), 30_000);
        socket.on("connect_error", reject);
        socket.on("error", (error) => reject(new Error(JSON.stringify(error))));
        socket.on("connect", () => {
            const { engine } = socket.io;
            if (transports || engine.transport.name === "websocket") enter(); else engine.once("upgrade", enter);
        });
        const enter = () => socket.emit("authenticate", { token: "page", roomId: "kitchen" });
        const note = { x: 10, y: 10, text, colour: "yellow" };
        socket.on("authenticated", () => socket.emit("stickyNotes:note:create", note));
        socket.on("stickyNotes:note:created", ({ note }) => {
            const transport = socket.io.engine.transport.name;
            socket.disconnect();
            resolve({ text: note.text, transport });
        });
    })
"""

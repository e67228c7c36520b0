"""kraftek.js against the real gateway: imported from it by a page of another origin, and as a file by Node."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

import pytest

import kraftek
from kraftek.contract.history import TELL_USERS
from tests.docs.pages import code
from tests.docs.test_examples import SERVICES as CHAT
from tests.docs.test_examples import start_chat
from tests.support.node_project import make_project
from tests.support.waiting import Lines, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from playwright.sync_api import Browser

    from tests.integration.conftest import (
        AuthService,
        Connect,
        Gateway,
        RedisServer,
        Shared,
        StartGateway,
        StartService,
    )

CLIENT = Path(kraftek.__file__).parent / "client/js/kraftek.js"
SERVICES = {
    "chat": {"channel": "events:chat", "reply": True},
    "stickyNotes": "events:stickyNotes",
}
# Connects, with short waits for the test's sake; keeps what the client becomes, in that order, and what it is told.
CONNECT = """(() => {
    globalThis.client = kraftek.connect("%s", { base: 50, cap: 500, %s });
    globalThis.states = [];
    globalThis.heard = [];
    client.on("state", ({ state, code, error }) => states.push([state, code ?? null, error?.code ?? null]));
    client.on("error", (error) => heard.push(["error", error.code, error.roomId ?? null]));
    client.on("chat:message:sent", (payload, { roomId }) => heard.push([payload.text, roomId ?? null]));
})()"""
# Evaluates what it reads, a line at a time, and prints what comes of it.
REPL = """
    import { createInterface } from "node:readline";
    globalThis.kraftek = await import(process.argv[1]);
    for await (const line of createInterface({ input: process.stdin })) {
      const [script] = JSON.parse(line);
      console.log(JSON.stringify((await (0, eval)(`(async () => (${script}))()`)) ?? null));
    }
    process.exit();
"""


class Place(Protocol):
    """Where the client runs."""

    def evaluate(self, script: str) -> Any:
        """The value of an expression, of what it promises if it does."""


def node_options() -> list[str]:
    """Node 22 has a WebSocket; what it became can be tried with Node 20."""
    asked = subprocess.run(["node", "--print", "typeof WebSocket"], capture_output=True, check=True, timeout=30)
    return [] if asked.stdout.strip() == b"function" else ["--experimental-websocket", "--no-warnings"]


class Node:
    """A process of Node that knows the client as ``kraftek``."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            ["node", *node_options(), "--input-type=module", "--eval", REPL, str(CLIENT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self._lines = Lines(self.process.stdout)

    def evaluate(self, script: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([script]) + "\n")
        self.process.stdin.flush()
        return json.loads(self._lines.next(f"the value of {script}", 30.0))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self._lines.rest()
            self.process.wait(10)


class Files(SimpleHTTPRequestHandler):
    """A directory, served without a word."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a site that is not the gateway's, with one empty page."""
    directory = tmp_path_factory.mktemp("pages")
    (directory / "index.html").write_text("<!doctype html><title>elsewhere</title>")
    return directory


@pytest.fixture(scope="module")
def origin(pages: Path) -> Iterator[str]:
    """Of that site."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=pages)) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def open_page(browser: Browser, stage: ExitStack, origin: str) -> Any:
    """A page of Chromium that has imported the client from this gateway as ``kraftek``."""

    def opened(gateway: Gateway) -> Any:
        context = browser.new_context()
        stage.callback(context.close)
        page = context.new_page()
        page.goto(f"{origin}/index.html")
        page.evaluate(f"import('{gateway.http_url}kraftek.js').then((module) => {{ globalThis.kraftek = module; }})")
        return page

    return opened


@pytest.fixture(params=[pytest.param("browser", marks=pytest.mark.browser), "node"])
def place(request: pytest.FixtureRequest, stage: ExitStack) -> Any:
    """Gives the place where the client of this gateway runs."""

    def given(gateway: Gateway) -> Place:
        if request.param == "browser":
            page: Place = request.getfixturevalue("open_page")(gateway)
            return page
        node = Node()
        stage.callback(node.close)
        return node

    return given


IN_NODE = pytest.mark.parametrize("place", ["node"], indirect=True)
"""For what the client does in a page as it does in Node."""


def start(place: Place, gateway: Gateway, options: str = "token: () => 'ada', roomId: 'r1'") -> None:
    """Connect, and be ready."""
    place.evaluate(CONNECT % (gateway.url, options))
    wait_state(place, "ready")


def wait_state(place: Place, state: str) -> None:
    # The waits between attempts are random, and grow.
    wait_until(lambda: place.evaluate("client.state") == state, lambda: str(place.evaluate("states")), 30.0)


def wait_seen(place: Place, expected: Any) -> None:
    wait_until(lambda: place.evaluate("globalThis.seen") == expected, lambda: str(place.evaluate("globalThis.seen")))


def settled(place: Place, name: str, promise: str) -> None:
    """Keep what becomes of a promise under a global name."""
    place.evaluate(
        f"(({promise}).then((value) => (globalThis.{name} = {{ value }}),"
        f" (error) => (globalThis.{name} = {{ code: error.code }})), null)"
    )


def answer(event: dict[str, Any]) -> dict[str, Any]:
    """A service's answer: what it was sent."""
    sent = {"recipients": [event["socketId"]], "payload": event["payload"], "inReplyTo": event.get("id")}
    return {"type": event["eventType"], **sent}


def test_connects_asks_and_hears(place: Any, origin: str, shared: Shared, service: StartService) -> None:
    process = shared.gateway(services=SERVICES, config={"origins": [origin]})
    service(shared.redis_server, "events:chat", answer)
    here: Place = place(process)
    start(here, process)
    assert here.evaluate("[client.userId, client.rooms]") == ["user_ada", ["r1"]]

    assert here.evaluate("client.request('chat:a:b', { text: 'größe 🎉' })") == {"text": "größe 🎉"}
    refused = "client.request('nobody:a:b').catch((error) => [error.name, error.code, error.eventType])"
    assert here.evaluate(refused) == ["KraftekError", "INVALID_EVENT", "nobody:a:b"]
    away = "client.request('stickyNotes:a:b').catch((error) => error.code)"
    assert here.evaluate(away) == "SERVICE_UNAVAILABLE"

    assert here.evaluate("client.join('r2').then(() => client.rooms)") == ["r1", "r2"]
    with shared.redis_server.client() as bus:
        bus.publish(
            "events:broadcast",
            json.dumps({"type": "chat:message:sent", "roomId": "r2", "payload": {"text": "Hi"}}),
        )
    wait_until(lambda: here.evaluate("heard") == [["Hi", "r2"]], lambda: str(here.evaluate("heard")))
    here.evaluate("client.leave('r2')")
    denied = "client.request('chat:a:b', 1, { roomId: 'r2' }).catch((error) => error.code)"
    assert here.evaluate(denied) == "ACCESS_DENIED"
    here.evaluate("client.close()")
    assert here.evaluate("states") == [["ready", None, None], ["closed", None, None]]


def test_the_example_shows_who_is_in_a_room(place: Any, origin: str, shared: Shared, connect: Connect) -> None:
    process = shared.gateway(config={"origins": [origin], "rooms": {"r*": {"presence": True}}})
    here: Place = place(process)
    start(here, process, "token: () => 'ada', roomId: 'r1', data: { name: 'Ada' }")
    example = f"((gateway, show) => {{ {code('kraftek-js-presence')} }})"
    here.evaluate(f"{example}(client, (...what) => (globalThis.seen = what))")
    wait_seen(here, [["Ada"], 1])
    bob = connect(process, "bob", "r1")
    wait_seen(here, [["Ada", "user_bob"], 2])
    bob.close()
    here.evaluate("client.join('r1', { data: { name: 'Countess' } })")
    wait_seen(here, [["Countess"], 1])
    here.evaluate("client.close()")


def test_the_gateway_is_restarted(
    place: Any, origin: str, redis_server: RedisServer, gateway: StartGateway, service: StartService
) -> None:
    """It comes back, into all its rooms, and what was not answered is: done once, though it was sent twice. It hears
    what its user was told meanwhile.
    """
    config = {"origins": [origin], "users": {"history": 9}}
    first = gateway(redis_server, services=SERVICES, config=config)
    slow: list[dict[str, Any]] = []
    service(redis_server, "events:chat", slow.append)
    here: Place = place(first)
    start(here, first)
    here.evaluate("client.join('r2')")
    settled(here, "answered", "client.request('chat:a:b', { n: 1 }, { roomId: 'r2' })")
    (event,) = wait_until(lambda: slow, "the request")

    first.kill()
    wait_state(here, "waiting")
    here.evaluate("client.emit('stickyNotes:while:away', { n: 2 })")
    notes = redis_server.client().pubsub()
    notes.subscribe("events:stickyNotes")
    assert notes.get_message(timeout=5)
    with redis_server.client() as bus:
        mail = json.dumps({"type": "chat:message:sent", "payload": {"text": "mail"}})
        bus.eval(TELL_USERS.source, 0, '["user_ada"]', mail, "", "", "events:broadcast")
    listen = ("--listen", f"tcp:{first.port}:interface=127.0.0.1")
    second = gateway(redis_server, services=SERVICES, config=config, args=listen)

    wait_state(here, "ready")
    assert here.evaluate("client.rooms") == ["r1", "r2"]
    wait_until(lambda: here.evaluate("heard") == [["mail", None]], lambda: str(here.evaluate("heard")))
    told = wait_until(lambda: notes.get_message(timeout=1), "the event of meanwhile")
    notes.close()
    assert json.loads(told["data"])["payload"] == {"n": 2}
    # The gateway that asked is gone: the answer goes to whichever has the user's repeated request.
    with redis_server.client() as bus:
        answers = {"inReplyTo": event["id"], "recipients": [event["socketId"]], "userIds": [event["userId"]]}
        late = {"type": "chat:a:b", "payload": {"done": "once"}, **answers}
        bus.publish("events:broadcast", json.dumps(late))
        wait_until(lambda: here.evaluate("globalThis.answered ?? null"), "the answer")
        assert here.evaluate("answered") == {"value": {"done": "once"}}
        assert len(slow) == 1

        bus.publish(
            "events:broadcast",
            json.dumps({"type": "chat:message:sent", "roomId": "r2", "payload": {"text": "again"}}),
        )
    both = [["mail", None], ["again", "r2"]]
    wait_until(lambda: here.evaluate("heard") == both, lambda: str(here.evaluate("heard")))
    second.close()


@IN_NODE
def test_the_default_room_is_another_one_when_a_request_is_sent_again(
    place: Any, origin: str, redis_server: RedisServer, gateway: StartGateway, service: StartService
) -> None:
    """It keeps the room that it was first sent from, also when the client has left that: it runs once."""
    first = gateway(redis_server, services=SERVICES, config={"origins": [origin]})
    slow: list[dict[str, Any]] = []
    service(redis_server, "events:chat", slow.append)
    here: Place = place(first)
    start(here, first)
    here.evaluate("client.join('r2')")
    settled(here, "answered", "client.request('chat:a:b', { n: 1 })")
    (event,) = wait_until(lambda: slow, "the request")
    assert event["roomId"] == "r1"
    here.evaluate("client.leave('r1')")
    first.kill()
    listen = ("--listen", f"tcp:{first.port}:interface=127.0.0.1")
    second = gateway(redis_server, services=SERVICES, config={"origins": [origin]}, args=listen)
    wait_until(lambda: here.evaluate("states.length") > 1, "the loss of the connection")
    wait_state(here, "ready")
    assert here.evaluate("client.rooms") == ["r2"]
    with redis_server.client() as bus:
        answers = {"inReplyTo": event["id"], "recipients": [event["socketId"]], "userIds": [event["userId"]]}
        bus.publish("events:broadcast", json.dumps({"type": "chat:a:b", "payload": "once", **answers}))
    wait_until(lambda: here.evaluate("globalThis.answered ?? null"), "the answer")
    assert here.evaluate("answered") == {"value": "once"}
    assert len(slow) == 1
    second.close()


@IN_NODE
def test_tokens_and_the_auth_service(
    place: Any,
    origin: str,
    redis_server: RedisServer,
    gateway: StartGateway,
    auth_service: AuthService,
) -> None:
    """An auth service that is away is waited for; a token that it does not take is followed by another, once."""
    auth_service.allow("fresh", "Ada")
    auth_service.mode = "down"
    process = gateway(redis_server, auth=auth_service.url, services=SERVICES, config={"origins": [origin]})
    here: Place = place(process)
    options = "token: ({ refused }) => ((globalThis.asked ??= []).push(refused), refused ? 'fresh' : 'stale')"
    here.evaluate(CONNECT % (process.url, options))
    wait_until(lambda: len(here.evaluate("globalThis.asked ?? []")) >= 2, "another try on the same socket")
    assert here.evaluate("states") == []
    auth_service.mode = "ok"
    wait_state(here, "ready")
    assert here.evaluate("asked.at(-1)") is True
    assert here.evaluate("states") == [
        ["waiting", 4401, "AUTH_FAILED"], ["connecting", None, None], ["ready", None, None],
    ]  # fmt: skip

    auth_service.deny("fresh")
    redis_server.client().publish("auth:invalidate", json.dumps({"userId": "Ada"}))
    wait_state(here, "closed")
    assert here.evaluate("states.at(-1)") == ["closed", 4403, "ACCESS_REVOKED"]


def test_a_page_outlives_its_tokens(
    open_page: Any,
    origin: str,
    redis_server: RedisServer,
    gateway: StartGateway,
    service: StartService,
    auth_service: AuthService,
) -> None:
    """Three of them, and the auth service is away for the life of one, so that it expires."""
    process = gateway(redis_server, auth=auth_service.url, services=SERVICES, config={"origins": [origin]})
    chat = service(redis_server, "events:chat", answer)
    page = open_page(process)
    sockets: list[Any] = []
    received: list[str] = []
    minted: list[str] = []

    def opened(socket: Any) -> None:
        sockets.append(socket)
        socket.on("framereceived", lambda text: received.append(str(text)))

    def mint() -> str:
        minted.append(f"token {len(minted)}")
        life = 4 if len(minted) == 2 else 8  # the second is to expire
        auth_service.allow(minted[-1], "Ada", expiresAt=int(time.time()) + life)
        return minted[-1]

    def wait_shown(times: int) -> None:
        shown = '"type":"authenticated"'
        wait_until(lambda: page.evaluate("1") and sum(shown in text for text in received) >= times, "another token", 20)

    page.on("websocket", opened)
    page.expose_function("mint", mint)
    # Without chance each is replaced at the earliest, and the longest before its end.
    start(page, process, "token: () => mint(), roomId: 'r1', random: () => 0")
    page.evaluate(TRAFFIC)
    wait_shown(2)
    page.evaluate("events = false")
    auth_service.mode = "down"
    wait_until(lambda: page.evaluate("heard.length"), "the end of the token", 20)
    auth_service.mode = "ok"
    wait_shown(3)
    page.evaluate("events = true")
    wait_shown(4)
    page.evaluate("clearInterval(traffic)")

    wait_until(lambda: page.evaluate("answered.length + failed.length === asked"), "all answers")
    assert page.evaluate("failed") == []
    sent = page.evaluate("sent")
    wait_until(lambda: len(chat.received()) >= len(sent), lambda: f"{len(sent)} events of {len(chat.received())}")
    assert [event["payload"] for event in chat.received()] == sent
    assert page.evaluate("heard") == [["error", "TOKEN_EXPIRED", "r1"]]
    assert page.evaluate("states") == [["ready", None, None]]
    assert len(sockets) == 1


# Asks twenty times a second, and emits as often while `events`; each is numbered.
TRAFFIC = """(() => {
    Object.assign(globalThis, { sent: [], asked: 0, answered: [], failed: [], events: true });
    globalThis.traffic = setInterval(() => {
        if (events) client.emit("chat:note:add", sent.push(sent.length) - 1);
        asked += 1;
        const number = sent.push(sent.length) - 1;
        client.request("chat:note:ask", number).then(
            (answer) => answered.push(answer),
            (error) => failed.push([number, error.code]),
        );
    }, 50);
})()"""


@IN_NODE
def test_a_gateway_that_says_nothing_is_left(
    place: Any, origin: str, redis_server: RedisServer, gateway: StartGateway
) -> None:
    """Its process is stopped, its sockets stay open: as where a network swallows everything."""
    process = gateway(redis_server, services=SERVICES, config={"origins": [origin]})
    here: Place = place(process)
    start(here, process, "token: () => 'ada', roomId: 'r1', heartbeat: 200, patience: 1000")
    os.kill(process.pid, signal.SIGSTOP)
    wait_state(here, "waiting")
    os.kill(process.pid, signal.SIGCONT)
    wait_state(here, "ready")


def test_a_page_whose_network_is_back_looks_at_once(open_page: Any, origin: str, shared: Shared) -> None:
    process = shared.gateway(services=SERVICES, config={"origins": [origin]})
    page = open_page(process)
    sent: list[str] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda text: sent.append(str(text))))
    start(page, process)
    page.context.set_offline(True)
    page.context.set_offline(False)
    wait_until(lambda: page.evaluate("1") and any('"ping"' in text for text in sent), lambda: str(sent))
    assert page.evaluate("client.state") == "ready"


def test_a_listeners_mistake_is_reported_and_is_nobody_elses(open_page: Any, origin: str, shared: Shared) -> None:
    process = shared.gateway(services=SERVICES, config={"origins": [origin]})
    page = open_page(process)
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(error.message))
    start(page, process)
    page.evaluate(
        """() => {
            client.on("chat:a:b", () => { throw new Error("mine"); });
            client.on("chat:a:b", () => heard.push("still"));
        }"""
    )
    with shared.redis_server.client() as bus:
        bus.publish("events:broadcast", json.dumps({"type": "chat:a:b", "roomId": "r1", "payload": None}))
    wait_until(lambda: page.evaluate("heard") == ["still"] and mistakes, "both")
    assert mistakes == ["mine"]


# The examples of docs/javascript-client.rst, as they stand there


def test_the_page_of_the_documentation(
    open_page: Any,
    origin: str,
    stage: ExitStack,
    pages: Path,
    redis_server: RedisServer,
    gateway: StartGateway,
    connect: Connect,
) -> None:
    process = gateway(redis_server, services=CHAT, config={"origins": [origin]})
    start_chat(redis_server, stage, "service-python")
    bob = connect(process, token="bob", room="r1")
    example = code("kraftek-js-page").replace("localhost:3001", f"127.0.0.1:{process.port}")
    (pages / "example.html").write_text(example, "utf-8")
    page = open_page(process)
    page.goto(f"{origin}/example.html")
    page.wait_for_function("document.querySelector('pre').textContent === 'Here: user_ada, user_bob\\n'")
    assert page.title() == "ready"

    page.locator("input").fill("Hello")
    page.keyboard.press("Enter")
    assert bob.expect("chat:message:sent")["payload"]["text"] == "Hello"
    bob.send("chat:message:send", payload={"text": "größe 🎉"})
    page.wait_for_function("document.querySelector('pre').textContent.endsWith('user_bob: größe 🎉\\n')")


def test_the_program_of_the_documentation(
    stage: ExitStack, tmp_path: Path, redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    process = gateway(redis_server, services=CHAT)
    start_chat(redis_server, stage, "service-python")
    bob = connect(process, token="bob", room="r1")
    shutil.copytree(CLIENT.parent, tmp_path / "node_modules/kraftek")
    example = subprocess.Popen(
        ["node", *node_options(), "--input-type=module", "--eval", code("kraftek-js-node")],
        cwd=tmp_path,
        env={**os.environ, "GATEWAY_URL": process.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    stage.callback(example.wait, 10)
    stage.callback(example.kill)
    assert example.stdout is not None
    lines = Lines(example.stdout)
    assert lines.next(timeout=30.0) == "{ users: [ 'user_ada', 'user_bob' ] }"
    assert bob.expect("chat:message:sent", 10.0)["payload"]["text"] == "Hello from Node"
    bob.send("chat:message:send", payload={"text": "größe 🎉"})
    assert lines.next() == "größe 🎉"


def test_the_components_of_the_documentation(
    open_page: Any,
    origin: str,
    stage: ExitStack,
    pages: Path,
    tmp_path: Path,
    redis_server: RedisServer,
    gateway: StartGateway,
    connect: Connect,
) -> None:
    """In StrictMode, where everything is mounted twice, on a gateway that closes the older of two logins."""
    process = gateway(redis_server, services=CHAT, config={"origins": [origin]})
    start_chat(redis_server, stage, "service-python")
    bob = connect(process, token="bob", room="r1")
    example = code("kraftek-js-react").replace("localhost:3001", f"127.0.0.1:{process.port}")
    bundle(make_project(tmp_path), example, pages / "react.js")
    (pages / "react.html").write_text('<!doctype html><main></main><script type="module" src="react.js"></script>')
    page = open_page(process)
    sockets: list[Any] = []
    sent: list[str] = []

    def opened(socket: Any) -> None:
        sockets.append(socket)
        socket.on("framesent", lambda text: sent.append(str(text)))

    page.on("websocket", opened)
    mistakes: list[str] = []
    page.on("pageerror", lambda error: mistakes.append(error.message))
    page.on("console", lambda said: mistakes.append(said.text) if said.type == "error" else None)

    page.goto(f"{origin}/react.html")
    page.wait_for_function("document.querySelector('output').textContent === 'ready'")
    page.locator("input").fill("Hello")
    page.keyboard.press("Enter")
    assert bob.expect("chat:message:sent")["payload"]["text"] == "Hello"
    for text in ("größe", "🎉"):
        bob.send("chat:message:send", payload={"text": text})
    told = "me: Hello\nuser_bob: größe\nuser_bob: 🎉"
    page.wait_for_function("told => document.querySelector('pre').textContent === told", arg=told)
    assert len(sockets) == 1
    assert [json.loads(text)["type"] for text in sent] == ["authenticate", "chat:message:send"]

    assert mistakes == []


def bundle(project: Path, program: str, file: Path) -> None:
    """Make one file for a browser of a program and all that it imports."""
    (project / "page.jsx").write_text(program, "utf-8")
    options = {"entryPoints": ["page.jsx"], "bundle": True, "format": "esm", "jsx": "automatic", "outfile": str(file)}
    build = f'import("esbuild").then(({{ buildSync }}) => buildSync({json.dumps(options)}))'
    subprocess.run(["node", "--eval", build], cwd=project, check=True, timeout=60)

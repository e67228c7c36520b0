"""What stands in the documentation runs as it stands there: against a real Redis, the real gateway, a real browser."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
import redis

from tests.docs.pages import code
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from tests.integration.conftest import AuthService, Client, Connect, RedisServer, StartGateway

SERVICES = {
    "chat": {"channel": "events:chat", "reply": True},
    "stickyNotes": "events:stickyNotes",
    "silent": {"channel": "events:stickyNotes", "reply": True},
}
COMMANDS = {
    "service-python": [sys.executable, "-c"],
    "service-javascript": ["node", "--input-type=module", "--eval"],
}
NODE_MODULES = Path(__file__).resolve().parent
"""The directory where node finds what the JavaScript imports."""


# Services


def listeners(server: RedisServer, channel: str) -> int:
    """How many listen on a channel; none while Redis is away."""
    with suppress(redis.ConnectionError), server.client() as client:
        ((_, number),) = client.pubsub_numsub(channel)
        return int(number)
    return 0


def start_chat(server: RedisServer, stage: ExitStack, name: str) -> None:
    """Run a service of the documentation; return once it listens."""
    process = subprocess.Popen(
        [*COMMANDS[name], code(name)],
        cwd=NODE_MODULES,
        env={**os.environ, "REDIS_URL": server.url},
        stdin=subprocess.DEVNULL,
    )

    def listens() -> bool:
        assert process.poll() is None, f"the example ended by itself, with {process.returncode}"
        return listeners(server, "events:chat") == 1

    stage.callback(process.wait, 10)
    stage.callback(process.kill)
    wait_until(listens, "the example's subscription", 30.0)


def ask(client: Client, name: str, payload: Any, number: int) -> dict[str, Any]:
    """What the client gets for a request."""
    client.send(name, payload=payload, id=number)
    answer = client.receive()
    assert answer["id"] == number, answer
    return answer


@pytest.mark.parametrize("name", COMMANDS)
def test_service(
    name: str, stage: ExitStack, redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    first, second = gateway(redis_server, services=SERVICES), gateway(redis_server, services=SERVICES)
    start_chat(redis_server, stage, name)
    ada, bob = connect(first, token="ada", room="r1"), connect(second, token="bob", room="r1")

    assert ask(bob, "chat:room:who", None, 1)["payload"]["users"][-1] == "user_bob"
    assert ask(ada, "chat:room:who", None, 2)["payload"] == {"users": ["user_ada", "user_bob"]}
    sent = ask(ada, "chat:message:send", {"text": "größe 🎉"}, 3)
    assert (sent["type"], list(sent["payload"])) == ("chat:message:send", ["at"])
    told = {"roomId": "r1", "from": "user_ada", "text": "größe 🎉"}
    assert bob.expect("chat:message:sent")["payload"] == told
    ada.expect_nothing_through(redis_server)

    ada.send("chat:message:send", payload={"text": "no id"})
    assert bob.expect("chat:message:sent")["payload"]["text"] == "no id"
    ada.expect_nothing_through(redis_server)

    for event, payload in (("chat:message:send", 7), ("chat:message:send", {}), ("chat:x:y", {"text": ""})):
        refusal = ask(ada, event, payload, 4)
        assert (refusal["type"], refusal["payload"]["code"]) == ("error", "NO_HANDLER")
        assert refusal["payload"]["eventType"] == event

    redis_server.kill()
    redis_server.start()
    users = {"users": ["user_ada", "user_bob"]}
    ids = count(5)  # under the same one it would be the same request
    wait_until(lambda: ask(ada, "chat:room:who", None, next(ids))["payload"] == users, "the service again", 30.0)


# Access


def test_answers_of_the_auth_service(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    yes, no = json.loads(code("auth-yes")), json.loads(code("auth-no"))
    rooms = [yes.pop("roomId")]
    assert yes.pop("success") is True
    auth_service.allow("good", rooms=rooms, **yes)
    auth_service.deny("bad", no["message"])
    process = gateway(redis_server, auth=auth_service.url, services=SERVICES)

    ada = connect(process, token="good", room=rooms[0])
    for event, refused in (
        ("stickyNotes:note:create", "SERVICE_UNAVAILABLE"),
        ("chat:message:send", "SERVICE_UNAVAILABLE"),
        ("chat:room:who", "ACCESS_DENIED"),
    ):
        assert ask(ada, event, None, 1)["payload"]["code"] == refused
    key = f"access:token:{hashlib.sha256(b'good').hexdigest()}"
    assert 0 < redis_server.client().ttl(key) <= yes["ttl"] + 63  # it outlives its answers by a minute and auth.timeout

    bob = connect(process)
    bob.send("authenticate", payload={"token": "bad", "roomId": "r1"})
    assert bob.expect_error("AUTH_FAILED")["payload"]["message"] == no["message"]


@pytest.mark.parametrize("way", range(3))
def test_take_access_back(
    way: int, redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    digest, *ways = code("take-back").splitlines()
    assert len(ways) == 3
    auth_service.allow("good", "ada")
    ada = connect(gateway(redis_server, auth=auth_service.url), token="good", room="r1")
    bus = redis_server.client()
    wait_until(lambda: bus.exists("access:user:ada"), "the cached answer")
    auth_service.deny("good")
    names = {"hashlib": hashlib, "json": json, "bus": bus, "token": "good", "user_id": "ada", "room_id": "r1"}
    exec(f"{digest}\n{ways[way]}", names)
    ada.expect_error("ACCESS_REVOKED")
    ada.expect_close(4403)


# Clients


def spoken(transcript: str) -> Iterator[tuple[str, str]]:
    """Who says what: ``>``, ``<`` or ``#``, and the rest, with the lines that continue it."""
    for found in re.finditer(r"^([<>#]) (.*(?:\n  +.*)*)", transcript, re.MULTILINE):
        yield found[1], found[2]


def test_session(stage: ExitStack, redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    process = gateway(redis_server, services=SERVICES)
    start_chat(redis_server, stage, "service-python")
    notes = stage.enter_context(redis_server.client().pubsub())
    notes.subscribe("events:stickyNotes")
    assert notes.get_message(timeout=5)

    # The fixture has read the first message by itself.
    (who, first), *rest = spoken(code("session"))
    assert (who, json.loads(first)["payload"].keys()) == ("<", {"socketId"})
    ada = connect(process)
    lines = 1
    for who, says in rest:
        lines += 1
        if who == ">":
            ada.send_raw(says)
        elif closed := re.fullmatch(r"closed with (\d+)", says):
            assert who == "<"
            ada.expect_close(int(closed[1]))
        elif who == "<":
            assert ada.receive() == json.loads(says)
        elif bob := re.fullmatch(r"bob enters the room and sends (\{.*\})", says):
            connect(process, token="bob", room="r1").send_raw(bob[1])
        elif says.startswith("ada logs in again"):
            connect(process, token="ada", room="r1")
    assert lines == len(re.findall("^[<>#]", code("session"), re.MULTILINE))


class Files(SimpleHTTPRequestHandler):
    """A directory, served without a word."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def served(stage: ExitStack, directory: Path) -> str:
    """The origin of pages in a directory."""
    server = stage.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=directory)))
    Thread(target=server.serve_forever, args=(0.01,)).start()
    stage.callback(server.shutdown)
    return f"http://127.0.0.1:{server.server_port}"


def test_client_in_a_browser(
    stage: ExitStack,
    redis_server: RedisServer,
    gateway: StartGateway,
    auth_service: AuthService,
    tmp_path: Path,
    browser_page: Page,
) -> None:
    """The page on the page, and what may happen to it: refusals, silence, a restart, access taken back."""
    origin = served(stage, tmp_path)
    start = partial(gateway, redis_server, auth=auth_service.url, services=SERVICES, config={"origins": [origin]})
    auth_service.allow("ada", "Ada")
    process = start()
    start_chat(redis_server, stage, "service-python")
    notes = stage.enter_context(redis_server.client().pubsub())
    notes.subscribe("events:stickyNotes")
    assert notes.get_message(timeout=5)

    use = code("browser-use").replace("ws://localhost:3001/", process.url)
    use = use.replace("console.log(message);", "(window.heard ??= []).push(message);")
    assert process.url in use
    assert "window.heard" in use
    page = browser_page
    script = f'import {{ connect }} from "./client.js";\n{use}\nwindow.gateway = gateway;'
    (tmp_path / "client.js").write_text(code("browser-client"), "utf-8")
    (tmp_path / "index.html").write_text(f"<!doctype html><body><script type=module>{script}</script>", "utf-8")
    page.goto(f"{origin}/index.html")
    page.wait_for_function("document.body.textContent === 'Ada'")

    assert page.evaluate("gateway.request('chat:x:y').catch(({ code }) => code)") == "NO_HANDLER"
    assert page.evaluate("gateway.request('stickyNotes:a:b')")["payload"] == {"receivers": 1}
    page.evaluate("gateway.send('stickyNotes:a:b', { text: 'Hello' }, { roomId: 'r1' })")
    wait_until(lambda: "Hello" in str(notes.get_message()), "the event")
    silence = "gateway.request('silent:a:b', null, { timeout: 50 }).catch(({ message }) => message)"
    assert page.evaluate(silence) == "silent:a:b: no answer"

    page.evaluate("document.body.textContent = ''")
    process.terminate()
    # The first of them: the page tries again soon, and is closed with 1006 as long as there is no gateway.
    page.wait_for_function("heard.some(({ type }) => type === 'closed')")
    closed = page.evaluate("heard.find(({ type }) => type === 'closed').payload")
    assert closed == {"code": 1012, "reason": "the gateway stops", "again": True}
    auth_service.mode = "down"
    redis_server.client().flushall()
    start(args=("--listen", f"tcp:{process.port}:interface=127.0.0.1"))
    page.wait_for_function("heard.some(({ payload }) => payload?.code === 'AUTH_UNAVAILABLE')")
    auth_service.mode = "ok"
    page.wait_for_function("document.body.textContent === 'Ada'")

    auth_service.deny("ada")
    redis_server.client().publish("auth:invalidate", json.dumps({"userId": "Ada"}))
    page.wait_for_function("heard.at(-1).type === 'closed'")
    assert page.evaluate("heard.at(-1).payload") == {"code": 4403, "reason": "ACCESS_REVOKED", "again": False}

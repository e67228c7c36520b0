"""What both clients do, whichever backend they stand behind: against a real WebSocket server, through real sockets."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import queue
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import globalLogPublisher

from kraftek.client import Closed, Message, QueueFull, Refused, State
from kraftek.client.asyncio import Client
from tests.bus.test_endpoint import Authority
from tests.client.backends import BackendThread, MakeUser, User
from tests.client.scripted import Far, ScriptedGateway
from tests.support.ports import free_port
from tests.support.waiting import wait_until


@pytest.fixture
def server(stage: ExitStack) -> ScriptedGateway:
    server = ScriptedGateway()
    stage.callback(server.close)
    return server


def connected(user: User, server: ScriptedGateway) -> Far:
    """Connect to it, and be let in."""
    connecting = user.start("connect")
    far = server.admitted()
    assert connecting.result(10.0) is None
    user.expect(State.CONNECTING)
    user.expect(State.READY)
    return far


class Complaints:
    """What the backend logs, of either kind."""

    def __init__(self, stage: ExitStack) -> None:
        self.said: list[str] = []
        handler = logging.Handler()
        handler.emit = self._record  # type: ignore[method-assign]
        logging.getLogger("kraftek.client").addHandler(handler)
        stage.callback(logging.getLogger("kraftek.client").removeHandler, handler)
        observer: Any = self._observe
        globalLogPublisher.addObserver(observer)
        stage.callback(globalLogPublisher.removeObserver, observer)

    def _record(self, record: logging.LogRecord) -> None:
        assert record.exc_info is not None
        self.said.append(record.getMessage())

    def _observe(self, event: Any) -> None:
        if event.get("log_namespace", "").startswith("kraftek.client"):
            assert event["log_failure"] is not None
            self.said.append(event["what"])


@pytest.fixture
def complaints(stage: ExitStack) -> Complaints:
    return Complaints(stage)


def test_connect_and_close(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    assert ada.client.state.value == "closed"
    connecting = ada.start("connect")
    far = server.accept()
    assert far.subprotocol == "kraftek.v1.json"
    assert far.admit()["payload"] == {"token": "ada", "roomId": "r1"}
    assert connecting.result(10.0) is None
    assert ada.client.state is State.READY
    assert ada.run("connect") is None
    closing = ada.start("close")
    assert far.expect_close() == 1000
    far.ended.set()
    assert closing.result(10.0) is None
    assert [ada.changes.get(timeout=10.0).state for _ in range(3)] == [State.CONNECTING, State.READY, State.CLOSED]


def test_connect_again(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    connected(ada, server).ended.set()
    ada.run("close")
    ada.expect(State.CLOSED)
    connected(ada, server)


def test_a_token_that_takes_time(user: MakeUser, server: ScriptedGateway, backend: BackendThread) -> None:
    ada = user(server.url, token=lambda _: backend.async_token("later"))
    ada.start("connect")
    assert server.accept().admit()["payload"]["token"] == "later"


def test_no_token_at_first(user: MakeUser, server: ScriptedGateway, complaints: Complaints) -> None:
    tokens: Iterator[str] = iter(["second"])
    asked = []

    def token(refused: bool) -> str:
        asked.append(refused)
        if len(asked) == 1:
            raise OSError("secret: no network")
        return next(tokens)

    ada = user(server.url, token=token)
    ada.start("connect")
    assert server.accept().admit()["payload"]["token"] == "second"
    ada.expect(State.CONNECTING)
    assert ada.expect(State.WAITING).reason == "no token: OSError"
    assert complaints.said == ["asking for a token failed"]


def test_a_token_whose_source_was_cancelled(user: MakeUser, server: ScriptedGateway, complaints: Complaints) -> None:
    asked = []

    async def token(refused: bool) -> str:
        asked.append(refused)
        if len(asked) == 1:
            raise asyncio.CancelledError
        return "second"

    ada = user(server.url, token=token)
    ada.start("connect")
    ada.expect(State.CONNECTING)
    assert ada.expect(State.WAITING).reason == "no token: CancelledError"
    assert server.accept().admit()["payload"]["token"] == "second"
    assert complaints.said == ["asking for a token failed"]


def test_what_is_no_token(user: MakeUser, complaints: Complaints) -> None:
    ada = user("ws://127.0.0.1:1/", token=lambda _: None)
    ada.start("connect")
    ada.expect(State.CONNECTING)
    assert ada.expect(State.WAITING).reason == "no token: TypeError"
    assert complaints.said == ["asking for a token failed"]


def test_a_refused_token(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url, token=lambda refused: "new" if refused else "old")
    connecting = ada.start("connect")
    far = server.accept()
    assert far.expect("authenticate")["payload"]["token"] == "old"
    far.say("error", {"code": "AUTH_FAILED", "message": "expired"})
    far.close(4401, "AUTH_FAILED")
    assert server.accept().admit()["payload"]["token"] == "new"
    connecting.result(10.0)


def test_refused_for_good(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    connecting = ada.start("connect")
    for _ in range(2):
        far = server.accept()
        far.expect("authenticate")
        far.say("error", {"code": "AUTH_FAILED", "message": "expired"})
        far.close(4401, "AUTH_FAILED")
    with pytest.raises(Closed, match="4401 AUTH_FAILED: expired"):
        connecting.result(10.0)
    assert ada.client.state is State.CLOSED
    with pytest.raises(Closed):
        ada.run("emit", "a:b:c")


def test_requests_and_answers(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    far = connected(ada, server)
    first = ada.start("request", "a:b:first", {"text": "größe 🎉"}, room="r1")
    second = ada.start("request", "a:b:second")
    asked = [far.expect("a:b:first"), far.expect("a:b:second")]
    assert (asked[0]["payload"], asked[0]["roomId"]) == ({"text": "größe 🎉"}, "r1")
    far.say("error", {"code": "RATE_LIMITED", "message": "slowly", "retryAfter": 2}, id=asked[1]["id"])
    far.say("a:b:first", ["größe 🎉"], id=asked[0]["id"])
    assert first.result(10.0) == ["größe 🎉"]
    with pytest.raises(Refused, match="RATE_LIMITED: slowly") as refused:
        second.result(10.0)
    assert refused.value.retry_after == 2.0


def test_a_large_message_each_way(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    far = connected(ada, server)
    text = "ä" * 2_000_000
    asking = ada.start("request", "a:b:c", text)
    asked = far.expect("a:b:c")
    assert asked["payload"] == text
    far.say("a:b:c", text, id=asked["id"])
    assert asking.result(10.0) == text


def test_a_request_times_out(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    far = connected(ada, server)
    asking = ada.start("request", "a:b:c", timeout=0.01)
    asked = far.expect("a:b:c")
    with pytest.raises(Refused, match="TIMEOUT"):
        asking.result(10.0)
    far.say("a:b:c", "too late", id=asked["id"])
    assert ada.backend.run(lambda: ada.client._promises) == {}


def test_a_cancelled_request(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    far = connected(ada, server)

    def ask() -> None:
        promise = ada.client.request("a:b:cancelled")
        if isinstance(promise, Deferred):
            promise.addErrback(lambda failure: failure.trap(CancelledError))
        promise.cancel()

    ada.backend.run(ask)
    wait_until(lambda: ada.backend.run(lambda: ada.client._promises) == {}, "that it is forgotten")
    far.cut()
    far = server.admitted()
    ada.run("emit", "a:b:next")
    far.expect("cancel")
    far.expect("a:b:next")


def test_listeners(user: MakeUser, server: ScriptedGateway, complaints: Complaints) -> None:
    ada = user(server.url)
    heard: queue.Queue[Any] = queue.Queue()

    def broken(_: Message) -> None:
        raise ValueError("a mistake")

    ada.client.on("a:b:c", broken)
    remove = ada.client.on("a:b:c", heard.put)
    ada.client.on("error", heard.put)
    far = connected(ada, server)
    far.say("a:b:c", {"x": 1}, roomId="r1", receipt=7)
    assert heard.get(timeout=10.0) == Message("a:b:c", {"x": 1}, None, "r1", receipt=7)
    assert complaints.said == ["a listener to a:b:c failed"]
    far.settle()
    assert far.left_over() == []  # what a listener has failed on is not acknowledged
    remove()
    far.say("a:b:c", {"x": 2})
    far.say("error", {"code": "INVALID_EVENT", "message": "no", "eventType": "x:y:z"})
    assert heard.get(timeout=10.0).payload["code"] == "INVALID_EVENT"


def test_who_we_are_and_where(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)

    def known() -> Any:
        return ada.backend.run(lambda: (ada.client.user_id, ada.client.socket_id, ada.client.rooms))

    assert known() == (None, None, ["r1"])
    connected(ada, server)
    assert known() == ("ada", "s", ["r1"])


def test_a_name_that_is_no_events(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    far = connected(ada, server)
    for what in ("emit", "request"):
        with pytest.raises(ValueError, match="service:module:name"):
            ada.run(what, "ping")
    ada.run("emit", "a:b:c")
    far.expect("a:b:c")


def test_no_service_can_say_our_own_word(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    heard: queue.Queue[Any] = queue.Queue()
    ada.client.on("a:b:c", heard.put)
    ada.client.on("dropped", heard.put)
    far = connected(ada, server)
    far.say("state", {"state": "closed"})
    far.say("dropped", {"type": "x:y:z"})
    far.say("a:b:c")
    assert heard.get(timeout=10.0).type == "a:b:c"
    assert ada.changes.empty()


def test_events_that_will_not_be_sent(user: MakeUser) -> None:
    ada = user("ws://127.0.0.1:1/")
    heard: queue.Queue[Message] = queue.Queue()
    ada.client.on("dropped", heard.put)
    connecting = ada.start("connect")
    ada.expect(State.CONNECTING)
    ada.run("emit", "a:b:c", {"x": 1})
    ada.run("close")
    assert heard.get(timeout=10.0) == Message("a:b:c", {"x": 1})
    with pytest.raises(Closed):
        connecting.result(10.0)


def test_a_listener_that_nobody_would_await(user: MakeUser) -> None:
    async def listener(_: Message) -> None: ...

    with pytest.raises(TypeError, match="a listener is a plain function"):
        user("ws://127.0.0.1:1/").client.on("a:b:c", listener)


def test_a_subscription_that_is_ended_twice_ends_no_other_one(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    heard: queue.Queue[Message] = queue.Queue()
    first, second = (ada.client.on("a:b:c", heard.put) for _ in range(2))
    ada.client.on("a:b:end", heard.put)
    far = connected(ada, server)
    for end, number in ((first, 1), (second, 0)):
        for _ in range(2):
            end()
        far.say("a:b:c")
        far.say("a:b:end")
        assert [heard.get(timeout=10.0).type for _ in range(number + 1)] == ["a:b:c"] * number + ["a:b:end"]


def test_a_listener_that_another_one_has_ended_is_not_called_any_more(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    heard: queue.Queue[Message] = queue.Queue()
    ada.client.on("a:b:c", lambda _: end())
    end = ada.client.on("a:b:c", heard.put)
    ada.client.on("a:b:end", heard.put)
    far = connected(ada, server)
    far.say("a:b:c")
    far.say("a:b:end")
    assert heard.get(timeout=10.0).type == "a:b:end"


@pytest.mark.parametrize("url", ["http://gateway", "ws:///path", "gateway:3001", "ws://h/#part", "ws://h:99999/"])
def test_what_is_no_url_of_a_gateway(user: MakeUser, url: str) -> None:
    with pytest.raises(ValueError, match=r"expected ws://HOST|Port out of range"):
        user(url)


def test_a_url_that_is_wrong_is_told_without_its_token(user: MakeUser) -> None:
    with pytest.raises(ValueError, match="expected ws://HOST") as wrong:
        user("http://gateway/?token=s3cret")
    assert "s3cret" not in str(wrong.value)


def test_what_nobody_expected_ends_the_attempt_at_once(user: MakeUser, complaints: Complaints) -> None:
    # No host can have such a name, as neither library sees before it looks for it.
    ada = user("ws://a..b/")
    ada.start("connect")
    ada.expect(State.CONNECTING)
    lost = ada.expect(State.WAITING)
    assert lost.code == 1006
    assert lost.reason
    assert complaints.said == ["connecting failed"]


def test_a_listener_that_speaks(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    ada.client.on("a:b:ping", lambda message: ada.client.emit("a:b:pong", message.payload))
    far = connected(ada, server)
    for number in range(3):
        far.say("a:b:ping", number)
    assert [far.expect("a:b:pong")["payload"] for _ in range(3)] == [0, 1, 2]


def test_rooms(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    far = connected(ada, server)
    joining = ada.start("join", "r2")
    far.say("joined", {"roomId": "r2"}, id=far.expect("join")["id"])
    assert joining.result(10.0) is None
    denied = ada.start("join", "r3")
    far.say("error", {"code": "ACCESS_DENIED", "message": "no"}, id=far.expect("join")["id"])
    with pytest.raises(Refused, match="ACCESS_DENIED"):
        denied.result(10.0)
    leaving = ada.start("leave", "r1")
    far.say("left", {"roomId": "r1"}, id=far.expect("leave")["id"])
    assert leaving.result(10.0) is None
    far.cut()
    assert server.accept().admit()["payload"]["roomId"] == "r2"


@pytest.mark.parametrize("end", [lambda far: far.close(1001, "the gateway stops"), lambda far: far.cut()])
def test_coming_back(user: MakeUser, server: ScriptedGateway, end: Callable[[Far], None]) -> None:
    ada = user(server.url)
    far = connected(ada, server)
    joining = ada.start("join", "r2")
    far.say("joined", {"roomId": "r2"}, id=far.expect("join")["id"])
    joining.result(10.0)
    asking = ada.start("request", "a:b:c", 1)
    asked = far.expect("a:b:c")
    end(far)
    lost = ada.expect(State.WAITING)
    assert (lost.code, lost.reason) == (1001, "the gateway stops") or lost.code == 1006
    far = server.admitted()
    joining_again = far.expect("join")
    assert joining_again["payload"] == {"roomId": "r2"}
    far.say("joined", joining_again["payload"], id=joining_again["id"])
    assert far.expect("a:b:c") == {**asked, "resent": True}
    far.say("a:b:c", 2, id=asked["id"])
    assert asking.result(10.0) == 2


@pytest.mark.parametrize(("code", "reason"), [(4403, "ACCESS_REVOKED"), (4409, "DUPLICATE_CONNECTION")])
def test_not_coming_back(user: MakeUser, server: ScriptedGateway, code: int, reason: str) -> None:
    ada = user(server.url)
    far = connected(ada, server)
    asking = ada.start("request", "a:b:c")
    far.expect("a:b:c")
    far.close(code, reason)
    with pytest.raises(Closed) as closed:
        asking.result(10.0)
    assert (closed.value.code, closed.value.reason) == (code, reason)
    assert ada.expect(State.CLOSED).code == code
    connected(ada, server)


def test_nobody_listens_yet(user: MakeUser, stage: ExitStack) -> None:
    port = free_port()
    ada = user(f"ws://127.0.0.1:{port}/")
    connecting = ada.start("connect")
    ada.expect(State.CONNECTING)
    lost = ada.expect(State.WAITING)
    assert lost.code == 1006
    assert lost.reason
    server = ScriptedGateway(port)
    stage.callback(server.close)
    server.admitted()
    connecting.result(10.0)


def test_a_gateway_that_is_full(user: MakeUser, server: ScriptedGateway) -> None:
    server.full = True
    ada = user(server.url)
    ada.start("connect")
    ada.expect(State.CONNECTING)
    lost = ada.expect(State.WAITING)
    assert lost.code == 1006
    assert "503" in lost.reason
    server.full = False
    server.admitted()


def test_somebody_who_is_no_gateway(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    far = connected(ada, server)
    far.say_raw("hello!")
    assert ada.expect(State.WAITING).code == 1002
    assert far.expect_close() == 1000
    far.ended.set()
    server.admitted()


def test_closing_sends_what_was_said_before(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    far = connected(ada, server)

    def say_and_close() -> Any:
        ada.client.emit("a:b:last", "x" * 100_000)
        ada.client.emit("a:b:word")
        return ada.client.close()

    closing = ada.backend.start(say_and_close)
    far.expect("a:b:last")
    far.expect("a:b:word")
    assert far.expect_close() == 1000
    far.ended.set()
    closing.result(10.0)


def test_closing_fails_what_waits(user: MakeUser, server: ScriptedGateway) -> None:
    ada = user(server.url)
    far = connected(ada, server)
    waiting = [ada.start("request", "a:b:c"), ada.start("join", "r2")]
    far.expect("a:b:c")
    far.ended.set()
    ada.run("close")
    for promise in waiting:
        with pytest.raises(Closed, match="1000 closed by the client"):
            promise.result(10.0)


def test_closing_while_connecting_to_somebody_silent(user: MakeUser, stage: ExitStack) -> None:
    listener = stage.enter_context(socket.create_server(("127.0.0.1", 0)))
    ada = user(f"ws://127.0.0.1:{listener.getsockname()[1]}/")
    connecting = ada.start("connect")
    stage.enter_context(listener.accept()[0])
    ada.run("close")
    with pytest.raises(Closed):
        connecting.result(10.0)


def test_closing_while_a_token_is_asked_for(user: MakeUser, backend: BackendThread) -> None:
    ada: User

    async def never(_: bool) -> str:
        assert await ada.client.close() is None
        return "late"

    ada = user("ws://127.0.0.1:1/", token=never)
    with pytest.raises(Closed):
        ada.run("connect")
    ada.expect(State.CONNECTING)
    ada.expect(State.CLOSED)


def test_async_with_that_is_cancelled_leaves_nothing_behind() -> None:
    async def play() -> None:
        client = Client("ws://127.0.0.1:1/", token=lambda _: "ada")
        entering = asyncio.current_task()
        assert entering is not None
        client.on("state", lambda change: change.state is State.WAITING and entering.cancel())
        with pytest.raises(asyncio.CancelledError):
            async with client:
                pytest.fail("let in")
        assert client.state is State.CLOSED
        assert asyncio.all_tasks() == {entering}

    asyncio.run(play())


def test_a_gateway_that_does_not_read(user: MakeUser, server: ScriptedGateway) -> None:
    """What it is sent waits here, within its bound, and is not lost."""
    ada = user(server.url, queue=8)
    far = connected(ada, server)
    text = "x" * 1_000_000
    sent = 0

    def full() -> bool:
        nonlocal sent
        try:
            ada.run("emit", "a:b:c", [sent, text])
        except QueueFull:
            return True
        sent += 1
        return False

    wait_until(full, "that no more are taken", 30.0)
    assert sent >= 8
    assert [far.expect("a:b:c")["payload"][0] for _ in range(sent)] == [*range(sent)]


def test_a_proxy_in_the_environment_is_not_asked(
    user: MakeUser, server: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "ws_proxy", "all_proxy", "socks_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    connected(user(server.url), server)


def test_tls(user: MakeUser, stage: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority("ours")
    authority.issue(tmp_path, x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "redis.crt", tmp_path / "redis.key")
    server = ScriptedGateway(tls=context)
    stage.callback(server.close)
    ada = user(server.url)
    ada.start("connect")
    ada.expect(State.CONNECTING)
    assert ada.expect(State.WAITING).code == 1006
    monkeypatch.setenv("SSL_CERT_FILE", authority.file(tmp_path / "ca.crt"))
    server.admitted()


@pytest.mark.parametrize("url", ["", "localhost:3001", "http://localhost/", "ws://"])
def test_what_is_no_address(backend: BackendThread, url: str) -> None:
    with pytest.raises(ValueError, match="ws://"):
        backend.client(url, lambda _: "ada")

"""Socket.IO's connection state recovery, with the official client as it is published.

The cases are those of ``connection-state-recovery.ts`` in socket.io-client's tests and in socket.io's, as far as they
are about what a client sees, with rooms that services tell; and what is to hold here beyond them.
"""

from __future__ import annotations

import json
import signal
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from kraftek.contract.history import APPEND_FUNCTION, FUNCTION
from tests.integration.test_long_polling import Poller, Site
from tests.integration.test_socketio import NODE, TRANSPORTS, SocketIOClient
from tests.support.forwarder import Forwarder
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import AuthService, Gateway, Json, RedisServer, Shared, StartGateway

CONFIG: Json = {"rooms": {"board-*": {"history": 200}}, "socketio": {"recovery": True}}
SHARED: Json = {"config": {**CONFIG, "operator": {"listen": ["tcp:0:interface=127.0.0.1"]}}}

names = count(1)


@pytest.fixture
def room() -> str:
    """A room of this test alone."""
    return f"board-{next(names)}"


@pytest.fixture(params=list(TRANSPORTS))
def transports(request: pytest.FixtureRequest) -> list[str] | None:
    return TRANSPORTS[request.param]


def tell(server: RedisServer, room: str, *texts: str) -> None:
    """A service tells the room these."""
    with server.client() as client:
        for text in texts:
            client.execute_command("FCALL", FUNCTION, 0, room, json.dumps({"type": "a:b:said", "payload": text}))


class Page:
    """A page with the official client, behind something that may lead it elsewhere."""

    def __init__(self, stage: ExitStack, gateway: Gateway, transports: list[str] | None = None) -> None:
        self.forwarder = Forwarder(gateway.port)
        stage.callback(self.forwarder.close)
        self.client = SocketIOClient(NODE)
        stage.callback(self.client.close)
        self.transports = transports

    def connect(self, token: str, *rooms: str) -> str:
        """Returns its id."""
        url = f"http://127.0.0.1:{self.forwarder.port}"
        self.client.connect(url, self.transports, {"token": token, "roomId": rooms[0]})
        (sid,) = self.client.reports.expect("connect")
        answer, _ = self.client.reports.expect("event", "authenticated")
        assert (answer["roomId"], "recovered" in answer) == (rooms[0], False)
        for each in rooms[1:]:
            self.client.emit("join", {"roomId": each})
            assert self.client.reports.expect("event", "joined")[0]["roomId"] == each
        return str(sid)

    def heard(self, *texts: str) -> None:
        """It gets these next."""
        for text in texts:
            assert self.client.reports.expect("event", "a:b:said")[0] == text

    def away(self) -> None:
        """It has no connection, until :meth:`back`. Of one that is lost in the middle of an upgrade the client knows
        nothing before its ping times out.
        """
        if self.transports is None:
            wait_until(lambda: self.client.transport() == "websocket", "the end of the upgrade")
        self.forwarder.refuse()
        self.client.reports.expect("disconnect")

    def back(self, gateway: Gateway | None = None) -> Any:
        """It finds its way, and to this gateway. Returns what ``authenticated`` says."""
        if gateway is not None:
            self.forwarder.target = gateway.port
        self.forwarder.admit()
        self.client.reports.until("connect")
        return self.client.reports.expect("event", "authenticated")[0]


def test_the_client_that_loses_its_transport_has_the_id_that_it_had(
    shared: Shared, stage: ExitStack, transports: list[str] | None, room: str
) -> None:
    """As in the tests of socket.io-client."""
    gateway = shared.gateway(**SHARED)
    page = Page(stage, gateway, transports)
    sid = page.connect("ann", room)
    assert page.client.recovered() == [False, sid]
    tell(shared.redis_server, room, "hi")
    page.heard("hi")
    page.client.drop()
    page.client.reports.expect("disconnect")
    page.client.reports.until("connect")
    answer, _ = page.client.reports.expect("event", "authenticated")
    assert answer["recovered"] is True
    assert page.client.recovered() == [True, sid]


def test_what_was_missed_comes_in_order_and_once(
    shared: Shared, stage: ExitStack, transports: list[str] | None, room: str
) -> None:
    here, there = shared.gateway(**SHARED), shared.gateway(1, **SHARED)
    other = f"{room}-other"
    page = Page(stage, here, transports)
    sid = page.connect("ann", room, other)
    redis = shared.redis_server
    tell(redis, room, "1")
    tell(redis, other, "2")
    page.heard("1", "2")
    for gateway, texts in ((there, "3456"), (there, "789"), (here, "ab")):
        page.away()
        for number, text in enumerate(texts):
            tell(redis, (room, other)[number % 2], text)
        tell(redis, f"{room}-nobody", "for others")
        answer = page.back(gateway)
        assert (answer["userId"], answer["roomId"], answer["recovered"]) == ("user_ann", room, True)
        page.heard(*texts)
        assert page.client.recovered() == [True, sid]
        tell(redis, other, "live")
        page.heard("live")
    in_room = redis.client().hgetall(f"room:{other}")
    assert in_room == {"user_ann": answer["socketId"]}


def test_a_text_that_comes_in_pieces_takes_the_place_of_its_beginning(
    shared: Shared, stage: ExitStack, room: str
) -> None:
    gateway, redis = shared.gateway(**SHARED), shared.redis_server
    page = Page(stage, gateway)
    page.connect("ann", room)

    def append(piece: str, flags: str = "") -> None:
        with redis.client() as client:
            client.execute_command("FCALL", APPEND_FUNCTION, 0, room, "a:b:said", "answer", piece, flags)

    def hears(text: str, **append: Any) -> None:
        heard, about, *_ = page.client.reports.expect("event", "a:b:said")
        assert (heard, about) == (text, {"key": "answer", **append})

    append("He", "first")
    append("ll")
    hears("He", **{"from": 1})
    hears("ll")
    page.away()
    append("o ")
    append("there")
    assert page.back()["recovered"] is True
    append("!", "last")
    hears("Hello there", **{"from": 1})
    hears("!", last=True)


def test_after_the_death_of_its_gateway(
    redis_server: RedisServer, gateway: StartGateway, stage: ExitStack, room: str
) -> None:
    here, there = (gateway(redis_server, config=CONFIG) for _ in range(2))
    page = Page(stage, here)
    sid = page.connect("ann", room, f"{room}-other")
    tell(redis_server, room, "1")
    page.heard("1")
    page.forwarder.refuse()
    here.kill()
    page.client.reports.expect("disconnect")
    tell(redis_server, room, "2")
    tell(redis_server, f"{room}-other", "3")
    assert page.back(there)["recovered"] is True
    page.heard("2", "3")
    tell(redis_server, room, "4")
    page.heard("4")
    assert page.client.recovered() == [True, sid]


def test_redis_that_is_cut_off_in_between(
    redis_server: RedisServer, gateway: StartGateway, stage: ExitStack, room: str
) -> None:
    process = gateway(redis_server, config=CONFIG)
    page = Page(stage, process)
    page.connect("ann", room)
    redis = redis_server.client()
    for number in range(5):
        redis.client_kill_filter(_type="pubsub", skipme=True)
        tell(redis_server, room, f"{number}a")
        page.heard(f"{number}a")

        def certain(number: int = number) -> bool:
            tell(redis_server, room, f"{number}b")
            text, word = page.client.reports.expect("event", "a:b:said")
            assert text == f"{number}b"
            return bool(word != "-")

        wait_until(certain, "an order that is certain")
        page.away()
        tell(redis_server, room, f"{number}c")
        assert page.back()["recovered"] is True
        page.heard(f"{number}c")


def test_a_history_that_is_not_all_there(
    redis_server: RedisServer, gateway: StartGateway, stage: ExitStack, room: str
) -> None:
    config = CONFIG | {"rooms": {"board-*": {"history": 3}}}
    process = gateway(redis_server, config=config)
    page = Page(stage, process)
    sid = page.connect("ann", room)
    page.away()
    tell(redis_server, room, "1", "2", "3")
    assert page.back()["recovered"] is True
    page.heard("1", "2", "3")
    page.away()
    tell(redis_server, room, "4", "5", "6", "7")
    assert "recovered" not in page.back()
    recovered, its = page.client.recovered()
    assert (recovered, its == sid) == (False, False)
    tell(redis_server, room, "8")
    page.heard("8")


def test_access_that_was_revoked_meanwhile(
    redis_server: RedisServer, gateway: StartGateway, stage: ExitStack, room: str, auth_service: AuthService
) -> None:
    auth_service.allow("t", "ann")
    process = gateway(redis_server, config=CONFIG, auth=auth_service.url)
    page = Page(stage, process)
    page.connect("t", room, f"{room}-other")
    questions = len(auth_service.questions)
    page.away()
    tell(redis_server, room, "1")
    assert page.back()["recovered"] is True
    page.heard("1")
    assert len(auth_service.questions) == questions  # answers that are known still count
    page.away()
    auth_service.allow("t", "ann", rooms=[room])
    redis_server.client().publish("auth:invalidate", json.dumps({"userId": "ann"}))
    tell(redis_server, room, "2")
    tell(redis_server, f"{room}-other", "secret")
    assert "recovered" not in page.back()
    assert page.client.recovered()[0] is False
    tell(redis_server, f"{room}-other", "secret")
    tell(redis_server, room, "3")
    page.heard("3")


def test_who_is_put_out_or_leaves_is_not_what_it_was(shared: Shared, stage: ExitStack, room: str) -> None:
    gateway = shared.gateway(**SHARED)
    page = Page(stage, gateway)
    sid = page.connect("ann", room)
    page.client.disconnect()
    page.client.reports.expect("disconnect", "io client disconnect")
    wait_until(lambda: gateway.metric("kraftek_connections_open") == 0, "that nobody is connected")
    page.client.reconnect()
    page.client.reports.expect("connect")
    assert "recovered" not in page.client.reports.expect("event", "authenticated")[0]
    recovered, its = page.client.recovered()
    assert (recovered, its == sid) == (False, False)


def test_another_version_goes_on_with_it(
    redis_server: RedisServer, gateway: StartGateway, stage: ExitStack, room: str
) -> None:
    process = gateway(redis_server, config=CONFIG)
    process.expect_traceback()
    page = Page(stage, process, ["websocket"])
    sid = page.connect("ann", room)
    before = len(process.log())
    process.process.send_signal(signal.SIGUSR2)
    process.wait_log("is ready", 30.0, after=before)

    def certain() -> bool:
        tell(redis_server, room, "x")
        return bool(page.client.reports.expect("event", "a:b:said")[1] != "-")

    wait_until(certain, "an order that is certain")
    page.away()
    tell(redis_server, room, "1")
    assert page.back()["recovered"] is True
    page.heard("1")
    assert page.client.recovered() == [True, sid]


class Raw:
    """A client of long-polling that says what a test says."""

    def __init__(self, gateway: Gateway, connect: Json) -> None:
        self._poller = Poller(Site(gateway.port))
        self._poller.ask("POST", "40" + json.dumps(connect))

    def packets(self, number: int) -> list[str]:
        found: list[str] = []
        while len(found) < number:
            found += self._poller.get()[1].split("\x1e")
        return found


def test_on_the_wire(shared: Shared, room: str) -> None:
    """As in the tests of socket.io, "should restore session and missed packets", and of what is there without."""
    gateway, redis = shared.gateway(**SHARED), shared.redis_server
    auth = {"token": "ann", "roomId": room}
    raw = Raw(gateway, auth)
    connected, authenticated = raw.packets(2)
    handshake = json.loads(connected[2:])
    assert handshake.keys() == {"sid", "pid"}
    offset = json.loads(authenticated[2:])[-1]
    raw._poller.ask("POST", "1")
    for _ in range(2):
        tell(redis, room, "hello1", "hello2")
        again = Raw(gateway, {"pid": handshake["pid"], "offset": offset, **auth})
        connected, authenticated, *missed = again.packets(4)
        assert json.loads(connected[2:]) == handshake
        assert [json.loads(each[2:])[:2] for each in missed] == [["a:b:said", "hello1"], ["a:b:said", "hello2"]]
        offset = json.loads(missed[-1][2:])[-1]
        assert len({json.loads(each[2:])[-1] for each in missed}) == 2


@pytest.mark.parametrize("was", [{"pid": "foo", "offset": "bar"}, {"pid": "foo", "offset": "0123456789ab.1"}])
def test_an_unknown_session(shared: Shared, room: str, was: Json) -> None:
    """As in the tests of socket.io, "should fail to restore an unknown session"."""
    raw = Raw(shared.gateway(**SHARED), {"token": "ann", "roomId": room, **was})
    handshake = json.loads(raw.packets(2)[0][2:])
    assert handshake["pid"] not in ("foo", handshake["sid"])


def test_without_the_setting_there_is_nothing_of_it(shared: Shared, room: str) -> None:
    """As in the tests of socket.io, "should be disabled by default"."""
    raw = Raw(shared.gateway(), {"token": "ann", "roomId": room, "pid": "foo", "offset": "bar"})
    connected, authenticated = raw.packets(2)
    assert json.loads(connected[2:]).keys() == {"sid"}
    assert len(json.loads(authenticated[2:])) == 2

"""HTTP long-polling through the public port's own factory, in memory: an echo on top of Engine.IO."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
import txaio.tx
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from kraftek.contract.errors import RESTART
from kraftek.contract.settings import Limits
from kraftek.edge.backlogs import IN_TRANSPORT
from kraftek.edge.engineio import posts
from kraftek.edge.engineio.connection import CLOSE_TIMEOUT
from kraftek.edge.engineio.packets import encode_message
from tests.edge.dialects.servers import SETTINGS, Echo, serve
from tests.edge.websocket.edge import Peer, RecordingTransport, UnreadTransport

PATH = "/engine.io/"


class Server:
    """The echo server, on a clock."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        per_address: int = 0,
        proxies: int = 0,
        origins: Sequence[str] = ("https://app.test",),
    ) -> None:
        self.clock = Clock()
        monkeypatch.setattr(txaio.tx.config, "loop", self.clock)
        self.site, self.clients = serve(
            self.clock, PATH, self._echo, origins=origins, per_address=per_address, proxies=proxies
        )
        self.echoes: list[Echo] = []
        self.transport: type[RecordingTransport] = RecordingTransport

    def _echo(self, client: Any) -> Echo:
        self.echoes.append(Echo(client))
        return self.echoes[-1]

    def ask(self, method: str = "GET", query: str = "", body: str | None = None, **headers: str) -> Answer:
        """One request on a connection of its own."""
        target = f"{PATH}?EIO=4&transport=polling{query}"
        return self.ask_raw(f"{method} {target} HTTP/1.1", body, **headers)

    def ask_raw(self, line: str, body: str | None = None, **headers: str) -> Answer:
        lines = [line, "Host: gateway.test", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
        data = b"" if body is None else body.encode()
        if body is not None:
            lines.append(f"Content-Length: {len(data)}")
        answer = self.connect()
        answer.send("\r\n".join([*lines, "", ""]).encode() + data)
        return answer

    def accept(self, peer: Any = None) -> tuple[Any, RecordingTransport]:
        transport = self.transport(peer)
        protocol = self.site.buildProtocol(transport.getPeer())
        transport.connect(protocol)
        return protocol, transport

    def connect(self) -> Answer:
        return Answer(self, *self.accept())

    def settle(self) -> None:
        self.clock.advance(0)

    def open(self) -> str:
        """A new session's id."""
        answer = self.ask()
        assert answer.body[:1] == "0"
        return f"&sid={json.loads(answer.body[1:])['sid']}"

    def sweep(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.clients.sweep()
        self.clock.advance(0)


class Answer:
    """What came back for a request, if anything did."""

    def __init__(self, server: Server, protocol: Any, transport: RecordingTransport) -> None:
        self._server = server
        self._protocol = protocol
        self.transport = transport

    def send(self, data: bytes) -> None:
        self._protocol.dataReceived(data)
        self._server.clock.advance(0)

    @property
    def _parts(self) -> tuple[str, str]:
        head, _, body = self.transport.value().decode().partition("\r\n\r\n")
        return head, body

    @property
    def held(self) -> bool:
        return not self.transport.value()

    @property
    def status(self) -> int:
        return int(self._parts[0].split(" ")[1])

    @property
    def headers(self) -> dict[str, str]:
        return dict(line.lower().split(": ", 1) for line in self._parts[0].split("\r\n")[1:])

    @property
    def body(self) -> str:
        return self._parts[1]

    def lose(self) -> None:
        self._protocol.connectionLost(Failure(ConnectionLost()))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return Server(monkeypatch)


def test_a_session(server: Server) -> None:
    opened = server.ask()
    assert opened.status == 200
    assert opened.headers["content-type"] == "text/plain; charset=utf-8"
    assert opened.headers["cache-control"] == "no-store"
    handshake = json.loads(opened.body[1:])
    assert handshake["upgrades"] == ["websocket"]
    sid = f"&sid={handshake['sid']}"
    poll = server.ask(query=sid)
    assert poll.held
    posted = server.ask("POST", sid, "4hé\x1ebAQID")
    assert (posted.status, posted.body) == (200, "ok")
    assert poll.body == "4hé\x1ebAQID"


def test_what_one_turn_says_answers_one_poll(server: Server) -> None:
    sid = server.open()
    poll = server.ask(query=sid)
    server.echoes[0].receive(b"one")
    server.echoes[0].receive(b"two")
    assert poll.held
    server.clock.advance(0)
    assert poll.body == "4one\x1e4two"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (f"GET {PATH} HTTP/1.1", 0),
        (f"GET {PATH}?EIO=4&transport=carrier-pigeon HTTP/1.1", 0),
        (f"GET {PATH}?EIO=4&transport=polling&sid=nobody HTTP/1.1", 1),
        (f"POST {PATH}?EIO=4&transport=polling&sid=nobody HTTP/1.1", 1),
        (f"POST {PATH}?EIO=4&transport=polling HTTP/1.1", 2),
        (f"DELETE {PATH}?EIO=4&transport=polling&sid=nobody HTTP/1.1", 3),
        (f"GET {PATH}?EIO=4&transport=websocket HTTP/1.1", 3),
        (f"GET {PATH}?EIO=3&transport=polling HTTP/1.1", 5),
        (f"GET {PATH}?transport=polling HTTP/1.1", 5),
    ],
)
def test_what_is_refused_and_how(server: Server, line: str, code: int) -> None:
    answer = server.ask_raw(line, "" if line.startswith("POST") else None)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body)["code"] == code


def test_a_second_poll_ends_the_session(server: Server) -> None:
    sid = server.open()
    poll, second = server.ask(query=sid), server.ask(query=sid)
    assert (poll.status, poll.body) == (200, "1")
    assert second.status == 400
    assert json.loads(server.ask(query=sid).body)["code"] == 1


def test_who_goes_away_while_polling_is_gone(server: Server) -> None:
    sid = server.open()
    server.ask(query=sid).lose()
    assert json.loads(server.ask(query=sid).body)["code"] == 1


def test_who_vanishes_between_two_polls_is_timed_out(server: Server) -> None:
    sid = server.open()
    server.sweep(SETTINGS.ping_interval)
    server.sweep(SETTINGS.ping_timeout)
    assert server.clients.counters.ping_timeouts == 1
    assert json.loads(server.ask(query=sid).body)["code"] == 1


def test_who_does_not_fetch_what_it_is_sent_is_closed(server: Server) -> None:
    sid = server.open()
    server.clock.advance(1.0)  # it has had the time to come back
    for _ in range(3):
        server.echoes[0].receive(b"x" * (Limits().unsent_bytes // 2 - 1))
    server.clock.advance(0)
    assert server.clients.counters.slow_consumers == 1
    # All of it is forgotten.
    assert server.ask(query=sid).body == "1"


def test_a_paused_client_waits_for_the_answer_to_its_post(server: Server) -> None:
    sid = server.open()
    client = server.echoes[0]._client
    client.pause()
    posted = server.ask("POST", sid, "4one")
    assert posted.held
    client.resume()
    assert posted.body == "ok"


def begin_post(server: Server, sid: str, **headers: str) -> Answer:
    """A POST whose body does not come yet: ``4one``."""
    return server.ask_raw(f"POST {PATH}?EIO=4&transport=polling{sid} HTTP/1.1", Content_Length="4", **headers)


def test_a_post_takes_its_time(server: Server) -> None:
    sid = server.open()
    posted = begin_post(server, sid)
    posted.send(b"4on")
    assert posted.held
    posted.send(b"e")
    assert posted.body == "ok"
    assert server.ask(query=sid).body == "4one"


def test_a_second_post_ends_the_session_as_soon_as_its_head_is_there(server: Server) -> None:
    sid = server.open()
    poll, first, second = server.ask(query=sid), begin_post(server, sid), begin_post(server, sid)
    assert poll.body == "1"
    for posted in (second, first):
        posted.send(b"4one")
        assert posted.status == 400
    assert json.loads(second.body)["code"] == 3
    assert json.loads(first.body)["code"] == 1


def test_a_post_that_breaks_off_ends_the_session(server: Server) -> None:
    sid = server.open()
    begin_post(server, sid).lose()
    assert json.loads(server.ask(query=sid).body)["code"] == 1


def test_a_post_that_is_whole_may_lose_its_connection(server: Server) -> None:
    sid = server.open()
    server.echoes[0]._client.pause()
    server.ask("POST", sid, "4one").lose()
    server.echoes[0]._client.resume()
    assert server.ask(query=sid).body == "4one"


def test_a_page_of_another_origin_cannot_hold_up_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, origins=("same-host",))
    sid = server.open()
    posted = begin_post(server, sid, Origin="https://evil.test")
    assert server.ask("POST", sid, "4one").body == "ok"
    posted.send(b"4two")
    assert posted.status == 403


def test_when_the_gateway_goes_away_clients_are_told_to_come_back(server: Server) -> None:
    sid = server.open()
    poll = server.ask(query=sid)
    server.echoes[0]._client.close(RESTART, "the gateway stops")
    assert poll.status == 503
    assert poll.headers["connection"] == "close"
    assert poll.transport.closed == "lost"


@pytest.mark.parametrize("extra", [1, 10_000_000])
def test_a_body_that_is_too_long_is_not_read(server: Server, extra: int) -> None:
    sid = server.open()
    length = str(SETTINGS.max_payload + extra)
    answer = server.ask_raw(f"POST {PATH}?EIO=4&transport=polling{sid} HTTP/1.1", Content_Length=length)
    assert answer.status == 413
    assert answer.transport.closed == "lost"
    said = answer.transport.value()
    answer.send(b"4" * 100)
    assert answer.transport.value() == said


def test_a_chunked_body_is_bounded_too(server: Server) -> None:
    sid = server.open()
    answer = server.ask_raw(f"POST {PATH}?EIO=4&transport=polling{sid} HTTP/1.1", Transfer_Encoding="chunked")
    chunk = b"%x\r\n%b\r\n" % (65_536, b"4" * 65_536)
    for _ in range(SETTINGS.max_payload // 65_536):
        answer.send(chunk)
    assert answer.held
    answer.send(chunk)
    assert answer.status == 413
    assert answer.transport.closed == "lost"


def test_the_longest_body_passes(server: Server) -> None:
    sid = server.open()
    body = "4" * SETTINGS.max_payload
    assert server.ask("POST", sid, body).body == "ok"
    assert server.ask(query=sid).body == body


def test_pages_of_allowed_origins_may_read_answers(server: Server) -> None:
    for answer in (server.ask(Origin="https://app.test"), server.ask(query="&sid=nobody", Origin="https://app.test")):
        assert answer.headers["access-control-allow-origin"] == "https://app.test"
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert answer.headers["vary"] == "origin"
    assert "access-control-allow-origin" not in server.ask().headers


def test_pages_ask_before_they_post(server: Server) -> None:
    answer = server.ask(
        "OPTIONS",
        Origin="https://app.test",
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="content-type",
    )
    assert (answer.status, answer.body) == (204, "")
    assert answer.headers["access-control-allow-headers"] == "content-type"
    assert answer.headers["access-control-allow-methods"] == "get, post, options"


def test_pages_of_other_origins_are_refused_and_told_why(server: Server) -> None:
    for method in ("GET", "OPTIONS"):
        answer = server.ask(method, Origin="https://evil.test")
        assert answer.status == 403
        refusal = json.loads(answer.body)
        assert refusal["code"] == 4
        assert "https://evil.test" in refusal["message"]
        assert '"origins"' in refusal["message"]
        assert "access-control-allow-origin" not in answer.headers


def test_everybodys_pages_come_without_cookies(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Server(monkeypatch, origins=["*"]).ask(Origin="https://evil.test")
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


def test_there_may_be_too_many(server: Server) -> None:
    server.clients.max_clients = 1
    server.open()
    refused = server.ask()
    assert refused.status == 503
    assert json.loads(refused.body) == {"code": 4, "message": "too many connections"}
    assert server.clients.counters.connections_refused["process"] == 1


# Clients of one address.


class Crowd:
    """Clients of addresses that a trusted proxy tells."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, per_address: int) -> None:
        self.server = Server(monkeypatch, per_address, proxies=1)
        self.accept = self.server.accept
        self.settle = self.server.settle

    def polling(self, address: str) -> Answer:
        return self.server.ask(X_Forwarded_For=f"203.0.113.9, {address}")

    def websocket(self, address: str, query: str = "") -> Peer:
        path = f"{PATH}?EIO=4&transport=websocket{query}"
        return Peer(self, path, headers={"X-Forwarded-For": address})  # type: ignore[arg-type]


def test_polling_counts_with_websockets_by_the_forwarded_address(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(monkeypatch, 2)
    assert crowd.polling("192.0.2.1").status == 200
    socket = crowd.websocket("192.0.2.1")
    assert socket.status == 101
    refused = crowd.polling("192.0.2.1")
    assert refused.status == 429
    assert json.loads(refused.body) == {"code": 4, "message": "too many connections from this address"}
    assert crowd.websocket("192.0.2.1").status == 429
    assert crowd.server.clients.counters.connections_refused["address"] == 2
    assert crowd.polling("192.0.2.2").status == 200
    socket.lose()
    assert crowd.polling("192.0.2.1").status == 200


def test_all_lines_of_the_header_count(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, 1, proxies=1)
    lines = [("192.0.2.1", "192.0.2.2"), ("192.0.2.1", "192.0.2.3"), ("192.0.2.4", "192.0.2.3")]
    request = f"GET {PATH}?EIO=4&transport=polling HTTP/1.1"
    answers = [server.ask_raw(request, X_Forwarded_For=one, x_forwarded_for=other) for one, other in lines]
    assert [answer.status for answer in answers] == [200, 200, 429]


def test_without_trusted_proxies_nobody_tells_his_address(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(monkeypatch, 1)
    assert [server.ask(X_Forwarded_For=f"192.0.2.{n}").status for n in range(2)] == [200, 429]


def test_a_client_that_changes_over_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = Crowd(monkeypatch, 1)
    sid = f"&sid={json.loads(crowd.polling('192.0.2.1').body[1:])['sid']}"
    socket = crowd.websocket("192.0.2.1", sid)
    assert socket.status == 101
    socket.send("2probe")
    socket.send("5")
    assert crowd.polling("192.0.2.1").status == 429
    socket.lose()
    assert crowd.polling("192.0.2.1").status == 200


@pytest.mark.parametrize("way", ["closed", "timed out", "lost"])
def test_who_is_gone_counts_no_more(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    server = Server(monkeypatch, 1, proxies=1)  # where connections that are kept do not count
    sid = server.open()
    if way == "closed":
        server.ask("POST", sid, "1")
    elif way == "lost":
        server.ask(query=sid).lose()
    else:
        server.sweep(SETTINGS.ping_interval)
        server.sweep(SETTINGS.ping_timeout)
    assert len(server.clients._addresses) == 0
    server.open()


@pytest.mark.parametrize("query", ["&sid=nobody", ""])
def test_a_body_that_is_refused_is_not_kept(server: Server, query: str) -> None:
    answer = server.connect()
    target = f"{PATH}?EIO=4&transport=polling{query}"
    answer.send(f"POST {target} HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 900000\r\n\r\n".encode())
    tracemalloc.start()
    for _ in range(900):
        answer.send(b"x" * 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    assert answer.status == 400
    assert "connection" not in answer.headers  # it may be used again


def test_of_many_posts_at_a_time_none_is_kept(server: Server) -> None:
    """Of 400 that one session had under way at a time, each kept its megabyte."""
    sid = server.open()
    unhandled = server.clients.turns.accounts
    answers = []
    for _ in range(40):
        answer = server.connect()
        target = f"{PATH}?EIO=4&transport=polling{sid}"
        answer.send(f"POST {target} HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 1000\r\n\r\n4".encode())
        answers.append(answer)
    assert unhandled.unhandled == 0
    for answer in answers:
        answer.send(b"x" * 999)
    assert {answer.status for answer in answers} == {400}
    assert unhandled.unhandled == 0


def test_a_body_for_which_there_is_no_room_is_refused_before_its_end(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posts, "MOST", 1000)
    sids = [server.open(), server.open()]
    answers = []
    for sid in sids:
        answer = server.connect()
        target = f"{PATH}?EIO=4&transport=polling{sid}"
        answer.send(f"POST {target} HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: 900\r\n\r\n".encode())
        answer.send(b"4" + b"x" * 600)
        answers.append(answer)
    slow, other = answers
    assert slow.status == 503
    assert slow.headers["connection"] == "close"
    slow.send(b"x" * 299)
    assert other.held
    other.send(b"x" * 299)
    assert other.body == "ok"


# Answers that are not read.

LIMITS = Limits()


class Reader:
    """A client on connections that are read when a test says so."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.sid = server.open()
        self.client = server.echoes[0]._client
        self.accounts = server.clients.backlogs.accounts
        server.transport = UnreadTransport

    def tell(self, *sizes: int) -> None:
        for size in sizes:
            self.client.write(encode_message(b"x" * size))

    def poll(self) -> Answer:
        return self.server.ask(query=self.sid)

    def read_all(self, answer: Answer) -> str:
        """Read it to its end; its body."""
        transport = answer.transport
        assert isinstance(transport, UnreadTransport)
        while transport.be_read():
            pass
        return answer.body

    @property
    def gave_up(self) -> int:
        return self.server.clients.counters.slow_consumers


@pytest.fixture
def reader(server: Server) -> Reader:
    return Reader(server)


def test_a_large_answer_is_in_the_account_until_it_is_read(reader: Reader) -> None:
    reader.tell(400_000, 500_000)
    assert reader.accounts.unsent == 900_034  # a message counts as 16 bytes more than its text
    answer = reader.poll()
    written = len(answer.transport.value())
    assert written < 100_000
    left = int(answer.headers["content-length"]) - len(answer.body)
    assert reader.accounts.unsent == left + IN_TRANSPORT
    assert reader.read_all(answer) == "4" + "x" * 400_000 + "\x1e4" + "x" * 500_000
    assert reader.accounts.unsent == 0
    reader.tell(1)
    assert reader.poll().body == "4x"
    assert reader.gave_up == 0


def test_who_polls_again_without_having_read_is_given_up(reader: Reader) -> None:
    """Of each session all was kept that it had been told in 85 s, and in no account."""
    reader.tell(*[900_000] * 5)
    first = reader.poll()
    assert reader.accounts.unsent > 4_000_000
    reader.tell(*[900_000] * 5)
    second = reader.poll()
    assert (second.status, json.loads(second.body)["code"]) == (400, 3)
    assert first.transport.closed == "aborted"
    assert (reader.accounts.unsent, reader.gave_up) == (0, 1)
    assert json.loads(reader.poll().body)["code"] == 1


def test_what_waits_behind_an_answer_that_is_not_read_is_bounded(reader: Reader) -> None:
    reader.tell(1_000_000)
    answer = reader.poll()
    reader.server.clock.advance(1.0)
    reader.tell(500_000, 400_000)
    left = int(answer.headers["content-length"]) - len(answer.body)
    assert reader.accounts.unsent == left + IN_TRANSPORT + 900_034
    assert reader.gave_up == 0
    reader.tell(100_000)
    reader.server.settle()
    assert (reader.accounts.unsent, reader.gave_up) == (left + IN_TRANSPORT, 1)
    # It may read what it has begun to, as with a WebSocket, and then learns why it is closed.
    assert reader.read_all(answer) == "4" + "x" * 1_000_000
    assert reader.accounts.unsent == 0
    assert reader.poll().body == "1"


def test_an_answer_that_nobody_goes_on_reading_ends_its_session(reader: Reader) -> None:
    backlogs = reader.server.clients.backlogs
    reader.tell(1_000_000)
    answer = reader.poll()
    assert isinstance(answer.transport, UnreadTransport)
    reader.server.clock.advance(LIMITS.ping_timeout)
    answer.transport.be_read()
    reader.server.clock.advance(LIMITS.ping_timeout)
    backlogs.sweep()
    assert reader.gave_up == 0
    reader.server.clock.advance(0.1)
    backlogs.sweep()
    assert (reader.gave_up, len(backlogs)) == (1, 0)
    reader.server.sweep(CLOSE_TIMEOUT)
    assert answer.transport.closed is None
    reader.server.sweep(CLOSE_TIMEOUT)
    assert answer.transport.closed == "aborted"
    assert reader.accounts.unsent == 0


def test_who_goes_away_amid_an_answer_is_gone(reader: Reader) -> None:
    reader.tell(1_000_000)
    answer = reader.poll()
    answer.lose()
    assert (reader.accounts.unsent, reader.gave_up) == (0, 0)
    assert json.loads(reader.poll().body)["code"] == 1


def test_where_memory_is_short_unread_answers_are_dropped(reader: Reader) -> None:
    reader.tell(*[900_000] * 4)
    answer = reader.poll()
    assert reader.server.clients.backlogs.shed(1) > 3_500_000
    assert (reader.accounts.unsent, answer.transport.closed) == (0, "aborted")


def test_who_changes_over_has_the_time_of_a_close_to_read_the_answer(reader: Reader) -> None:
    reader.server.transport = RecordingTransport
    socket = Peer(reader.server, f"{PATH}?EIO=4&transport=websocket{reader.sid}")  # type: ignore[arg-type]
    reader.server.transport = UnreadTransport
    reader.tell(500_000)
    answer = reader.poll()
    assert reader.accounts.unsent > 0
    socket.send("2probe")
    socket.send("5")
    reader.server.clock.advance(CLOSE_TIMEOUT)
    assert (reader.accounts.unsent, answer.transport.closed) == (0, "aborted")
    socket.send("4here")
    assert socket.read()[-1] == "4here"

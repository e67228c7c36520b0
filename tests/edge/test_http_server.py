"""HTTP/1.1 on a connection, in memory: requests one after the other, their bounds and deadlines, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from kraftek.contract.accounts import Accounts
from kraftek.contract.turns import Turns
from kraftek.edge import http_server
from kraftek.edge.hosts import Hosts
from kraftek.edge.http_deadlines import SWEEP_INTERVAL
from kraftek.edge.http_responses import Response, end_writing, printable
from kraftek.edge.http_server import HttpServer, Request
from tests.edge.websocket.edge import RecordingTransport, UnreadTransport

HEAD_TIMEOUT, BODY_TIMEOUT, IDLE, LINGER, READING = 5.0, 30.0, 75.0, 10.0, 30.0
LARGE = bytes(range(256)) * 2000
LARGE_LEFT = len(LARGE) - 3 * 32_768  # with which a transport has enough


class Successor(Protocol):
    """Takes a connection over."""

    def __init__(self) -> None:
        self.received = b""
        self.gone = False

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"101")

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, *_: object) -> None:
        self.gone = True


class Server(HttpServer):
    """Notes each request, and answers it by its path."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock, Hosts(), head_timeout=HEAD_TIMEOUT, request_timeout=BODY_TIMEOUT, max_body=10)
        self.asked: list[tuple[bytes, bytes, str, dict[str, str], bytes]] = []
        self.held: list[Request] = []
        self.successor = Successor()
        self.gone = 0
        self.bodies: dict[Request, bytearray] = {}

    def expect(self, request: Request) -> None:
        body = self.bodies[request] = bytearray()
        request.on_chunk = body.extend

    def respond(self, request: Request) -> None:
        body = bytes(self.bodies.pop(request, b""))
        self.asked.append((request.method, request.path, request.host_name, request.query, body))
        match request.path:
            case b"/held":
                self.held.append(request)
            case b"/switch":
                rest = request.take_rest()
                assert not rest, rest
                request.switch(self.successor)
            case b"/broken":
                raise RuntimeError("the cause")
            case b"/broken/answer":
                request.answer(Response(200))
                raise RuntimeError("the cause")
            case b"/broken/switch":
                request.switch(self.successor)
                raise RuntimeError("the cause")
            case b"/large":
                request.answer(Response(200, LARGE))
            case b"/large/last":
                request.answer(Response(200, LARGE, closes=True))
            case b"/last":
                request.answer(Response(200, b"last", closes=True))
            case _:
                request.answer(Response(200, request.path))

    def lost(self, channel: object) -> None:
        self.gone += 1

    def accept(self) -> Connection:
        return Connection(self)


class Connection:
    """A connection to it."""

    def __init__(self, server: Server, transport: RecordingTransport | None = None) -> None:
        self.server = server
        self.transport = transport or RecordingTransport()
        self.transport.connect(server.buildProtocol(self.transport.getPeer()))

    def send(self, data: bytes) -> None:
        self.transport.protocol.dataReceived(data)

    def get(self, path: str, more: str = "") -> None:
        self.send(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n{more}\r\n".encode())

    @property
    def answers(self) -> list[int]:
        """The statuses of the answers so far."""
        return [int(part[:3]) for part in self.transport.value().split(b"HTTP/1.1 ")[1:]]

    def lose(self) -> None:
        self.transport.protocol.connectionLost()


@pytest.fixture
def server() -> Server:
    return Server()


def test_requests_one_after_the_other(server: Server) -> None:
    connection = server.accept()
    connection.get("/a?b=c&d=%20e&d=f&g")
    connection.send(b"POST http://b.test:81/h?i=j HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello")
    connection.get("/held")
    connection.get("/after")
    assert server.asked == [
        (b"GET", b"/a", "a.test", {"b": "c", "d": " e", "g": ""}, b""),
        (b"POST", b"/h", "b.test:81", {"i": "j"}, b"hello"),
        (b"GET", b"/held", "a.test", {}, b""),
    ]
    server.held[0].answer(Response(204))
    assert connection.answers == [200, 200, 204, 200]
    assert connection.transport.closed is None


@given(st.lists(st.integers(1, 60), max_size=20))
def test_however_the_network_cuts_them(cuts: list[int]) -> None:
    server = Server()
    connection = server.accept()
    data = (
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        b"GET /b?c HTTP/1.1\r\nHost: a\r\n\r\nGET /switch HTTP/1.1\r\nHost: a\r\n\r\n"
    )
    for cut in cuts:
        connection.send(data[:cut])
        data = data[cut:]
    if data:
        connection.send(data)
    connection.send(b"its own")
    assert [(path, body) for _, path, _, _, body in server.asked] == [
        (b"/a", b"abcde"),
        (b"/b", b""),
        (b"/switch", b""),
    ]
    assert server.successor.received == b"its own"


def test_a_connection_that_is_handed_over_is_all_its_successors(server: Server) -> None:
    connection = server.accept()
    channel = connection.transport.protocol
    connection.get("/switch")
    assert connection.transport.protocol is server.successor
    assert connection.transport.value() == b"101"
    assert connection.transport.producer is None
    # A transport that does not let itself be told would still speak to the channel.
    channel.dataReceived(b"x")
    channel.connectionLost()
    assert (server.successor.received, server.successor.gone, server.gone) == (b"x", True, 0)
    assert server.clock.getDelayedCalls() == []


def test_our_own_fault_is_logged_and_told_as_no_more_than_that(server: Server) -> None:
    for path, answers, closed in [
        ("/broken", [500], "lost"),
        ("/broken/answer", [200], "aborted"),
        ("/broken/switch", [], "aborted"),
    ]:
        connection = server.accept()
        with capturedLogs() as logged:
            connection.get(path)
        assert [str(event["log_failure"].value) for event in logged] == ["the cause"]
        assert b"the cause" not in connection.transport.value()
        assert (connection.answers, connection.transport.closed) == (answers, closed)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5_000 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 5_000 + b"\r\nX: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 501 + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 450, 431),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n", 431),
        (b"POST / HTTP/1.1\r\nContent-Length: 11\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nContent-Length: 11\r\n\r\nhello world", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\nno chunk\r\n", 413),
        (b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 11\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /a#b HTTP/1.1\r\n\r\n", 400),
        (b"GET /?a#b HTTP/1.1\r\n\r\n", 400),
        (b"POST /?a#b HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 400),
        (b"GET /?" + b"&" * 100 + b" HTTP/1.1\r\n\r\n", 400),
        (b"POST /?" + b"&" * 100 + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: y\r\n z\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: y\r\n\t\r\n\r\n", 400),
        (b" GET / HTTP/1.1\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT a.test:443 HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_what_is_refused(server: Server, data: bytes, status: int) -> None:
    connection = server.accept()
    connection.send(data)
    assert connection.answers == [status]
    assert server.asked == []
    if status != 400:
        assert connection.transport.closed == "lost"
        connection.send(b"GET / HTTP/1.1\r\n\r\n")  # is nothing to anybody
        assert connection.answers == [status]
    connection.lose()
    assert server.clock.getDelayedCalls() == []


@given(st.lists(st.binary(max_size=200) | st.sampled_from([b"GET / HTTP/1.1\r\n", b"\r\n", b"\r\n\r\n", b"a: b\r\n"])))
def test_any_bytes_are_survived(pieces: list[bytes]) -> None:
    server = Server()
    connection = server.accept()
    for piece in pieces:
        if piece and connection.transport.closed is None:
            connection.send(piece)
    connection.lose()
    assert server.gone == 1
    assert server.clock.getDelayedCalls() == []


def test_a_head_has_its_deadline(server: Server) -> None:
    silent, slow, second = server.accept(), server.accept(), server.accept()
    slow.send(b"GET / HTTP/1.1\r\n")
    second.get("/")
    server.clock.advance(HEAD_TIMEOUT - 0.1)
    second.send(b"GET")
    slow.send(b"X: y\r\n")
    server.clock.advance(0.1 + SWEEP_INTERVAL)
    assert (silent.answers, silent.transport.closed) == ([], "aborted")
    assert (slow.answers, slow.transport.closed) == ([408], "lost")
    assert (second.answers, second.transport.closed) == ([200], None)
    server.clock.advance(HEAD_TIMEOUT)
    assert (second.answers, second.transport.closed) == ([200], "aborted")


def test_a_body_has_its_deadline(server: Server) -> None:
    connection = server.accept()
    connection.send(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n")
    for _ in range(9):
        server.clock.advance(BODY_TIMEOUT / 10)
        connection.send(b"x")
    assert connection.answers == []
    server.clock.advance(BODY_TIMEOUT / 10)
    assert (connection.answers, connection.transport.closed) == ([408], "lost")
    connection.send(b"x")
    assert server.asked == []


def test_an_answer_takes_as_long_as_it_takes_and_a_rest_longer_than_a_proxys(server: Server) -> None:
    connection = server.accept()
    connection.get("/held")
    server.clock.advance(1000)
    server.held[0].answer(Response(200))
    assert connection.answers == [200]
    server.clock.advance(IDLE - 1)
    connection.get("/")
    assert connection.answers == [200, 200]
    server.clock.advance(IDLE)
    assert (connection.answers, connection.transport.closed) == ([200, 200], "lost")


def test_whoever_does_not_read_its_last_answer_is_cut_off(server: Server) -> None:
    connection = server.accept()
    connection.get("/last")
    assert connection.transport.closed == "lost"
    connection.send(b"more")
    server.clock.advance(LINGER)
    assert connection.transport.closed == "aborted"


def test_whoever_does_not_read_its_answers_is_given_no_more(server: Server) -> None:
    connection = server.accept()
    transport = connection.transport
    connection.send(b"POST /a HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
    transport.protocol.pauseProducing()  # what a transport calls when much waits to be written
    assert transport.producerState == "paused"
    connection.send(b"GET /b HTTP/1.1\r\n\r\n" * 3 + b"GET /switch HTTP/1.1\r\n\r\n")
    assert connection.answers == [200]
    server.clock.advance(HEAD_TIMEOUT / 2)
    transport.protocol.resumeProducing()
    assert connection.answers == [200] * 4
    assert transport.value().endswith(b"101")
    assert server.clock.getDelayedCalls() == []


def test_to_have_read_all_answers_is_no_request(server: Server) -> None:
    connection = server.accept()
    connection.get("/a")
    connection.transport.protocol.pauseProducing()
    connection.transport.protocol.resumeProducing()
    assert connection.transport.producerState == "producing"
    server.clock.advance(IDLE - 1)
    assert connection.transport.closed is None
    connection.get("/b")
    assert connection.answers == [200, 200]


def test_an_old_client_gets_one_answer(server: Server) -> None:
    connection = server.accept()
    connection.send(b"GET /a HTTP/1.0\r\n\r\nGET /b HTTP/1.0\r\n\r\n")
    assert [path for _, path, *_ in server.asked] == [b"/a"]
    assert connection.transport.closed == "lost"


def test_tcp_is_closed_one_way_first_and_tls_as_it_has_to_be() -> None:
    class Tcp:
        told: list[str]

        def __init__(self) -> None:
            self.told = []

        def loseWriteConnection(self) -> None:
            self.told.append("half")

        def loseConnection(self) -> None:
            self.told.append("whole")

    from twisted.internet.interfaces import ISSLTransport
    from zope.interface import directlyProvides

    tcp, tls = Tcp(), Tcp()
    directlyProvides(tls, ISSLTransport)
    other: Any = RecordingTransport()
    for transport in (tcp, tls, other):
        end_writing(transport)
    assert (tcp.told, tls.told, other.closed) == (["half"], ["whole"], "lost")


def test_what_strangers_send_is_fit_to_be_shown() -> None:
    assert printable("a\x1b[2J\r\n\x7fé\ud800b") == "a?[2J???é?b"
    assert printable("x" * 1000) == "x" * 200


def test_many_requests_at_a_time_are_answered_in_turns() -> None:
    server = Server()
    server.turns = Turns(server.clock, Accounts())
    connection = server.accept()
    connection.send(b"GET /a HTTP/1.1\r\nHost: a.test\r\n\r\n" * 100)
    assert len(server.asked) == 8
    assert connection.transport.producerState == "paused"
    server.clock.advance(0)
    assert len(server.asked) == 100
    assert connection.transport.producerState == "producing"
    connection.send(b"GET /b HTTP/1.1\r\nHost: a.test\r\n\r\n" * 100)
    connection.lose()
    server.clock.advance(0)
    assert len(server.asked) == 108
    assert server.clock.getDelayedCalls() == []


def test_a_connection_is_handed_over_behind_many_requests() -> None:
    server = Server()
    server.turns = Turns(server.clock, Accounts())
    connection = server.accept()
    connection.send(b"GET /a HTTP/1.1\r\nHost: a.test\r\n\r\n" * 50 + b"GET /switch HTTP/1.1\r\nHost: a.test\r\n\r\n")
    server.clock.advance(0)
    assert len(server.asked) == 51
    assert connection.transport.protocol is server.successor
    assert connection.transport.producerState == "producing"
    connection.send(b"more")
    assert server.successor.received == b"more"


class Waiting:
    """In the place of the turns: who waits for one."""

    def __init__(self) -> None:
        self.readers: list[Any] = []

    def add(self, reader: Any) -> None:
        self.readers.append(reader)

    def remove(self, reader: Any) -> None:
        self.readers = [each for each in self.readers if each is not reader]


def steps(server: Server, connection: Connection, data: bytes) -> Iterator[None]:
    """Send this at once; once for the step in which it arrives, and for each that follows."""
    waiting: Any = Waiting()
    server.turns = waiting
    connection.send(data)
    yield
    while waiting.readers:
        assert connection.transport.producerState == "paused"
        reader = waiting.readers.pop()
        assert not waiting.readers
        assert reader.step() is False
        yield
    assert connection.transport.producerState == "producing"


CHUNKED = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("chunks", [1, 150, *range(165, 180), 1000])
def test_a_chunked_body_is_decoded_a_little_at_a_time(server: Server, chunks: int) -> None:
    server.max_body = chunks
    connection = server.accept()
    data = CHUNKED + b"1\r\na\r\n" * chunks + b"0\r\nTrailer: x\r\n\r\n" + b"GET /b HTTP/1.1\r\n\r\n"
    arrived = [
        sum(map(len, [*server.bodies.values(), *(body for *_, body in server.asked)]))
        for _ in steps(server, connection, data)
    ]
    assert max(after - before for before, after in pairwise([0, *arrived])) <= 171
    assert [(path, body) for _, path, _, _, body in server.asked] == [(b"/a", b"a" * chunks), (b"/b", b"")]
    assert connection.answers == [200, 200]


def test_trailers_too_are_read_a_little_at_a_time(server: Server) -> None:
    connection = server.accept()
    number = sum(1 for _ in steps(server, connection, CHUNKED + b"0\r\n" + b"x\r\n" * 10_000))
    assert (number, connection.answers) == (30, [])


def test_what_arrives_behind_a_request_that_is_held_waits_for_its_answer(server: Server) -> None:
    connection = server.accept()
    data = CHUNKED.replace(b"/a", b"/held") + b"0\r\n\r\n" + b"GET /b HTTP/1.1\r\n\r\n" * 100
    assert sum(1 for _ in steps(server, connection, data)) == 1  # it is still read, so that its end is noticed
    server.held[0].answer(Response(204))
    waiting: Any = server.turns
    while waiting.readers:
        waiting.readers.pop().step()
    assert connection.answers == [204] + [200] * 100


def test_what_is_wrong_with_a_chunk_ends_what_waits_behind_it(server: Server) -> None:
    connection = server.accept()
    data = CHUNKED + b"1\r\na\r\n" * 5 + b"zz\r\n" + b"1\r\na\r\n" * 1000
    waiting: Any = Waiting()
    server.turns = waiting
    connection.send(data)
    assert (connection.answers, waiting.readers, connection.transport.closed) == ([400], [], "lost")


def test_a_body_that_is_not_chunked_is_one_piece(server: Server) -> None:
    server.max_body = 10_000
    connection = server.accept()
    data = b"POST /a HTTP/1.1\r\nContent-Length: 10000\r\n\r\n" + b"a" * 10_000
    assert sum(1 for _ in steps(server, connection, data)) == 1
    assert server.asked[0][4] == b"a" * 10_000


def test_whether_it_may_have_a_body_is_asked_once_and_its_size_with_each_piece() -> None:
    class Asked(Server):
        bodies_asked = 0

        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def refuse_body(self, request: Request) -> Response | None:
            self.bodies_asked += 1
            return super().refuse_body(request)

        def refuse_size(self, request: Request, size: int) -> Response | None:
            self.sizes.append(size)
            return super().refuse_size(request, size)

    server = Asked()
    server.accept().send(CHUNKED + b"1\r\na\r\n" * 4)
    assert (server.bodies_asked, server.sizes) == (1, [0, 1, 2, 3, 4])


@pytest.mark.parametrize(("size", "answered"), [(30, 8), (600, 4), (1_100, 3), (5_000, 1)])
def test_longer_heads_count_for_more_requests(server: Server, size: int, answered: int) -> None:
    connection = server.accept()
    head = b"GET /a HTTP/1.1\r\n"
    head += b"x:" + b"y" * (size - len(head) - 6) + b"\r\n\r\n"
    assert len(head) == size
    asked = [len(server.asked) for _ in steps(server, connection, head * 12)]
    assert asked == [*range(answered, 12, answered), 12]


def test_a_query_is_read_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def parsed(query: str, **options: Any) -> dict[str, list[str]]:
        read.append(query)
        return parse_qs(query, **options)

    monkeypatch.setattr(http_server, "parse_qs", parsed)
    connection = server.accept()
    connection.get("/held?a=b" + "&c" * 99)
    assert server.held[0].query is server.held[0].query
    assert server.held[0].query == {"a": "b", "c": ""}
    assert read == ["a=b" + "&c" * 99]


def test_nobody_reads_cookies(server: Server) -> None:
    server.accept().get("/held", "Cookie: a=b; c=d\r\n")
    assert server.held[0].received_cookies == {}
    assert server.held[0].header("cookie") == "a=b; c=d"


# Large answers, to those who read them slowly or not at all.


def ask_for_much(server: Server, path: str = "/large") -> tuple[Connection, UnreadTransport]:
    transport = UnreadTransport()
    connection = Connection(server, transport)
    connection.get(path)
    return connection, transport


def test_a_transport_is_given_a_large_answer_as_fast_as_it_is_read(server: Server) -> None:
    connection, transport = ask_for_much(server)
    taken = []
    while read := transport.be_read():
        taken.append(read)
    assert max(taken) < 100_000
    head, _, body = transport.value().partition(b"\r\n\r\n")
    assert (b"Content-Length: 512000" in head, body) == (True, LARGE)
    connection.get("/a")
    assert connection.answers == [200, 200]


@pytest.mark.parametrize(("path", "closed"), [("/large", None), ("/large/last", "lost")])
def test_a_connection_goes_on_or_closes_after_a_large_answer(server: Server, path: str, closed: str | None) -> None:
    _, transport = ask_for_much(server, path)
    assert transport.closed is None
    while transport.be_read():
        pass
    assert transport.closed == closed
    assert transport.value().endswith(LARGE)


def test_a_connection_that_closes_after_a_large_answer_is_read(server: Server) -> None:
    """Or nobody would notice that the other side has closed it."""
    transport = UnreadTransport()
    Connection(server, transport).get("/held")
    server.held[0].answer(Response(200, b"x" * (5 * 3 * 32_768 + 80_000), closes=True))
    while transport.be_read():
        pass
    assert (transport.closed, transport.producerState) == ("lost", "producing")


def test_a_large_answer_is_whole_when_the_server_stops(server: Server) -> None:
    transport = UnreadTransport()
    connection = Connection(server, transport)
    connection.send(b"GET /a HTTP/1.1\r\n\r\nGET /held HTTP/1.1\r\n\r\n")
    server.held[0].answer(Response(200, LARGE))
    server.deadlines.end_rests()
    while transport.be_read():
        pass
    assert transport.value().endswith(LARGE)


@pytest.mark.parametrize("path", ["/held", "/large"])
def test_what_stands_behind_a_chunked_body_is_answered_in_order(server: Server, path: str) -> None:
    transport = UnreadTransport()
    connection = Connection(server, transport)
    behind = b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(100))
    waiting: Any = Waiting()
    server.turns = waiting
    connection.send(CHUNKED.replace(b"/a", path.encode()) + b"1\r\na\r\n0\r\n\r\n" + behind)
    for request in server.held:
        request.answer(Response(204))
    while waiting.readers or transport.waiting:
        transport.be_read()
        if waiting.readers:
            waiting.readers.pop(0).step()
    assert [asked for _, asked, *_ in server.asked][-100:] == [b"/%d" % number for number in range(100)]


def test_the_head_of_a_large_answer_is_whole_by_itself(server: Server) -> None:
    connection = server.accept()
    connection.send(b"HEAD /large HTTP/1.1\r\n\r\n")
    assert connection.transport.value().endswith(b"\r\n\r\n")
    connection.get("/a")
    assert connection.answers == [200, 200]


def test_who_does_not_read_a_large_answer_is_closed(server: Server) -> None:
    _, transport = ask_for_much(server)
    for _ in range(3):
        server.clock.advance(READING - 1)
        assert transport.closed is None
        transport.be_read()
    server.clock.advance(READING)
    assert transport.closed == "aborted"


def test_nothing_more_is_read_of_who_does_not_read_its_answer(server: Server) -> None:
    """Twisted went on reading, and kept what it had read."""
    connection, transport = ask_for_much(server)
    assert transport.producerState == "paused"
    connection.send(b"GET /b HTTP/1.1\r\n\r\n" * 2)
    transport.be_read()
    assert transport.producerState == "paused"
    assert len(server.asked) == 1
    while transport.be_read():
        pass
    assert transport.producerState == "producing"
    assert len(server.asked) == 3
    assert connection.answers == [200] * 3


def test_a_connection_may_go_away_amid_a_large_answer(server: Server) -> None:
    connection, transport = ask_for_much(server)
    gone: list[str] = []
    request = transport.protocol.requests[0]
    request.notifyFinish().addErrback(lambda _: gone.append("gone"))
    assert transport.producer is not None
    transport.producer.stopProducing()
    connection.lose()
    assert (gone, server.gone) == (["gone"], 1)
    assert server.clock.getDelayedCalls() == []


def test_how_much_of_an_answer_is_unwritten_is_told_as_it_gets_less(server: Server) -> None:
    transport = UnreadTransport()
    connection = Connection(server, transport)
    connection.get("/held")
    (request,) = server.held
    request.answer(Response(200, LARGE))
    unwritten = [request.unwritten]
    request.on_progress = lambda: unwritten.append(request.unwritten)
    while transport.be_read():
        pass
    assert unwritten == sorted(unwritten, reverse=True)
    assert (unwritten[0], unwritten[-1]) == (LARGE_LEFT, 0)

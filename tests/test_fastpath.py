"""What reaches past the public surface of Twisted and Autobahn does what they do, and they are what it was made for.

A failure here after an upgrade of either means that kraftek/fastpath.py was written for another version of it.
"""

from __future__ import annotations

import ast
import errno
import inspect
import os
import signal
import socket
import struct
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import autobahn.twisted.websocket
import autobahn.websocket.protocol
import pytest
import txaio.tx
from autobahn.twisted.websocket import WebSocketServerProtocol
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock, LoopingCall
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.logger import capturedLogs
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate

import kraftek.edge.websocket.factory
from kraftek import fastpath
from kraftek.contract.interfaces import IClientLink
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Outgoing
from kraftek.contract.settings import Limits
from kraftek.edge.websocket.protocol import ClientProtocol, _unmask
from kraftek.fastpath import configured, drive, plain_messages, write_now
from tests.edge.websocket.edge import Edge, Peer


@pytest.fixture(autouse=True)
def _autobahns_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge of strings sets it."""
    monkeypatch.setattr(txaio.tx.config, "loop", None)


class Echo:
    """A session that notes what it receives, and says it back."""

    def __init__(self, link: IClientLink) -> None:
        self.link = link
        self.received: list[tuple[bytes, bool]] = []

    def receive(self, data: bytes, binary: bool = False) -> None:
        self.received.append((data, binary))
        self.link.write(Outgoing(b"", (data,)) if binary else Outgoing(data))

    def lost(self) -> None:
        pass

    def overrun(self) -> None:
        return None


def echo_edge(limits: Limits | None = None, *, compression: bool = False) -> Edge:
    """An edge whose sessions echo."""
    edge = Edge(limits=limits, compression=compression)
    edge.factory.open_session = lambda link, *_: Echo(link)  # type: ignore[assignment]
    return edge


# Unframing, with Autobahn's own parser as the oracle.


def frame(
    opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"mask", size_bytes: int = 0
) -> bytes:
    """A client's frame, right or wrong; ``size_bytes`` is 2 or 8 to write a size longer than it need be."""
    size = len(payload)
    masked = 0x80 if mask is not None else 0
    head = bytes((fin << 7 | rsv << 4 | opcode,))
    if size < 126 and not size_bytes:
        head += bytes((masked | size,))
    elif size < 65_536 and size_bytes != 8:
        head += bytes((masked | 126,)) + size.to_bytes(2, "big")
    else:
        head += bytes((masked | 127,)) + size.to_bytes(8, "big")
    return head + (payload if mask is None else mask + _unmask(mask, payload))


PAYLOADS = st.one_of(
    st.text(max_size=40).map(str.encode),
    st.text(max_size=40).map(str.encode),
    st.binary(max_size=140),
    st.sampled_from([0, 1, 125, 126, 127, 999, 1000, 1001, 1535, 1536, 1537, 65_535, 65_536]).map(lambda n: b"x" * n),
    st.sampled_from([100, 1700]).map(lambda n: ("é" * n).encode()),
    st.sampled_from([100, 1700]).map(lambda n: b"x" * n + b"\xff"),
)
MASKS = st.binary(min_size=4, max_size=4)
TEXTS = st.builds(frame, st.just(1), PAYLOADS, mask=MASKS)
FRAGMENTED = st.builds(
    lambda opcode, first, second, between: (
        frame(opcode, first, fin=False) + between + frame(0, b"", fin=False) + frame(0, second)
    ),
    st.sampled_from([1, 2]),
    PAYLOADS,
    PAYLOADS,
    st.sampled_from([b"", frame(9, b"?"), frame(10, b"")]),
)
CONTROL = st.builds(frame, st.sampled_from([9, 10]), st.binary(max_size=125), mask=MASKS)
CLOSES = st.sampled_from([frame(8, b""), frame(8, b"\x03\xe8bye"), frame(8, b"\x03"), frame(8, b"\x03\xe8\xff")])
ANY = st.builds(
    frame,
    st.integers(0, 15),
    PAYLOADS,
    fin=st.booleans(),
    rsv=st.integers(0, 7),
    mask=st.one_of(st.none(), MASKS),
    size_bytes=st.sampled_from([0, 0, 2, 8]),
)
FRAMES = st.lists(st.one_of(TEXTS, TEXTS, TEXTS, FRAGMENTED, CONTROL, CLOSES, ANY), max_size=12)


def conversation(reads: Sequence[bytes], limit: int, *, fast: bool) -> tuple[Any, bytes, str | None]:
    """What a session received of these reads, what the client was sent, and how the connection ended."""
    edge = echo_edge(Limits(message_bytes=limit))
    peer = Peer(edge)
    protocol: Any = peer.protocol
    if not fast:
        protocol.dataReceived = partial(WebSocketServerProtocol.dataReceived, protocol)
    echo = protocol.session
    for data in reads:
        protocol.dataReceived(data)
        edge.settle()
    peer.lose()
    return echo.received, peer.transport.value(), peer.transport.closed


@given(FRAMES, st.lists(st.integers(1, 400), max_size=30), st.sampled_from([100, 1000, 70_000]))
@example([frame(1, b"a"), frame(1, b"\xc3", fin=False), frame(0, b"\xa9"), frame(1, b"b")], [], 1000)
@example([frame(1, b"a"), frame(1, b"\xff"), frame(1, b"b")], [], 1000)
@example([frame(1, b"a"), frame(1, b"x" * 1001), frame(1, b"b")], [], 1000)
@example([frame(1, b"a"), frame(8, b""), frame(1, b"b")], [], 1000)
@example([frame(1, b"a", size_bytes=2)], [], 1000)
def test_the_same_messages_arrive_with_the_fast_path_and_without(
    frames: list[bytes], sizes: list[int], limit: int
) -> None:
    data = b"".join(frames)
    reads = []
    for size in sizes:
        reads.append(data[:size])
        data = data[size:]
    reads.append(data)
    reads = [read for read in reads if read]
    assert conversation(reads, limit, fast=True) == conversation(reads, limit, fast=False)


def test_plain_frames_are_taken_in_one_pass() -> None:
    """Or the comparison above would compare Autobahn with itself."""
    texts = [b"", b"a", b"b" * 125, b"c" * 126, b"d" * 1536, "é".encode() * 1000, b"e" * 65_535]
    data = b"".join(frame(1, text) for text in texts)
    assert plain_messages(data, 65_535, _unmask) == (texts, len(data))


OTHERS = {
    "binary": frame(2, b"x"),
    "ping": frame(9, b"x"),
    "fragment": frame(1, b"x", fin=False),
    "compressed": frame(1, b"x", rsv=4),
    "unmasked": frame(1, b"x", mask=None),
    "not UTF-8": frame(1, b"\xc3\x28"),
    "too big": frame(1, b"x" * 1001),
    "64 KiB": frame(1, b"x" * 65_536),
    "long size": frame(1, b"x", size_bytes=2),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_whatever_else_there_is_is_left(other: bytes) -> None:
    first, last = frame(1, b"first"), frame(1, b"last")
    assert plain_messages(first + other + last, 1000, _unmask) == ([b"first"], len(first))


def test_what_is_not_all_there_yet_is_left() -> None:
    first, second = frame(1, b"first"), frame(1, b"x" * 200)
    for size in range(len(second)):
        assert plain_messages(first + second[:size], 1000, _unmask) == ([b"first"], len(first))


# Writing at once, over real sockets.


NO_PORT: Any = None
"""What accepted the connection; Twisted keeps it for its own messages."""


class Wire:
    """A transport of Twisted's on one end of a socket pair, and the other end."""

    def __init__(self) -> None:
        self.socket, self.far = socket.socketpair()
        for end in (self.socket, self.far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        self.reactor: Any = MemoryReactor()
        protocol = Protocol()
        self.near: Any = Server(self.socket, protocol, ("127.0.0.1", 1), NO_PORT, 0, self.reactor)
        protocol.makeConnection(self.near)

    def arrived(self) -> bytes:
        """What is there to be read."""
        data = b""
        try:
            while part := self.far.recv(1 << 20):
                data += part
        except BlockingIOError:
            pass
        return data

    @property
    def waits(self) -> bool:
        """Whether the reactor is asked to say when there is room."""
        return self.near in self.reactor.getWriters()


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.socket.close()
    made.far.close()


def test_what_can_be_sent_is_sent_without_the_reactor(wire: Wire) -> None:
    write_now(wire.near, b"now")
    assert wire.arrived() == b"now"
    assert not wire.waits


def test_what_does_not_fit_follows_in_order(wire: Wire) -> None:
    data = os.urandom(1_000_000)
    write_now(wire.near, data)
    write_now(wire.near, b"more")
    assert wire.waits
    arrived = wire.arrived()
    assert 0 < len(arrived) < len(data)
    for _ in range(10_000):
        if not wire.waits:
            break
        assert wire.near.doWrite() is None
        arrived += wire.arrived()
    assert arrived == data + b"more"
    write_now(wire.near, b"again at once")
    assert wire.arrived() == b"again at once"


def test_nothing_overtakes_what_waits(wire: Wire) -> None:
    wire.near.write(b"first ")
    write_now(wire.near, b"second")
    assert wire.arrived() == b""
    wire.near.doWrite()
    assert wire.arrived() == b"first second"


def test_what_twisted_has_taken_aside_waits_too(wire: Wire) -> None:
    """``writeSequence`` and a second ``write`` go to the other of its two buffers."""
    wire.near.writeSequence([b"first ", b"second "])
    assert not wire.near.dataBuffer
    assert wire.near._tempDataBuffer
    write_now(wire.near, b"third")
    wire.near.doWrite()
    assert wire.arrived() == b"first second third"


def test_a_client_that_is_gone_is_twisteds_to_find(wire: Wire) -> None:
    wire.far.close()
    write_now(wire.near, b"lost")
    assert wire.waits
    assert isinstance(wire.near.doWrite(), Exception)


def test_nothing_is_written_to_a_connection_that_was_lost(wire: Wire) -> None:
    wire.near.connectionLost(Failure(ConnectionDone()))
    write_now(wire.near, b"late")
    assert not wire.waits


def test_nothing_is_written_after_goodbye(wire: Wire) -> None:
    wire.near.write(b"goodbye")
    wire.near.loseConnection()
    write_now(wire.near, b", late")
    wire.near.doWrite()
    assert wire.arrived().startswith(b"goodbye")


def test_nothing_goes_around_tls(wire: Wire) -> None:
    """On the transport that ``ssl:`` endpoints give their protocols."""
    inner = Protocol()
    outer = TLSMemoryBIOFactory(CertificateOptions(), False, Factory.forProtocol(lambda: inner)).buildProtocol(None)
    wire.near.protocol = outer
    outer.makeConnection(wire.near)
    write_now(inner.transport, b"secret")
    if wire.waits:
        wire.near.doWrite()
    assert b"secret" not in wire.arrived()


def test_ssl_endpoints_give_such_a_transport() -> None:
    assert "TLSMemoryBIOFactory(" in inspect.getsource(PosixReactorBase.listenSSL), (
        "Twisted's reactor makes TLS connections of another kind: kraftek.fastpath.write_now must not send plain text "
        "around them."
    )


def test_another_transport_is_written_to_as_ever() -> None:
    transport = StringTransport()
    assert write_now(transport, b"data") is None
    assert transport.value() == b"data"


def test_what_took_everything_may_be_used_again_and_nothing_else(wire: Wire) -> None:
    send = write_now(wire.near, b"now")
    assert send is not None
    assert send(b", and again") == len(b", and again")
    assert wire.arrived() == b"now, and again"
    assert write_now(wire.near, os.urandom(1_000_000)) is None
    assert write_now(wire.near, b"behind that") is None


def test_autobahn_writes_to_its_transport_in_one_place() -> None:
    """``sendData``, which ClientProtocol puts its outbox in the place of. ``_send`` is for chopped sends."""
    places = [
        function.name
        for module in (autobahn.websocket.protocol, autobahn.twisted.websocket)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ClassDef)
        for function in node.body
        if isinstance(function, ast.FunctionDef) and "self.transport.write" in ast.unparse(function)
    ]
    assert places == ["_send", "sendData"], (
        "Autobahn writes to its transport elsewhere too, past the outbox: what it writes there may overtake what the "
        "outbox sends at once. Override that as well in kraftek.edge.websocket.protocol."
    )


# Driving the reactor.

DO_POLL = """
def doPoll(self, timeout):
    if timeout is None:
        timeout = -1
    try:
        l = self._poller.poll(timeout, len(self._selectables))
    except OSError as err:
        if err.errno == errno.EINTR:
            return
        raise
    _drdw = self._doReadOrWrite
    for fd, event in l:
        try:
            selectable = self._selectables[fd]
        except KeyError:
            pass
        else:
            log.callWithLogger(selectable, _drdw, selectable, fd, event)
"""


def code_of(function: Callable[..., Any]) -> str:
    """The function's code without comments, docstring and layout."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    body = tree.body[0]
    assert isinstance(body, ast.FunctionDef)
    body.body = body.body[1:]
    return ast.unparse(tree).strip()


def test_the_poll_that_is_replaced_is_the_one_that_was_read() -> None:
    assert code_of(EPollReactor.doPoll) == ast.unparse(ast.parse(DO_POLL)), (
        "Twisted's EPollReactor.doPoll changed. kraftek.fastpath.drive() stands in its place: read what is new there, "
        "do the same in drive(), then put the new code here."
    )
    assert EPollReactor.doIteration is EPollReactor.doPoll


class Flushes:
    """Counts how often a turn ended with something to write."""

    def __init__(self, iteration: Iteration) -> None:
        self.count = 0
        self._iteration = iteration

    def ask(self) -> None:
        self._iteration.at_end(self)

    def flush(self) -> None:
        self.count += 1


@pytest.fixture
def reactor() -> Iterator[Any]:
    """A reactor of the test's own, driven."""
    made: Any = EPollReactor()
    made.iteration = Iteration(made)
    drive(made, made.iteration)
    assert made.iteration.driven
    yield made
    for reader in made.removeAll():
        reader.connectionLost(Failure(ConnectionDone()))
    made._poller.close()


def run(reactor: Any) -> None:
    """Run it until it is stopped; a test that hangs ends with the faulthandler's time-out."""
    reactor.run(installSignalHandlers=False)


def test_timers_go_off_and_end_a_turn(reactor: Any) -> None:
    flushes = Flushes(reactor.iteration)
    order: list[str] = []

    def first() -> None:
        order.append("timer")
        flushes.ask()
        reactor.callLater(0, second)

    def second() -> None:
        order.append(f"flushed {flushes.count}")
        reactor.stop()

    reactor.callLater(0.001, first)
    run(reactor)
    assert order == ["timer", "flushed 1"]


def test_the_turn_ends_with_its_reads_and_needs_no_timer(reactor: Any) -> None:
    flushes = Flushes(reactor.iteration)
    seen: list[tuple[bytes, int, list[Any]]] = []

    class Reader(Protocol):
        def dataReceived(self, data: bytes) -> None:
            flushes.ask()
            seen.append((data, flushes.count, reactor.getDelayedCalls()))
            if data == b"1":
                client.sendall(b"2")
            else:
                reactor.callWhenRunning(reactor.callLater, 0, reactor.stop)

    port = reactor.listenTCP(0, Factory.forProtocol(Reader), interface="127.0.0.1")
    with socket.create_connection(("127.0.0.1", port.getHost().port)) as client:
        client.sendall(b"1")
        run(reactor)
    assert seen == [(b"1", 0, []), (b"2", 1, [])]
    assert flushes.count == 2


def test_other_threads_wake_it(reactor: Any) -> None:
    thread = threading.Thread(target=reactor.callFromThread, args=(reactor.stop,))
    reactor.callWhenRunning(thread.start)
    run(reactor)
    thread.join(10)
    assert not thread.is_alive()


def test_signals_reach_python(reactor: Any) -> None:
    seen: list[int] = []

    def noted(number: int, _frame: object) -> None:
        seen.append(number)
        reactor.callFromThread(reactor.stop)

    before = signal.signal(signal.SIGUSR1, noted)
    try:
        reactor.callWhenRunning(os.kill, os.getpid(), signal.SIGUSR1)
        run(reactor)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [signal.SIGUSR1]


class Interrupted:
    """An epoll object whose first call fails."""

    def __init__(self, number: int, poller: Any) -> None:
        self._failures = [OSError(number, os.strerror(number))]
        self._poller = poller

    def poll(self, *arguments: Any) -> Any:
        if self._failures:
            raise self._failures.pop()
        return self._poller.poll(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)


@pytest.mark.parametrize(("number", "fails"), [(errno.EINTR, False), (errno.EBADF, True)])
def test_a_poll_is_interrupted_and_nothing_else_is_forgiven(number: int, fails: bool) -> None:
    reactor: Any = EPollReactor()
    reactor._poller = Interrupted(number, reactor._poller)
    drive(reactor, Iteration(reactor))
    if fails:
        with pytest.raises(OSError, match=os.strerror(number)):
            reactor.doIteration(0)
    else:
        reactor.doIteration(0)
    reactor.doIteration(0)
    for reader in reactor.removeAll():
        reader.connectionLost(Failure(ConnectionDone()))
    reactor._poller.close()


CLOSED = Failure(ConnectionDone())


class Heard(Protocol):
    """Notes what it is told, and stops the reactor with the last of it."""

    def __init__(self, reactor: Any) -> None:
        self.reactor = reactor
        self.told: list[Any] = []

    def dataReceived(self, data: bytes) -> None:
        self.told.append(data)
        if data == b"fail":
            raise ZeroDivisionError

    def connectionLost(self, reason: Failure = CLOSED) -> None:
        self.told.append(reason.type)
        self.reactor.callLater(0, self.reactor.stop)


def close(far: socket.socket) -> None:
    far.close()


def reset(far: socket.socket) -> None:
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()


def fail(far: socket.socket) -> None:
    far.sendall(b"fail")


@pytest.mark.parametrize("driven", [True, False])
@pytest.mark.parametrize(
    ("ends", "told"),
    [(close, [ConnectionDone]), (reset, [ConnectionLost]), (fail, [b"fail", ZeroDivisionError])],
)
def test_a_connection_ends_as_without_it(driven: bool, ends: Callable[[socket.socket], None], told: list[Any]) -> None:
    made: Any = EPollReactor()
    if driven:
        drive(made, Iteration(made))
    heard = Heard(made)
    port = made.listenTCP(0, Factory.forProtocol(lambda: heard), interface="127.0.0.1")
    far = socket.create_connection(("127.0.0.1", port.getHost().port))
    far.sendall(b"x" * 100_000)

    def look() -> None:
        if sum(map(len, heard.told)) == 100_000:
            looking.stop()
            ends(far)

    looking = LoopingCall(look)
    looking.clock = made
    made.callWhenRunning(looking.start, 0.001)
    with capturedLogs() as logged:
        made.run(installSignalHandlers=False)
    ended = [each for each in heard.told if each == b"fail" or isinstance(each, type)]
    assert ended == told
    assert [event["failure"].type for event in logged if "failure" in event] == told[1:]
    far.close()
    for reader in made.removeAll():
        reader.connectionLost(CLOSED)
    made._poller.close()


def test_who_was_removed_while_others_were_read_is_left_out(reactor: Any) -> None:
    """What ``doPoll`` does with its ``KeyError``."""
    pairs = [socket.socketpair() for _ in range(2)]
    lost: list[int] = []

    class Reader(Protocol):
        def dataReceived(self, data: bytes) -> None:
            lost.append(self.number)
            for transport in transports:
                transport.stopReading()
            reactor.callLater(0, reactor.stop)

        number = 0

    transports = []
    for number, (near, far) in enumerate(pairs):
        reader = Reader()
        reader.number = number
        near.setblocking(False)
        transport = Server(near, reader, ("127.0.0.1", 1), NO_PORT, number, reactor)
        reader.makeConnection(transport)
        transport.startReading()
        transports.append(transport)
        far.sendall(b"x")
    run(reactor)
    assert len(lost) == 1
    for near, far in pairs:
        near.close()
        far.close()


def test_another_reactor_is_left_alone() -> None:
    for other in (Clock(), SelectReactor()):
        iteration = Iteration(other)
        before = getattr(other, "doIteration", None)
        drive(other, iteration)
        assert not iteration.driven
        assert getattr(other, "doIteration", None) == before
        for reader in other.removeAll() if isinstance(other, SelectReactor) else ():
            reader.connectionLost(Failure(ConnectionDone()))


# Connections that keep only what differs.

AT_REST = {
    "connected", "counted_as", "factory", "outbox", "peer", "session", "slot", "state", "transport",
    "utf8validator",
}  # fmt: skip


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the last connection's instance held when its handshake was done, before it was slimmed."""
    held: dict[str, Any] = {}

    def noted(protocol: Any, forget: frozenset[str]) -> None:
        held.update(protocol.__dict__)
        fastpath.slim(protocol, forget)

    monkeypatch.setattr(kraftek.edge.websocket.factory, "slim", noted)
    return held


def test_a_connection_holds_these_names_and_no_others(whole: dict[str, Any]) -> None:
    peer = Peer(echo_edge(), "/?token=secret&roomId=r")
    assert set(peer.protocol.__dict__) == AT_REST, (
        "Autobahn keeps more in its instances, or less. See what it is for; then it belongs into _AT_REST or "
        "_NOT_NEEDED of kraftek.fastpath, into _HANDSHAKE of kraftek.edge.websocket.factory, or here."
    )
    assert not [name for name in peer.protocol.__dict__ if "secret" in repr(peer.protocol.__dict__[name])]
    dropped = fastpath._AT_REST.keys() | fastpath._NOT_NEEDED.keys() | kraftek.edge.websocket.factory._HANDSHAKE
    assert set(whole) - AT_REST == dropped & set(whole)
    assert dropped - set(whole) == set(), "Autobahn does not set these any more"
    peer.send("plain")
    assert peer.read() == ["plain"]
    assert set(peer.protocol.__dict__) - AT_REST == {"heard"}


def test_state_at_rest_is_what_autobahn_sets(whole: dict[str, Any]) -> None:
    peer = Peer(echo_edge())
    assert {name: whole[name] for name in fastpath._AT_REST} == fastpath._AT_REST
    for name, value in fastpath._AT_REST.items():
        assert getattr(peer.protocol, name) == value
    assert not whole["send_queue"]
    assert fastpath._NOT_NEEDED["send_queue"] == ()


def test_what_differs_is_kept() -> None:
    class Differs:
        data = b""

    differs: Any = Differs()
    differs.__dict__ = {"data": b"half a frame", "closedByMe": True, "wasClean": False, "ours": 1, "spent": 2}
    fastpath.slim(differs, frozenset({"spent"}))
    assert differs.__dict__ == {"data": b"half a frame", "closedByMe": True, "ours": 1}


def test_every_setting_is_the_factorys() -> None:
    edge = echo_edge()
    protocol: Any = Peer(edge).protocol
    assert WebSocketServerProtocol.CONFIG_ATTRS
    for name in WebSocketServerProtocol.CONFIG_ATTRS:
        assert getattr(protocol, name) == getattr(edge.factory, name), name
    assert protocol.CONFIG_ATTRS == ()


def test_a_setting_that_is_a_function_is_called_without_a_self() -> None:
    edge = echo_edge()
    edge.factory.perMessageCompressionAccept = lambda offers: offers
    protocol: Any = object.__new__(configured(ClientProtocol, edge.factory))
    assert protocol.perMessageCompressionAccept(["offer"]) == ["offer"]


def conversations(peer: Peer) -> list[Any]:
    """All that a connection goes through."""
    answers: list[Any] = []
    for data in (
        frame(1, b"plain"),
        frame(1, b"in ", fin=False) + frame(9, b"?") + frame(0, b"pieces"),
        frame(2, b"\x00\xff"),
        frame(10, b"pong"),
        frame(1, b"half")[:5],
        frame(1, b"half")[5:] + frame(1, b"x" * 70_000)[:14],
    ):
        peer.protocol.dataReceived(data)
        answers.append([getattr(each, "data", each) for each in peer.read()])
    return answers


ANSWERS: list[Any] = [["plain"], [b"?", "in pieces"], [b"\x00\xff"], [], []]

CLOSING = 5.0
"""Seconds in which Autobahn's time-out of the closing handshake has gone off, cancelled or not."""


def test_a_slim_connection_goes_through_everything() -> None:
    edge = echo_edge()
    peer = Peer(edge)
    *answers, last = conversations(peer)
    assert answers == ANSWERS
    assert [last[0], last[1][0]] == ["half", 1009]
    peer.lose()
    edge.clock.advance(CLOSING)
    edge.done()


@pytest.mark.parametrize(
    ("data", "code"),
    [(frame(1, b"\xff"), 1007), (frame(3, b""), 1002), (frame(1, b"", rsv=4), 1002), (frame(8, b"\x0f\xa0"), 1000)],
    ids=["not UTF-8", "reserved opcode", "reserved bit", "the client closes"],
)
def test_a_slim_connection_ends_as_it_should(data: bytes, code: int) -> None:
    edge = echo_edge()
    peer = Peer(edge)
    peer.protocol.dataReceived(frame(1, b"before") + data)
    before, (found, _) = peer.read()
    assert (before, found) == ("before", code)
    peer.lose()
    edge.clock.advance(CLOSING)
    edge.done()
    assert edge.factory.countConnections == 0


def test_a_slim_connection_closes_by_itself() -> None:
    edge = echo_edge()
    peer = Peer(edge)
    peer.protocol.close(4400, "reason")
    assert peer.read() == [(4400, "reason")]
    peer.flush()
    assert peer.transport.closed
    assert peer.protocol.wasClean
    peer.lose()
    edge.done()


def test_without_any_of_it_the_edge_works_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kraftek.edge.websocket.factory, "slim", lambda *_: None)
    monkeypatch.setattr(
        kraftek.edge.websocket.factory, "configured", lambda protocol, _: type("Unconfigured", (protocol,), {})
    )
    monkeypatch.setattr("kraftek.edge.websocket.outbox.write_now", lambda transport, data: transport.write(data))
    monkeypatch.setattr("kraftek.edge.websocket.protocol.plain_messages", lambda *_: ([], 0))
    edge = echo_edge()
    peer = Peer(edge)
    assert {"http_headers", "is_open", "maxMessagePayloadSize"} <= set(peer.protocol.__dict__)
    *answers, last = conversations(peer)
    assert answers == ANSWERS
    assert [last[0], last[1][0]] == ["half", 1009]
    peer.lose()
    edge.clock.advance(CLOSING)
    edge.done()


# Compressed messages.


def compressing(limits: Limits | None = None) -> Peer:
    """A client that compresses what it sends."""
    offer = ClientPerMessageDeflateFactory(compress_settings={"level": 9})
    peer = Peer(echo_edge(limits, compression=True), extensions=[offer])
    [agreed] = peer.client.extensions
    assert isinstance(agreed, PerMessageDeflate)
    assert agreed.local_no_context_takeover
    return peer


def test_compressed_and_plain_messages_arrive_in_order() -> None:
    peer = compressing()
    peer.send("compressed " * 100)
    peer.protocol.dataReceived(frame(1, b"plain") + frame(1, b"plain too"))
    peer.send("compressed again " * 100)
    assert peer.read() == ["compressed " * 100, "plain", "plain too", "compressed again " * 100]
    compress: Any = peer.protocol
    assert compress._perMessageCompress.client_no_context_takeover
    assert compress._perMessageCompress._decompressor is None
    assert compress._perMessageCompress._compressor is None
    peer.lose()


def test_autobahn_would_keep_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or there would be nothing to release."""
    monkeypatch.setattr("kraftek.edge.websocket.protocol.release_window", lambda protocol: None)
    peer = compressing()
    peer.send("compressed")
    assert peer.read() == ["compressed"]
    protocol: Any = peer.protocol
    assert protocol._perMessageCompress._decompressor is not None

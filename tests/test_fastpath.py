"""What reaches past Twisted's public surface does what Twisted does, and is left out where Twisted is another.

A failure here after an upgrade of Twisted means that kraftek/fastpath.py was written for another version of it.
"""

from __future__ import annotations

import ast
import errno
import inspect
import os
import select
import signal
import socket
import struct
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.posixbase import PosixReactorBase
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock, LoopingCall
from twisted.internet.tcp import Connection, Server
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from kraftek.contract.errors import ConfigError
from kraftek.contract.guards import UnexpectedError
from kraftek.contract.iteration import Iteration
from kraftek.fastpath import check_driving, check_writing, drive, speed_up, wanted, write_at_once, write_now

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
    speed_up(made, made.iteration)
    assert made.iteration.driven
    assert made.iteration.write is write_now
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
        with capturedLogs() as logged:
            speed_up(other, iteration)
        assert not iteration.driven
        assert iteration.write is write_now
        assert logged == []
        assert getattr(other, "doIteration", None) == before
        for reader in other.removeAll() if isinstance(other, SelectReactor) else ():
            reader.connectionLost(Failure(ConnectionDone()))


# Another Twisted.


class OneBuffer(Connection):
    """Keeps what waits to be written in a buffer of its own."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.waits = b""

    def write(self, data: bytes) -> None:
        self.waits += data

    def writeSequence(self, data: Any) -> None:
        self.waits += b"".join(data)


class NoAside(Connection):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        del self._tempDataBuffer


class BytesAside(Connection):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._tempDataBuffer: Any = b""


class ConnectedAtOnce(Connection):
    connected = True


class TwoArguments(Connection):
    def __init__(self, skt: Any, protocol: Any) -> None:
        super().__init__(skt, protocol)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (OneBuffer, "what waits to be written is in neither buffer of OneBuffer"),
        (NoAside, "NoAside has no _tempDataBuffer"),
        (BytesAside, "_tempDataBuffer of BytesAside is b'', not []"),
        (ConnectedAtOnce, "connected of ConnectedAtOnce is True before it is"),
        (TwoArguments, "TypeError: "),
    ],
)
def test_nothing_is_written_at_once_to_another_kind_of_connection(
    other: type, why: str, monkeypatch: pytest.MonkeyPatch, wire: Wire
) -> None:
    monkeypatch.setattr(check_writing, "__defaults__", (other,))
    iteration = Iteration(Clock())
    with capturedLogs() as logged:
        write_at_once(iteration)
    [event] = logged
    assert str(formatEvent(event)).startswith(f"The fast path goes without writing at once: {why}")
    assert iteration.write(wire.near, b"as ever") is None
    assert wire.arrived() == b""
    wire.near.doWrite()
    assert wire.arrived() == b"as ever"


def do_poll(self: Any, timeout: float | None) -> None:
    self._look(EPollReactor.doPoll(self, timeout))


def do_read_or_write(self: Any, fd: int, event: int) -> None:
    pass


def without(name: str) -> property:
    """An attribute that is not there."""

    def missing(self: Any) -> None:
        raise AttributeError(name)

    return property(missing, lambda self, value: None)


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"_selectables": without("_selectables")}, "EPollReactor has no _selectables"),
        ({"_poller": without("_poller")}, "EPollReactor has no _poller"),
        ({"_POLL_IN": without("_POLL_IN")}, "EPollReactor has no _POLL_IN"),
        ({"doPoll": lambda self, timeout: None}, "doIteration of the reactor is not its doPoll"),
        ({"doPoll": do_poll, "doIteration": do_poll}, "do_poll uses _look, not"),
        ({"_doReadOrWrite": do_read_or_write}, "do_read_or_write takes (fd, event), not (selectable, fd, event)"),
        ({"_disconnectSelectable": None}, "TypeError: "),
    ],
)
def test_a_reactor_of_another_kind_is_not_driven(attributes: dict[str, Any], why: str) -> None:
    other: Any = type("EPollReactor", (EPollReactor,), attributes)
    reactor = object.__new__(other)
    reactor.__dict__.update({"_selectables": {}, "_poller": select.epoll()} if "_poller" not in attributes else {})
    iteration, before = Iteration(reactor), reactor.doIteration
    with capturedLogs() as logged:
        speed_up(reactor, iteration)
    [event] = logged
    assert str(formatEvent(event)).startswith(f"The fast path goes without driving the reactor: {why}")
    assert reactor.doIteration == before
    assert not iteration.driven
    assert iteration.write is write_now
    if "_poller" not in attributes:
        reactor._poller.close()


class Readahead(Server):
    def doRead(self) -> Any:
        return self._dataReceived(self._ahead or self.socket.recv(1))  # type: ignore[attr-defined]


def test_connections_that_are_read_otherwise_are_not_read_past(reactor: Any) -> None:
    del reactor.doIteration
    check_driving(reactor)
    with pytest.raises(UnexpectedError, match=r"^Readahead\.doRead uses _ahead, _dataReceived, not _dataReceived$"):
        check_driving(reactor, Readahead)


def test_what_is_not_driven_ends_its_turns_by_a_timer() -> None:
    reactor: Any = EPollReactor()
    flushes = Flushes(Iteration(reactor))
    reactor.callLater(0, flushes.ask)
    reactor.callLater(0.01, reactor.stop)
    run(reactor)
    assert flushes.count == 1
    for reader in reactor.removeAll():
        reader.connectionLost(CLOSED)
    reactor._poller.close()


@pytest.mark.parametrize(("value", "on"), [(None, True), ("", True), ("1", True), ("0", False)])
def test_a_variable_turns_it_off(value: str | None, on: bool) -> None:
    assert wanted({} if value is None else {"KRAFTEK_FASTPATH": value}) is on


@pytest.mark.parametrize("value", ["off", "false", "2", " "])
def test_other_values_of_it_are_mistakes(value: str) -> None:
    with pytest.raises(ConfigError, match=f"KRAFTEK_FASTPATH: expected 0 or 1, found {value!r}"):
        wanted({"KRAFTEK_FASTPATH": value})

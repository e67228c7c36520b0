"""Optional code that uses private parts of Twisted for speed: the gateway works the same without it.

Each part says why it exists and what it saves. :func:`speed_up` installs the parts whose guard finds the Twisted that
they were written for, and logs those that it leaves out. Called by the daemon, and by the service kit on Twisted, which
make the :class:`kraftek.contract.iteration.Iteration` that all writers share. (The counterpart for Autobahn is
:mod:`kraftek.edge.websocket.autobahn_internals`.)
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet import tcp
from twisted.logger import Logger
from twisted.python import log

from kraftek.contract.errors import ConfigError
from kraftek.contract.guards import (
    UnexpectedError,
    expect_names,
    expect_parameters,
    expect_private_names,
    expect_values,
    usable,
)
from kraftek.contract.iteration import Iteration

__all__ = ["check_driving", "check_writing", "drive", "speed_up", "wanted", "write_at_once", "write_now"]

_SWITCH = "KRAFTEK_FASTPATH"

_log = Logger()


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment, like ``os.environ``, leaves the fast path on. Raises ``ConfigError``."""
    switch = environ.get(_SWITCH, "")
    if switch not in ("", "0", "1"):
        raise ConfigError([f"{_SWITCH}: expected 0 or 1, found {switch!r}"])
    return switch != "0"


def speed_up(reactor: Any, iteration: Iteration) -> None:
    """Install the parts that fit: ``iteration`` writes at once, and is driven by the reactor."""
    write_at_once(iteration)
    # Not imported: there is no epoll but on Linux.
    if type(reactor).__name__ == "EPollReactor" and usable(
        "driving the reactor", lambda: check_driving(reactor), _log.warn
    ):
        drive(reactor, iteration)


def write_at_once(iteration: Iteration) -> None:
    """Have ``iteration`` write at once, on any reactor."""
    if usable("writing at once", check_writing, _log.warn):
        iteration.write = write_now


def write_now(transport: Any, data: bytes) -> Callable[[bytes], int] | None:
    """Write ``data``, at once where nothing waits to be written.

    ``transport.write`` wakes the reactor: the ``send`` follows two ``epoll_ctl`` and an iteration later. For a TCP
    socket whose buffers are empty the ``send`` alone is enough, and costs about half of that for each message of a
    broadcast. TLS has a transport of its own over TCP's, and is written to as usual.

    Returns that ``send`` when it took everything: until the next write to the transport its caller need not look at
    the transport again, whose dictionary is out of the processor's caches by the next broadcast. That, and not to
    look at Autobahn's protocol either, made a delivery in a room of 1,000 cost 11.3 µs instead of 13.5.
    """
    if (
        isinstance(transport, tcp.Connection)
        and transport.connected
        and not transport.dataBuffer
        and not transport._tempDataBuffer  # noqa: SLF001
    ):
        send = transport.socket.send
        try:
            sent = send(data)
        except OSError:
            sent = 0  # Twisted will find out what is wrong, or wait
        if sent == len(data):
            return send
        data = data[sent:]
    transport.write(data)
    return None


class _Idle:
    """A reactor that is asked to write, and never does."""

    def addWriter(self, writer: object) -> None:
        pass


def check_writing(connection: Any = tcp.Connection) -> None:
    """Raises :class:`UnexpectedError` where :func:`write_now` could overtake what waits in a connection's buffers."""
    ways: list[Callable[[Any], None]] = [
        lambda made: made.write(b"x"),
        lambda made: made.writeSequence([b"x"]),
    ]
    for write in ways:
        with socket.socket() as unconnected:
            made = connection(unconnected, None, _Idle())
            expect_values(made, {"dataBuffer": b"", "_tempDataBuffer": [], "socket": unconnected})
            if made.connected:
                raise UnexpectedError(f"connected of {connection.__name__} is {made.connected!r} before it is")
            made.connected = 1
            write(made)
            if not made.dataBuffer and not made._tempDataBuffer:  # noqa: SLF001
                raise UnexpectedError(f"what waits to be written is in neither buffer of {connection.__name__}")


def drive(reactor: Any, iteration: Iteration) -> None:
    """Have ``EPollReactor`` call ``iteration.end()`` after every iteration.

    In place of its ``doPoll``, which wraps each call in a context for the prefix of old-style log lines: 3 to 5 µs for
    each socket that has something to read. What a TCP client sends goes straight to its protocol, and not through four
    functions more: another 1 µs. Ending the iteration here saves a timer, which costs as much again.
    """
    poll, selectables = reactor._poller.poll, reactor._selectables  # noqa: SLF001
    read_or_write, disconnect = reactor._doReadOrWrite, reactor._disconnectSelectable  # noqa: SLF001
    readable = reactor._POLL_IN  # noqa: SLF001

    def read(selectable: Any, fd: int) -> None:
        try:
            data = selectable.socket.recv(selectable.bufferSize)
        except OSError:
            data = b""
        if not data:
            read_or_write(selectable, fd, readable)  # it finds the same, and knows what to do about it
            return
        try:
            selectable.protocol.dataReceived(data)
        except BaseException as why:  # noqa: BLE001  # as Twisted has it
            log.err()
            disconnect(selectable, why, False)

    def do_iteration(timeout: float | None) -> None:
        iteration.end()  # what timers left
        try:
            events = poll(-1 if timeout is None else timeout, len(selectables))
        except OSError as error:
            if error.errno == errno.EINTR:
                return
            raise
        for fd, event in events:
            selectable = selectables.get(fd)
            if event == readable and type(selectable) is tcp.Server:
                read(selectable, fd)
            elif selectable is not None:
                read_or_write(selectable, fd, event)
        iteration.end()

    iteration.driven = True
    reactor.doIteration = do_iteration


def check_driving(reactor: Any, server: Any = tcp.Server) -> None:
    """Raises :class:`UnexpectedError` where :func:`drive` cannot stand in for the reactor's ``doPoll``, or its ``read``
    for the ``doRead`` of a server's connections.
    """
    expect_names(reactor, "doPoll", "doIteration", "_poller", "_selectables", "_POLL_IN")
    if reactor.doIteration != reactor.doPoll:
        raise UnexpectedError("doIteration of the reactor is not its doPoll")
    expect_parameters(reactor.doPoll, "timeout")
    expect_private_names(reactor.doPoll, "_poller", "_selectables", "_doReadOrWrite")
    expect_parameters(reactor._doReadOrWrite, "selectable", "fd", "event")  # noqa: SLF001
    expect_parameters(reactor._disconnectSelectable, "selectable", "why", "isRead", "faildict")  # noqa: SLF001
    expect_names(reactor._poller, "poll")  # noqa: SLF001
    expect_names(reactor._selectables, "get")  # noqa: SLF001
    expect_names(server, "bufferSize")
    expect_private_names(server.doRead, "_dataReceived")

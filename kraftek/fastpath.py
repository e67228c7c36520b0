"""What reaches past the public surface of Twisted and Autobahn, for speed. Without it the gateway works the same.

Each part says why it is there and what it saves; ``tests/test_fastpath.py`` fails when a library changed under it.
Called by the WebSocket edge and the Redis bus.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from twisted.internet import tcp
from twisted.python import log

from kraftek.contract.iteration import Iteration

__all__ = ["configured", "drive", "plain_messages", "release_window", "slim", "write_now"]

_TEXT = 0x81
_MASKED = 0x80

_LONG = 1536
"""Bytes from which a call into Autobahn's C masker (9 µs, whatever the size) beats an XOR of long integers (4 ns
a byte)."""


def plain_messages(data: bytes, limit: int, unmask: Callable[[bytes, bytes], bytes]) -> tuple[list[bytes], int]:
    """The text messages at the beginning of ``data`` that are one whole masked frame each, and the bytes they take.

    Stops at whatever else there is: fragments, control frames, other opcodes, bits that an extension defines, messages
    of more than ``limit`` bytes or of 64 KiB, and text that is not UTF-8 are Autobahn's, which slices its whole buffer
    for each frame and spends some 20 µs on it. ``unmask(mask, payload)`` is called for long payloads.
    """
    messages: list[bytes] = []
    start, end = 0, len(data)
    while end - start >= 6 and data[start] == _TEXT:
        size = data[start + 1] - _MASKED
        at = start + 2
        if size < 0 or size == 127:
            break
        if size == 126:
            size = int.from_bytes(data[at : at + 2], "big")
            at += 2
            if size < 126:
                break
        stop = at + 4 + size
        if stop > end or size > limit:
            break
        mask = data[at : at + 4]
        payload = data[at + 4 : stop]
        if size < _LONG:
            masked = int.from_bytes(payload, "little")
            payload = (masked ^ int.from_bytes((mask * (size // 4 + 1))[:size], "little")).to_bytes(size, "little")
        else:
            payload = unmask(mask, payload)
        if not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError:
                break
        messages.append(payload)
        start = stop
    return messages, start


def write_now(transport: Any, data: bytes) -> Callable[[bytes], int] | None:
    """Write ``data``, at once where nothing waits to be written.

    ``transport.write`` wakes the reactor: two ``epoll_ctl`` and a turn later comes the ``send``. For a TCP socket whose
    buffers are empty the ``send`` alone does, and costs about half of that for each message of a broadcast. TLS has a
    transport of its own over TCP's, and is written to as usual.

    Gives that ``send`` when it took everything: until somebody writes to the transport, whoever keeps it need not look
    at the transport again, whose dictionary is out of the processor's caches by the next broadcast. That, and not to
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


def drive(reactor: Any, iteration: Iteration) -> None:
    """Have the reactor call ``turn.end()`` after every turn; nothing, for another reactor than Linux's own.

    In place of ``EPollReactor.doPoll``, which wraps each call in a context for the prefix of old-style log lines:
    3 to 5 µs for each socket that has something to read. What a TCP client sends goes straight to its protocol, and not
    through four functions more: another 1 µs. Ending the turn here saves a timer, as much again a turn.
    """
    if type(reactor).__name__ != "EPollReactor":  # not imported: there is no epoll but on Linux
        return
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


def release_window(protocol: Any) -> None:
    """Give back what decompressing a message took; Autobahn keeps it until the next: 40 KiB a connection."""
    protocol._perMessageCompress._decompressor = None  # noqa: SLF001


class _Nobody:
    """Stands where Autobahn fires a Deferred that nobody waits for."""

    def callback(self, result: object) -> None:
        """Take it for done."""


_NOBODY = _Nobody()

_AT_REST = {
    "autoPingPending": None,
    "autoPingPendingCall": None,
    "autoPingPendingSent": None,
    "autoPingPendingSeq": 0,
    "autoPingTimeoutCall": None,
    "closeHandshakeTimeoutCall": None,
    "closedByMe": False,
    "current_frame": None,
    "data": b"",
    "droppedByMe": False,
    "failedByMe": False,
    "inside_message": False,
    "localCloseCode": None,
    "localCloseReason": None,
    "openHandshakeTimeoutCall": None,
    "remoteCloseCode": None,
    "remoteCloseReason": None,
    "send_state": 0,
    "trackedTimings": None,
    "triggered": False,
    "wasClean": False,
    "wasCloseHandshakeTimeout": False,
    "wasMaxFramePayloadSizeExceeded": False,
    "wasMaxMessagePayloadSizeExceeded": False,
    "wasNotCleanReason": None,
    "wasOpenHandshakeTimeout": False,
    "wasServerConnectionDropTimeout": False,
    "wasServingFlashSocketPolicyFile": False,
    "websocket_version": 13,
    "_perMessageCompress": None,
}
"""Of an open connection on which nothing happens, the state that Autobahn keeps in the instance."""

_NOT_NEEDED = {
    "is_closed": _NOBODY,
    "is_open": _NOBODY,
    "send_queue": (),  # of chopped and synchronous sends, which there are none of
    "_transport_details": None,
    "_valid_events": None,
}
"""What Autobahn keeps in the instance beside that and nobody here looks at, and what does in its place."""


def configured(protocol: type, factory: Any) -> type:
    """The protocol class with the factory's configuration, and Autobahn's state at rest, as class attributes.

    Autobahn copies some thirty settings into every instance and formats them for a debug line that nobody reads: two
    thirds of the cost of accepting a client.
    """
    settings = {name: getattr(factory, name) for name in protocol.CONFIG_ATTRS}  # type: ignore[attr-defined]
    static = {name: staticmethod(value) if callable(value) else value for name, value in settings.items()}
    return type(protocol.__name__, (protocol,), {**_AT_REST, **_NOT_NEEDED, **static, "CONFIG_ATTRS": ()})


def slim(protocol: Any, forget: frozenset[str]) -> None:
    """Keep of an open connection only what differs from its class, and not what it should ``forget``.

    A dictionary of some eighty entries, two Deferreds, a deque and a handful of counters: about 5 KiB a connection.
    """
    protocol.__dict__ = {
        name: value
        for name, value in protocol.__dict__.items()
        if name not in forget and name not in _NOT_NEEDED and not (name in _AT_REST and value == _AT_REST[name])
    }

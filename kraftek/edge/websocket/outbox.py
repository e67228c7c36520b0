"""The frames for one WebSocket client: those of its session's link, and those of Autobahn itself.

Made by :class:`kraftek.edge.websocket.protocol.ClientProtocol` for its connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from kraftek.contract.interfaces import IClientLink
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Outgoing
from kraftek.edge.websocket.frames import deflated_wire, frame, wire

__all__ = ["Connection", "Outbox"]

_PING = frame(0x89, b"")
"""The same for all. With Autobahn making each, and parsing its answer, the two took 61 µs; now they take 29."""


class Connection(Protocol):
    """The WebSocket connection that an outbox writes for."""

    transport: Any

    def close(self, code: int, reason: str) -> None:
        """Send what was written, then a close frame."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Read again."""

    def slow(self, seconds: float) -> None:
        """Stop reading for so long."""

    def overrun(self) -> None:
        """The send buffer is full: send the last message, and close."""


@implementer(IClientLink, IPushProducer)
class Outbox:
    """Whole frames for one client: those of one reactor iteration are sent in one write at its end, or at once if they
    are the last ones.

    It is its transport's push producer: while it is paused it is ``blocked``, and frames stay here, within ``limit``
    bytes, until the client reads again. Nothing else writes to the transport as long as it is ``open``.
    ``window_bits`` is set when messages are to be compressed.

    It is small and by itself because a broadcast touches one for each client: Autobahn's protocols and Twisted's
    transports are large dictionaries, and to look into those took 2 µs of the 13 that a delivery cost.
    """

    __slots__ = (
        "_iteration",
        "_limit",
        "_pending",
        "_protocol",
        "_send",
        "_transport",
        "_unsent",
        "blocked",
        "open",
        "peer",
        "window_bits",
    )

    def __init__(self, protocol: Connection, iteration: Iteration, limit: int) -> None:
        self.peer = ""
        self.open = True
        self.blocked = False
        self.window_bits = 0
        self._protocol = protocol
        self._iteration = iteration
        self._transport = protocol.transport
        self._limit = limit
        # Most iterations bring a client one message, or none.
        self._pending: bytes | list[bytes] | None = None
        self._unsent = 0
        # What sends, as long as nothing is in the way: it is open, the transport has nothing to write, and there is
        # nothing to compress. Then a broadcast reads this, ``_pending`` and ``_iteration`` alone: one cache line.
        self._send: Callable[[bytes], int] | None = None

    # The link of a session.

    def write(self, outgoing: Outgoing) -> None:
        send = self._send
        if send is not None and self._pending is None:
            data = outgoing.wire or wire(outgoing)
            if self._iteration.ending:
                # As in flush(): returning to thousands of these at the end of the iteration would take longer.
                try:
                    sent = send(data)
                except OSError:
                    sent = 0
                if sent == len(data):
                    return
                data = data[sent:]
            self._pending = data
            self._iteration.at_end(self)
        elif self.open:
            bits = self.window_bits
            data = deflated_wire(outgoing, bits) if bits else outgoing.wire or wire(outgoing)
            if self.blocked:
                self._unsent += len(data)
                if self._unsent > self._limit:
                    self._pending = None
                    self._protocol.overrun()
                    return
            self.put(data)

    def close(self, code: int, reason: str) -> None:
        if self.open:
            self._protocol.close(code, reason)

    def pause(self) -> None:
        if self.open:
            self._protocol.pause()

    def resume(self) -> None:
        if self.open:
            self._protocol.resume()

    def slow(self, seconds: float) -> None:
        if self.open:
            self._protocol.slow(seconds)

    # Called by the protocol and at the end of the iteration.

    def put(self, data: bytes) -> None:
        """Send whole frames after all that was written before."""
        pending = self._pending
        if not self.open:
            return
        if pending is None:
            self._pending = data
            if not self.blocked:
                self._iteration.at_end(self)
        elif isinstance(pending, list):
            pending.append(data)
        else:
            self._pending = [pending, data]

    def ping(self) -> None:
        """Send a ping. It goes ahead of what waits here, so that a slow reader gets it in time to answer."""
        if self.open and self.blocked:
            self._transport.write(_PING)
        else:
            self.put(_PING)

    def flush(self) -> None:
        """The iteration ends, or the client reads again."""
        data, send = self._pending, self._send
        if data is None or (send is None and self.blocked):
            return
        self._pending = None
        if isinstance(data, list):
            data = b"".join(data)
        if send is not None:
            try:
                sent = send(data)
            except OSError:
                sent = 0  # Twisted will find out what is wrong, or wait
            if sent == len(data):
                return
            data = data[sent:]
        send = self._iteration.write(self._transport, data)
        self._send = None if self.window_bits else send

    def finish(self) -> None:
        """What was written goes out before the transport closes, whether the client reads it or not; nothing more."""
        data = self._taken()
        self.open = False
        self._send = None
        if data:
            self._transport.write(data)

    def lost(self) -> None:
        """The connection was lost."""
        self._taken()
        self.open = False
        self._send = None
        # It holds this one too, and is large: it must not wait for the collector of cycles.
        del self._protocol

    def _taken(self) -> bytes:
        pending, self._pending = self._pending, None
        if isinstance(pending, list):
            return b"".join(pending)
        return pending or b""

    # The producer of its transport.

    def pauseProducing(self) -> None:
        self.blocked = True
        self._unsent = 0
        self._send = None

    def resumeProducing(self) -> None:
        self.blocked = False
        self.flush()

    def stopProducing(self) -> None:
        self._taken()

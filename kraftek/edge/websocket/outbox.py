"""The frames for one WebSocket client: those of its session's link, and those of Autobahn itself.

Made by :class:`kraftek.edge.websocket.protocol.ClientProtocol` for its connection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from kraftek.contract.interfaces import IClientLink, IMovableLink
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Gap, Outgoing
from kraftek.edge.backlogs import Backlogs
from kraftek.edge.sockets import plain_transport, unwritten
from kraftek.edge.websocket.frames import deflated_wire, frame, wire
from kraftek.edge.websocket.moving import SocketState, encode
from kraftek.edge.websocket.unsent import CHUNK, Unsent

__all__ = ["Connection", "Outbox"]

_AT_ONCE = 16
"""Chunks that are sent to a client in one go: so many take a millisecond."""

_PING = frame(0x89, b"")
"""The same for all. With Autobahn making each, and parsing its answer, the two took 61 µs; now they take 29."""


class Connection(Protocol):
    """The WebSocket connection that an outbox writes for."""

    transport: Any
    heard: bool
    counted_as: str | None
    slot: int

    def freeze(self) -> bool:
        """Read nothing more, unless this is in the middle of a message."""

    def thaw(self) -> None:
        """Go on."""

    def unread(self) -> bytes:
        """What was read and not handled."""

    def close(self, code: int, reason: str) -> None:
        """Send what was written, then a close frame."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Read again."""

    def slow(self, seconds: float) -> None:
        """Stop reading for so long."""

    def give_up(self) -> None:
        """The client does not read: send the last message, and close."""

    def gap(self, gap: Gap) -> Outgoing | None:
        """The message that says what the client missed."""


@implementer(IClientLink, IMovableLink, IPushProducer)
class Outbox:
    """Whole frames for one client: those of one reactor iteration are sent in one write at its end, or at once if they
    are the last ones.

    It is its transport's push producer: while it is paused it is ``blocked``, and messages wait here until the client
    reads again, as ``backlogs`` says. A message that is too large for the transport is given to it in chunks. Nothing
    else writes to the transport as long as it is ``open``. ``window_bits`` is set when messages are to be compressed.

    It is small and by itself because a broadcast touches one for each client: Autobahn's protocols and Twisted's
    transports are large dictionaries, and to look into those took 2 µs of the 13 that a delivery cost.
    """

    __slots__ = (
        "_backlogs",
        "_iteration",
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

    def __init__(self, protocol: Connection, iteration: Iteration, backlogs: Backlogs) -> None:
        self.peer = ""
        self.open = True
        self.blocked = False
        self.window_bits = 0
        self._protocol = protocol
        self._iteration = iteration
        self._transport = protocol.transport
        self._backlogs = backlogs
        # Most iterations bring a client one message, or none.
        self._pending: bytes | list[bytes] | None = None
        # What waits for the transport: from its pause on until there is nothing left.
        self._unsent: Unsent | None = None
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
                if sent < len(data):
                    self._write_rest(data, sent)
                return
            self._pending = data
            self._iteration.at_end(self)
        elif self.open:
            unsent, bits = self._unsent, self.window_bits
            if unsent is None:
                self.put(deflated_wire(outgoing, bits) if bits else outgoing.wire or wire(outgoing))
            elif not unsent.backlog.put(outgoing):
                self._protocol.give_up()

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

    # For another version of the gateway.

    @property
    def movable(self) -> bool:
        return self.open and plain_transport(self._transport) is not None

    def freeze(self) -> bool:
        return not self.open or self._protocol.freeze()

    def thaw(self) -> None:
        if self.open:
            if self._unsent is not None:
                self._drain(self._unsent)
            self._protocol.thaw()

    def give(self, engine: bytes | None = None) -> tuple[int, bytes]:
        transport, protocol = plain_transport(self._transport), self._protocol
        assert transport is not None
        begun = unwritten(transport)
        unsent = [] if self._unsent is None else self._unsent.left()
        if begun and self._unsent is not None and self._unsent.is_cut:
            begun, unsent = begun + unsent[0], unsent[1:]
        pending = self._pending if isinstance(self._pending, list) else [self._pending or b""]
        state = SocketState(
            peer=self.peer,
            counted_as=protocol.counted_as,
            unread=protocol.unread(),
            unsent=[frames for frames in (begun, *unsent, *pending) if frames],
            window_bits=self.window_bits,
            slot=protocol.slot,
            engine=engine,
        )
        return transport.fileno(), encode(state)

    def restore(self, state: SocketState) -> None:
        """Go on with what another version has given. Nothing is sent before :meth:`thaw`."""
        self.peer = state.peer
        if state.unsent:
            self._begin().begin(state.unsent)

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
        """Send a ping. It goes ahead of what waits here, so that a slow reader gets it in time to answer; but not into
        a message that the transport has the beginning of. As long as the client takes more of that, it is there.
        """
        unsent = self._unsent
        if unsent is not None and unsent.is_cut:
            unsent.insert(_PING)
        elif self.open and self.blocked:
            self._transport.write(_PING)
        else:
            self.put(_PING)

    def flush(self) -> None:
        """The iteration ends."""
        data, send = self._pending, self._send
        if data is None or (send is None and self.blocked):
            return
        self._pending = None
        if isinstance(data, list):
            frames, data = data, b"".join(data)
            if len(data) > CHUNK:
                # Not this copy: the frames are everybody's.
                self._write_chunks(frames)
                return
        if send is not None:
            try:
                sent = send(data)
            except OSError:
                sent = 0  # Twisted will find out what is wrong, or wait
            if sent < len(data):
                self._write_rest(data, sent)
        elif len(data) <= CHUNK:
            send = self._iteration.write(self._transport, data)
            self._send = None if self.window_bits else send
        else:
            self._write_chunks((data,))

    def finish(self) -> None:
        """What was written goes out before the transport closes, whether the client reads it or not; nothing more."""
        self.open = False
        self._send = None
        unsent, self._unsent = self._unsent, None
        if unsent is not None:
            while chunk := unsent.next_chunk():
                self._transport.write(chunk)
            unsent.abandon()
        if data := self._taken():
            self._transport.write(data)

    def abandon(self, most: int) -> bool:
        """Forget what waits, but for the rest of a message that the transport has the beginning of. ``False``: that has
        more than ``most`` bytes, and nothing can follow it in time.
        """
        unsent, self._unsent = self._unsent, None
        rest = b"" if unsent is None else unsent.abandon()
        if len(rest) > most:
            self.stopProducing()
            self.open = False
            return False
        self._pending = rest or None
        return True

    def lost(self) -> None:
        """The connection was lost."""
        self.stopProducing()
        self.open = False
        self._send = None
        # It holds this one too, and is large: it must not wait for the collector of cycles.
        del self._protocol

    def _taken(self) -> bytes:
        pending, self._pending = self._pending, None
        if isinstance(pending, list):
            return b"".join(pending)
        return pending or b""

    def _write_rest(self, data: bytes, sent: int) -> None:
        """The kernel took so many bytes of these frames, and no more."""
        self._send = None
        if len(data) - sent <= CHUNK:
            self._transport.write(data[sent:])
        else:
            self._write_chunks((data,), sent)

    def _write_chunks(self, frames: Sequence[bytes], sent: int = 0) -> None:
        unsent = self._begin()
        unsent.begin(frames, sent)
        self._drain(unsent)

    def _begin(self) -> Unsent:
        unsent = self._unsent = Unsent(self._backlogs.begin(self._protocol), self.window_bits)
        return unsent

    def _drain(self, unsent: Unsent) -> None:
        """Write what waits, until the transport takes no more."""
        chunks, send = 0, None
        while not self.blocked and (chunk := unsent.next_chunk()):
            chunks += 1
            if chunks <= _AT_ONCE:
                send = self._iteration.write(self._transport, chunk)
            else:
                # The reactor asks for more when it has been around.
                self._transport.write(chunk)
        if not self.blocked:
            unsent.abandon()
            self._unsent = None
            self._send = None if self.window_bits else send

    # The producer of its transport.

    def pauseProducing(self) -> None:
        self.blocked = True
        self._send = None
        if self._unsent is None and self.open:
            unsent = self._begin()
            if pending := self._taken():
                unsent.begin((pending,))

    def resumeProducing(self) -> None:
        self.blocked = False
        unsent = self._unsent
        if unsent is not None:
            unsent.backlog.progress = self._backlogs.clock.seconds()
            if unsent.is_cut:
                self._protocol.heard = True
            self._drain(unsent)
        self.flush()

    def stopProducing(self) -> None:
        self._taken()
        unsent, self._unsent = self._unsent, None
        if unsent is not None:
            unsent.abandon()

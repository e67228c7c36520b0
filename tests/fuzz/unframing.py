"""WebSocket frames on an open connection: the fast path and Autobahn alone do the same, however they are cut."""

from __future__ import annotations

from functools import cache
from typing import Any

import txaio.tx
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from kraftek.contract.interfaces import IClientLink
from kraftek.contract.messages import Gap, Outgoing
from kraftek.contract.settings import Limits
from kraftek.contract.turns import Turns
from kraftek.edge.websocket.deflate import Deflate
from tests.edge.websocket.edge import Edge, RecordingTransport
from tests.fuzz.material import cut
from tests.fuzz.watch import Target

__all__ = ["TARGET"]

_LIMITS = (100, 1000, 70_000)
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
_DEFLATE = Deflate("permessage-deflate; client_no_context_takeover", 15)
_REFUSED = (1007, 1009)
"""Close codes of a message that cannot be read, and of one that is too large."""
_LINGER = 20.0
"""Seconds after which no timer of a connection that is gone may be left."""


class _Echo:
    """A session that says what it hears, and takes messages of ``limit`` bytes at most."""

    def __init__(self, link: IClientLink, limit: int) -> None:
        self._link = link
        self._limit = limit
        self.received: list[tuple[bytes, bool]] = []

    def receive(self, data: bytes, binary: bool = False) -> None:
        assert len(data) <= self._limit, f"a message of {len(data)} bytes"
        if not binary:
            data.decode()
        self.received.append((data, binary))
        self._link.write(Outgoing(b"", (data,)) if binary else Outgoing(data))

    def charge(self, events: int, size: int) -> None:
        assert events >= 0
        assert size >= 0

    def lost(self) -> None:
        pass

    def overrun(self) -> Outgoing | None:
        return None

    def gap(self, gap: Gap) -> Outgoing | None:
        return None


class _Slow:
    """A clock by which everything takes long, so that each client has a step at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._passed = 0.0

    def seconds(self) -> float:
        self._passed += 0.002
        return self._clock.seconds() + self._passed

    def callLater(self, seconds: float, *what: Any) -> Any:
        return self._clock.callLater(seconds, *what)


@cache
def _edge(limit: int, compression: bool, fastpath: bool, slow: bool) -> Edge:
    edge = Edge(limits=Limits(message_bytes=limit), compression=compression, fastpath=fastpath)
    if slow:
        edge.factory.turns = Turns(_Slow(edge.clock), edge.backlogs.accounts)  # type: ignore[arg-type]
    edge.factory.open_session = lambda link, *_: _Echo(link, limit)  # type: ignore[assignment]
    return edge


def _conversation(reads: list[bytes], limit: int, deflate: bool, *, fastpath: bool, slow: bool, rests: bool) -> Any:
    """What the session received, what the client was sent, and how the connection ended. ``rests``: a turn of the
    reactor passes between two reads.
    """
    edge = _edge(limit, deflate, fastpath, slow)
    # Autobahn's timers follow this.
    txaio.tx.config.loop = edge.clock  # type: ignore[assignment]
    transport = RecordingTransport()
    protocol: Any = edge.factory.buildProtocol(None)
    transport.connect(protocol)
    protocol.peer, protocol.message_limit = "peer", limit
    protocol.begin(_KEY, None, _DEFLATE if deflate else None)
    edge.settle()
    transport.clear()
    session = protocol.session
    for data in reads:
        protocol.dataReceived(data)
        if rests:
            edge.settle()
    edge.settle()
    sent, closed = _without_reason(transport.value()) if deflate else transport.value(), transport.closed
    protocol.connectionLost(Failure(ConnectionDone()))
    edge.clock.advance(_LINGER)
    edge.done()
    assert len(edge.factory.turns) == 0
    assert edge.backlogs.accounts.total == 0
    return session.received, sent, closed


def _without_reason(sent: bytes) -> bytes:
    """The same without why a message was refused. One that is compressed can have two faults, such as a byte that is no
    UTF-8 in front of what cannot be decompressed: which of them is met first depends on how much is decompressed at a
    time, because zlib gives out nothing of what it fails in.
    """
    at = 0
    while at < len(sent):
        size, width = sent[at + 1], 0
        if size > 125:
            width = {126: 2, 127: 8}[size]
            size = int.from_bytes(sent[at + 2 : at + 2 + width])
        payload = at + 2 + width
        if sent[at] == 0x88 and int.from_bytes(sent[payload : payload + 2]) in _REFUSED:
            return sent[:at] + b"refused" + sent[payload + size :]
        at = payload + size
    return sent


def _run(data: bytes) -> None:
    how, where, data = sum(data[:1]), sum(data[1:2]), data[2:]
    limit, deflate = _LIMITS[how % 3], bool(how & 0x80)
    found = _conversation([data] if data else [], limit, deflate, fastpath=True, slow=False, rests=True)
    received, sent, _ = found
    size = sum(len(message) for message, _ in received)
    assert len(sent) <= 3 * size + 10 * len(received) + 3 * len(data) + 200, f"{len(sent)} bytes for {len(data)}"
    pieces = cut(data, where or int(len(data) > 500))  # a long one byte by byte would take long
    for fastpath in (True, False):
        other = _conversation(pieces, limit, deflate, fastpath=fastpath, slow=True, rests=bool(how & 0x40))
        assert other == found, f"{'fast' if fastpath else 'plain'}, {len(pieces)} reads: {other}; whole: {found}"


def _frame(first: int, payload: bytes, mask: bytes = b"\0\0\0\0") -> bytes:
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes((first,)) + length + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


_TEXT = _frame(0x81, b"plain")
_CONVERSATIONS = (
    _TEXT + _frame(0x81, "é".encode()) + _frame(0x81, b"masked", b"mask"),
    _frame(0x01, b"in ") + _frame(0x89, b"?") + _frame(0x00, b"") + _frame(0x80, b"pieces") + _TEXT,
    _frame(0x82, b"\0\xff") + _frame(0x8A, b"") + _frame(0x8A, b"pong") + _TEXT,
    _TEXT + _frame(0x88, b"\x03\xe8bye") + _TEXT,
    _TEXT + _frame(0x81, b"\xc3\x28") + _TEXT,
    _frame(0x01, b"\xc3") + _frame(0x80, b"\xa9") + _frame(0x01, b"\xc3") + _frame(0x88, b"") + _frame(0x80, b"\xa9"),
    _TEXT + _frame(0x81, b"x" * 126) + _TEXT,
    _frame(0x81, b"x" * 100) + _frame(0x82, b"x" * 101),
    _frame(0xC1, b"\xcaH\xcd\xc9\xc9\x07\x00") + _TEXT,
    _frame(0x41, b"\xcaH") + _frame(0x89, b"") + _frame(0x80, b"\xcd\xc9\xc9\x07\x00") + _TEXT,
    _frame(0xC1, b"KL\xa4\x05\x00\x00") + _frame(0xC1, b"\xff\xff"),
    _frame(0x01, b"") + 5 * _frame(0x00, b"") + _frame(0x80, b"x"),
    _frame(0x83, b"") + _TEXT,
    b"\x81\x05plain" + _TEXT,
    b"\x81\xff\0\0\0\0\0\1\0\0\0\0\0\0" + 20 * b"x",
    b"\x81\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x81\xfe\0\5\0\0\0\0plain",
)
_SEEDS = [bytes((how, 7)) + conversation for conversation in _CONVERSATIONS for how in (0, 0x81)]

TARGET = Target("unframing", _run, _SEEDS, calls=(10_000, 400), memory=(2_000_000, 2_000))

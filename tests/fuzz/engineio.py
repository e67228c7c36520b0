"""Engine.IO: payloads fall into packets as the protocol says; a session does what its table says, in any order."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from kraftek.contract.messages import Outgoing
from kraftek.edge.engineio.connection import ConnectionState, EngineSession, EngineSettings
from kraftek.edge.engineio.packets import (
    EngineError,
    ErrorCode,
    Packet,
    PacketKind,
    decode_packet,
    decode_payload,
    encode_binary,
    encode_message,
    encode_payload,
)
from tests.fuzz.watch import Target

__all__ = ["TARGET"]

_SETTINGS = EngineSettings(max_payload=300)


def _packets(pieces: Iterable[bytes]) -> tuple[list[Packet], EngineError | None]:
    """Those before the first that is malformed, and what is wrong with that."""
    packets: list[Packet] = []
    try:
        packets.extend(map(decode_packet, pieces))
    except EngineError as error:
        return packets, error
    return packets, None


def _check_payload(body: bytes) -> None:
    packets: list[Packet] = []
    refused: EngineError | None = None
    try:
        packets.extend(decode_payload(body))
    except EngineError as error:
        refused = error
    try:
        body.decode()
    except UnicodeDecodeError:
        assert refused is not None
        assert not packets
        return
    expected, wrong = _packets(body.split(b"\x1e"))
    assert (packets if refused is None else packets[: len(expected)]) == expected
    assert (refused is None) == (wrong is None)
    if refused is not None:
        assert refused.code is ErrorCode.BAD_REQUEST
        assert len(refused.body) < 100
    messages = [packet for packet in packets if packet.kind is PacketKind.MESSAGE]
    if messages:
        encoded = encode_payload(
            encode_binary(packet.data) if packet.binary else encode_message(packet.data) for packet in messages
        )
        assert list(decode_payload(encoded)) == messages


class _Client:
    """Plays a script with a session, a line a step, and sees what comes of it."""

    def __init__(self, websocket: bool) -> None:
        self.now = 0.0
        self.session = EngineSession("sid", _SETTINGS, 0.0, websocket=websocket)
        self.sent: list[bytes] = []
        self.told: list[bytes] = []
        self.polls = self.answers = 0
        self.posts = False
        self.settle()

    def settle(self) -> None:
        """What the session has to say is said."""
        session = self.session
        payload = session.payload()
        if payload is not None:
            self.answers += 1
            self.told += [packet.data for packet in decode_payload(payload) if packet.kind is PacketKind.MESSAGE]
        for frame in session.frames():
            assert decode_packet(frame.text).kind in PacketKind
            if frame.text.startswith(b"4"):
                self.told.append(frame.text[1:])
        assert self.told == self.sent[: len(self.told)]
        assert self.answers <= self.polls
        assert session.state in ConnectionState
        if session.state is ConnectionState.CLOSED:
            assert session.payload() is None
            assert session.deadline == inf
            assert session.reason is not None

    def play(self, step: bytes) -> None:  # noqa: C901  # a table of steps
        """One step. Raises :class:`EngineError` as the session does."""
        session, what, text = self.session, step[:1], step[1:]
        match what:
            case b"p":
                session.poll()
                self.polls += 1
            case b"P":
                session.post()
                try:
                    self.receive(text)
                finally:
                    session.posted()
            case b"B":
                session.post()
                self.posts = True
            case b"L" if self.posts:
                self.posts = False
                session.post_lost()
            case b"l" if self.polls > self.answers:
                self.polls -= 1
                session.poll_lost()
            case b"o":
                session.offer(self.now)
            case b"w":
                session.websocket_lost()
            case b"f":
                session.receive_frame(text.decode("utf-8", "replace").encode(), False)
            case b"b":
                session.receive_frame(text, True)
            case b"t":
                self.now += 10.0
                if self.now >= session.deadline:
                    session.tick(self.now)
            case b"s":
                self.send(b"%d" % len(self.sent))
            case b"c":
                session.close(self.now)

    def receive(self, body: bytes) -> None:
        """A POST with this body."""
        count = 0
        for message in self.session.receive_payload(body):
            count += 1
            if message is not None:
                assert self.session.state not in (ConnectionState.CLOSED, ConnectionState.CLOSING)
                data, binary = message
                assert binary or data.decode() is not None
        assert count <= body.count(b"\x1e") + 1

    def send(self, text: bytes) -> None:
        """The application says something."""
        over = self.session.state in (ConnectionState.CLOSED, ConnectionState.CLOSING)
        self.session.send(Outgoing(b"4" + text))
        if not over:
            self.sent.append(text)


def _check_session(script: bytes, websocket: bool) -> None:
    client = _Client(websocket)
    for step in script.split(b"\n"):
        was_closed = client.session.state is ConnectionState.CLOSED
        try:
            client.play(step)
        except EngineError as error:
            assert error.status in (400, 403, 413)
            assert str(error).isascii()
        client.settle()
        assert not was_closed or client.session.state is ConnectionState.CLOSED
    # Whoever does nothing more is not kept.
    for _ in range(4):
        client.now += 60.0
        if client.now >= client.session.deadline:
            client.session.tick(client.now)
        client.settle()
    assert client.session.state is ConnectionState.CLOSED


def _run(data: bytes) -> None:
    kind, data = sum(data[:1]) % 3, data[1:]
    if kind == 0:
        _check_payload(data)
    else:
        _check_session(data, websocket=kind == 2)


_SEEDS = [
    b"\x004hello\x1ebAQID\x1e3\x1e6\x1e4",
    b"\x004\xc3\xa9\x1e4\x1e\x1e2",
    b"\x00bAQ==\x1ebAR==\x1eb\x1ebA",
    b"\x001\x1e4after",
    b"\x014\xff",
    b"\x01p\nP4a\x1e4b\ns\np\ns\np\nc\np",
    b"\x01p\no\nf2probe\np\nf5\ns\nf4hello\nb\x00\xff\nt\nt\nt\nf3\nc",
    b"\x01o\nf2probe\nw\ns\ns\ns\ns\np\nl\n",
    b"\x01B\nP4a\nL\np",
    b"\x01B\nL",
    b"\x01p\np\ns",
    b"\x01s\nc\np\np",
    b"\x01P1\np",
    b"\x01p\nP9",
    b"\x01P4" + 300 * b"x",
    b"\x02s\nf4hello\nf2\nf3\nf6\nf1\ns",
    b"\x02t\nt\nt\nf3\nt\nt\nt\nt\nt",
    b"\x02c\nf5\np",
]

TARGET = Target("engineio", _run, _SEEDS, calls=(2_000, 40), memory=(200_000, 300))

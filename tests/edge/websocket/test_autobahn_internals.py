"""What reaches past Autobahn's public surface does what Autobahn does, and is left out where Autobahn is another.

A failure here after an upgrade of Autobahn means that kraftek/edge/websocket/autobahn_internals.py was written for
another version of it.
"""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Callable, Sequence
from typing import Any

import autobahn.twisted.websocket
import autobahn.websocket.protocol
import pytest
from autobahn.twisted.websocket import WebSocketServerProtocol
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.logger import capturedLogs, formatEvent
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.utils import apply_mask

from kraftek.contract.guards import UnexpectedError
from kraftek.contract.interfaces import IClientLink
from kraftek.contract.messages import Gap, Outgoing
from kraftek.contract.settings import Limits
from kraftek.edge.websocket import autobahn_internals
from kraftek.edge.websocket.autobahn_internals import quickened, unmask
from kraftek.edge.websocket.frames import plain_messages
from kraftek.edge.websocket.protocol import HANDSHAKE, ClientProtocol
from tests.edge.websocket.edge import Edge, Peer


class Echo:
    """A session that notes what it receives, and says it back."""

    def __init__(self, link: IClientLink) -> None:
        self.link = link
        self.received: list[tuple[bytes, bool]] = []

    def receive(self, data: bytes, binary: bool = False) -> None:
        self.received.append((data, binary))
        self.link.write(Outgoing(b"", (data,)) if binary else Outgoing(data))

    def charge(self, events: int, size: int) -> None:
        pass

    def lost(self) -> None:
        pass

    def overrun(self) -> None:
        return None

    def gap(self, gap: Gap) -> None:
        return None


def echo_edge(limits: Limits | None = None, *, compression: bool = False, fastpath: bool = True) -> Edge:
    """An edge whose sessions echo, with the fast path however the tests are run."""
    edge = Edge(limits=limits, compression=compression, fastpath=fastpath)
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
    return head + (payload if mask is None else mask + apply_mask(payload, mask))


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
    edge = echo_edge(Limits(message_bytes=limit), fastpath=fast)
    peer = Peer(edge)
    protocol: Any = peer.protocol
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
    assert plain_messages(data, 0, 65_535, unmask) == (texts, len(data))


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
    assert plain_messages(first + other + last, 0, 1000, unmask) == ([b"first"], len(first))


def test_what_is_not_all_there_yet_is_left() -> None:
    first, second = frame(1, b"first"), frame(1, b"x" * 200)
    for size in range(len(second)):
        assert plain_messages(first + second[:size], 0, 1000, unmask) == ([b"first"], len(first))


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


# Connections that keep only what differs.

AT_REST = {
    "connected", "factory", "message_limit", "outbox", "peer", "session", "slot", "state", "transport",
    "utf8validator",
}  # fmt: skip


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the last connection's instance held when its handshake was done, before it was slimmed."""
    held: dict[str, Any] = {}

    def begins_as_autobahn_has_it(base: Any) -> None:
        raise UnexpectedError("this test looks at Autobahn's own state")

    monkeypatch.setattr(autobahn_internals, "_check_accepting", begins_as_autobahn_has_it)
    forget = autobahn_internals._Slim.forget_handshake

    def noted(protocol: Any) -> None:
        if isinstance(protocol, ClientProtocol):
            held.update(protocol.__dict__)
        forget(protocol)

    monkeypatch.setattr(autobahn_internals._Slim, "forget_handshake", noted)
    return held


def test_a_connection_holds_these_names_and_no_others(whole: dict[str, Any]) -> None:
    peer = Peer(echo_edge(), "/?token=secret&roomId=r")
    assert set(peer.protocol.__dict__) == AT_REST, (
        "Autobahn keeps more in its instances, or less. See what it is for; then it belongs into _AT_REST or "
        "_NOT_NEEDED of autobahn_internals, into HANDSHAKE of kraftek.edge.websocket.protocol, or here."
    )
    assert not [name for name in peer.protocol.__dict__ if "secret" in repr(peer.protocol.__dict__[name])]
    dropped = autobahn_internals._AT_REST.keys() | autobahn_internals._NOT_NEEDED.keys() | HANDSHAKE | {"credentials"}
    assert set(whole) - AT_REST == dropped & set(whole)
    assert dropped - set(whole) == set(), "Autobahn does not set these any more"
    peer.send("plain")
    assert peer.read() == ["plain"]
    assert set(peer.protocol.__dict__) - AT_REST == {"heard"}


def test_a_connection_that_begins_at_rest_holds_the_same() -> None:
    peer = Peer(echo_edge(), "/?token=secret&roomId=r")
    assert set(peer.protocol.__dict__) == AT_REST
    assert peer.transport.no_delay


def test_state_at_rest_is_what_autobahn_sets(whole: dict[str, Any]) -> None:
    peer = Peer(echo_edge())
    assert {name: whole[name] for name in autobahn_internals._AT_REST} == autobahn_internals._AT_REST
    for name, value in autobahn_internals._AT_REST.items():
        assert getattr(peer.protocol, name) == value
    assert not whole["send_queue"]
    assert autobahn_internals._NOT_NEEDED["send_queue"] == ()


def test_what_differs_is_kept() -> None:
    differs: Any = autobahn_internals._Slim()
    differs.__dict__ = {"data": b"half a frame", "closedByMe": True, "wasClean": False, "ours": 1, "_wskey": 2}
    differs.forget_handshake()
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
    protocol: Any = object.__new__(quickened(ClientProtocol, edge.factory))
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
    assert edge.connections.count == 0


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


def works_the_same(edge: Edge) -> Peer:
    """Hold the edge to what all of the fast path does; the connection it was held by."""
    peer = Peer(edge)
    *answers, last = conversations(peer)
    assert answers == ANSWERS
    assert [last[0], last[1][0]] == ["half", 1009]
    peer.flush()
    assert peer.transport.closed
    peer.lose()
    edge.clock.advance(CLOSING)
    edge.done()
    return peer


def test_without_any_of_it_the_edge_works_the_same() -> None:
    peer = works_the_same(echo_edge(fastpath=False))
    assert {"is_open", "maxMessagePayloadSize", "trafficStats"} <= set(peer.protocol.__dict__)
    assert type(peer.protocol) is ClientProtocol


# Another Autobahn.


def other_state(monkeypatch: pytest.MonkeyPatch) -> None:
    made = WebSocketServerProtocol._connectionMade

    def other(self: Any) -> None:
        made(self)
        self.autoPingPendingSeq = 7

    monkeypatch.setattr(WebSocketServerProtocol, "_connectionMade", other)


def less_state(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = WebSocketServerProtocol.succeedHandshake

    def other(self: Any, accepted: Any) -> None:
        opened(self, accepted)
        del self.http_response_data

    monkeypatch.setattr(WebSocketServerProtocol, "succeedHandshake", other)


def a_queue_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = WebSocketServerProtocol.onCloseFrame

    def other(self: Any, *args: Any) -> Any:
        self.send_queue.clear()
        return closed(self, *args)

    monkeypatch.setattr(WebSocketServerProtocol, "onCloseFrame", other)


def settings_copied_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    made = WebSocketServerProtocol._connectionMade

    def other(self: Any) -> None:
        made(self)
        self.requireMaskedClientFrames = self.factory.requireMaskedClientFrames

    monkeypatch.setattr(WebSocketServerProtocol, "_connectionMade", other)


def more_state(monkeypatch: pytest.MonkeyPatch) -> None:
    made = WebSocketServerProtocol._connectionMade

    def other(self: Any) -> None:
        made(self)
        self.fresh = 1

    monkeypatch.setattr(WebSocketServerProtocol, "_connectionMade", other)


def another_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = WebSocketServerProtocol.succeedHandshake

    def other(self: Any, accepted: Any) -> None:
        self.factory.headers = {"X-Fresh": "1"}
        opened(self, accepted)

    monkeypatch.setattr(WebSocketServerProtocol, "succeedHandshake", other)


def no_masker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autobahn_internals, "xormasker", types.ModuleType("autobahn.websocket.xormasker"))


def another_masker(monkeypatch: pytest.MonkeyPatch) -> None:
    masker = types.SimpleNamespace(create_xor_masker=lambda mask: None)
    monkeypatch.setattr(autobahn_internals, "xormasker", masker)


def no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autobahn_internals, "_LOGGING", (types.ModuleType("autobahn.websocket.protocol"),))


@pytest.mark.parametrize(
    ("drift", "part", "why"),
    [
        (other_state, "slim connections", "autoPingPendingSeq of WebSocketServerProtocol is 7, not 0"),
        (less_state, "slim connections", "WebSocketServerProtocol keeps no http_response_data"),
        (a_queue_that_is_needed, "slim connections", "AttributeError: 'tuple' object has no attribute 'clear'"),
        (
            settings_copied_by_name,
            "settings on the class",
            "settings are copied without being in CONFIG_ATTRS: requireMaskedClientFrames",
        ),
        (more_state, "beginning at rest", "WebSocketServerProtocol keeps fresh, too"),
        (another_answer, "beginning at rest", "WebSocketServerProtocol answers a handshake with"),
        (no_masker, "unframing whole reads", "autobahn.websocket.xormasker has no create_xor_masker"),
        (another_masker, "unframing whole reads", "takes 1 positional argument but 2 were given"),
        (no_colours, "log lines without colours", "autobahn.websocket.protocol has no hltype"),
    ],
)
def test_a_part_that_is_for_another_autobahn_is_left_out(
    drift: Callable[[pytest.MonkeyPatch], None], part: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drift(monkeypatch)
    with capturedLogs() as logged:
        edge = echo_edge()
    assert [event["part"] for event in logged] == [part]
    assert why in str(formatEvent(logged[0]))
    works_the_same(edge)


def test_names_that_a_class_lacks_are_named() -> None:
    class Bare:
        pass

    edge = echo_edge()
    with capturedLogs() as logged:
        made = quickened(ClientProtocol, edge.factory, Bare)
    assert [(event["part"], event["why"]) for event in logged if event["part"] != "slim connections"] == [
        ("unframing whole reads", "Bare has no dataReceived"),
        ("settings on the class", "Bare has no CONFIG_ATTRS"),
    ]
    assert len(logged) == 3
    edge.factory.protocol = made
    works_the_same(edge)


def test_nothing_is_logged_where_all_is_as_expected() -> None:
    with capturedLogs() as logged:
        echo_edge()
    assert logged == []


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
    assert not peer.protocol._perMessageCompress.under_way
    peer.lose()

"""Messages of a Socket.IO client, text and binary, one after the other: packets or clean refusals, within bounds."""

from __future__ import annotations

from typing import Any

from msgspec import Raw

from kraftek.contract.errors import PeerError
from kraftek.contract.messages import (
    Acknowledge,
    Admitted,
    AskPresence,
    Authenticate,
    Cancel,
    Connected,
    Delivery,
    ErrorMessage,
    Event,
    History,
    Inbound,
    Join,
    Leave,
    Outgoing,
)
from kraftek.contract.order import Order
from kraftek.edge.dialects.socketio_client import SocketIODialect
from kraftek.edge.dialects.socketio_packets import (
    MAIN,
    MAX_ATTACHMENTS,
    RESERVED_EVENTS,
    EventPacket,
    SocketSession,
    SocketSettings,
)
from tests.fuzz.material import NOT_JSON, json_in
from tests.fuzz.native import check_id, check_payload, check_refusal, check_room
from tests.fuzz.watch import Target
from tests.support.fakes import FakeLink

__all__ = ["TARGET"]

_ATTACHED = 200
_SHORT = 64
_SETTINGS = SocketSettings(max_attachment_bytes=_ATTACHED)


def _check_text(outgoing: Outgoing) -> None:
    """A client can read it: what its own parser makes of it."""
    assert outgoing.text.startswith(b"4")
    assert len(outgoing.attachments) <= MAX_ATTACHMENTS
    for attachment in outgoing.attachments:
        assert type(attachment) is bytes


def _check_event(dialect: SocketIODialect, event: Event, more: int) -> None:
    """As it went in it comes out, should the service send it back, before so many arguments more."""
    value = check_payload(event.payload)
    assert event.name not in RESERVED_EVENTS
    told = dialect.encode(Delivery(event.name, event.payload, "room"))
    assert told is not None
    _check_text(told)
    if value is NOT_JSON:
        return
    other = SocketSession(SocketSettings())
    other.accept(MAIN, "sid")
    packet: Any = other.receive(told.text[1:], False)
    for attachment in told.attachments:
        assert packet is None
        packet = other.receive(attachment, True)
    assert isinstance(packet, EventPacket)
    assert packet.name == event.name
    arg, *others = packet.args
    assert len(others) == more
    assert _without_spare_bits(json_in(bytes(arg))) == _without_spare_bits(value)


def _without_spare_bits(value: Any) -> Any:
    """Base64 has several texts for the same bytes."""
    match value:
        case {"_binary": str()} if len(value) == 1:
            return "binary"
        case dict():
            return {key: _without_spare_bits(inner) for key, inner in value.items()}
        case list():
            return [_without_spare_bits(inner) for inner in value]
    return value


class _Client:
    """A client, and what the gateway hears of it."""

    def __init__(self, connected: bool, recovers: bool) -> None:
        self.link = FakeLink()
        self.order = Order() if recovers else None
        self.renew()
        if connected:
            self.dialect.received(b"0", False)
            self.link.written.clear()

    def renew(self) -> None:
        """A session of the gateway begins."""
        self.dialect = SocketIODialect(self.link, _SETTINGS, self.order)
        self.dialect.encode(Connected("gw.1", "pid"))

    def receive(self, data: bytes, binary: bool) -> bool:
        """A message; whether the connection goes on."""
        try:
            message = self.dialect.received(data, binary)
        except PeerError as error:
            check_refusal(error)
            told = self.dialect.encode(ErrorMessage(error.code, error.message, None, None, error.id))
            if told is not None:
                _check_text(told)
            return not error.closes
        if self.dialect.left:
            self.renew()
        elif message is not None:
            assert isinstance(message, Inbound)
            self.check(message)
        for outgoing in self.link.written:
            _check_text(outgoing)
        self.link.written.clear()
        return True

    def check(self, message: Inbound) -> None:
        """What the gateway is handed."""
        check_id(message.id)
        match message:
            case Event():
                _check_event(self.dialect, message, int(self.order is not None))
            case Cancel(request_id) | Acknowledge(request_id):
                check_id(request_id)
            case Join() | Leave() | Authenticate() | History() | AskPresence():
                check_room(message)
        if isinstance(message, Authenticate) and message.recover is not None:
            assert 0 < len(message.recover.pid) <= _SHORT
            assert len(message.recover.last) <= _SHORT
            self.dialect.encode(Admitted("gw.1", message.recover.pid))

    def works(self) -> None:
        """The next good event is understood, whatever was refused before; unless an attachment is awaited."""
        awaited = self.dialect._session._awaited
        if awaited is not None:
            assert sum(map(len, awaited._attachments)) <= _ATTACHED
        elif self.dialect._session.connected:
            assert self.dialect.received(b'2["a:b:c",1]', False) == Event("a:b:c", Raw(b"1"))


def _run(data: bytes) -> None:
    """The first byte says whether it is connected, and whether it may come back as what it was."""
    first = sum(data[:1])
    client = _Client(bool(first & 1), bool(first & 2))
    for part in data[1:].split(b"\x1e"):
        binary, message = part[:1] == b"\0", part[part[:1] == b"\0" :]
        if not client.receive(message if binary else message.decode("utf-8", "replace").encode(), binary):
            return
        client.works()


_SEEDS = [
    b"\1" + text
    for text in (
        b'2["chat:note:add",{"a":[1,2.5,"x",null,true]}]\x1e27["join",{"roomId":"red"}]\x1e2["leave",{"roomId":"red"}]',
        b'21["cancel",{"eventType":"chat:note:add"}]\x1e2["cancel",{"id":7}]',
        b'2["authenticate",{"token":"t","roomId":"red"}]\x1e20["authenticate",{"token":"\\ud83d"}]',
        b'2["a"]\x1e2[1,2]\x1e2["a",1,2]\x1e2["connect"]',
        b'51-["a",{"_placeholder":true,"num":0}]\x1e\0abc\x1e2["b"]',
        b'52-9["a",[{"num":1,"_placeholder":true},{"_placeholder":true,"num":0}]]\x1e\0ab\x1e\0c\x1e2["b"]',
        b'50-["a"]\x1e61-3[{"_placeholder":true,"num":0}]\x1e\0' + 201 * b"x",
        b'2["a",{"_binary":"AQ=="},{"_binary":"x"}]\x1e2["a",[{ "_binary" : "AQI=" },{"_binary":""}]]',
        b'31["x"]\x1e3[]\x1e2/x,["a"]\x1e1/x,',
        b'1\x1e0\x1e2["a"]\x1e1\x1e0{"token":"t"}',
        b'2["a:\\ud83d",1]\x1e2["a","\\ud83d"]\x1e25["a",' + 3000 * b"[",
        b'2["a",' + 300 * b"[" + 300 * b"]" + b"]",
        b'2["a",' + 1001 * b"1" + b"]",
        b'2["a",{"x":"{\\"_binary\\":\\"AQ==\\"}"}]',
        b'2["a",{"_binary":"AQ==","_placeholder":true}]',
        b"\0binary",
        b"99",
    )
]
_SEEDS += [
    b'\0000{"token":"t","roomId":"red"}\x1e2["a"]',
    b"\0000/x,{}\x1e0/x\x1e0[]",
    b'\0002["a"]',
    b'\0000{"token":"\\ud83d"}',
]

_SEEDS += [
    b'\0020{"token":"t","roomId":"red","pid":"p","offset":"0123456789ab.5"}\x1e2["a:b:c",1]',
    b'\0020{"token":"t","offset":1e999}\x1e0{"token":"t","pid":"a\xff"}\x1e0{"pid":"p","offset":"o"}',
    b'\0032["join",{"roomId":"red","history":5,"data":[1]}]\x1e35[]\x1e1\x1e0{"token":"t","pid":"p","offset":"o"}',
    b'\0037["history",{"roomId":"red","before":{"epoch":"a","offset":1}}]\x1e28["presence",{"roomId":"red"}]',
]

TARGET = Target("socketio", _run, _SEEDS, calls=(3_000, 100), memory=(500_000, 1_000))

"""Socket.IO as a dialect: the mapping of docs/socketio.rst, and conversations with the core."""

from __future__ import annotations

import contextlib
import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from msgspec import Raw

from kraftek.contract.errors import CLOSE_CODES, Code, PeerError
from kraftek.contract.messages import (
    NULL,
    Ack,
    Acknowledge,
    Admitted,
    Append,
    AskPresence,
    Authenticate,
    Authenticated,
    Cancel,
    Closing,
    Connected,
    Delivery,
    Drained,
    ErrorMessage,
    Event,
    Gap,
    History,
    HistoryPage,
    Inbound,
    Join,
    Joined,
    Leave,
    Left,
    Outbound,
    Outgoing,
    Place,
    Pong,
    Position,
    Positioned,
    Progress,
    Recover,
    Standing,
    Token,
)
from kraftek.contract.order import UNCERTAIN, Order
from kraftek.core.session import Session, SessionState
from kraftek.edge.dialects.socketio_client import SocketIOClient, SocketIODialect
from kraftek.edge.dialects.socketio_packets import RESERVED_EVENTS, SocketSettings
from tests.edge.dialects.contract import JSON, SECRET, DialectContract, Wire, same
from tests.support.fakes import FakeLink
from tests.support.world import House


def made(link: FakeLink | None = None, *, connected: bool = True) -> SocketIODialect:
    """A dialect whose client, ``sid``, was let into the namespace."""
    link = link or FakeLink()
    dialect = SocketIODialect(link, SocketSettings())
    dialect.encode(Connected("sid"))
    if connected:
        assert dialect.received(b"0", False) is None
        assert texts(link) == ['40{"sid":"sid"}']
    return dialect


def texts(link: FakeLink) -> list[str]:
    """What was written since the last look."""
    written, link.written = link.written, []
    return [outgoing.text.decode() for outgoing in written]


class TestSocketIODialect(DialectContract):
    def make(self) -> SocketIODialect:
        return made()

    def examples(self) -> Sequence[tuple[Wire, Inbound]]:
        return [
            *(([(text.encode(), False)], message) for text, message in UNDERSTOOD),
            (
                [(b'51-3["a:b:c",{"x":{"_placeholder":true,"num":0}}]', False), (b"\0\1\2", True)],
                Event("a:b:c", Raw(b'{"x":{"_binary":"AAEC"}}'), 3),
            ),
        ]

    def mistakes(self) -> Sequence[Wire]:
        return [
            [(b'2["join",{"roomId":7}]', False)],
            [(b'27["authenticate",{"token":7}]', False)],
            [(b'51-["join",{"x":{"_placeholder":true,"num":0}}]', False), (b"\0", True)],
        ]

    def delivered(self, outgoing: Outgoing) -> tuple[str, Any]:
        assert outgoing.text[:2] == b"42"
        name, payload = json.loads(outgoing.text[2:])
        return name, payload


UNDERSTOOD: list[tuple[str, Inbound]] = [
    (f'2["authenticate",{{"token":"{SECRET}","roomId":"r"}}]', Authenticate(Token(SECRET), "r")),
    (f'27["authenticate",{{"token":"{SECRET}"}}]', Authenticate(Token(SECRET), None, 7)),
    ('2["authenticate",{}]', Authenticate(Token(""))),
    ('2["join",{"roomId":"r"}]', Join("r")),
    ('20["join",{"roomId":"r"}]', Join("r", 0)),
    ('212["leave",{"roomId":"r"}]', Leave("r", 12)),
    ('213["presence",{"roomId":"r","version":"v"}]', AskPresence("r", 13, "v")),
    ('2["cancel",{"eventType":"a:b:c"}]', Cancel(None, "a:b:c")),
    ('214["history",{"roomId":"r","limit":7}]', History("r", 7, id=14)),
    ('2["join",{"roomId":"r","history":9,"since":{"epoch":"e","offset":1}}]', Join("r", last=9)),
    (f'2["authenticate",{{"token":"{SECRET}","history":9}}]', Authenticate(Token(SECRET), last=9)),
    ('25["a:b:c",1,{"progress":"q"}]', Event("a:b:c", Raw(b"1"), 5, progress=True)),
    ('2["a:b:c",{"x": 1.0}]', Event("a:b:c", Raw(b'{"x": 1.0}'))),
    ('25["a:b:c",[1,"ж📝"]]', Event("a:b:c", Raw('[1,"ж📝"]'.encode()), 5)),
    ('2["a:b:c"]', Event("a:b:c", NULL)),
    ('26["a:b:c"]', Event("a:b:c", NULL, 6)),
    ('2["hello",1]', Event("hello", Raw(b"1"))),
]


def test_a_connect_with_a_token_authenticates() -> None:
    link = FakeLink()
    message = made(link, connected=False).received(f'0{{"token":"{SECRET}","roomId":"r"}}'.encode(), False)
    assert same(message, Authenticate(Token(SECRET), "r"))
    assert texts(link) == ['40{"sid":"sid"}']


@pytest.mark.parametrize("auth", ["", "{}", '{"token":""}', '{"user":"somebody"}', '{"token":"","roomId":null}'])
def test_a_connect_without_a_token_only_connects(auth: str) -> None:
    link = FakeLink()
    assert made(link, connected=False).received(f"0{auth}".encode(), False) is None
    assert texts(link) == ['40{"sid":"sid"}']


@pytest.mark.parametrize(
    "auth", ['{"token":"\\ud800"}', '{"token":7}', '{"token":"t","roomId":""}', '{"token":"t","roomId":["r"]}']
)
def test_a_connect_with_wrong_types_connects_and_is_told(auth: str) -> None:
    link = FakeLink()
    with pytest.raises(PeerError, match=r"payload of auth: |half of") as refused:
        made(link, connected=False).received(f"0{auth}".encode(), False)
    assert (refused.value.code, refused.value.closes) == (Code.INVALID_MESSAGE, False)
    assert texts(link) == ['40{"sid":"sid"}']


def test_there_is_one_namespace() -> None:
    link = FakeLink()
    assert made(link, connected=False).received(b"0/admin,", False) is None
    assert texts(link) == ['44/admin,{"message":"Invalid namespace"}']


def test_a_cancel_is_acknowledged_at_once() -> None:
    link = FakeLink()
    dialect = made(link)
    assert dialect.received(b'27["cancel",{"eventType":"a:b:c"}]', False) == Cancel(None, "a:b:c")
    assert texts(link) == ["437[{}]"]
    # Pages know no ids of acknowledgements.
    assert dialect.received(b'28["cancel",{"id":3}]', False) is None
    assert texts(link) == ["438[{}]"]


def test_parts_of_an_answer_have_the_name_that_the_page_gave() -> None:
    dialect = made()
    for number, name in enumerate(["q", 7, "7"], 3):
        dialect.received(f'2{number}["a:b:c",1,{{"progress":{json.dumps(name)}}}]'.encode(), False)
    part = dialect.encode(Progress(4, Raw(b'{"x": 1.0}'), Place("run", 2)))
    assert part is not None
    assert part.text == b'42["progress",{"id":7,"number":2,"payload":{"x": 1.0}}]'
    assert dialect.received(b'2["cancel",{"id":"7"}]', False) == Cancel(5)
    assert dialect.received(b'2["cancel",{"id":8,"eventType":"a:b:c"}]', False) is None


@pytest.mark.parametrize(
    "answer", [Delivery("a:b:c", id=3), Delivery("error", Raw(b"{}"), id=3), Ack(3, 1), ErrorMessage("X", "x", id=3)]
)
def test_a_name_is_free_when_the_request_is_answered(answer: Outbound) -> None:
    dialect = made()
    assert dialect.received(b'23["a:b:c",1,{"progress":"q"}]', False) is not None
    with pytest.raises(PeerError, match="another request of this name waits for its answer"):
        dialect.received(b'24["a:b:c",1,{"progress":"q"}]', False)
    assert dialect.encode(answer) is not None
    assert dialect.encode(Progress(3, Raw(b"1"), Place("run", 2))) is None
    assert dialect.received(b'25["a:b:c",1,{"progress":"q"}]', False) is not None


def test_names_of_requests_move_to_another_version() -> None:
    dialect, other = made(), made()
    dialect.received(b'23["a:b:c",1,{"progress":"q"}]', False)
    other.restore(dialect.give())
    part = other.encode(Progress(3, Raw(b"1"), Place("run", 1)))
    assert part is not None
    assert part.text == b'42["progress",{"id":"q","number":1,"payload":1}]'


def test_who_leaves_the_namespace_is_gone() -> None:
    dialect = made()
    assert not dialect.left
    assert dialect.received(b"1", False) is None
    assert dialect.left


def test_an_acknowledgement_of_the_client() -> None:
    assert made().received(b'37["thanks"]', False) == Acknowledge(7)


@pytest.mark.parametrize("packet", [b"abc", b"2{}", b'2["connect",1]', b"0", b"", b'2/admin,["a:b:c"]'])
def test_who_breaks_the_protocol_is_closed(packet: bytes) -> None:
    with pytest.raises(PeerError) as refused:
        made().received(packet, False)
    assert (refused.value.code, refused.value.closes) == (Code.INVALID_MESSAGE, True)


def test_who_breaks_the_protocol_in_a_request_is_told_which() -> None:
    with pytest.raises(PeerError) as refused:
        made().received(b'27["a:b:c",nope]', False)
    assert (refused.value.id, refused.value.closes) == (7, True)


@pytest.mark.parametrize(
    ("packet", "message", "id"),
    [
        ('23["a:b:c",1,2]', "options of an event: Expected `object`, got `int`", 3),
        ('23["a:b:c",1,{}]', "options of an event: Object missing required field `progress`", 3),
        ('23["a:b:c",1,{"progress":true}]', "options of an event: Expected `int | str`, got `bool`", 3),
        ('23["a:b:c",1,{"progress":1,"x":1}]', "options of an event: Object contains unknown field `x`", 3),
        (f'23["a:b:c",1,{{"progress":{65 * "9"}}}]', "expected an integer of at most 64 characters", 3),
        ('23["a:b:c",1,{"progress":"\\ud800"}]', "half of a surrogate pair", 3),
        ('2["a:b:c",1,{"progress":1}]', "without an acknowledgement has no parts", None),
        ('23["join",{"roomId":"r"},1]', "expected one payload, found 2 arguments", 3),
        ('2["a:b:c",1,2,3]', "expected one payload, found 3 arguments", None),
        ('29["join",{}]', "payload of join: ", 9),
        ('2["leave"]', "payload of leave: ", None),
        ('24["cancel"]', "cancel: expected the id of a request", 4),
        (f'24["cancel",{{"id":{65 * "9"}}}]', "cancel: expected the id of a request", 4),
        ('24["authenticate","token"]', "payload of authenticate: ", 4),
        ('24["a:\\ud800:c",1]', "half of a surrogate pair", 4),
        ('24["join",{"roomId":"\\ud800"}]', "half of a surrogate pair", 4),
        ('2["authenticate",{"token":"\\ud800"}]', "half of a surrogate pair", None),
        (f'24["a:b:c",{"[" * 257}{"]" * 257}]', "more than 256 levels", 4),
        (f'24["a:b:c",{"[" * 5_000}{"]" * 5_000}]', "nested too deeply", 4),
        (f'24["a:b:c",{"1" * 1_001}]', "more than 1000 digits", 4),
    ],
)
def test_what_is_wrong_with_an_event(packet: str, message: str, id: int | None) -> None:
    with pytest.raises(PeerError, match=message) as refused:
        made().received(packet.encode(), False)
    assert (refused.value.code, refused.value.closes, refused.value.id) == (Code.INVALID_MESSAGE, False, id)


SAID: list[tuple[Outbound, list[str]]] = [
    (Connected("sid"), []),
    (Admitted("sid", "secret"), ['40{"sid":"sid","pid":"secret"}']),
    (Authenticated("u", "r"), ['42["authenticated",{"success":true,"userId":"u","roomId":"r"}]']),
    (
        Authenticated("u", None, 4),
        [
            '42["authenticated",{"success":true,"userId":"u","roomId":null}]',
            '434[{"success":true,"userId":"u","roomId":null}]',
        ],
    ),
    (Joined("r"), ['42["joined",{"roomId":"r"}]']),
    (Joined("r", 0), ['42["joined",{"roomId":"r"}]', '430[{"roomId":"r"}]']),
    (Left("r", 1), ['42["left",{"roomId":"r"}]', '431[{"roomId":"r"}]']),
    (Ack(8, 2), ['438[{"receivers":2}]']),
    (
        ErrorMessage(Code.INVALID_EVENT, "No", "a:b", None, 3),
        ['433[{"error":{"code":"INVALID_EVENT","message":"No","eventType":"a:b"}}]'],
    ),
    (
        ErrorMessage(Code.AUTH_UNAVAILABLE, "Later", retry_after=1.5),
        ['42["error",{"code":"AUTH_UNAVAILABLE","message":"Later","retryAfter":1.5}]'],
    ),
    (
        ErrorMessage(Code.ACCESS_REVOKED, "Out", room_id="r"),
        ['42["error",{"code":"ACCESS_REVOKED","message":"Out","roomId":"r"}]'],
    ),
    (Delivery("a:b:c", Raw(b'{"x": 1.0}')), ['42["a:b:c",{"x": 1.0}]']),
    (Delivery("a:b:c"), ['42["a:b:c",null]']),
    (Delivery("a:b:c", Raw(b"1"), None, 7), ["437[1]"]),
    (Delivery("error", Raw(b'{"code":"FULL"}'), None, 7), ['437[{"error":{"code":"FULL"}}]']),
    (Delivery("error", Raw(b'{"code":"FULL"}')), ['42["error",{"code":"FULL"}]']),
    # What goes to a room answers nobody: this number is another request of each client in it.
    (Delivery("a:b:c", Raw(b"1"), "r", 7), ['42["a:b:c",1]']),
    (Delivery("a:b:c", Raw(b"1"), None, "7"), ['42["a:b:c",1]']),
    (Delivery("a:b:c", Raw(b"1"), None, -7), ['42["a:b:c",1]']),
    (Delivery("ж📝", Raw('"ж"'.encode())), ['42["ж📝","ж"]']),
    (Delivery("a:b:c", Raw(b"1"), "r", offset=8), ['42["a:b:c",1]']),
    (
        Delivery("a:b:c", Raw(b'"x"'), "r", offset=8, append=Append("k", 3, last=True)),
        ['42["a:b:c","x",{"key":"k","from":3,"last":true}]'],
    ),
    (Delivery("a:b:c", Raw(b'"x"'), "r", append=Append("k")), ['42["a:b:c","x",{"key":"k"}]']),
    (Pong(1), []),
    (HistoryPage("r", "e", []), ['42["history",{"roomId":"r","epoch":"e","messages":[]}]']),
    (
        HistoryPage("r", "e", [Delivery("a:b:c", Raw(b'{"x": 1.0}'), "r", offset=4)], Position("e", 4), 6),
        [
            (
                '436[{"roomId":"r","epoch":"e","messages":[{"type":"a:b:c","payload":{"x": 1.0},"offset":4}],'
                '"before":{"epoch":"e","offset":4}}]'
            ),
        ],
    ),
    (Joined("r", None, None, Standing("e", 4)), ['42["joined",{"roomId":"r","epoch":"e","offset":4}]']),
    (Progress(1, Raw(b"1"), Place("x", 1)), []),  # this request was sent by nobody
    (Positioned("r", Standing("e", 7, recovered=True)), []),
    (Gap({"r": {"a:*:*": 2}}), ['42["gap",{"rooms":{"r":{"a:*:*":2}}}]']),
    (Drained(1.5), ['42["drain",{"reconnectAfter":1.5}]']),
    (Closing(4401), ["41"]),
    (Closing(4401, returns=True), []),
]


@pytest.mark.parametrize(("message", "said"), SAID)
def test_what_we_say(message: Outbound, said: list[str]) -> None:
    link = FakeLink()
    last = made(link).encode(message)
    assert texts(link) + ([] if last is None else [last.text.decode()]) == said


def test_every_message_to_a_client_is_among_them() -> None:
    assert {type(message) for message, _ in SAID} == set(Outbound.__args__)


def test_binary_values_are_attachments() -> None:
    outgoing = made().encode(Delivery("a:b:c", Raw(b'{"x":{"_binary":"AAEC"},"y":1}')))
    assert outgoing is not None
    assert outgoing.text == b'451-["a:b:c",{"x":{"_placeholder":true,"num":0},"y":1}]'
    assert outgoing.attachments == (b"\0\1\2",)


@pytest.mark.parametrize("name", sorted(RESERVED_EVENTS))
def test_no_delivery_has_a_reserved_name(name: str) -> None:
    assert made().encode(Delivery(name, Raw(b"1"))) is None


def test_clients_are_told_when_access_expires() -> None:
    link = FakeLink()
    for message in (Authenticated("ada", "r", None, 1.5), Joined("r", None, 2.0)):
        outgoing = made(link).encode(message)
        assert outgoing is not None
        assert b'"expiresIn":' in outgoing.text


@pytest.mark.parametrize(
    "message", [message for message, said in SAID if said and not isinstance(message, Delivery | Admitted)]
)
def test_nothing_is_said_before_the_client_connected(message: Outbound) -> None:
    link = FakeLink()
    assert made(link, connected=False).encode(message) is None
    assert texts(link) == []


def recovering(link: FakeLink, word: str) -> SocketIODialect:
    """A dialect whose client may come back as what it was."""
    order = Order()
    order.now = word
    dialect = SocketIODialect(link, SocketSettings(), order)
    dialect.encode(Connected("sid", "secret"))
    return dialect


def test_who_may_come_back_gets_a_secret_and_where_it_is() -> None:
    link = FakeLink()
    dialect = recovering(link, "0123456789ab.7")
    assert dialect.received(b"0", False) is None
    assert texts(link) == ['40{"sid":"sid","pid":"secret"}']
    for message, text in (
        (Delivery("a:b:c", Raw(b'"text"')), '42["a:b:c","text","0123456789ab.7"]'),
        (Delivery("a:b:c", Raw(b"{}"), "r", offset=3, order="0123456789ab.6"), '42["a:b:c",{},"0123456789ab.6"]'),
        (Delivery("a:b:c", Raw(b"{}"), "r", offset=3, order=UNCERTAIN), '42["a:b:c",{},"-"]'),
        (
            Delivery("a:b:c", Raw(b'"x"'), "r", offset=3, order="0123456789ab.6", append=Append("k")),
            '42["a:b:c","x",{"key":"k"},"0123456789ab.6"]',
        ),
        (Delivery("a:b:c", Raw(b"1"), id=3), "433[1]"),
        (Left("r"), '42["left",{"roomId":"r"},"0123456789ab.7"]'),
        (Gap({}), '42["gap",{"rooms":{}},"0123456789ab.7"]'),
    ):
        outgoing = dialect.encode(message)
        assert outgoing is not None
        assert outgoing.text.decode() == text
    binary = dialect.encode(Delivery("a:b:c", Raw(b'{"_binary":"AA=="}')))
    assert binary is not None
    assert binary.text == b'451-["a:b:c",{"_placeholder":true,"num":0},"0123456789ab.7"]'


def test_who_comes_back_is_answered_when_the_gateway_knows() -> None:
    link = FakeLink()
    dialect = recovering(link, "0123456789ab.7")
    message = dialect.received(b'0{"pid":"was","offset":"0123456789ab.3","token":"t","roomId":"r"}', False)
    assert isinstance(message, Authenticate)
    assert (message.recover, message.room_id) == (Recover("was", "0123456789ab.3"), "r")
    assert texts(link) == []
    assert dialect.recovers
    admitted = dialect.encode(Admitted("old", "was"))
    assert admitted is not None
    assert admitted.text == b'40{"sid":"old","pid":"was"}'
    entered = dialect.encode(Authenticated("u", "r", recovered=True, order="0123456789ab.3", socket_id="new"))
    assert entered is not None
    assert json.loads(entered.text[2:])[1:] == [
        {"success": True, "userId": "u", "roomId": "r", "recovered": True, "socketId": "new"},
        "0123456789ab.3",
    ]
    assert dialect.give().pid == "was"
    dialect.encode(Closing(4403))
    assert not dialect.recovers


@pytest.mark.parametrize(
    "auth",
    [
        b'{"pid":"was","offset":1e999}',
        b'{"pid":%b}' % (b"1" * 5000),
        b'{"pid":"was","offset":"\\ud83d"}',
        b'{"pid":"a\xff"}',
    ],
)
def test_what_cannot_be_read_of_who_comes_back_is_refused_or_left_out(auth: bytes) -> None:
    """Never is it a fault of the gateway."""
    link = FakeLink()
    dialect = recovering(link, "0123456789ab.7")
    for shown in (auth, auth[:-1] + b',"token":"t","roomId":"r"}'):
        with contextlib.suppress(PeerError):
            message = dialect.received(b"0" + shown, False)
            assert message is None or (isinstance(message, Authenticate) and message.recover is None)


@pytest.mark.parametrize("code", [1000, 1001, 1011, *CLOSE_CODES.values()])
def test_who_may_come_back_is_not_put_out_of_the_namespace(code: int) -> None:
    final = code in (4400, 4401, 4403, 4409)
    outgoing = made().encode(Closing(code))
    assert (outgoing.text if outgoing is not None else None) == (b"41" if final else None)


@given(JSON)
def test_a_payload_comes_as_it_was_sent(payload: Any) -> None:
    text = json.dumps(payload)
    message = made().received(f'2["a:b:c",{text}]'.encode(), False)
    assert isinstance(message, Event)
    assert bytes(message.payload) == text.encode()


# With the core.


class Page:
    """A Socket.IO client of a house: it says packets and reads packets."""

    def __init__(self, house: House) -> None:
        self.link = FakeLink()
        self.client = SocketIOClient(self.link, SocketSettings(), house.gateway.open)

    @property
    def session(self) -> Session:
        """Of its present stay in the namespace."""
        session = self.client._session
        assert isinstance(session, Session)
        return session

    def says(self, *packets: str | bytes) -> list[str]:
        for packet in packets:
            self.client.receive(packet.encode() if isinstance(packet, str) else packet, isinstance(packet, bytes))
        return texts(self.link)


def admitted(house: House) -> Page:
    page = Page(house)
    page.says('0{"token":"t","roomId":"r"}')
    house.access.next().yes("user")
    assert texts(page.link) == ['42["authenticated",{"success":true,"userId":"user","roomId":"r"}]']
    return page


def test_the_socket_id_is_the_cores() -> None:
    page = Page(House())
    assert page.says("0") == [f'40{{"sid":"{page.session.socket_id}"}}']


def test_the_answer_to_connect_comes_before_all_else() -> None:
    house = House()
    page = Page(house)
    house_sid = page.session.socket_id
    assert page.says('0{"token":"t","roomId":"r"}') == [f'40{{"sid":"{house_sid}"}}']
    house.access.next().no("Invalid token")
    assert texts(page.link) == ['42["error",{"code":"AUTH_FAILED","message":"Invalid token"}]', "41"]
    assert page.link.closed == (4401, "AUTH_FAILED")


def test_an_event_reaches_its_service_and_the_acknowledgement_its_client() -> None:
    house = House()
    page = admitted(house)
    assert page.says('25["notes:note:create",{"text":"ж"}]') == []
    published = house.next_published()
    assert (published.channel, published.event["payload"], published.event["id"]) == (
        "events:notes",
        {"text": "ж"},
        5,
    )
    house.bus.answer(1)
    assert texts(page.link) == ['435[{"receivers":1}]']


def test_a_service_answers_by_the_acknowledgement() -> None:
    house = House()
    page = admitted(house)
    page.says('20["chat:message:send",1]')
    house.bus.answer(1)
    house.broadcast(type="done", payload={"n": 1}, recipients=[page.session.socket_id], inReplyTo=0)
    assert texts(page.link) == ['430[{"n": 1}]']


def test_an_acknowledgement_that_its_service_never_gives_says_so() -> None:
    house = House()
    page = admitted(house)
    page.says('20["chat:message:send",1]')
    house.bus.answer(1)
    house.pass_time(10.25)
    assert texts(page.link) == [
        '430[{"error":{"code":"TIMEOUT","message":"no answer within 10 s","eventType":"chat:message:send"}}]'
    ]


def test_who_leaves_the_namespace_is_gone_and_may_come_back() -> None:
    house = House()
    page = admitted(house)
    first = page.session
    assert page.says("1") == []
    assert first.state is SessionState.CLOSED
    assert page.link.closed is None
    house.broadcast(type="a:b:c", payload=1, roomId="r")
    assert texts(page.link) == []
    assert page.says("0") == [f'40{{"sid":"{page.session.socket_id}"}}']
    assert page.session.socket_id != first.socket_id
    assert "NOT_AUTHENTICATED" in page.says('2["notes:note:create",1]')[0]


def test_who_left_the_namespace_is_closed_in_time() -> None:
    house = House()
    page = admitted(house)
    house.pass_time(100.0)
    page.says("1")
    house.pass_time(house.limits.authenticate_timeout - 1)
    assert page.link.closed is None
    house.pass_time(1.25)
    assert page.link.closed == (4408, "AUTH_TIMEOUT")


def test_who_leaves_while_it_is_held_up_is_read_again() -> None:
    house = House()
    page = Page(house)
    page.says('0{"token":"t","roomId":"r"}')
    for _ in range(house.limits.held_messages):
        page.says('2["notes:note:create",1]')
    assert page.link.paused
    page.says("1")
    assert not page.link.paused


def test_binary_goes_to_the_service_and_back() -> None:
    house = House()
    page = admitted(house)
    page.says('51-["notes:file:put",{"data":{"_placeholder":true,"num":0}}]', b"\xff\0")
    encoded = {"data": {"_binary": b64encode(b"\xff\0").decode()}}
    assert house.next_published().event["payload"] == encoded
    house.broadcast(type="notes:file:put", payload=encoded, roomId="r")
    (outgoing,) = page.link.written
    assert outgoing.attachments == (b"\xff\0",)


def test_errors_are_events_or_acknowledgements() -> None:
    house = House()
    page = Page(house)
    page.says("0")
    assert page.says('2["notes:note:create",{}]') == [
        '42["error",{"code":"NOT_AUTHENTICATED","message":"authenticate first","eventType":"notes:note:create"}]'
    ]
    assert page.says('21["notes:note:create",{}]') == [
        '431[{"error":{"code":"NOT_AUTHENTICATED","message":"authenticate first","eventType":"notes:note:create"}}]'
    ]


def test_one_that_breaks_the_protocol_is_put_out_and_nobody_else() -> None:
    house = House()
    page, other = admitted(house), house.admit("other", "r", "t2")
    assert page.says("2{}")[-1] == "41"
    assert page.link.closed == (4400, "INVALID_MESSAGE")
    house.broadcast(type="a:b:c", payload=1, roomId="r")
    assert [said["type"] for said in other.link.read()] == ["a:b:c"]


def test_who_never_connects_is_closed_in_time() -> None:
    house = House()
    page = Page(house)
    house.pass_time(house.limits.authenticate_timeout + 1)
    assert texts(page.link) == []
    assert page.link.closed == (4408, "AUTH_TIMEOUT")


def test_a_broadcast_is_encoded_once_for_each_dialect() -> None:
    house = House()
    house.admit("native", "r", "t1")
    pages = []
    for name in ("one", "two"):
        page = Page(house)
        page.says(f'0{{"token":"{name}","roomId":"r"}}')
        house.access.next().yes(name)
        page.link.written.clear()
        pages.append(page)
    house.broadcast(type="notes:note:created", payload={"text": "😀"}, roomId="r")
    (one,), (two,) = (page.link.written for page in pages)
    assert one is two
    assert json.loads(one.text[2:]) == ["notes:note:created", {"text": "😀"}]

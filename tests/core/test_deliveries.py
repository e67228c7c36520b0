"""Service → clients: who gets a broadcast, what it gets, and what becomes of bad ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.logger import LogLevel, capturedLogs
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.contract.interfaces import IDialect, IOutlet
from kraftek.contract.messages import Authenticate, Delivery, Event, Inbound, Outbound, Outgoing, Token
from tests.support.world import BROADCAST, Client, House


def got(*clients: Client) -> list[list[str]]:
    """The types that each client was told since the last look."""
    return [[message["type"] for message in client.link.read()] for client in clients]


@pytest.fixture
def house() -> House:
    return House(single=False)


# Who gets it.


def test_recipients_and_nobody_else(house: House) -> None:
    one, two, three = (house.admit("alice", "room") for _ in range(3))
    house.broadcast(type="t", recipients=[one.id, "gw.elsewhere", three.id], payload={"roomId": "room"})
    assert got(one, two, three) == [["t"], [], ["t"]]
    assert house.counters.delivered == 2


def test_recipients_need_no_room_and_not_even_to_be_authenticated(house: House) -> None:
    client = house.connect()
    house.broadcast(type="t", recipients=[client.id])
    assert got(client) == [["t"]]


def test_recipients_of_other_processes_are_no_error(house: House) -> None:
    with capturedLogs() as logged:
        house.broadcast(type="t", recipients=["other.1", "unheard of"])
    assert logged == []
    assert (house.counters.broadcasts, house.counters.delivered) == (1, 0)
    assert house.counters.broadcasts_without_target == 0


@pytest.mark.parametrize("recipients", [{}, {"recipients": []}, {"recipients": None}])
def test_without_recipients_everybody_in_the_payloads_room(house: House, recipients: Any) -> None:
    here, there, nowhere = house.admit("a", "here"), house.admit("b", "there"), house.admit("c", None)
    house.broadcast(type="t", payload={"x": 1, "roomId": "here"}, **recipients)
    assert here.link.read() == [{"type": "t", "payload": {"x": 1, "roomId": "here"}, "roomId": "here"}]
    assert got(there, nowhere) == [[], []]


@pytest.mark.parametrize(
    "payload", [None, 5, "text", ["here"], {}, {"roomId": None}, {"roomId": 7}, {"roomId": "there"}]
)
def test_the_room_named_beside_the_payload(house: House, payload: Any) -> None:
    here, there = house.admit("a", "here"), house.admit("b", "there")
    house.broadcast(type="t", roomId="here", payload=payload)
    assert here.link.read() == [{"type": "t", "payload": payload, "roomId": "here"}]
    assert got(there) == [[]]


def test_all_sockets_of_users(house: House) -> None:
    one, two, bob, carol = (house.admit(user, room) for user, room in zip("aabc", ["r", "s", "r", "r"], strict=True))
    house.broadcast(type="t", userIds=["a", "b", "nobody"], payload={"roomId": "r"})
    assert got(one, two, bob, carol) == [["t"], ["t"], ["t"], []]


def test_recipients_and_users_are_told_once(house: House) -> None:
    one, two = house.admit("a", "r"), house.admit("b", "r")
    house.broadcast(type="t", userIds=["a", "a"], recipients=[one.id, one.id, two.id])
    assert got(one, two) == [["t"], ["t"]]


def test_everybody_who_has_authenticated(house: House) -> None:
    one, two, three, nobody = house.admit("a", "r"), house.admit("b", "s"), house.admit("c", None), house.connect()
    house.broadcast(type="t", everybody=True, roomId="r", payload={"roomId": "r"})
    assert one.link.read() == [{"type": "t", "payload": {"roomId": "r"}}]
    assert got(two, three, nobody) == [["t"], ["t"], []]
    assert house.counters.broadcasts_without_target == 0


def test_who_is_named_comes_before_everybody(house: House) -> None:
    one, two, three = house.admit("a", "r"), house.admit("b", "r"), house.admit("c", "r")
    house.broadcast(type="t", everybody=True, userIds=["b"])
    house.broadcast(type="u", everybody=True, recipients=[three.id])
    house.broadcast(type="v", everybody=False, roomId="r")
    assert got(one, two, three) == [["v"], ["t", "v"], ["u", "v"]]


@pytest.mark.parametrize("to", ["room", "users", "recipients", "everybody"])
def test_exclusion_from_all_of_these(house: House, to: str) -> None:
    one, two, three = (house.admit("a", "r") for _ in range(3))
    targets: dict[str, dict[str, Any]] = {
        "room": {"roomId": "r"},
        "users": {"userIds": ["a"]},
        "recipients": {"recipients": [one.id, two.id, three.id]},
        "everybody": {"everybody": True},
    }
    house.broadcast(type="t", excludeSocketIds=[one.id, three.id, "gw.elsewhere"], **targets[to])
    assert got(one, two, three) == [[], ["t"], []]
    assert house.counters.delivered == 1


def test_a_room_with_nobody_here(house: House) -> None:
    house.broadcast(type="t", roomId="empty")
    assert (house.counters.broadcasts, house.counters.delivered) == (1, 0)
    assert house.counters.broadcasts_without_target == 0


def test_a_room_that_was_left(house: House) -> None:
    client = house.admit("a", "r")
    client.send({"type": "leave", "payload": {"roomId": "r"}})
    client.link.read()
    house.broadcast(type="t", roomId="r")
    assert got(client) == [[]]


def test_several_processes_deliver_to_each_socket_once() -> None:
    channels: dict[str, Any] = {}
    houses = [House(f"gw{n}", single=False, channels=channels) for n in range(3)]
    clients = [house.admit(user, "room") for house in houses for user in ("a", "b")]
    for message in (
        {"type": "t", "roomId": "room"},
        {"type": "t", "userIds": ["a", "b"]},
        {"type": "t", "recipients": [client.id for client in clients]},
    ):
        houses[0].bus.publish(BROADCAST, json.dumps(message).encode(), lambda receivers: None)
        houses[0].bus.deliver()
        assert got(*clients) == [["t"]] * 6


def test_the_reply_channel_costs_one_process() -> None:
    channels: dict[str, Any] = {}
    houses = [House(f"gw{n}", channels=channels) for n in range(2)]
    client = houses[1].admit("a", "room")
    answer = {"type": "t", "recipients": [client.id], "payload": "x"}
    receivers: list[int] = []
    houses[0].bus.publish("events:reply:gw1", json.dumps(answer).encode(), receivers.append)
    houses[0].bus.deliver()
    assert client.link.read() == [{"type": "t", "payload": "x"}]
    assert receivers == [1]
    assert (houses[0].counters.broadcasts, houses[1].counters.broadcasts) == (0, 1)


# What it gets.


@pytest.mark.parametrize(
    "payload", [b"1.50", b"[1 , 2]", b'"\\u00e9"', b"1E400", b'{"b":1,"a":2}', '"жé📝"'.encode(), b'"\\ud83d\\ude00"']
)
def test_a_payload_is_delivered_byte_for_byte(house: House, payload: bytes) -> None:
    client = house.admit("a", "r")
    house.deliveries.received(b'{"type":"t","roomId":"r","payload":' + payload + b"}")
    [outgoing] = client.link.written
    assert outgoing.text == b'{"type":"t","payload":' + payload + b',"roomId":"r"}'


def test_a_payload_that_is_not_there_is_null(house: House) -> None:
    client = house.admit("a", "r")
    house.broadcast(type="t", roomId="r")
    assert client.link.read() == [{"type": "t", "payload": None, "roomId": "r"}]


@implementer(IDialect)
class CountingDialect:
    """Counts what it encodes. ``word``: what it says, nothing when empty."""

    def __init__(self, codec: str, encoded: list[str], word: bytes = b"word") -> None:
        self.codec = codec
        self.recovers = False
        self.lasting_ids = True
        self.word = word
        self.encoded = encoded

    def received(self, data: bytes, binary: bool) -> Inbound | None:
        return Event("a:b:c")

    def encode(self, message: Outbound) -> Outgoing | None:
        if isinstance(message, Delivery):
            self.encoded.append(self.codec)
        return Outgoing(self.word) if self.word else None


def test_it_is_encoded_once_for_each_dialect(house: House) -> None:
    encoded: list[str] = []
    assert verifyObject(IDialect, CountingDialect("x", encoded))
    clients = []
    for codec in ("x", "y", "x", "y", "x"):
        client = house.connect(Authenticate(Token("t"), "room"), CountingDialect(codec, encoded))
        house.access.next().yes("alice")
        client.link.written.clear()
        clients.append(client)
    native = house.admit("alice", "room")
    house.broadcast(type="t", roomId="room")
    assert sorted(encoded) == ["x", "y"]
    assert len({id(client.link.written[0]) for client in clients}) == 2
    assert got(native) == [["t"]]
    assert house.counters.delivered == 6


def test_who_is_excluded_costs_no_encoding(house: House) -> None:
    encoded: list[str] = []
    client = house.connect(None, CountingDialect("x", encoded))
    house.broadcast(type="t", recipients=[client.id], excludeSocketIds=[client.id])
    assert encoded == []


def test_a_dialect_without_a_word_for_it_is_asked_once_and_says_nothing(house: House) -> None:
    encoded: list[str] = []
    clients = [house.connect(None, CountingDialect("x", encoded, b"")) for _ in range(3)]
    house.broadcast(type="t", recipients=[client.id for client in clients])
    assert encoded == ["x"]
    assert [client.link.written for client in clients] == [[], [], []]
    assert house.counters.delivered == 0


# Bad ones.


@implementer(IOutlet)
class Busy:
    """Takes so many seconds to be written to; notes whether it was the end of the iteration for it."""

    def __init__(self, house: House, takes: float = 0.0) -> None:
        self._house, self._takes = house, takes
        self.ending: list[bool] = []

    def write(self, outgoing: Outgoing) -> None:
        self.ending.append(self._house.iteration.ending)
        self._house.clock.rightNow += self._takes


@pytest.mark.parametrize(("takes", "ending"), [(0.000001, True), (0.001, False)])
def test_many_are_written_to_at_once_as_long_as_there_is_time(house: House, takes: float, ending: bool) -> None:
    clients = [house.admit(f"user{number}", "room") for number in range(600)]
    outlets = [Busy(house, takes) for _ in clients]
    for client, outlet in zip(clients, outlets, strict=True):
        session = house.roster.socket(client.id)
        assert session is not None
        house.roster.divert(session, "room", outlet)
    house.iteration.ending = True
    house.broadcast(type="t", roomId="room")
    written = [each for outlet in outlets for each in outlet.ending]
    assert len(written) == house.counters.delivered == 600
    assert written.count(True) == (600 if ending else 256)


def warnings(house: House, *bodies: bytes) -> Sequence[dict[str, Any]]:
    with capturedLogs() as logged:
        for body in bodies:
            house.deliveries.received(body)
    assert {event["log_level"] for event in logged} <= {LogLevel.warn}
    return logged


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"t"}',
        b'{"type":"t","payload":{"x":1}}',
        b'{"type":"t","payload":5}',
        b'{"type":"t","recipients":[]}',
        b'{"type":"t","payload":{"roomId":5}}',
        b'{"type":"t","userIds":[],"roomId":null}',
        b'{"type":"t","roomId":""}',
    ],
)
def test_to_nobody_is_dropped_and_counted(house: House, body: bytes) -> None:
    client = house.admit("a", "r")
    [logged] = warnings(house, body)
    assert logged["sample"] == body.decode()
    assert house.counters.broadcasts_without_target == 1
    assert got(client) == [[]]


def test_to_nobody_is_logged_once_a_minute(house: House) -> None:
    assert len(warnings(house, *[b'{"type":"t"}'] * 10)) == 1
    house.clock.advance(59.9)
    assert warnings(house, b'{"type":"t"}') == []
    house.clock.advance(0.1)
    assert len(warnings(house, b'{"type":"t"}')) == 1
    assert house.counters.broadcasts_without_target == 12


def test_a_sample_is_short(house: House) -> None:
    [logged] = warnings(house, b'{"type":"' + "ж".encode() * 5000 + b'"}')
    assert len(logged["sample"]) <= 200


MALFORMED = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"{}",
    b'{"type":5}',
    b'{"type":"t","recipients":5}',
    b'{"type":"t","excludeSocketIds":[5]}',
    b'{"type":"t","roomId":5}',
    b'{"type":"t","roomId":"r","payload":}',
    b'{"type":"t","roomId":"r"} more',
    b'{"type":"t","roomId":"r","payload":' + b"[" * 100_000,
    b'\xff\xfe{"type":"t"}',
    b'{"type":"\xff","roomId":"r"}',
]


@pytest.mark.parametrize("body", MALFORMED)
def test_malformed_is_dropped_and_counted_and_the_next_one_delivered(house: House, body: bytes) -> None:
    client = house.admit("a", "r")
    [logged] = warnings(house, body)
    assert logged["error"]
    assert house.counters.broadcasts_malformed == 1
    house.broadcast(type="good", roomId="r")
    assert got(client) == [["good"]]


@pytest.mark.parametrize(
    "payload", [b'"\xff"', b'{"\xc3":1}', b'["\xed\xa0\x80"]', b'{"roomId":"r","x":"\xf8\x88\x80\x80\x80"}']
)
def test_a_payload_that_is_not_utf8_reaches_nobody(house: House, payload: bytes) -> None:
    # Whoever gets it must close its connection: RFC 6455, section 8.1. One service would disconnect the whole room.
    client = house.admit("a", "r")
    assert len(warnings(house, b'{"type":"t","roomId":"r","payload":' + payload + b"}")) == 1
    assert got(client) == [[]]
    assert house.counters.broadcasts_malformed == 1


def test_malformed_and_without_target_are_logged_each_by_itself(house: House) -> None:
    assert len(warnings(house, b"{", b'{"type":"t"}', b"{", b'{"type":"t"}')) == 2


@given(st.binary(max_size=200))
@example(b'{"type":"t","payload":{"roomId":' + b"[" * 100_000)
def test_any_bytes_are_survived(body: bytes) -> None:
    house = House()
    with capturedLogs():
        house.deliveries.received(body)
    counters = house.counters
    assert counters.broadcasts + counters.broadcasts_malformed == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["r", "a", "gw.1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["roomId", "code", "x"]), inner),
    max_leaves=5,
)
WORDS = ["type", "payload", "recipients", "excludeSocketIds", "roomId", "userIds", "inReplyTo", "everybody", "more"]


@given(st.dictionaries(st.sampled_from(WORDS), VALUES), st.sampled_from([{}, {"type": "t"}, {"type": "disconnect"}]))
def test_any_object_is_survived_and_nobody_gets_it_twice(message: dict[str, Any], known: dict[str, Any]) -> None:
    house = House()
    client = house.admit("a", "r")
    with capturedLogs() as logged:
        house.deliveries.received(json.dumps({**message, **known}).encode())
        house.deliveries.received(msgspec.json.encode({"type": "good", "userIds": ["a"]}))
    assert {event["log_level"] for event in logged} <= {LogLevel.warn}
    assert len(client.link.read()) <= 2
    assert house.counters.errors_internal == 0


# The command.


def told(client: Client) -> tuple[str, str, tuple[int, str] | None]:
    [message] = client.link.read()
    assert message["type"] == "error"
    return message["payload"]["code"], message["payload"]["message"], client.link.closed


@pytest.mark.parametrize("payload", [{}, {"payload": None}, {"payload": {}}])
def test_disconnect_is_access_revoked_unless_it_says_otherwise(house: House, payload: Any) -> None:
    client, other = house.admit("a", "r"), house.admit("b", "r")
    house.broadcast(type="disconnect", recipients=[client.id], **payload)
    assert told(client) == ("ACCESS_REVOKED", "disconnected by a service", (4403, "ACCESS_REVOKED"))
    assert other.link.closed is None
    assert house.rooms.entries == {("r", "b"): other.id}


def test_disconnect_with_a_code_and_a_message(house: House) -> None:
    client = house.admit("a", "r")
    house.broadcast(type="disconnect", recipients=[client.id], payload={"code": "RATE_LIMITED", "message": "slowly"})
    assert told(client) == ("RATE_LIMITED", "slowly", (4429, "RATE_LIMITED"))


def test_disconnect_with_a_code_of_the_services_own(house: House) -> None:
    client = house.admit("a", "r")
    house.broadcast(type="disconnect", recipients=[client.id], payload={"code": "BANNED", "message": "for an hour"})
    assert told(client) == ("BANNED", "for an hour", (4403, "BANNED"))


@pytest.mark.parametrize("code", ['"banned"', '""', f'"{"B" * 65}"', "null", "5", "true", "[]", "{}"])
def test_disconnect_with_a_malformed_code_disconnects(house: House, code: str) -> None:
    client = house.admit("a", "r")
    payload = f'{{"code":{code},"message":"for an hour"}}'
    body = f'{{"type":"disconnect","recipients":["{client.id}"],"payload":{payload}}}'
    [logged] = warnings(house, body.encode())
    assert payload in logged["sample"]
    assert told(client) == ("ACCESS_REVOKED", "for an hour", (4403, "ACCESS_REVOKED"))
    assert house.counters.broadcasts_malformed == 1


@pytest.mark.parametrize("payload", ['"text"', "5", "[]", '{"message":5}', '{"code":"BANNED","message":"\\ud800"}'])
def test_disconnect_with_a_malformed_payload_disconnects(house: House, payload: str) -> None:
    client = house.admit("a", "r")
    with capturedLogs():
        house.deliveries.received(f'{{"type":"disconnect","recipients":["{client.id}"],"payload":{payload}}}'.encode())
    assert told(client)[2] in ((4403, "ACCESS_REVOKED"), (4403, "BANNED"))


def test_a_room_is_not_told_which_request_is_answered(house: House) -> None:
    one, other = house.admit("a", "r"), house.admit("b", "r")
    house.broadcast(type="t", roomId="r", inReplyTo=7)
    assert [client.link.read() for client in (one, other)] == [[{"type": "t", "payload": None, "roomId": "r"}]] * 2


def test_disconnect_of_users(house: House) -> None:
    one, two, bob = house.admit("a", "r"), house.admit("a", "s"), house.admit("b", "r")
    house.broadcast(type="disconnect", userIds=["a"])
    assert [told(client)[0] for client in (one, two)] == ["ACCESS_REVOKED"] * 2
    assert bob.link.closed is None


def test_disconnect_of_whoever_is_still_in_a_room(house: House) -> None:
    here, there = house.admit("a", "r"), house.admit("a", "s")
    house.broadcast(type="disconnect", userIds=["a"], roomId="r")
    assert here.link.closed is not None
    assert there.link.closed is None


def test_disconnect_as_a_duplicate_says_so_in_our_words(house: House) -> None:
    client = house.admit("a", "r")
    house.broadcast(type="disconnect", recipients=[client.id], payload={"code": "DUPLICATE_CONNECTION", "message": "x"})
    assert told(client) == (
        "DUPLICATE_CONNECTION",
        "a newer login of the same user took this room",
        (4409, "DUPLICATE_CONNECTION"),
    )
    assert house.counters.duplicates == 1


def test_disconnect_of_nobody_in_particular_disconnects_nobody(house: House) -> None:
    client = house.admit("a", "r")
    with capturedLogs():
        house.broadcast(type="disconnect", payload={"roomId": "r"})
        house.broadcast(type="disconnect", roomId="r")
        house.broadcast(type="disconnect", everybody=True)
    assert client.link.closed is None

"""The core: from what a client says to what Redis is sent, and every refusal on the way, as transcripts."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import capturedLogs
from zope.interface import Invalid

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import Undelivered
from kraftek.contract.messages import Authenticate, Token
from kraftek.contract.settings import Limits, Registration, SelfRegistration
from kraftek.core.gateway import Gateway
from kraftek.core.session import SessionState
from tests.support.world import CHAT, NOTES, House, works

NOT_REGISTERED = "Event type is not valid or service is not registered"


def test_it_is_made_with_a_router_alone() -> None:
    house = House()
    with pytest.raises(Invalid):
        Gateway(
            "gw",
            reply_to="replies",
            router=object(),  # type: ignore[arg-type]
            dispatch=house.gateway._dispatch,
            requests=house.requests,
            receipts=house.receipts,
            admission=house.admission,
            roster=house.roster,
            turns=house.gateway.turns,
            limits=house.limits,
            counters=house.counters,
        )


def test_a_sign_of_life_at_any_time() -> None:
    house = House()
    client = house.connect()
    client.play("""
        > {"type": "ping", "id": 1}
        < {"type": "pong", "payload": null, "id": 1}
        > {"type": "ping"}
        < {"type": "pong", "payload": null}
    """)
    assert house.counters.errors_peer == 0


def test_the_first_word_to_a_client_is_its_socket_id() -> None:
    house = House("gw7")
    client = house.connect()
    assert client.greeting == [{"type": "connected", "payload": {"socketId": client.id}}]
    assert client.id.startswith("gw7.")
    assert client.id != house.connect().id
    assert house.counters.connections == 2
    assert len(house.roster) == 2


def test_an_event_reaches_its_services_channel_with_the_identity_stamped_on() -> None:
    house = House("gw", prefix="p:")
    house.clock.advance(1700000000.1234)
    client = house.admit("alice", "board")
    client.send(
        '{"type":"notes:note:create","id":"q","traceparent":"00-ab","payload":{"x": 1.50,"userId":"mallory"},'
        '"userId":"mallory","socketId":"gw.1","timestamp":0,"gatewayId":"x","replyTo":"x"}'
    )
    [published] = house.bus.published
    assert published.channel == "events:notes"
    assert published.event == {
        "eventType": "notes:note:create",
        "userId": "alice",
        "socketId": client.id,
        "roomId": "board",
        "payload": {"x": 1.5, "userId": "mallory"},
        "timestamp": 1700000000123,
        "id": "q",
        "gatewayId": "gw",
        "replyTo": "p:events:reply:gw",
        "traceparent": "00-ab",
    }
    assert b'"payload":{"x": 1.50,"userId":"mallory"}' in published.body
    assert house.counters.published == 1


@given(
    st.dictionaries(
        st.sampled_from(["userId", "socketId", "gatewayId", "replyTo", "eventType", "timestamp", "user_id", "x"]),
        st.text() | st.integers() | st.none(),
    ),
    st.text(max_size=20),
)
def test_no_client_chooses_who_it_is(forged: dict[str, Any], payload: str) -> None:
    house = House()
    client = house.admit("alice", "board")
    client.send({**forged, "type": "notes:note:create", "payload": {**forged, "text": payload}})
    [published] = house.bus.published
    assert (published.event["userId"], published.event["socketId"]) == ("alice", client.id)
    assert published.event["eventType"] == "notes:note:create"
    assert published.event["gatewayId"] == "gw"
    assert published.event["replyTo"] == "events:reply:gw"
    assert published.event["payload"] == {**forged, "text": payload}


@pytest.mark.parametrize("payload", [b"1.50", b"[1 , 2]", b'"\\u00e9"', b"1E400", b'{"b":1,"a":2,"b":3}'])
def test_a_payload_is_published_byte_for_byte(payload: bytes) -> None:
    house = House()
    house.admit().send('{"type":"notes:note:create","payload":' + payload.decode() + "}")
    assert house.next_published().body.endswith(b'"payload":' + payload + b',"roomId":"room"}')


def test_an_event_without_an_id_is_answered_by_nothing() -> None:
    House().admit("alice", "board").play("""
        > {"type": "notes:note:create", "payload": {"x": 1}}
        * events:notes {"eventType": "notes:note:create", "userId": "alice", "roomId": "board", "id": null}
        + 1
    """)


def test_an_event_with_an_id_is_acknowledged_once_somebody_took_it() -> None:
    House().admit().play("""
        > {"type": "notes:note:create", "id": "q"}
        * events:notes {"id": "q"}
        > {"type": "notes:note:create", "id": 0}
        * events:notes {"id": 0}
        + 2
        < {"type": "ack", "id": "q", "payload": {"receivers": 2}}
        + 1
        < {"type": "ack", "id": 0, "payload": {"receivers": 1}}
    """)


def test_a_service_that_replies_acknowledges_by_its_reply() -> None:
    house = House()
    client = house.admit()
    client.play("""
        > {"type": "chat:message:send", "id": "q"}
        * events:chat {"id": "q", "replyTo": "events:reply:gw"}
        + 1
    """)
    reply = {"type": "chat:message:sent", "recipients": [client.id], "inReplyTo": "q", "payload": 5}
    house.bus.publish("events:reply:gw", json.dumps(reply).encode(), lambda receivers: None)
    house.bus.deliver()
    client.play("""
        < {"type": "chat:message:sent", "id": "q", "payload": 5}
    """)


# Every refusal of the contract, section 7, and that the next good event on the same socket works.


def test_not_authenticated() -> None:
    house = House()
    client = house.connect()
    client.play("""
        > {"type": "notes:note:create", "id": 1}
        x NOT_AUTHENTICATED authenticate first {"id": 1, "eventType": "notes:note:create"}
        > {"type": "nobody:knows:this"}
        x NOT_AUTHENTICATED authenticate first {"eventType": "nobody:knows:this"}
        > {"type": "join", "id": 2, "payload": {"roomId": "room"}}
        x NOT_AUTHENTICATED authenticate first {"id": 2}
        > {"type": "leave", "id": 3, "payload": {"roomId": "room"}}
        x NOT_AUTHENTICATED authenticate first {"id": 3}
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "room"}}
        ! yes alice
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "room"}}
    """)
    assert house.counters.errors_peer == 4
    works(client)


@pytest.mark.parametrize("name", ["notes", "notes:note", "notes::create", "mail:letter:send", "error", "", "x" * 200])
def test_invalid_event(name: str) -> None:
    client = House().admit()
    client.send({"type": name, "id": 1})
    assert client.link.read() == [
        {
            "type": "error",
            "id": 1,
            "payload": {"code": "INVALID_EVENT", "message": NOT_REGISTERED, "eventType": name[:128]},
        }
    ]
    works(client)


@pytest.mark.parametrize("text", ["", "{", "null", "[]", '{"type":1}', '{"type":"notes:note:create","id":[]}'])
def test_invalid_message(text: str) -> None:
    client = House().admit()
    client.send(text)
    [told] = client.link.read()
    assert told["payload"]["code"] == "INVALID_MESSAGE"
    assert told["payload"]["message"]
    works(client)


def test_too_many_invalid_messages_in_a_row() -> None:
    house = House(limits=Limits(invalid_messages=2))
    client = house.admit()
    client.send("{")
    client.link.read()
    works(client)
    client.send("{")
    client.send("{")
    assert client.link.closed == (4400, "INVALID_MESSAGE")
    assert len(house.roster) == 0


def test_access_denied_for_an_event() -> None:
    client = House().connect()
    client.play("""
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "room"}}
        ! yes alice {"permissions": ["notes:note:create", "chat:*:*"]}
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "room"}}
        > {"type": "notes:note:delete", "id": 1}
        x ACCESS_DENIED this event is not permitted {"id": 1, "eventType": "notes:note:delete"}
        > {"type": "chat:message:send"}
        * events:chat {"userId": "alice"}
        + 1
    """)
    works(client)


@pytest.mark.parametrize(
    ("permissions", "permitted"),
    [
        (None, False),
        (["*:*:*", "*:note:add", "notes:*:*"], False),
        (["*:*:*", "wiki:*:*"], True),
        (["wiki:page:read"], True),
    ],
)
def test_a_service_that_has_registered_itself_is_reached_by_name_alone(
    permissions: list[str] | None, permitted: bool
) -> None:
    house = House()
    house.registry.register(SelfRegistration(name="wiki", channel="events:wiki"))
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": "room"}})
    house.access.next().yes("alice", permissions=permissions)
    client.link.read()
    client.send({"type": "wiki:page:read", "id": 1})
    assert [sent.channel for sent in house.bus.published] == (["events:wiki"] if permitted else [])
    told = [message["payload"]["code"] for message in client.link.read()]
    assert told == ([] if permitted else ["ACCESS_DENIED"])


def test_auth_unavailable_while_access_is_suspended() -> None:
    house = House()
    client = house.admit("alice", "room")
    house.access.stale(user_id="alice")
    client.play("""
        ! away
        > {"type": "notes:n:1", "id": 1}
        x AUTH_UNAVAILABLE access cannot be checked at present {"id": 1, "eventType": "notes:n:1", "retryAfter": 1.0}
        @ 1
        ! yes alice
    """)
    works(client)


def test_access_denied_for_a_room() -> None:
    client = House().admit("alice", "room")
    client.play("""
        > {"type": "notes:note:create", "roomId": "other", "id": 1}
        x ACCESS_DENIED not in this room {"id": 1, "eventType": "notes:note:create"}
    """)
    works(client)


def test_service_unavailable_because_nobody_listens() -> None:
    house = House()
    client = house.admit()
    client.play("""
        > {"type": "notes:note:create", "id": 1}
        * events:notes {}
        + 0
        x SERVICE_UNAVAILABLE service notes has no subscriber at present {"id": 1, "eventType": "notes:note:create"}
        > {"type": "chat:message:send"}
        * events:chat {}
        + 0
        x SERVICE_UNAVAILABLE service chat has no subscriber at present {"eventType": "chat:message:send"}
    """)
    assert house.counters.published_to_nobody == 2
    works(client)


def test_service_unavailable_because_redis_is_away() -> None:
    house = House()
    client = house.admit()
    house.bus.down()
    client.play("""
        > {"type": "notes:note:create", "id": 1}
        x SERVICE_UNAVAILABLE the service cannot be reached at present {"id": 1, "eventType": "notes:note:create"}
    """)
    house.bus.up()
    works(client)
    assert house.counters.published == 1


def test_service_unavailable_because_the_connection_was_lost_before_the_receipt() -> None:
    house = House()
    client = house.admit()
    client.play("""
        > {"type": "notes:n:1", "id": 1}
        * events:notes {}
    """)
    house.bus.down()
    client.play("""
        x SERVICE_UNAVAILABLE the connection was lost: the event may not have arrived {"id":1,"eventType":"notes:n:1"}
    """)
    assert house.counters.publishes_lost == 1
    house.bus.up()
    works(client)


def test_service_unavailable_because_redis_refused() -> None:
    house = House()
    client = house.admit()
    client.play("""
        > {"type": "notes:n:1", "id": 1}
        * events:notes {}
    """)
    house.bus.answer(Undelivered.REFUSED)
    client.play("""
        x SERVICE_UNAVAILABLE Redis refused the event {"id": 1, "eventType": "notes:n:1", "retryAfter": 1.0}
    """)
    assert house.counters.publishes_refused == 1
    works(client)


def test_a_receipt_for_a_client_that_left_is_nobodys() -> None:
    house = House()
    for receivers in (1, 0, Undelivered.LOST, Undelivered.REFUSED):
        client = house.admit()
        client.send({"type": "notes:note:create", "id": 1})
        client.session.close(1001, "gone")
        house.bus.answer(receivers)
        assert client.link.read() == []
    assert house.counters.errors_peer == 0


def test_our_fault_is_internal_and_closes() -> None:
    house = House()
    client = house.admit()

    def broken(channel: str, body: bytes, receipt: Any) -> None:
        raise RuntimeError("the cause")

    house.bus.publish = broken  # type: ignore[method-assign]
    with capturedLogs() as logged:
        client.play("""
            > {"type": "notes:note:create", "id": 1}
            x INTERNAL Internal error
            = 1011 INTERNAL
        """)
    assert [str(event["log_failure"].value) for event in logged] == ["the cause"]
    assert len(house.roster) == 0


# Rooms of an event.


def test_the_first_room_joined_is_the_default_and_a_frame_may_name_another() -> None:
    House().admit("alice", "first").play("""
        > {"type": "join", "payload": {"roomId": "second"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "second"}}
        > {"type": "notes:note:create"}
        * events:notes {"roomId": "first"}
        > {"type": "notes:note:create", "roomId": "second"}
        * events:notes {"roomId": "second"}
        > {"type": "notes:note:create", "roomId": "first"}
        * events:notes {"roomId": "first"}
        > {"type": "leave", "payload": {"roomId": "first"}}
        < {"type": "left", "payload": {"roomId": "first"}}
        > {"type": "notes:note:create"}
        * events:notes {"roomId": "second"}
        > {"type": "leave", "payload": {"roomId": "second"}}
        < {"type": "left", "payload": {"roomId": "second"}}
    """)


def test_each_room_has_its_own_permissions() -> None:
    House().admit("alice", "first").play("""
        > {"type": "join", "payload": {"roomId": "second"}}
        ! yes alice {"permissions": ["chat:*:*"]}
        < {"type": "joined", "payload": {"roomId": "second"}}
        > {"type": "notes:note:create", "roomId": "first"}
        * events:notes {"roomId": "first"}
        > {"type": "notes:note:create", "roomId": "second"}
        x ACCESS_DENIED this event is not permitted {"eventType": "notes:note:create"}
        > {"type": "chat:message:send", "roomId": "second"}
        * events:chat {"roomId": "second"}
    """)


def test_an_event_of_a_client_in_no_room_names_none() -> None:
    house = House()
    client = house.admit("alice", None)
    client.send({"type": "notes:note:create"})
    assert "roomId" not in house.next_published().event


def test_without_a_room_the_permissions_of_the_token_count() -> None:
    House().connect().play("""
        > {"type": "authenticate", "payload": {"token": "t"}}
        ? t -
        ! yes alice {"permissions": ["chat:*:*"]}
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": null}}
        > {"type": "notes:note:create"}
        x ACCESS_DENIED this event is not permitted {"eventType": "notes:note:create"}
        > {"type": "chat:message:send"}
        * events:chat {"userId": "alice"}
    """)


# Opening and closing.


def test_credentials_of_the_handshake_are_an_authenticate() -> None:
    house = House()
    client = house.connect(Authenticate(Token("t"), "room"))
    assert [message["type"] for message in client.greeting] == ["connected"]
    client.play("""
        > {"type": "notes:note:create"}
        ? t room
        ! yes alice
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "room"}}
        * events:notes {"userId": "alice"}
        + 1
    """)
    works(client)


def test_credentials_that_are_refused_close() -> None:
    house = House()
    house.access.known["t", None] = PeerError(Code.AUTH_FAILED, "Access denied", closes=True)
    client = house.connect(Authenticate(Token("t")))
    assert [message["type"] for message in client.greeting] == ["connected", "error"]
    assert client.link.closed == (4401, "AUTH_FAILED")
    assert client.session.state is SessionState.CLOSED
    assert len(house.roster) == 0


def test_all_are_closed_when_the_process_stops() -> None:
    house = House()
    clients = [house.admit(f"user{n}", "room") for n in range(3)] + [house.connect()]
    house.drain.begin(0.0, "the gateway stops")
    assert {client.link.closed for client in clients} == {(1012, "the gateway stops")}
    assert len(house.roster) == 0
    assert house.rooms.entries == {}


def test_a_service_may_come_and_go_at_run_time() -> None:
    house = House(services=[NOTES])
    client = house.admit()
    client.send({"type": "chat:message:send"})
    assert client.link.read()[0]["payload"]["code"] == "INVALID_EVENT"
    house.registry.register(CHAT)
    client.play("""
        > {"type": "chat:message:send"}
        * events:chat {}
    """)
    house.registry.unregister("chat")
    house.registry.register(Registration(name="chat", channel="events:elsewhere"))
    client.play("""
        > {"type": "chat:message:send"}
        * events:elsewhere {}
    """)


def test_the_reply_channel_is_named_as_services_must_name_it() -> None:
    house = House("gw", prefix="staging:")
    house.admit().send({"type": "notes:note:create"})
    assert msgspec.json.decode(house.next_published().body)["replyTo"] == "staging:events:reply:gw"

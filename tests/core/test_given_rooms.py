"""Rooms that services give: who is in them, what may be sent from there, and what ends them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.logger import capturedLogs

from kraftek.contract.settings import Limits
from tests.support.world import Client, House

PUT = "gateway:room:put"
REMOVE = "gateway:room:remove"


def put(house: House, room_id: str = "match", **to: Any) -> None:
    permissions = to.pop("permissions", None)
    payload = {} if permissions is None else {"payload": {"permissions": permissions}}
    house.broadcast(type=PUT, roomId=room_id, **payload, **(to or {"userIds": ["user"]}))


def remove(house: House, room_id: str = "match", **to: Any) -> None:
    house.broadcast(type=REMOVE, roomId=room_id, **(to or {"userIds": ["user"]}))


def invalidate(house: House, **words: Any) -> None:
    """As the auth service does; the access cache, which is a stand-in here, hears of it, too."""
    for listener in tuple(house.bus._channels["auth:invalidate"]):
        listener(json.dumps(words).encode())
    house.access.stale(user_id=words["userId"], room_id=words.get("roomId"))


def hears(client: Client, room_id: str = "match") -> bool:
    client.house.broadcast(type="chat:message:sent", roomId=room_id, payload=1)
    return [each["type"] for each in client.link.read()] == ["chat:message:sent"]


GONE = 'x ACCESS_REVOKED Access to room match was ended by a service {"roomId": "match"}'


def test_who_is_put_into_a_room_is_told_and_hears_it() -> None:
    house = House()
    client, other = house.admit("user", "lobby"), house.admit("other", "lobby")
    put(house)
    client.play('< {"type": "joined", "payload": {"roomId": "match"}}')
    assert (hears(client), other.link.read(), house.access.questions) == (True, [], [])
    assert house.rooms.entries[("match", "user")] == client.id
    assert house.rooms.told[-1] == ("joined", "user", "match")
    assert house.counters.rooms_given == 1
    put(house)
    client.play("")
    remove(house)
    client.play(GONE)
    assert not hears(client)
    assert house.rooms.told[-1] == ("removed", "user", "match")
    assert ("match", "user") not in house.rooms.entries
    assert (client.link.closed, hears(client, "lobby")) == (None, True)
    remove(house)
    client.play("")


def test_by_socket_by_user_and_by_both() -> None:
    house = House(single=False)
    one, two, other = house.admit("user", "a"), house.admit("user", "b"), house.admit("other", "c")
    put(house, recipients=[two.id])
    two.play('< {"type": "joined", "payload": {"roomId": "match"}}')
    one.play("")
    put(house, recipients=[other.id], userIds=["user"])
    for client in (one, other):
        client.play('< {"type": "joined", "payload": {"roomId": "match"}}')
    two.play("")
    remove(house, recipients=[one.id, other.id])
    for client in (one, other):
        client.play(GONE)
    assert [("match" in client.session.rooms) for client in (one, two, other)] == [False, True, False]


def test_it_permits_what_the_service_says_and_nothing_by_default() -> None:
    house = House()
    client = house.admit("user", "lobby")
    put(house)
    client.link.read()
    sent = '> {"type": "notes:note:create", "id": 1, "roomId": "match"}'
    denied = f"""
        {sent}
        x ACCESS_DENIED this event is not permitted {{"id": 1, "eventType": "notes:note:create"}}
    """
    client.play(denied)
    put(house, permissions=["notes:*:*"])
    client.play(f"""
        {sent}
        * events:notes {{"roomId": "match", "userId": "user"}}
        + 1
        < {{"type": "ack", "id": 1, "payload": {{"receivers": 1}}}}
    """)
    put(house, permissions=["chat:*:*"])
    client.play(denied)


def test_it_is_no_default_room() -> None:
    house = House()
    client = house.admit("user", None)
    put(house, permissions=["notes:*:*"])
    client.play("""
        < {"type": "joined", "payload": {"roomId": "match"}}
        > {"type": "notes:note:create"}
        * events:notes {"roomId": null}
        + 1
        > {"type": "join", "payload": {"roomId": "lobby"}}
        ? token lobby
        ! yes user
        < {"type": "joined", "payload": {"roomId": "lobby"}}
        > {"type": "leave", "payload": {"roomId": "lobby"}}
        < {"type": "left", "payload": {"roomId": "lobby"}}
    """)
    assert client.session.room_id is None


def test_a_client_may_leave_it() -> None:
    house = House()
    client = house.admit("user", "lobby")
    put(house)
    client.play("""
        < {"type": "joined", "payload": {"roomId": "match"}}
        > {"type": "leave", "payload": {"roomId": "match"}, "id": 1}
        < {"type": "left", "payload": {"roomId": "match"}, "id": 1}
    """)
    assert house.rooms.told[-1] == ("left", "user", "match")


def test_it_ends_with_the_socket() -> None:
    house = House()
    client = house.admit("user", "lobby")
    put(house)
    client.leave()
    assert house.rooms.told[-1] == ("closed", "user", "match")
    again = house.admit("user", "lobby")
    assert not hears(again)


def test_an_invalidation_of_the_user_ends_it() -> None:
    house = House()
    client = house.admit("user", "lobby")
    put(house)
    client.link.read()
    invalidate(house, userId="other")
    invalidate(house, userId="user", roomId="elsewhere")
    assert hears(client)
    invalidate(house, userId="user", roomId="match")
    client.play('x ACCESS_REVOKED Access to room match was revoked {"roomId": "match"}')
    put(house)
    client.link.read()
    invalidate(house, userId="user")
    client.play("""
        x ACCESS_REVOKED Access to room match was revoked {"roomId": "match"}
        ? token lobby
        ! yes user
    """)
    assert house.rooms.told[-1] == ("revoked", "user", "match")
    invalidate(house, userId="user", roomId="")
    for listener in tuple(house.bus._channels["auth:invalidate"]):
        listener(b"no JSON")


def test_who_is_put_in_after_the_invalidation_stays() -> None:
    house = House()
    client = house.admit("user", "lobby")
    invalidate(house, userId="user")
    put(house)
    client.play("""
        < {"type": "joined", "payload": {"roomId": "match"}}
        ? token lobby
        ! yes user
    """)
    assert hears(client)


def test_it_does_not_keep_a_socket_whose_own_access_ends() -> None:
    house = House()
    client = house.admit("user", "lobby")
    put(house)
    client.link.read()
    house.access.stale(user_id="user")
    client.play("""
        ? token lobby
        ! no
        x ACCESS_REVOKED Access to room lobby was revoked {"roomId": "lobby"}
        = 4403 ACCESS_REVOKED
    """)
    assert house.rooms.told[-1] == ("closed", "user", "match")


def test_it_is_never_asked_about() -> None:
    house = House()
    client = house.admit("user", "lobby")
    put(house)
    client.link.read()
    house.access.stale(revoked=False)
    house.access.stale(user_id="user", revoked=False)
    house.pass_time(2)
    assert {question.room_id for question in house.access.questions} == {"lobby"}


def test_a_token_that_expires_ends_what_it_gave_and_then_the_socket() -> None:
    house = House()
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": "lobby"}})
    house.access.next().yes("user", expiresAt=5.0)
    client.link.read()
    put(house)
    client.link.read()
    house.pass_time(6)
    house.access.next().no()
    house.clock.advance(0)
    assert client.link.read()[-1]["payload"]["code"] == "TOKEN_EXPIRED"
    assert hears(client)
    house.pass_time(11)
    assert client.link.closed == (4401, "TOKEN_EXPIRED")


def test_another_token_leaves_it_alone() -> None:
    house = House()
    client = house.admit("user", "lobby")
    put(house)
    client.link.read()
    client.play("""
        > {"type": "authenticate", "payload": {"token": "fresh"}, "id": 1}
        ? fresh lobby
        ! yes user
        < {"type": "authenticated", "payload": {"success": true, "userId": "user", "roomId": "lobby"}, "id": 1}
    """)
    assert (hears(client), house.access.questions) == (True, [])


def test_who_has_joined_already_goes_by_the_auth_service() -> None:
    house = House()
    client = house.admit("user", "match")
    put(house)
    client.play("")
    invalidate(house, userId="user", roomId="match")
    client.play("""
        ? token match
        ! yes user
    """)
    assert hears(client)


def test_who_joins_a_room_that_was_given_goes_by_the_auth_service() -> None:
    house = House()
    client = house.admit("user", "lobby")
    put(house)
    client.play("""
        < {"type": "joined", "payload": {"roomId": "match"}}
        > {"type": "join", "payload": {"roomId": "match"}, "id": 1}
        ? token match
        ! no not you
        x ACCESS_DENIED not you {"id": 1}
    """)
    assert hears(client)
    client.play("""
        > {"type": "join", "payload": {"roomId": "match"}, "id": 2}
        ? token match
        ! yes user
        < {"type": "joined", "payload": {"roomId": "match"}, "id": 2}
    """)
    assert [each for each in house.rooms.told if each[2] == "match"] == [("joined", "user", "match")]
    invalidate(house, userId="user", roomId="match")
    client.play("""
        ? token match
        ! no
        x ACCESS_REVOKED Access to room match was revoked {"roomId": "match"}
    """)


@pytest.mark.parametrize("answer", ["yes user", "no not you"])
def test_it_is_given_while_it_is_being_joined(answer: str) -> None:
    house = House()
    client = house.admit("user", "lobby")
    client.play("""
        > {"type": "join", "payload": {"roomId": "match"}, "id": 1}
        ? token match
    """)
    put(house)
    told = '< {"type": "joined", "payload": {"roomId": "match"}, "id": 1}'
    client.play(f"""
        < {{"type": "joined", "payload": {{"roomId": "match"}}}}
        ! {answer}
        {told if answer.startswith("yes") else 'x ACCESS_DENIED not you {"id": 1}'}
    """)
    assert hears(client)


def test_taking_out_ends_what_the_auth_service_has_allowed_too() -> None:
    house = House()
    client = house.admit("user", "lobby")
    client.send({"type": "join", "payload": {"roomId": "match"}})
    house.access.next().yes("user")
    client.link.read()
    remove(house)
    client.play(GONE)
    remove(house, "lobby")
    client.play("""
        x ACCESS_REVOKED Access to room lobby was ended by a service {"roomId": "lobby"}
        = 4403 ACCESS_REVOKED
    """)


def test_who_was_in_no_other_room_stays_connected() -> None:
    house = House()
    client = house.admit("user", "lobby")
    client.send({"type": "leave", "payload": {"roomId": "lobby"}})
    client.link.read()
    put(house)
    client.link.read()
    remove(house)
    client.play(GONE)
    assert client.link.closed is None


def test_who_is_not_there_or_has_not_authenticated_is_not_put_in() -> None:
    house = House()
    stranger = house.connect()
    put(house, recipients=[stranger.id, "gw.nobody"], userIds=["nobody"])
    stranger.play("")
    gone = house.admit("user", "lobby")
    gone.leave()
    put(house, recipients=[gone.id], userIds=["user"])
    assert (gone.link.read(), house.counters.rooms_given) == ([], 0)


def test_a_socket_is_in_as_many_rooms_as_it_may() -> None:
    house = House(limits=Limits(rooms=2))
    client = house.admit("user", "lobby")
    put(house, "one")
    client.link.read()
    with capturedLogs() as logged:
        put(house, "two")
    client.play("")
    assert (house.counters.rooms_given, house.counters.rooms_not_given) == (1, 1)
    assert [event["log_format"][:50] for event in logged] == ["A service puts sockets into more than {most} rooms"]
    client.play("""
        > {"type": "join", "payload": {"roomId": "two"}, "id": 1}
        x ACCESS_DENIED a socket may be in 2 rooms at most {"id": 1}
    """)


@pytest.mark.parametrize(
    "words",
    [
        {"roomId": None},
        {"roomId": ""},
        {"roomId": "x" * 257},
        {"payload": {"permissions": "notes:*:*"}},
        {"payload": []},
        {"type": "gateway:room:burn"},
        {"type": "gateway:client:joined"},
    ],
)
def test_what_is_no_such_command_is_counted_and_sent_to_nobody(words: dict[str, Any]) -> None:
    house = House()
    client = house.admit("user", "lobby")
    with capturedLogs() as logged:
        house.broadcast(**{"type": PUT, "roomId": "match", "userIds": ["user"], **words})
    client.play("")
    assert (house.counters.broadcasts_malformed, len(logged)) == (1, 1)


# One socket per user and room.


def test_it_is_no_login() -> None:
    house = House()
    one, two = house.admit("user", "a"), house.admit("user", "b")
    put(house)
    for client in (one, two):
        client.play('< {"type": "joined", "payload": {"roomId": "match"}}')
    own = house.admit("user", "match")
    assert [client.link.closed for client in (one, two, own)] == [None, None, None]
    house.pass_time(5)
    house.bus.deliver()
    house.pass_time(5)
    assert [client.link.closed for client in (one, two, own)] == [None, None, None]
    assert house.rooms.entries[("match", "user")] == own.id
    newer = house.admit("user", "match")
    assert [client.link.closed for client in (one, two, newer)] == [None, None, None]
    assert own.link.closed == (4409, "DUPLICATE_CONNECTION")


def test_it_is_no_login_on_another_gateway_either() -> None:
    channels: dict[str, Any] = {}
    sockets: dict[tuple[str, str], dict[str, int]] = {}
    here, there = (House(name, channels=channels, sockets=sockets) for name in ("here", "there"))
    own, given = here.admit("user", "match"), there.admit("user", "lobby")
    put(there)
    for _ in range(3):
        for house in (here, there):
            house.pass_time(5)
            house.bus.deliver()
    assert (own.link.closed, given.link.closed) == (None, None)
    assert here.rooms.entries[("match", "user")] == own.id
    own.leave()
    assert there.rooms.entries[("match", "user")] == given.id
    newer = here.admit("user", "match")
    for house in (here, there):
        house.bus.deliver()
    assert (newer.link.closed, given.link.closed) == (None, None)
    remove(there)
    assert here.rooms.entries[("match", "user")] == newer.id


def test_it_is_written_when_redis_is_back() -> None:
    house = House()
    client = house.admit("user", "lobby")
    house.bus.down()
    put(house)
    client.link.read()
    assert ("match", "user") not in house.rooms.entries
    house.bus.up()
    house.pass_time(2)
    assert house.rooms.entries[("match", "user")] == client.id
    house.rooms.failure = RuntimeError("refused")
    with capturedLogs():
        put(house, "other")
    house.rooms.failure = None
    house.pass_time(2)
    assert house.rooms.entries[("other", "user")] == client.id


def test_it_crosses_an_upgrade() -> None:
    before, after = House("gw"), House("gw")
    client = before.admit("user", "lobby")
    put(before, permissions=["notes:*:*"])
    client.link.read()
    session = after.move.take_session(before.move.give_session(client.session), client.link, client.session.dialect)
    after.move.take(before.move.give())
    assert session.rooms["match"].permissions == ("notes:*:*",)
    assert session.asked == {"lobby"}
    after.access.stale(revoked=False)
    after.pass_time(2)
    assert {question.room_id for question in after.access.questions} == {"lobby"}
    remove(after)
    (gone,) = client.link.read()
    assert (gone["payload"]["code"], gone["roomId"]) == ("ACCESS_REVOKED", "match")

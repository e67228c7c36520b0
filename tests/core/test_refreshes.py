# ruff: noqa: E501  # a step of a transcript is a line
"""Another token on an open socket: what goes on meanwhile, what each answer does, and what happens without one."""

from __future__ import annotations

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.messages import Token
from kraftek.contract.settings import Limits
from kraftek.core.expired_tokens import GRACE
from tests.support.world import Client, House, works

EXPIRED = "the token has expired: authenticate with another one"


def admitted(house: House, *rooms: str, at: float = 20.0) -> Client:
    """Alice is in these rooms by the token old, which expires."""
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": "old", "roomId": rooms[0]}})
    house.access.next().yes("alice", expiresAt=at)
    for room in rooms[1:]:
        client.send({"type": "join", "payload": {"roomId": room}})
        house.access.next().yes("alice", expiresAt=at)
    client.link.read()
    return client


def shown(client: Client, token: str = "new", room: str | None = None) -> None:
    client.send({"type": "authenticate", "id": 1, "payload": {"token": token, "roomId": room}})


def test_clients_are_told_when_their_access_expires() -> None:
    house = House()
    house.clock.advance(5)
    client = house.connect()
    client.play("""
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "one"}}
        ! yes alice {"expiresAt": 20.25}
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "one", "expiresIn": 15.25}}
        > {"type": "join", "payload": {"roomId": "two"}}
        ! yes alice {"expiresAt": 10}
        < {"type": "joined", "payload": {"roomId": "two", "expiresIn": 5.0}}
        > {"type": "join", "payload": {"roomId": "three"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "three"}}
    """)


def test_every_room_is_asked_about_and_goes_by_the_new_token() -> None:
    house = House()
    client = admitted(house, "one", "two", "three")
    client.play("""
        > {"type": "authenticate", "id": 1, "payload": {"token": "new"}}
        ? new two
        ! yes alice {"expiresAt": 70}
        ? new three
        ! yes alice {"expiresAt": 60}
        ? new one
        ! yes alice {"expiresAt": 80}
        < {"id": 1, "type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "one", "expiresIn": 60.0}}
        @ 30
    """)
    works(client)
    assert client.session.room_id == "one"
    assert [*client.session.rooms] == ["one", "two", "three"]
    assert not house.roster.digest(Token("old").digest)
    assert [*house.roster.digest(Token("new").digest)] == [client.session]


def test_nothing_is_held_or_withheld_meanwhile() -> None:
    house = House()
    client = admitted(house, "one", "two")
    shown(client)
    client.play("""
        > {"type": "notes:n:1"}
        * events:notes {"roomId": "one"}
        > {"type": "notes:n:2", "roomId": "two"}
        * events:notes {"roomId": "two"}
    """)
    house.broadcast(type="news", roomId="one")
    client.play("""
        < {"type": "news", "payload": null, "roomId": "one"}
        ! yes alice
        > {"type": "notes:n:3"}
        * events:notes {"roomId": "one"}
        ! yes alice
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "alice", "roomId": "one"}}
    """)


def test_a_no_puts_that_room_out_alone() -> None:
    house = House()
    client = admitted(house, "one", "two")
    shown(client)
    client.play("""
        ? new two
        ! yes alice
        ? new one
        ! no
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "alice", "roomId": "one"}}
        x ACCESS_REVOKED Access to room one was revoked {"roomId": "one"}
    """)
    assert [*client.session.rooms] == ["two"]
    works(client)


def test_who_could_not_be_asked_leaves_the_old_grant_to_its_end() -> None:
    house = House()
    client = admitted(house, "one", "two")
    shown(client)
    client.play("""
        ? new two
        ! away
        ? new one
        ! yes alice {"expiresAt": 60}
        < {"id": 1, "type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "one", "expiresIn": 20.0}}
        @ 19
        > {"type": "notes:n:1", "roomId": "two"}
        * events:notes {"roomId": "two"}
        @ 1.25
        ? new two
        ! yes alice
        > {"type": "notes:n:2", "roomId": "two"}
        * events:notes {"roomId": "two"}
    """)


def test_nobody_could_be_asked() -> None:
    house = House()
    client = admitted(house, "one", "two")
    shown(client)
    client.play("""
        ! no
        ! away
        x AUTH_UNAVAILABLE access cannot be checked at present {"id": 1, "retryAfter": 1.0}
    """)
    works(client)
    assert [*client.session.rooms] == ["one", "two"]


def test_a_token_that_is_good_for_nothing_closes() -> None:
    house = House()
    client = admitted(house, "one", "two")
    shown(client)
    client.play("""
        ! no Access denied
        ! no Access denied
        x AUTH_FAILED Access denied {"id": 1}
        = 4401 AUTH_FAILED
    """)


def test_a_room_more_with_another_token_is_entered_in_order() -> None:
    house = House()
    client = admitted(house, "one")
    client.play("""
        > {"type": "authenticate", "payload": {"token": "new", "roomId": "two"}}
        > {"type": "notes:n:1", "roomId": "two"}
        ? new one
        ! yes alice
        ? new two
        ! yes alice
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "two"}}
        * events:notes {"roomId": "two"}
    """)
    assert client.session.room_id == "one"


def test_a_room_more_that_is_denied_is_no_reason_to_close() -> None:
    house = House()
    client = admitted(house, "one")
    shown(client, room="two")
    client.play("""
        ! yes alice
        ? new two
        ! no Access denied
        x ACCESS_DENIED Access denied {"id": 1}
        @ 21
    """)
    works(client)


def test_where_it_is_permitted_the_new_token_counts_even_so() -> None:
    house = House()
    client = admitted(house, "one")
    shown(client, room="two")
    client.play("""
        ! yes alice
        ! no Access denied
        x ACCESS_DENIED Access denied {"id": 1}
    """)
    house.access.stale(digest=Token("old").digest)
    house.access.stale(user_id="alice", room_id="one")
    client.play("""
        ? new one
        ! no
        x ACCESS_REVOKED Access to room one was revoked {"roomId": "one"}
        = 4403 ACCESS_REVOKED
    """)


def test_who_leaves_meanwhile_stays_out() -> None:
    house = House()
    client = admitted(house, "one", "two")
    shown(client)
    client.play("""
        > {"type": "leave", "payload": {"roomId": "two"}}
        < {"type": "left", "payload": {"roomId": "two"}}
        ! yes alice
        ! yes alice
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "alice", "roomId": "one"}}
    """)
    assert [*client.session.rooms] == ["one"]


def test_who_leaves_the_first_room_meanwhile_stays_out_of_it() -> None:
    house = House()
    client = admitted(house, "one", "two")
    shown(client)
    client.play("""
        ? new two
        ! yes alice
        > {"type": "leave", "payload": {"roomId": "one"}}
        < {"type": "left", "payload": {"roomId": "one"}}
        ? new one
        ! yes alice
        ? new two
        ! yes alice {"expiresAt": 60}
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "alice", "roomId": "two", "expiresIn": 60.0}}
    """)
    assert set(client.session.rooms) == {"two"}
    assert set(house.rooms.entries) == {("two", "alice")}


def test_who_loses_the_first_room_meanwhile_stays_out_of_it() -> None:
    """The client has been told so: it would not know that it is there."""
    house = House()
    client = admitted(house, "one", "two")
    shown(client)
    house.access.stale(user_id="alice", room_id="one")
    client.play("""
        ? new two
        ! yes alice
        ? old one
        ! no
        x ACCESS_REVOKED Access to room one was revoked {"roomId": "one"}
        ? new one
        ! yes alice
        ? new two
        ! yes alice
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "alice", "roomId": "two"}}
    """)
    assert set(client.session.rooms) == {"two"}
    assert set(house.rooms.entries) == {("two", "alice")}


def test_who_loses_the_room_that_it_names_is_told_how_it_is_about_that() -> None:
    house = House()
    client = admitted(house, "one", "two")
    shown(client, room="one")
    house.access.stale(user_id="alice", room_id="one")
    client.play("""
        ? new two
        ! yes alice
        ? old one
        ! no
        x ACCESS_REVOKED Access to room one was revoked {"roomId": "one"}
        ? new one
        ! no Access denied
        x ACCESS_DENIED Access denied {"id": 1}
    """)
    assert set(client.session.rooms) == {"two"}


def test_who_leaves_the_only_room_meanwhile_is_in_none() -> None:
    house = House()
    client = admitted(house, "one")
    shown(client)
    client.play("""
        > {"type": "leave", "payload": {"roomId": "one"}}
        < {"type": "left", "payload": {"roomId": "one"}}
        ? new one
        ! yes alice
        ? new -
        ! yes alice {"expiresAt": 60}
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "alice", "roomId": null, "expiresIn": 60.0}}
        @ 21
    """)
    house.broadcast(type="mine", userIds=["alice"])
    assert [message["type"] for message in client.link.read()] == ["mine"]
    assert not house.rooms.entries


def test_who_is_gone_is_told_nothing() -> None:
    house = House()
    client = admitted(house, "one")
    shown(client)
    client.leave()
    house.access.next().yes("alice")
    assert client.link.read() == []
    assert not house.roster.digest(Token("new").digest)


def test_a_revocation_meanwhile_counts() -> None:
    house = House()
    client = admitted(house, "one", "two")
    shown(client)
    house.access.stale(user_id="alice", room_id="two")
    client.play("""
        ? new two
        ! yes alice
    """)
    # The cache repeats a check that was in flight; this one was answered after that.
    client.play("""
        ? old two
        ! no
        ? new one
        ! yes alice
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "alice", "roomId": "one"}}
    """)
    assert [*client.session.rooms] == ["one", "two"]


# A token that has expired.


def test_an_expired_token_keeps_its_place_for_a_while() -> None:
    house = House()
    client = admitted(house, "one", "two")
    client.play("""
        @ 20.25
        ? old one
        ! no
        x TOKEN_EXPIRED Access to room one has expired {"roomId": "one"}
        ? old two
        ! no
        x TOKEN_EXPIRED Access to room two has expired {"roomId": "two"}
        @ 9
    """)
    house.broadcast(type="news", roomId="one")
    house.broadcast(type="mine", userIds=["alice"])
    client.play(f"""
        > {{"type": "notes:n:1", "roomId": "two"}}
        x TOKEN_EXPIRED {EXPIRED} {{"eventType": "notes:n:1"}}
        > {{"type": "authenticate", "payload": {{"token": "new"}}}}
        ? new two
        ! yes alice
        < {{"type": "mine", "payload": null}}
        ? new one
        ! yes alice
        < {{"type": "authenticated", "payload": {{"success": true, "userId": "alice", "roomId": "one"}}}}
        < {{"type": "news", "payload": null, "roomId": "one"}}
        @ 20
    """)
    works(client)
    assert [*client.session.rooms] == ["one", "two"]
    assert len(house.access_watch._expired) == 0
    assert set(house.rooms.entries) == {("one", "alice"), ("two", "alice")}


def test_after_a_while_it_is_closed() -> None:
    house = House()
    client = admitted(house, "one")
    client.play(f"""
        @ 20.25
        ! away
        x TOKEN_EXPIRED Access to room one has expired {{"roomId": "one"}}
        @ {GRACE - 0.25}
        @ 0.25
        x TOKEN_EXPIRED no other token was shown in time
        = 4401 TOKEN_EXPIRED
    """)
    assert len(house.access_watch._expired) == 0


def test_an_auth_service_may_say_that_it_is_the_token() -> None:
    """However long it had said that it is good for, and whatever other rooms there are."""
    house = House()
    client = admitted(house, "one", "two", at=1000.0)
    house.access.stale(user_id="alice", room_id="one")
    question = house.access.next()
    question.answer.errback(PeerError(Code.TOKEN_EXPIRED, "no", closes=True))
    client.play("""
        x TOKEN_EXPIRED Access to room one has expired {"roomId": "one"}
    """)
    house.access.stale(user_id="alice", room_id="one")
    house.access.next().answer.errback(PeerError(Code.TOKEN_EXPIRED, "no", closes=True))
    client.play(f"""
        @ {GRACE}
        x TOKEN_EXPIRED no other token was shown in time
        = 4401 TOKEN_EXPIRED
    """)


def test_who_leaves_the_rooms_of_an_expired_token_may_stay() -> None:
    house = House()
    client = admitted(house, "one", "two", at=1000.0)
    house.access.stale(user_id="alice", room_id="one")
    house.access.next().answer.errback(PeerError(Code.TOKEN_EXPIRED, "no", closes=True))
    client.play(f"""
        x TOKEN_EXPIRED Access to room one has expired {{"roomId": "one"}}
        > {{"type": "leave", "payload": {{"roomId": "one"}}}}
        < {{"type": "left", "payload": {{"roomId": "one"}}}}
        @ {2 * GRACE}
    """)
    works(client)


def test_an_expired_token_at_the_door() -> None:
    house = House()
    house.access.known["old", "one"] = PeerError(Code.TOKEN_EXPIRED, "jwt expired", closes=True)
    house.connect().play("""
        > {"type": "authenticate", "id": 1, "payload": {"token": "old", "roomId": "one"}}
        x TOKEN_EXPIRED jwt expired {"id": 1}
        = 4401 TOKEN_EXPIRED
    """)


def test_a_join_with_an_expired_token_is_no_reason_to_close() -> None:
    house = House()
    client = admitted(house, "one")
    house.access.known["old", "two"] = PeerError(Code.TOKEN_EXPIRED, "jwt expired", closes=True)
    client.play("""
        > {"type": "join", "id": 1, "payload": {"roomId": "two"}}
        x TOKEN_EXPIRED jwt expired {"id": 1}
    """)
    works(client)


def test_a_second_token_waits_for_the_first_and_so_does_what_comes_after_it() -> None:
    house = House()
    client = admitted(house, "one", "two")
    shown(client, "first")
    shown(client, "second")
    shown(client, "third")
    client.send({"type": "notes:n:1"})
    assert [question.token for question in house.access.questions] == ["first"]
    assert not house.bus.published
    client.play("""
        ? first two
        ! yes alice
        ? first one
        ! yes alice
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "alice", "roomId": "one"}}
        ? second two
        ! yes alice
        ? second one
        ! yes alice
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "alice", "roomId": "one"}}
        * events:notes {"eventType": "notes:n:1"}
        ? third two
        ! yes alice
        ? third one
        ! yes alice
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "alice", "roomId": "one"}}
    """)
    assert [*house.roster.digest(Token("third").digest)] == [client.session]
    assert not house.access.questions


def test_a_second_token_counts_where_the_first_was_refused() -> None:
    house = House()
    client = admitted(house, "one")
    shown(client, "first")
    shown(client, "second")
    client.play("""
        ? first one
        ! away
        x AUTH_UNAVAILABLE access cannot be checked at present {"id": 1, "retryAfter": 1.0}
        ? second one
        ! yes alice
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "alice", "roomId": "one"}}
    """)
    works(client)


def test_who_is_closed_by_the_first_token_shows_no_second() -> None:
    house = House()
    client = admitted(house, "one")
    shown(client, "first")
    shown(client, "second")
    client.play("""
        ? first one
        ! no Access denied
        x AUTH_FAILED Access denied {"id": 1}
        = 4401 AUTH_FAILED
    """)
    assert not house.access.questions


def test_a_few_rooms_are_asked_about_in_a_turn() -> None:
    house = House(limits=Limits(joins_per_user=0))
    rooms = [f"room {number}" for number in range(20)]
    client = admitted(house, *rooms)
    shown(client)
    assert [question.room_id for question in house.access.questions] == rooms[1:9]
    client.send({"type": "leave", "payload": {"roomId": "room 19"}})
    house.clock.advance(0)
    assert [question.room_id for question in house.access.questions] == rooms[1:19]
    while house.access.questions:
        house.access.next().yes("alice")
    assert [message["type"] for message in client.link.read()] == ["left", "authenticated"]


def test_a_token_counts_as_so_many_joins_as_there_are_rooms() -> None:
    house = House(limits=Limits(joins_per_user=10, burst=1.0))
    client = admitted(house, "one", "two", "three", "four")
    house.clock.advance(1)
    for room in (None, "one", "five"):
        shown(client, room=room)
        while house.access.questions:
            house.access.next().yes("alice")
        assert client.link.read()[-1]["type"] == "authenticated"
        house.clock.advance(0)
    shown(client)
    assert not house.access.questions
    refusal = client.link.read()[-1]["payload"]
    assert (refusal["code"], refusal["limit"], refusal["retryAfter"]) == ("RATE_LIMITED", "joins", 1.0)
    house.clock.advance(0.301)
    shown(client)
    assert house.access.questions


def test_who_is_in_no_room_may_refresh_too() -> None:
    house = House()
    client = admitted(house, "one")
    client.play("""
        > {"type": "leave", "payload": {"roomId": "one"}}
        < {"type": "left", "payload": {"roomId": "one"}}
        @ 20.5
        ? old -
        ! no
        x TOKEN_EXPIRED Access has expired
        > {"type": "authenticate", "payload": {"token": "new"}}
        ? new -
        ! yes alice {"expiresAt": 60}
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": null, "expiresIn": 39.5}}
        @ 20
    """)
    house.broadcast(type="mine", userIds=["alice"])
    assert [message["type"] for message in client.link.read()] == ["mine"]

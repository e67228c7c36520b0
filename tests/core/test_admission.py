"""Clients that want in, and what they are answered: as transcripts where a client sees it."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import capturedLogs

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.messages import Grant, Token
from kraftek.contract.settings import Limits
from tests.support.world import House, works

# Authenticating.


def test_a_yes_lets_in_and_into_the_room() -> None:
    house = House()
    client = house.connect()
    client.play("""
        > {"type": "authenticate", "id": 5, "payload": {"token": "t", "roomId": "board"}}
        ? t board
        ! yes alice
        < {"type": "authenticated", "id": 5, "payload": {"success": true, "userId": "alice", "roomId": "board"}}
    """)
    assert house.rooms.entries == {("board", "alice"): client.id}
    assert list(house.roster.room("board")) == list(house.roster.user("alice")) == [client.session]
    works(client)


def test_the_room_is_the_one_that_the_auth_service_names() -> None:
    house = House()
    client = house.connect()
    client.play("""
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "alias"}}
        ! yes alice {"roomId": "real"}
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "real"}}
    """)
    assert house.rooms.entries == {("real", "alice"): client.id}


def test_the_clients_own_room_counts_where_the_auth_service_names_none() -> None:
    house = House()
    client = house.connect()
    client.play("""
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "board"}}
        ! yes alice {"roomId": null}
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "board"}}
    """)
    assert house.rooms.entries == {("board", "alice"): client.id}


def test_a_no_closes() -> None:
    house = House()
    house.connect().play("""
        > {"type": "authenticate", "id": 5, "payload": {"token": "t", "roomId": "board"}}
        ! no Invalid token
        x AUTH_FAILED Invalid token {"id": 5}
        = 4401 AUTH_FAILED
    """)
    assert len(house.roster) == 0
    assert house.rooms.entries == {}


def test_no_token_is_a_no_that_nobody_is_asked_about() -> None:
    house = House()
    house.connect().play("""
        > {"type": "authenticate", "id": 5, "payload": {"roomId": "board"}}
        x AUTH_FAILED Token and roomId required {"id": 5}
        = 4401 AUTH_FAILED
    """)
    assert house.access.questions == []


def test_could_not_ask_is_neither_a_yes_nor_a_no() -> None:
    house = House()
    client = house.connect()
    client.play("""
        > {"type": "authenticate", "id": 5, "payload": {"token": "t", "roomId": "room"}}
        ! away
        x AUTH_UNAVAILABLE access cannot be checked at present {"id": 5, "retryAfter": 1.0}
        > {"type": "notes:note:create"}
        x NOT_AUTHENTICATED authenticate first {"eventType": "notes:note:create"}
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "room"}}
        ! yes alice
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "room"}}
    """)
    works(client)


def test_what_arrives_meanwhile_is_held_in_order() -> None:
    house = House()
    client = house.connect()
    client.play("""
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "one"}}
        > {"type": "notes:n:1"}
        > {"type": "join", "payload": {"roomId": "two"}}
        > {"type": "notes:n:2", "roomId": "two"}
        > {"type": "leave", "payload": {"roomId": "one"}}
        > {"type": "notes:n:3"}
        ! yes alice
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "one"}}
        * events:notes {"eventType": "notes:n:1", "roomId": "one"}
        ? t two
        > {"type": "notes:n:4"}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "two"}}
        < {"type": "left", "payload": {"roomId": "one"}}
        * events:notes {"eventType": "notes:n:2", "roomId": "two"}
        * events:notes {"eventType": "notes:n:3", "roomId": "two"}
        * events:notes {"eventType": "notes:n:4", "roomId": "two"}
    """)


def test_what_was_held_for_a_no_is_dropped() -> None:
    house = House()
    house.connect().play("""
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "one"}}
        > {"type": "notes:n:1"}
        ! no
        x AUTH_FAILED
        = 4401 AUTH_FAILED
    """)


def test_any_number_of_answers_from_the_cache_in_one_read() -> None:
    house = House(limits=Limits(held_messages=100_000, joins_per_user=0))
    house.access.known["t", "two"] = Grant("alice", "two")
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": "one"}})
    for _ in range(1000):
        client.send({"type": "join", "payload": {"roomId": "two"}})
    house.access.next().yes("alice")
    house.clock.advance(0)
    told = client.link.read()
    assert [message["type"] for message in told] == ["authenticated", *["joined"] * 1000]
    works(client)


def test_what_many_clients_hold_is_not_handled_while_their_answers_are_read() -> None:
    house = House()
    clients = [house.connect() for _ in range(10)]
    for number, client in enumerate(clients):
        client.send({"type": "authenticate", "payload": {"token": f"t{number}", "roomId": "one"}})
        for event in range(64):
            client.send({"type": f"notes:n:{event}"})
    for number in range(10):
        house.access.next().yes(f"user{number}")
    assert (len(house.gateway.turns), len(house.bus.published)) == (10, 0)
    house.clock.advance(0)
    sent = [(each.event["userId"], each.event["eventType"]) for each in house.bus.published]
    for number in range(10):
        its = [name for user_id, name in sent if user_id == f"user{number}"]
        assert its == [f"notes:n:{event}" for event in range(64)]
    assert not any(client.link.paused for client in clients)


def test_what_a_client_holds_waits_for_none_of_those_who_have_sent_much() -> None:
    house = House()
    published: list[int] = []

    class Flooder:
        def step(self) -> bool:
            published.append(len(house.bus.published))
            return False

        def rest(self) -> None:
            pass

        failed = rest

    for _ in range(1_000):
        house.gateway.turns.add(Flooder())
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": "one"}})
    client.send({"type": "notes:n:sent"})
    house.access.next().yes("alice")
    house.clock.advance(0)
    assert published == [1] * 1_000


@pytest.mark.parametrize("answer", ["yes", "no", "away"])
@pytest.mark.parametrize("joining", [False, True])
def test_an_answer_for_a_client_that_left_changes_nothing(answer: str, joining: bool) -> None:
    house = House()
    if joining:
        client = house.admit("alice", "one")
        client.send({"type": "join", "payload": {"roomId": "two"}})
    else:
        client = house.connect()
        client.send({"type": "authenticate", "payload": {"token": "t", "roomId": "one"}})
    client.leave()
    question = house.access.next()
    if answer == "yes":
        question.yes("alice")
    elif answer == "no":
        question.no()
    else:
        question.away()
    assert house.rooms.entries == {}
    assert client.link.read() == []
    assert len(house.roster) == house.roster.rooms == 0
    assert not house.roster.user("alice")
    assert house.counters.errors_internal == 0


def test_an_error_of_ours_on_the_way_is_logged_and_told_as_internal() -> None:
    house = House()
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": "t0ken", "roomId": "one"}})
    with capturedLogs() as logged:
        house.access.next().answer.errback(RuntimeError("the cause"))
    client.play("""
        x INTERNAL Internal error
        = 1011 INTERNAL
    """)
    assert [str(event["log_failure"].value) for event in logged] == ["the cause"]
    assert len(house.roster) == 0


def test_an_error_of_ours_while_letting_in_is_internal() -> None:
    house = House()
    client = house.connect()

    def broken(entry: Any, at: int) -> Any:
        raise RuntimeError("the cause")

    house.rooms.enter = broken  # type: ignore[method-assign]
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": "one"}})
    with capturedLogs() as logged:
        house.access.next().yes("alice")
    assert [message["type"] for message in client.link.read()] == ["authenticated", "error"]
    assert client.link.closed == (1011, "INTERNAL")
    assert len(logged) == 1


def test_the_same_refusal_for_many_answers_each_its_own_request() -> None:
    house = House()
    shared = PeerError(Code.AUTH_UNAVAILABLE, "later", retry_after=2.0)
    house.access.known["t", "one"] = shared
    for request in (1, 2):
        client = house.connect()
        client.play(f"""
            > {{"type": "authenticate", "id": {request}, "payload": {{"token": "t", "roomId": "one"}}}}
            x AUTH_UNAVAILABLE later {{"id": {request}, "retryAfter": 2.0}}
        """)
    assert shared.id is None


@pytest.mark.parametrize("room", ["one", "two"])
def test_a_join_of_a_room_it_is_in_that_is_denied_puts_out_of_it(room: str) -> None:
    house = House()
    client = house.admit("alice", "one")
    client.play("""
        > {"type": "join", "payload": {"roomId": "two"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "two"}}
    """)
    client.play(f"""
        > {{"type": "join", "id": 5, "payload": {{"roomId": "{room}"}}}}
        ! no Not any more
        x ACCESS_DENIED Not any more {{"id": 5}}
        x ACCESS_REVOKED Access to room {room} was revoked {{"roomId": "{room}"}}
        > {{"type": "notes:n:1", "roomId": "{room}"}}
        x ACCESS_DENIED not in this room {{"eventType": "notes:n:1"}}
    """)
    assert house.rooms.entries == {({"one": "two", "two": "one"}[room], "alice"): client.id}


@pytest.mark.parametrize("answer", ["no", "yes bob"])
def test_a_denied_join_of_its_only_room_closes(answer: str) -> None:
    house = House()
    client = house.admit("alice", "one")
    reason = "Access denied" if answer == "no" else "the token belongs to another user now"
    client.play(f"""
        > {{"type": "join", "id": 5, "payload": {{"roomId": "one"}}}}
        ! {"no Access denied" if answer == "no" else answer}
        x ACCESS_DENIED {reason} {{"id": 5}}
        x ACCESS_REVOKED Access to room one was revoked {{"roomId": "one"}}
        = 4403 ACCESS_REVOKED
    """)
    assert house.rooms.entries == {}


# Who never authenticates.


def test_who_does_not_authenticate_in_time_is_closed() -> None:
    house = House(limits=Limits(authenticate_timeout=10))
    client, admitted = house.connect(), house.admit()
    house.pass_time(9.75)
    client.play("")
    client.play("""
        @ 0.25
        x AUTH_TIMEOUT no authenticate in time
        = 4408 AUTH_TIMEOUT
    """)
    assert list(house.roster) == [admitted.session]


def test_who_tries_again_while_nobody_can_be_asked_keeps_its_connection() -> None:
    house = House(limits=Limits(authenticate_timeout=10))
    client = house.connect()
    for _ in range(8):
        client.play("""
            > {"type": "authenticate", "payload": {"token": "t", "roomId": "room"}}
            @ 3
            ! away
            x AUTH_UNAVAILABLE access cannot be checked at present {"retryAfter": 1.0}
            @ 5
        """)
    client.play("""
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "room"}}
        ! yes alice
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "room"}}
        @ 30
    """)
    works(client)
    assert not house.admission._arrivals


def test_nothing_is_kept_of_who_leaves_without_authenticating() -> None:
    house = House()
    house.connect().leave()
    assert not house.admission._arrivals


def test_who_holds_another_token_after_an_answer_is_waited_for_as_well() -> None:
    house = House(limits=Limits(authenticate_timeout=10))
    client = house.connect()
    client.play("""
        > {"type": "authenticate", "payload": {"token": "t"}}
        > {"type": "authenticate", "payload": {"token": "t"}}
        ! away
        x AUTH_UNAVAILABLE access cannot be checked at present {"retryAfter": 1.0}
        @ 15
        ! away
        x AUTH_UNAVAILABLE access cannot be checked at present {"retryAfter": 1.0}
        @ 9.75
        @ 0.25
        x AUTH_TIMEOUT no authenticate in time
        = 4408 AUTH_TIMEOUT
    """)


def test_who_waits_for_its_answer_is_waited_for() -> None:
    house = House(limits=Limits(authenticate_timeout=10))
    client = house.connect()
    client.play("""
        @ 9
        > {"type": "authenticate", "payload": {"token": "t"}}
        @ 5
        ! away
        x AUTH_UNAVAILABLE access cannot be checked at present {"retryAfter": 1.0}
        @ 9.75
        @ 0.25
        x AUTH_TIMEOUT no authenticate in time
        = 4408 AUTH_TIMEOUT
    """)


def test_who_left_before_is_not_timed() -> None:
    house = House()
    house.connect().leave()
    house.pass_time(15)
    assert house.counters.errors_peer == 0
    assert not house.admission._arrivals


# Authenticating again.


def test_the_same_user_may_show_another_token() -> None:
    house = House()
    client = house.admit("alice", "one", token="old")
    client.play("""
        > {"type": "authenticate", "payload": {"token": "new", "roomId": "two"}}
        ? new one
        ! away
        ? new two
        ! yes alice {"permissions": ["notes:*:*"]}
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "two"}}
        > {"type": "notes:note:create"}
        * events:notes {"roomId": "one"}
    """)
    for token in ("old", "new"):  # the old one gave room one
        assert list(house.roster.digest(Token(token).digest)) == [client.session]
    assert set(house.rooms.entries) == {("one", "alice"), ("two", "alice")}


def test_another_users_token_is_refused_and_changes_nothing() -> None:
    house = House()
    client = house.admit("alice", "one", token="hers")
    client.play("""
        > {"type": "authenticate", "id": 1, "payload": {"token": "his", "roomId": "two"}}
        ? his one
        ! yes bob
        ? his two
        ! yes bob
        x ACCESS_DENIED this token belongs to another user {"id": 1}
    """)
    assert client.session.user_id == "alice"
    assert client.session.token is not None
    assert client.session.token.value == "hers"
    assert house.rooms.entries == {("one", "alice"): client.id}
    assert not house.roster.user("bob")
    assert not house.roster.digest(Token("his").digest)
    works(client)


def test_a_no_to_another_token_closes() -> None:
    house = House()
    house.admit("alice", "one").play("""
        > {"type": "authenticate", "payload": {"token": "bad", "roomId": "one"}}
        ! no
        x AUTH_FAILED
        = 4401 AUTH_FAILED
    """)
    assert house.rooms.entries == {}


# Rooms.


def test_joining_and_leaving() -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    client.play("""
        > {"type": "join", "id": 1, "payload": {"roomId": "two"}}
        ? t two
        ! yes alice
        < {"type": "joined", "id": 1, "payload": {"roomId": "two"}}
    """)
    assert house.rooms.entries == {("one", "alice"): client.id, ("two", "alice"): client.id}
    client.play("""
        > {"type": "leave", "id": 2, "payload": {"roomId": "one"}}
        < {"type": "left", "id": 2, "payload": {"roomId": "one"}}
    """)
    assert house.rooms.entries == {("two", "alice"): client.id}
    assert not house.roster.room("one")
    works(client)


def test_joining_a_room_that_it_is_in_asks_again_and_enters_once() -> None:
    house = House()
    client = house.admit("alice", "one")
    house.rooms.sockets.clear()
    client.play("""
        > {"type": "join", "payload": {"roomId": "one"}}
        ! yes alice {"permissions": ["chat:*:*"]}
        < {"type": "joined", "payload": {"roomId": "one"}}
        > {"type": "notes:note:create"}
        x ACCESS_DENIED this event is not permitted {"eventType": "notes:note:create"}
    """)
    assert house.rooms.entries == {}  # not written again


def test_a_no_to_a_room_is_access_denied_and_closes_nothing() -> None:
    client = House().admit("alice", "one")
    client.play("""
        > {"type": "join", "id": 1, "payload": {"roomId": "two"}}
        ! no Not your room
        x ACCESS_DENIED Not your room {"id": 1}
        > {"type": "join", "id": 2, "payload": {"roomId": "two"}}
        ! away
        x AUTH_UNAVAILABLE access cannot be checked at present {"id": 2, "retryAfter": 1.0}
    """)
    works(client)


def test_a_token_that_became_another_users_opens_no_room() -> None:
    client = House().admit("alice", "one")
    client.play("""
        > {"type": "join", "id": 1, "payload": {"roomId": "two"}}
        ! yes bob
        x ACCESS_DENIED the token belongs to another user now {"id": 1}
    """)
    works(client)


def test_leaving_a_room_that_it_is_not_in() -> None:
    client = House().admit("alice", "one")
    client.play("""
        > {"type": "leave", "id": 1, "payload": {"roomId": "two"}}
        x ACCESS_DENIED not in this room {"id": 1}
    """)
    works(client)


def test_who_left_its_last_room_may_send_nothing_and_join_again() -> None:
    house = House()
    client = house.admit("alice", "one")
    client.play("""
        > {"type": "leave", "payload": {"roomId": "one"}}
        < {"type": "left", "payload": {"roomId": "one"}}
        > {"type": "notes:note:create", "id": 1}
        x ACCESS_DENIED in no room {"id": 1, "eventType": "notes:note:create"}
        > {"type": "join", "payload": {"roomId": "two"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "two"}}
    """)
    works(client)


def test_who_was_let_in_without_a_room_may_send_before_and_after_being_in_one() -> None:
    House().admit("alice", None).play("""
        > {"type": "notes:n:1"}
        * events:notes {"roomId": null}
        > {"type": "join", "payload": {"roomId": "one"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "one"}}
        > {"type": "notes:n:2"}
        * events:notes {"roomId": "one"}
        > {"type": "leave", "payload": {"roomId": "one"}}
        < {"type": "left", "payload": {"roomId": "one"}}
        > {"type": "notes:n:3"}
        * events:notes {"roomId": null}
    """)


def test_a_socket_may_be_in_so_many_rooms() -> None:
    house = House(limits=Limits(rooms=2))
    client = house.admit("alice", None)
    client.play("""
        > {"type": "join", "payload": {"roomId": "one"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "one"}}
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "two"}}
        ? t -
        ! yes alice
        ? t one
        ! yes alice
        ? t two
        ! yes alice
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "two"}}
        > {"type": "join", "id": 3, "payload": {"roomId": "three"}}
        x ACCESS_DENIED a socket may be in 2 rooms at most {"id": 3}
        > {"type": "authenticate", "id": 4, "payload": {"token": "t", "roomId": "three"}}
        x ACCESS_DENIED a socket may be in 2 rooms at most {"id": 4}
        > {"type": "join", "payload": {"roomId": "two"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "two"}}
        > {"type": "leave", "payload": {"roomId": "one"}}
        < {"type": "left", "payload": {"roomId": "one"}}
        > {"type": "join", "payload": {"roomId": "three"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "three"}}
    """)
    assert set(house.rooms.entries) == {("two", "alice"), ("three", "alice")}


def test_all_sockets_of_a_user_may_be_in_so_many_rooms() -> None:
    house = House(single=False, limits=Limits(rooms_per_user=3))
    first, second = house.admit("alice", "one"), house.admit("alice", None)
    other = house.admit("bob", "one")
    second.play("""
        > {"type": "join", "payload": {"roomId": "one"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "one"}}
        > {"type": "join", "payload": {"roomId": "two"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "two"}}
        > {"type": "join", "id": 3, "payload": {"roomId": "three"}}
        x ACCESS_DENIED a user may be in 3 rooms at most {"id": 3}
        > {"type": "join", "payload": {"roomId": "two"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "two"}}
    """)
    third = house.connect()
    third.play("""
        > {"type": "authenticate", "id": 1, "payload": {"token": "t", "roomId": "three"}}
        ! yes alice
        x ACCESS_DENIED a user may be in 3 rooms at most {"id": 1}
    """)
    other.play("""
        > {"type": "join", "payload": {"roomId": "two"}}
        ! yes bob
        < {"type": "joined", "payload": {"roomId": "two"}}
    """)
    first.leave()
    second.play("""
        > {"type": "join", "payload": {"roomId": "three"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "three"}}
    """)

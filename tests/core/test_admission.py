"""Who gets in, into which rooms, and who is put out again: as transcripts where a client sees it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import LogLevel, capturedLogs
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, NotPublished, PeerError
from kraftek.contract.interfaces import IAccessListener
from kraftek.contract.messages import Grant, Token
from kraftek.contract.settings import Limits
from kraftek.core.session import SessionState
from tests.support.world import Client, House

DUPLICATE = "a newer login of the same user took this room"


def works(client: Client) -> None:
    """The next good event on this socket works."""
    client.play("""
        > {"type": "notes:note:create", "id": "good"}
        * events:notes {"id": "good"}
        + 1
        < {"type": "ack", "id": "good", "payload": {"receivers": 1}}
    """)
    assert client.house.counters.errors_internal == 0


def digest(token: str) -> str:
    return Token(token).digest


def test_it_listens_to_access() -> None:
    house = House()
    assert verifyObject(IAccessListener, house.admission)
    assert house.access.listeners == [house.admission]


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
    house = House(limits=Limits(held_messages=100_000))
    house.access.known["t", "two"] = Grant("alice", "two")
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": "one"}})
    for _ in range(1000):
        client.send({"type": "join", "payload": {"roomId": "two"}})
    house.access.next().yes("alice")
    told = client.link.read()
    assert [message["type"] for message in told] == ["authenticated", *["joined"] * 1000]
    works(client)


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

    def broken(user_id: str, room_id: str, socket_id: str) -> Any:
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


def test_who_waits_for_its_answer_is_waited_for() -> None:
    house = House(limits=Limits(authenticate_timeout=10))
    client = house.connect()
    client.play("""
        @ 9
        > {"type": "authenticate", "payload": {"token": "t"}}
        @ 5
        ! away
        x AUTH_UNAVAILABLE access cannot be checked at present {"retryAfter": 1.0}
        @ 5
        @ 1
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
        ? new two
        ! yes alice {"permissions": ["notes:*:*"]}
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "two"}}
        > {"type": "notes:note:create"}
        * events:notes {"roomId": "one"}
    """)
    assert not house.roster.digest(digest("old"))
    assert list(house.roster.digest(digest("new"))) == [client.session]
    assert set(house.rooms.entries) == {("one", "alice"), ("two", "alice")}


def test_another_users_token_is_refused_and_changes_nothing() -> None:
    house = House()
    client = house.admit("alice", "one", token="hers")
    client.play("""
        > {"type": "authenticate", "id": 1, "payload": {"token": "his", "roomId": "two"}}
        ! yes bob
        x ACCESS_DENIED this token belongs to another user {"id": 1}
    """)
    assert client.session.user_id == "alice"
    assert client.session.token is not None
    assert client.session.token.value == "hers"
    assert house.rooms.entries == {("one", "alice"): client.id}
    assert not house.roster.user("bob")
    assert not house.roster.digest(digest("his"))
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
    house.rooms.entries.clear()
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


# One socket per user and room, or many.


def test_a_newer_login_closes_the_older_one() -> None:
    house = House()
    older, elsewhere, other = house.admit("alice", "one"), house.admit("alice", "two"), house.admit("bob", "one")
    newer = house.admit("alice", "one")
    older.play(f"""
        x DUPLICATE_CONNECTION {DUPLICATE}
        = 4409 DUPLICATE_CONNECTION
    """)
    assert house.rooms.entries[("one", "alice")] == newer.id
    assert house.counters.duplicates == 1
    house.bus.deliver()
    for client in (newer, elsewhere, other):
        works(client)


def test_a_newer_login_closes_the_older_one_on_another_gateway() -> None:
    channels: dict[str, Any] = {}
    entries: dict[tuple[str, str], str] = {}
    here = House("here", channels=channels, entries=entries)
    there = House("there", channels=channels, entries=entries)
    older, unconcerned = there.admit("alice", "one"), there.admit("alice", "two")
    newer = here.admit("alice", "one")
    [command] = here.bus.published
    assert command.channel == "events:reply:there"
    assert command.event == {
        "type": "disconnect",
        "recipients": [older.id],
        "roomId": "one",
        "payload": {"code": "DUPLICATE_CONNECTION"},
    }
    here.bus.deliver()
    older.play(f"""
        x DUPLICATE_CONNECTION {DUPLICATE}
        = 4409 DUPLICATE_CONNECTION
    """)
    assert entries == {("one", "alice"): newer.id, ("two", "alice"): unconcerned.id}
    assert there.counters.duplicates == 1
    works(newer)
    works(unconcerned)


def test_a_displaced_socket_that_left_the_room_meanwhile_stays() -> None:
    channels: dict[str, Any] = {}
    entries: dict[tuple[str, str], str] = {}
    here = House("here", channels=channels, entries=entries)
    there = House("there", channels=channels, entries=entries)
    older = there.admit("alice", "one")
    older.send({"type": "join", "payload": {"roomId": "two"}})
    there.access.next().yes("alice")
    here.admit("alice", "one")
    older.send({"type": "leave", "payload": {"roomId": "one"}})
    older.link.read()
    here.bus.deliver()
    works(older)


def test_what_another_system_wrote_is_displaced_without_harm() -> None:
    house = House(entries={("one", "alice"): "xUc3kQ7aAAAB"})
    client = house.admit("alice", "one")
    house.bus.deliver()
    assert house.rooms.entries == {("one", "alice"): client.id}
    works(client)


def test_many_sockets_of_one_user_in_one_room() -> None:
    house = House(single=False)
    first, second, third = (house.admit("alice", "one") for _ in range(3))
    assert house.rooms.entries == {("one", "alice"): third.id}
    third.leave()
    assert house.rooms.entries[("one", "alice")] in {first.id, second.id}
    first.leave()
    assert house.rooms.entries == {("one", "alice"): second.id}
    works(second)
    second.leave()
    assert house.rooms.entries == {}
    assert house.counters.duplicates == 0
    assert house.bus.published == []


def test_the_entry_passes_to_a_socket_in_the_same_room() -> None:
    house = House(single=False)
    elsewhere, leaving = house.admit("alice", "two"), house.admit("alice", "one")
    leaving.leave()
    assert house.rooms.entries == {("two", "alice"): elsewhere.id}


def test_the_entry_passes_to_a_socket_on_another_gateway() -> None:
    here, there = House("here", single=False), House("there", single=False)
    there.rooms = there.admission._rooms = here.rooms
    older, newer = here.admit("alice", "one"), there.admit("alice", "one")
    newer.leave()
    assert here.rooms.entries == {("one", "alice"): older.id}
    older.leave()
    assert here.rooms.entries == {}
    assert here.rooms.told == [("joined", "alice", "one"), ("closed", "alice", "one")]


# What services are told of it.


def test_services_are_told_why_a_user_is_no_longer_in_a_room() -> None:
    house = House()
    leaves, goes, revoked = (house.admit(user, "one", token=user) for user in ("alice", "bob", "cyd"))
    leaves.send({"type": "leave", "payload": {"roomId": "one"}})
    goes.leave()
    house.access.stale(user_id="cyd")
    house.access.next().no()
    assert revoked.session.state is SessionState.CLOSED
    assert house.rooms.told == [
        *(("joined", user, "one") for user in ("alice", "bob", "cyd")),
        ("left", "alice", "one"),
        ("closed", "bob", "one"),
        ("revoked", "cyd", "one"),
    ]


def test_services_are_told_why_when_redis_is_back() -> None:
    house = House()
    client = house.admit("alice", "one")
    house.bus.down()
    house.rooms.failure = NotPublished("Redis is away")
    client.send({"type": "leave", "payload": {"roomId": "one"}})
    house.rooms.failure = None
    house.bus.up()
    house.access.stale(revoked=False)
    assert house.rooms.told == [("joined", "alice", "one"), ("left", "alice", "one")]


def test_a_newer_login_is_no_coming_and_no_going() -> None:
    house = House()
    house.admit("alice", "one")
    house.admit("alice", "one").leave()
    assert house.rooms.told == [("joined", "alice", "one"), ("closed", "alice", "one")]


def test_the_older_ones_goodbye_leaves_the_newer_ones_entry() -> None:
    channels: dict[str, Any] = {}
    entries: dict[tuple[str, str], str] = {}
    here = House("here", channels=channels, entries=entries)
    there = House("there", channels=channels, entries=entries)
    older, newer = there.admit("alice", "one"), here.admit("alice", "one")
    older.leave()
    assert entries == {("one", "alice"): newer.id}


# Put out by a command.


@pytest.mark.parametrize(
    ("code", "closed"),
    [
        (Code.ACCESS_REVOKED, 4403),
        (Code.DUPLICATE_CONNECTION, 4409),
        (Code.RATE_LIMITED, 4429),
        (Code.INVALID_MESSAGE, 4400),
        (Code.TIMEOUT, 4403),  # has no close code of its own
    ],
)
def test_evicting(code: Code, closed: int) -> None:
    house = House()
    client = house.admit("alice", "one")
    house.admission.evict(client.session, code, "because")
    client.play(f"""
        x {code} because
        = {closed} {code}
    """)
    assert house.rooms.entries == {}
    assert len(house.roster) == 0


# Access that is taken back.


def revoke(house: House, how: str) -> None:
    """Take alice's access, with the token t, back in one of the ways there are."""
    if how == "token":
        house.access.stale(digest=digest("t"))
    elif how == "user":
        house.access.stale(user_id="alice")
    else:
        house.access.stale(user_id="alice", room_id="one")


HOW = pytest.mark.parametrize("how", ["token", "user", "room"])


@HOW
def test_a_confirmed_yes_goes_on_with_what_was_held(how: str) -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    revoke(house, how)
    client.play("""
        ? t one
        > {"type": "notes:n:1"}
        > {"type": "notes:n:2"}
        ! yes alice {"permissions": ["notes:n:1"]}
        * events:notes {"eventType": "notes:n:1"}
        x ACCESS_DENIED this event is not permitted {"eventType": "notes:n:2"}
    """)
    assert house.counters.revoked == 0


@HOW
def test_a_no_for_the_last_room_closes(how: str) -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    revoke(house, how)
    client.play("""
        > {"type": "notes:n:1"}
        ! no
        x ACCESS_REVOKED Access to room one was taken back {"roomId": "one"}
        = 4403 ACCESS_REVOKED
    """)
    assert house.counters.revoked == 1
    assert house.rooms.entries == {}
    assert len(house.roster) == 0


@HOW
def test_a_no_for_one_room_of_several_leaves_that_room(how: str) -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    client.send({"type": "join", "payload": {"roomId": "two"}})
    house.access.next().yes("alice")
    client.link.read()
    revoke(house, how)
    client.play("""
        ? t one
        ! no
        x ACCESS_REVOKED Access to room one was taken back {"roomId": "one"}
    """)
    if how != "room":
        client.play("""
            ? t two
            > {"type": "notes:n:1"}
            ! yes alice
            * events:notes {"roomId": "two"}
            + 1
        """)
    assert house.rooms.entries == {("two", "alice"): client.id}
    assert not house.roster.room("one")
    works(client)


def test_nobody_else_is_asked_about() -> None:
    house = House()
    house.admit("bob", "one", token="b")
    house.admit("alice", "two", token="a")
    house.access.stale(digest=digest("t"))
    house.access.stale(user_id="carol")
    house.access.stale(user_id="alice", room_id="one")
    assert house.access.questions == []


def test_who_never_authenticated_is_not_asked_about() -> None:
    house = House()
    house.connect()
    house.access.stale()
    house.pass_time(1)
    assert house.access.questions == []


def test_a_token_that_became_another_users_is_taken_back() -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    house.access.stale(user_id="alice")
    client.play("""
        ! yes bob
        x ACCESS_REVOKED Access to room one was taken back {"roomId": "one"}
        = 4403 ACCESS_REVOKED
    """)


def test_what_was_taken_back_and_cannot_be_asked_about_is_suspended_and_asked_about_again() -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    house.access.stale(user_id="alice")
    client.play("""
        > {"type": "notes:n:1", "id": 1}
        ! away
        x AUTH_UNAVAILABLE access cannot be checked at present {"id": 1, "eventType": "notes:n:1", "retryAfter": 1.0}
    """)
    house.broadcast(type="notes:note:created", payload={"roomId": "one"})
    client.play("""
        @ 0.75
    """)
    assert house.access.questions == []
    client.play("""
        @ 0.25
        ? t one
        > {"type": "notes:n:2", "id": 2}
        ! away
        x AUTH_UNAVAILABLE access cannot be checked at present {"id": 2, "eventType": "notes:n:2", "retryAfter": 1.0}
        @ 1
        > {"type": "notes:n:3"}
        ! yes alice
        * events:notes {"eventType": "notes:n:3"}
        + 1
        @ 5
    """)
    assert house.access.questions == []
    assert house.rooms.entries == {("one", "alice"): client.id}
    house.broadcast(type="notes:note:created", payload={"roomId": "one"})
    assert [message["type"] for message in client.link.read()] == ["notes:note:created"]
    works(client)


def test_suspended_and_then_a_no() -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    house.access.stale(user_id="alice")
    client.play("""
        ! away
        @ 1
        ! no
        x ACCESS_REVOKED Access to room one was taken back {"roomId": "one"}
        = 4403 ACCESS_REVOKED
    """)
    assert house.rooms.entries == {}


def test_a_suspended_room_can_be_left_and_joined() -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    house.access.stale(user_id="alice")
    client.play("""
        ! away
        > {"type": "join", "payload": {"roomId": "one"}}
        ! yes alice
        < {"type": "joined", "payload": {"roomId": "one"}}
    """)
    works(client)
    house.access.stale(user_id="alice")
    client.play("""
        ! away
        > {"type": "leave", "payload": {"roomId": "one"}}
        < {"type": "left", "payload": {"roomId": "one"}}
        @ 5
    """)
    assert house.access.questions == []
    assert house.rooms.entries == {}


def test_a_client_that_leaves_while_suspended_is_cleaned_up_after() -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    house.access.stale(user_id="alice")
    house.access.next().away()
    client.leave()
    house.pass_time(5)
    assert house.access.questions == []
    assert house.rooms.entries == {}
    assert not house.admission._again


@pytest.mark.parametrize("answer", ["yes", "no", "away"])
def test_a_client_that_leaves_while_being_asked_about(answer: str) -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    house.access.stale(user_id="alice")
    client.leave()
    question = house.access.next()
    getattr(question, answer)(*(["alice"] if answer == "yes" else []))
    house.pass_time(3)
    assert client.link.read() == []
    assert house.counters.revoked == 0
    assert len(house.roster) == 0
    assert house.access.questions == []


@pytest.mark.parametrize("answer", ["yes", "no", "away"])
def test_a_room_that_was_left_before_the_answer_is_not_entered_again(answer: str) -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    house.access.stale(user_id="alice", revoked=False)
    client.send({"type": "leave", "payload": {"roomId": "one"}})
    client.link.read()
    question = house.access.next()
    getattr(question, answer)(*(["alice"] if answer == "yes" else []))
    house.pass_time(3)
    assert not house.roster.room("one")
    assert client.session.rooms == {}
    client.play("")


def test_what_merely_grew_old_counts_until_the_answer() -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    house.access.stale(user_id="alice", revoked=False)
    works(client)
    client.play("""
        ? t one
        ! away
    """)
    works(client)
    client.play("""
        @ 1
        ? t one
        ! no
        x ACCESS_REVOKED Access to room one was taken back {"roomId": "one"}
        = 4403 ACCESS_REVOKED
    """)


def test_an_error_of_ours_while_asking_again_is_internal() -> None:
    for revoked in (True, False):
        house = House()
        client = house.admit("alice", "one", token="t")
        house.access.stale(user_id="alice", revoked=revoked)
        with capturedLogs() as logged:
            house.access.next().answer.errback(RuntimeError("the cause"))
        client.play("""
            x INTERNAL Internal error
            = 1011 INTERNAL
        """)
        assert len(logged) == 1


def test_an_error_of_ours_while_taking_back_is_internal_and_ends_the_check() -> None:
    house = House()
    client = house.admit("alice", "one", token="t")

    def broken(user_id: str, room_id: str, socket_id: str, reason: str) -> Any:
        raise RuntimeError("the cause")

    house.rooms.leave = broken  # type: ignore[method-assign]
    house.access.stale(user_id="alice")
    with capturedLogs() as logged:
        client.play("""
            ! no
            x ACCESS_REVOKED Access to room one was taken back {"roomId": "one"}
            x INTERNAL Internal error
            = 1011 INTERNAL
        """)
    assert [str(event["log_failure"].value) for event in logged] == ["the cause"]
    assert len(house.roster) == 0


def test_several_reasons_to_ask_end_with_the_last_answer() -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    house.access.stale(user_id="alice")
    house.access.stale(digest=digest("t"))
    client.play("""
        > {"type": "notes:n:1"}
        ! yes alice
    """)
    assert client.session.state is SessionState.CHECKING
    client.play("""
        ! yes alice
        * events:notes {"eventType": "notes:n:1"}
    """)


def test_who_is_in_no_room_any_more_is_asked_about_when_its_access_is_taken_back() -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    client.send({"type": "leave", "payload": {"roomId": "one"}})
    client.link.read()
    house.access.stale(user_id="alice", revoked=False)
    assert house.access.questions == []
    house.access.stale(user_id="alice")
    client.play("""
        ? t -
        ! away
        @ 1
        ? t -
        ! yes alice
        > {"type": "notes:n:1"}
        x ACCESS_DENIED in no room {"eventType": "notes:n:1"}
    """)
    house.access.stale(user_id="alice")
    client.play("""
        ! no
        x ACCESS_REVOKED Access was taken back
        = 4403 ACCESS_REVOKED
    """)


def test_the_permissions_of_no_room_are_taken_back_while_in_one() -> None:
    house = House()
    client = house.admit("alice", None, token="t")
    client.send({"type": "join", "payload": {"roomId": "one"}})
    house.access.next().yes("alice")
    client.link.read()
    house.access.stale(user_id="alice")
    client.play("""
        ? t -
        ! no
        x ACCESS_REVOKED Access was taken back
        ? t one
        ! yes alice
        > {"type": "leave", "payload": {"roomId": "one"}}
        < {"type": "left", "payload": {"roomId": "one"}}
        > {"type": "notes:n:1"}
        x ACCESS_DENIED in no room {"eventType": "notes:n:1"}
    """)


def test_the_permissions_of_no_room_are_suspended() -> None:
    house = House()
    client = house.admit("alice", None, token="t")
    house.access.stale(user_id="alice")
    client.play("""
        ! away
        > {"type": "notes:n:1"}
        x AUTH_UNAVAILABLE access cannot be checked at present {"eventType": "notes:n:1", "retryAfter": 1.0}
        @ 1
        ! yes alice
    """)
    works(client)


# Access that expires.


def expiring(house: House, at: float, room: str | None = "one") -> Client:
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": room}})
    house.access.next().yes("alice", expiresAt=at)
    client.link.read()
    return client


@pytest.mark.parametrize(
    ("room", "error"),
    [("one", 'Access to room one was taken back {"roomId": "one"}'), (None, "Access was taken back")],
)
def test_expired_access_is_asked_about_and_a_no_ends_it(room: str | None, error: str) -> None:
    house = House()
    client = expiring(house, 20.0, room)
    house.pass_time(19.75)
    assert house.access.questions == []
    works(client)
    client.play(f"""
        @ 1.25
        ? t {room or "-"}
        > {{"type": "notes:n:1"}}
        ! no
        x ACCESS_REVOKED {error}
        = 4403 ACCESS_REVOKED
    """)


def test_expired_access_may_be_renewed_and_expire_again() -> None:
    house = House()
    client = expiring(house, 20.0)
    client.play("""
        @ 21
        ! yes alice {"expiresAt": 40}
        @ 18
    """)
    works(client)
    client.play("""
        @ 2
        ? t one
        ! yes alice
        @ 100
    """)
    assert house.access.questions == []
    works(client)


def test_expired_access_that_cannot_be_asked_about_is_over() -> None:
    house = House()
    expiring(house, 20.0).play("""
        @ 21
        ! away
        x ACCESS_REVOKED Access to room one was taken back {"roomId": "one"}
        = 4403 ACCESS_REVOKED
    """)


def test_each_room_expires_by_itself() -> None:
    house = House()
    client = expiring(house, 20.0)
    client.play("""
        > {"type": "join", "payload": {"roomId": "two"}}
        ! yes alice {"expiresAt": 10}
        < {"type": "joined", "payload": {"roomId": "two"}}
        @ 11
        ? t two
        ! no
        x ACCESS_REVOKED Access to room two was taken back {"roomId": "two"}
        @ 8
    """)
    assert house.access.questions == []
    client.play("""
        @ 2
        ? t one
        ! no
        x ACCESS_REVOKED Access to room one was taken back {"roomId": "one"}
        = 4403 ACCESS_REVOKED
    """)


def test_a_room_that_was_left_does_not_expire() -> None:
    house = House()
    client = expiring(house, 20.0)
    client.play("""
        > {"type": "leave", "payload": {"roomId": "one"}}
        < {"type": "left", "payload": {"roomId": "one"}}
        @ 30
    """)
    assert house.access.questions == []


def test_nothing_is_kept_of_expiring_access_when_the_client_leaves() -> None:
    house = House()
    expiring(house, 1e9).leave()
    assert len(house.admission._expiry_queue) == 0


def test_all_rooms_expire_at_once_and_the_first_answer_closes() -> None:
    house = House()
    client = expiring(house, 20.0)
    client.send({"type": "join", "payload": {"roomId": "two"}})
    house.access.next().yes("alice", expiresAt=20.0)
    client.link.read()
    house.pass_time(20.75)

    def broken(token: Token, room_id: str | None) -> Any:
        return fail(RuntimeError("the cause"))

    house.access.check = broken  # type: ignore[method-assign]
    with capturedLogs() as logged:
        house.pass_time(0.5)
    assert client.link.closed == (1011, "INTERNAL")
    assert len(logged) == 1


# Redis comes and goes.


def test_everybody_is_asked_about_again_in_portions() -> None:
    house = House(limits=Limits(authenticate_timeout=1000))
    clients = [house.admit(f"user{n}", "one", token=f"t{n}") for n in range(600)]
    house.access.stale(revoked=False)
    house.admission.sweep()
    assert len(house.access.questions) == 500
    house.admission.sweep()
    assert len(house.access.questions) == 600
    for client in clients[:3]:
        works(client)
    for question in house.access.questions:
        question.yes("user" + question.token[1:])
    house.access.questions.clear()
    house.pass_time(2)
    assert house.access.questions == []


def test_everybody_twice_is_everybody_once() -> None:
    house = House()
    house.admit("alice", "one")
    for _ in range(5):
        house.access.stale(revoked=False)
    house.pass_time(1)
    assert len(house.access.questions) == 1


def test_the_room_cache_is_whole_again_after_redis_lost_it() -> None:
    house = House()
    client = house.admit("alice", "one")
    client.send({"type": "join", "payload": {"roomId": "two"}})
    house.access.next().yes("alice")
    house.admit("bob", None)
    house.connect()
    house.rooms.entries.clear()
    house.rooms.sockets.clear()
    house.access.stale(revoked=False)
    assert house.rooms.entries == {("one", "alice"): client.id, ("two", "alice"): client.id}


def test_nothing_is_restored_to_a_redis_that_is_away_nor_where_nobody_is() -> None:
    house = House()
    house.rooms.failure = RuntimeError("not to be asked")
    house.access.stale(revoked=False)
    client = House().admit("alice", "one")
    client.house.bus.down()
    client.house.rooms.failure = RuntimeError("not to be asked")
    with capturedLogs() as logged:
        client.house.access.stale(revoked=False)
    assert logged == []


def test_a_socket_that_was_superseded_meanwhile_is_closed() -> None:
    house = House()
    client, other = house.admit("alice", "one"), house.admit("bob", "one")
    house.rooms.entries[("one", "alice")] = "elsewhere.1"
    house.access.stale(revoked=False)
    client.play(f"""
        x DUPLICATE_CONNECTION {DUPLICATE}
        = 4409 DUPLICATE_CONNECTION
    """)
    assert house.rooms.entries == {("one", "alice"): "elsewhere.1", ("one", "bob"): other.id}
    works(other)


def test_a_socket_that_left_while_being_restored_is_nobodys() -> None:
    house = House()
    client = house.admit("alice", "one")
    house.rooms.restore = lambda entries: succeed([client.id, "gw.unknown"])  # type: ignore[method-assign]
    client.leave()
    house.admit("bob", "one")
    house.access.stale(revoked=False)
    assert house.counters.duplicates == 0


def test_many_sockets_supersede_nobody() -> None:
    house = House(single=False)
    client = house.admit("alice", "one")
    house.rooms.entries[("one", "alice")] = "elsewhere.1"
    house.access.stale(revoked=False)
    works(client)


def test_a_room_cache_that_cannot_be_written_stops_nobody() -> None:
    house = House()
    house.rooms.failure = NotPublished("Redis is away")
    with capturedLogs() as logged:
        client = house.admit("alice", "one")
        works(client)
        house.access.stale(revoked=False)
        client.leave()
    assert logged == []


def test_a_room_cache_that_redis_refuses_is_logged_once_until_it_can_be_written() -> None:
    house = House()
    with capturedLogs() as logged:
        for _ in range(2):
            house.rooms.failure = RuntimeError("OOM command not allowed")
            client = house.admit("alice", "one")
            works(client)
            client.leave()
            house.rooms.failure = None
            house.admit("bob", "one").leave()
    assert [event["log_level"] for event in logged] == [LogLevel.critical] * 2
    assert len(house.roster) == 0


def test_what_was_too_much_for_redis_is_written_later() -> None:
    house = House()
    stays, leaves, back = house.admit("alice", "one"), house.admit("bob", "one"), house.admit("cyd", "one")
    house.rooms.failure = NotPublished("10000 messages and commands are waiting for Redis's answer")
    comes, goes = house.admit("dan", "one"), house.admit("eve", "one")
    goes.leave()
    leaves.leave()
    back.send({"type": "leave", "payload": {"roomId": "one"}})
    house.pass_time(1)
    house.rooms.failure = None
    back.send({"type": "join", "payload": {"roomId": "one"}})
    house.access.next().yes("cyd")
    house.pass_time(1)
    assert house.rooms.entries == {("one", "alice"): stays.id, ("one", "cyd"): back.id, ("one", "dan"): comes.id}
    assert sorted(house.rooms.told[3:]) == [
        ("closed", "bob", "one"),
        ("joined", "cyd", "one"),
        ("joined", "dan", "one"),
        ("left", "cyd", "one"),
    ]


def test_what_is_too_much_to_restore_at_once_is_restored_later() -> None:
    house = House()
    client, gone = house.admit("alice", "one"), house.admit("bob", "one")
    house.rooms.entries.clear()
    house.rooms.sockets.clear()
    house.rooms.failure = NotPublished("10000 messages and commands are waiting for Redis's answer")
    gone.leave()
    house.access.stale(revoked=False)
    house.pass_time(1)
    house.rooms.failure = None
    house.pass_time(1)
    assert house.rooms.entries == {("one", "alice"): client.id}
    house.rooms.restore = lambda entries: fail(RuntimeError("not to be asked again"))  # type: ignore[method-assign]
    with capturedLogs() as logged:
        house.pass_time(1)
    assert logged == []


def test_at_the_end_redis_is_told_of_all_that_left_in_its_own_time() -> None:
    house = House()
    clients = [house.admit(f"u{number}", "one") for number in range(1200)]
    house.rooms.failure = NotPublished("10000 messages and commands are waiting for Redis's answer")
    for client in clients:
        client.leave()
    finishing = Deferred.fromCoroutine(house.admission.finish())
    house.clock.advance(0.025)
    house.rooms.failure = None
    house.clock.advance(0.025)
    assert len(house.rooms.entries) == 700
    assert not finishing.called
    house.clock.pump([0.025] * 3)
    assert house.rooms.entries == {}
    assert finishing.called
    assert {kind for kind, _, _ in house.rooms.told[1200:]} == {"closed"}


def test_at_the_end_nobody_waits_for_redis() -> None:
    house = House()
    client = house.admit("ann", "one")
    house.rooms.failure = NotPublished("Redis is away")
    client.leave()
    house.bus.down()
    assert Deferred.fromCoroutine(house.admission.finish()).called


def test_who_left_while_redis_was_away_is_no_ghost() -> None:
    house = House()
    gone, stays = house.admit("alice", "one"), house.admit("bob", "one")
    house.bus.down()
    house.rooms.failure = NotPublished("Redis is away")
    gone.leave()
    house.rooms.failure = None
    house.bus.up()
    house.access.stale(revoked=False)
    assert house.rooms.entries == {("one", "bob"): stays.id}


def test_who_came_back_while_redis_was_away_is_not_closed_for_its_own_ghost() -> None:
    house = House()
    gone = house.admit("alice", "one")
    house.bus.down()
    house.rooms.failure = NotPublished("Redis is away")
    gone.leave()
    client = house.admit("alice", "one")
    house.rooms.failure = None
    house.bus.up()
    house.access.stale(revoked=False)
    assert house.rooms.entries == {("one", "alice"): client.id}
    works(client)


def test_who_came_and_went_while_redis_was_away_was_never_there() -> None:
    house = House()
    house.bus.down()
    house.rooms.failure = RuntimeError("not to be asked")
    with capturedLogs() as logged:
        client = house.admit("alice", "one")
        client.send({"type": "join", "payload": {"roomId": "two"}})
        house.access.next().yes("alice")
        client.send({"type": "leave", "payload": {"roomId": "one"}})
        client.leave()
    house.rooms.failure = None
    house.bus.up()
    house.access.stale(revoked=False)
    assert logged == []
    assert house.rooms.entries == {}


def test_who_was_in_no_room_leaves_none() -> None:
    house = House()
    house.rooms.failure = RuntimeError("not to be asked")
    with capturedLogs() as logged:
        house.admit("alice", None).leave()
    assert logged == []
    assert len(house.roster) == 0


def test_a_newer_login_while_redis_was_away_closes_the_older_one_afterwards() -> None:
    channels: dict[str, Any] = {}
    entries: dict[tuple[str, str], str] = {}
    here = House("here", channels=channels, entries=entries)
    there = House("there", channels=channels, entries=entries)
    older = there.admit("alice", "one")
    here.bus.down()
    here.rooms.failure = NotPublished("Redis is away")
    newer = here.admit("alice", "one")
    here.rooms.failure = None
    here.bus.up()
    here.access.stale(revoked=False)
    here.bus.deliver()
    older.play(f"""
        x DUPLICATE_CONNECTION {DUPLICATE}
        = 4409 DUPLICATE_CONNECTION
    """)
    assert entries == {("one", "alice"): newer.id}
    works(newer)


# Whatever happens, in whatever order.


class AdmissionStories(RuleBasedStateMachine):
    """Clients come, ask, are answered, are put out and go: roster and room cache say who is where."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House(limits=Limits(authenticate_timeout=30, rooms=3))
        self.clients: list[Client] = []

    @rule()
    @precondition(lambda self: len(self.clients) < 5)
    def connect(self) -> None:
        self.clients.append(self.house.connect())

    @rule(n=st.integers(0, 4), token=st.sampled_from(["a1", "a2", "b1"]), room=st.sampled_from(["r", "s", None]))
    def authenticate(self, n: int, token: str, room: str | None) -> None:
        for client in self.clients[n : n + 1]:
            client.send({"type": "authenticate", "payload": {"token": token, "roomId": room}})

    @rule(n=st.integers(0, 4), kind=st.sampled_from(["join", "leave"]), room=st.sampled_from(["r", "s"]))
    def move(self, n: int, kind: str, room: str) -> None:
        for client in self.clients[n : n + 1]:
            client.send({"type": kind, "payload": {"roomId": room}})

    @rule(n=st.integers(0, 4))
    def event(self, n: int) -> None:
        for client in self.clients[n : n + 1]:
            client.send({"type": "notes:n:1", "id": 1})

    @rule(n=st.integers(0, 4))
    def lose(self, n: int) -> None:
        for client in self.clients[n : n + 1]:
            client.leave()

    @rule(n=st.integers(0, 9), answer=st.sampled_from(["yes", "yes", "yes", "no", "away"]), ends=st.booleans())
    def answer(self, n: int, answer: str, ends: bool) -> None:
        for question in self.house.access.questions[n : n + 1]:
            self.house.access.questions.remove(question)
            if answer == "yes":
                expiry = {"expiresAt": self.house.clock.seconds() + 3} if ends else {}
                question.yes("alice" if question.token[0] == "a" else "bob", **expiry)
            else:
                getattr(question, answer)()

    @rule(user=st.sampled_from([None, "alice", "bob"]), room=st.sampled_from([None, "r"]), revoked=st.booleans())
    def stale(self, user: str | None, room: str | None, revoked: bool) -> None:
        self.house.access.stale(user_id=user, room_id=room if user else None, revoked=revoked)

    @rule()
    def redis_goes(self) -> None:
        if self.house.bus.available:
            self.house.bus.down()
            self.house.rooms.failure = NotPublished("Redis is away")

    @rule(forgetful=st.booleans())
    def redis_comes(self, forgetful: bool) -> None:
        if not self.house.bus.available:
            if forgetful:
                self.house.rooms.entries.clear()
                self.house.rooms.sockets.clear()
            self.house.rooms.failure = None
            self.house.bus.up()
            self.house.access.stale(revoked=False)  # as the access cache does then

    @rule(seconds=st.sampled_from([0.25, 1, 5]))
    def wait(self, seconds: float) -> None:
        self.house.pass_time(seconds)

    @invariant()
    def everything_agrees(self) -> None:
        house = self.house
        live = [client.session for client in self.clients if client.session.state is not SessionState.CLOSED]
        assert set(house.roster) == set(live)
        assert house.counters.errors_internal == 0
        entries = {}
        for session in live:
            assert (session.user_id is None) is (session.token is None)
            assert (session.state is SessionState.NEW) <= (session.user_id is None)
            assert session.room_id is None or session.room_id in session.rooms
            assert len(session.rooms.keys() - {None}) <= 3
            for room, grant in session.rooms.items():
                assert grant is None or grant.user_id == session.user_id
                if room is not None:
                    assert (session in house.roster.room(room)) is (grant is not None)
                    assert session.user_id is not None
                    assert (room, session.user_id) not in entries, "two sockets of one user in one room"
                    entries[room, session.user_id] = session.socket_id
        if house.bus.available:
            assert house.rooms.entries == entries
        for client in self.clients:
            assert (client.link.closed is None) or client.session.state is SessionState.CLOSED

    def teardown(self) -> None:
        self.redis_comes(False)
        for client in self.clients:
            client.leave()
        house = self.house
        assert len(house.roster) == house.roster.rooms == len(house.admission._expiry_queue) == 0
        assert house.rooms.entries == {}
        assert not house.admission._unannounced
        assert not house.admission._ghosts
        assert house.clock.getDelayedCalls() == []


TestAdmissionStories = AdmissionStories.TestCase
TestAdmissionStories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

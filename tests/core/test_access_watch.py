"""Access of clients that are in, asked about again and taken back: as transcripts where a client sees it."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import fail
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IAccessListener
from kraftek.contract.messages import Token
from kraftek.contract.settings import Limits
from kraftek.core.session import SessionState
from tests.support.world import Client, House, works


def digest(token: str) -> str:
    return Token(token).digest


def test_it_listens_to_access() -> None:
    house = House()
    assert verifyObject(IAccessListener, house.access_watch)
    assert house.access.listeners == [house.access_watch]


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
        x ACCESS_REVOKED Access to room one was revoked {"roomId": "one"}
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
        x ACCESS_REVOKED Access to room one was revoked {"roomId": "one"}
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
        x ACCESS_REVOKED Access to room one was revoked {"roomId": "one"}
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
        < {"type": "notes:note:created", "payload": {"roomId": "one"}, "roomId": "one"}
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
        x ACCESS_REVOKED Access to room one was revoked {"roomId": "one"}
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
        ? t -
        ! yes alice
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
    assert not house.access_watch._again


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
        x ACCESS_REVOKED Access to room one was revoked {"roomId": "one"}
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

    def broken(entries: Any) -> Any:
        raise RuntimeError("the cause")

    house.rooms.leave = broken  # type: ignore[method-assign]
    house.access.stale(user_id="alice")
    with capturedLogs() as logged:
        client.play("""
            ! no
            x ACCESS_REVOKED Access to room one was revoked {"roomId": "one"}
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
        x ACCESS_REVOKED Access was revoked
        = 4403 ACCESS_REVOKED
    """)


def test_who_is_in_no_room_any_more_is_asked_about_when_everybody_is() -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    client.send({"type": "leave", "payload": {"roomId": "one"}})
    client.link.read()
    house.access.stale(revoked=False)
    house.pass_time(0.25)
    house.broadcast(type="news", userIds=["alice"])
    client.play("""
        < {"type": "news", "payload": null}
        ? t -
        ! away
        @ 1.25
        ? t -
        ! no
        x ACCESS_REVOKED Access was revoked
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
        x ACCESS_REVOKED Access was revoked
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
    [("one", 'Access to room one has expired {"roomId": "one"}'), (None, "Access has expired")],
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
        x TOKEN_EXPIRED {error}
        x TOKEN_EXPIRED the token has expired: authenticate with another one {{"eventType": "notes:n:1"}}
        @ 9.5
        @ 0.5
        x TOKEN_EXPIRED no other token was shown in time
        = 4401 TOKEN_EXPIRED
    """)


@pytest.mark.parametrize("seconds", [-30, 3600])
def test_everybody_is_asked_about_when_the_wall_clock_is_set(seconds: float) -> None:
    """Until the answer comes they go on, and a yes says anew when it expires."""
    house = House()
    client = expiring(house, 10_000.0)
    works(client)
    house.wall_is_ahead = seconds
    house.pass_time(0.25)
    works(client)
    house.access.next().yes("alice", expiresAt=10_000.0 + seconds)
    house.pass_time(9_999.0)
    assert house.access.questions == []
    house.pass_time(2.0)
    house.access.next().no()
    assert [message["payload"]["code"] for message in client.link.read()] == ["TOKEN_EXPIRED"]


def test_a_clock_that_is_slewed_was_not_set() -> None:
    house = House()
    expiring(house, 10_000.0)
    for _ in range(100):
        house.wall_is_ahead += 0.1
        house.pass_time(0.25)
    assert house.access.questions == []


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
        x TOKEN_EXPIRED Access to room one has expired {"roomId": "one"}
        @ 10
        x TOKEN_EXPIRED no other token was shown in time
        = 4401 TOKEN_EXPIRED
    """)


def test_each_room_expires_by_itself() -> None:
    house = House()
    client = expiring(house, 20.0)
    client.play("""
        > {"type": "join", "payload": {"roomId": "two"}}
        ! yes alice {"expiresAt": 10}
        < {"type": "joined", "payload": {"roomId": "two", "expiresIn": 10.0}}
        @ 11
        ? t two
        ! no
        x ACCESS_REVOKED Access to room two has expired {"roomId": "two"}
        @ 8
    """)
    assert house.access.questions == []
    client.play("""
        @ 2
        ? t one
        ! no
        x TOKEN_EXPIRED Access to room one has expired {"roomId": "one"}
        @ 10
        x TOKEN_EXPIRED no other token was shown in time
        = 4401 TOKEN_EXPIRED
    """)


def test_a_room_that_was_left_does_not_expire() -> None:
    house = House()
    client = expiring(house, 20.0)
    client.play("""
        > {"type": "leave", "payload": {"roomId": "one"}}
        < {"type": "left", "payload": {"roomId": "one"}}
        @ 30
        ? t -
        ! yes alice
        @ 30
    """)
    assert house.access.questions == []


def test_nothing_is_kept_of_expiring_access_when_the_client_leaves() -> None:
    house = House()
    expiring(house, 1e9).leave()
    assert len(house.access_watch._expiry_queue) == 0


def test_a_session_that_its_expiry_closes_is_watched_no_more() -> None:
    house = House()
    client = expiring(house, 20.0)
    house.access.known["t", "one"] = PeerError(Code.AUTH_FAILED, "no")
    client.play("""
        @ 20.5
        x TOKEN_EXPIRED Access to room one has expired {"roomId": "one"}
        @ 10
        x TOKEN_EXPIRED no other token was shown in time
        = 4401 TOKEN_EXPIRED
    """)
    assert len(house.access_watch._expiry_queue) == 0


def test_all_rooms_expire_at_once_and_the_first_answer_closes() -> None:
    house = House()
    client = expiring(house, 20.0)
    client.send({"type": "join", "payload": {"roomId": "two"}})
    house.access.next().yes("alice", expiresAt=20.0)
    client.link.read()
    house.pass_time(19.75)

    def broken(token: Token, room_id: str | None, asker: object = None) -> Any:
        return fail(RuntimeError("the cause"))

    house.access.check = broken  # type: ignore[method-assign]
    with capturedLogs() as logged:
        house.pass_time(0.5)
    assert client.link.closed == (1011, "INTERNAL")
    assert len(logged) == 1


def test_nothing_is_sent_once_access_has_expired() -> None:
    house = House()
    client = expiring(house, 20.1)
    house.pass_time(20)
    works(client)
    house.clock.advance(0.1)  # no sweep has come yet
    client.play("""
        > {"type": "notes:n:1"}
        > {"type": "notes:n:2"}
        ? t one
        ! yes alice {"expiresAt": 40}
        * events:notes {"eventType": "notes:n:1"}
        * events:notes {"eventType": "notes:n:2"}
    """)
    house.clock.advance(20)
    client.play("""
        > {"type": "notes:n:3"}
        ! no
        x TOKEN_EXPIRED Access to room one has expired {"roomId": "one"}
        x TOKEN_EXPIRED the token has expired: authenticate with another one {"eventType": "notes:n:3"}
        @ 10
        x TOKEN_EXPIRED no other token was shown in time
        = 4401 TOKEN_EXPIRED
    """)


def test_held_events_keep_their_order_when_access_has_expired_meanwhile() -> None:
    house = House()
    client = expiring(house, 20.0)
    house.pass_time(19)
    client.send({"type": "join", "payload": {"roomId": "two"}})
    join = house.access.next()
    for number in range(3):
        client.send({"type": f"notes:n:{number}"})
    house.clock.advance(2)
    join.yes("alice")
    house.clock.advance(0)
    client.play("""
        < {"type": "joined", "payload": {"roomId": "two"}}
        ? t one
        > {"type": "notes:n:3"}
        ! yes alice {"expiresAt": 40}
        * events:notes {"eventType": "notes:n:0"}
        * events:notes {"eventType": "notes:n:1"}
        * events:notes {"eventType": "notes:n:2"}
        * events:notes {"eventType": "notes:n:3"}
    """)


def test_a_yes_that_has_expired_is_none() -> None:
    house = House()
    expiring(house, 20.0).play("""
        @ 21
        ! yes alice {"expiresAt": 20.5}
        x TOKEN_EXPIRED Access to room one has expired {"roomId": "one"}
        @ 10
        x TOKEN_EXPIRED no other token was shown in time
        = 4401 TOKEN_EXPIRED
    """)


def test_a_room_hears_nothing_once_access_has_expired() -> None:
    house = House()
    client = expiring(house, 20.0)
    house.pass_time(20.25)
    house.broadcast(type="secret", roomId="one")
    house.broadcast(type="mine", recipients=[client.id])
    assert client.link.read() == []
    house.access.next().yes("alice")
    house.broadcast(type="news", roomId="one")
    assert [message["type"] for message in client.link.read()] == ["secret", "mine", "news"]


def in_no_room(house: House, at: float) -> Client:
    client = expiring(house, at)
    client.send({"type": "leave", "payload": {"roomId": "one"}})
    client.link.read()
    return client


@pytest.mark.parametrize("to", [{"userIds": ["alice"]}, {"everybody": True}])
def test_who_is_in_no_room_hears_nothing_once_its_token_has_expired(to: dict[str, Any]) -> None:
    house = House()
    client = in_no_room(house, 20.0)
    house.pass_time(19.75)
    house.broadcast(type="before", **to)
    assert [message["type"] for message in client.link.read()] == ["before"]
    house.clock.advance(0.25)  # no sweep has come yet
    house.broadcast(type="after", **to)
    client.play("""
        @ 0.5
        ? t -
        ! yes alice {"expiresAt": 40}
        @ 19
    """)
    house.broadcast(type="again", **to)
    assert [message["type"] for message in client.link.read()] == ["again"]
    client.play("""
        @ 1
        ? t -
        ! away
        x TOKEN_EXPIRED Access has expired
        @ 10
        x TOKEN_EXPIRED no other token was shown in time
        = 4401 TOKEN_EXPIRED
    """)


def test_who_leaves_its_last_room_with_an_expired_token_is_asked_about() -> None:
    house = House()
    client = expiring(house, 20.0)
    client.play("""
        > {"type": "authenticate", "payload": {"token": "t2", "roomId": "two"}}
        ? t2 one
        ! away
        ? t2 two
        ! yes alice
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "two", "expiresIn": 20.0}}
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "one"}}
        ? t two
        ! away
        ? t one
        ! yes alice {"expiresAt": 20}
        < {"type": "authenticated", "payload": {"success": true, "userId": "alice", "roomId": "one", "expiresIn": 20.0}}
        @ 20.25
        ? t one
        ! no
        x ACCESS_REVOKED Access to room one has expired {"roomId": "one"}
    """)
    house.broadcast(type="news", userIds=["alice"])
    client.play("""
        < {"type": "news", "payload": null}
        > {"type": "leave", "payload": {"roomId": "two"}}
        < {"type": "left", "payload": {"roomId": "two"}}
    """)
    house.broadcast(type="after", userIds=["alice"])
    client.play("""
        @ 0.5
        ? t -
        ! no
        x TOKEN_EXPIRED Access has expired
        @ 10
        x TOKEN_EXPIRED no other token was shown in time
        = 4401 TOKEN_EXPIRED
    """)


# Which token gave which room.


def two_tokens(house: House) -> Client:
    """Alice is in room one by the token t1, and in room two by t2."""
    client = house.admit("alice", "one", token="t1")
    client.send({"type": "authenticate", "payload": {"token": "t2", "roomId": "two"}})
    house.access.next().away()  # about room one
    house.access.next().yes("alice")
    client.link.read()
    return client


def test_a_token_takes_back_the_rooms_that_it_gave() -> None:
    house = House()
    client = two_tokens(house)
    house.access.stale(digest=digest("t1"))
    client.play("""
        ? t1 one
        ! no
        x ACCESS_REVOKED Access to room one was revoked {"roomId": "one"}
    """)
    assert not house.access.questions
    house.access.stale(digest=digest("t1"))
    assert not house.access.questions
    house.access.stale(digest=digest("t2"))
    client.play("""
        ? t2 two
        ! no
        x ACCESS_REVOKED Access to room two was revoked {"roomId": "two"}
        = 4403 ACCESS_REVOKED
    """)


@pytest.mark.parametrize("revoked", [True, False])
def test_each_room_is_asked_about_with_the_token_that_gave_it(revoked: bool) -> None:
    house = House()
    client = two_tokens(house)
    house.access.stale(user_id="alice", revoked=revoked)
    asked = {(question.token, question.room_id) for question in house.access.questions}
    assert asked == {("t1", "one"), ("t2", "two")}
    for _ in range(2):
        house.access.next().yes("alice")
    client.play("")
    works(client)


def test_expired_access_is_asked_about_with_the_fresh_token() -> None:
    house = House()
    client = expiring(house, 20.0)
    client.send({"type": "authenticate", "payload": {"token": "fresh", "roomId": "two"}})
    house.access.next().away()  # about room one
    house.access.next().yes("alice", expiresAt=60.0)
    client.link.read()
    assert client.session in house.roster.digest(digest("t"))
    client.play("""
        @ 20.25
        ? fresh one
        ! yes alice {"expiresAt": 60}
        > {"type": "notes:n:1", "roomId": "one"}
        * events:notes {"roomId": "one"}
    """)
    assert not house.roster.digest(digest("t"))


def test_an_answer_about_a_token_that_gave_way_counts_no_more() -> None:
    house = House()
    client = house.admit("alice", "one", token="t1")
    house.access.stale(digest=digest("t1"), revoked=False)
    question = house.access.next()
    client.send({"type": "authenticate", "payload": {"token": "t2", "roomId": "one"}})
    house.access.next().yes("alice")
    client.link.read()
    question.no()
    client.play("")
    works(client)
    assert not house.roster.digest(digest("t1"))


# Access that grows old.


def test_what_grew_old_is_asked_about_however_busy_its_client_is() -> None:
    house = House(limits=Limits(authenticate_timeout=1000))
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": "one"}})
    house.access.next().yes("alice", freshUntil=3.0)
    for _ in range(12):
        client.send({"type": "join", "payload": {"roomId": "two"}})
        house.access.next().yes("alice", freshUntil=house.clock.seconds() + 3)
        client.send({"type": "leave", "payload": {"roomId": "two"}})
        assert not house.access.questions
        house.pass_time(0.25)
    client.link.read()
    client.play("""
        @ 0.25
        ? t one
        > {"type": "notes:n:1"}
        * events:notes {"eventType": "notes:n:1"}
        ! away
        @ 1
        ? t one
        ! yes alice {"freshUntil": 10}
        @ 5
        @ 1
        ? t one
        ! no
        x ACCESS_REVOKED Access to room one was revoked {"roomId": "one"}
        = 4403 ACCESS_REVOKED
    """)


def test_what_grew_old_and_expires_while_nobody_can_be_asked() -> None:
    house = House()
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": "one"}})
    house.access.next().yes("alice", freshUntil=3.0, expiresAt=6.0)
    client.link.read()
    house.pass_time(3.25)
    for _ in range(2):
        house.access.next().away()
        house.pass_time(1.25)
    works(client)
    house.pass_time(1)
    while house.access.questions:
        house.access.next().away()
    client.play("""
        x TOKEN_EXPIRED Access to room one has expired {"roomId": "one"}
        @ 10
        x TOKEN_EXPIRED no other token was shown in time
        = 4401 TOKEN_EXPIRED
    """)


# Everybody at once.


@pytest.mark.parametrize("gateways", [1, 4])
def test_everybody_is_asked_about_again_at_the_pace_of_the_fleet(gateways: int) -> None:
    house = House(limits=Limits(authenticate_timeout=1000))
    house.access.gateways = gateways
    clients = [house.admit(f"user{n}", "one", token=f"t{n}") for n in range(2500)]
    house.pass_time(10)
    house.access.stale(revoked=False)
    house.pass_time(0.25)
    at_once = len(house.access.questions)
    assert 0.7 * 500 / gateways < at_once <= 1000 / gateways
    house.pass_time(0.5)
    assert 0.7 * 1000 / gateways < len(house.access.questions) - at_once < 1.3 * 1000 / gateways
    house.pass_time(10)
    assert len(house.access.questions) == 2500
    for client in clients[:3]:
        works(client)
    for question in house.access.questions:
        question.yes("user" + question.token[1:])
    house.access.questions.clear()
    house.pass_time(2)
    assert house.access.questions == []


def test_equal_questions_take_one_turn() -> None:
    house = House(single=False, limits=Limits(authenticate_timeout=1000))
    house.access.gateways = 2000
    for _ in range(100):
        house.admit("alice", "one", token="t")
    house.admit("alice", "two", token="t")
    house.pass_time(10)
    house.access.stale(revoked=False)
    house.pass_time(0.5)
    assert [question.room_id for question in house.access.questions] == ["one"] * 100
    house.pass_time(1.5)
    assert house.access.questions[100].room_id == "two"


def test_doubtful_access_waits_until_it_is_known_what_is_believed() -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    house.access.settled = False
    house.access.stale(revoked=False)
    assert set(house.access.held) == {(Token("t").digest, "alice")}
    house.pass_time(5)
    works(client)
    assert house.access.questions == []
    house.access.settled = True
    house.pass_time(0.25)
    assert len(house.access.questions) == 1


def test_what_is_suspended_is_asked_about_first_and_stays_so() -> None:
    house = House(limits=Limits(authenticate_timeout=1000))
    house.access.gateways = 20
    banned = house.admit("bob", "one", token="b")
    for n in range(200):
        house.admit(f"user{n}", "one", token=f"t{n}")
    house.access.stale(user_id="bob")
    house.access.next().away()
    house.access.stale(revoked=False)
    house.pass_time(1)
    for question in house.access.questions:
        question.away()
    house.access.questions.clear()
    house.pass_time(1.25)
    assert "b" in [question.token for question in house.access.questions]
    assert banned.session.rooms["one"].suspended


def test_everybody_twice_is_everybody_once() -> None:
    house = House()
    house.admit("alice", "one")
    for _ in range(5):
        house.access.stale(revoked=False)
    house.pass_time(1)
    assert len(house.access.questions) == 1


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_who_leaves_its_last_room_while_that_is_in_question_is_asked_about(answer: str) -> None:
    house = House()
    client = house.admit("alice", "one", token="t")
    house.access.stale(user_id="alice")
    house.access.next().away()
    house.broadcast(type="secret", userIds=["alice"])
    client.play("""
        > {"type": "leave", "payload": {"roomId": "one"}}
        < {"type": "left", "payload": {"roomId": "one"}}
    """)
    house.broadcast(type="another", userIds=["alice"])
    client.play("? t -")
    client.play(
        """
        ! yes alice
        < {"type": "secret", "payload": null}
        < {"type": "another", "payload": null}
    """
        if answer == "yes"
        else """
        ! no
        x ACCESS_REVOKED Access was revoked
        = 4403 ACCESS_REVOKED
    """
    )

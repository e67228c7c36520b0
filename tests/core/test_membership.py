"""Which client is in which room, here and in the room cache, however Redis comes and goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, capturedLogs, formatEvent

from kraftek.contract.errors import NotPublished, Refusal
from kraftek.contract.settings import Limits
from kraftek.core.session import SessionState
from tests.support.world import Client, House, works

DUPLICATE = "a newer login of the same user took this room"


# One socket per user and room, or many.


def two_gateways() -> tuple[House, House]:
    channels: dict[str, Any] = {}
    sockets: dict[tuple[str, str], dict[str, int]] = {}
    here, there = (House(name, channels=channels, sockets=sockets) for name in ("here", "there"))
    return here, there


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
    here, there = two_gateways()
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
    assert here.rooms.entries == {("one", "alice"): newer.id, ("two", "alice"): unconcerned.id}
    assert there.counters.duplicates == 1
    works(newer)
    works(unconcerned)


def lost(here: House) -> None:
    """The connection is lost with the order on it, and comes back."""
    here.bus.down()
    here.bus.up()


def refused(here: House) -> None:
    while here.bus.published:
        here.bus.answer(-2)


@pytest.mark.parametrize("fate", [lost, refused])
def test_an_order_to_close_that_does_not_arrive_is_repeated(fate: Callable[[House], None]) -> None:
    here, there = two_gateways()
    older, newer = there.admit("alice", "one"), here.admit("alice", "one")
    for _ in range(3):
        fate(here)
        here.pass_time(1)
        assert here.bus.published
    here.bus.deliver()
    assert older.link.closed == (4409, "DUPLICATE_CONNECTION")
    assert newer.link.closed is None
    here.pass_time(5)
    assert here.bus.published == []


def test_an_order_to_close_that_meets_the_bound_is_repeated() -> None:
    here, there = two_gateways()
    older = there.admit("alice", "one")
    here.bus._in_flight = 0
    newer = here.admit("alice", "one")
    here.pass_time(1)
    assert here.bus.published == []
    here.bus._in_flight = 100
    here.pass_time(1)
    here.bus.deliver()
    assert older.link.closed == (4409, "DUPLICATE_CONNECTION")
    assert newer.link.closed is None


def test_an_order_to_close_that_reached_nobody_is_repeated() -> None:
    """The older socket's process had lost Redis, and lives."""
    here, there = two_gateways()
    older, newer = there.admit("alice", "one"), here.admit("alice", "one")
    here.bus.answer(0)
    here.pass_time(2)
    here.bus.deliver()
    assert older.link.closed == (4409, "DUPLICATE_CONNECTION")
    assert newer.link.closed is None


def test_an_older_socket_is_closed_by_its_own_process_as_soon_as_that_has_redis_again() -> None:
    here, there = two_gateways()
    older = there.admit("alice", "one")
    there.bus.down()
    here.admit("alice", "one")
    here.bus.answer(0)
    there.bus.up()
    assert older.link.closed == (4409, "DUPLICATE_CONNECTION")


@pytest.mark.parametrize("ran", [True, False])
def test_a_newer_login_whose_answer_was_lost_is_the_newer_one(ran: bool) -> None:
    here, there = two_gateways()
    older = there.admit("alice", "one")
    here.clock.advance(1)
    here.rooms.failure, here.rooms.unanswered = NotPublished("the connection was lost"), ran
    newer = here.admit("alice", "one")
    here.bus.down()
    there.pass_time(5)
    assert (older.link.closed is not None) is ran
    here.rooms.failure = None
    here.bus.up()
    here.bus.deliver()
    there.pass_time(5)
    assert older.link.closed == (4409, "DUPLICATE_CONNECTION")
    assert newer.link.closed is None
    assert here.rooms.entries == {("one", "alice"): newer.id}


def test_an_older_socket_that_has_its_place_again_is_not_closed() -> None:
    here, there = two_gateways()
    older, newer = there.admit("alice", "one"), here.admit("alice", "one")
    here.bus.answer(-2)
    newer.leave()
    here.pass_time(1)
    assert here.bus.published == []
    assert older.link.closed is None


def test_of_three_logins_the_newest_stays() -> None:
    here, there = two_gateways()
    oldest, newer = there.admit("alice", "one"), here.admit("alice", "one")
    here.bus.answer(-2)
    newest = here.admit("alice", "one")
    here.pass_time(1)
    here.bus.deliver()
    assert [client.link.closed is None for client in (oldest, newer, newest)] == [False, False, True]


def test_a_displaced_socket_that_left_the_room_meanwhile_stays() -> None:
    here, there = two_gateways()
    older = there.admit("alice", "one")
    older.send({"type": "join", "payload": {"roomId": "two"}})
    there.access.next().yes("alice")
    here.admit("alice", "one")
    older.send({"type": "leave", "payload": {"roomId": "one"}})
    older.link.read()
    here.bus.deliver()
    works(older)


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
    sockets: dict[tuple[str, str], dict[str, int]] = {}
    here, there = (House(name, single=False, sockets=sockets) for name in ("here", "there"))
    older, newer = here.admit("alice", "one"), there.admit("alice", "one")
    newer.leave()
    assert here.rooms.entries == {("one", "alice"): older.id}
    older.leave()
    assert here.rooms.entries == {}
    assert here.rooms.told + there.rooms.told == [("joined", "alice", "one"), ("closed", "alice", "one")]


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
    house.rooms.failure = NotPublished("Redis is unavailable")
    client.send({"type": "leave", "payload": {"roomId": "one"}})
    house.rooms.failure = None
    house.bus.up()
    assert house.rooms.told == [("joined", "alice", "one"), ("left", "alice", "one")]


def test_a_newer_login_is_no_coming_and_no_going() -> None:
    house = House()
    house.admit("alice", "one")
    house.admit("alice", "one").leave()
    assert house.rooms.told == [("joined", "alice", "one"), ("closed", "alice", "one")]


def test_the_older_ones_goodbye_leaves_the_newer_ones_entry() -> None:
    here, there = two_gateways()
    older, newer = there.admit("alice", "one"), here.admit("alice", "one")
    older.leave()
    assert here.rooms.entries == {("one", "alice"): newer.id}


# Redis comes and goes.


def test_the_room_cache_is_whole_again_after_redis_lost_it() -> None:
    house = House()
    client = house.admit("alice", "one")
    client.send({"type": "join", "payload": {"roomId": "two"}})
    house.access.next().yes("alice")
    house.admit("bob", None)
    house.connect()
    house.rooms.forget()
    house.bus.begin_epoch("e2")
    assert house.rooms.entries == {("one", "alice"): client.id, ("two", "alice"): client.id}


def test_a_socket_that_was_superseded_meanwhile_is_closed() -> None:
    house = House()
    client, other = house.admit("alice", "one"), house.admit("bob", "one")
    house.rooms.sockets["one", "alice"]["elsewhere.1"] = 1000
    house.bus.down()
    house.bus.up()
    client.play(f"""
        x DUPLICATE_CONNECTION {DUPLICATE}
        = 4409 DUPLICATE_CONNECTION
    """)
    assert house.rooms.entries == {("one", "alice"): "elsewhere.1", ("one", "bob"): other.id}
    works(other)


def test_many_sockets_supersede_nobody() -> None:
    house = House(single=False)
    client = house.admit("alice", "one")
    house.rooms.sockets["one", "alice"]["elsewhere.1"] = 1000
    house.bus.down()
    house.bus.up()
    works(client)


def test_a_room_cache_that_cannot_be_written_stops_nobody() -> None:
    house = House()
    house.rooms.failure = NotPublished("Redis is unavailable")
    with capturedLogs() as logged:
        client = house.admit("alice", "one")
        works(client)
        house.bus.down()
        house.bus.up()
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
    house.pass_time(1)
    assert house.rooms.entries == {}


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
    # Nobody reads that cyd was away, and nobody is told.
    assert sorted(house.rooms.told[3:]) == [("closed", "bob", "one"), ("joined", "dan", "one")]


def test_what_redis_refuses_for_a_while_is_made_good() -> None:
    """Also what ``left`` says of it, and ``joined``."""
    house = House()
    stays, leaves = house.admit("alice", "one"), house.admit("bob", "one")
    house.rooms.failure = Refusal("NOREPLICAS Not enough good replicas to write.")
    with capturedLogs() as logged:
        comes, visits = house.admit("dan", "one"), house.admit("eve", "one")
        leaves.send({"type": "leave", "payload": {"roomId": "one"}})
        visits.leave()
        house.pass_time(8)
    assert [formatEvent(event) for event in logged] == [
        "The room cache is not written, until it can be: NOREPLICAS Not enough good replicas to write."
    ]
    house.rooms.failure = None
    house.pass_time(1)
    assert house.rooms.entries == {("one", "alice"): stays.id, ("one", "dan"): comes.id}
    assert sorted(house.rooms.told[2:]) == [("joined", "dan", "one"), ("left", "bob", "one")]


def test_who_enters_again_while_redis_refuses_writes_is_newer_than_who_entered_meanwhile() -> None:
    here, there = two_gateways()
    first = there.admit("alice", "one")
    for house in (here, there):
        house.rooms.failure = RuntimeError("MISCONF")
    with capturedLogs():
        second = here.admit("alice", "one")
        here.pass_time(0.5)
        there.pass_time(1)
        first.send({"type": "leave", "payload": {"roomId": "one"}})
        first.send({"type": "join", "payload": {"roomId": "one"}})
        there.access.next().yes("alice")
        for house in (here, there):
            house.rooms.failure = None
        here.pass_time(1)
        there.pass_time(1)
    there.bus.deliver()
    here.pass_time(1)
    assert second.link.closed == (4409, "DUPLICATE_CONNECTION")
    assert first.link.closed is None


def test_two_logins_while_redis_refuses_writes() -> None:
    here, there = two_gateways()
    for house in (here, there):
        house.rooms.failure = RuntimeError("READONLY You can't write against a read only replica.")
    with capturedLogs():
        older = there.admit("alice", "one")
        here.pass_time(1)
        newer = here.admit("alice", "one")
        for house in (here, there):
            house.rooms.failure = None
        there.pass_time(1)
        here.pass_time(1)
    here.bus.deliver()
    assert older.link.closed == (4409, "DUPLICATE_CONNECTION")
    assert newer.link.closed is None


def test_at_the_end_redis_is_told_of_all_that_left_in_its_own_time() -> None:
    house = House()
    clients = [house.admit(f"u{number}", "one") for number in range(700)]
    house.rooms.failure = NotPublished("10000 messages and commands are waiting for Redis's answer")
    for client in clients:
        client.leave()
    finishing = Deferred.fromCoroutine(house.membership.reconciliation.finish())
    house.clock.advance(0.025)
    house.rooms.failure = None
    house.clock.advance(0.025)
    assert len(house.rooms.entries) == 500
    assert not finishing.called
    house.clock.pump([0.025] * 5)
    assert house.rooms.entries == {}
    assert finishing.called
    assert {kind for kind, _, _ in house.rooms.told[700:]} == {"closed"}


def test_at_the_end_nobody_waits_for_redis() -> None:
    house = House()
    client = house.admit("ann", "one")
    house.rooms.failure = NotPublished("Redis is unavailable")
    client.leave()
    house.bus.down()
    assert Deferred.fromCoroutine(house.membership.reconciliation.finish()).called


def test_who_left_while_redis_was_away_is_no_ghost() -> None:
    house = House()
    gone, stays = house.admit("alice", "one"), house.admit("bob", "one")
    house.bus.down()
    house.rooms.failure = NotPublished("Redis is unavailable")
    gone.leave()
    house.rooms.failure = None
    house.bus.up()
    assert house.rooms.entries == {("one", "bob"): stays.id}


def test_who_came_back_while_redis_was_away_is_not_closed_for_its_own_ghost() -> None:
    house = House()
    gone = house.admit("alice", "one")
    house.bus.down()
    house.rooms.failure = NotPublished("Redis is unavailable")
    gone.leave()
    client = house.admit("alice", "one")
    house.rooms.failure = None
    house.bus.up()
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
    here, there = two_gateways()
    older = there.admit("alice", "one")
    here.clock.advance(1)
    here.bus.down()
    here.rooms.failure = NotPublished("Redis is unavailable")
    newer = here.admit("alice", "one")
    here.rooms.failure = None
    here.bus.up()
    here.bus.deliver()
    older.play(f"""
        x DUPLICATE_CONNECTION {DUPLICATE}
        = 4409 DUPLICATE_CONNECTION
    """)
    assert here.rooms.entries == {("one", "alice"): newer.id}
    works(newer)


# Whatever happens, in whatever order.


class MembershipStories(RuleBasedStateMachine):
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
            self.house.rooms.failure = NotPublished("Redis is unavailable")

    @rule(forgetful=st.booleans())
    def redis_comes(self, forgetful: bool) -> None:
        if not self.house.bus.available:
            if forgetful:
                self.house.rooms.forget()
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
                assert session in house.roster.digest(grant.token.digest)
                if room is not None:
                    assert session in house.roster.room(room)
                    heard_by = [outlet for _, outlets in house.roster.audience(room) for outlet in outlets]
                    assert not grant.suspended or session.link not in heard_by
                    assert session.user_id is not None
                    assert (room, session.user_id) not in entries, "two sockets of one user in one room"
                    entries[room, session.user_id] = session.socket_id
        reconciliation = house.membership.reconciliation
        assert {(room, user): socket for user, room, socket in reconciliation.standing} == entries
        if house.bus.available:
            assert house.rooms.entries == entries
        for client in self.clients:
            assert (client.link.closed is None) or client.session.state is SessionState.CLOSED

    def teardown(self) -> None:
        self.redis_comes(False)
        for client in self.clients:
            client.leave()
        house = self.house
        assert len(house.roster) == house.roster.rooms == len(house.access_watch._expiry_queue) == 0
        assert house.rooms.entries == {}
        assert house.membership.reconciliation.settled
        house.clock.advance(0)  # the turn of someone who is gone
        assert house.clock.getDelayedCalls() == []


TestMembershipStories = MembershipStories.TestCase
TestMembershipStories.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

"""Budgets of sockets, users and addresses: who is slowed, who is refused and told what, and who is closed."""

from __future__ import annotations

from typing import Any

import pytest

from kraftek.contract.errors import Code, Limit, PeerError
from kraftek.contract.messages import Grant
from kraftek.contract.settings import Limits, Registration
from kraftek.core.budgets import Asker
from kraftek.core.session import SessionState
from tests.support.world import CHAT, NOTES, Client, House

NOTE = {"type": "notes:note:create"}
SEND = "chat:message:send"
OFF = {
    "events_per_socket": 0,
    "events_per_user": 0,
    "events_per_address": 0,
    "bytes_per_socket": 0,
    "bytes_per_user": 0,
    "bytes_per_address": 0,
    "joins_per_user": 0,
    "questions_per_user": 0,
    "questions_per_address": 0,
}


def house(*, services: Any = (NOTES, CHAT), burst: float = 1.0, **limits: int) -> House:
    """With these limits and no others. Rates are of 10, so that nothing is allowed in advance."""
    return House(single=False, limits=Limits(**{**OFF, **limits}, burst=burst), services=services)


def codes(client: Client) -> list[str]:
    return [message["payload"]["code"] for message in client.link.read() if message["type"] == "error"]


def at(address: str, its_house: House) -> Client:
    """A client that connects from this address, and is let in."""
    its_house.admission.budgets.address_of = lambda _: address
    return its_house.admit(f"user at {address}")


# A socket.


def test_a_socket_over_its_budget_is_slowed_and_nothing_is_refused() -> None:
    its_house = house(events_per_socket=10)
    client = its_house.admit()
    for _ in range(9):
        client.send(NOTE)
    assert client.link.slowed == []
    client.send(NOTE)
    client.send(NOTE)
    assert client.link.slowed == pytest.approx([0.1, 0.2])
    assert codes(client) == []
    assert len(its_house.bus.published) == 11
    assert its_house.counters.slowed == 2


def test_a_socket_is_slowed_for_a_second_at_most() -> None:
    client = house(bytes_per_socket=10_000).admit()
    client.send({"type": "notes:note:create", "payload": "x" * 60_000})
    assert client.link.slowed == [1.0]
    client.send(NOTE)
    assert client.link.slowed == [1.0, 1.0]
    client.house.clock.advance(10)
    client.send(NOTE)
    assert len(client.link.slowed) == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"type": "ping"}', '{"type": "no"}', '{"type": "leave", "payload": {}}'])
def test_what_is_refused_or_answered_here_is_charged_like_an_event(text: str) -> None:
    client = house(events_per_socket=10).admit()
    for _ in range(9):
        client.send(text)
        client.send(NOTE)
    assert len(client.link.slowed) == 9


def test_what_comes_beside_messages_is_charged() -> None:
    client = house(events_per_socket=10, bytes_per_socket=1_000_000).admit()
    client.session.charge(10, 0)
    assert client.link.slowed == pytest.approx([0.1])
    client.session.charge(0, 1_000_000)
    assert client.link.slowed[1:] == pytest.approx([0.1 + 1e-6], abs=0.1)
    client.session.lost()
    client.session.charge(1000, 0)
    assert len(client.link.slowed) == 2


def test_a_client_that_has_not_authenticated_is_slowed_too() -> None:
    client = house(events_per_socket=10).connect()
    for _ in range(12):
        client.send(NOTE)
    assert len(client.link.slowed) == 2
    assert codes(client) == ["NOT_AUTHENTICATED"] * 12


def test_the_next_session_of_a_connection_goes_on_with_its_budget() -> None:
    its_house = house(events_per_socket=10)
    client = its_house.admit()
    for _ in range(10):
        client.send(NOTE)
    client.session.lost()
    client.session = its_house.gateway.open(client.link, client.session.dialect)
    slowed = len(client.link.slowed)
    client.send(NOTE)
    assert len(client.link.slowed) == slowed + 1


def test_a_socket_is_allowed_some_events_at_a_time() -> None:
    client = house(events_per_socket=1000, bytes_per_socket=1_000_000).admit()
    assert client.session.events == 50
    assert client.session.size == 50_000
    for _ in range(50):
        client.send(NOTE)
    assert client.session.events == 0
    client.send(NOTE)
    assert client.session.events == 50


def test_what_is_allowed_at_a_time_is_bounded_whatever_the_limits() -> None:
    session = house(events_per_socket=100_000, bytes_per_socket=1_000_000_000).admit().session
    assert (session.events, session.size) == (64, 65_536)
    session.charge(64, 65_536)
    assert (session.events, session.size) == (0, 0)
    session.charge(0, 1)
    assert (session.events, session.size) == (64, 65_536)


def test_without_limits_nothing_is_charged() -> None:
    client = house().admit()
    client.send(NOTE)
    assert client.session.events > 2**60
    client.session.charge(10**6, 10**9)
    assert (client.link.slowed, len(client.house.admission.budgets)) == ([], 0)


# A user, and an address.


def test_a_user_over_budget_is_refused_on_every_socket() -> None:
    its_house = house(events_per_user=10)
    one, two, other = its_house.admit("a"), its_house.admit("a"), its_house.admit("b")
    for _ in range(6):
        one.send(NOTE)
        two.send(NOTE)
    one.send({**NOTE, "id": 1})
    two.send(NOTE)
    other.send(NOTE)
    assert one.link.read() == [
        {
            "type": "error",
            "payload": {
                "code": "RATE_LIMITED",
                "message": "this user sends too much",
                "eventType": "notes:note:create",
                "retryAfter": 1.0,
                "limit": "user",
            },
            "id": 1,
        }
    ]
    assert (codes(two), codes(other)) == (["RATE_LIMITED"], [])
    assert its_house.counters.rate_limited["user"] == 3
    its_house.clock.advance(1.0)
    one.send(NOTE)
    assert codes(one) == []


def test_what_was_refused_does_not_count_for_the_user() -> None:
    its_house = house(events_per_user=10)
    client = its_house.admit("a")
    for _ in range(100):
        client.send(NOTE)
    assert len(its_house.bus.published) == 11
    its_house.clock.advance(0.2)
    client.send(NOTE)
    client.send(NOTE)
    client.send(NOTE)
    assert len(its_house.bus.published) == 13


def test_the_users_budget_outlives_the_socket() -> None:
    its_house = house(events_per_user=10)
    client = its_house.admit("a")
    for _ in range(12):
        client.send(NOTE)
    client.leave()
    client = its_house.admit("a")
    client.send(NOTE)
    assert codes(client) == ["RATE_LIMITED"]


def test_bytes_of_a_user() -> None:
    its_house = house(bytes_per_user=10_000)
    client = its_house.admit("a")
    big = {"type": "notes:note:create", "payload": "x" * 12_000}
    client.send(big)
    client.send({**big, "id": 1})
    assert codes(client) == ["RATE_LIMITED"]


def test_an_address_over_budget_is_refused() -> None:
    its_house = house(events_per_address=10)
    one, two, far = at("1.1.1.1", its_house), at("1.1.1.1", its_house), at("2.2.2.2", its_house)
    for _ in range(6):
        one.send(NOTE)
        two.send(NOTE)
    one.link.read()
    one.send({**NOTE, "id": 1})
    far.send(NOTE)
    (told,) = one.link.read()
    assert (told["payload"]["message"], told["payload"]["limit"]) == ("too much comes from this address", "address")
    assert codes(far) == []


def test_a_client_without_an_address_of_its_own_has_only_its_user() -> None:
    its_house = house(events_per_address=10)
    client = at("", its_house)
    for _ in range(100):
        client.send(NOTE)
    assert codes(client) == []


def test_pings_and_leaving_are_never_refused() -> None:
    its_house = house(events_per_user=10)
    client = its_house.admit("a")
    for _ in range(12):
        client.send(NOTE)
    client.link.read()
    client.play("""
        > {"type": "ping", "id": 1}
        < {"type": "pong", "payload": null, "id": 1}
        > {"type": "join", "id": 2, "payload": {"roomId": "two"}}
        x RATE_LIMITED this user sends too much {"id": 2, "retryAfter": 1.0, "limit": "user"}
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "two"}}
        x RATE_LIMITED this user sends too much {"retryAfter": 1.0, "limit": "user"}
        > {"type": "leave", "id": 3, "payload": {"roomId": "room"}}
        < {"type": "left", "id": 3, "payload": {"roomId": "room"}}
    """)


def test_events_without_an_id_hear_of_it_once_a_second() -> None:
    its_house = house(events_per_user=10, burst=0.1)
    client = its_house.admit("a")
    for _ in range(40):
        client.send(NOTE)
    assert codes(client) == ["RATE_LIMITED"]
    for _ in range(5):
        its_house.clock.advance(0.01)
        client.send({**NOTE, "id": 1})
    assert 0 < codes(client).count("RATE_LIMITED") <= 5
    its_house.clock.advance(1.0)
    for _ in range(40):
        client.send(NOTE)
    assert codes(client) == ["RATE_LIMITED"]


def test_a_refused_socket_is_not_read_for_a_moment() -> None:
    client = house(events_per_user=10).admit("a")
    for _ in range(12):
        client.send(NOTE)
    assert client.link.slowed == [0.1]


def test_an_unknown_event_over_budget_is_refused_as_one_that_is_known() -> None:
    its_house = house(events_per_user=10)
    client = its_house.admit("a")
    for _ in range(11):
        client.send(NOTE)
    client.link.read()
    client.send({"type": "nobody:at:home", "id": 1, "resent": True})
    assert codes(client) == ["INVALID_EVENT"]


# Above budget for too long.


def flood(client: Client, seconds: float, every: float = 0.25) -> None:
    for _ in range(round(seconds / every)):
        client.house.clock.advance(every)
        for _ in range(20):
            if client.session.state is not SessionState.CLOSED:
                client.send(NOTE)


def test_ten_seconds_above_the_budget_close_the_socket() -> None:
    its_house = house(events_per_user=10)
    client = its_house.admit("a")
    flood(client, 9.5)
    assert client.link.closed is None
    flood(client, 2.0)
    assert client.link.closed == (4429, "RATE_LIMITED")
    assert codes(client)[-1] == "RATE_LIMITED"
    assert its_house.counters.rate_limited_closed == 1


@pytest.mark.parametrize("every", [0.25, 0.5])
def test_the_tenth_second_above_the_budget_is_the_last(every: float) -> None:
    assert closing(every, 9.75 // every) is False
    assert closing(every, 10.0 / every) is True


def test_half_a_second_within_the_budget_begins_anew() -> None:
    assert closing(0.51, 100) is False


def closing(every: float, times: float) -> bool:
    """Whether the socket is closed at the last of so many refusals, and at none before."""
    its_house = house(events_per_user=10)
    client = its_house.admit("a")
    errors = [PeerError(Code.RATE_LIMITED, "", limit=Limit.USER) for _ in range(int(times) + 1)]
    for error in errors:
        its_house.admission.budgets.refused(client.session, error)
        its_house.clock.advance(every)
    assert not any(error.closes for error in errors[:-1])
    return errors[-1].closes


def test_a_client_that_waits_as_it_is_told_is_never_closed() -> None:
    its_house = house(events_per_user=10)
    client = its_house.admit("a")
    for _ in range(60):
        while not codes(client):
            client.send(NOTE)
        its_house.clock.advance(1.0)
    assert client.link.closed is None


def test_a_socket_over_its_own_budget_is_never_closed() -> None:
    client = house(events_per_socket=10).admit("a")
    flood(client, 20)
    assert client.link.closed is None


# Joins.


def test_joins_of_a_user_on_all_of_its_sockets() -> None:
    its_house = house(joins_per_user=10)
    its_house.access.known["token", "two"] = Grant("a", "two")
    its_house.access.known["bob", "two"] = Grant("b", "two")
    other = its_house.admit("b", token="bob")
    one, two = its_house.admit("a"), its_house.admit("a")
    join = {"type": "join", "payload": {"roomId": "two"}}
    leave = {"type": "leave", "payload": {"roomId": "two"}}
    for _ in range(3):
        one.send(join)
        one.send(leave)
        two.send(join)
    one.send({**join, "id": 1})
    refusal = one.link.read()[-1]
    assert (refusal["id"], refusal["payload"]["code"], refusal["payload"]["limit"]) == (1, "RATE_LIMITED", "joins")
    assert refusal["payload"]["message"] == "this user joins too many rooms"
    other.send(join)
    assert other.link.read()[-1]["type"] == "joined"
    its_house.clock.advance(1.0)
    one.send(join)
    assert one.link.read()[-1]["type"] == "joined"


def test_a_user_that_comes_back_all_the_time_is_let_in_no_more() -> None:
    its_house = house(joins_per_user=10)
    its_house.access.known["t", "room"] = Grant("a", "room")
    show = {"type": "authenticate", "id": 1, "payload": {"token": "t", "roomId": "room"}}
    for _ in range(11):
        client = its_house.connect()
        client.send(show)
        assert client.link.read()[-1]["type"] == "authenticated"
        client.leave()
    client = its_house.connect()
    client.send(show)
    assert codes(client) == ["RATE_LIMITED"]
    assert (client.session.state, client.link.closed) == (SessionState.NEW, None)
    its_house.clock.advance(1.0)
    client.send(show)
    assert client.link.read()[-1]["type"] == "authenticated"
    client.session.events = 100
    for _ in range(20):
        client.send(show)
    assert "RATE_LIMITED" in codes(client)


# A service's own rates.


RATED = Registration(name="notes", channel="events:notes", rate={"notes:cursor:move": 20.0, "notes:note:*": 1.0})


def test_a_service_has_rates_of_its_own() -> None:
    its_house = house(services=(RATED,), burst=0.5)
    one, two, other = its_house.admit("a"), its_house.admit("a"), its_house.admit("b")
    for client in (one, two, other):
        for name in ("notes:note:create", "notes:note:delete", "notes:cursor:move", "notes:other:thing"):
            client.send({"type": name, "id": name})
    limited = [
        [message["id"] for message in client.link.read() if message["type"] == "error"] for client in (one, two, other)
    ]
    assert limited == [["notes:note:delete"], ["notes:note:create", "notes:note:delete"], ["notes:note:delete"]]
    assert its_house.counters.rate_limited["event"] == 4
    its_house.clock.advance(1.0)
    one.send({"type": "notes:note:delete", "id": 2})
    assert codes(one) == []


def test_going_on_above_a_services_rate_closes_nothing() -> None:
    its_house = house(services=(RATED,))
    client = its_house.admit("a")
    flood(client, 20)
    assert client.link.closed is None
    assert codes(client) == ["RATE_LIMITED"] * 20


# The auth service.


def test_questions_of_a_user_noes_included() -> None:
    its_house = house(questions_per_user=10)
    budgets = its_house.admission.budgets
    client = its_house.admit("a")
    for _ in range(11):
        budgets.question("a", "")
    with pytest.raises(Exception, match="access has to be checked too often"):
        budgets.question("a", "")
    budgets.question("b", "")
    assert client.link.closed is None


def test_questions_of_an_address_before_its_user_is_known() -> None:
    budgets = house(questions_per_address=10).admission.budgets
    for _ in range(11):
        budgets.question(None, "1.1.1.1")
    with pytest.raises(Exception, match="access has to be checked too often"):
        budgets.question(None, "1.1.1.1")
    budgets.question(None, "")
    budgets.question(None, "2.2.2.2")


def test_questions_that_were_not_asked_are_given_back() -> None:
    its_house = house(questions_per_user=10, questions_per_address=10)
    budgets = its_house.admission.budgets
    session = its_house.admit("a").session
    session.address = "1.1.1.1"
    asker = Asker(session, "digest", budgets)
    for _ in range(50):
        asker.asks()
        asker.unasked()
    for _ in range(11):
        asker.asks()
    for user_id, address in (("a", ""), ("b", "1.1.1.1")):
        with pytest.raises(PeerError):
            budgets.question(user_id, address)
    Asker(session, "digest").unasked()


@pytest.mark.parametrize(("user_id", "address", "turn"), [("a", "1.1.1.1", "ua"), (None, "1.1.1.1", "a1.1.1.1"),
                                                          (None, "", "tdigest")])  # fmt: skip
def test_whose_turn_it_is_to_ask(user_id: str | None, address: str, turn: str) -> None:
    client = house().connect()
    client.session.user_id, client.session.address = user_id, address
    assert Asker(client.session, "digest").turn == turn


def test_buckets_are_forgotten() -> None:
    its_house = house(events_per_socket=10, events_per_user=10)
    for number in range(50):
        its_house.admit(f"user {number}").send(NOTE)
    assert len(its_house.admission.budgets) == 100
    its_house.clock.advance(5)
    client = its_house.admit("late")
    for _ in range(50):
        its_house.clock.advance(1)
        client.send(NOTE)
    assert len(its_house.admission.budgets) == 2

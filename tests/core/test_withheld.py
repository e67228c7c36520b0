"""What clients are sent while their access is in question: it waits in order, and comes after a yes only."""

from __future__ import annotations

from typing import Any

import pytest
from zope.interface.verify import verifyObject

from kraftek.contract.interfaces import IOutlet
from kraftek.contract.settings import Limits
from kraftek.core.withheld import Withheld
from kraftek.edge.dialects.native import NativeDialect
from tests.support.world import Client, House


def types(client: Client) -> list[str]:
    """Of what the client was told since the last look."""
    return [message["type"] for message in client.link.read()]


def said(house: House, type: str, **where: Any) -> None:
    house.broadcast(type=type, payload=type, **where)


def join(client: Client, room: str) -> None:
    client.send({"type": "join", "payload": {"roomId": room}})
    client.house.access.next().yes("alice")
    client.link.read()


def test_keeps_its_interface() -> None:
    verifyObject(IOutlet, Withheld(House().connect().session, None, 1))


def test_a_room_waits_until_a_yes() -> None:
    house = House()
    alice, bob = house.admit("alice", "one"), house.admit("bob", "one", token="b")
    said(house, "before", roomId="one")
    house.access.stale(user_id="alice")
    for number in range(3):
        said(house, f"n{number}", roomId="one")
    said(house, "not for bob", roomId="one", excludeSocketIds=[bob.id])
    said(house, "not for alice", roomId="one", excludeSocketIds=[alice.id])
    assert types(alice) == ["before"]
    assert types(bob) == ["before", "n0", "n1", "n2", "not for alice"]
    house.access.next().yes("alice")
    said(house, "after", roomId="one")
    assert types(alice) == ["n0", "n1", "n2", "not for bob", "after"]


def test_nothing_comes_after_a_no() -> None:
    house = House()
    alice = house.admit("alice", "one")
    join(alice, "two")
    house.access.stale(user_id="alice", room_id="two")
    said(house, "secret", roomId="two")
    house.access.next().no()
    said(house, "more", roomId="two")
    said(house, "other", roomId="one")
    assert types(alice) == ["error", "other"]
    house.access.stale(user_id="alice")
    said(house, "secret", roomId="one")
    house.access.next().no()
    assert types(alice) == ["error"]
    assert alice.link.closed is not None
    assert not house.access_watch._withholding


def test_who_could_not_be_asked_about_waits_longer() -> None:
    house = House()
    alice = house.admit("alice", "one")
    house.access.stale(user_id="alice")
    said(house, "first", roomId="one")
    house.access.next().away()
    said(house, "second", roomId="one")
    house.pass_time(1)
    house.access.next().away()
    assert types(alice) == []
    house.pass_time(1)
    house.access.next().yes("alice")
    assert types(alice) == ["first", "second"]
    assert not house.access_watch._withholding


def test_what_is_merely_doubtful_does_not_wait() -> None:
    house = House()
    alice = house.admit("alice", "one")
    house.access.stale(revoked=False)
    house.pass_time(1)
    assert house.access.questions
    said(house, "news", roomId="one")
    assert types(alice) == ["news"]


def test_another_room_does_not_wait() -> None:
    house = House()
    alice = house.admit("alice", "one")
    join(alice, "two")
    house.access.stale(user_id="alice", room_id="two")
    said(house, "one", roomId="one")
    said(house, "two", roomId="two")
    said(house, "user", userIds=["alice"])
    said(house, "socket", recipients=[alice.id])
    assert types(alice) == ["one", "user", "socket"]
    house.access.next().yes("alice")
    assert types(alice) == ["two"]


@pytest.mark.parametrize("room", ["one", None])
def test_what_is_for_the_user_waits_when_nothing_is_certain(room: str | None) -> None:
    house = House()
    alice = house.admit("alice", room)
    house.access.stale(user_id="alice")
    said(house, "user", userIds=["alice"])
    if room is not None:
        said(house, "room", roomId=room)
    said(house, "socket", recipients=[alice.id])
    alice.send({"type": "ping"})
    assert types(alice) == []
    house.access.next().yes("alice")
    house.clock.advance(0)
    assert types(alice) == ["user", *(["room"] if room else []), "socket", "pong"]
    said(house, "user", userIds=["alice"])
    assert types(alice) == ["user"]


def test_what_is_for_the_user_comes_as_soon_as_something_is_certain() -> None:
    house = House()
    alice = house.admit("alice", "one")
    join(alice, "two")
    house.access.stale(user_id="alice")
    said(house, "user", userIds=["alice"])
    said(house, "one", roomId="one")
    said(house, "two", roomId="two")
    first, second = house.access.next(), house.access.next()
    second.yes("alice")
    assert types(alice) == ["user", "two"]
    first.no()
    assert types(alice) == ["error"]
    assert alice.link.closed is None
    assert not house.access_watch._withholding


def test_a_room_in_question_that_is_left() -> None:
    house = House()
    alice = house.admit("alice", "one")
    join(alice, "two")
    house.access.stale(user_id="alice")
    one, two = house.access.next(), house.access.next()
    one.away()
    two.yes("alice")
    house.access.stale(user_id="alice", room_id="two")
    house.access.next().away()
    said(house, "user", userIds=["alice"])
    said(house, "two", roomId="two")
    alice.send({"type": "leave", "payload": {"roomId": "two"}})
    assert types(alice) == ["left"]
    house.pass_time(1)
    house.access.next().yes("alice")
    assert types(alice) == ["user"]
    assert not house.access_watch._withholding


def test_a_client_that_goes_leaves_nothing() -> None:
    house = House()
    alice, bob = house.admit("alice", "one"), house.admit("bob", "one", token="b")
    house.access.stale(user_id="alice")
    said(house, "secret", roomId="one")
    alice.leave()
    assert not house.access_watch._withholding
    assert not house.roster._diverted
    said(house, "news", roomId="one")
    assert types(bob) == ["secret", "news"]


def test_what_waits_is_bounded_and_the_client_told_once() -> None:
    house = House(limits=Limits(unsent_bytes=1000))
    alice, bob = house.admit("alice", "one"), house.admit("bob", "one", token="b")
    house.access.stale(user_id="alice")
    for _ in range(3):
        house.broadcast(type="large", payload="x" * 600, roomId="one")
    (told,) = alice.link.read()
    assert (told["payload"]["code"], told["roomId"]) == ("AUTH_UNAVAILABLE", "one")
    assert told["payload"]["message"] == (
        "access to room one cannot be checked at present: messages are lost until it is"
    )
    assert types(bob) == ["large"] * 3
    house.access.next().yes("alice")
    said(house, "news", roomId="one")
    assert types(alice) == ["news"]


def test_each_kind_of_client_gets_it_in_its_own_words() -> None:
    class Other(NativeDialect):
        codec = "other"

    house = House()
    alice, bob = house.admit("alice", "one"), house.connect(dialect=Other())
    bob.send({"type": "authenticate", "payload": {"token": "b", "roomId": "one"}})
    house.access.next().yes("bob")
    bob.link.read()
    for user in ("alice", "bob"):
        house.access.stale(user_id=user)
    said(house, "news", roomId="one")
    for user in ("alice", "bob"):
        house.access.next().yes(user)
    assert (types(alice), types(bob)) == (["news"], ["news"])

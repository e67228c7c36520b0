"""Users with history: what each of a user's devices gets, wherever it was meanwhile, beside what rooms are told."""

from __future__ import annotations

from typing import Any

import pytest

from kraftek.contract.errors import NotPublished
from kraftek.contract.names import room_topic, topic_channel, user_topic
from kraftek.contract.settings import Limits, Users
from tests.core.histories import BOARDS, ROOM, Histories, since, standing
from tests.support.world import Client, House

SAID = "inbox:mail:came"


class Post(Histories):
    """A gateway whose users have a history, too."""

    type = SAID

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"users": Users(history=100), "single": False, **more})

    def tell(self, text: str, user_id: str = "ann", *, heard: bool = True, **more: Any) -> bytes:
        """A service tells the user something; ``heard``: it gets here."""
        return self.tell_topic(user_topic(user_id), text, heard=heard, **more)

    def tell_room(self, text: str, room_id: str = ROOM, *, heard: bool = True) -> bytes:
        return self.tell_topic(room_topic(room_id), text, heard=heard)

    def enter(
        self, user_id: str = "ann", room_id: str | None = None, since: Any = None, user_since: Any = None, **grant: Any
    ) -> Client:
        """A device of the user authenticates, and is let in."""
        return self.let_in(user_id, grant, roomId=room_id, since=since, userSince=user_since)


def told(client: Client) -> list[Any]:
    """What it was told: where it stands, as a user and in the room, and what was said with which offset."""
    found: list[Any] = []
    for said in client.link.read():
        payload = said["payload"]
        if said["type"] == SAID:
            assert ("userOffset" in said) + ("roomId" in said) < 2
            found.append((said.get("userOffset", said.get("offset")), payload))
        elif said["type"] == "authenticated":
            room = standing(payload)
            found.append(payload.get("userPosition"))
            found += [room] if room else []
        elif said["type"] == "position":
            found.append(payload)
        else:
            found.append((said["type"], payload.get("code")))
    return found


def test_the_frames_are_those_of_the_protocol() -> None:
    post = Post()
    client = post.connect()
    client.play("""
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "hall"}, "id": 1}
        ? t hall
        ! yes ann
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "ann", "roomId": "hall", "userPosition": {"epoch": "e1", "offset": 0}}}
    """)  # noqa: E501
    post.tell("a", roomId="of the service's own")
    client.play('< {"type": "inbox:mail:came", "payload": "a", "userOffset": 1}')
    post.broadcast(type="x", payload=1, userIds=["ann"])
    client.play('< {"type": "x", "payload": 1}')
    post.logs.epoch, post.logs.ended = "e2", {"e1": 1}
    post.bus.begin_epoch("e2")
    client.play('< {"type": "position", "payload": {"epoch": "e2", "offset": 1, "recovered": true}}')


@pytest.mark.parametrize("wrong", [{"offset": 1}, {"epoch": "e", "offset": -1}, []])
def test_a_malformed_position_is_refused(wrong: Any) -> None:
    client = Post().connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "userSince": wrong}})
    (error,) = client.link.read()
    assert error["payload"]["code"] == "INVALID_MESSAGE"


def test_each_device_of_a_user_goes_on_where_it_was() -> None:
    post = Post()
    phone, desk = post.enter(), post.enter()
    post.tell("a")
    phone.leave()
    post.tell("b")
    desk.leave()
    post.tell("c", heard=False)
    phone, desk = post.enter(user_since=since(1)), post.enter(user_since=since(2))
    post.tell("d")
    assert told(phone) == [since(1, recovered=True), (2, "b"), (3, "c"), (4, "d")]
    assert told(desk) == [since(2, recovered=True), (3, "c"), (4, "d")]
    assert (post.counters.resumed, post.counters.resumed_messages) == (2, 2)
    assert told(post.enter("bob", user_since=since(1))) == [since(0, recovered=False, reason="epoch")]


def test_one_device_more_learns_where_its_user_is() -> None:
    post = Post()
    post.enter()
    post.tell("a")
    assert told(post.enter()) == [since(1)]
    assert post.logs.reads == 1


def test_what_another_gateway_has_told_is_not_missed_here() -> None:
    here = Post()
    here.enter()
    here.tell("a")
    there = Post(logs=here.logs, gateway_id="gw2")
    assert told(there.enter(user_since=since(0))) == [since(0, recovered=True), (1, "a")]


def test_who_was_left_out_then_is_left_out_now() -> None:
    post = Post()
    phone, desk = post.enter(), post.enter()
    told(phone), told(desk)
    post.tell("a", excludeSocketIds=[phone.id])
    post.tell("b")
    assert (told(phone), told(desk)) == ([(2, "b")], [(1, "a"), (2, "b")])
    assert told(post.enter(user_since=since(0, socketIds=[phone.id]))) == [since(0, recovered=True), (2, "b")]


@pytest.mark.parametrize(
    ("change", "reason"), [({"kept": 0}, "expired"), ({"kept": 1}, "too_many"), ({"epoch": "e2"}, "epoch")]
)
def test_where_continuity_cannot_be_proven_it_is_denied(change: dict[str, Any], reason: str) -> None:
    post = Post()
    for text in "abc":
        post.tell(text, heard=False)
    for name, value in change.items():
        setattr(post.logs, name, value)
    assert told(post.enter(user_since=since(1))) == [since(3, post.logs.epoch, recovered=False, reason=reason)]


def test_without_a_history_of_users_nothing_is_missed_silently() -> None:
    house = House()
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": "hall", "userSince": since(1)}})
    house.access.next().yes("ann")
    assert told(client) == [{"recovered": False, "reason": "epoch"}]
    assert len(house.following) == 0


# Beside a room


def test_the_answer_says_both_and_what_was_missed_of_both_follows() -> None:
    post = Post()
    post.tell("to ann", heard=False)
    post.tell_room("to all", heard=False)
    client = post.enter(room_id=ROOM, since=since(0), user_since=since(0))
    assert told(client) == [since(0, recovered=True), since(0, recovered=True), (1, "to all"), (1, "to ann")]
    post.tell("b")
    post.tell_room("c")
    assert told(client) == [(2, "b"), (2, "c")]


def test_what_is_told_while_the_other_is_read_comes_behind_the_answer() -> None:
    post = Post()
    post.enter("bob", ROOM)
    post.tell_room("a")
    post.logs.held = []
    client = post.enter(room_id=ROOM, since=since(0))
    post.logs.answer()  # of the room
    post.tell_room("b")
    assert told(client) == []
    post.logs.answer()
    assert told(client) == [since(0), since(0, recovered=True), (1, "a"), (2, "b")]


@pytest.mark.parametrize("lost", ["too much", "another epoch"])
def test_what_happens_to_one_history_while_the_other_is_read(lost: str) -> None:
    post = Post(limits=Limits(unsent_bytes=2000))
    post.enter("bob", ROOM)
    post.tell_room("a")
    post.logs.held = []
    client = post.enter(room_id=ROOM, since=since(0), user_since=since(0, "another"))
    post.logs.held.reverse()
    post.logs.answer()
    waiting, post.logs.held = post.logs.held, None
    if lost == "too much":
        for _ in range(3):
            post.tell_room("x" * 500)
    else:
        post.logs.epoch, post.logs.ended = "e2", {"e1": 1}
        post.tell_room("x")
    while waiting:
        waiting.pop(0)()
    heard = told(client)
    assert heard[1:3] == [since(0, recovered=True), (1, "a")]
    if lost == "too much":
        assert heard[3:] == [since(4, recovered=False, reason="too_many")]
    else:
        assert heard[3:] == [since(1, "e2", recovered=True), (2, "x")]
    post.tell_room("y")
    assert told(client) == [(len(post.logs.told[room_topic(ROOM)]), "y")]


def test_a_room_without_history_says_nothing_before_the_answer() -> None:
    post = Post()
    post.logs.held = []
    client = post.enter(room_id="hall")
    post.broadcast(type=SAID, payload="before", roomId="hall")
    assert told(client) == []
    post.logs.answer()
    post.broadcast(type=SAID, payload="after", roomId="hall")
    assert told(client) == [since(0), (None, "after")]


@pytest.mark.parametrize(("users", "room_id"), [(100, "hall"), (100, ROOM), (0, ROOM)])
def test_nothing_that_is_told_to_its_user_comes_before_the_answer(users: int, room_id: str) -> None:
    post = Post(users=Users(history=users))
    post.logs.held = []
    client = post.enter(room_id=room_id)
    for text, whom in (
        ("to the user", {"userIds": ["ann"]}),
        ("to the socket", {"recipients": [client.id]}),
        ("to all", {"everybody": True}),
    ):
        post.broadcast(type=SAID, payload=text, **whom)
    assert told(client) == []
    while post.logs.held:
        post.logs.answer()
    heard = told(client)
    assert heard[0] == (since(0) if users else None)
    assert heard[-3:] == [(None, "to the user"), (None, "to the socket"), (None, "to all")]
    post.broadcast(type=SAID, payload="later", userIds=["ann"])
    assert told(client) == [(None, "later")]


def test_what_was_told_before_the_answer_waits_where_access_has_come_into_question() -> None:
    post = Post()
    post.logs.held = []
    client = post.enter(room_id="hall")
    post.broadcast(type=SAID, payload="early", userIds=["ann"])
    post.access.stale(user_id="ann")
    post.logs.answer()
    assert told(client) == [since(0)]
    post.broadcast(type=SAID, payload="later", userIds=["ann"])
    post.access.next().yes("ann")
    assert told(client) == [(None, "early"), (None, "later")]


@pytest.mark.parametrize("how", ["it leaves", "its access is revoked"])
def test_who_is_gone_before_the_answer_is_told_nothing(how: str) -> None:
    post = Post()
    post.logs.held = []
    client = post.enter(room_id="hall")
    post.broadcast(type=SAID, payload="early", userIds=["ann"])
    if how == "it leaves":
        client.leave()
    else:
        post.access.stale(user_id="ann")
        post.access.next().no()
    post.logs.answer()
    assert (None, "early") not in told(client)
    assert post.counters.errors_internal == 0


def test_access_that_is_revoked_before_the_answer() -> None:
    post = Post()
    post.logs.held = []
    client = post.enter(room_id="hall")
    post.access.stale(user_id="ann")
    post.access.next().no()
    post.logs.answer()
    assert told(client) == [("error", "ACCESS_REVOKED")]
    assert client.link.closed is not None
    post.tell("a")
    post.pass_time(11)
    assert len(post.following) == 0


def test_another_token_on_the_open_connection_changes_nothing() -> None:
    post = Post()
    client = post.enter(room_id="hall")
    post.tell("a")
    told(client)
    client.send({"type": "authenticate", "payload": {"token": "new", "userSince": since(0)}})
    while post.access.questions:
        post.access.next().yes("ann")
    assert told(client) == [None]
    client.send({"type": "authenticate", "payload": {"token": "bob's", "userSince": since(0)}})
    while post.access.questions:
        post.access.next().yes("bob")
    assert told(client) == [("error", "ACCESS_DENIED")]
    post.tell("not hers", "bob")
    assert told(client) == []


# What does not arrive


def test_what_does_not_arrive_is_read() -> None:
    post = Post()
    client = post.enter()
    post.tell("a", heard=False)
    post.tell("b")
    post.tell("c", heard=False)
    post.pass_time(10.5)
    assert told(client)[1:] == [(1, "a"), (2, "b"), (3, "c")]


def test_without_redis_it_is_told_at_once_and_where_it_is_later() -> None:
    post = Post()
    post.tell("a", heard=False)
    post.bus.down()
    post.logs.failure = NotPublished("away")
    client = post.enter(user_since=since(0))
    assert told(client) == [{"recovered": False, "reason": "unavailable"}]
    assert told(post.enter()) == [None]
    post.logs.failure = None
    post.bus.up()
    assert told(client) == [since(1, recovered=False, reason="unavailable")]


def test_a_user_who_is_gone_is_followed_no_more() -> None:
    post = Post()
    client = post.enter()
    post.enter("bob", ROOM)
    gauges = {gauge.name: gauge.read() for gauge in post.gauges if "followed" in gauge.name}
    assert gauges == {"rooms_followed": 1, "users_followed": 2}
    client.leave()
    post.pass_time(11)
    assert [topic.name for topic in post.following.topics if topic.room_id is None] == ["bob"]
    assert not post.bus._channels[topic_channel(user_topic("ann"))]


def test_a_broadcast_for_gateways_that_do_not_follow_is_for_no_user_who_is_followed() -> None:
    post = Post()
    client = post.enter()
    post.broadcast(type=SAID, payload="a", userIds=["ann", "bob"], offset=1)
    assert told(client)[1:] == []
    house = House()
    other = house.admit("ann")
    house.broadcast(type=SAID, payload="a", userIds=["ann", "bob"], offset=1)
    assert told(other) == [(None, "a")]


# Access


def test_what_is_told_while_access_is_in_question_waits_for_the_answer() -> None:
    post = Post()
    client = post.enter(room_id="hall")
    told(client)
    post.access.stale(user_id="ann")
    post.tell("a")
    assert told(client) == []
    post.access.next().yes("ann")
    assert told(client) == [(1, "a")]


def test_what_was_dropped_while_access_was_in_question_is_read() -> None:
    post = Post(limits=Limits(unsent_bytes=1000))
    client = post.enter(room_id="hall")
    told(client)
    post.access.stale(user_id="ann")
    for text in "ab":
        post.broadcast(type=SAID, payload="x" * 500, userIds=["ann"])
        post.tell(text)
    assert told(client) == [("error", "AUTH_UNAVAILABLE")]
    post.access.next().yes("ann")
    assert told(client) == [since(0, recovered=True), (1, "a"), (2, "b")]
    post.tell("c")
    assert told(client) == [(3, "c")]


def test_who_missed_more_while_access_was_in_question_is_told_so() -> None:
    post = Post(limits=Limits(unsent_bytes=300))
    client = post.enter(room_id="hall")
    told(client)
    post.access.stale(user_id="ann")
    for _ in range(3):
        post.tell("x" * 200)
    assert told(client) == [("error", "AUTH_UNAVAILABLE")]
    post.access.next().yes("ann")
    assert told(client) == [since(3, recovered=False, reason="too_many")]
    post.tell("b")
    assert told(client) == [(4, "b")]


def test_access_that_has_just_expired_costs_no_message() -> None:
    post = Post()
    client = post.enter(room_id="hall", expiresAt=10.0)
    client.send({"type": "leave", "payload": {"roomId": "hall"}})
    client.link.read()
    post.clock.advance(10.1)  # before the sweep
    post.tell("a")
    post.tell("b")
    assert told(client) == []
    post.access.next().yes("ann", expiresAt=100.0)
    assert told(client) == [(1, "a"), (2, "b")]
    post.clock.advance(90)
    post.tell("c")
    post.access.next().no()
    assert told(client) == [("error", "TOKEN_EXPIRED")]


# From one version to another


def test_another_version_goes_on_where_this_one_was() -> None:
    post = Post()
    client = post.enter()
    post.tell("a")
    told(client)
    session, rest = post.move.give_session(client.session), post.move.give()
    post.tell("b", heard=False)
    other = Post(logs=post.logs)
    taken = other.connect()
    taken.session = other.move.take_session(session, taken.link, taken.session.dialect)
    other.move.take(rest)
    assert told(taken) == [(2, "b")]


def test_a_user_of_whom_the_other_version_knew_nothing_is_told_where_it_is() -> None:
    house = House(history=BOARDS)
    client = house.admit("ann", ROOM)
    session, rest = house.move.give_session(client.session), house.move.give()
    other = Post(logs=house.logs)
    other.tell("a", heard=False)
    taken = other.connect()
    taken.session = other.move.take_session(session, taken.link, taken.session.dialect)
    other.move.take(rest)
    assert told(taken) == [since(1, recovered=False, reason="unavailable")]
    other.tell("b")
    assert told(taken) == [(2, "b")]


def test_what_was_dropped_for_want_of_access_is_known_to_the_next_version() -> None:
    post = Post(limits=Limits(unsent_bytes=300))
    client = post.enter(room_id="hall")
    post.access.stale(user_id="ann")
    post.tell("x" * 400)
    post.access.next().away()
    session, rest = post.move.give_session(client.session), post.move.give()
    other = Post(logs=post.logs)
    taken = other.connect()
    taken.session = other.move.take_session(session, taken.link, taken.session.dialect)
    other.move.take(rest)
    other.pass_time(1)
    other.access.next().yes("ann")
    assert told(taken) == [since(0, recovered=True), (1, "x" * 400)]

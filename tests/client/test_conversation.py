"""The conversation, without a socket and without a clock: what it is told, and what it then does and sends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kraftek.client import Change, Closed, Message, QueueFull, Recovered, Refused, State
from kraftek.client.conversation import Conversation
from kraftek.client.messages import Action, Ask, Drop, Dropped, Hear, Open, Settle

Json = dict[str, Any]


class Play:
    """A conversation, a clock, and a gateway that says what the test says."""

    def __init__(self, *rooms: str, queue: int = 256, random: Callable[[], float] = lambda: 0.5) -> None:
        self.it = Conversation(rooms, queue, random)
        self.now = 100.0
        self.settled: dict[str, Any] = {}
        self.heard: list[Message] = []
        self.changes: list[Change] = []
        self.dropped: list[Message] = []
        self.recovered: list[Recovered] = []

    @property
    def attempt(self) -> int:
        assert self.it.attempt is not None
        return self.it.attempt

    def actions(self) -> list[Action]:
        """What is to be done, without what was only to be noted."""
        rest: list[Action] = []
        while action := self.it.next_action():
            match action:
                case Settle(key, outcome):
                    assert key not in self.settled
                    self.settled[key] = outcome
                case Hear(message):
                    self.heard.append(message)
                case Change():
                    self.changes.append(action)
                case Dropped(message):
                    self.dropped.append(message)
                case Recovered():
                    self.recovered.append(action)
                case _:
                    rest.append(action)
        return rest

    def sent(self) -> list[Json]:
        """What the socket is given."""
        frames = []
        while frame := self.it.next_frame():
            frames.append(json.loads(frame))
        return frames

    def say(self, type: str, payload: Any = None, **more: Any) -> None:
        """The gateway says something."""
        self.it.received(self.attempt, json.dumps({"type": type, "payload": payload, **more}), self.now)

    def error(self, code: str, id: str | None = None, **more: Any) -> None:
        self.say("error", {"code": code, "message": "because", **more}, id=id)

    def join(self, room: str, timeout: float = 15.0) -> str:
        return self.it.join(self.now, timeout, room)

    def leave(self, room: str, timeout: float = 15.0) -> str:
        return self.it.leave(self.now, timeout, room)

    def lose(self, code: int = 1006, reason: str = "") -> None:
        self.it.lost(self.attempt, code, reason, self.now)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.it.wake(self.now)

    def wake(self) -> float:
        """Let time pass until it wants to be woken; how long that was."""
        due = self.it.due()
        assert due is not None
        wait = due - self.now
        self.pass_time(wait)
        return wait

    def open(self, token: str = "ada") -> Json:
        """From ``CONNECTING`` on: a token, and an open socket; what is then sent."""
        *_, ask = self.actions()
        assert isinstance(ask, Ask)
        self.it.token(ask.attempt, token, self.now)
        assert self.actions() == [Open(ask.attempt)]
        self.it.opened(ask.attempt)
        self.say("connected", {"socketId": "s"})
        (shown,) = self.sent()
        return shown

    def let_in(self, *joins: Json) -> None:
        """Answer these."""
        for join in joins:
            assert join["type"] == "join"
            self.say("joined", join["payload"], id=join["id"])

    def ready(self) -> list[Json]:
        """From ``CONNECTING`` on until authenticated; what is then sent."""
        self.open()
        self.say("authenticated", {"success": True})
        assert self.actions() == []
        assert self.it.state is State.READY
        return self.sent()


@pytest.fixture
def play() -> Play:
    play = Play("r1")
    play.it.connect()
    return play


def test_it_asks_for_a_token_opens_a_socket_and_shows_it(play: Play) -> None:
    assert play.it.state is State.CONNECTING
    assert play.actions() == [Ask(1, False)]
    play.it.token(1, "secret", play.now)
    assert play.actions() == [Open(1)]
    assert play.sent() == []
    play.it.opened(1)
    assert play.sent() == [{"type": "authenticate", "payload": {"token": "secret", "roomId": "r1"}}]
    play.say("authenticated", {"success": True, "userId": "ada", "roomId": "r1"})
    assert play.actions() == []
    assert [change.state for change in play.changes] == [State.CONNECTING, State.READY]
    assert [message.type for message in play.heard] == ["authenticated"]
    assert play.it.due() is None


def test_no_room() -> None:
    play = Play()
    play.it.connect()
    assert play.open() == {"type": "authenticate", "payload": {"token": "ada", "roomId": None}}


def test_connecting_again_does_nothing_unless_closed(play: Play) -> None:
    play.ready()
    play.it.connect()
    assert play.actions() == []


# Requests and events


def test_a_request_is_answered_once(play: Play) -> None:
    play.ready()
    key = play.it.request(play.now, 5.0, "a:b:c", {"x": 1}, "r1")
    assert play.sent() == [{"type": "a:b:c", "payload": {"x": 1}, "id": key, "roomId": "r1"}]
    play.say("a:b:c", {"y": 2}, id=key)
    play.say("a:b:c", {"y": 3}, id=key)
    play.actions()
    assert play.settled == {key: Message("a:b:c", {"y": 2}, key)}
    assert [message.type for message in play.heard] == ["connected", "authenticated"]
    assert play.it.due() is None


def test_ids_are_unique_among_clients() -> None:
    plays = [Play(), Play()]
    ids = []
    for play in plays:
        play.it.connect()
        ids += [play.it.request(0.0, 1.0, "a:b:c") for _ in range(2)]
    assert len(set(ids)) == 4
    assert all(len(key) <= 64 for key in ids)


def test_a_refusal(play: Play) -> None:
    play.ready()
    key = play.it.request(play.now, 5.0, "a:b:c")
    play.sent()
    play.error("RATE_LIMITED", key, retryAfter=3)
    play.actions()
    refused = play.settled[key]
    assert (refused.code, refused.message, refused.retry_after) == ("RATE_LIMITED", "because", 3.0)


# The gateway takes no more for a while.


def test_what_the_gateway_limits_is_sent_again_in_order(play: Play) -> None:
    play.ready()
    one, two, three = (play.it.request(play.now, 15.0, "a:b:c", number) for number in range(3))
    assert [frame["id"] for frame in play.sent()] == [one, two, three]
    play.say("r", 0, id=one)
    for key in (two, three):
        play.error("RATE_LIMITED", key, retryAfter=2, limit="user")
    play.it.emit("a:b:event")
    four = play.it.request(play.now, 15.0, "a:b:c", 4)
    assert play.sent() == []
    play.pass_time(2.9)
    assert play.sent() == []
    assert play.wake() <= 0.2
    frames = play.sent()
    assert [frame.get("id") for frame in frames] == [two, three, None, four]
    assert not any("resent" in frame for frame in frames)
    play.actions()
    assert [*play.settled] == [one]
    play.say("r", 2, id=two)
    play.actions()
    assert play.settled[two].payload == 2


def test_what_the_gateway_limits_for_longer_than_anybody_waits_is_refused(play: Play) -> None:
    play.ready()
    key = play.it.request(play.now, 3.0, "a:b:c")
    play.sent()
    play.error("RATE_LIMITED", key, retryAfter=3, limit="user")
    play.actions()
    assert (play.settled[key].code, play.settled[key].retry_after) == ("RATE_LIMITED", 3.0)
    play.it.emit("a:b:c")
    assert play.sent() == []  # it is obeyed all the same
    play.pass_time(6.0)
    assert len(play.sent()) == 1


def test_a_limited_event_holds_what_comes_after_it(play: Play) -> None:
    play.ready()
    play.it.emit("a:b:c", 1)
    play.sent()
    play.error("RATE_LIMITED", retryAfter=1, limit="address")
    play.actions()
    assert [message.type for message in play.heard][-1] == "error"
    play.it.emit("a:b:c", 2)
    assert play.sent() == []
    play.pass_time(2.0)
    assert [frame["payload"] for frame in play.sent()] == [2]


def test_a_later_and_shorter_limit_does_not_end_the_first(play: Play) -> None:
    play.ready()
    play.error("RATE_LIMITED", retryAfter=5, limit="user")
    play.error("RATE_LIMITED", retryAfter=1, limit="event")
    play.it.emit("a:b:c")
    play.pass_time(4.9)
    assert play.sent() == []
    play.pass_time(5.1)
    assert len(play.sent()) == 1


def test_a_limit_lasts_over_a_reconnect_and_rooms_are_entered_meanwhile() -> None:
    play = Play("r", "two")
    play.it.connect()
    play.let_in(*play.ready())
    key = play.it.request(play.now, 100.0, "a:b:c")
    asked = play.it.request(play.now, 100.0, "a:b:c")
    play.sent()
    play.error("RATE_LIMITED", key, retryAfter=30, limit="user")
    play.lose()
    while play.it.state is not State.CONNECTING:
        play.wake()
    play.let_in(*play.ready())
    play.leave("two", 100.0)
    assert [frame["type"] for frame in play.sent()] == ["leave"]
    play.pass_time(50.0)
    frames = play.sent()
    assert [(frame["id"], frame.get("resent")) for frame in frames] == [(asked, True), (key, None)]


def test_a_limited_request_from_no_room_stays_before_rooms() -> None:
    play = Play()
    play.it.connect()
    play.ready()
    key = play.it.request(play.now, 15.0, "a:b:c")
    play.sent()
    play.error("RATE_LIMITED", key, retryAfter=1, limit="user")
    play.join("r")
    assert play.sent() == []
    play.pass_time(2.0)
    assert [frame["type"] for frame in play.sent()] == ["a:b:c", "join"]


def test_a_limited_request_may_be_forgotten_and_closed(play: Play) -> None:
    play.ready()
    gone, kept = (play.it.request(play.now, 15.0, "a:b:c") for _ in range(2))
    play.sent()
    for key in (gone, kept):
        play.error("RATE_LIMITED", key, retryAfter=1, limit="user")
    play.it.forget(gone)
    play.it.close()
    play.actions()
    assert gone not in play.settled
    assert isinstance(play.settled[kept], Closed)


def test_a_limited_join_and_a_limited_token_are_tried_again(play: Play) -> None:
    play.open()
    play.error("RATE_LIMITED", retryAfter=1, limit="questions")
    play.pass_time(2.0)
    assert [frame["type"] for frame in play.sent()] == ["authenticate"]
    play.say("authenticated", {"success": True})
    key = play.join("r")
    play.sent()
    play.error("RATE_LIMITED", key, retryAfter=1, limit="joins")
    play.it.emit("a:b:c")
    assert [frame["type"] for frame in play.sent()] == ["a:b:c"]
    play.pass_time(2.0)
    assert [frame["type"] for frame in play.sent()] == ["join"]
    play.say("joined", {"roomId": "r"}, id=key)
    assert play.it.rooms == ["r1", "r"]


@pytest.mark.parametrize("payload", [None, "no", {"code": 7}, []])
def test_a_refusal_of_a_service_that_says_it_its_own_way(play: Play, payload: Any) -> None:
    play.ready()
    key = play.it.request(play.now, 5.0, "a:b:c")
    play.sent()
    play.say("error", payload, id=key)
    assert play.actions() == []
    assert isinstance(play.settled[key], Refused)
    assert str(payload) in play.settled[key].message


def test_a_request_has_a_time_limit(play: Play) -> None:
    play.ready()
    slow = play.it.request(play.now, 9.0, "a:b:c")
    fast = play.it.request(play.now, 2.0, "a:b:c")
    play.sent()
    assert play.wake() == 2.0
    play.actions()
    assert [*play.settled] == [fast]
    assert play.settled[fast].code == "TIMEOUT"
    play.say("a:b:c", id=fast)
    assert play.wake() == 7.0
    play.actions()
    assert {key: refused.code for key, refused in play.settled.items()} == {fast: "TIMEOUT", slow: "TIMEOUT"}
    assert play.it.due() is None


def test_the_time_limit_holds_without_a_connection(play: Play) -> None:
    key = play.it.request(play.now, 2.0, "a:b:c")
    play.wake()
    play.actions()
    assert play.settled[key].code == "TIMEOUT"


def test_a_forgotten_request_is_neither_sent_nor_settled(play: Play) -> None:
    key = play.it.request(play.now, 2.0, "a:b:c")
    play.it.forget(key)
    assert play.ready() == []
    assert play.settled == {}


def test_what_was_said_before_it_is_ready_is_sent_then_in_order(play: Play) -> None:
    play.it.emit("a:b:first")
    play.it.request(play.now, 5.0, "a:b:second")
    play.it.emit("a:b:third", room_id="r1")
    assert [frame["type"] for frame in play.ready()] == ["a:b:first", "a:b:second", "a:b:third"]


def test_what_is_volatile_is_sent_at_once_or_never(play: Play) -> None:
    assert not play.it.emit_now("a:b:early")
    play.ready()
    assert play.it.emit_now("a:b:first", 1, "r1")
    assert not play.it.emit_now("a:b:second")  # the first has not gone yet
    assert play.sent() == [{"type": "a:b:first", "payload": 1, "roomId": "r1"}]
    assert play.it.emit_now("a:b:third")
    play.lose()
    assert not play.it.emit_now("a:b:fourth")
    play.wake()
    assert [frame["type"] for frame in play.ready()] == []
    with pytest.raises(ValueError, match="an event's name is"):
        play.it.emit_now("a:b")
    play.it.close()
    assert not play.it.emit_now("a:b:late")
    assert not any(isinstance(action, Dropped) for action in play.actions())


def test_unanswered_requests_are_sent_again_under_their_id_and_events_are_not(play: Play) -> None:
    play.ready()
    first = play.it.request(play.now, 5.0, "a:b:first", 1)
    play.it.emit("a:b:event")
    answered = play.it.request(play.now, 5.0, "a:b:answered")
    second = play.it.request(play.now, 5.0, "a:b:second")
    before = {frame.get("id"): frame for frame in play.sent()}
    play.say("ack", {"receivers": 1}, id=answered)
    play.lose()
    third = play.it.request(play.now, 5.0, "a:b:third")
    play.wake()
    again = play.ready()
    assert [frame["id"] for frame in again] == [first, second, third]
    assert again[:2] == [{**before[first], "resent": True}, {**before[second], "resent": True}]
    play.say("a:b:first", 2, id=first)
    play.actions()
    assert play.settled[first].payload == 2


def test_a_request_is_sent_again_for_the_room_that_it_was_first_sent_from(play: Play) -> None:
    early = play.it.request(play.now, 60.0, "a:b:early")
    assert [frame["roomId"] for frame in play.ready()] == ["r1"]
    joined(play, "r2")
    play.it.request(play.now, 60.0, "a:b:first")
    play.it.request(play.now, 60.0, "a:b:second", room_id="r2")
    first, second = play.sent()
    assert (first["roomId"], second["roomId"]) == ("r1", "r2")
    play.leave("r1")
    play.it.request(play.now, 60.0, "a:b:third")
    _, third = play.sent()
    assert third["roomId"] == "r2"
    for _ in range(2):
        play.lose()
        play.wake()
        again = play.ready()
        assert again[0] == {"type": "a:b:early", "id": early, "roomId": "r1", "resent": True}
        assert again[1:] == [{**frame, "resent": True} for frame in (first, second, third)]


def test_a_request_that_was_sent_from_no_room_is_sent_again_from_none() -> None:
    play = Play()
    play.it.connect()
    play.ready()
    key = play.it.request(play.now, 60.0, "a:b:first", 1)
    (first,) = play.sent()
    assert "roomId" not in first
    joined(play, "r1")
    play.it.request(play.now, 60.0, "a:b:second")
    (second,) = play.sent()
    assert second["roomId"] == "r1"
    play.lose()
    play.wake()
    assert play.open()["payload"]["roomId"] is None
    play.say("authenticated", {"success": True})
    again, join = play.sent()
    assert again == {**first, "resent": True}
    assert (join["type"], join["payload"]) == ("join", {"roomId": "r1"})
    play.let_in(join)
    assert play.sent() == [{**second, "resent": True}]
    play.say("ack", {"receivers": 1}, id=key)
    play.lose()
    play.wake()
    assert play.open()["payload"]["roomId"] == "r1"


def test_a_request_behind_the_first_join_is_for_that_room() -> None:
    """The gateway holds it until it has checked that."""
    play = Play()
    play.it.connect()
    play.ready()
    play.join("r1")
    play.it.request(play.now, 60.0, "a:b:c")
    _, request = play.sent()
    assert request["roomId"] == "r1"


def test_what_was_not_yet_written_when_the_socket_was_lost_is_written_to_the_next(play: Play) -> None:
    play.ready()
    play.it.emit("a:b:c")
    play.lose()
    play.wake()
    assert [frame["type"] for frame in play.ready()] == ["a:b:c"]


def test_so_many_wait_and_no_more() -> None:
    """Of each kind: events that wait take no request's place, nor do requests a room's."""
    play = Play("r1", queue=2)
    play.it.connect()
    calls = (
        lambda: play.it.emit("a:b:c"),
        lambda: play.it.request(play.now, 5.0, "a:b:c"),
        lambda: play.join("r2"),
    )
    for call in calls:
        call()
        call()
        with pytest.raises(QueueFull, match="2 of them wait already"):
            call()
    joins = play.ready()
    assert len(joins) == 2
    play.let_in(*joins)
    assert len(play.sent()) == 4
    play.it.emit("a:b:c")
    with pytest.raises(QueueFull):
        play.it.request(play.now, 5.0, "a:b:c")


NAMES = json.loads((Path(__file__).parent / "names.json").read_text("utf-8"))


@pytest.mark.parametrize("name", [*NAMES["bad"], "a:b:" + "ж" * 125])
def test_what_names_no_event_is_not_sent(play: Play, name: str) -> None:
    play.ready()
    with pytest.raises(ValueError, match="an event's name is service:module:name, of at most 128 characters"):
        play.it.emit(name)
    with pytest.raises(ValueError, match="service:module:name"):
        play.it.request(play.now, 1.0, name)
    assert play.sent() == []
    assert play.it._outbox.requests() == []


def test_what_does_is(play: Play) -> None:
    play.ready()
    names = [*NAMES["good"], "a:b:" + "🎉" * 124]
    for name in names:
        play.it.emit(name)
    assert [frame["type"] for frame in play.sent()] == names


def test_who_we_are_and_where(play: Play) -> None:
    def known() -> tuple[str | None, str | None, list[str]]:
        return play.it.user_id, play.it.socket_id, play.it.rooms

    assert known() == (None, None, ["r1"])
    play.open()
    assert known() == (None, "s", ["r1"])
    play.say("authenticated", {"success": True, "userId": "ada", "roomId": "r1"})
    key = play.join("r2")
    assert known() == ("ada", "s", ["r1", "r2"])
    play.say("joined", {"roomId": "r2"}, id=key)
    play.leave("r1")
    assert play.it.rooms == ["r2"]
    # A service's word is not the gateway's.
    play.say("connected", {"socketId": "t"})
    play.say("authenticated", {"userId": "eve"})
    assert known() == ("ada", "s", ["r2"])
    play.lose()
    assert known() == ("ada", None, ["r2"])
    play.wake()
    play.open()
    assert known() == ("ada", "s", ["r2"])
    play.it.close()
    assert known() == ("ada", None, ["r2"])


@pytest.mark.parametrize("payload", [None, "ada", {"userId": 7}])
def test_an_identity_that_is_none(play: Play, payload: Any) -> None:
    play.open()
    play.say("authenticated", payload)
    assert (play.it.state, play.it.user_id) == (State.READY, None)


@pytest.mark.parametrize("how", ["closed", "forbidden"])
def test_events_that_will_not_be_sent_are_told(play: Play, how: str) -> None:
    play.ready()
    play.it.emit("a:b:sent")
    play.sent()
    play.lose(1001)
    play.it.emit("a:b:one", {"x": 1}, "r1")
    play.it.request(play.now, 60.0, "a:b:request")
    play.it.emit("a:b:two")
    if how == "closed":
        play.it.close()
    else:
        play.wake()
        play.actions()
        play.lose(4403)
    play.actions()
    assert play.dropped == [Message("a:b:one", {"x": 1}, None, "r1"), Message("a:b:two")]


def test_who_closes_is_out_of_the_room_he_leaves(play: Play) -> None:
    play.ready()
    key = play.leave("r1")
    play.it.close()
    play.actions()
    assert play.settled == {key: None}


def test_what_answers_nothing_is_heard(play: Play) -> None:
    play.ready()
    play.say("a:b:told", {"x": 1}, roomId="r1")
    play.error("INVALID_EVENT", eventType="a:b:c")
    play.actions()
    told, error = play.heard[2:]
    assert told == Message("a:b:told", {"x": 1}, None, "r1")
    assert error.payload["eventType"] == "a:b:c"


def test_timers_of_answered_requests_do_not_pile_up(play: Play) -> None:
    play.ready()
    for _ in range(1000):
        key = play.it.request(play.now, 60.0, "a:b:c")
        play.sent()
        play.say("ack", id=key)
    assert len(play.it._deadlines) < 100


# Rooms


def test_join_and_leave(play: Play) -> None:
    play.ready()
    join = play.join("r2")
    assert play.sent() == [{"type": "join", "payload": {"roomId": "r2"}, "id": join}]
    play.say("joined", {"roomId": "r2"}, id=join)
    leave = play.leave("r1")
    assert play.sent() == [{"type": "leave", "payload": {"roomId": "r1"}, "id": leave}]
    play.say("left", {"roomId": "r1"}, id=leave)
    gone = play.leave("r1")
    play.sent()
    play.error("ACCESS_DENIED", id=gone)
    play.actions()
    assert play.settled == {join: None, leave: None, gone: None}
    play.lose()
    play.wake()
    assert play.open()["payload"]["roomId"] == "r2"


def test_a_room_that_access_was_taken_back_to_is_not_entered_again(play: Play) -> None:
    play.ready()
    joined(play, "r2")
    play.say("error", {"code": "ACCESS_REVOKED", "message": "taken back"}, roomId="r1")
    play.actions()
    assert [(each.type, each.room_id) for each in play.heard[-1:]] == [("error", "r1")]
    play.lose()
    play.wake()
    assert play.ready() == []

    # The last one it keeps: whoever connects again wants to be there.
    play.say("error", {"code": "ACCESS_REVOKED", "message": "taken back"}, roomId="r2")
    play.lose(4403, "ACCESS_REVOKED")
    play.it.connect()
    assert play.open()["payload"]["roomId"] == "r2"


def test_the_last_room_is_gone_if_another_was_still_to_be_left(play: Play) -> None:
    play.ready()
    joined(play, "r2")
    leave = play.leave("r2")
    # The gateway does not close the socket: for it r1 was not the last room.
    play.say("error", {"code": "ACCESS_REVOKED", "message": "taken back"}, roomId="r1")
    play.say("left", {"roomId": "r2"}, id=leave)
    play.actions()
    assert play.it.rooms == []
    play.it.join(play.now, 5.0, "r1")
    assert play.sent()[-1]["payload"] == {"roomId": "r1"}


def test_an_error_that_a_service_tells_to_a_room_takes_nobody_out(play: Play) -> None:
    play.ready()
    joined(play, "r2")
    play.say("error", {"code": "SOLD_OUT", "message": "none left"}, roomId="r1")
    play.lose()
    play.wake()
    assert play.open()["payload"]["roomId"] == "r1"


def test_rooms_are_joined_again_before_anything_else(play: Play) -> None:
    play.ready()
    join = play.join("r2")
    play.sent()
    play.say("joined", {"roomId": "r2"}, id=join)
    play.lose()
    play.it.emit("a:b:c", room_id="r2")
    late = play.join("r3")
    play.wake()
    assert play.open()["payload"]["roomId"] == "r1"
    play.say("authenticated")
    third, second = play.sent()
    assert (third["type"], third["payload"], third["id"]) == ("join", {"roomId": "r3"}, late)
    assert (second["type"], second["payload"]) == ("join", {"roomId": "r2"})
    play.let_in(third)
    assert play.sent() == []
    assert not play.it.emit_now("a:b:now")
    play.let_in(second)
    assert [frame["type"] for frame in play.sent()] == ["a:b:c"]
    play.actions()
    assert play.settled[late] is None


def test_a_join_without_an_answer_is_asked_again(play: Play) -> None:
    play.ready()
    join = play.join("r2")
    play.sent()
    play.lose()
    play.wake()
    (again,) = play.ready()
    assert again == {"type": "join", "payload": {"roomId": "r2"}, "id": join}


def test_joining_the_room_of_the_authentication(play: Play) -> None:
    join = play.join("r1")
    assert play.ready() == []
    assert play.settled == {join: None}


def test_a_room_that_is_refused(play: Play) -> None:
    play.ready()
    join = play.join("r2")
    play.sent()
    play.error("ACCESS_DENIED", join)
    play.actions()
    assert play.settled[join].code == "ACCESS_DENIED"
    assert "error" not in [message.type for message in play.heard]
    play.lose()
    play.wake()
    assert play.ready() == []


def joined(play: Play, room: str) -> None:
    key = play.join(room)
    play.sent()
    play.say("joined", {"roomId": room}, id=key)


def test_a_room_that_cannot_be_entered_again_is_told(play: Play) -> None:
    play.ready()
    joined(play, "r2")
    play.lose()
    play.wake()
    (again,) = play.ready()
    play.error("ACCESS_DENIED", again["id"])
    play.actions()
    assert (play.heard[-1].type, play.heard[-1].room_id) == ("error", "r2")
    assert play.heard[-1].payload["code"] == "ACCESS_DENIED"
    play.lose()
    play.wake()
    assert play.ready() == []


def test_a_room_that_could_not_be_asked_about_is_asked_about_again(play: Play) -> None:
    play.ready()
    joined(play, "r2")
    play.lose()
    play.wake()
    (again,) = play.ready()
    play.error("AUTH_UNAVAILABLE", again["id"], retryAfter=2.0)
    assert play.sent() == []
    assert play.wake() == 3.0
    assert play.sent() == [again]
    play.say("joined", {"roomId": "r2"}, id=again["id"])
    assert play.it.due() is None


def test_a_room_to_enter_that_could_not_be_asked_about_is_asked_about_again(play: Play) -> None:
    play.ready()
    key = play.join("r2")
    (asked,) = play.sent()
    play.error("AUTH_UNAVAILABLE", key, retryAfter=2.0)
    assert play.actions() == []
    assert play.settled == {}
    assert play.wake() == 3.0
    assert play.sent() == [asked]
    play.say("joined", {"roomId": "r2"}, id=key)
    play.actions()
    assert play.settled == {key: None}
    assert play.it.due() is None


def test_a_room_left_before_it_was_entered(play: Play) -> None:
    play.ready()
    join = play.join("r2")
    play.sent()
    play.leave("r2")
    play.actions()
    assert play.settled[join].code == "LEFT"
    play.say("joined", {"roomId": "r2"}, id=join)
    play.lose()
    play.wake()
    assert play.ready() == []


def test_a_room_left_while_there_is_no_connection(play: Play) -> None:
    play.ready()
    joined(play, "r2")
    leaving = play.leave("r2")
    play.lose()
    gone = play.leave("r1")
    play.actions()
    assert play.settled[leaving] is None
    assert play.settled[gone] is None
    play.wake()
    assert play.open()["payload"]["roomId"] is None


def test_the_first_room_left_while_it_was_being_entered(play: Play) -> None:
    play.open()
    play.leave("r1")
    play.say("authenticated")
    play.actions()
    (leave,) = play.sent()
    assert (leave["type"], leave["payload"]) == ("leave", {"roomId": "r1"})


def test_the_first_room_left_and_joined_while_it_was_being_entered(play: Play) -> None:
    play.open()
    play.leave("r1")
    join = play.join("r1")
    play.say("authenticated")
    play.actions()
    assert play.sent() == []
    assert play.settled[join] is None


def timed_out(play: Play, key: str) -> bool:
    play.actions()
    outcome = play.settled.get(key)
    return isinstance(outcome, Refused) and outcome.code == "TIMEOUT"


def test_a_join_that_is_not_answered_ends(play: Play) -> None:
    play.ready()
    key = play.join("r2", 5.0)
    play.sent()
    play.pass_time(4.9)
    assert not timed_out(play, key)
    play.pass_time(0.1)
    assert timed_out(play, key)
    # It may be in by now.
    (leave,) = play.sent()
    assert (leave["type"], leave["payload"]) == ("leave", {"roomId": "r2"})
    play.say("joined", {"roomId": "r2"}, id=key)
    play.say("left", {"roomId": "r2"}, id=leave["id"])
    play.actions()
    assert play.it.rooms == ["r1"]
    assert play.it.due() is None


def test_time_without_a_connection_counts_for_a_join(play: Play) -> None:
    key = play.join("r2", 5.0)
    (ask,) = play.actions()
    play.pass_time(5.0)
    assert timed_out(play, key)
    play.it.token(ask.attempt, "ada", play.now)  # type: ignore[union-attr]
    play.it.opened(play.attempt)
    play.sent()
    play.say("authenticated")
    assert play.sent() == []
    key = play.join("r2", 5.0)
    play.sent()
    play.pass_time(3.0)
    play.lose()
    play.pass_time(2.0)
    assert timed_out(play, key)


def test_a_join_ends_though_it_is_asked_again_and_again(play: Play) -> None:
    play.ready()
    key = play.join("r2", 5.0)
    asked = 0
    while not timed_out(play, key):
        asked += len(play.sent())
        play.error("AUTH_UNAVAILABLE", key, retryAfter=1.0)
        play.wake()
    assert asked == 4
    play.sent()
    play.pass_time(100.0)
    assert play.sent() == []


def test_a_leave_that_is_not_answered_ends(play: Play) -> None:
    play.ready()
    joined(play, "r2")
    key = play.leave("r2", 5.0)
    play.sent()
    play.pass_time(5.0)
    assert timed_out(play, key)
    play.say("left", {"roomId": "r2"}, id=key)
    assert play.it.due() is None


def test_a_room_that_is_not_entered_again_costs_the_connection(play: Play) -> None:
    play.ready()
    joined(play, "r2")
    play.lose()
    play.wake()
    (again,) = play.ready()
    play.error("AUTH_UNAVAILABLE", again["id"], retryAfter=60.0)
    assert play.wake() == 90.0
    assert play.sent() == [again]
    assert play.wake() == 10.0
    (drop,) = play.actions()
    assert isinstance(drop, Drop)
    assert (play.it.state, play.changes[-1].reason) == (State.WAITING, "a room was not entered within 10 s")
    play.wake()
    (again,) = play.ready()
    assert again["payload"] == {"roomId": "r2"}


def test_credentials_that_cannot_be_read_are_not_shown_again(play: Play) -> None:
    play.open()
    play.error("INVALID_MESSAGE")
    (drop,) = play.actions()
    assert isinstance(drop, Drop)
    assert play.changes[-1] == Change(State.CLOSED, 4400, "INVALID_MESSAGE: because")


def test_what_was_cut_is_sent_whole_and_no_name_is(play: Play) -> None:
    play.ready()
    play.it.emit("a:b:c", {"text": "cut \ud83d"})
    assert play.sent() == [{"type": "a:b:c", "payload": {"text": "cut \ufffd"}}]
    for call in (
        lambda: play.join("\ud83d"),
        lambda: play.leave("\ud83d"),
        lambda: play.it.emit("a:b:c", None, "\ud83d"),
        lambda: play.it.request(play.now, 5.0, "a:b:c", None, "\ud83d"),
        lambda: play.it.emit("a:b:\ud83d"),
    ):
        with pytest.raises(ValueError, match=r"half of a surrogate pair|an event's name"):
            call()
    assert play.sent() == []


# Losing the connection


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 1007])
def test_full_jitter(code: int) -> None:
    numbers = iter([1.0, 0.0, 1.0, 0.25, 1.0, 1.0, 1.0, 1.0, 1.0])
    play = Play("r1", random=lambda: next(numbers))
    play.it.connect()
    play.actions()
    waits = []
    for _ in range(9):
        play.lose(code)
        play.actions()
        assert play.changes[-1].state is State.WAITING
        assert play.changes[-1].code == code
        waits.append(play.wake())
        assert waits[-1] == pytest.approx(play.changes[-1].wait)
        play.actions()
    assert waits == pytest.approx([0.5, 0.0, 2.0, 1.0, 8.0, 16.0, 30.0, 30.0, 30.0])


def test_a_gateway_that_is_away_for_a_week() -> None:
    play = Play("r1", random=lambda: 1.0)
    play.it.connect()
    for _ in range(20_000):
        play.lose()
        assert play.wake() <= 30.0
        play.actions()
    assert play.changes[-2].wait == 30.0


@pytest.mark.parametrize(("steadily", "bound"), [(4.9, 1.0), (5.0, 0.5)])
def test_a_good_connection_begins_the_back_off_again(steadily: float, bound: float) -> None:
    play = Play("r1", random=lambda: 1.0)
    play.it.connect()
    play.actions()
    play.lose()
    play.wake()
    play.ready()
    play.pass_time(steadily)
    play.lose()
    assert play.wake() == pytest.approx(bound)


@pytest.mark.parametrize("code", [4408, 4413, 4429])
def test_codes_that_say_back_off_first(play: Play, code: int) -> None:
    play.ready()
    play.lose(code)
    assert play.wake() == 1.0 + 0.5 * 4.0


@pytest.mark.parametrize("code", [1012, 1013])
def test_codes_that_everybody_gets_at_once(play: Play, code: int) -> None:
    play.ready()
    play.lose(code)
    assert play.wake() == 0.5 * 4.0


@pytest.mark.parametrize("ready", [True, False])
def test_a_gateway_that_stops_says_when_to_come_back(play: Play, ready: bool) -> None:
    if ready:
        play.ready()
    else:
        play.open()
    play.say("drain", {"reconnectAfter": 0.75})
    play.lose(1012, "the gateway stops")
    assert play.wake() == 0.75
    play.lose(1006)
    assert play.wake() == 0.25


def test_retry_after_of_the_error_before_the_close(play: Play) -> None:
    play.ready()
    play.error("RATE_LIMITED", retryAfter=7)
    play.lose(4429, "RATE_LIMITED")
    play.actions()
    assert play.changes[-1].reason == "RATE_LIMITED: because"
    assert play.wake() == 7.0 + 0.5 * 4.0


def test_retry_after_of_another_error_does_not_count(play: Play) -> None:
    play.ready()
    play.error("SERVICE_UNAVAILABLE", retryAfter=7)
    play.lose(1001, "the gateway stops")
    assert play.wake() == 0.25


@pytest.mark.parametrize(
    ("code", "reason"), [(4400, "INVALID_MESSAGE"), (4403, "ACCESS_REVOKED"), (4409, "DUPLICATE_CONNECTION")]
)
def test_codes_that_forbid_coming_back(play: Play, code: int, reason: str) -> None:
    play.ready()
    request = play.it.request(play.now, 5.0, "a:b:c")
    join = play.join("r2")
    play.sent()
    play.lose(code, reason)
    assert play.actions() == []
    assert play.changes[-1] == Change(State.CLOSED, code, reason)
    assert {type(outcome) for outcome in play.settled.values()} == {Closed}
    assert play.settled.keys() == {request, join}
    assert play.it.due() is None
    for refused in (lambda: play.it.emit("a:b:c"), lambda: play.join("r2"), lambda: play.leave("r1")):
        with pytest.raises(Closed) as closed:
            refused()
        assert (closed.value.code, closed.value.reason) == (code, reason)
    play.it.connect()
    assert play.ready() == []


def test_a_refused_token_is_replaced_once(play: Play) -> None:
    play.open("old")
    play.error("AUTH_FAILED")
    play.lose(4401, "AUTH_FAILED")
    play.actions()
    assert play.changes[-1].state is State.WAITING
    play.wake()
    ask = play.actions()
    assert ask == [Ask(2, True)]
    play.it.token(2, "new", play.now)
    play.it.opened(2)
    play.error("AUTH_FAILED")
    play.lose(4401, "AUTH_FAILED")
    play.actions()
    assert play.changes[-1] == Change(State.CLOSED, 4401, "AUTH_FAILED: because")


def test_a_new_token_is_asked_for_until_one_was_shown(play: Play) -> None:
    play.open("old")
    play.lose(4401)
    play.wake()
    play.actions()
    play.lose(1006, "no token")
    play.wake()
    assert play.actions() == [Ask(3, True)]


def test_once_authenticated_a_token_may_be_refused_once_more(play: Play) -> None:
    for attempt in (1, 3):
        assert play.actions() == [Ask(attempt, False)]
        play.it.token(attempt, "old", play.now)
        play.lose(4401)
        play.wake()
        play.ready()
        play.lose(1001)
        play.wake()


def test_a_message_that_is_too_large_is_not_sent_again(play: Play) -> None:
    play.ready()
    small = play.it.request(play.now, 5.0, "a:b:small", "x")
    large = play.it.request(play.now, 5.0, "a:b:large", "x" * 100)
    play.sent()
    play.lose(1009)
    play.actions()
    assert play.settled[large].code == "TOO_LARGE"
    play.wake()
    assert [frame["id"] for frame in play.ready()] == [small]


def test_an_event_that_is_too_large_costs_no_request_its_answer(play: Play) -> None:
    play.ready()
    key = play.it.request(play.now, 5.0, "a:b:small", "x")
    play.it.emit("a:b:large", "x" * 100)
    play.sent()
    play.lose(1009)
    play.actions()
    assert play.settled == {}
    play.wake()
    assert [frame["id"] for frame in play.ready()] == [key]
    # What the last socket was sent is no longer to blame.
    play.lose(1009)
    play.actions()
    assert play.settled[key].code == "TOO_LARGE"


def test_the_auth_service_is_away(play: Play) -> None:
    shown = play.open()
    play.error("AUTH_UNAVAILABLE", retryAfter=2.0)
    assert play.actions() == []
    assert play.sent() == []
    assert play.wake() == 3.0
    assert play.sent() == [shown]
    play.say("authenticated")
    assert play.it.state is State.READY


def test_a_gateway_that_says_nothing_is_given_up(play: Play) -> None:
    play.actions()
    play.it.token(1, "ada", play.now)
    assert play.wake() == 10.0
    assert play.actions() == [Open(1), Drop(1)]
    assert play.it.state is State.WAITING
    play.wake()
    play.open()
    assert play.wake() == 10.0
    assert play.actions() == [Drop(2)]


@pytest.mark.parametrize("text", ["", "no", "[]", "{}", '{"type": 1}', b"\xff", "[" * 100_000])
def test_somebody_who_is_no_gateway(play: Play, text: str | bytes) -> None:
    play.ready()
    play.it.received(1, text, play.now)
    assert play.actions() == [Drop(1)]
    assert play.changes[-1].state is State.WAITING
    assert play.changes[-1].code == 1002


def test_what_an_earlier_socket_says_is_ignored(play: Play) -> None:
    play.ready()
    play.lose()
    play.wake()
    play.actions()
    play.it.token(1, "ada", play.now)
    play.it.opened(1)
    play.it.received(1, '{"type":"authenticated"}', play.now)
    play.it.lost(1, 4409, "", play.now)
    assert play.actions() == []
    assert play.it.state is State.CONNECTING
    assert play.sent() == []


# Closing


def test_closing_sends_the_events_that_wait(play: Play) -> None:
    play.ready()
    play.it.emit("a:b:c")
    key = play.it.request(play.now, 5.0, "a:b:d")
    play.join("r2")
    play.it.close()
    ((attempt, last),) = [(drop.attempt, drop.last) for drop in play.actions() if isinstance(drop, Drop)]
    assert attempt == 1
    assert [json.loads(frame)["type"] for frame in last] == ["a:b:c"]
    assert play.settled[key].code == 1000
    play.it.close()
    assert play.actions() == []


def test_closing_while_connecting(play: Play) -> None:
    play.it.emit("a:b:c")
    play.actions()
    play.it.close()
    assert play.actions() == [Drop(1)]
    play.it.token(1, "ada", play.now)
    assert play.actions() == []


def test_closing_while_waiting(play: Play) -> None:
    play.ready()
    play.lose()
    play.it.close()
    assert play.actions() == []
    assert play.it.due() is None


def test_before_connecting_it_takes_nothing() -> None:
    with pytest.raises(Closed, match="not connected yet"):
        Conversation().emit("a:b:c")


# Whatever happens


def user_does(play: Play, what: str, number: int) -> str | None:
    """What a user may do; the id of the promise, if it is one."""
    it = play.it
    match what:
        case "request":
            return it.request(play.now, 5.0 + number, "a:b:c")
        case "emit":
            it.emit("a:b:c")
        case "join":
            return play.join(f"r{number}", 1.0 + number)
        case "leave":
            return play.leave(f"r{number}", 1.0 + number)
        case "close":
            it.close()
            it.connect()
    return None


def world_does(play: Play, what: str, number: int, asked: list[Json]) -> None:
    """What may happen to the present attempt; ``asked``: what was sent and may be answered."""
    attempt = play.attempt
    match what:
        case "token":
            play.it.token(attempt, "ada", play.now)
        case "open":
            play.it.opened(attempt)
        case "admit":
            play.say("authenticated")
        case "write":
            asked += [frame for frame in play.sent() if "id" in frame]
        case "answer" if asked:
            play.say("whatever", id=asked.pop(number % len(asked))["id"])
        case "refuse" if asked:
            play.error("ACCESS_DENIED", id=asked.pop(number % len(asked))["id"])
        case "lose":
            play.lose((1006, 1009, 4401, 4413)[number])


USER = ["request", "emit", "join", "leave", "close"]
WORLD = ["token", "open", "admit", "write", "answer", "refuse", "lose"]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from([*USER, *WORLD, "time"]), st.integers(0, 3)), max_size=60))
def test_every_promise_is_settled_once(steps: list[tuple[str, int]]) -> None:
    play = Play("r0", queue=1000)
    play.it.connect()
    promised: set[str | None] = set()
    asked: list[Json] = []
    for what, number in steps:
        if what in USER and play.it.state is not State.CLOSED:
            promised.add(user_does(play, what, number))
        elif what in WORLD and play.it.attempt is not None:
            world_does(play, what, number, asked)
        elif what == "time":
            play.pass_time(number * 2.0)
        play.actions()
    play.it.close()
    play.actions()
    assert promised - {None} <= play.settled.keys()
    assert play.it.due() is None
    assert play.it.next_frame() is None

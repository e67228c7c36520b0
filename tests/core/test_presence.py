"""Who is in a room, as clients are told it: at once, of changes, and whatever is lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import LogLevel, capturedLogs
from zope.interface.verify import verifyObject

from kraftek.contract.errors import NotPublished, Refusal
from kraftek.contract.interfaces import IBusListener
from kraftek.contract.names import shown_key
from kraftek.contract.settings import Limits, RoomPolicy
from kraftek.core.presence import PACE
from kraftek.core.rooms.leases import LEASE
from tests.support.world import Client, House

ROOM = "board-1"


class Board(House):
    """A gateway of whose rooms ``board-…`` clients see who is there. ``beside``: it shares a Redis with that one."""

    def __init__(self, most: int = 100, beside: Board | None = None, **more: Any) -> None:
        if beside is not None:
            shared = beside.bus._channels, beside.rooms.sockets, beside.rooms.data
            more["channels"], more["sockets"], more["data"] = shared
            more["gateway_id"] = "gw2"
        policies = (RoomPolicy(pattern="board-*", presence=True, presence_users=most),)
        super().__init__(history=policies, single=False, **more)

    def enter(self, user_id: str, room_id: str = ROOM, **payload: Any) -> Client:
        """A client authenticates for the room, and is let in."""
        client = self.connect()
        client.send({"type": "authenticate", "payload": {"token": user_id, "roomId": room_id, **payload}})
        self.access.next().yes(user_id)
        client.link.read()
        return client

    def watch(self, user_id: str, **payload: Any) -> Client:
        """A client that is told who is in the room; what it was told until now is not looked at again."""
        client = self.enter(user_id)
        ask(client, **payload)
        client.link.read()
        return client


def ask(client: Client, room_id: str = ROOM, id: Any = 1, **payload: Any) -> None:
    client.send({"type": "presence", "payload": {"roomId": room_id, **payload}, "id": id})


def told(client: Client) -> list[Any]:
    """What it was told of who is there, without the version; of errors the code."""
    found = []
    for said in client.link.read():
        payload = said["payload"]
        if said["type"] == "error":
            found.append(payload["code"])
        else:
            assert said["type"] == "presence"
            assert payload.pop("roomId") == ROOM
            assert payload.pop("version")
            found.append(payload)
    return found


def users(*user_ids: str) -> list[dict[str, str]]:
    return [{"userId": user_id} for user_id in user_ids]


def test_it_keeps_its_interface() -> None:
    verifyObject(IBusListener, Board().presence)


def test_who_asks_is_told_who_is_there_and_of_changes() -> None:
    board = Board()
    ann = board.enter("ann")
    ask(ann, id="q")
    (answer,) = ann.link.read()
    version = answer["payload"].pop("version")
    assert answer == {
        "type": "presence",
        "id": "q",
        "payload": {"roomId": ROOM, "count": 1, "users": [{"userId": "ann"}]},
    }
    board.pass_time(PACE)
    bob = board.enter("bob", data={"name": "Bob"})
    (change,) = ann.link.read()
    assert change["payload"].pop("version") != version
    assert change == {
        "type": "presence",
        "roomId": ROOM,
        "payload": {"roomId": ROOM, "count": 2, "joined": [{"userId": "bob", "data": {"name": "Bob"}}]},
    }
    board.pass_time(PACE)
    bob.leave()
    assert told(ann) == [{"count": 1, "left": ["bob"]}]
    assert board.counters.presence_told == 3


def test_who_has_not_asked_is_told_nothing() -> None:
    board = Board()
    ann = board.enter("ann")
    board.enter("bob")
    board.pass_time(20)
    assert ann.link.read() == []
    assert (len(board.presence), board.rooms.reads) == (0, 0)


def test_a_user_counts_once_however_many_sockets_it_has() -> None:
    here = Board()
    there = Board(beside=here)
    ann = here.watch("ann")
    first = here.enter("bob")
    second = there.enter("bob")
    for gateway in (here, there):
        gateway.pass_time(PACE)
    assert told(ann) == [{"count": 2, "joined": users("bob")}]
    first.leave()
    here.pass_time(3 * PACE)
    assert told(ann) == []
    second.leave()
    here.pass_time(PACE)
    assert told(ann) == [{"count": 1, "left": ["bob"]}]


def test_what_a_user_shows_is_what_its_newest_socket_shows() -> None:
    board = Board()
    ann = board.watch("ann")
    board.enter("bob", data=1)
    board.pass_time(PACE)
    second = board.enter("bob", data=[2])
    board.pass_time(PACE)
    second.leave()
    board.pass_time(PACE)
    assert told(ann) == [{"count": 2, "joined": [{"userId": "bob", "data": data}]} for data in (1, [2], 1)]


def test_who_joins_again_may_show_something_else_or_nothing() -> None:
    board = Board()
    bob = board.enter("bob", data="busy")
    ann = board.watch("ann")
    for said in ({"data": "free"}, {}, {"data": None}, {"data": None}):
        bob.send({"type": "join", "payload": {"roomId": ROOM, **said}})
        board.access.next().yes("bob")
        board.pass_time(2 * PACE)
    bob.send({"type": "authenticate", "payload": {"token": "t2", "roomId": ROOM, "data": "back"}})
    board.access.next().yes("bob")
    board.pass_time(2 * PACE)
    shown = [{"data": "free"}, {}, {"data": "back"}]
    assert told(ann) == [{"count": 2, "joined": [{"userId": "bob", **each}]} for each in shown]


def test_changes_that_cancel_out_are_not_told() -> None:
    board = Board()
    ann = board.watch("ann")
    bob = board.enter("bob")
    bob.leave()
    board.pass_time(3)
    assert told(ann) == []


def test_one_change_is_told_at_once_and_many_together() -> None:
    board = Board()
    ann = board.watch("ann")
    board.pass_time(PACE)
    for number in range(20):
        board.enter(f"u{number:02}")
    assert told(ann) == [{"count": 2, "joined": users("u00")}]
    board.pass_time(PACE)
    assert told(ann) == [{"count": 21, "joined": users(*(f"u{number:02}" for number in range(1, 20)))}]
    assert board.rooms.reads == 3


def test_a_large_room_costs_each_client_few_messages_and_lists_no_more_than_it_may() -> None:
    board = Board(most=10)
    ann = board.watch("ann")
    crowd = []
    for second in range(10):
        for number in range(50):
            crowd.append(board.enter(f"u{second}.{number}"))
            if number % 10 == 0:
                board.pass_time(0.25)
    board.pass_time(4)
    said = told(ann)
    assert len(said) <= 10
    assert said[-1]["count"] == 501
    assert sum(len(each.get("joined", ())) for each in said) == 9
    assert not any("left" in each for each in said)
    ask(ann)
    (answer,) = told(ann)
    assert (answer["count"], len(answer["users"])) == (501, 10)
    for client in crowd:
        client.leave()
    board.pass_time(4)
    assert told(ann)[-1]["count"] == 1
    ask(ann)
    assert told(ann) == [{"count": 1, "users": users("ann")}]


def test_who_has_just_come_is_in_the_answer() -> None:
    board = Board()
    board.watch("ann")
    board.pass_time(PACE)
    board.rooms.changed = lambda _: None  # the word about it is late
    bob = board.enter("bob")
    ask(bob)
    assert told(bob) == [{"count": 2, "users": users("ann", "bob")}]


def test_who_is_the_first_to_ask_again_is_told_what_happened_while_nobody_wanted_to_know() -> None:
    board = Board()
    ann = board.watch("ann")
    ask(ann, changes=False)
    board.enter("bob")
    ask(ann)
    assert told(ann)[-1] == {"count": 1, "users": users("ann")}
    board.pass_time(PACE)
    assert told(ann) == [{"count": 2, "joined": users("bob")}]


def test_who_knows_the_version_is_not_told_everybody_again_by_any_gateway() -> None:
    here = Board()
    there = Board(beside=here)
    ann = here.enter("ann")
    ask(ann)
    version = ann.link.read()[0]["payload"]["version"]
    again = there.enter("ann")
    ask(again, version=version)
    assert told(again) == [{"count": 1}]
    ask(again, version="older")
    assert told(again) == [{"count": 1, "users": users("ann")}]


def test_who_does_not_want_changes_gets_none() -> None:
    board = Board()
    ann = board.enter("ann")
    ask(ann, changes=False)
    assert told(ann) == [{"count": 1, "users": users("ann")}]
    board.enter("bob")
    board.pass_time(3)
    assert told(ann) == []
    ask(ann)
    ask(ann, changes=False)
    told(ann)
    board.enter("eve")
    board.pass_time(3)
    assert told(ann) == []


def test_who_has_left_the_room_is_told_nothing_more() -> None:
    board = Board()
    ann = board.watch("ann")
    ann.send({"type": "leave", "payload": {"roomId": ROOM}})
    ann.link.read()
    board.enter("bob")
    board.pass_time(3)
    assert ann.link.read() == []


def test_rooms_that_nobody_watches_are_let_go() -> None:
    board = Board()
    ann = board.watch("ann")
    board.pass_time(12)
    assert len(board.presence) == 1
    ann.leave()
    board.pass_time(12)
    assert len(board.presence) == 0
    assert not board.bus._channels[shown_key(ROOM)]
    reads = board.rooms.reads
    board.enter("bob")
    board.pass_time(12)
    assert board.rooms.reads == reads


# Who may


@pytest.mark.parametrize(
    ("room_id", "code"), [("board-2", "ACCESS_DENIED"), ("lobby", "NO_PRESENCE")], ids=["elsewhere", "without"]
)
def test_it_is_refused(room_id: str, code: str) -> None:
    board = Board()
    ann = board.enter("ann", "lobby")
    ask(ann, room_id)
    assert told(ann) == [code]


@pytest.mark.parametrize("payload", [{}, {"roomId": ""}, {"roomId": 1}, {"roomId": ROOM, "version": "x" * 65}, []])
def test_a_malformed_question_is_refused(payload: Any) -> None:
    ann = Board().enter("ann")
    ann.send({"type": "presence", "payload": payload, "id": 1})
    (error,) = ann.link.read()
    assert (error["payload"]["code"], error["id"]) == ("INVALID_MESSAGE", 1)


def test_nobody_is_told_before_it_has_authenticated() -> None:
    client = Board().connect()
    ask(client)
    assert told(client) == ["NOT_AUTHENTICATED"]


@pytest.mark.parametrize(
    ("permissions", "answers"),
    [(["*:*:*"], True), (["gateway:room:presence"], True), (["chat:*:*"], False), ([], False)],
)
def test_a_permission_has_to_cover_it(permissions: list[str], answers: bool) -> None:
    board = Board()
    client = board.connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": ROOM}})
    board.access.next().yes("ann", permissions=permissions)
    client.link.read()
    ask(client)
    assert told(client) == ([{"count": 1, "users": users("ann")}] if answers else ["ACCESS_DENIED"])


def test_who_may_not_any_more_is_told_so_once() -> None:
    board = Board()
    ann = board.watch("ann")
    board.access.stale(user_id="ann", revoked=False)
    board.access.next().yes("ann", permissions=["chat:*:*"])
    (error,) = ann.link.read()
    assert (error["roomId"], error["payload"]["eventType"]) == (ROOM, "gateway:room:presence")
    board.enter("bob")
    board.pass_time(3)
    assert ann.link.read() == []


def test_changes_wait_while_access_is_in_question() -> None:
    board = Board()
    ann = board.watch("ann")
    board.pass_time(PACE)
    board.access.stale(user_id="ann")
    question = board.access.next()
    bob = board.connect()
    bob.send({"type": "authenticate", "payload": {"token": "bob", "roomId": ROOM}})
    board.access.next().yes("bob")
    assert told(ann) == []
    question.yes("ann")
    assert told(ann) == [{"count": 2, "joined": users("bob")}]


def test_whose_changes_were_too_many_meanwhile_is_told_everybody() -> None:
    board = Board(limits=Limits(unsent_bytes=100))
    ann = board.watch("ann")
    board.pass_time(PACE)
    board.access.stale(user_id="ann")
    question = board.access.next()
    for name in ("bob", "eve"):
        other = board.connect()
        other.send({"type": "authenticate", "payload": {"token": name, "roomId": ROOM}})
        board.access.next().yes(name)
        board.pass_time(PACE)
    assert told(ann) == ["AUTH_UNAVAILABLE"]
    question.yes("ann")
    assert told(ann) == [{"count": 3, "users": users("ann", "bob", "eve")}]


def test_too_many_questions_are_refused() -> None:
    board = Board(limits=Limits(joins_per_user=1, burst=5))
    ann = board.enter("ann")
    for _ in range(10):
        ask(ann)
    said = told(ann)
    assert said[-1] == "RATE_LIMITED"
    assert {"count": 1, "users": users("ann")} in said


def test_what_is_too_much_of_everything_is_refused_too() -> None:
    board = Board(limits=Limits(events_per_socket=0, events_per_user=1, burst=1))
    ann = board.enter("ann")
    for _ in range(20):
        ask(ann)
    assert told(ann)[-1] == "RATE_LIMITED"


def test_a_client_whose_data_is_refused_is_told_why() -> None:
    board = Board(limits=Limits(presence_bytes=20))
    client = board.connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": ROOM, "data": "x" * 20}, "id": 7})
    (error,) = client.link.read()
    assert (error["id"], error["payload"]["code"]) == (7, "INVALID_MESSAGE")
    assert "limits.presence_bytes" in error["payload"]["message"]
    assert not board.access.questions


# Faults


def test_a_word_that_is_lost_costs_time_only() -> None:
    board = Board()
    ann = board.watch("ann")
    board.rooms.changed = lambda _: None
    board.enter("bob")
    board.pass_time(12)
    assert told(ann) == [{"count": 2, "joined": users("bob")}]


def test_what_changed_while_redis_was_away_is_told_when_it_is_back() -> None:
    board = Board()
    other = Board(beside=board)
    ann = board.watch("ann")
    board.bus.down()
    board.rooms.changed = other.rooms.changed = lambda _: None
    other.enter("bob")
    board.pass_time(20)
    assert told(ann) == []
    board.bus.up()
    board.pass_time(2)
    assert told(ann) == [{"count": 2, "joined": users("bob")}]


def test_who_is_missing_after_a_loss_has_not_left_before_its_gateway_can_have_written_it_anew() -> None:
    board = Board()
    ann = board.watch("ann")
    other = Board(beside=board)
    for gateway, name in ((board, "bob"), (other, "dan"), (other, "eve")):
        gateway.enter(name, data=[name])
    board.pass_time(2)
    told(ann)
    stood = dict(board.rooms.sockets)
    board.rooms.forget()
    board.bus.begin_epoch("e2")
    board.enter("zoe")
    board.pass_time(LEASE - PACE)
    assert told(ann) == [{"count": 5, "joined": users("zoe")}]
    board.rooms.sockets[ROOM, "eve"] = stood[ROOM, "eve"]
    board.pass_time(2 * PACE)
    assert told(ann) == [{"count": 4, "joined": users("eve"), "left": ["dan"]}]


def room_of_five(most: int) -> tuple[Board, Client]:
    """One of them watches, and the others are on another gateway, which writes nothing anew."""
    board = Board(most=most)
    ann = board.watch("ann")
    other = Board(beside=board)
    for name in ("bob", "dan", "eve", "zoe"):
        other.enter(name)
    board.pass_time(3)
    return board, ann


def lose_data(board: Board) -> None:
    """Nearly a lease ago."""
    board.rooms.forget()
    board.bus.begin_epoch("e2")
    board.pass_time(LEASE - PACE)


def test_of_a_large_room_nobody_has_left_after_a_loss_either() -> None:
    board, ann = room_of_five(most=3)
    assert told(ann)[-1]["count"] == 5
    lose_data(board)
    assert told(ann) == []
    board.pass_time(2 * PACE)
    (last,) = told(ann)
    assert (last["count"], len(last["left"])) == (1, 2)


def test_a_room_does_not_shrink_because_only_who_is_listed_was_written_anew() -> None:
    board, ann = room_of_five(most=1)
    assert told(ann) == [{"count": 5}]
    lose_data(board)
    assert told(ann) == []
    board.pass_time(3)
    assert told(ann) == [{"count": 1}]


def test_who_comes_with_older_data_goes_with_them() -> None:
    board = Board()
    ann = board.watch("ann")
    other = Board(beside=board)
    bob = other.enter("bob")
    board.pass_time(PACE)
    older = board.rooms.sockets[ROOM, "bob"].copy()
    bob.leave()
    board.pass_time(PACE)
    told(ann)
    board.rooms.sockets[ROOM, "bob"] = older
    board.bus.begin_epoch("e2")
    board.pass_time(2 * PACE)
    del board.rooms.sockets[ROOM, "bob"]
    board.rooms.changed(ROOM)
    board.pass_time(PACE)
    assert told(ann) == [{"count": 2, "joined": users("bob")}, {"count": 1, "left": ["bob"]}]


def test_a_link_that_is_lost_keeps_nobody() -> None:
    board = Board()
    ann = board.watch("ann")
    other = Board(beside=board)
    bob = other.enter("bob")
    board.pass_time(PACE)
    told(ann)
    board.bus.down()
    bob.leave()
    board.bus.up()
    board.pass_time(2 * PACE)
    assert told(ann) == [{"count": 1, "left": ["bob"]}]


def test_who_knows_of_more_than_was_written_anew_keeps_it_until_all_is() -> None:
    board = Board()
    board.watch("bob")
    other = board.enter("ann", "board-2")
    board.bus.begin_epoch("e2")
    ask(other, "board-2", version="of another gateway")
    assert told(other) == ["SERVICE_UNAVAILABLE"]
    ask(other, "board-2", changes=False)
    (answer,) = other.link.read()
    assert answer["payload"]["users"] == users("ann")
    ask(other, "board-2", version="of another gateway")
    assert told(other) == ["SERVICE_UNAVAILABLE"]
    board.pass_time(LEASE + PACE)
    ask(other, "board-2", version="of another gateway")
    (answer,) = other.link.read()
    assert answer["payload"]["users"] == users("ann")


def test_while_redis_takes_no_epoch_nobody_leaves() -> None:
    board = Board()
    ann = board.watch("ann")
    other = Board(beside=board)
    other.enter("bob")
    board.pass_time(PACE)
    told(ann)
    board.bus.down()
    board.bus.up(epoch=None)
    board.rooms.forget()
    board.rooms.failure = NotPublished("nobody may write")
    board.pass_time(20)
    board.rooms.failure = None
    board.pass_time(PACE)
    assert told(ann) == []
    ask(ann)
    assert told(ann) == [{"count": 2, "users": users("ann", "bob")}]
    board.bus.begin_epoch("e2")
    board.pass_time(LEASE - PACE)
    assert told(ann) == []
    board.pass_time(3)
    assert told(ann) == [{"count": 1, "left": ["bob"]}]


def test_what_is_known_is_told_when_it_cannot_be_read() -> None:
    board = Board()
    ann = board.watch("ann")
    board.rooms.failure = NotPublished("the data are of another epoch")
    board.pass_time(12)
    ask(ann)
    assert told(ann) == [{"count": 1, "users": users("ann")}]


def test_lost_data_are_written_anew_before_anybody_is_told() -> None:
    board = Board()
    ann = board.watch("ann")
    board.enter("bob", data=1)
    board.pass_time(2)
    told(ann)
    board.rooms.forget()
    board.bus.begin_epoch("e2")
    board.pass_time(12)
    assert told(ann) == []


def test_who_asks_while_redis_is_away_is_told_what_is_known() -> None:
    board = Board()
    ann = board.watch("ann")
    bob = board.enter("bob", "board-2")
    board.bus.down()
    ask(ann)
    assert told(ann) == [{"count": 1, "users": users("ann")}]
    bob.send({"type": "presence", "payload": {"roomId": "board-2"}, "id": 3})
    (error,) = bob.link.read()
    assert (error["id"], error["payload"]["code"], error["payload"]["retryAfter"]) == (3, "SERVICE_UNAVAILABLE", 1.0)
    board.bus.up()
    board.pass_time(2)
    bob.send({"type": "presence", "payload": {"roomId": "board-2"}, "id": 4})
    (answer,) = bob.link.read()
    assert answer["payload"]["users"] == users("bob")


def test_a_room_that_cannot_be_read_is_read_again() -> None:
    board = Board()
    ann = board.watch("ann")
    board.rooms.failure = NotPublished("too much")
    board.presence._woken(board.presence._rooms[ROOM], b"")
    board.pass_time(3)
    board.rooms.failure = None
    board.enter("bob")
    board.pass_time(2)
    assert told(ann) == [{"count": 2, "joined": users("bob")}]


def test_what_happens_while_a_room_is_read_is_not_lost() -> None:
    board = Board()
    ann = board.watch("ann")
    board.pass_time(PACE)
    board.rooms.held = []
    board.enter("bob")
    board.enter("eve")
    late = board.enter("dan")
    ask(late)
    late.send({"type": "notes:note:create", "id": 2})
    assert late.link.read() == []
    board.rooms.held.pop()()
    board.clock.advance(0)
    assert told(ann) == [{"count": 2, "joined": users("bob")}]
    assert late.link.read()[0]["payload"]["count"] == 2
    board.bus.answer(1)
    board.rooms.held = None
    board.pass_time(2)
    assert told(ann) == [{"count": 4, "joined": users("eve", "dan")}]


def test_who_is_gone_before_the_answer_is_not_answered() -> None:
    board = Board()
    board.rooms.held = []
    gone, out = board.enter("gone"), board.enter("out")
    ask(gone)
    ask(out)
    gone.leave()
    board.access.stale(user_id="out", revoked=False)
    board.access.next().no()
    while board.rooms.held:
        board.rooms.held.pop(0)()
    assert out.link.read()[-1]["type"] == "error"
    assert board.counters.errors_internal == 0
    assert board.presence._rooms[ROOM].watchers == {}


def test_who_waits_for_a_reading_that_fails_is_told_so_and_a_refusal_is_logged_once() -> None:
    board = Board()
    ann = board.enter("ann")
    board.rooms.held, board.rooms.failure = [], Refusal("WRONGTYPE")
    with capturedLogs() as logged:
        for _ in range(2):
            ask(ann)
            board.rooms.held.pop()()
            assert told(ann) == ["SERVICE_UNAVAILABLE"]
            board.clock.advance(PACE)
    assert [event["log_level"] for event in logged] == [LogLevel.error]
    board.rooms.held = board.rooms.failure = None
    ask(ann)
    assert told(ann) == [{"count": 1, "users": users("ann")}]


def test_who_may_not_any_more_when_the_room_was_read_is_told_nothing_of_it() -> None:
    board = Board()
    ann = board.enter("ann")
    board.rooms.held = []
    ask(ann)
    board.access.stale(user_id="ann", revoked=False)
    board.access.next().yes("ann", permissions=["chat:*:*"])
    board.rooms.held.pop()()
    assert told(ann) == ["ACCESS_DENIED"]

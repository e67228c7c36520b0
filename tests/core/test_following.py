"""Rooms with history: what clients get of them, and in which order, whatever is lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBusListener
from kraftek.contract.messages import Outgoing, Since
from kraftek.contract.names import room_topic, topic_channel
from kraftek.contract.settings import Limits
from kraftek.core.catch_up import CatchUp
from kraftek.core.followed import STEP
from tests.core.histories import ROOM, Histories, since, standing
from tests.support.fakes import FakeLink
from tests.support.world import Client, House

TOPIC = room_topic(ROOM)


class Board(Histories):
    """What happens in its rooms."""

    def tell(self, text: str, room_id: str = ROOM, *, heard: bool = True, **more: Any) -> None:
        """A service tells the room something; ``heard``: it gets here."""
        self.tell_topic(room_topic(room_id), text, heard=heard, **more)

    def hear(self, told: bytes, room_id: str = ROOM) -> None:
        self.hear_topic(room_topic(room_id), told)

    def enter(
        self, user_id: str = "ann", room_id: str = ROOM, since: Any = None, last: int | None = None, **grant: Any
    ) -> Client:
        """A client authenticates for the room, and is let in."""
        return self.let_in(user_id, grant, roomId=room_id, since=since, history=last)


def told(client: Client) -> list[Any]:
    """What it was told: where it stands, and what was said with which offset."""
    found: list[Any] = []
    for said in client.link.read():
        payload = said["payload"]
        if said["type"] == "notes:note:said":
            assert said["roomId"].startswith("board-")
            found.append((said.get("offset"), payload))
        elif said["type"] in ("authenticated", "joined", "position"):
            found.append(standing(payload))
        else:
            found.append(said)
    return found


def test_it_keeps_its_interface() -> None:
    verifyObject(IBusListener, Board().following)


def test_who_enters_learns_where_the_room_is_and_gets_what_comes_after() -> None:
    board = Board()
    board.logs.tell(TOPIC, type="notes:note:said", payload="before")
    client = board.enter()
    assert told(client) == [{"epoch": "e1", "offset": 1}]
    board.tell("a")
    assert told(client) == [(2, "a")]
    assert told(board.enter("bob")) == [{"epoch": "e1", "offset": 2}]
    assert board.logs.reads == 1


def test_the_frames_are_those_of_the_protocol() -> None:
    board = Board()
    client = board.connect()
    client.play("""
        > {"type": "authenticate", "payload": {"token": "t", "roomId": "board-1"}, "id": 1}
        ? t board-1
        ! yes ann
        < {"type": "authenticated", "id": 1, "payload": {"success": true, "userId": "ann", "roomId": "board-1", "epoch": "e1", "offset": 0}}
        > {"type": "join", "payload": {"roomId": "board-2", "since": {"epoch": "e1", "offset": 0, "socketIds": ["gw.1"]}}, "id": 2}
        ? t board-2
        ! yes ann
        < {"type": "joined", "id": 2, "payload": {"roomId": "board-2", "epoch": "e1", "offset": 0, "recovered": true}}
        > {"type": "join", "payload": {"roomId": "lobby", "since": {"epoch": "e1", "offset": 0}}}
        ? t lobby
        ! yes ann
        < {"type": "joined", "payload": {"roomId": "lobby", "recovered": false, "reason": "epoch"}}
        > {"type": "join", "payload": {"roomId": "hall"}}
        ? t hall
        ! yes ann
        < {"type": "joined", "payload": {"roomId": "hall"}}
    """)  # noqa: E501
    board.tell("a", "board-2")
    client.play('< {"type": "notes:note:said", "payload": "a", "roomId": "board-2", "offset": 1}')
    board.broadcast(type="x", payload=1, roomId="board-2")
    client.play('< {"type": "x", "payload": 1, "roomId": "board-2"}')


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 1},
        {"epoch": "e", "offset": -1},
        {"epoch": "e" * 65, "offset": 1},
        {"epoch": "e", "offset": 2**60},
        {"epoch": "e", "offset": 1, "socketIds": ["x"] * 9},
        [],
    ],
)
def test_a_malformed_since_is_refused(wrong: Any) -> None:
    client = Board().connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": ROOM, "since": wrong}})
    (error,) = client.link.read()
    assert error["payload"]["code"] == "INVALID_MESSAGE"


def test_who_was_away_gets_what_was_missed_before_what_comes() -> None:
    board = Board()
    board.enter("bob")
    for text in "abc":
        board.tell(text)
    client = board.enter(since=since(1))
    board.tell("d")
    assert told(client) == [{"epoch": "e1", "offset": 1, "recovered": True}, (2, "b"), (3, "c"), (4, "d")]
    assert (board.counters.resumed, board.counters.resumed_messages) == (1, 2)


def test_another_gateway_has_it_too() -> None:
    here, logs = Board(), None
    here.enter()
    logs = here.logs
    here.tell("a")
    there = Board(logs=logs, gateway_id="gw2")
    assert told(there.enter(since=since(0))) == [{"epoch": "e1", "offset": 0, "recovered": True}, (1, "a")]


def test_what_is_told_while_the_history_is_read_comes_behind_it_and_once() -> None:
    board = Board()
    bob = board.enter("bob")
    board.tell("a")
    board.logs.held = []
    client = board.enter(since=since(0))
    board.tell("b")  # after it was read
    assert told(client) == []
    board.broadcast(type="notes:note:said", payload="plain", roomId=ROOM)
    board.logs.answer()
    board.tell("c")
    assert told(client) == [
        {"epoch": "e1", "offset": 0, "recovered": True}, (1, "a"), (2, "b"), (None, "plain"), (3, "c"),
    ]  # fmt: skip
    assert [each for each in told(bob) if isinstance(each, tuple)][-1] == (3, "c")


def test_what_was_read_and_is_heard_later_comes_once() -> None:
    board = Board()
    board.enter("bob")
    board.tell("a")
    late = board.logs.tell(TOPIC, type="notes:note:said", payload="b")
    client = board.enter(since=since(0))
    assert told(client) == [{"epoch": "e1", "offset": 0, "recovered": True}, (1, "a"), (2, "b")]
    board.hear(late)
    board.tell("c")
    assert told(client) == [(3, "c")]


def test_an_answer_that_is_older_than_what_was_delivered_does_not_count() -> None:
    board = Board()
    board.enter("bob")
    board.tell("a")
    board.logs.held = []
    first = board.enter("ann", since=since(0))
    board.tell("b")
    second = board.enter("eve", since=since(0))  # shares the answer, which lacks what bob has got by now
    board.logs.answer()
    board.clock.advance(0)
    board.logs.answer()
    for client in (first, second):
        assert told(client) == [{"epoch": "e1", "offset": 0, "recovered": True}, (1, "a"), (2, "b")]
    assert board.logs.held == []


def test_as_many_ask_for_the_same_it_is_read_once() -> None:
    board = Board()
    board.enter("bob")
    board.tell("a")
    board.logs.held = []
    clients = [board.enter(f"u{number}", since=since(0)) for number in range(20)]
    board.logs.answer()
    board.clock.advance(0)
    assert all(told(client)[1:] == [(1, "a")] for client in clients)
    assert board.logs.reads == 2


def test_who_asked_for_what_another_one_did_gets_it_in_its_turn() -> None:
    """A gateway that has died had clients by the hundred which had all got the same."""
    board = Board()
    board.enter("bob")
    board.tell("a")
    board.logs.held = []
    clients = [board.enter(f"u{number}", since=since(0)) for number in range(3)]
    board.logs.answer()
    assert [len(told(client)) for client in clients] == [2, 0, 0]
    assert len(board.gateway.turns) == 2
    board.tell("b")
    board.clock.advance(0)
    assert [told(client)[-2:] for client in clients] == [[(2, "b")], *[[(1, "a"), (2, "b")]] * 2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kept": 0}, "expired"),
        ({"kept": 1}, "too_many"),
        ({"epoch": "e2"}, "epoch"),
    ],
)
def test_where_continuity_cannot_be_proven_it_is_denied(change: dict[str, Any], reason: str) -> None:
    board = Board()
    for text in "abc":
        board.tell(text)
    for name, value in change.items():
        setattr(board.logs, name, value)
    assert told(board.enter(since=since(1))) == [
        {"epoch": board.logs.epoch, "offset": 3, "recovered": False, "reason": reason}
    ]
    assert board.counters.not_resumed[reason] == 1


def test_who_is_ahead_of_the_room_has_not_missed_what_expired() -> None:
    board = Board()
    bob = board.enter("bob")
    board.tell("a")
    board.tell("b", heard=False)
    told(bob)
    ann = board.enter(since=since(2))
    assert told(ann) == [{"epoch": "e1", "offset": 2, "recovered": True}]
    board.logs.kept = 0
    board.following._compare_all()
    assert told(bob) == [{"epoch": "e1", "offset": 2, "recovered": False, "reason": "expired"}]
    board.tell("c")
    assert [told(each) for each in (ann, bob)] == [[(3, "c")]] * 2


def test_who_is_ahead_of_the_room_gets_what_comes_after_what_expired() -> None:
    board = Board()
    bob = board.enter("bob")
    board.tell("a")
    for text in ("b", "c"):
        board.tell(text, heard=False)
    ann = board.enter(since=since(3))
    told(bob), told(ann)
    board.tell("d", heard=False)
    board.logs.kept = 1
    board.following._compare_all()
    assert told(bob) == [{"epoch": "e1", "offset": 4, "recovered": False, "reason": "too_many"}]
    assert told(ann) == [{"epoch": "e1", "offset": 3, "recovered": True}, (4, "d")]
    board.tell("e")
    assert [told(each) for each in (ann, bob)] == [[(5, "e")]] * 2


def test_nobody_has_seen_the_future() -> None:
    board = Board()
    board.tell("a")
    standing = {"epoch": "e1", "offset": 1, "recovered": False, "reason": "epoch"}
    assert told(board.enter(since=since(2))) == [standing]


def test_more_bytes_than_may_wait_for_a_client_are_too_many() -> None:
    board = Board(limits=Limits(unsent_bytes=1000))
    for _ in range(3):
        board.tell("x" * 200)
    assert told(board.enter(since=since(0)))[0]["reason"] == "too_many"
    assert told(board.enter("bob", since=since(1)))[0]["recovered"] is True


def test_more_than_may_be_held_back_is_read_once_more() -> None:
    board = Board(limits=Limits(unsent_bytes=2000))
    board.enter("bob")
    board.logs.held = []
    board.tell("a")
    client = board.enter(since=since(0))
    for _ in range(3):
        board.tell("x" * 400)
    board.logs.answer()
    board.tell("y")
    board.logs.answer()
    assert told(client) == [{"epoch": "e1", "offset": 4, "recovered": False, "reason": "too_many"}, (5, "y")]
    board.tell("z")
    assert told(client) == [(6, "z")]


def test_who_was_left_out_then_is_left_out_now() -> None:
    board = Board()
    board.tell("a", excludeSocketIds=["gw.before"])
    board.tell("b")
    bob = board.enter("bob", since=since(0, socketIds=["gw.long-ago", "gw.before"]))
    assert told(bob) == [{"epoch": "e1", "offset": 0, "recovered": True}, (2, "b")]
    assert told(board.enter("eve", since=since(0)))[1:] == [(1, "a"), (2, "b")]
    board.tell("c", excludeSocketIds=[bob.id])
    board.tell("d")
    assert told(bob) == [(4, "d")]


# What does not arrive


def test_a_message_that_did_not_arrive_is_read_when_the_next_one_comes() -> None:
    board = Board()
    client = board.enter()
    board.tell("a", heard=False)
    board.tell("b")
    assert told(client)[1:] == [(1, "a"), (2, "b")]
    assert board.counters.told_fetched == 2


# Texts that are told in pieces


def append(board: Board, piece: str, *, heard: bool = True, **about: Any) -> None:
    first = {"from": len(board.logs.told.get(TOPIC, ())) + 1} if piece == "a" else {}
    board.tell(piece, heard=heard, append={"key": "k", **first, **about})


def pieces(client: Client) -> list[Any]:
    """What it was told of texts, with the offset from which on it is whole, if it is."""
    said = [each for each in client.link.read() if "append" in each]
    assert all(each["append"]["key"] == "k" for each in said)
    return [(each["offset"], each["payload"], each["append"].get("from")) for each in said]


def test_of_a_text_who_is_there_gets_the_pieces_and_who_was_away_the_whole() -> None:
    board = Board()
    there = board.enter("bob")
    append(board, "a")
    board.tell("between")
    append(board, "b")
    late = board.enter("eve", since=since(0))
    half = board.enter("dan", since=since(2))
    last = board.enter("sue", last=1)
    append(board, "c", last=True)
    assert pieces(there) == [(1, "a", 1), (3, "b", None), (4, "c", None)]
    for client in (late, half, last):
        assert pieces(client) == [(3, "ab", 1), (4, "c", None)]


def test_where_a_client_begins_is_before_the_pieces_of_a_text() -> None:
    board = Board()
    board.enter("bob")
    for piece in "abc":
        append(board, piece)
    position = {"epoch": "e1", "offset": 0, "recovered": True}
    assert told(board.enter(since=since(0)))[0] == position
    assert told(board.enter(since=since(1)))[0] == {**position, "offset": 1}
    assert told(board.enter(last=5))[0] == {"epoch": "e1", "offset": 2}
    assert told(board.enter(since=since(0, "e0"), last=5))[0]["offset"] == 2


def test_of_pieces_that_did_not_arrive_here_all_get_the_whole() -> None:
    board = Board()
    client = board.enter()
    append(board, "a")
    append(board, "b", heard=False)
    append(board, "c")
    append(board, "d")
    assert pieces(client) == [(1, "a", 1), (3, "abc", 1), (4, "d", None)]
    assert told(board.enter("bob", since=since(4)))[0]["recovered"] is True


def test_pieces_that_come_while_the_whole_is_read_come_behind_it_and_once() -> None:
    board = Board()
    board.enter("bob")
    append(board, "a")
    board.logs.held = []
    client = board.enter(since=since(0))
    append(board, "b")
    board.logs.answer()
    append(board, "c")
    assert pieces(client) == [(1, "a", 1), (2, "b", None), (3, "c", None)]


def test_the_last_message_that_did_not_arrive_is_read_within_ten_seconds() -> None:
    board = Board()
    clients = [board.enter(f"u{number}", f"board-{number}") for number in range(100)]
    for number in range(0, 100, 7):
        board.tell("a", f"board-{number}", heard=False)
    board.pass_time(10.5)
    for number, client in enumerate(clients):
        assert told(client)[1:] == ([] if number % 7 else [(1, "a")])


@pytest.mark.parametrize("rooms", [1, 40, 100])
def test_each_room_is_compared_once_in_ten_seconds(rooms: int) -> None:
    board = Board()
    for number in range(rooms):
        board.enter(f"u{number}", f"board-{number}")
        board.pass_time(0.25)
    compared, offered = board.logs.compared, board.logs.offered
    board.pass_time(20.0)
    assert (board.logs.compared - compared, board.logs.offered - offered) == (2 * rooms, 2)


def test_a_subscription_that_redis_has_forgotten_is_made_again() -> None:
    board = Board()
    client = board.enter()
    board.bus._channels[topic_channel(TOPIC)] = []
    board.tell("a")
    board.pass_time(10.5)
    board.tell("b")
    assert told(client)[1:] == [(1, "a"), (2, "b")]


def test_what_was_missed_in_an_outage_is_read_when_redis_is_back() -> None:
    board = Board()
    client = board.enter()
    board.tell("a")
    board.bus.down()
    board.tell("b", heard=False)
    board.bus.up()
    board.tell("c")
    assert told(client)[1:] == [(1, "a"), (2, "b"), (3, "c")]


def test_what_is_heard_while_it_is_read_comes_in_order() -> None:
    board = Board()
    client = board.enter()
    board.tell("a", heard=False)
    board.logs.held = []
    board.tell("b")
    board.tell("c")
    board.tell("d")
    board.logs.answer()
    assert told(client)[1:] == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    assert board.logs.held == []


def many(board: Board, messages: int, *, heard: bool) -> None:
    board.logs.kept = 100_000
    for _ in range(messages):
        board.tell("x", heard=heard)


def test_what_was_missed_is_delivered_in_turns_and_what_is_heard_meanwhile_behind_it() -> None:
    """5,000 messages to 50 clients took 25 ms at once."""
    board = Board()
    client = board.enter()
    many(board, 2 * STEP, heard=False)
    board.tell("next")
    assert len(told(client)[1:]) == STEP
    assert len(board.gateway.turns) == 1
    many(board, STEP + 1, heard=True)
    bob = board.enter("bob")
    assert told(client) == []
    board.clock.advance(0)
    assert [offset for offset, _ in told(client)] == [*range(STEP + 1, 3 * STEP + 3)]
    assert [offset for offset, _ in told(bob)[1:]] == [*range(STEP + 1, 3 * STEP + 3)], "from where the room was"
    board.tell("last")
    assert told(client) == [(3 * STEP + 3, "last")]
    assert board.accounts.heard == 0


def test_the_more_are_there_the_fewer_messages_a_turn_has() -> None:
    board = Board()
    clients = [board.enter(f"user{number}") for number in range(STEP)]
    board.clock.advance(0)
    for client in clients:
        client.link.read()
    many(board, STEP, heard=False)
    board.bus.down()
    board.bus.up()
    assert {len(told(client)) for client in clients} == {10}


def test_what_does_not_follow_then_is_read_once_more() -> None:
    board = Board()
    client = board.enter()
    many(board, STEP + 1, heard=False)
    board.tell("a")
    board.tell("lost", heard=False)
    board.tell("b")
    reads = board.logs.reads
    board.clock.advance(0)
    assert [offset for offset, _ in told(client)[1:]] == [*range(1, STEP + 5)]
    assert board.logs.reads == reads + 1


def test_a_fault_in_a_turn_leaves_nothing_busy() -> None:
    board = Board()
    client = board.enter()
    many(board, STEP + 1, heard=False)
    board.tell("a")
    client.link.read()
    deliver, board.deliveries.told = board.deliveries.told, None  # type: ignore[method-assign, assignment]
    with capturedLogs() as logged:
        board.clock.advance(0)
    board.deliveries.told = deliver  # type: ignore[method-assign]
    assert "cannot be read" in logged[0]["log_format"]
    room = board.following.find(ROOM)
    assert room is not None
    assert not room.busy


def test_more_than_is_kept_while_it_is_read_is_read_once_more() -> None:
    board = Board(limits=Limits(unsent_bytes=10_000_000))
    client = board.enter()
    board.tell("a", heard=False)
    board.logs.held = []
    for _ in range(5):
        board.tell("x" * 100_000)
    board.logs.answer()
    board.logs.answer()
    assert [offset for offset, _ in told(client)[1:]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("rooms", "calls"), [(200, [200]), (201, [200, 1])])
def test_two_hundred_rooms_are_compared_at_once(rooms: int, calls: list[int]) -> None:
    board = Board(limits=Limits(rooms=300, joins_per_user=0))
    client = board.enter()
    for number in range(1, rooms):
        client.send({"type": "join", "payload": {"roomId": f"board-more-{number}"}})
        board.access.next().yes("ann")
    asked: list[int] = []
    compare = board.logs.compare

    def counted(positions: Any) -> Any:
        asked.append(len(positions))
        return compare(positions)

    board.logs.compare = counted  # type: ignore[method-assign]
    board.bus.down()
    board.logs.held = []
    board.bus.up()
    assert asked == calls[:1], "the next ones when Redis has answered"
    while board.logs.held:
        board.logs.answer()
    assert asked == calls


def test_rooms_of_which_redis_says_nothing_are_compared_later() -> None:
    board = Board(limits=Limits(rooms=300, joins_per_user=0))
    client = board.enter()
    for number in range(1, 201):
        client.send({"type": "join", "payload": {"roomId": f"board-more-{number}"}})
        board.access.next().yes("ann")
    client.link.read()
    board.bus.down()
    board.tell("a", "board-more-200", heard=False)
    board.logs.failure = NotPublished("Redis is away")
    board.bus.up()
    assert board.logs.compared == 200
    board.logs.failure = None
    board.bus.down()
    board.bus.up()
    assert told(client) == [(1, "a")]


def test_what_is_heard_meanwhile_is_accounted_and_can_be_given_up() -> None:
    board = Board()
    client = board.enter()
    board.tell("a", heard=False)
    board.logs.held = []
    board.tell("b")
    board.tell("c" * 1000)
    board.tell("d")
    assert 1000 < board.accounts.heard < 1500
    assert board.accounts.shed(1) > 1000
    assert board.accounts.heard == 0
    board.tell("e")
    assert board.accounts.heard > 0
    while board.logs.held:
        board.logs.answer()
    assert board.accounts.heard == 0
    assert [offset for offset, _ in told(client)[1:]] == [1, 2, 3, 4, 5]


def test_an_outage_while_it_is_read_is_compared_after_it() -> None:
    board = Board()
    client = board.enter()
    board.tell("a", heard=False)
    board.logs.held = []
    board.tell("b")
    board.bus.deafen()
    board.tell("c", heard=False)
    board.bus.up()
    while board.logs.held:
        board.logs.answer()
    assert told(client)[1:] == [(1, "a"), (2, "b"), (3, "c")]


def test_who_missed_more_than_can_be_read_is_told_so() -> None:
    board = Board()
    client = board.enter()
    board.logs.kept = 1
    for text in "abc":
        board.tell(text, heard=False)
    board.tell("d")
    assert told(client)[1:] == [{"epoch": "e1", "offset": 4, "recovered": False, "reason": "too_many"}]
    board.tell("e")
    assert told(client) == [(5, "e")]


def test_a_new_epoch_in_which_nothing_is_lost_only_gets_its_name() -> None:
    board = Board()
    client = board.enter()
    board.tell("a")
    board.logs.epoch, board.logs.ended = "e2", {"e1": 1}
    board.tell("b")
    assert told(client)[1:] == [(1, "a"), {"epoch": "e2", "offset": 1, "recovered": True}, (2, "b")]


def test_who_has_more_than_an_older_replica_is_told_so() -> None:
    board = Board()
    client = board.enter()
    for text in "abc":
        board.tell(text)
    del board.logs.told[TOPIC][1:]
    board.logs.epoch, board.logs.ended = "e2", {"e1": 1}
    board.bus.begin_epoch("e2")
    assert told(client)[1:] == [
        (1, "a"), (2, "b"), (3, "c"), {"epoch": "e2", "offset": 1, "recovered": False, "reason": "epoch"},
    ]  # fmt: skip
    board.tell("d")
    assert told(client) == [(2, "d")]
    assert told(board.enter("bob", since=since(3))) == [
        {"epoch": "e2", "offset": 2, "recovered": False, "reason": "epoch"}
    ]


def test_who_has_read_more_than_was_delivered_here_begins_anew_when_the_epoch_changes() -> None:
    board = Board()
    bob = board.enter("bob")
    board.tell("a")
    board.tell("lost", heard=False)
    client = board.enter(since=since(0))
    assert told(client)[1:] == [(1, "a"), (2, "lost")]
    del board.logs.told[TOPIC][1:]
    board.logs.epoch, board.logs.ended = "e2", {"e1": 1}
    board.bus.begin_epoch("e2")
    board.tell("b")
    assert told(client) == [{"epoch": "e2", "offset": 1, "recovered": False, "reason": "epoch"}, (2, "b")]
    assert told(bob)[2:] == [{"epoch": "e2", "offset": 1, "recovered": True}, (2, "b")]


def test_a_client_that_catches_up_while_the_epoch_changes_reads_once_more() -> None:
    board = Board()
    bob = board.enter("bob")
    board.tell("a")
    board.logs.epoch, board.logs.ended = "e2", {"e1": 1}
    client = board.enter(since=since(0))  # the room is in e1 yet
    assert told(client) == [{"epoch": "e2", "offset": 0, "recovered": True}, (1, "a")]
    assert told(bob)[1:] == [(1, "a"), {"epoch": "e2", "offset": 1, "recovered": True}]
    board.tell("b")
    assert told(client) == told(bob) == [(2, "b")]


def test_what_was_delivered_of_another_epoch_is_none_of_who_catches_up() -> None:
    board = Board()
    board.enter("bob")
    board.tell("a")
    board.logs.held = []
    client = board.enter(since=since(0))
    board.tell("b")
    board.logs.epoch = "e2"
    board.logs.told[TOPIC] = []
    told_anew = board.logs.tell(TOPIC, type="notes:note:said", payload="A")
    board.hear(told_anew)
    board.logs.held.reverse()  # the room hears of the other epoch first
    while board.logs.held:
        board.logs.answer()
    assert told(client) == [{"epoch": "e2", "offset": 1, "recovered": False, "reason": "epoch"}]


# Without Redis


def test_without_redis_it_is_told_at_once_and_where_it_is_later() -> None:
    board = Board()
    board.tell("a", heard=False)
    board.bus.down()
    board.logs.failure = NotPublished("away")
    client = board.enter(since=since(0))
    assert told(client) == [{"recovered": False, "reason": "unavailable"}]
    bob = board.enter("bob")
    assert told(bob) == [{}]
    board.logs.failure = None
    board.bus.up()
    expected = {"epoch": "e1", "offset": 1, "recovered": False, "reason": "unavailable"}
    assert told(client) == told(bob) == [expected]
    board.tell("b")
    assert told(client) == told(bob) == [(2, "b")]


def test_where_the_position_is_known_it_is_told_without_redis() -> None:
    board = Board()
    board.enter("bob")
    board.tell("a")
    board.bus.down()
    board.logs.failure = NotPublished("away")
    assert told(board.enter("ann")) == [{"epoch": "e1", "offset": 1}]
    assert told(board.enter("eve", since=since(1))) == [{"epoch": "e1", "offset": 1, "recovered": True}]
    late = board.enter("zoe", since=since(0))
    assert told(late) == [{"epoch": "e1", "offset": 1, "recovered": False, "reason": "unavailable"}]
    board.tell("b", heard=False)
    board.logs.failure = None
    board.bus.up()
    assert told(late) == [(2, "b")]


def test_what_could_not_be_read_is_tried_again() -> None:
    board = Board()
    board.logs.failure = NotPublished("for a moment")
    client = board.enter()
    board.logs.failure = None
    board.pass_time(11)
    assert told(client) == [{}, {"epoch": "e1", "offset": 0, "recovered": False, "reason": "unavailable"}]


def test_a_room_that_has_no_history_by_the_rules_that_stand() -> None:
    board = Board()
    client = board.enter()
    board.logs.stands = False
    board.bus.begin_epoch("e2")
    board.logs.epoch = "e2"
    board.broadcast(type="notes:note:said", payload="plain", roomId=ROOM)
    assert told(client)[1:] == [(None, "plain")]
    bob, eve = board.enter("bob", since=since(0)), board.enter("eve", last=5)
    assert told(bob) == [{"recovered": False, "reason": "epoch"}]
    assert told(eve) == [{}]
    board.logs.stands = True
    board.bus.begin_epoch("e3")
    position = {"epoch": "e2", "offset": 0, "recovered": False, "reason": "unavailable"}
    assert [told(each) for each in (client, bob, eve)] == [[position]] * 3


# Who comes and goes


def test_who_is_out_of_the_room_before_it_was_answered() -> None:
    board = Board()
    board.enter("bob")
    client = board.admit("ann", "hall", "ann")
    board.tell("a")
    board.logs.held = []
    client.send({"type": "join", "payload": {"roomId": ROOM, "since": since(0)}, "id": 7})
    board.access.next().yes("ann")
    board.access_watch.revoke(client.session, ROOM)
    board.logs.answer()
    codes = [(said["payload"]["code"], said.get("id")) for said in client.link.read()]
    assert codes == [("ACCESS_REVOKED", None), ("ACCESS_DENIED", 7)]
    board.tell("b")
    assert client.link.read() == []


def test_who_is_gone_before_it_was_answered() -> None:
    board = Board()
    board.enter("bob")
    board.tell("a")
    board.logs.held = []
    client = board.enter(since=since(0))
    client.leave()
    board.logs.answer()
    board.tell("b")
    assert client.link.read() == []


def test_a_room_that_is_entered_with_another_token() -> None:
    board = Board()
    board.tell("a")
    client = board.admit("ann", "hall", "ann")
    client.send({"type": "authenticate", "payload": {"token": "new", "roomId": ROOM, "since": since(0)}})
    while board.access.questions:
        board.access.next().yes("ann")
    assert told(client) == [{"epoch": "e1", "offset": 0, "recovered": True}, (1, "a")]
    board.tell("b")
    assert told(client) == [(2, "b")]
    client.send({"type": "authenticate", "payload": {"token": "newer"}})
    while board.access.questions:
        board.access.next().yes("ann")
    assert told(client) == [{}]


def let_in_while_in_question() -> tuple[Board, Client]:
    """What it has missed was read, and its access has come into question meanwhile."""
    board = Board()
    board.enter("bob")
    board.tell("a")
    board.logs.held = []
    client = board.enter(since=since(0))
    board.access.stale(user_id="ann")
    board.logs.answer()
    return board, client


def test_who_is_not_let_in_before_access_was_revoked_is_not_let_in() -> None:
    board, client = let_in_while_in_question()
    board.access.next().no()
    assert [said["payload"]["code"] for said in client.link.read()] == ["ACCESS_REVOKED"]
    assert client.link.closed is not None


def test_who_goes_while_its_access_is_in_question_waits_for_nothing() -> None:
    board, client = let_in_while_in_question()
    client.leave()
    board.access.next().yes("ann")
    assert client.link.read() == []


def test_access_in_question_withholds_what_was_missed_too() -> None:
    board, client = let_in_while_in_question()
    board.tell("b")
    assert told(client) == []
    board.access.next().yes("ann")
    assert told(client) == [{"epoch": "e1", "offset": 0, "recovered": True}, (1, "a"), (2, "b")]


def test_who_missed_something_while_access_was_in_question_is_told_so() -> None:
    board = Board(limits=Limits(unsent_bytes=300))
    client = board.enter()
    board.access.stale(user_id="ann")
    for _ in range(3):
        board.tell("x" * 200)
    assert [said["payload"]["code"] for said in client.link.read()[1:]] == ["AUTH_UNAVAILABLE"]
    board.access.next().yes("ann")
    assert told(client) == [{"epoch": "e1", "offset": 3, "recovered": False, "reason": "too_many"}]


def test_what_was_dropped_while_access_was_in_question_is_read_if_it_can_be() -> None:
    board = Board(limits=Limits(unsent_bytes=2000))
    client = board.enter()
    board.tell("a")
    board.access.stale(user_id="ann")
    board.tell("b")
    board.broadcast(type="cursor", payload="x" * 2000, roomId=ROOM)
    board.tell("c", excludeSocketIds=[client.id])
    board.tell("d")
    error = client.link.read()[-1]
    assert error["payload"]["message"].endswith("messages that are not part of its history are lost until it is")
    board.access.next().yes("ann")
    assert told(client) == [{"epoch": "e1", "offset": 1, "recovered": True}, (2, "b"), (4, "d")]
    board.tell("e")
    assert told(client) == [(5, "e")]


def test_what_was_dropped_meanwhile_and_cannot_be_read_without_redis() -> None:
    board = Board(limits=Limits(unsent_bytes=2000))
    client = board.enter()
    board.access.stale(user_id="ann")
    board.broadcast(type="cursor", payload="x" * 2000, roomId=ROOM)
    board.tell("a")
    client.link.read()
    board.logs.failure = NotPublished("away")
    board.access.next().yes("ann")
    assert told(client) == [{"epoch": "e1", "offset": 1, "recovered": False, "reason": "unavailable"}]


def test_where_a_session_was_crosses_an_upgrade_with_what_waits() -> None:
    board = Board(limits=Limits(unsent_bytes=2000))
    client = board.enter()
    board.tell("a")
    board.access.stale(user_id="ann")
    state = board.access_watch.withheld(client.session)
    assert state is not None
    assert state.since == {ROOM: Since("e1", 1)}
    other = Board(logs=board.logs, limits=board.limits)
    moved = other.enter()
    told(moved)
    other.access_watch._withholding.restore(moved.session, state)
    other.tell("b")
    other.broadcast(type="cursor", payload="x" * 2000, roomId=ROOM)
    moved.link.read()
    other.access.stale(user_id="ann")
    other.access.next().yes("ann")
    assert told(moved) == [{"epoch": "e1", "offset": 1, "recovered": True}, (2, "b")]


def test_a_catch_up_that_is_under_way_gets_all_of_it() -> None:
    board = Board(limits=Limits(unsent_bytes=2000))
    board.enter("bob")
    board.tell("a")
    board.logs.held = []
    client = board.enter(since=since(0))
    board.access.stale(user_id="ann")
    board.broadcast(type="cursor", payload="x" * 900, roomId=ROOM)
    withheld = board.access_watch._withholding._withheld[client.session][ROOM]
    assert withheld.since is None
    withheld.write(Outgoing(b"x" * 2001))
    client.link.read()
    board.access.next().yes("ann")
    assert told(client) == []
    board.logs.answer()
    assert next(each for each in told(client) if isinstance(each, tuple)) == (1, "a")


# The last messages of those that were told before


def test_who_asks_for_it_begins_with_the_last_messages() -> None:
    board = Board()
    for text in "abc":
        board.tell(text)
    client = board.enter(last=2)
    assert told(client) == [{"epoch": "e1", "offset": 1}, (2, "b"), (3, "c")]
    board.tell("d")
    assert told(client) == [(4, "d")]
    assert told(board.enter("bob", last=100)) == [
        {"epoch": "e1", "offset": 0}, (1, "a"), (2, "b"), (3, "c"), (4, "d"),
    ]  # fmt: skip
    assert told(board.enter("eve", "board-2", last=5)) == [{"epoch": "e1", "offset": 0}]
    assert told(board.enter("zoe", "lobby", last=5)) == [{}]
    assert board.counters.history_messages == 6


def test_nothing_falls_between_the_last_messages_and_what_comes() -> None:
    board = Board()
    board.enter("bob")
    board.tell("a")
    board.logs.held = []
    clients = [board.enter(f"u{number}", last=5) for number in range(3)]
    board.tell("b")  # after it was read
    assert [told(client) for client in clients] == [[], [], []]
    board.logs.answer()
    board.tell("c")
    board.clock.advance(0)
    for client in clients:
        assert told(client) == [{"epoch": "e1", "offset": 0}, (1, "a"), (2, "b"), (3, "c")]
    assert board.logs.reads == 2


def test_an_answer_older_than_what_was_delivered_is_read_again() -> None:
    board = Board()
    board.enter("bob")
    board.tell("a")
    board.logs.held = []
    board.enter("ann", last=1)
    board.tell("b")
    second = board.enter("eve", last=1)
    while board.logs.held:
        board.logs.answer()
        board.clock.advance(0)
    assert told(second) == [{"epoch": "e1", "offset": 1}, (2, "b")]


def test_who_resumes_gets_what_was_missed_and_the_last_messages_only_if_that_cannot_be() -> None:
    board = Board()
    for text in "abc":
        board.tell(text)
    assert told(board.enter("ann", since=since(2), last=3)) == [
        {"epoch": "e1", "offset": 2, "recovered": True}, (3, "c"),
    ]  # fmt: skip
    assert told(board.enter("bob", since=since(3), last=3)) == [{"epoch": "e1", "offset": 3, "recovered": True}]
    assert told(board.enter("eve", since=since(1, epoch="e0"), last=2)) == [
        {"epoch": "e1", "offset": 1, "recovered": False, "reason": "epoch"}, (2, "b"), (3, "c"),
    ]  # fmt: skip


def test_the_last_messages_without_redis() -> None:
    board = Board()
    board.enter("bob")
    board.tell("a")
    board.logs.failure = NotPublished("away")
    unavailable = {"recovered": False, "reason": "unavailable"}
    assert told(board.enter(last=1)) == [{"epoch": "e1", "offset": 1, **unavailable}]
    assert told(board.enter("eve", "board-2", last=1)) == [unavailable]


def test_where_a_grant_does_not_permit_it_the_last_messages_are_kept_from_who_enters() -> None:
    board = Board()
    board.tell("a")
    client = board.enter(last=1, permissions=["notes:*:*"])
    standing, error = client.link.read()
    assert standing["payload"]["offset"] == 1
    assert error == {
        "type": "error",
        "payload": {
            "code": "ACCESS_DENIED",
            "message": "gateway:room:history is not permitted in room board-1",
            "eventType": "gateway:room:history",
        },
        "roomId": ROOM,
    }
    board.tell("b")
    assert told(client) == [(2, "b")]
    assert told(board.enter("bob", last=1, permissions=["*:*:*"]))[1:] == [(2, "b")]


def test_the_last_messages_count_as_bytes_of_who_asked() -> None:
    board = Board(limits=Limits(bytes_per_user=1000, burst=2))
    for text in "abc":
        board.tell(text * 1000)
    budgets = board.admission.budgets
    board.enter()
    assert budgets.overdrawn("ann", "") == 0
    board.enter("bob", last=3)
    assert 0.9 < budgets.overdrawn("bob", "") < 1.5


def test_an_empty_room_is_followed_no_more() -> None:
    board = Board()
    client = board.enter()
    assert len(board.following) == 1
    client.leave()
    board.pass_time(11)
    assert len(board.following) == 0
    assert not board.bus._channels[topic_channel(TOPIC)]
    board.tell("a", heard=False)
    assert told(board.enter(since=since(0)))[1:] == [(1, "a")]


def test_a_broadcast_for_gateways_that_do_not_follow_is_not_for_this_one() -> None:
    board = Board()
    client = board.enter()
    board.broadcast(type="notes:note:said", payload="a", roomId=ROOM, offset=1)
    assert told(client)[1:] == []
    house = House()
    other = house.admit("bob", ROOM)
    house.broadcast(type="notes:note:said", payload="a", roomId=ROOM, offset=1)
    assert told(other) == [(None, "a")]


def test_what_is_malformed_is_counted_and_its_offset_passes() -> None:
    board = Board()
    client = board.enter()
    board.hear(b"nonsense")
    board.hear(b"e1 x {}")
    command = b'{"type": "gateway:room:put", "userIds": ["ann"]}'
    board.logs.told[TOPIC] = [b"{", b'{"type": "disconnect"}', b'{"type": "\xff"}', command]
    board.tell("a")
    assert told(client)[1:] == [(5, "a")]
    assert board.counters.broadcasts_malformed == 6
    assert told(board.enter("bob", since=since(0)))[1:] == [(5, "a")]


def test_a_gateway_says_that_it_follows_if_there_is_something_to_follow() -> None:
    board = Board()
    board.following.follow()
    assert (board.logs.offered, board.logs.followed) == (1, 3)
    board.bus.down()
    board.following.follow()
    assert board.logs.followed == 3
    house = House()
    house.following.follow()
    assert (house.logs.offered, house.logs.followed) == (0, 0)


def test_a_gateway_that_stops_says_that_it_follows_no_more() -> None:
    board = Board()
    board.following.stop()
    assert board.logs.unfollowed == 1
    board.bus.down()
    board.following.stop()
    assert board.logs.unfollowed == 1
    house = House()
    house.following.stop()
    assert house.logs.unfollowed == 0


def test_another_version_goes_on_where_this_one_was() -> None:
    board = Board()
    client = board.enter()
    board.enter("bob", "board-2")
    board.tell("a")
    session, rest = board.move.give_session(client.session), board.move.give()
    board.tell("b", heard=False)
    other = Board(logs=board.logs)
    taken = other.connect()
    taken.session = other.move.take_session(session, taken.link, taken.session.dialect)
    other.move.take(rest)
    assert told(taken) == [(2, "b")]


# The outlet


def test_a_catch_up_passes_on_what_is_later() -> None:
    link = FakeLink()
    catch_up = CatchUp(100, lambda: link)
    catch_up.write(Outgoing(b'{"a":1}'))
    catch_up.open(0)
    catch_up.write(Outgoing(b'{"b":1}'))
    assert link.read() == [{"a": 1}, {"b": 1}]


def test_who_is_put_into_a_room_by_a_service_learns_where_it_is() -> None:
    board = Board()
    board.logs.tell(TOPIC, type="notes:note:said", payload="before")
    here, there = board.enter("ann", "lobby"), board.enter("bob", "lobby")
    told(here), told(there)
    board.broadcast(type="gateway:room:put", roomId=ROOM, userIds=["ann", "bob"])
    board.tell("a")
    assert [told(here), told(there)] == [[{"epoch": "e1", "offset": 1}, (2, "a")]] * 2

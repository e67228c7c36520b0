"""What clients are answered that ask for what was told to a room before."""

from __future__ import annotations

from typing import Any

import pytest

from kraftek.contract.errors import NotPublished, Refusal
from kraftek.contract.settings import Limits
from tests.core.histories import ROOM
from tests.core.test_following import Board
from tests.support.world import Client


def ask(client: Client, room_id: str = ROOM, **more: Any) -> None:
    client.send({"type": "history", "payload": {"roomId": room_id, **more}, "id": 7})


def answer(client: Client) -> Any:
    """The messages that it got, and where it is to go on from; or the code of the error."""
    (said,) = client.link.read()
    assert said["id"] == 7
    if said["type"] == "error":
        return said["payload"]["code"]
    assert (said["type"], said["payload"]["roomId"]) == ("history", ROOM)
    return [(each["offset"], each["payload"]) for each in said["payload"]["messages"]], said["payload"].get("before")


def inside(board: Board, user_id: str = "ann", **grant: Any) -> Client:
    client = board.enter(user_id, **grant)
    client.link.read()
    return client


def board_of(texts: str, **more: Any) -> Board:
    board = Board(**more)
    for text in texts:
        board.tell(text)
    return board


def at(offset: int, epoch: str = "e1") -> dict[str, Any]:
    return {"epoch": epoch, "offset": offset}


def test_the_frames_are_those_of_the_protocol() -> None:
    board = board_of("ab")
    client = inside(board)
    client.play("""
        > {"type": "history", "payload": {"roomId": "board-1", "limit": 1}, "id": 1}
        < {"type": "history", "payload": {"roomId": "board-1", "epoch": "e1", "messages": [{"type": "notes:note:said", "payload": "b", "offset": 2}], "before": {"epoch": "e1", "offset": 2}}, "id": 1}
        > {"type": "history", "payload": {"roomId": "board-1", "before": {"epoch": "e1", "offset": 2}}, "id": "x"}
        < {"type": "history", "payload": {"roomId": "board-1", "epoch": "e1", "messages": [{"type": "notes:note:said", "payload": "a", "offset": 1}]}, "id": "x"}
    """)  # noqa: E501
    assert board.counters.history_messages == 2


def test_page_by_page_to_the_beginning() -> None:
    board = board_of("abcde")
    client, before, pages = inside(board), None, []
    while True:
        ask(client, limit=2, **({} if before is None else {"before": before}))
        page, before = answer(client)
        pages.append("".join(text for _, text in page))
        if before is None:
            break
        board.tell("x")
        client.link.read()
    assert pages == ["de", "bc", "a"]


def test_a_text_that_was_told_in_pieces_is_one_message() -> None:
    board = board_of("a")
    for piece in ("x", "y"):
        board.tell(piece, append={"key": "k"})
        board.tell("between")
    client = inside(board)
    client.send({"type": "history", "id": 1, "payload": {"roomId": ROOM}})
    (page,) = client.link.read()
    assert [(each["offset"], each.get("append")) for each in page["payload"]["messages"]] == [
        (1, None),
        (3, None),
        (4, {"key": "k", "from": 2}),
        (5, None),
    ]


def test_as_many_as_a_socket_may_hold_and_one_at_least() -> None:
    board = board_of("", limits=Limits(unsent_bytes=1000))
    for text in ("a", "b" * 2000, "c" * 200, "d" * 200):
        board.tell(text)
    client = inside(board)
    ask(client)
    page, before = answer(client)
    assert ([offset for offset, _ in page], before) == ([3, 4], at(3))
    ask(client, before=before)
    page, before = answer(client)
    assert ([offset for offset, _ in page], before) == ([2], at(2))


def test_what_is_not_kept_any_more_is_the_end() -> None:
    board = board_of("abcde")
    board.logs.kept = 2
    client = inside(board)
    ask(client)
    assert answer(client) == ([(4, "d"), (5, "e")], None)
    ask(client, before=at(3))
    assert answer(client) == ([], None)
    ask(client, before=at(6), limit=1)
    assert answer(client) == ([(5, "e")], at(5))


def test_who_was_left_out_then_is_left_out_now() -> None:
    board = board_of("a")
    client = inside(board)
    board.tell("b", excludeSocketIds=[client.id])
    board.tell("c", excludeSocketIds=["gw.before"])
    client.link.read()
    ask(client, socketIds=["gw.before"])
    assert answer(client) == ([(1, "a")], None)
    ask(client, limit=2)
    assert answer(client) == ([(3, "c")], at(2))


def test_a_position_of_another_epoch() -> None:
    board = board_of("abc")
    client = inside(board)
    board.logs.epoch, board.logs.ended = "e2", {"e1": 2}
    ask(client, before=at(3))
    assert answer(client) == ([(1, "a"), (2, "b")], None)
    for before in (at(4), at(1, "e0"), at(5, "e2")):
        ask(client, before=before)
        assert answer(client) == "NO_HISTORY"


def test_a_room_without_history() -> None:
    board = board_of("a")
    client = inside(board)
    board.logs.stands = False
    ask(client)
    assert answer(client) == "NO_HISTORY"
    client = board.admit("bob", "lobby", "bob")
    ask(client, "lobby")
    assert answer(client) == "NO_HISTORY"
    assert board.logs.reads == 2


def test_a_room_that_it_is_not_in() -> None:
    board = board_of("a")
    client = inside(board)
    ask(client, "board-2")
    assert answer(client) == "ACCESS_DENIED"
    stranger = board.connect()
    ask(stranger)
    assert answer(stranger) == "NOT_AUTHENTICATED"
    assert board.logs.reads == 1


@pytest.mark.parametrize(
    ("permissions", "may"), [(["notes:*:*"], False), (["gateway:room:history"], True), (["*:*:*"], True), (None, True)]
)
def test_what_a_grant_permits(permissions: Any, may: bool) -> None:
    board = board_of("a")
    client = inside(board, permissions=permissions)
    ask(client)
    assert (answer(client) == "ACCESS_DENIED") is not may


@pytest.mark.parametrize("failure", [NotPublished("away"), Refusal("OOM command not allowed")])
def test_without_redis(failure: Exception) -> None:
    board = board_of("a")
    client = inside(board)
    board.logs.failure = failure
    ask(client)
    (error,) = client.link.read()
    assert (error["payload"]["code"], error["payload"]["retryAfter"]) == ("SERVICE_UNAVAILABLE", 1.0)
    board.logs.failure = None
    ask(client)
    assert answer(client) == ([(1, "a")], None)


def test_what_comes_meanwhile_is_held_and_it_is_no_moment_for_an_upgrade() -> None:
    board = board_of("a")
    client = inside(board)
    board.logs.held = []
    ask(client)
    ask(client, limit=1)
    assert len(board.logs.held) == 1
    assert not board.move.is_movable(client.session)
    board.logs.answer()
    assert answer(client) == ([(1, "a")], None)
    board.clock.advance(0)
    board.logs.answer()
    assert answer(client) == ([(1, "a")], None)
    assert board.move.is_movable(client.session)


def test_who_is_out_of_the_room_before_it_was_read() -> None:
    board = board_of("a")
    client = inside(board)
    client.send({"type": "join", "payload": {"roomId": "hall"}})
    board.access.next().yes("ann")
    client.link.read()
    board.logs.held = []
    ask(client)
    board.access_watch.revoke(client.session, ROOM)
    board.logs.answer()
    assert [said["payload"]["code"] for said in client.link.read()] == ["ACCESS_REVOKED", "ACCESS_DENIED"]


def test_who_is_gone_before_it_was_read() -> None:
    board = board_of("a")
    client = inside(board)
    board.logs.held = []
    ask(client)
    client.leave()
    board.logs.answer()
    assert client.link.read() == []


def test_access_that_comes_into_question_meanwhile_keeps_it_back() -> None:
    board = board_of("a")
    client = inside(board)
    board.logs.held = []
    ask(client)
    board.access.stale(user_id="ann")
    board.logs.answer()
    assert client.link.read() == []
    board.access.next().yes("ann")
    board.clock.advance(0)
    board.logs.answer()
    assert answer(client) == ([(1, "a")], None)


def test_access_that_nobody_can_be_asked_about() -> None:
    board = board_of("a")
    client = inside(board)
    board.access.stale(user_id="ann")
    board.access.next().away()
    ask(client)
    assert answer(client) == "AUTH_UNAVAILABLE"


def test_access_that_has_expired_is_asked_about_first() -> None:
    board = board_of("a")
    client = inside(board, expiresAt=10)
    board.clock.advance(11)
    ask(client)
    assert client.link.read() == []
    board.access.next().yes("ann", expiresAt=30)
    board.clock.advance(0)
    assert answer(client) == ([(1, "a")], None)


def test_what_it_costs() -> None:
    board = board_of("a", limits=Limits(joins_per_user=1, burst=3))
    client = inside(board)
    for _ in range(10):
        ask(client)
    *_, error = client.link.read()
    assert (error["id"], error["payload"]["code"], error["payload"]["limit"]) == (7, "RATE_LIMITED", "joins")


def asked_twice(bytes_per_user: int) -> tuple[Board, Client]:
    """A user has been given a page of 5 KB, and asked for it on another socket, which is returned, meanwhile."""
    limits = Limits(bytes_per_user=bytes_per_user, burst=3)
    board = board_of("", limits=limits, single=False)
    board.tell("x" * 5000)
    clients = [inside(board) for _ in range(2)]
    board.logs.held = []
    for client in clients:
        ask(client)
    board.logs.answer()
    board.logs.held = None
    board.clock.advance(0)
    assert answer(clients[0])[0] == [(1, "x" * 5000)]
    return board, clients[1]


def test_its_bytes_count_for_the_user_and_the_next_one_waits() -> None:
    board, client = asked_twice(1000)
    board.clock.advance(1.5)
    assert client.link.read() == []
    board.clock.advance(1.0)
    assert answer(client)[0] == [(1, "x" * 5000)]


def test_who_would_wait_for_too_long_is_refused() -> None:
    _, client = asked_twice(200)
    (error,) = client.link.read()
    payload = {"code": "RATE_LIMITED", "message": "this user reads too much", "retryAfter": 1.0, "limit": "user"}
    assert error == {"type": "error", "id": 7, "payload": payload}


def test_a_user_over_its_budget_is_refused() -> None:
    board = board_of("a", limits=Limits(events_per_user=1, burst=1))
    client = inside(board)
    for _ in range(20):
        ask(client)
    limits = [said["payload"].get("limit") for said in client.link.read()]
    assert limits[-1] == "user"


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": 1001},
        {"before": {"epoch": "e1"}},
        {"before": {"epoch": "", "offset": 1}},
        {"before": {"epoch": "e1", "offset": 0}},
        {"before": 3},
        {"socketIds": ["x"] * 9},
        {"roomId": ""},
    ],
)
def test_what_is_malformed_is_refused(wrong: Any) -> None:
    client = inside(Board())
    ask(client, **wrong)
    assert answer(client) == "INVALID_MESSAGE"


def test_a_fault_of_our_own_is_one() -> None:
    board = board_of("a")
    client = inside(board)
    board.logs.failure = ZeroDivisionError()
    ask(client)
    assert client.link.read()[-1]["payload"]["code"] == "INTERNAL"
    assert board.counters.errors_internal == 1

"""Histories that many sockets ask for at once: whose turn it is, and what it costs them."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from kraftek.contract.settings import Limits
from kraftek.core.history_turns import PATIENCE
from tests.core.histories import ROOM, since
from tests.core.test_following import Board, told
from tests.support.world import Client

UNLIMITED = {"events_per_socket": 0, "bytes_per_socket": 0, "events_per_address": 0, "bytes_per_address": 0}


def board_with(messages: int, *, text: str = "x", **limits: Any) -> Board:
    """Its room has been told so many messages. A user may do 10 things in a second, unless the limits say otherwise."""
    user = {"events_per_user": 10, "bytes_per_user": 0}
    board = Board(single=False, limits=Limits(burst=1.0, **{**UNLIMITED, **user, **limits}))
    for _ in range(messages):
        board.tell(text)
    return board


def pass_time(board: Board, seconds: float) -> None:
    for _ in range(round(seconds * 10)):
        board.clock.advance(0.1)


def standing(client: Client) -> Any:
    """What it was told of where it is; ``None`` when it was told nothing."""
    first = told(client)[:1]
    return first[0] if first else None


def test_of_one_user_one_at_a_time_is_read() -> None:
    board = board_with(2, events_per_user=0)
    board.logs.held = []
    board.enter("other")
    board.logs.answer()  # where the room is
    for number in range(5):
        board.enter("ann", since=since(number % 2))
    bob = board.enter("bob", since=since(1))
    assert len(board.logs.held) == 2, "one for ann and one for bob"
    board.logs.answer()
    board.logs.answer()
    board.clock.advance(0)
    assert standing(bob)["recovered"] is True
    assert len(board.logs.held) == 1, "the next one for ann"
    for _ in range(4):
        board.logs.answer()
        board.clock.advance(0)
    assert board.logs.held == []
    assert len(board.reading) == 0


def test_what_was_read_is_charged_to_the_user_and_the_next_one_waits() -> None:
    board = board_with(80)
    first = board.enter("ann", since=since(0))
    assert standing(first)["recovered"] is True, "20 events, where 10 may come at once"
    second = board.enter("ann", since=since(0))
    assert standing(second) is None
    bob = board.enter("bob", since=since(0))
    assert standing(bob)["recovered"] is True, "it has a budget of its own"
    pass_time(board, 1.0)
    assert standing(second) is None
    pass_time(board, 0.5)
    assert standing(second)["recovered"] is True


def test_bytes_are_charged_too() -> None:
    board = board_with(4, text="x" * 1000, events_per_user=0, bytes_per_user=2000)
    board.enter("ann", since=since(0))
    assert standing(board.enter("ann", since=since(0))) is None
    assert standing(board.enter("ann", since=since(4)))["recovered"] is True, "nothing was missed, and nothing is read"


def test_an_address_waits_as_a_user_does() -> None:
    board = board_with(80, events_per_user=0, events_per_address=10)
    board.admission.budgets.address_of = lambda _: "1.1.1.1"
    clients = [board.connect() for _ in range(2)]
    for client in clients:
        client.send({"type": "authenticate", "payload": {"token": "t", "roomId": ROOM, "since": since(0)}})
    for user_id in ("ann", "bob"):
        board.access.next().yes(user_id)
    ann, bob = map(standing, clients)
    assert ann["recovered"] is True
    assert bob is None


@pytest.mark.parametrize("gone", [False, True])
def test_who_would_wait_for_too_long_goes_on_without(gone: bool) -> None:
    board = board_with(800)
    board.enter("ann", since=since(0))
    pass_time(board, 5.0)
    client = board.enter("ann", since=since(0))
    reads = board.logs.reads
    if gone:
        client.leave()
    else:
        told_at_once = {"epoch": "e1", "offset": 800, "recovered": False, "reason": "unavailable"}
        assert standing(client) == told_at_once, "20 s would be more than it waits"
        assert board.counters.not_resumed["unavailable"] == 1
    pass_time(board, 2 * PATIENCE)
    assert board.logs.reads == reads
    assert standing(board.enter("ann", since=since(799)))["recovered"] is True, "the next one has its turn"


def test_who_is_gone_or_waits_behind_others_for_too_long_is_read_nothing() -> None:
    board = board_with(2, events_per_user=0)
    board.logs.held = []
    board.enter("other")
    board.logs.answer()
    board.enter("ann", since=since(0))
    gone, late = board.enter("ann", since=since(0)), board.enter("ann", since=since(0))
    gone.leave()
    pass_time(board, PATIENCE + 1)
    reads = board.logs.reads
    board.logs.answer()
    board.clock.advance(0)
    board.clock.advance(0)
    assert board.logs.reads == reads
    assert standing(late)["reason"] == "unavailable"
    assert len(board.reading) == 0


def unhandled() -> list[Deferred[Any]]:
    """Of each of these Twisted says, when it is let go of, that its error is unhandled."""
    deferreds = [each for each in gc.get_objects() if issubclass(type(each), Deferred)]
    return [each for each in deferreds if getattr(each._debugInfo, "failResult", None) is not None]


def test_an_error_of_ours_ends_the_turn_and_is_logged_once() -> None:
    before = unhandled()
    board = board_with(2, events_per_user=0)
    board.enter("other")
    board.logs.failure = RuntimeError("the cause")
    with capturedLogs() as logged:
        client = board.enter("ann", since=since(0))
    assert ["the cause" in str(event["log_failure"].value) for event in logged] == [True]
    assert client.link.closed == (1011, "INTERNAL")
    assert len(board.reading) == 0
    assert [each for each in unhandled() if each not in before] == []
    board.logs.failure = None
    assert standing(board.enter("ann", since=since(0)))["recovered"] is True
    assert board.following.find(ROOM) is not None

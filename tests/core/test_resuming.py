"""Clients that have missed much: they get it in turns, and in order, whatever happens meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from kraftek.contract.errors import NotPublished
from kraftek.contract.messages import Outgoing
from kraftek.contract.settings import Limits
from kraftek.core.followed import STEP
from tests.core.histories import ROOM, since
from tests.core.test_following import TOPIC, Board, told
from tests.support.world import Client

RECOVERED = {"epoch": "e1", "offset": 0, "recovered": True}


def catching_up(messages: int = 2 * STEP, **more: Any) -> tuple[Board, Client]:
    """A client has got the first of what it has missed, and its next turn comes in the next iteration."""
    board = Board(**more)
    board.logs.kept = 10_000
    bob = board.enter("bob")
    for number in range(1, messages + 1):
        board.tell(str(number))
    bob.link.read()
    client = board.enter(since=since(0))
    assert told(client) == [RECOVERED, *said(1, STEP)]
    return board, client


def said(first: int, last: int) -> list[Any]:
    return [(number, str(number)) for number in range(first, last + 1)]


def test_others_have_their_turn_and_what_comes_meanwhile_comes_after_it() -> None:
    board, client = catching_up(2 * STEP + 1)
    assert len(board.gateway.turns) == 1
    board.tell(str(2 * STEP + 2))
    client.send({"type": "ping"})
    assert told(client) == [], "what it sends is held until it is in the room"
    board.clock.advance(0)
    assert [each for each in told(client) if isinstance(each, tuple)] == said(STEP + 1, 2 * STEP + 2)
    assert board.counters.resumed_messages == 2 * STEP + 1
    board.tell(str(2 * STEP + 3))
    assert told(client) == said(2 * STEP + 3, 2 * STEP + 3)


def test_a_few_come_at_once() -> None:
    board, _ = catching_up(STEP)
    assert len(board.gateway.turns) == 0


def test_who_is_gone_gets_no_more() -> None:
    board, client = catching_up()
    client.leave()
    board.clock.advance(0)
    assert told(client) == []
    assert board.following.find(ROOM).catching == {}  # type: ignore[union-attr]


def test_more_than_may_wait_meanwhile_is_read() -> None:
    board, client = catching_up(limits=Limits(unsent_bytes=40_000))
    reads = board.logs.reads
    for number in range(2 * STEP + 1, 5 * STEP):
        board.tell(str(number))
    while len(board.gateway.turns):
        board.clock.advance(0)
    assert told(client) == said(STEP + 1, 5 * STEP - 1)
    assert board.logs.reads > reads


def test_an_epoch_that_begins_meanwhile_is_told_before_what_is_of_it() -> None:
    board, client = catching_up()
    board.logs.ended["e1"] = 2 * STEP
    board.logs.epoch = "e2"
    board.tell(str(2 * STEP + 1))
    board.clock.advance(0)
    position = {"epoch": "e2", "offset": 2 * STEP, "recovered": True}
    last = 2 * STEP + 1
    assert told(client) == [*said(STEP + 1, last - 1), position, *said(last, last)]
    board.tell(str(last + 1))
    assert told(client) == said(last + 1, last + 1)


def test_what_is_lost_with_an_epoch_is_told() -> None:
    board, client = catching_up()
    board.logs.epoch = "e2"  # e1 is no ancestor of it
    board.tell("a")
    board.clock.advance(0)
    last = 2 * STEP + 1
    position = {"epoch": "e2", "offset": last, "recovered": False, "reason": "epoch"}
    assert told(client) == [*said(STEP + 1, last - 1), position]
    board.tell("b")
    assert told(client) == [(last + 1, "b")]


def test_what_cannot_be_read_any_more_is_told() -> None:
    board, client = catching_up(limits=Limits(unsent_bytes=40_000))
    for number in range(3):
        board.tell(str(number) + "x" * 8000)
    board.logs.failure = NotPublished("Redis is away")
    board.clock.advance(0)
    position = {"epoch": "e1", "offset": 2 * STEP + 3, "recovered": False, "reason": "unavailable"}
    assert told(client) == [*said(STEP + 1, 2 * STEP), position]
    board.tell("b")
    assert told(client) == [(2 * STEP + 4, "b")]


def test_who_leaves_while_it_is_read_again_is_told_nothing() -> None:
    board, client = catching_up(limits=Limits(unsent_bytes=40_000))
    for number in range(3):
        board.tell(str(number) + "x" * 8000)
    board.logs.held = []
    board.clock.advance(0)
    assert told(client) == said(STEP + 1, 2 * STEP)
    client.leave()
    board.logs.answer()
    assert told(client) == []


def test_who_reads_three_times_what_is_older_than_what_was_delivered_is_told_so() -> None:
    board = Board()
    board.enter("bob")
    board.tell("a")
    board.tell("b")
    board.logs.told[TOPIC].pop()
    reads = board.logs.reads
    client = board.enter(since=since(0))
    assert board.logs.reads == reads + 3
    assert told(client) == [{"epoch": "e1", "offset": 2, "recovered": False, "reason": "unavailable"}]


@pytest.mark.parametrize("asked", [{"since": since(0)}, {"last": 1}])
def test_a_history_that_ends_while_it_is_read_is_not_available(asked: dict[str, Any]) -> None:
    board = Board()
    board.enter("bob")
    board.tell("a")
    board.logs.stands = False
    assert told(board.enter(**asked)) == [{"epoch": "e1", "offset": 1, "recovered": False, "reason": "unavailable"}]


def test_where_it_is_comes_after_what_waits_for_its_access() -> None:
    board, client = catching_up()
    board.access_watch.access_stale(None, "ann", ROOM, revoked=True)
    board.logs.ended["e1"] = 2 * STEP
    board.logs.epoch = "e2"
    board.tell(str(2 * STEP + 1))
    board.clock.advance(0)
    assert told(client) == [], "its access is in question"
    board.access.next().yes("ann")
    position = {"epoch": "e2", "offset": 2 * STEP, "recovered": True}
    last = 2 * STEP + 1
    assert told(client) == [*said(STEP + 1, last - 1), position, *said(last, last)]


def test_who_has_missed_more_than_may_wait_for_its_access_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    board, client = catching_up(4 * STEP, limits=Limits(unsent_bytes=40_000))
    board.access_watch.access_stale(None, "ann", ROOM, revoked=True)
    board.access_watch._withholding._withheld[client.session][ROOM].write(Outgoing(b"x" * 35_000))
    turn: Deferred[None] = Deferred()
    monkeypatch.setattr(board.gateway.turns, "next_turn", lambda: turn)
    board.clock.advance(0)
    board.access.next().yes("ann")  # in the middle of it
    turn.callback(None)
    unavailable, position = client.link.read()
    assert unavailable["payload"]["code"] == "AUTH_UNAVAILABLE"
    assert position["payload"] == {"epoch": "e1", "offset": 4 * STEP, "recovered": False, "reason": "too_many"}
    board.tell("b")
    assert told(client) == [(4 * STEP + 1, "b")]

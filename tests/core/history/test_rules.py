"""Which rooms have a history."""

from __future__ import annotations

import msgspec
import pytest

from kraftek.contract.names import room_topic, user_topic
from kraftek.contract.settings import RoomPolicy, Users
from kraftek.core.history.rules import Rules

RULES = Rules(
    [
        RoomPolicy(pattern="board-secret", history=0),
        RoomPolicy(pattern="board-*", history=200, history_ttl=0.5, history_bytes=1000),
        RoomPolicy(pattern="b-*-z", history=1),
        RoomPolicy(pattern="lobby", history=1, events=("chat:*:said", "news")),
    ]
)


@pytest.mark.parametrize(
    ("room_id", "kept"),
    [
        ("board-", True), ("board-1", True), ("board-secret", False), ("board", False),
        ("lobby", True), ("lobby2", False), ("b-z", False), ("b--z", True), ("b-x-z", True),
    ],
)  # fmt: skip
def test_the_first_pattern_that_covers_a_room_counts(room_id: str, kept: bool) -> None:
    assert RULES.keep(room_topic(room_id)) is kept
    assert not RULES.keep(room_id)


def test_as_redis_has_them() -> None:
    assert msgspec.json.decode(RULES.text) == [
        ["room:board-secret", False, 0, 600_000, 1_048_576],
        ["room:board-", "", 200, 500, 1000],
        ["room:b-", "-z", 1, 600_000, 1_048_576],
        ["room:lobby", False, 1, 600_000, 1_048_576, [["chat", "*", "said"], ["news"]]],
    ]


def test_without_any_history_there_are_none() -> None:
    assert not Rules([])
    assert not Rules([RoomPolicy(pattern="a")])
    assert RULES


def test_users_have_one_rule_of_their_own() -> None:
    rules = Rules([RoomPolicy(pattern="*", history=0)], Users(history=9, history_ttl=1, events=("news",)))
    assert msgspec.json.decode(rules.text)[1] == ["user:", "", 9, 1000, 1_048_576, [["news"]]]
    assert (rules.keep(user_topic("ann")), rules.keep(user_topic("a*")), rules.keep(room_topic("ann"))) == (
        True,
        True,
        False,
    )
    rooms = Rules([RoomPolicy(pattern="*", history=1)], Users())
    assert (rooms.keep(user_topic("ann")), rooms.keep(room_topic("user:ann"))) == (False, True)
    assert len(msgspec.json.decode(rooms.text)) == 1

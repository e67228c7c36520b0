"""Which policy a type of messages has, and which messages take the place of which."""

from __future__ import annotations

import pytest
from msgspec import Raw

from kraftek.contract.messages import Delivery
from kraftek.contract.settings import EventPolicy
from kraftek.edge import policies as module
from kraftek.edge.policies import Policies

CURSORS = EventPolicy(pattern="cursors:*:moved", policy="latest", key="userId")
SCENES = EventPolicy(pattern="cursors:scene:*", policy="latest")
TYPING = EventPolicy(pattern="typing", policy="drop")
POLICIES = Policies((CURSORS, SCENES, TYPING))


@pytest.mark.parametrize(
    ("type", "policy"),
    [
        ("cursors:page:moved", CURSORS),
        ("cursors:scene:moved", CURSORS),  # the first that covers it
        ("cursors:scene:ended", SCENES),
        ("cursors:moved", None),
        ("cursors:page:moved:twice", None),
        ("typing", TYPING),
        ("left", None),
        ("", None),
    ],
)
def test_the_first_pattern_that_covers_a_type_counts(type: str, policy: EventPolicy | None) -> None:
    assert POLICIES.of(type) is POLICIES.of(type) is policy


def test_no_more_types_are_remembered_than_a_service_may_make_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KNOWN", 10)
    policies = Policies((CURSORS,))
    for number in range(25):
        assert policies.of(f"cursors:{number}:moved") is CURSORS
    assert len(policies._known) <= 10


def place(payload: str, room_id: str = "r", policy: EventPolicy = CURSORS) -> object:
    return POLICIES.place(policy, Delivery("cursors:page:moved", Raw(payload.encode()), room_id))


def test_messages_of_one_room_type_and_value_of_the_key_have_one_place() -> None:
    assert place('{"userId": "ann", "x": 1}') == place('{"x": [{"userId": 3}], "userId": "ann"}')
    assert place('{"userId": "ann"}') != place('{"userId": "bob"}')
    assert place('{"userId": "ann"}') != place('{"userId": "ann"}', "other")
    assert place('{"userId": 1}') != place('{"userId": "1"}')


def test_without_a_key_the_room_and_the_type_are_the_place() -> None:
    assert place("[1]", policy=SCENES) == place('{"userId": 2}', policy=SCENES) is not None
    assert place("1", "other", SCENES) != place("1", policy=SCENES)


@pytest.mark.parametrize("payload", ["{}", "[1]", "null", '{"user": 1}', "[" * 5000 + "]" * 5000])
def test_what_lacks_the_key_replaces_nothing(payload: str) -> None:
    assert place(payload) is None


def test_only_latest_replaces() -> None:
    assert POLICIES.place(TYPING, Delivery("typing", Raw(b"{}"))) is None

"""When access of open sockets ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kraftek.contract.messages import Grant, Token
from kraftek.core.expiry_queue import ExpiryQueue
from kraftek.core.session import HeldGrant, Session
from tests.core.test_roster import session as bare_session


def held(expires_at: float | None) -> HeldGrant:
    return HeldGrant(Token("t"), Grant("u", expires_at=expires_at))


def session(*expiry_queue: float | None) -> Session:
    """A session in as many rooms, whose grants expire then."""
    made = bare_session("g.1")
    made.rooms = {f"room{n}": held(expiry) for n, expiry in enumerate(expiry_queue)}
    return made


def test_nothing_is_due_at_first() -> None:
    assert ExpiryQueue(1000.5).due(2000) == []


def test_a_session_is_due_once_the_first_of_its_grants_has_expired() -> None:
    expiry_queue = ExpiryQueue(1000)
    one = session(None, 1010.0, 1005.5)
    expiry_queue.watch(one)
    assert len(expiry_queue) == 1
    assert expiry_queue.due(1005.4) == []
    assert expiry_queue.due(1005.7) == []  # within the quarter of a second
    assert expiry_queue.due(1005.75) == [one]
    assert expiry_queue.due(1006) == expiry_queue.due(2000) == []
    assert len(expiry_queue) == 0


def test_grants_that_never_expire_are_not_watched() -> None:
    expiry_queue = ExpiryQueue(1000)
    one = session(None)
    one.rooms["ttl"] = held(None)
    one.rooms["ttl"].suspend()
    expiry_queue.watch(one)
    expiry_queue.watch(session())
    assert len(expiry_queue) == 0


def test_the_grant_to_be_in_no_room_is_watched() -> None:
    expiry_queue = ExpiryQueue(1000)
    one = session()
    one.rooms[None] = held(1001)
    expiry_queue.watch(one)
    assert expiry_queue.due(1003) == [one]


def test_a_changed_grant_is_watched_anew() -> None:
    expiry_queue = ExpiryQueue(1000)
    one = session(1005)
    expiry_queue.watch(one)
    one.rooms = {"room": held(1050)}
    expiry_queue.watch(one)
    assert len(expiry_queue) == 1
    assert expiry_queue.due(1049) == []
    assert expiry_queue.due(1051) == [one]


def test_what_has_expired_already_is_due_with_the_next_second() -> None:
    expiry_queue = ExpiryQueue(1000)
    assert expiry_queue.due(1000.5) == []
    one = session(500)
    expiry_queue.watch(one)
    assert expiry_queue.due(1002) == [one]


def test_what_is_forgotten_is_never_due_and_leaves_nothing() -> None:
    expiry_queue = ExpiryQueue(1000)
    one, other = session(1005), session(1005)
    for each in (one, other):
        expiry_queue.watch(each)
    expiry_queue.forget(one)
    expiry_queue.forget(one)
    assert expiry_queue.due(1010) == [other]
    expiry_queue.watch(one)
    expiry_queue.forget(one)
    assert len(expiry_queue) == 0
    assert not expiry_queue._due


def test_a_clock_set_forward_by_years_takes_no_years() -> None:
    # A machine without a battery for its clock begins in 1970, until NTP tells it the time.
    expiry_queue = ExpiryQueue(0)
    one = session(10)
    expiry_queue.watch(one)
    assert expiry_queue.due(1_800_000_000_000) == [one]


def test_a_clock_set_back_again_postpones_nothing() -> None:
    expiry_queue = ExpiryQueue(1000)
    expiry_queue.due(50_000)
    assert expiry_queue.due(1001) == []
    one = session(1005)
    expiry_queue.watch(one)
    assert expiry_queue.due(1006) == [one]


@pytest.mark.parametrize("step", [0.25, 1.0, 7.3])
@given(st.data())
def test_each_is_due_once_and_within_a_second_and_a_step(step: float, data: Any) -> None:
    expiry_queue = ExpiryQueue(1000)
    ends = data.draw(st.lists(st.floats(1000, 1030), max_size=10))
    waiting = {session(end): end for end in ends}
    for each in waiting:
        expiry_queue.watch(each)
    now = 1000.0
    while waiting:
        now += step
        for each in expiry_queue.due(now):
            assert waiting.pop(each) <= now
        assert all(end > now - step - 1 for end in waiting.values())

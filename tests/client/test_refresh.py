"""When a client shows another token: in time, when it is told to, and less and less often when that is of no use."""

from __future__ import annotations

from typing import Any

import pytest

from kraftek.client import Refused, State
from kraftek.client.messages import Ask, Open
from kraftek.client.refresh import LONGEST_TIMER
from tests.client.test_conversation import Play


def ready(*rooms: str, expires_in: float | None = 100.0, random: float = 0.5) -> Play:
    play = Play(*rooms, random=lambda: random)
    play.it.connect()
    play.actions()
    play.it.token(play.attempt, "old", play.now)
    assert play.actions() == [Open(play.attempt)]
    play.it.opened(play.attempt)
    play.sent()
    play.say("authenticated", {"userId": "ada", **({} if expires_in is None else {"expiresIn": expires_in})})
    play.actions()
    return play


def asked(play: Play) -> bool:
    return play.actions() == [Ask(play.attempt, False)]


def shown(play: Play, token: str = "new") -> str:
    """The user has this token, and it is shown. Its id."""
    play.it.token(play.attempt, token, play.now)
    (frame,) = play.sent()
    assert (frame["type"], frame["payload"]) == ("authenticate", {"token": token})
    return str(frame["id"])


@pytest.mark.parametrize(("random", "after"), [(0.0, 70), (0.5, 80), (1.0, 90)])
def test_in_time(random: float, after: float) -> None:
    play = ready("r", random=random)
    play.pass_time(after - 0.1)
    assert play.actions() == []
    play.pass_time(0.2)
    assert asked(play)
    key = shown(play)
    play.say("authenticated", {"userId": "ada", "expiresIn": 1000}, id=key)
    assert play.actions() == []
    assert play.it.state is State.READY
    play.pass_time(600)
    assert play.actions() == []
    play.pass_time(400)
    assert asked(play)


def test_the_room_that_expires_first_counts() -> None:
    play = ready("r")
    key = play.join("s")
    play.sent()
    play.say("joined", {"roomId": "s", "expiresIn": 10}, id=key)
    play.actions()
    play.pass_time(7)
    assert play.actions() == []
    play.pass_time(1)
    assert asked(play)
    play.say("authenticated", {"userId": "ada", "expiresIn": 100}, id=shown(play))
    play.pass_time(79)
    assert play.actions() == []
    play.pass_time(2)
    assert asked(play)


@pytest.mark.parametrize("expires_in", [None, 2.0**31, 4_102_444_800.0])
def test_never_when_it_does_not_expire_or_in_years(expires_in: float | None) -> None:
    play = ready("r", expires_in=expires_in)
    assert play.it.due() is None


@pytest.mark.parametrize("expires_in", [LONGEST_TIMER, LONGEST_TIMER * 1.2, LONGEST_TIMER * 1.3, 1e30])
def test_no_timer_is_longer_than_timers_are(expires_in: float) -> None:
    play = ready("r", expires_in=expires_in)
    due = play.it.due()
    assert due is None or due - play.now <= LONGEST_TIMER


@pytest.mark.parametrize("payload", [None, {"expiresIn": "7"}, {"expiresIn": None}, []])
def test_whatever_else_is_said_is_no_expiry(payload: Any) -> None:
    play = ready("r")
    play.say("authenticated", payload, id=None)
    key = play.join("s")
    play.say("joined", payload, id=key)
    assert play.it.due() == play.now + 80


def test_what_is_sent_meanwhile_goes_on() -> None:
    play = ready("r")
    play.pass_time(81)
    assert asked(play)
    play.it.emit("a:b:c", 1)
    assert [frame["type"] for frame in play.sent()] == ["a:b:c"]
    play.it.token(play.attempt, "new", play.now)
    play.it.emit("a:b:c", 2)
    assert [frame["type"] for frame in play.sent()] == ["authenticate", "a:b:c"]


def test_the_same_token_is_asked_for_less_and_less_often() -> None:
    play = ready("r")
    play.pass_time(81)
    waits = []
    for _ in range(8):
        assert asked(play)
        play.it.token(play.attempt, "old", play.now)
        assert play.sent() == []
        due = play.it.due()
        assert due is not None
        waits.append(due - play.now)
        play.pass_time(waits[-1])
    assert waits == [1.5, 3.0, 6.0, 12.0, 24.0, 45.0, 45.0, 45.0]


def test_a_callback_that_fails_leaves_the_socket() -> None:
    play = ready("r")
    play.pass_time(81)
    assert asked(play)
    play.it.no_token(play.attempt, "no token: OSError", play.now)
    assert play.actions() == []
    assert play.it.state is State.READY
    play.pass_time(1.5)
    assert asked(play)


def test_a_gateway_that_cannot_ask_is_shown_it_later() -> None:
    play = ready("r")
    play.pass_time(81)
    assert asked(play)
    play.error("AUTH_UNAVAILABLE", id=shown(play), retryAfter=4)
    play.pass_time(5.9)
    assert play.actions() == []
    play.pass_time(0.2)
    assert asked(play)
    shown(play)


def test_by_hand() -> None:
    play = ready("r", expires_in=None)
    one, two = play.it.refresh(), play.it.refresh()
    assert asked(play)
    play.say("authenticated", {"userId": "ada"}, id=shown(play))
    play.actions()
    assert play.settled == {one: None, two: None}
    three = play.it.refresh()
    assert asked(play)
    play.it.token(play.attempt, "new", play.now)
    play.actions()
    assert isinstance(play.settled[three], Refused)
    assert play.settled[three].code == "SAME_TOKEN"
    four = play.it.refresh()
    assert asked(play)
    play.error("AUTH_FAILED", id=shown(play, "bad"))
    play.actions()
    assert play.settled[four].code == "AUTH_FAILED"


def test_by_hand_while_there_is_no_socket() -> None:
    play = ready("r")
    play.lose()
    play.actions()
    key = play.it.refresh()
    assert play.actions() == []
    due = play.it.due()
    assert due is not None
    play.pass_time(due - play.now)
    assert play.actions() == [Ask(play.attempt, False)]
    play.it.token(play.attempt, "new", play.now)
    play.actions()
    play.it.opened(play.attempt)
    play.sent()
    play.say("authenticated", {"userId": "ada"})
    play.actions()
    assert play.settled[key] is None


def test_by_hand_until_it_is_closed() -> None:
    play = ready("r")
    key = play.it.refresh()
    play.it.close()
    play.actions()
    assert play.settled[key] is not None
    assert play.it.due() is None


def test_a_token_that_expired_is_replaced_and_what_was_refused_is_sent_again() -> None:
    play = ready("r")
    key = play.it.request(play.now, 15, "a:b:c")
    play.sent()
    play.error("TOKEN_EXPIRED", roomId="r")
    assert asked(play)
    play.error("TOKEN_EXPIRED", id=key)
    play.it.emit("a:b:d")
    assert play.sent() == []
    play.say("authenticated", {"userId": "ada"}, id=shown(play))
    assert play.actions() == []
    assert [frame["type"] for frame in play.sent()] == ["a:b:c", "a:b:d"]
    play.say("a:b:c", 7, id=key)
    play.actions()
    assert play.settled[key].payload == 7


def test_the_next_socket_begins_anew() -> None:
    play = ready("r")
    play.pass_time(81)
    assert asked(play)
    play.lose()
    play.it.token(1, "late", play.now)
    assert play.sent() == []
    due = play.it.due()
    assert due is not None
    play.pass_time(due - play.now)
    assert play.actions() == [Ask(play.attempt, False)]

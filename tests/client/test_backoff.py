"""How long a client waits before it connects again."""

from __future__ import annotations

import pytest

from kraftek.client.backoff import LATER, Backoff

BOUNDS = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_each_failure_doubles_the_bound_up_to_half_a_minute() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.after(1006, None) for _ in BOUNDS] == BOUNDS


def test_the_jitter_is_full() -> None:
    assert Backoff(lambda: 0.0).after(1006, None) == 0.0


def test_a_good_connection_begins_from_the_bottom() -> None:
    backoff = Backoff(lambda: 1.0)
    backoff.after(1006, None)
    backoff.reset()
    assert backoff.after(1006, None) == 0.5


def test_it_is_a_number_after_a_night_of_failures() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(5000):
        backoff.after(1006, None)
    assert backoff.after(1006, None) == 30.0


@pytest.mark.parametrize("code", [1012, 1013])
def test_what_everybody_is_told_at_once_is_spread_wider(code: int) -> None:
    assert Backoff(lambda: 1.0).after(code, None) == 4.0


@pytest.mark.parametrize("code", sorted(LATER))
def test_who_is_to_come_later_waits_as_long_as_he_was_told_at_least(code: int) -> None:
    assert Backoff(lambda: 0.0).after(code, None) == 1.0
    assert Backoff(lambda: 0.0).after(code, 7.0) == 7.0
    assert Backoff(lambda: 1.0).after(code, 7.0) == 11.0


def test_an_auth_service_that_is_away_is_asked_after_once_to_twice_what_was_told() -> None:
    assert Backoff(lambda: 0.0).unavailable(None) == 1.0
    assert Backoff(lambda: 1.0).unavailable(3.0) == 6.0


@pytest.mark.parametrize(
    ("seconds", "wait"), [(0.25, 0.25), (0, 0.0), (-1, 0.0), (1e9, 60.0), ("1", 4.0), (None, 4.0), (..., 4.0)]
)
def test_a_gateway_that_stops_says_when_to_come_back(seconds: object, wait: float) -> None:
    backoff = Backoff(lambda: 1.0)
    backoff.drained({} if seconds is ... else {"reconnectAfter": seconds})
    assert backoff.after(1012, None) == wait
    assert backoff.after(1012, None) >= 4.0


def test_what_is_no_payload_says_nothing() -> None:
    backoff = Backoff(lambda: 1.0)
    backoff.drained(["reconnectAfter"])
    assert backoff.after(1012, None) == 4.0

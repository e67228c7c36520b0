"""How many gateways share a Redis, and the pace they share."""

from __future__ import annotations

import pytest

from kraftek.contract.fleet import Fleet


@pytest.mark.parametrize(("jitter", "seconds"), [(0.0, 1.0), (0.5, 2.0), (1.0, 3.0)])
def test_each_pauses_the_longer_the_more_there_are(jitter: float, seconds: float) -> None:
    fleet = Fleet(lambda: jitter)
    assert fleet.pause(2.0) == seconds
    fleet.counted(10)
    assert fleet.pause(2.0) == 10 * seconds


def test_those_that_return_one_by_one_keep_the_pace_of_all() -> None:
    fleet = Fleet()
    fleet.counted(10)
    found = []
    for gateways in (1, 2, 3, 12, 0):
        fleet.counted(gateways)
        found.append(fleet.gateways)
    assert found == [9, 8, 7, 12, 11]


def test_there_is_always_one() -> None:
    fleet = Fleet()
    fleet.counted(0)
    assert fleet.gateways == 1

"""Token buckets and fair shares: what each lets through, and what is remembered of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kraftek.contract.rates import Buckets, share


def test_a_full_bucket_gives_its_burst_and_then_its_rate() -> None:
    buckets = Buckets[str](10, 2)
    for number in range(20):
        assert buckets.over("a", 100.0) <= 0, number
        buckets.charge("a", 1, 100.0)
    assert buckets.over("a", 100.0) == pytest.approx(0.0)
    assert buckets.charge("a", 1, 100.0) == pytest.approx(0.1)
    assert buckets.over("a", 100.05) == pytest.approx(0.05)
    assert buckets.over("a", 100.1) == pytest.approx(0.0)
    assert buckets.over("a", 102.1) == pytest.approx(-2.0)


def test_each_key_has_a_bucket_of_its_own() -> None:
    buckets = Buckets[str](1, 1)
    buckets.charge("a", 5, 0.0)
    assert buckets.over("a", 0.0) == 4.0
    assert buckets.over("b", 0.0) == -1.0


def test_what_is_more_than_the_bucket_is_paid_back() -> None:
    buckets = Buckets[str](100, 1)
    assert buckets.charge("a", 1000, 0.0) == 9.0
    assert buckets.over("a", 8.0) == 1.0
    assert buckets.over("a", 9.5) == -0.5


def test_a_bucket_that_is_full_again_is_forgotten() -> None:
    buckets = Buckets[str](1, 1)
    for name in "abc":
        buckets.charge(name, 1, 0.0)
    assert len(buckets) == 3
    buckets.charge("d", 1, 0.5)
    assert len(buckets) == 4
    buckets.charge("d", 1, 1.0)
    buckets.charge("d", 1, 1.0)
    assert len(buckets) == 1


def test_those_that_were_idle_for_longest_go_first() -> None:
    buckets = Buckets[str](1, 1, size=2)
    buckets.charge("a", 10, 0.0)
    buckets.charge("b", 10, 0.0)
    buckets.charge("a", 1, 0.0)
    buckets.charge("c", 10, 0.0)
    assert len(buckets) == 2
    assert [buckets.over(name, 0.0) for name in "abc"] == [10.0, -1.0, 9.0]


def test_no_rate_is_no_limit_and_remembers_nothing() -> None:
    buckets = Buckets[str](0, 5)
    assert buckets.charge("a", 10**9, 0.0) == -5.0
    assert (buckets.over("a", 0.0), len(buckets)) == (-5.0, 0)


@given(st.integers(1, 1000), st.integers(0, 5), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 50)), max_size=200))
def test_no_more_than_the_rate_and_the_burst_and_one_more(
    rate: int, burst: int, arrivals: list[tuple[float, int]]
) -> None:
    buckets, now, let_in, last = Buckets[str](rate, burst), 0.0, 0, 0
    for wait, amount in arrivals:
        now += wait
        if buckets.over("a", now) <= 0:
            buckets.charge("a", amount, now)
            let_in, last = let_in + amount, amount
    assert let_in <= rate * (now + burst) + last + 1e-3


@pytest.mark.parametrize(
    ("held", "bound", "holders", "most"),
    [
        (0, 10_000, 0, 10_000),
        (4999, 10_000, 1, 10_000),
        (5000, 10_000, 1, 5000),
        (5000, 10_000, 2, 2500),
        (9999, 10_000, 1, 1),
        (9999, 10_000, 3, 0),
        (10_000, 10_000, 3, 0),
        (1, 1, 0, 0),
    ],
)
def test_a_share_of_what_is_half_in_use(held: int, bound: int, holders: int, most: int) -> None:
    assert share(held, bound, holders) == most


@given(st.integers(1, 300), st.lists(st.integers(0, 5), max_size=600))
def test_one_holder_never_keeps_the_others_out(bound: int, takers: list[int]) -> None:
    held: dict[int, int] = {}
    for taker in takers:
        total = sum(held.values())
        if total < bound and held.get(taker, 0) < max(share(total, bound, len(held)), 1):
            held[taker] = held.get(taker, 0) + 1
        assert held.get(taker, 0) <= bound // 2 + 1
        if len(held) == 1 and bound > 1:
            assert sum(held.values()) < bound

"""`bench.spread`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.spread import Spread, percentile


@pytest.mark.parametrize(("share", "expected"), [(0.01, 10), (0.20, 10), (0.21, 20), (0.50, 30), (0.99, 50), (1.0, 50)])
def test_percentile_is_the_nearest_rank(share: float, expected: int) -> None:
    assert percentile([10, 20, 30, 40, 50], share) == expected


def test_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7], 0.5) == percentile([7], 0.99) == 7


@given(st.lists(st.integers(), min_size=1), st.floats(min_value=0.01, max_value=1.0))
def test_percentile_has_enough_values_at_or_below_it(values: list[int], share: float) -> None:
    values.sort()
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_spread_leaves_out_what_was_not_measured() -> None:
    assert Spread.of([3.0, None, 1.0, 2.0]) == Spread(median=2.0, least=1.0, most=3.0)


def test_spread_of_an_even_number_is_the_middle_of_the_two() -> None:
    assert Spread.of([1.0, 2.0, 4.0, 8.0]) == Spread(median=3.0, least=1.0, most=8.0)


def test_there_is_no_spread_of_nothing() -> None:
    assert Spread.of([]) is None
    assert Spread.of([None, None]) is None

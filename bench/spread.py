"""Medians and percentiles. The load uses them on its latencies, the report on its rounds."""

import statistics
from collections.abc import Iterable, Sequence

import msgspec


def percentile(ordered: Sequence[int], share: float) -> int:
    """Give the nearest-rank percentile of values in ascending order; `share` is above 0 and at most 1."""
    return ordered[-int(-share * len(ordered) // 1) - 1]


class Spread(msgspec.Struct):
    """One number over all rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Give the spread of the values that are there, ``None`` when there are none."""
        there = [value for value in values if value is not None]
        return Spread(statistics.median(there), min(there), max(there)) if there else None

"""How much of something each of many may use in a second: token buckets, and fair shares of what is bounded.

Used by :mod:`kraftek.core.budgets`, and wherever something that is bounded waits on behalf of several users.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

__all__ = ["Buckets", "share"]

K = TypeVar("K", bound=Hashable)

_FORGOTTEN_AT_ONCE = 2
"""Buckets that are full again, and are forgotten with each that is charged: more than can become full meanwhile."""


class Buckets(Generic[K]):
    """A token bucket for each key, by GCRA as "virtual scheduling" (ITU-T I.371, annex A): of each it remembers only
    when it is full again, and nothing once it is.

    ``per_second``: by how much a bucket fills up; 0 is no limit. ``burst``: for how many seconds it has been filling up
    when it is full. ``size``: of how many anything is remembered; beyond that those that were idle for longest count as
    full. Times are in seconds, by any clock that does not jump.
    """

    __slots__ = ("_burst", "_full_at", "_interval", "_size")

    def __init__(self, per_second: float, burst: float, size: int = 100_000) -> None:
        self._interval = 1 / per_second if per_second else 0.0
        self._burst = burst
        self._size = size
        # Those that were charged last are at the end.
        self._full_at: OrderedDict[K, float] = OrderedDict()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._full_at)

    def give(self) -> list[tuple[K, float]]:
        """When each is full, those that were charged last at the end."""
        return [*self._full_at.items()]

    def take(self, full_at: Iterable[tuple[K, float]]) -> None:
        """Go on with what another one gave."""
        self._full_at.update(full_at)

    def full_at(self, key: K) -> float:
        """When it is full."""
        return self._full_at.get(key, 0.0)

    def over(self, key: K, now: float) -> float:
        """Seconds until it is no longer overdrawn; if it is not, less by what is in it: ``-burst`` when it is full."""
        return max(self._full_at.get(key, 0.0) - now, 0.0) - self._burst

    def charge(self, key: K, amount: float, now: float) -> float:
        """Take so much out of it, also more than there is: it is overdrawn then. Returns as :meth:`over`."""
        buckets = self._full_at
        if not self._interval:
            return -self._burst
        ahead = max(buckets.get(key, 0.0) - now, 0.0) + amount * self._interval
        buckets[key] = now + ahead
        buckets.move_to_end(key)
        for _ in range(_FORGOTTEN_AT_ONCE):
            oldest = next(iter(buckets))
            if buckets[oldest] > now and len(buckets) <= self._size:
                break
            del buckets[oldest]
            if not buckets:
                break
        return ahead - self._burst


def share(held: int, bound: int, holders: int) -> int:
    """How much each of so many holders may hold of something of which there may be ``bound`` and ``held`` is in use:
    until half of it is, as much as there is room; from then on the free room divided by their number. So one alone
    gets half, and there is always room for another one.
    """
    return bound if 2 * held < bound else (bound - held) // max(holders, 1)

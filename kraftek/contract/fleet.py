"""How many gateway processes share a Redis, so that they also share a pace.

:mod:`kraftek.core.rooms.leases` counts them; whoever works through much in small steps pauses between two.
"""

from __future__ import annotations

from collections.abc import Callable
from random import random

__all__ = ["Fleet"]


class Fleet:
    """``gateways``: how many there are, this one included. ``jitter`` returns a number from 0 to 1."""

    def __init__(self, jitter: Callable[[], float] = random) -> None:
        self.gateways = 1
        self._jitter = jitter

    def counted(self, gateways: int) -> None:
        """So many have a lease. After a loss of data they return one by one, and are still as many as they were: the
        number falls by one at a time.
        """
        self.gateways = max(gateways, self.gateways - 1, 1)

    def pause(self, seconds: float) -> float:
        """Seconds to wait between two steps, so that all gateways together take one each ``seconds``, on average. They
        do not wait equally long, or they would take their steps at the same time.
        """
        return seconds * self.gateways * (0.5 + self._jitter())

"""Whether a balancer is to send clients to this process: what ``/health`` says, on both kinds of ports.

Made by :mod:`kraftek.daemon.lifecycle`.
"""

from __future__ import annotations

from kraftek.contract.interfaces import IBus

__all__ = ["Readiness"]


class Readiness:
    """It is ready unless it stops, or Redis is not connected. While Redis refuses to be written events still flow, and
    no other gateway is better off: it is ready then. ``stops``: set when it begins to stop. ``fault``: set while the
    process has more memory than it may.
    """

    def __init__(self, bus: IBus) -> None:
        self.bus = bus
        self.stops = False
        self.fault: str | None = None

    @property
    def ready(self) -> bool:
        """Whether it may get more clients."""
        return self.bus.available and not self.stops and self.fault is None

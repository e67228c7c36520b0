"""What is done by and by, while the daemon runs. Made by :mod:`kraftek.daemon.lifecycle`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from kraftek.contract.metrics import Counters
from kraftek.core.following import FOLLOW_INTERVAL
from kraftek.core.rooms.leases import LOOK_INTERVAL, RENEW_INTERVAL
from kraftek.daemon.assembly import Core, Edge

__all__ = ["SWEEP_INTERVAL", "Sweep", "Sweeps", "core_sweeps", "edge_sweeps"]

SWEEP_INTERVAL = 0.25
"""Seconds between two looks at what is due: time-outs are that exact."""

_TRIM_INTERVAL = 1.0
"""Seconds between two looks at services' streams."""

Sweep = tuple[Callable[[], None], float]
"""A function to call repeatedly, and the interval in seconds."""


def core_sweeps(core: Core) -> tuple[Sweep, ...]:
    """All that the core does by and by."""
    return (
        (core.admission.sweep, SWEEP_INTERVAL),
        (core.access_watch.sweep, SWEEP_INTERVAL),
        (core.membership.reconciliation.sweep, SWEEP_INTERVAL),
        (core.following.sweep, SWEEP_INTERVAL),
        (core.presence.sweep, SWEEP_INTERVAL),
        (core.following.follow, FOLLOW_INTERVAL),
        (core.recoverable.sweep, SWEEP_INTERVAL),
        (core.requests.sweep, SWEEP_INTERVAL),
        (core.receipts.sweep, SWEEP_INTERVAL),
        (core.dispatch.sweep, _TRIM_INTERVAL),
        (core.service_events.sweep, SWEEP_INTERVAL),
        (core.orphans.sweep, SWEEP_INTERVAL),
        (core.self_registrations.sweep, SWEEP_INTERVAL),
        (core.leases.renew, RENEW_INTERVAL),
        (core.leases.look, LOOK_INTERVAL),
    )


def edge_sweeps(edge: Edge) -> tuple[Sweep, ...]:
    """All that the edge does by and by."""
    return (
        (edge.clients.heartbeat.sweep, SWEEP_INTERVAL),
        (edge.engine_clients.sweep, SWEEP_INTERVAL),
        (edge.backlogs.sweep, SWEEP_INTERVAL),
    )


class Sweeps:
    """Functions that are called repeatedly, from :meth:`start` to :meth:`stop`, as often as these are called."""

    _log = Logger()

    def __init__(self, reactor: Any, counters: Counters) -> None:
        self._reactor = reactor
        self._counters = counters
        self._calls: list[tuple[LoopingCall, float]] = []

    def add(self, *sweeps: Sweep) -> None:
        """Call these too, from the next start on."""
        for sweep, interval in sweeps:
            looping = LoopingCall(self._guarded, sweep)
            looping.clock = self._reactor
            self._calls.append((looping, interval))

    def start(self) -> None:
        """From now on."""
        for looping, interval in self._calls:
            looping.start(interval, now=False)

    def stop(self) -> None:
        """No more."""
        for looping, _ in self._calls:
            if looping.running:
                looping.stop()

    def _guarded(self, sweep: Any) -> None:
        try:
            sweep()
        except Exception:  # noqa: BLE001  # one bad entry must not end all sweeps
            self._counters.errors_internal += 1
            self._log.failure("A sweep failed: a bug, please report it")

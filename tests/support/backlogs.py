"""What waits for clients that do not read, with the policies that a test gives."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

from kraftek.contract.accounts import Accounts
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import EventPolicy, Limits
from kraftek.edge.backlogs import Backlogs
from kraftek.edge.policies import Policies

__all__ = ["make_backlogs"]


def make_backlogs(
    clock: IReactorTime, counters: Counters, limits: Limits | None = None, events: tuple[EventPolicy, ...] = ()
) -> Backlogs:
    """Those of a process with these limits and policies."""
    limits = limits or Limits()
    return Backlogs(
        Policies(events), Accounts(), counters, clock, limit=limits.unsent_bytes, patience=limits.ping_timeout
    )

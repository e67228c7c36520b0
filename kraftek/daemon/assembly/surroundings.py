"""What the parts of a gateway stand on. Made by :mod:`kraftek.daemon.lifecycle`, and by tests of fakes."""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import Struct
from twisted.internet.interfaces import IReactorTime

from kraftek.contract.accounts import Accounts
from kraftek.contract.interfaces import IAccess, IBus
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Config
from kraftek.core.registry import ServiceRegistry
from kraftek.edge.proxies import Proxies

__all__ = ["Surroundings"]


class Surroundings(Struct, kw_only=True, frozen=True):
    """One value, so that what a part needs is handed on by name, and a further one is a field here.

    ``clock`` measures time; ``now`` returns Unix seconds.
    """

    config: Config
    gateway_id: str
    registry: ServiceRegistry
    bus: IBus
    access: IAccess
    counters: Counters
    accounts: Accounts
    clock: IReactorTime
    iteration: Iteration
    now: Callable[[], float] = time.time

    @property
    def proxies(self) -> Proxies:
        """Those that the configuration says are in front of the gateway."""
        config = self.config
        return Proxies(
            config.forwarded_for, proxy_protocol=any(place.startswith("haproxy:") for place in config.listen)
        )

"""A gateway process of the simulation: the daemon's own assembly, on virtual time and a simulated network.

It starts and stops in the order in which :mod:`kraftek.daemon.lifecycle` does; only the ports and the auth service's
HTTP are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from math import inf
from types import SimpleNamespace
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred
from zope.interface import implementer

from kraftek.bus import RedisBus
from kraftek.contract.accounts import Accounts
from kraftek.contract.interfaces import IAccessChecker, IBusListener
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters
from kraftek.contract.names import INVALIDATION
from kraftek.contract.settings import Config
from kraftek.core.access.cache import AccessCache
from kraftek.core.client_drain import ClientDrain
from kraftek.core.registry import ServiceRegistry
from kraftek.daemon.assembly import Core, Surroundings
from kraftek.daemon.lifecycle import Daemon
from kraftek.daemon.sweeps import core_sweeps
from kraftek.edge.dialects.native import NativeDialect
from tests.simulation.network import COMMANDS, SUBSCRIBER, Link, Network
from tests.simulation.virtual_time import Process, VirtualTime

__all__ = ["GatewayProcess"]


@implementer(IBusListener)
class GatewayProcess:
    """One gateway. ``heard`` is called with every invalidation that its bus hears.

    ``up_since``: when its bus came up, or ``None``. ``unfollowed_at``: when Redis forgot what it listens to.
    """

    def __init__(
        self,
        name: str,
        time: VirtualTime,
        network: Network,
        config: Config,
        checker: Callable[[Process], IAccessChecker],
        heard: Callable[[GatewayProcess, bytes], None],
    ) -> None:
        self.name = name
        self.time = time
        self.network = network
        self.config = config
        self.lag = {SUBSCRIBER: 0.0, COMMANDS: 0.0}
        self.up_since: float | None = None
        self.unfollowed_at = -inf
        self.started_at = self._disturbed_at = time.now
        self.stopping = False
        self.dialect = NativeDialect()
        self.process = Process(time, name, network.connect)
        self.counters = Counters()
        self._start(checker, heard)

    def _start(
        self, checker: Callable[[Process], IAccessChecker], heard: Callable[[GatewayProcess, bytes], None]
    ) -> None:
        config, process, counters, now = self.config, self.process, self.counters, self.time.wall
        iteration: Any = Iteration(process)
        registry = ServiceRegistry(config.services)
        self.bus = bus = RedisBus(process, config.redis, iteration, counters)
        access = AccessCache(checker(process), bus, config.auth, process, counters, now=now)
        self.core = core = Core(
            Surroundings(
                config=config,
                gateway_id=self.name,
                registry=registry,
                bus=bus,
                access=access,
                counters=counters,
                accounts=Accounts(),
                clock=process,
                iteration=iteration,
                now=now,
            )
        )
        bus.subscribe(INVALIDATION, lambda body: heard(self, body))
        bus.add_listener(self)
        bus.startService()
        by_interval: dict[float, list[Callable[[], None]]] = {}
        for sweep, interval in core_sweeps(core):
            by_interval.setdefault(interval, []).append(sweep)
        for interval, sweeps in by_interval.items():
            process.callLater(interval, self._sweep, interval, sweeps)

    def _sweep(self, interval: float, sweeps: list[Callable[[], None]]) -> None:
        if self.process.dead or not self.bus.running:
            return
        self.process.callLater(interval, self._sweep, interval, sweeps)
        for sweep in sweeps:
            sweep()

    @property
    def accepts(self) -> bool:
        """Whether clients can connect."""
        return not (self.process.dead or self.stopping)

    @property
    def follows_users(self) -> bool:
        """Whether clients get the history of their users here."""
        return bool(self.config.users.history)

    def follows(self, room: str) -> bool:
        """Whether clients get the history of that room here."""
        return self.core.following.keeps(room)

    @property
    def lives(self) -> bool:
        """Whether it does anything at present."""
        return not (self.process.dead or self.process.paused)

    # IBusListener

    def bus_up(self) -> None:
        self.up_since = self.time.now
        self.disturbed()

    def bus_down(self) -> None:
        self.up_since = None
        self.disturbed()

    def epoch_changed(self) -> None:
        self.disturbed()

    def disturbed(self) -> None:
        """Something was wrong until now."""
        self._disturbed_at = self.time.now

    @property
    def undisturbed_since(self) -> float:
        """Since when nothing is wrong with it."""
        deaf = any(link.deaf for kind in (COMMANDS, SUBSCRIBER) for link in self.links(kind))
        return self.time.now if deaf or self.process.paused else self._disturbed_at

    # What happens to it

    def links(self, kind: str) -> list[Link]:
        """Its connections to Redis of that kind."""
        return self.network.of(self.process, kind)

    def kill(self) -> None:
        """The process dies, with part of what it was writing."""
        self.disturbed()
        self.process.dead = True
        for link in [*self.links(COMMANDS), *self.links(SUBSCRIBER)]:
            link.cut(1.0)

    def stop(self) -> None:
        """SIGTERM: as ``Daemon._stop`` has it."""
        self.stopping = True
        self.process.callLater(0, lambda: Deferred.fromCoroutine(self._stop()))

    async def _stop(self) -> None:
        core = self.core
        await ClientDrain(core.roster, core.requests, self.process).begin(
            self.config.drain.seconds, "the gateway stops"
        )
        with suppress(defer.TimeoutError):
            await Deferred.fromCoroutine(core.membership.reconciliation.finish()).addTimeout(6.0, self.process)
        if self.bus.running:
            with suppress(defer.TimeoutError):
                await self._farewell().addTimeout(3.0, self.process)
        await self.bus.stopService()
        self.disturbed()
        self.process.dead = True

    def _farewell(self) -> Deferred[None]:
        """The daemon's own."""
        daemon: Any = SimpleNamespace(_config=self.config)
        return Deferred.fromCoroutine(Daemon._farewell(daemon, self.core, self.bus))

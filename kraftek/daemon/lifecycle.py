"""The daemon's life: start, sweeps, stop. Made by :mod:`kraftek.daemon.tap`, of :mod:`kraftek.daemon.assembly`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec.structs import replace
from twisted.application.service import IService, Service
from twisted.internet import defer
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.bus import RedisBus, RedisError
from kraftek.bus.embedded import EmbeddedRedis
from kraftek.bus.rights import needs_of
from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import ConfigError, NotPublished
from kraftek.contract.interfaces import IAccess
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters, RefusalReason
from kraftek.contract.names import new_gateway_id, reply_channel
from kraftek.contract.readiness import Readiness
from kraftek.contract.redis_url import redis_address
from kraftek.contract.settings import Config, Redis
from kraftek.core.registry import ServiceRegistry
from kraftek.daemon.assembly import Core, Edge, Surroundings, operator_of
from kraftek.daemon.checkers import Checkers
from kraftek.daemon.demo import NotesService
from kraftek.daemon.draining import Draining, end
from kraftek.daemon.first_contact import FirstContact
from kraftek.daemon.gauges import gauges_of
from kraftek.daemon.listening import Certificates
from kraftek.daemon.local_services import LocalServices
from kraftek.daemon.memory import MemoryCeiling
from kraftek.daemon.own_process import OwnProcess
from kraftek.daemon.pulse import Pulse
from kraftek.daemon.reload import Reload
from kraftek.daemon.signals import Signals
from kraftek.daemon.succession import Succession
from kraftek.daemon.sweeps import SWEEP_INTERVAL, Sweeps, core_sweeps, edge_sweeps
from kraftek.daemon.systemd import EXTENSION, more_time, notify, reloading, watchdog_interval
from kraftek.fastpath import speed_up
from kraftek.service.processor import EventProcessor

__all__ = ["Certificates", "Daemon", "make_gateway"]

_Places = tuple[list[IStreamServerEndpoint], list[IStreamServerEndpoint]]
"""Where clients connect, and where the operator does."""

_FAREWELL = 3.0
"""Seconds that Redis has for the last entries of the stream of services' events, and for its last answers, when the
daemon stops."""

_CLOSING = 1.0
"""Seconds that clients have to answer their close frames when the daemon stops: some round trips across the world. The
rest of the stop goes on meanwhile. The auth service has as long to see its connections closed."""

_CLEARANCE = 6.0
"""Seconds to take the entries of all clients out of the room cache when the daemon stops: one for 10,000 of them, on
two slow cores that Redis shares. What is left the other gateways remove."""


def make_gateway(
    reactor: Any,
    config: Config,
    *,
    read: Callable[[], Config] | None = None,
    fastpath: bool = True,
    succession: Succession | None = None,
) -> IService:
    """The gateway as a Twisted service, in a process of its own. ``read`` reads the configuration again. ``fastpath``:
    what reaches past the public surface of libraries is used. ``succession``: what other versions gave and get.
    """
    return Daemon(reactor, config, read=read, fastpath=fastpath, succession=succession)


class Daemon(Service):
    """Starts everything from Redis up to the listening ports, and stops it the other way round.

    ``registry`` may be changed at run time. ``ports`` are what it listens on, once it has started, and
    ``operator_ports`` where the operator is answered.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: Config,
        *,
        read: Callable[[], Config] | None = None,
        fastpath: bool = True,
        succession: Succession | None = None,
        services: Sequence[EventProcessor] = (),
        own_process: bool = True,
    ) -> None:
        self.registry = ServiceRegistry(config.services)
        self.counters = Counters()
        self.accounts = Accounts()
        self.ports: list[IListeningPort] = []
        self.operator_ports: list[IListeningPort] = []
        self._reactor = reactor
        self._config = config
        self._read = read or (lambda: config)
        self._fastpath = fastpath
        self._processors = services
        self._places: Deferred[_Places] | None = None
        self._starting: Deferred[None] | None = None
        self._embedded: EmbeddedRedis | None = None
        self._beside: list[NotesService | LocalServices] = []
        self._bus: RedisBus | None = None
        self._checkers: Checkers | None = None
        self._core: Core | None = None
        self._edge: Edge | None = None
        self._readiness: Readiness | None = None
        self._sweeps = Sweeps(reactor, self.counters)
        self._draining = draining = Draining(reactor, config)
        self._succession = succession or Succession(reactor, None, None)
        does = self.reload, draining.hurry, lambda: not self.running, self._succession.begin
        self._process = OwnProcess(reactor, Signals(reactor, *does)) if own_process else None
        self._certificates = Certificates()
        self._pulse = Pulse(reactor, watchdog_interval(os.environ, os.getpid()))
        self._reloading: Reload | None = None

    def privilegedStartService(self) -> None:
        """Bind ports and read keys while that is allowed: after this twistd gives up its rights (``--uid``)."""
        super().privilegedStartService()
        if self._process is not None:
            self._process.begin()
        self._places = defer.execute(self._bind)

    def startService(self) -> None:
        super().startService()
        if self._places is None:  # twist has no privileges to give up
            self.privilegedStartService()
        self._pulse.start()
        self._starting = Deferred.fromCoroutine(self._start()).addErrback(self._cannot_start)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        self._succession.end()
        notify("STOPPING=1")
        if self._starting is not None:
            self._starting.cancel()
        return Deferred.fromCoroutine(self._stop())

    async def _start(self) -> None:
        config, reactor, counters = self._config, self._reactor, self.counters
        places, operator_places = await (self._places or defer.execute(self._bind))
        redis = await self._redis()
        iteration = Iteration(reactor)
        if self._fastpath:
            speed_up(reactor, iteration)
        contact = FirstContact(reactor, replica_for_ever=bool(redis_address(redis.url).sentinels))
        self._bus = bus = self._make_bus(redis, iteration, contact)
        self._checkers = checkers = Checkers(reactor, config, bus, counters)
        given = self._surroundings(bus, iteration, checkers.access)
        self._core = core = self._make_core(given, bus)
        self._readiness = readiness = Readiness(bus)
        self._edge = edge = Edge(given, core, reactor, fastpath=self._fastpath)
        edge.site.ready = lambda: readiness.ready
        if not self.registry.services() and not config.auto_register:
            self._log.warn("No services are registered: every event will be answered INVALID_EVENT.")
        turn_away = partial(edge.site.turn_away, why=RefusalReason.MEMORY)
        ceiling = MemoryCeiling(config.limits, self.accounts, counters, reactor, readiness, turn_away)
        gauges = gauges_of(core, bus, edge.connections, edge.backlogs, edge.clients.turns, self._pulse.lag)
        operator = operator_of(given, gauges, readiness, reactor)

        links = self._succession.take_over(core, edge, bus)
        bus.startService()
        # Before Redis is available, so that its absence can be seen at the operator's port.
        for endpoint in operator_places:
            self.operator_ports.append(await self._listen(endpoint, operator, "Answering the operator on {where}"))
        bus.add_listener(contact)
        await contact.made(bus.server_name)
        if config.demo:
            self._beside.append(NotesService(reactor, redis.url, redis.prefix))
            self._beside[-1].startService()
        self._sweeps.add(*core_sweeps(core), *edge_sweeps(edge), (ceiling.sweep, SWEEP_INTERVAL))
        own_sweeps = () if self._process is None else self._process.sweeps(core.roster)
        self._sweeps.add((checkers.sweep, SWEEP_INTERVAL), *own_sweeps)
        self._sweeps.start()
        core.service_events.begin()
        for endpoint in places:
            port = await self._listen(endpoint, edge.site, "Listening on {where}")
            edge.connections.accept_from(port)
            self.ports.append(port)
        for link in links:
            link.thaw()
        if config.demo:
            _show_board(self._log, self.ports)
        elif self._embedded is None:
            self._succession.prepare(config, core, edge, bus, iteration, self._sweeps, self.ports, self.operator_ports)
        self._reloading = Reload(config, self.registry, self._certificates, core, edge, operator, checkers)
        self._log.info("Gateway {gateway_id} is ready", gateway_id=core.gateway_id)
        notify("READY=1")

    def reload(self) -> None:
        """Read the configuration again. Whatever is wrong with it, the gateway goes on with what it has."""
        if self._reloading is None or not self.running:
            self._log.warn("Not reloaded: the gateway starts or stops")
            return
        reloading()
        try:
            self._reloading.take(self._read())
        except ConfigError as error:
            for mistake in error.mistakes:
                self._log.error("Not reloaded: {mistake}", mistake=mistake)
        else:
            self._log.info("Reloaded")
        notify("READY=1")

    def _bind(self) -> _Places:
        bound = partial(self._succession.endpoints, certificates=self._certificates)
        return bound(self._config.listen), bound(self._config.operator.listen)

    async def _redis(self) -> Redis:
        redis = self._config.redis
        if redis.url != "embedded:":
            return redis
        self._embedded = EmbeddedRedis(self._reactor)
        url = await self._embedded.start()
        self._embedded.died.addCallback(self._embedded_died)
        return replace(redis, url=url)

    def _make_bus(self, redis: Redis, iteration: Iteration, contact: FirstContact) -> RedisBus:
        return RedisBus(
            self._reactor,
            redis,
            iteration,
            self.counters,
            accounts=self.accounts,
            unsuitable=contact.unsuitable,
            needs=needs_of(self._config),
        )

    def _surroundings(self, bus: RedisBus, iteration: Iteration, access: IAccess) -> Surroundings:
        return Surroundings(
            config=self._config,
            gateway_id=self._succession.gateway_id or new_gateway_id(),
            registry=self.registry,
            bus=bus,
            access=access,
            counters=self.counters,
            accounts=self.accounts,
            clock=self._reactor,
            iteration=iteration,
        )

    def _make_core(self, given: Surroundings, bus: RedisBus) -> Core:
        local = LocalServices(self._reactor, self._config, self._processors, bus, given.gateway_id)
        core = Core(given, dispatch=local.dispatch(self.registry, self.accounts))
        local.deliver = core.deliveries.received
        local.startService()
        self._beside.append(local)
        return core

    async def _stop(self) -> None:
        extending = LoopingCall(more_time)
        extending.clock = self._reactor
        extending.start(EXTENSION)
        await self._draining.drain(self.ports, self._readiness, self._core, self._edge)
        closed: Deferred[None] | None = None
        if self._core is not None and self._edge is not None:
            closed = self._edge.clients.closings.over().addTimeout(_CLOSING, self._reactor)
            await self._bounded(self._core.service_events.end(), _FAREWELL)
        for service in self._beside:
            await service.stopService()
        if self._core is not None:
            await self._bounded(Deferred.fromCoroutine(self._core.membership.reconciliation.finish()), _CLEARANCE)
        # Until here its lease is renewed, or other gateways would clean up after it.
        self._sweeps.stop()
        if self._core is not None and self._bus is not None and self._bus.running:
            await self._bounded(Deferred.fromCoroutine(self._farewell(self._core, self._bus)), _FAREWELL)
            await self._bus.stopService()
        if self._embedded is not None:
            await self._embedded.stop()
        if self._checkers is not None:
            await self._bounded(self._checkers.close(), _CLOSING)
        if closed is not None:
            with suppress(defer.TimeoutError):
                await closed
        await end([*self.ports, *self.operator_ports])
        extending.stop()
        self._pulse.stop()

    async def _farewell(self, core: Core, bus: RedisBus) -> None:
        """Receive the last answers to requests, and return when Redis has processed everything that was sent to it.

        Of an answer that is published later its service learns that nobody got it, and publishes it to all gateways.
        """
        try:
            for channel in (reply_channel(core.gateway_id), self._config.redis.broadcast):
                await bus.unsubscribe(channel)
        finally:
            for ends in (core.requests.store_answers, core.receipts.stop, core.following.stop):
                ends()
            core.leases.release()
        # PING is refused while Redis cannot save its data: any answer will do.
        with suppress(NotPublished, RedisError):
            await bus.call("PING")

    async def _bounded(self, done: Deferred[None], seconds: float) -> None:
        """Return when it is done, or when so many seconds have passed."""
        with suppress(defer.TimeoutError):
            await done.addTimeout(seconds, self._reactor)

    async def _listen(self, endpoint: IStreamServerEndpoint, factory: IProtocolFactory, line: str) -> IListeningPort:
        port = await endpoint.listen(factory)
        address: Any = port.getHost()
        path = getattr(address, "name", None)
        self._log.info(line, where=f"{address.host}:{address.port}" if path is None else os.fsdecode(path))
        return port

    def _cannot_start(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        error = failure.value
        mistakes = error.mistakes if isinstance(error, ConfigError) else None
        self._succession.failed(mistakes or [failure.getErrorMessage()])
        self._fail(ConfigError.EXIT_STATUS if mistakes else 1)

    def _embedded_died(self, error: Exception) -> None:
        self._log.critical("{error}", error=error)
        self._fail()

    def _fail(self, status: int = 1) -> None:
        if self._process is not None:
            self._process.leave_with(status)
        self._draining.hurry()
        self._reactor.callWhenRunning(self._reactor.stop)


def _show_board(log: Logger, ports: Sequence[IListeningPort]) -> None:
    for port in ports:
        address = port.getHost()
        if isinstance(address, IPv4Address | IPv6Address):
            log.info("The board is at http://localhost:{port}/", port=address.port)

"""The daemon's life: start, sweeps, stop. Made by :mod:`kraftek.daemon.tap`, of :mod:`kraftek.daemon.assembly`."""

from __future__ import annotations

import atexit
import faulthandler
import os
from collections.abc import Callable
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
from zope.interface import implementer

from kraftek.bus import RedisBus, RedisError
from kraftek.bus.embedded import EmbeddedRedis
from kraftek.bus.rights import needs_of
from kraftek.bus.server import UnsuitableServer
from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import ConfigError, NotPublished
from kraftek.contract.interfaces import IAccess, IBusListener
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters, RefusalReason
from kraftek.contract.names import new_gateway_id, reply_channel
from kraftek.contract.readiness import Readiness
from kraftek.contract.redis_url import redis_address
from kraftek.contract.settings import Config, Redis
from kraftek.core.access.cache import AccessCache
from kraftek.core.access.open import OpenAccess
from kraftek.core.registry import ServiceRegistry
from kraftek.core.rooms.room_cache import RedisRooms
from kraftek.daemon.assembly import SWEEP_INTERVAL, Core, Edge, core_of, edge_of, edge_sweeps_of, gauges_of, sweeps_of
from kraftek.daemon.demo import NotesService
from kraftek.daemon.draining import Draining, end
from kraftek.daemon.listening import Certificates, server_endpoint
from kraftek.daemon.memory import MemoryCeiling
from kraftek.daemon.operator import OperatorSite
from kraftek.daemon.pulse import Pulse
from kraftek.daemon.reload import Reload
from kraftek.daemon.signals import Signals
from kraftek.daemon.systemd import EXTENSION, more_time, notify, reloading, watchdog_interval
from kraftek.edge.auth_service import HttpChecker
from kraftek.edge.hosts import Hosts
from kraftek.fastpath import speed_up

__all__ = ["Daemon", "make_gateway"]

_Places = tuple[list[IStreamServerEndpoint], list[IStreamServerEndpoint]]
"""Where clients connect, and where the operator does."""

_REDIS_PATIENCE = 5.0
"""Seconds to wait for Redis before clients are accepted without it."""

_FAIL_OVER_PATIENCE = 30.0
"""Seconds to wait for a primary where a replica answers: a fail-over under way takes less. Who waits longer has a wrong
address."""

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
    reactor: Any, config: Config, *, read: Callable[[], Config] | None = None, fastpath: bool = True
) -> IService:
    """The gateway as a Twisted service. ``read`` reads the configuration again. ``fastpath``: what reaches past the
    public surface of libraries is used.
    """
    return Daemon(reactor, config, read=read, fastpath=fastpath)


class Daemon(Service):
    """Starts everything from Redis up to the listening ports, and stops it the other way round.

    ``registry`` may be changed at run time. ``ports`` are what it listens on, once it has started, and
    ``operator_ports`` where the operator is answered.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, config: Config, *, read: Callable[[], Config] | None = None, fastpath: bool = True
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
        self._places: Deferred[_Places] | None = None
        self._starting: Deferred[None] | None = None
        self._embedded: EmbeddedRedis | None = None
        self._notes: NotesService | None = None
        self._bus: RedisBus | None = None
        self._auth_service: HttpChecker | None = None
        self._core: Core | None = None
        self._edge: Edge | None = None
        self._readiness: Readiness | None = None
        self._sweeps: list[LoopingCall] = []
        self._draining = Draining(reactor, config)
        self._signals = Signals(reactor, self._reload, self._draining.hurry, lambda: not self.running)
        self._certificates = Certificates()
        self._pulse = Pulse(reactor, watchdog_interval(os.environ, os.getpid()))
        self._reloading: Reload | None = None

    def privilegedStartService(self) -> None:
        """Bind ports and read keys while that is allowed: after this twistd gives up its rights (``--uid``)."""
        super().privilegedStartService()
        self._signals.install_early()
        faulthandler.enable(2)  # the watchdog ends a process that hangs with SIGABRT: where that was is printed
        self._places = defer.execute(self._bind)

    def startService(self) -> None:
        super().startService()
        self._pulse.start()
        self._reactor.callWhenRunning(self._signals.install)
        self._starting = Deferred.fromCoroutine(self._start())
        self._starting.addErrback(self._cannot_start)

    def stopService(self) -> Deferred[None]:
        super().stopService()
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
        contact = _FirstContact(reactor, replica_for_ever=bool(redis_address(redis.url).sentinels))
        self._bus = bus = self._make_bus(redis, iteration, contact)
        gateway_id = new_gateway_id()
        self._core = core = core_of(
            config,
            gateway_id=gateway_id,
            registry=self.registry,
            bus=bus,
            access=self._access(bus),
            rooms=RedisRooms(bus, self.registry, gateway_id, bus.channel_name(reply_channel(gateway_id))),
            counters=counters,
            accounts=self.accounts,
            clock=reactor,
            iteration=iteration,
        )
        self._readiness = readiness = Readiness(bus)
        self._edge = edge = edge_of(config, core, iteration, counters, reactor, fastpath=self._fastpath)
        edge.site.ready = lambda: readiness.ready
        if not self.registry.services():
            self._log.warn("No services are registered: every event will be answered INVALID_EVENT.")
        turn_away = partial(edge.site.turn_away, why=RefusalReason.MEMORY)
        ceiling = MemoryCeiling(config.limits, self.accounts, counters, reactor, readiness, turn_away)
        gauges = gauges_of(core, bus, edge.connections, edge.backlogs, edge.clients.turns, self._pulse.lag)
        operator = OperatorSite(reactor, Hosts(config.hosts, lenient=True), gateway_id, counters, gauges, readiness)

        bus.startService()
        # Before Redis is available, so that its absence can be seen at the operator's port.
        for endpoint in operator_places:
            self.operator_ports.append(await self._listen(endpoint, operator, "Answering the operator on {where}"))
        bus.add_listener(contact)
        await contact.made(bus.server_name)
        if config.demo:
            self._notes = NotesService(reactor, redis.url, redis.prefix)
            self._notes.startService()
        self._sweep(core, edge, ceiling)
        core.service_events.begin()
        for endpoint in places:
            port = await self._listen(endpoint, edge.site, "Listening on {where}")
            edge.connections.accept_from(port)
            self.ports.append(port)
        if config.demo:
            self._show_board()
        self._reloading = Reload(config, self.registry, self._certificates, core, edge, operator, self._auth_service)
        self._log.info("Gateway {gateway_id} is ready", gateway_id=gateway_id)
        notify("READY=1")

    def _reload(self) -> None:
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
        listen = self._config.listen, self._config.operator.listen
        clients, operator = (
            [server_endpoint(self._reactor, text, self._certificates) for text in texts] for texts in listen
        )
        return clients, operator

    async def _redis(self) -> Redis:
        redis = self._config.redis
        if redis.url != "embedded:":
            return redis
        self._embedded = EmbeddedRedis(self._reactor)
        url = await self._embedded.start()
        self._embedded.died.addCallback(self._embedded_died)
        return replace(redis, url=url)

    def _make_bus(self, redis: Redis, iteration: Iteration, contact: _FirstContact) -> RedisBus:
        return RedisBus(
            self._reactor,
            redis,
            iteration,
            self.counters,
            accounts=self.accounts,
            unsuitable=contact.unsuitable,
            needs=needs_of(self._config),
        )

    def _access(self, bus: RedisBus) -> IAccess:
        auth = self._config.auth
        if auth.check == "open":
            self._log.warn("auth is open: every token is let in, as the user it names. For development only.")
            return OpenAccess(bus)
        self._auth_service = HttpChecker(self._reactor, auth)
        return AccessCache(self._auth_service, bus, auth, self._reactor, self.counters)

    def _sweep(self, core: Core, edge: Edge, ceiling: MemoryCeiling) -> None:
        for sweep, interval in (*sweeps_of(core), *edge_sweeps_of(edge), (ceiling.sweep, SWEEP_INTERVAL)):
            looping = LoopingCall(self._guarded, sweep)
            looping.clock = self._reactor
            looping.start(interval, now=False)
            self._sweeps.append(looping)

    async def _stop(self) -> None:
        extending = LoopingCall(more_time)
        extending.clock = self._reactor
        extending.start(EXTENSION)
        await self._draining.drain(self.ports, self._readiness, self._core, self._edge)
        closed: Deferred[None] | None = None
        if self._core is not None and self._edge is not None:
            closed = self._edge.clients.closings.over().addTimeout(_CLOSING, self._reactor)
            await self._bounded(self._core.service_events.end(), _FAREWELL)
        if self._notes is not None and self._notes.running:
            await self._notes.stopService()
        if self._core is not None:
            await self._bounded(Deferred.fromCoroutine(self._core.membership.reconciliation.finish()), _CLEARANCE)
        # Until here its lease is renewed, or other gateways would clean up after it.
        for sweep in self._sweeps:
            sweep.stop()
        if self._core is not None and self._bus is not None and self._bus.running:
            await self._bounded(Deferred.fromCoroutine(self._farewell(self._core, self._bus)), _FAREWELL)
            await self._bus.stopService()
        if self._embedded is not None:
            await self._embedded.stop()
        if self._auth_service is not None:
            await self._bounded(self._auth_service.close(), _CLOSING)
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
            core.requests.store_answers()
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

    def _show_board(self) -> None:
        for port in self.ports:
            address = port.getHost()
            if isinstance(address, IPv4Address | IPv6Address):
                self._log.info("The board is at http://localhost:{port}/", port=address.port)

    def _guarded(self, sweep: Any) -> None:
        try:
            sweep()
        except Exception:  # noqa: BLE001  # one bad entry must not end all sweeps
            self.counters.errors_internal += 1
            self._log.failure("A sweep failed: a bug, please report it")

    def _cannot_start(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        error = failure.value
        mistakes = error.mistakes if isinstance(error, ConfigError) else None
        for reason in mistakes or [failure.getErrorMessage()]:
            self._log.critical("Cannot start: {reason}", reason=reason)
        self._fail(ConfigError.EXIT_STATUS if mistakes else 1)

    def _embedded_died(self, error: Exception) -> None:
        self._log.critical("{error}", error=error)
        self._fail()

    def _fail(self, status: int = 1) -> None:
        # twistd leaves with 0 when a service fails after its start, and systemd would take that for success. Last
        # registered is first called: the pid file has been removed by then.
        atexit.register(os._exit, status)
        self._draining.hurry()
        self._reactor.callWhenRunning(self._reactor.stop)


@implementer(IBusListener)
class _FirstContact:
    """The start waits for Redis. ``replica_for_ever``: a replica is no reason to end, as Sentinel will name another
    server.
    """

    def __init__(self, reactor: Any, *, replica_for_ever: bool) -> None:
        self._reactor = reactor
        self._replica_for_ever = replica_for_ever
        self._wrong: UnsuitableServer | None = None
        self._over: Deferred[None] = Deferred()

    async def made(self, name: str) -> None:
        """Return when Redis is available, or after a time-out: clients then get ``SERVICE_UNAVAILABLE``.

        Raises ``UnsuitableServer`` when one answers that will not be suitable, or is not in time.
        """
        timers = [
            self._reactor.callLater(_REDIS_PATIENCE, self._late),
            self._reactor.callLater(_FAIL_OVER_PATIENCE, self._too_late),
        ]
        try:
            await self._over
        except UnsuitableServer as error:
            raise UnsuitableServer(f"{name}: {error}", lasting=error.lasting) from error
        finally:
            for timer in timers:
                if timer.active():
                    timer.cancel()

    def unsuitable(self, error: UnsuitableServer) -> None:
        """A server answered that cannot be used."""
        self._wrong = error
        if error.lasting:
            self._too_late()

    def bus_up(self) -> None:
        self._wrong = None
        self._late()

    def bus_down(self) -> None:
        pass

    def epoch_changed(self) -> None:
        pass

    def _late(self) -> None:
        if not self._over.called and (self._wrong is None or self._replica_for_ever):
            self._over.callback(None)

    def _too_late(self) -> None:
        if not self._over.called and self._wrong is not None:
            self._over.errback(self._wrong)

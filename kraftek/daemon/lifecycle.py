"""The daemon: the one place where everything is wired. Started by :mod:`kraftek.daemon.tap`."""

from __future__ import annotations

import atexit
import os
from contextlib import suppress
from typing import Any

from msgspec.structs import replace
from twisted.application.service import IService, Service
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.bus import RedisBus
from kraftek.bus.embedded import EmbeddedRedis
from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IAccess, IBusListener
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters, Gauges
from kraftek.contract.names import new_gateway_id, reply_channel
from kraftek.contract.settings import Config
from kraftek.core.access.cache import AccessCache
from kraftek.core.access.open import OpenAccess
from kraftek.core.admission import Admission
from kraftek.core.deliveries import Deliveries
from kraftek.core.dispatch import Dispatch
from kraftek.core.gateway import Gateway
from kraftek.core.registry import EventRouter, ServiceRegistry
from kraftek.core.requests import Requests
from kraftek.core.rooms.leases import LOOK_INTERVAL, RENEW_INTERVAL, Leases
from kraftek.core.rooms.room_cache import RedisRooms
from kraftek.core.roster import Roster
from kraftek.core.service_events import ServiceEvents
from kraftek.daemon.demo import BOARD, NotesService
from kraftek.daemon.listening import server_endpoint
from kraftek.daemon.operator import operator_site
from kraftek.daemon.systemd import notify
from kraftek.edge.addresses import Addresses
from kraftek.edge.auth_service import HttpChecker
from kraftek.edge.dialects.native import SUBPROTOCOL, NativeDialect
from kraftek.edge.dialects.socketio_client import SocketIODialect
from kraftek.edge.dialects.socketio_packets import SocketSettings
from kraftek.edge.engineio.clients import EngineClients
from kraftek.edge.engineio.connection import EngineSettings
from kraftek.edge.engineio.polling import Polling
from kraftek.edge.origins import Origins
from kraftek.edge.public_site import public_site
from kraftek.edge.websocket.factory import ClientFactory, max_connections
from kraftek.fastpath import drive

__all__ = ["Daemon", "make_gateway"]

_SWEEP_INTERVAL = 0.25
"""Seconds between two looks at what is due: time-outs are that exact."""

_TRIM_INTERVAL = 1.0
"""Seconds between two looks at services' streams."""

_REDIS_PATIENCE = 5.0
"""Seconds to wait for Redis before clients are accepted without it."""

_FAREWELL = 3.0
"""Seconds that Redis has for each of its last answers when the daemon stops."""

_CLOSING = 1.0
"""Seconds that clients have to answer their close frames when the daemon stops: some round trips across the world. The
rest of the stop goes on meanwhile. The auth service has as long to see its connections closed."""

_STOPS = "the gateway stops"
"""What clients are told then, with 1001 or 503."""

_CLEARANCE = 6.0
"""Seconds to take the entries of all clients out of the room cache when the daemon stops: one for 10,000 of them, on
two slow cores that Redis shares. What is left the other gateways remove. systemd waits for 15 seconds in all."""


def make_gateway(reactor: Any, config: Config) -> IService:
    """The gateway as a Twisted service."""
    return Daemon(reactor, config)


class Daemon(Service):
    """Starts everything from Redis up to the listening ports, and stops it the other way round.

    ``registry`` may be changed at run time. ``ports`` are what it listens on, once it has started, and
    ``operator_ports`` where the operator is answered.
    """

    _log = Logger()

    def __init__(self, reactor: Any, config: Config) -> None:
        self.registry = ServiceRegistry(config.services)
        self.counters = Counters()
        self.ports: list[IListeningPort] = []
        self.operator_ports: list[IListeningPort] = []
        self._reactor = reactor
        self._config = config
        self._starting: Deferred[None] | None = None
        self._embedded: EmbeddedRedis | None = None
        self._notes: NotesService | None = None
        self._bus: RedisBus | None = None
        self._auth_service: HttpChecker | None = None
        self._gateway: Gateway | None = None
        self._clients: ClientFactory | None = None
        self._admission: Admission | None = None
        self._requests: Requests | None = None
        self._leases: Leases | None = None
        self._service_events: ServiceEvents | None = None
        self._sweeps: list[LoopingCall] = []

    def startService(self) -> None:
        super().startService()
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

        redis = config.redis
        if redis.url == "embedded:":
            self._embedded = EmbeddedRedis(reactor)
            redis = replace(redis, url=await self._embedded.start())
            self._embedded.died.addCallback(self._embedded_died)

        iteration = Iteration(reactor)
        drive(reactor, iteration)
        self._bus = bus = RedisBus(reactor, redis, iteration, counters)
        access: IAccess
        if config.auth.check == "open":
            access = OpenAccess(bus)
        else:
            self._auth_service = HttpChecker(reactor, config.auth)
            access = AccessCache(self._auth_service, bus, config.auth, reactor, counters)
        gateway_id = new_gateway_id()
        replies = reply_channel(gateway_id)
        rooms = RedisRooms(bus, self.registry, gateway_id, bus.channel_name(replies))
        roster = Roster()
        self._admission = admission = Admission(
            access,
            rooms,
            bus,
            roster,
            config.limits,
            counters,
            reactor,
            single=config.sessions == "single",
        )
        self._leases = leases = Leases(bus, rooms, gateway_id, admission.restore, counters)
        router = EventRouter(self.registry)
        dispatch = Dispatch(self.registry, bus)
        self._requests = requests = Requests(dispatch, bus, gateway_id, config.limits, counters, reactor)
        self._gateway = gateway = Gateway(
            gateway_id,
            router,
            dispatch,
            requests,
            bus.channel_name(replies),
            admission,
            roster,
            config.limits,
            counters,
        )
        broadcasts = Deliveries(roster, admission, requests, counters, reactor)
        service_events = ServiceEvents(gateway_id, self.registry, router, dispatch, bus, counters)
        bus.subscribe(redis.broadcast, broadcasts.received)
        bus.subscribe(replies, broadcasts.received)

        native = NativeDialect()
        origins = Origins(config.origins)
        addresses = Addresses(config.limits.connections_per_address, config.forwarded_for)
        socketio = config.socketio
        packets = SocketSettings(max_attachment_bytes=socketio.max_payload)
        engine_clients = EngineClients(
            reactor,
            iteration,
            counters,
            EngineSettings(
                ping_interval=socketio.ping_interval,
                ping_timeout=socketio.ping_timeout,
                max_payload=socketio.max_payload,
                max_queued_bytes=config.limits.unsent_bytes,
            ),
            lambda client: gateway.open(client, SocketIODialect(client, packets)),
            addresses,
            max_connections(config.limits),
        )
        self._clients = clients = ClientFactory(
            reactor,
            gateway.open,
            {SUBPROTOCOL: lambda: native},
            public_site(
                reactor,
                BOARD if config.demo else None,
                Polling(socketio.path, engine_clients, origins, addresses) if socketio.enabled else None,
            ),
            config.limits,
            origins,
            addresses,
            iteration,
            counters,
            compression=config.compression,
            engine_path=socketio.path,
            engine_clients=engine_clients if socketio.enabled else None,
        )
        if config.auth.check == "open":
            self._log.warn("auth is open: every token is let in, as the user it names. For development only.")
        if not self.registry.services():
            self._log.warn("No services are registered: every event will be answered INVALID_EVENT.")

        gauges = Gauges()
        gauges.add("sockets", "Clients connected", lambda: len(roster))
        gauges.add("rooms", "Rooms with a client of this process in them", lambda: roster.rooms)
        gauges.add("redis_up", "Whether Redis is there", lambda: bus.available)
        gauges.add("requests", "Requests of this process's clients that wait for their answers", lambda: len(requests))
        gauges.add("waiting", "Events that wait in the streams of a service", lambda: dispatch.waiting, "service")
        operator = operator_site(reactor, gateway_id, counters, gauges, bus)

        bus.startService()
        # Before Redis is there, or its absence could not be asked about.
        for endpoint in config.operator.listen:
            self.operator_ports.append(await self._listen(endpoint, operator, "Answering the operator on {where}"))
        await _ready(bus, reactor)
        if config.demo:
            self._notes = NotesService(reactor, redis.url, redis.prefix)
            self._notes.startService()
        for sweep, interval in (
            (admission.sweep, _SWEEP_INTERVAL),
            (requests.sweep, _SWEEP_INTERVAL),
            (clients.heartbeat.sweep, _SWEEP_INTERVAL),
            (engine_clients.sweep, _SWEEP_INTERVAL),
            (dispatch.sweep, _TRIM_INTERVAL),
            (service_events.sweep, _SWEEP_INTERVAL),
            (leases.renew, RENEW_INTERVAL),
            (leases.look, LOOK_INTERVAL),
        ):
            looping = LoopingCall(self._guarded, sweep)
            looping.clock = reactor
            looping.start(interval, now=False)
            self._sweeps.append(looping)
        service_events.begin()
        self._service_events = service_events
        for endpoint in config.listen:
            self.ports.append(await self._listen(endpoint, clients, "Listening on {where}"))
        self._log.info("Gateway {gateway_id} is ready", gateway_id=gateway_id)
        notify("READY=1")

    async def _stop(self) -> None:
        await DeferredList([maybeDeferred(port.stopListening) for port in (*self.ports, *self.operator_ports)])
        closed: Deferred[None] | None = None
        if self._gateway is not None and self._clients is not None:
            self._clients.turn_away(_STOPS)
            self._gateway.close_all(1001, _STOPS)
            closed = self._clients.closings.over().addTimeout(_CLOSING, self._reactor)
        if self._service_events is not None:
            with suppress(defer.TimeoutError):
                await self._service_events.end().addTimeout(_FAREWELL, self._reactor)
        if self._notes is not None and self._notes.running:
            await self._notes.stopService()
        if self._admission is not None:
            with suppress(defer.TimeoutError):
                await Deferred.fromCoroutine(self._admission.finish()).addTimeout(_CLEARANCE, self._reactor)
        # Until here it is alive to the others, who would clean up after it.
        for sweep in self._sweeps:
            sweep.stop()
        if self._requests is not None:
            self._requests.keep()
        if self._leases is not None:
            self._leases.release()
        if self._bus is not None and self._bus.running:
            await _farewell(self._bus, self._reactor)
            await self._bus.stopService()
        if self._embedded is not None:
            await self._embedded.stop()
        if self._auth_service is not None:
            with suppress(defer.TimeoutError):
                await self._auth_service.close().addTimeout(_CLOSING, self._reactor)
        if closed is not None:
            with suppress(defer.TimeoutError):
                await closed

    async def _listen(self, endpoint: str, factory: IProtocolFactory, line: str) -> IListeningPort:
        port = await server_endpoint(self._reactor, endpoint).listen(factory)
        address: Any = port.getHost()
        self._log.info(line, where=getattr(address, "name", None) or f"{address.host}:{address.port}")
        return port

    def _guarded(self, sweep: Any) -> None:
        try:
            sweep()
        except Exception:  # noqa: BLE001  # one bad entry must not end all sweeps
            self.counters.errors_internal += 1
            self._log.failure("A sweep failed")

    def _cannot_start(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        self._log.critical("Cannot start: {reason}", reason=failure.getErrorMessage())
        self._fail()

    def _embedded_died(self, error: Exception) -> None:
        self._log.critical("{error}", error=error)
        self._fail()

    def _fail(self) -> None:
        # twistd leaves with 0 when a service fails after its start, and systemd would take that for success. Last
        # registered is first called: the pid file is gone by then.
        atexit.register(os._exit, 1)
        self._reactor.callWhenRunning(self._reactor.stop)


@implementer(IBusListener)
class _Up:
    def __init__(self) -> None:
        self.up: Deferred[None] = Deferred()

    def bus_up(self) -> None:
        if not self.up.called:
            self.up.callback(None)

    def bus_down(self) -> None:
        pass


async def _ready(bus: RedisBus, reactor: Any) -> None:
    """Return when Redis is there, or when there is no more patience: clients are then told that it is not."""
    listener = _Up()
    bus.add_listener(listener)
    try:
        await listener.up.addTimeout(_REDIS_PATIENCE, reactor)
    except defer.TimeoutError:
        Logger().warn("Redis is not there yet: clients are told SERVICE_UNAVAILABLE until it is.")


async def _farewell(bus: RedisBus, reactor: Any) -> None:
    """Return when Redis has taken all that was sent to it, or will not."""
    with suppress(NotPublished, defer.TimeoutError):
        await bus.call("PING").addTimeout(_FAREWELL, reactor)

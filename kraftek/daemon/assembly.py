"""What is made of what. The core is a function of a bus, access, settings and a clock, so that tests hand it fakes.

Called by :mod:`kraftek.daemon.lifecycle`, which starts, sweeps and stops what is made here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from msgspec import Struct
from twisted.internet.interfaces import IReactorTime

from kraftek.contract.accounts import Accounts
from kraftek.contract.fleet import Fleet
from kraftek.contract.interfaces import IAccess, IBus, IRooms, ISocketRecords, ITopicLogs
from kraftek.contract.iteration import Iteration
from kraftek.contract.json_text import JsonBounds
from kraftek.contract.metrics import Counters, Gauges
from kraftek.contract.names import SUBPROTOCOL, reply_channel
from kraftek.contract.order import Order
from kraftek.contract.readiness import Readiness
from kraftek.contract.registrations import published
from kraftek.contract.settings import Config
from kraftek.contract.turns import Turns
from kraftek.core.access_watch import AccessWatch
from kraftek.core.admission import Admission
from kraftek.core.budgets import Budgets
from kraftek.core.deliveries import Deliveries
from kraftek.core.dispatch import Dispatch
from kraftek.core.following import FOLLOW_INTERVAL, Following
from kraftek.core.gateway import Gateway
from kraftek.core.given_rooms import GivenRooms
from kraftek.core.history.log import TopicLogs
from kraftek.core.history.records import SocketRecords
from kraftek.core.history.rules import Rules
from kraftek.core.history_turns import HistoryTurns
from kraftek.core.membership import Membership
from kraftek.core.moving import CoreMove
from kraftek.core.ordering import Ordering
from kraftek.core.presence import Presence
from kraftek.core.recoverable import Recoverable
from kraftek.core.recovering import Recovering
from kraftek.core.registry import EventRouter, ServiceRegistry
from kraftek.core.requests import Requests
from kraftek.core.resuming import Resuming
from kraftek.core.rooms.leases import LOOK_INTERVAL, RENEW_INTERVAL, Leases
from kraftek.core.rooms.orphans import Orphans
from kraftek.core.roster import Roster
from kraftek.core.self_registrations import SelfRegistrations
from kraftek.core.service_events import ServiceEvents
from kraftek.daemon.demo import BOARD
from kraftek.daemon.open_files import connections_allowed
from kraftek.daemon.operator import OperatorSite
from kraftek.daemon.publish_requests import PublishRequests
from kraftek.daemon.token_file import token_of
from kraftek.edge.addresses import Addresses, owner
from kraftek.edge.backlogs import Backlogs
from kraftek.edge.connections import Connections
from kraftek.edge.dialects.native import NativeDialect
from kraftek.edge.dialects.socketio_client import SocketIOClient
from kraftek.edge.dialects.socketio_packets import SocketSettings
from kraftek.edge.engineio.clients import EngineClient, EngineClients
from kraftek.edge.engineio.connection import EngineSettings
from kraftek.edge.engineio.polling import Polling
from kraftek.edge.hosts import Hosts
from kraftek.edge.moving import EdgeMove, Open
from kraftek.edge.origins import Origins
from kraftek.edge.policies import Policies
from kraftek.edge.proxies import Proxies
from kraftek.edge.public_site import PublicSite, pages
from kraftek.edge.websocket.factory import ClientFactory

__all__ = ["SWEEP_INTERVAL", "Core", "Edge", "Sweep", "core_of", "edge_of", "edge_sweeps_of", "sweeps_of"]

SWEEP_INTERVAL = 0.25
"""Seconds between two looks at what is due: time-outs are that exact."""

_TRIM_INTERVAL = 1.0
"""Seconds between two looks at services' streams."""

Sweep = tuple[Callable[[], None], float]
"""Functions to call repeatedly, and the interval of each in seconds."""


class Core(Struct, kw_only=True, frozen=True):
    """The parts of ``kraftek.core``."""

    gateway_id: str
    accounts: Accounts
    roster: Roster
    admission: Admission
    access_watch: AccessWatch
    membership: Membership
    dispatch: Dispatch
    requests: Requests
    gateway: Gateway
    deliveries: Deliveries
    service_events: ServiceEvents
    leases: Leases
    orphans: Orphans
    self_registrations: SelfRegistrations
    move: CoreMove


class Edge(Struct, kw_only=True, frozen=True):
    """What clients connect to, at ``site``. Without Socket.IO ``engine_clients`` stay unused."""

    site: PublicSite
    connections: Connections
    clients: ClientFactory
    engine_clients: EngineClients
    backlogs: Backlogs
    move: EdgeMove


def core_of(
    config: Config,
    *,
    gateway_id: str,
    registry: ServiceRegistry,
    bus: IBus,
    access: IAccess,
    rooms: IRooms,
    counters: Counters,
    accounts: Accounts,
    clock: IReactorTime,
    iteration: Iteration,
    dispatch: Dispatch | None = None,
    logs: ITopicLogs | None = None,
    records: ISocketRecords | None = None,
    now: Callable[[], float] = time.time,
) -> Core:
    """The core, subscribed to what services send. ``clock`` measures time; ``now`` returns Unix seconds.
    ``dispatch``, ``logs``, ``records``: in place of the usual ones.
    """
    roster, fleet, router, dispatch = Roster(), Fleet(), EventRouter(registry), dispatch or Dispatch(registry, bus)
    bounds, budgets = JsonBounds(config.limits.json_depth), _budgets(config, counters, clock)
    requests = Requests(dispatch, bus, gateway_id, config.limits, counters, clock, accounts=accounts)
    deliveries = Deliveries(roster, requests, counters, clock, iteration, now)
    turns, reading = _turns(accounts, clock), HistoryTurns(budgets, clock)
    resuming = _resuming(config, gateway_id, bus, roster, deliveries, counters, logs, reading, turns)
    presence, single = Presence(bus, rooms, roster, deliveries, budgets, clock, counters), config.sessions == "single"
    membership = Membership(rooms, bus, roster, resuming, clock, fleet, presence=presence, single=single)
    access_watch = AccessWatch(access, membership, roster, counters, clock, limits=config.limits, now=now)
    recoverable = _recoverable(config, bus, resuming, roster, iteration, records)
    entered = access, access_watch, membership, roster, deliveries, budgets, counters
    recovering = Recovering(*entered, recoverable=recoverable, bus=bus)
    admission = Admission(access, access_watch, membership, recovering, roster, budgets, config.limits, clock=clock)
    routes = router, dispatch, requests, admission, roster, turns, counters, now
    gateway = _gateway_of(config, gateway_id, bus, *routes)
    publishes = _publishing(config, registry, self_registrations := SelfRegistrations(bus, registry, config, clock))
    return Core(
        gateway_id=gateway_id,
        accounts=accounts,
        roster=roster,
        admission=admission,
        access_watch=access_watch,
        membership=membership,
        dispatch=dispatch,
        requests=requests,
        gateway=gateway,
        deliveries=_heard(config, gateway_id, bus, deliveries, access_watch, resuming, roster, counters, clock, now),
        service_events=ServiceEvents(gateway_id, registry, router, dispatch, bus, counters, bounds, now=now),
        leases=Leases(bus, rooms, gateway_id, membership.reconciliation.doubt_all, fleet, counters, publishes),
        orphans=Orphans(bus, clock, fleet),
        self_registrations=self_registrations,
        move=CoreMove(self_registrations, gateway, roster, admission, access_watch, membership, requests),
    )


def _resuming(
    config: Config,
    gateway_id: str,
    bus: IBus,
    roster: Roster,
    deliveries: Deliveries,
    counters: Counters,
    logs: ITopicLogs | None,
    reading: HistoryTurns,
    turns: Turns,
) -> Resuming:
    rules, most = Rules(config.rooms, config.users), config.limits.unsent_bytes // 2
    logs = logs or TopicLogs(bus, rules, gateway_id)
    ordering = Ordering(bus, logs, Order() if config.socketio.recovery else None)
    following = Following(bus, logs, rules, roster, deliveries, counters, ordering, accounts=turns.accounts, most=most)
    turns.accounts.shed_by("heard", following.shed)
    return Resuming(following, logs, roster, deliveries, counters, reading=reading, turns=turns)


def _recoverable(
    config: Config,
    bus: IBus,
    resuming: Resuming,
    roster: Roster,
    iteration: Iteration,
    records: ISocketRecords | None,
) -> Recoverable:
    records = records or SocketRecords(bus, config.socketio.max_disconnection)
    return Recoverable(records, resuming.following, roster, iteration)


def _gateway_of(
    config: Config,
    gateway_id: str,
    bus: IBus,
    router: EventRouter,
    dispatch: Dispatch,
    requests: Requests,
    admission: Admission,
    roster: Roster,
    turns: Turns,
    counters: Counters,
    now: Callable[[], float],
) -> Gateway:
    return Gateway(
        gateway_id,
        reply_to=bus.channel_name(reply_channel(gateway_id)),
        router=router,
        dispatch=dispatch,
        requests=requests,
        admission=admission,
        roster=roster,
        turns=turns,
        limits=config.limits,
        counters=counters,
        now=now,
    )


def _publishing(config: Config, registry: ServiceRegistry, themselves: SelfRegistrations) -> Callable[[], bytes]:
    return lambda: published(config, registry.services(), themselves.refused)


def _heard(
    config: Config,
    gateway_id: str,
    bus: IBus,
    deliveries: Deliveries,
    access_watch: AccessWatch,
    resuming: Resuming,
    roster: Roster,
    counters: Counters,
    clock: IReactorTime,
    now: Callable[[], float],
) -> Deliveries:
    given_rooms = GivenRooms(
        bus, access_watch, resuming, roster, config.limits, counters, seconds=clock.seconds, now=now
    )
    deliveries.obey = given_rooms.obey
    for channel in (config.redis.broadcast, reply_channel(gateway_id)):
        bus.subscribe(channel, deliveries.received)
    return deliveries


def _turns(accounts: Accounts, clock: IReactorTime) -> Turns:
    turns = Turns(clock, accounts)
    accounts.shed_by("unhandled", turns.shed)
    return turns


def edge_of(
    config: Config, core: Core, iteration: Iteration, counters: Counters, reactor: Any, *, fastpath: bool = True
) -> Edge:
    """The public port: WebSocket, Socket.IO, and the few plain requests that clients need."""
    limits, socketio, turns = config.limits, config.socketio, core.gateway.turns
    bounds = JsonBounds(limits.json_depth)
    connections = Connections(reactor, connections_allowed(config), Addresses(limits.connections_per_address), counters)
    by_address = Addresses(limits.connections_per_address)
    packets = SocketSettings(max_attachment_bytes=socketio.max_payload, bounds=bounds)
    backlogs = _backlogs_of(config, core, counters, reactor)
    engine_clients = EngineClients(
        reactor,
        iteration,
        counters,
        _engine_settings(config),
        lambda client: SocketIOClient(client, packets, core.gateway.open, order=core.admission.recoverable.order),
        by_address,
        connections.limit,
        turns=turns,
        backlogs=backlogs,
    )
    clients = ClientFactory(
        reactor,
        core.gateway.open,
        {SUBPROTOCOL: lru_cache(partial(NativeDialect, bounds))},
        limits=limits,
        backlogs=backlogs,
        connections=connections,
        clients=by_address,
        iteration=iteration,
        turns=turns,
        counters=counters,
        compression=config.compression,
        engine_clients=engine_clients,
        fastpath=fastpath,
    )
    return Edge(
        site=_site_of(config, reactor, counters, connections, clients, engine_clients),
        connections=connections,
        clients=clients,
        engine_clients=engine_clients,
        backlogs=backlogs,
        move=_edge_move(config, core, clients, engine_clients, packets),
    )


def _site_of(
    config: Config,
    reactor: Any,
    counters: Counters,
    connections: Connections,
    clients: ClientFactory,
    engine_clients: EngineClients,
) -> PublicSite:
    limits, socketio = config.limits, config.socketio
    return PublicSite(
        reactor,
        hosts=Hosts(config.hosts),
        origins=Origins(config.origins),
        proxies=_proxies(config),
        limits=limits,
        counters=counters,
        connections=connections,
        websockets=clients,
        polling=Polling(socketio.path, engine_clients) if socketio.enabled else None,
        files=pages(BOARD) if config.demo else {},
    )


def _edge_move(
    config: Config, core: Core, clients: ClientFactory, engine_clients: EngineClients, packets: SocketSettings
) -> EdgeMove:
    def speaks(client: EngineClient, given: bytes, open: Open) -> SocketIOClient:
        order = core.admission.recoverable.order
        return SocketIOClient(client, packets, core.gateway.open, (given, open), order=order)

    return EdgeMove(clients, engine_clients, speaks if config.socketio.enabled else None)


def _engine_settings(config: Config) -> EngineSettings:
    return EngineSettings(
        ping_interval=config.socketio.ping_interval,
        ping_timeout=config.socketio.ping_timeout,
        max_payload=config.socketio.max_payload,
        max_queued_bytes=config.limits.unsent_bytes,
    )


def _backlogs_of(config: Config, core: Core, counters: Counters, clock: IReactorTime) -> Backlogs:
    limits, policies = config.limits, Policies(config.events)
    backlogs = Backlogs(
        policies, core.accounts, counters, clock, limit=limits.unsent_bytes, patience=limits.ping_timeout
    )
    core.accounts.shed_by("unsent", backlogs.shed)
    return backlogs


def _budgets(config: Config, counters: Counters, clock: IReactorTime) -> Budgets:
    return Budgets(config.limits, counters, clock, partial(owner, reported=_proxies(config).in_between))


def _proxies(config: Config) -> Proxies:
    return Proxies(config.forwarded_for, proxy_protocol=any(place.startswith("haproxy:") for place in config.listen))


def operator_of(
    config: Config, core: Core, bus: IBus, counters: Counters, gauges: Gauges, readiness: Readiness, reactor: Any
) -> OperatorSite:
    """The operator's port."""
    hosts, token = Hosts(config.hosts, lenient=True), token_of(config.operator)
    publish = PublishRequests(bus, config.redis.broadcast, counters, reactor, token)
    return OperatorSite(reactor, hosts, core.gateway_id, counters, gauges, readiness, publish)


def sweeps_of(core: Core) -> tuple[Sweep, ...]:
    """All that the core does by and by."""
    return (
        (core.admission.sweep, SWEEP_INTERVAL),
        (core.access_watch.sweep, SWEEP_INTERVAL),
        (core.membership.reconciliation.sweep, SWEEP_INTERVAL),
        (core.membership.following.sweep, SWEEP_INTERVAL),
        (core.membership.presence.sweep, SWEEP_INTERVAL),
        (core.membership.following.follow, FOLLOW_INTERVAL),
        (core.admission.recoverable.sweep, SWEEP_INTERVAL),
        (core.requests.sweep, SWEEP_INTERVAL),
        (core.dispatch.sweep, _TRIM_INTERVAL),
        (core.service_events.sweep, SWEEP_INTERVAL),
        (core.orphans.sweep, SWEEP_INTERVAL),
        (core.self_registrations.sweep, SWEEP_INTERVAL),
        (core.leases.renew, RENEW_INTERVAL),
        (core.leases.look, LOOK_INTERVAL),
    )


def edge_sweeps_of(edge: Edge) -> tuple[Sweep, ...]:
    """All that the edge does by and by."""
    return (
        (edge.clients.heartbeat.sweep, SWEEP_INTERVAL),
        (edge.engine_clients.sweep, SWEEP_INTERVAL),
        (edge.backlogs.sweep, SWEEP_INTERVAL),
    )

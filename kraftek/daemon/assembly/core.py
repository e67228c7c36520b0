"""The core: who is connected, what they may do, and where their events go.

A change that gives a part something new is one line here: in the call that makes the part. A new part is a line in the
method where those belong that it works with.
"""

from __future__ import annotations

from functools import partial

from kraftek.contract.fleet import Fleet
from kraftek.contract.interfaces import IRooms, ISocketRecords, ITopicLogs
from kraftek.contract.json_text import JsonBounds
from kraftek.contract.names import reply_channel
from kraftek.contract.order import Order
from kraftek.contract.registrations import published
from kraftek.contract.turns import Turns
from kraftek.core.access_watch import AccessWatch
from kraftek.core.admission import Admission
from kraftek.core.budgets import Budgets
from kraftek.core.deliveries import Deliveries
from kraftek.core.dispatch import Dispatch
from kraftek.core.following import Following
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
from kraftek.core.receipts import Receipts
from kraftek.core.recoverable import Recoverable
from kraftek.core.recovering import Recovering
from kraftek.core.registry import EventRouter
from kraftek.core.requests import Requests
from kraftek.core.resuming import Resuming
from kraftek.core.rooms.leases import Leases
from kraftek.core.rooms.orphans import Orphans
from kraftek.core.rooms.room_cache import RedisRooms
from kraftek.core.roster import Roster
from kraftek.core.self_registrations import SelfRegistrations
from kraftek.core.service_events import ServiceEvents
from kraftek.daemon.assembly.surroundings import Surroundings
from kraftek.edge.addresses import owner

__all__ = ["Core"]


class Core:
    """The parts of ``kraftek.core``, subscribed to what services send. They are made in the order in which they stand
    here: each of what is given, and of parts above it. ``rooms``, ``dispatch``, ``logs``,
    ``records``: in place of the usual ones.
    """

    def __init__(
        self,
        given: Surroundings,
        *,
        rooms: IRooms | None = None,
        dispatch: Dispatch | None = None,
        logs: ITopicLogs | None = None,
        records: ISocketRecords | None = None,
    ) -> None:
        self.gateway_id = given.gateway_id
        self.accounts = given.accounts
        self.roster = Roster()
        self.reply_to = given.bus.channel_name(reply_channel(given.gateway_id))
        self._make_budgets(given)
        self._make_routes(given, dispatch or Dispatch(given.registry, given.bus))
        self._make_histories(given, logs, records)
        self._make_access(given, rooms)
        self._make_gateway(given)
        self._make_services(given)
        self._make_fleet(given)
        self.move = CoreMove(
            self.self_registrations,
            self.gateway,
            self.roster,
            self.admission,
            self.access_watch,
            self.membership,
            self.requests,
        )

    def _make_budgets(self, given: Surroundings) -> None:
        """What each client may use of the gateway."""
        whose = partial(owner, reported=given.proxies.in_between)
        self.budgets = Budgets(given.config.limits, given.counters, given.clock, whose)
        self.turns = Turns(given.clock, given.accounts)
        given.accounts.shed_by("unhandled", self.turns.shed)

    def _make_routes(self, given: Surroundings, dispatch: Dispatch) -> None:
        """The ways of events to services, and back of what services answer and tell."""
        self.router = EventRouter(given.registry)
        self.dispatch = dispatch
        self.requests = Requests(
            dispatch,
            given.bus,
            given.gateway_id,
            given.config.limits,
            given.counters,
            given.clock,
            accounts=given.accounts,
        )
        self.receipts = Receipts(given.gateway_id, given.bus, given.config.limits, given.counters, given.clock.seconds)
        self.deliveries = Deliveries(
            self.roster, self.requests, self.receipts, given.counters, given.clock, given.iteration, given.now
        )

    def _make_histories(self, given: Surroundings, logs: ITopicLogs | None, records: ISocketRecords | None) -> None:
        """What rooms and users were told, for those who missed it."""
        config, bus = given.config, given.bus
        rules = Rules(config.rooms, config.users)
        logs = logs or TopicLogs(bus, rules, given.gateway_id)
        self.following = Following(
            bus,
            logs,
            rules,
            self.roster,
            self.deliveries,
            given.counters,
            Ordering(bus, logs, Order() if config.socketio.recovery else None),
            turns=self.turns,
            most=config.limits.unsent_bytes // 2,
        )
        given.accounts.shed_by("heard", self.following.shed)
        self.resuming = Resuming(
            self.following,
            logs,
            self.roster,
            self.deliveries,
            given.counters,
            reading=HistoryTurns(self.budgets, given.clock),
            turns=self.turns,
        )
        records = records or SocketRecords(bus, config.socketio.max_disconnection)
        self.recoverable = Recoverable(records, self.following, self.roster, given.iteration)

    def _make_access(self, given: Surroundings, rooms: IRooms | None) -> None:
        """Who is let in, into which rooms, and for how long."""
        self.rooms = rooms or RedisRooms(
            given.bus, given.registry, given.gateway_id, self.reply_to, now=given.now, policies=given.config.rooms
        )
        self.fleet = Fleet()
        self.presence = Presence(
            given.bus, self.rooms, self.roster, self.deliveries, self.budgets, given.clock, given.counters
        )
        self.membership = Membership(
            self.rooms,
            given.bus,
            self.roster,
            self.resuming,
            given.clock,
            self.fleet,
            presence=self.presence,
            single=given.config.sessions == "single",
        )
        self.access_watch = AccessWatch(
            given.access,
            self.membership,
            self.roster,
            given.counters,
            given.clock,
            limits=given.config.limits,
            now=given.now,
        )
        self.recovering = Recovering(
            given.access,
            self.access_watch,
            self.membership,
            self.roster,
            self.deliveries,
            self.budgets,
            given.counters,
            recoverable=self.recoverable,
            bus=given.bus,
        )
        self.admission = Admission(
            given.access,
            self.access_watch,
            self.membership,
            self.recovering,
            self.roster,
            self.budgets,
            given.config.limits,
            clock=given.clock,
        )

    def _make_gateway(self, given: Surroundings) -> None:
        """What the links of clients open sessions of."""
        self.gateway = Gateway(
            given.gateway_id,
            reply_to=self.reply_to,
            router=self.router,
            dispatch=self.dispatch,
            requests=self.requests,
            receipts=self.receipts,
            admission=self.admission,
            roster=self.roster,
            turns=self.turns,
            limits=given.config.limits,
            counters=given.counters,
            now=given.now,
        )

    def _make_services(self, given: Surroundings) -> None:
        """What services do: register themselves, send each other events, let users into rooms, answer and tell."""
        config, bus = given.config, given.bus
        self.self_registrations = SelfRegistrations(bus, given.registry, config, given.clock)
        self.service_events = ServiceEvents(
            given.gateway_id,
            given.registry,
            self.router,
            self.dispatch,
            bus,
            given.counters,
            JsonBounds(config.limits.json_depth),
            now=given.now,
        )
        given_rooms = GivenRooms(
            bus,
            self.access_watch,
            self.resuming,
            self.roster,
            config.limits,
            given.counters,
            seconds=given.clock.seconds,
            now=given.now,
        )
        self.deliveries.obey = given_rooms.obey
        for channel in (config.redis.broadcast, reply_channel(given.gateway_id)):
            bus.subscribe(channel, self.deliveries.received)

    def _make_fleet(self, given: Surroundings) -> None:
        """What gateways do for each other: they take over for those that died, and say what they know of services."""

        def publishes() -> bytes:
            return published(given.config, given.registry.services(), self.self_registrations.refused)

        doubt = self.membership.reconciliation.doubt_all
        self.leases = Leases(given.bus, self.rooms, given.gateway_id, doubt, self.fleet, given.counters, publishes)
        self.orphans = Orphans(given.bus, given.clock, self.fleet)

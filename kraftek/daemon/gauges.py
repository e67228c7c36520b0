"""What there is now, for the operator. Made by :mod:`kraftek.daemon.lifecycle` of the parts of the assembly."""

from __future__ import annotations

from collections.abc import Callable, Sized

from kraftek.contract.interfaces import IBus
from kraftek.contract.metrics import Gauges
from kraftek.daemon.assembly import Core
from kraftek.edge.backlogs import Backlogs

__all__ = ["gauges_of"]


def gauges_of(
    core: Core,
    bus: IBus,
    connections: Sized,
    backlogs: Backlogs,
    turns: Sized,
    loop_lag: Callable[[], float] = lambda: 0.0,
) -> Gauges:
    """What there is now, for the operator. ``connections``: those to the clients' ports. ``turns``: those who wait for
    theirs. ``loop_lag``: seconds that the reactor was late.
    """
    roster, requests, dispatch, following = core.roster, core.requests, core.dispatch, core.following
    gauges = Gauges()
    gauges.add("sockets", "Clients connected", lambda: len(roster))
    gauges.add("connections_open", "Connections to the clients' ports", lambda: len(connections))
    gauges.add("clients_blocked", "Clients that do not read what they are sent", lambda: len(backlogs))
    gauges.add("clients_waiting", "Clients of which something waits for its turn", lambda: len(turns))
    gauges.add("budgets", "Sockets, users and addresses whose use is known", lambda: len(core.budgets))
    gauges.add("loop_lag_seconds", "The longest time that the reactor was late in the last 15 to 30 seconds", loop_lag)
    gauges.add("rooms", "Rooms with a client of this process in them", lambda: roster.rooms)

    followed = "Rooms with history of which this process gets what they are told"
    gauges.add("rooms_followed", followed, lambda: sum(each.room_id is not None for each in following.topics))
    followed = "Users with history of whom this process gets what they are told"
    gauges.add("users_followed", followed, lambda: sum(each.room_id is None for each in following.topics))
    gauges.add("rooms_watched", "Rooms whose clients are told who is there", lambda: len(core.presence))
    gauges.add("redis_up", "Whether Redis is connected and takes writes", lambda: bus.fault is None)
    gauges.add("requests", "Requests of this process's clients that wait for their answers", lambda: len(requests))
    stored = "Bytes of answers that Redis stores for requests of this process's clients that are sent again"
    gauges.add("answer_bytes", stored, lambda: requests.budget.used)
    held = "Bytes that this process holds for others, each account by itself"
    gauges.add("accounted_bytes", held, core.accounts.by_kind, "account")
    gauges.add("waiting", "Events that wait in the streams of a service", lambda: dispatch.waiting, "service")
    gauges.add("waiting_bytes", "The same in bytes", lambda: dispatch.waiting_bytes, "service")
    gauges.add("self_registered", "Services that have registered themselves", lambda: len(core.self_registrations))
    gauges.add("dead_letters", "Dead letters of a service's streams", lambda: dispatch.dead_letters, "service")
    gauges.add(
        "presence_waiting",
        "Presence events that wait for room in the streams of a service",
        lambda: dispatch.presence_waiting,
        "service",
    )
    return gauges

"""What is asked of each contender; `bench.__main__` calls them in turn, `bench.report` reads their rows.

A workload starts a contender, gives the load its orders and yields one `Row` for each case. Every number of a row is
of one run; medians are the report's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from bench.contenders import Contender
from bench.orders import Connect, FanOut, Idle, ManyRooms, Outcome, RoundTrip
from bench.stage import Show, Stage

ROOM_SIZE = 4
"""Clients in a small room."""
FIRST = 100
"""Connections that are open before connections are counted: what is loaded and grown once is not theirs."""


@dataclass(frozen=True)
class Effort:
    """How much work, and whose."""

    name: str
    rounds: int
    warm: float
    seconds: float
    """Warm-up and window of one case."""
    texts: tuple[int, ...]
    """Bytes of text in a round trip's payload."""
    crowds: tuple[int, ...]
    """Sizes of the rooms of a fan-out, ascending."""
    idle: int
    """Connections held."""
    storm: int
    """Connections that storm in."""
    ping_seconds: float
    """Every gateway pings each client this often; also the length of the idle window."""
    most_rounds: dict[str, int]
    """Workloads that do not vary enough to be worth all rounds, and contenders that hardly any aim is about."""
    contenders: dict[str, tuple[str, ...]]
    """Who takes part in a workload; a workload that is not here is for all who can do it."""


QUICK = Effort(
    name="quick",
    rounds=2,
    warm=0.4,
    seconds=1.0,
    texts=(64,),
    crowds=(100, 1000, 8000),
    idle=4000,
    storm=2000,
    ping_seconds=5.0,
    most_rounds={"idle": 1, "manyrooms": 1, "processes": 1},
    contenders={
        "roundtrip": ("kraftek", "kraftek-socketio", "node"),
        "fanout": ("kraftek", "cloop"),
        "manyrooms": ("kraftek", "node"),
        "idle": ("kraftek",),
        "storm": ("kraftek", "autobahn"),
    },
)
FULL = Effort(
    name="full",
    rounds=5,
    warm=0.7,
    seconds=1.5,
    texts=(64, 4096),
    crowds=(100, 1000, 8000),
    idle=8000,
    storm=2000,
    ping_seconds=25.0,
    most_rounds={
        "fanout": 4,
        "storm": 3,
        "processes": 3,
        "manyrooms": 2,
        "idle": 1,
        "autobahn": 2,
        "picows": 2,
        "nchan": 2,
    },
    contenders={},
)


class Row(msgspec.Struct, kw_only=True):
    """One case of one workload, done by one contender once."""

    workload: str
    contender: str
    case: str = ""
    per: str = ""
    """What the cost is divided by."""
    cpu_us: float | None = None
    """Processor time of the gateway for each, in microseconds."""
    rate: float | None = None
    """How many in a second."""
    p50_ms: float | None = None
    p99_ms: float | None = None
    kib: float | None = None
    """Resident memory of the gateway for each connection."""
    cores: dict[str, float] = msgspec.field(default_factory=dict)
    """Processor seconds in a second, by role."""
    failure: str | None = None
    """Why the run does not count."""

    @property
    def gateway_cores(self) -> float:
        """Processor seconds in a second of all gateway processes."""
        return sum(used for role, used in self.cores.items() if role.startswith("gateway"))


def roundtrip(stage: Stage, contender: Contender, effort: Effort) -> Iterator[Row]:
    """50 clients, through Redis and a service and back."""
    with stage.show(contender, effort.ping_seconds) as show:
        connected(show, 50, ROOM_SIZE)
        for text in effort.texts:
            for in_flight in (1, 8):
                outcome = show.do(RoundTrip(in_flight, text, effort.warm, effort.seconds))
                yield row("roundtrip", contender, f"{in_flight} in flight, {size(text)}", "message", outcome)


def requests(stage: Stage, contender: Contender, effort: Effort) -> Iterator[Row]:
    """The round trip once more: an event, a request that the service answers, and one that reaches it by a stream."""
    with stage.show(contender, effort.ping_seconds) as show:
        connected(show, 50, ROOM_SIZE)
        for in_flight in (1, 8):
            window = (in_flight, 64, effort.warm, effort.seconds)
            outcome = show.do(RoundTrip(*window))
            yield row("requests", contender, f"event, {in_flight} in flight", "message", outcome)
            outcome = show.do(RoundTrip(*window, "ask:echo:ping", request=True))
            yield row("requests", contender, f"request, {in_flight} in flight", "message", outcome)
        outcome = show.do(RoundTrip(8, 64, effort.warm, effort.seconds, "queue:echo:ping", request=True))
        yield row("requests", contender, "request by stream, 8 in flight", "message", outcome)


def fanout(stage: Stage, contender: Contender, effort: Effort) -> Iterator[Row]:
    """One event to a room that grows."""
    with stage.show(contender, effort.ping_seconds) as show:
        here = 0
        for crowd in effort.crowds:
            connected(show, crowd - here, effort.crowds[-1])
            here = crowd
            outcome = show.do(FanOut(64, effort.warm, effort.seconds))
            yield row("fanout", contender, f"room of {crowd:,}", "delivered message", outcome)


def manyrooms(stage: Stage, contender: Contender, effort: Effort) -> Iterator[Row]:
    """2,000 clients in small rooms; each message reaches a whole room by way of the service."""
    with stage.show(contender, effort.ping_seconds) as show:
        connected(show, 2000, ROOM_SIZE)
        outcome = show.do(ManyRooms(64, effort.warm, effort.seconds))
        yield row("manyrooms", contender, f"2,000 clients, rooms of {ROOM_SIZE}", "delivered message", outcome)


def storm(stage: Stage, contender: Contender, effort: Effort) -> Iterator[Row]:
    """Connect and authenticate, as fast as it goes."""
    with stage.show(contender, effort.ping_seconds) as show:
        connected(show, FIRST, ROOM_SIZE)
        outcome = show.do(Connect(effort.storm, ROOM_SIZE))
        yield row("storm", contender, f"{effort.storm:,} connections", "connection", outcome)


def idle(stage: Stage, contender: Contender, effort: Effort) -> Iterator[Row]:
    """Connections that nothing happens on but pings."""
    with stage.show(contender, effort.ping_seconds) as show:
        connected(show, FIRST, ROOM_SIZE)
        before = show.resident_bytes()
        connected(show, effort.idle, ROOM_SIZE)
        outcome = show.do(Idle(effort.ping_seconds))
        kib = (show.resident_bytes() - before) / effort.idle / 1024
        case = f"{effort.idle:,} connections, pinged every {effort.ping_seconds:g} s"
        yield row("idle", contender, case, "connection", outcome, kib)


def processes(stage: Stage, contender: Contender, effort: Effort) -> Iterator[Row]:
    """Round trips through one process, and through two that share the port.

    The service answers the process that asks, as services do that grow with the gateway.
    """
    for count in (1, 2):
        with stage.show(contender, effort.ping_seconds, processes=count, loads=2) as show:
            for load in show.loads:
                load.begin(Connect(100, ROOM_SIZE))
            for load in show.loads:
                must_be_whole(load.end())
            cases = [("bench:echo:call", f"{count} on one port")]
            if count > 1:
                cases.append(("bench:echo:ping", f"{count} on one port, each gets all answers"))
            for event, case in cases:
                for load in show.loads:
                    load.begin(RoundTrip(4, 64, effort.warm, effort.seconds, event))
                yield row("processes", contender, case, "message", together([load.end() for load in show.loads]))


WORKLOADS: dict[str, Callable[[Stage, Contender, Effort], Iterator[Row]]] = {
    each.__name__: each for each in (roundtrip, requests, fanout, manyrooms, idle, storm, processes)
}


class FailedError(Exception):
    """A run cannot go on; the text says why."""


def connected(show: Show, clients: int, room_size: int) -> None:
    """Connect clients that the run needs; raises `FailedError` when not all are in."""
    must_be_whole(show.do(Connect(clients, room_size)))


def must_be_whole(outcome: Outcome) -> None:
    """Raise `FailedError` when something is missing from the outcome."""
    if failure := missing(outcome):
        raise FailedError(failure)


def missing(outcome: Outcome) -> str | None:
    """Say what is wrong with an outcome, if anything is."""
    wrong = outcome.faults.copy()
    if outcome.delivered != outcome.due:
        wrong.insert(0, f"{outcome.delivered:,} delivered of {outcome.due:,}")
    return "; ".join(wrong) or None


def together(outcomes: list[Outcome]) -> Outcome:
    """Give the outcome of loads that worked at the same time, each having watched the gateway for all of its window."""
    first = outcomes[0]
    return Outcome(
        messages=sum(each.messages for each in outcomes),
        due=sum(each.due for each in outcomes),
        delivered=sum(each.delivered for each in outcomes),
        seconds=first.seconds,
        cpu=first.cpu | {"load": sum(each.cpu["load"] for each in outcomes)},
        p50_ms=max((each.p50_ms for each in outcomes if each.p50_ms is not None), default=None),
        p99_ms=max((each.p99_ms for each in outcomes if each.p99_ms is not None), default=None),
        faults=[fault for each in outcomes for fault in each.faults],
    )


def row(workload: str, contender: Contender, case: str, per: str, outcome: Outcome, kib: float | None = None) -> Row:
    """Give the row for an outcome."""
    cores = {role: used / outcome.seconds for role, used in outcome.cpu.items()}
    made = Row(workload=workload, contender=contender.name, case=case, per=per, kib=kib, cores=cores)
    made.failure = missing(outcome)
    if outcome.messages:
        made.rate = outcome.messages / outcome.seconds
        made.cpu_us = made.gateway_cores / made.rate * 1e6
        made.p50_ms = outcome.p50_ms
        made.p99_ms = outcome.p99_ms
    elif workload != "idle":
        made.failure = made.failure or "nothing was delivered"
    return made


def size(text: int) -> str:
    """Give a number of bytes as people say it."""
    return f"{text} B" if text < 1024 else f"{text // 1024} KiB"

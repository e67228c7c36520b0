"""What everybody did and was told in a chaos run, and what is wrong with it. No I/O: the world calls it.

The vocabulary is that of :mod:`tests.simulation.invariants`. Times are those of ``time.monotonic()``, which all
processes of a machine share. What a bound is stretched by is a *trouble*: the time during which a gateway, a link or
Redis was not well, by name; delays of the process that runs it all are one, too (:data:`MACHINE`), and so is the time
in which a process was ready to run and had no processor. Who floods, or does not read, is no trouble: others may find
the gateway slower, and lose nothing. In seconds:

================  ====================================================================================================
:data:`AT_ONCE`   after ``auth:invalidate`` or a deleted key reached Redis nothing that it forbids is delivered, sent
                  or admitted at a gateway that is well
:data:`LINKED`    the same after the end of a trouble, in which the gateway may have missed it: it notices a dead
                  connection within 4 s, connects within 1, and has asked about everybody within 3
:data:`STALE`     after an answer's ``ttl``, if nobody told anything, the auth service has been asked again
:data:`CALM`      so long after the end of a trouble everything is expected to be as if there had been none
:data:`WAITS`     so long an acknowledged event waits in its stream at most, and may be lost with Redis's data
================  ====================================================================================================
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

__all__ = ["MACHINE", "REDIS", "Accepted", "Ask", "Ban", "Ledger", "Troubles"]

AT_ONCE = 1.0
LINKED = 8.0
STALE = 1.5
CALM = 10.0
WAITS = 30.0

REDIS, AUTH, CLIENTS, MACHINE = "redis", "auth", "clients", "machine"
"""Names of troubles that are everybody's; those of one gateway have its name."""

HARMLESS = {1001, 1006, 1012}
"""Close codes of whoever stops, or is not there any more."""

GRACE = 13.0
"""Seconds for which a client is in its room, and hears nothing there, when its token has expired."""

REFUSED = {4401, 4403}
"""Close codes of clients whose access was taken back, or whose token is over."""


class Troubles:
    """When who was not well."""

    def __init__(self) -> None:
        self._times: dict[str, list[list[float]]] = defaultdict(list)
        self._depth: Counter[str] = Counter()

    def begin(self, name: str, at: float) -> None:
        """It begins; what begins twice ends twice."""
        self._depth[name] += 1
        if self._depth[name] == 1:
            self._times[name].append([at, inf])

    def end(self, name: str, at: float) -> None:
        """It ends."""
        self._depth[name] -= 1
        if not self._depth[name]:
            self._times[name][-1][1] = at

    def add(self, name: str, since: float, until: float) -> None:
        """There was one that nobody began."""
        self.begin(name, since)
        self.end(name, until)

    def quiet(self, names: Iterable[str], since: float, until: float) -> bool:
        """Whether none of these had any between these times."""
        return not any(
            begun <= until and ended >= since for name in names for begun, ended in self._times.get(name, ())
        )

    def stretched(self, names: Iterable[str], at: float, since: float, by: float) -> float:
        """``at``; or so long after the end of the last trouble that began before, and had not ended ``since``."""
        times = sorted(time for name in names for time in self._times.get(name, ()))
        for begun, ended in times:
            if begun <= at and ended >= since:
                at = max(at, ended + by)
        return at

    @property
    def names(self) -> list[str]:
        """Whoever had any."""
        return list(self._times)


@dataclass
class Ask:
    """A request, sent through ``gateway``, or through several. ``ordered``: it was sent when the one before it, of the
    same sender and room, had been answered.
    """

    key: str
    service: str
    user: str
    room: str
    at: float
    gateway: str = ""
    ordered: bool = False
    outcome: str | None = None
    settled_at: float = inf


@dataclass(frozen=True)
class Accepted:
    """Redis took it: as so manieth of those that one ``connection`` to Redis was told of."""

    key: str
    connection: int
    number: int
    at: float


@dataclass
class Ban:
    """The auth service's no to a user, in one room or all. ``told_at``: when Redis took the news, ``how``."""

    user: str
    room: str | None
    since: float
    how: str
    told_at: float | None = None
    until: float = inf

    def concerns(self, user: str, room: str | None) -> bool:
        """Whether it forbids that."""
        return self.user == user and self.room in (None, room)


@dataclass(frozen=True)
class Fact:
    """A client was told or let do something in a room by a gateway: ``at`` it was, for what was said ``said_at``."""

    what: str
    user: str
    gateway: str
    room: str
    said_at: float
    at: float


@dataclass
class Expected:
    """What a client has to hear, as long as nothing excuses it."""

    user: str
    gateway: str
    socket: str
    room: str
    number: int
    at: float


@dataclass
class Ledger:
    """All of it. ``ttl``: of the auth service's answers, in seconds. ``processes``: their names by ``gatewayId``."""

    ttl: float = 6.0
    troubles: Troubles = field(default_factory=Troubles)
    story: list[str] = field(default_factory=list)
    holes: list[str] = field(default_factory=list)
    began: float = 0.0
    asks: dict[str, Ask] = field(default_factory=dict)
    bans: list[Ban] = field(default_factory=list)
    losses: list[tuple[float, float]] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    processes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._handled: dict[str, list[tuple[float, str]]] = defaultdict(list)
        self._accepted: dict[tuple[str, str], dict[str, list[Accepted]]] = defaultdict(lambda: defaultdict(list))
        self._facts: list[Fact] = []
        self._heard: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._expected: list[Expected] = []
        self._ended: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._presence: dict[str, dict[int, tuple[str, str, str]]] = {}
        self._found: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self._events: Counter[str] = Counter()
        self._expiry: dict[str, list[tuple[float, float]]] = defaultdict(list)

    # The story

    def tell(self, at: float, what: str) -> None:
        """It happened."""
        self.story.append(f"{at - self.began:8.3f} {what}")

    def wrong(self, what: str) -> None:
        """It is a hole, once."""
        if what not in self.holes:
            self.holes.append(what)

    def lost_data(self, since: float, until: float) -> None:
        """Between these times Redis lost what it held."""
        self.losses.append((since, until))

    def lost(self, since: float, until: float) -> bool:
        """Whether Redis has lost data between these times."""
        return any(begun <= until and ended >= since for begun, ended in self.losses)

    # Requests and events

    def asked(self, ask: Ask) -> None:
        """A client sends a request, for the first time."""
        self.asks[ask.key] = ask

    def settled(self, key: str, outcome: str, at: float) -> None:
        """It is answered: ``ok``, or the code of an error."""
        ask = self.asks[key]
        self.seen[f"{ask.service} {outcome}"] += 1
        if ask.outcome is not None:
            self.wrong(f"{key} is answered twice: {ask.outcome}, then {outcome} at {at - self.began:.3f}")
            return
        ask.outcome, ask.settled_at = outcome, at

    def handled(self, service: str, line: Mapping[str, Any], clock: float) -> None:
        """A handler was called. ``clock``: what is added to wall-clock seconds to make them those of the ledger."""
        self.seen[f"handled by {service}"] += 1
        if str(line["type"]).startswith("gateway:"):
            return
        key, room = str(line["payload"]), line["room"]
        self._handled[key].append((line["at"], service))
        if room is not None:
            sent = line["sent"] / 1000 + clock
            self._facts.append(Fact("sends", line["user"], line["socket"].partition(".")[0], room, sent, sent))

    def accepted(self, service: str, room: str, event: Accepted) -> None:
        """Redis took an event for a service."""
        self.seen[f"accepted for {service}"] += 1
        self._accepted[service, room][event.key].append(event)

    def judge_requests(self, done: Mapping[str, int]) -> None:
        """Look at all requests; nothing is under way any more. ``done``: how often each handling was committed."""
        for ask in self.asks.values():
            self._judge_request(ask, done.get(f"{ask.service} {ask.key}", 0))
        self._judge_order()

    def _judge_request(self, ask: Ask, done: int) -> None:
        times = self._handled.get(ask.key, [])
        lost = self.lost(ask.at, ask.settled_at)
        story = f"{ask.key} to {ask.service}, asked at {ask.at - self.began:.3f}"
        if ask.outcome is None:
            self.wrong(f"{story}: no answer")
            return
        story += f", {ask.outcome} at {ask.settled_at - self.began:.3f}"
        stream = ask.service != "chat"
        if ask.outcome == "ok" and not times and not (stream and self.lost(ask.at, ask.settled_at + WAITS)):
            self.wrong(f"{story}: nobody handled it")
        # A handler may have been called in vain: what Redis does not take of it is refused.
        if ask.outcome == "SERVICE_UNAVAILABLE" and done and not lost:
            self.wrong(f"{story}: handled all the same, at {times[0][0] - self.began if times else -inf:.3f}")
        if len(times) > 1 and not stream and not self.lost(ask.at, times[-1][0]):
            self.wrong(f"{story}: handled {len(times)} times: {[round(at - self.began, 3) for at, _ in times]}")
        if done > 1 and not lost:
            self.wrong(f"{story}: its handling was committed {done} times")
        services = [name for name in self.troubles.names if name.startswith(f"{ask.service}-")]
        names = [*self.gateway_names(ask.gateway), *services] if ask.gateway else self.troubles.names
        calm = self.troubles.quiet(names, ask.at - CALM, ask.settled_at)
        self.seen["judged in calm"] += calm
        if calm and ask.outcome != "ok" and not self._in_question(ask.user, ask.room, ask.at, ask.settled_at):
            self.wrong(f"{story}: and nothing was wrong")

    def _judge_order(self) -> None:
        """What one sender told a stream about a room, each when the last had been acknowledged."""
        latest: dict[tuple[str, str], tuple[float, str]] = {}
        for ask in self.asks.values():
            times = self._handled.get(ask.key)
            if not ask.ordered or ask.outcome != "ok" or not times:
                continue
            first = min(at for at, _ in times)
            before, key = latest.get((ask.user, ask.room), (-inf, ""))
            if first < before and not self.lost(ask.at - WAITS, before):
                self.wrong(f"{ask.key} was handled at {first - self.began:.3f}, before {key}, which came earlier")
            latest[ask.user, ask.room] = max((before, key), (first, ask.key))

    def judge_rooms_order(self, service: str, room: str, committed: Iterable[str]) -> None:
        """What a service has done of a room, in this order: it is the order in which Redis took it."""
        self._in_order(service, room, committed, f"{service} did of {room}")

    def judge_senders_order(self) -> None:
        """When nothing is wrong, Redis takes in the order in which a client has sent it what it says to a service in a
        room.
        """
        said: dict[tuple[str, str, str, str], list[Ask]] = defaultdict(list)
        for ask in self.asks.values():
            said[ask.user, ask.gateway, ask.service, ask.room].append(ask)
        for (user, gateway, service, room), asks in said.items():
            in_calm = [
                ask.key
                for ask in asks
                if gateway
                and ask.outcome == "ok"
                and self.troubles.quiet(self.gateway_names(gateway), ask.at - CALM, ask.settled_at)
                and not self._in_question(user, room, ask.at, ask.settled_at)
            ]
            self._in_order(service, room, in_calm, f"{user} said to {service} in {room}")

    def _in_order(self, service: str, room: str, keys: Iterable[str], what: str) -> None:
        """What was taken more than once, or by another server before data were lost, tells nothing."""
        latest: dict[int, Accepted] = {}
        accepted = self._accepted[service, room]
        for key in keys:
            if len(accepted.get(key, ())) != 1:
                continue
            (event,) = accepted[key]
            before = latest.get(event.connection)
            self.seen["judged in order"] += before is not None
            if before is not None and event.number < before.number:
                if not self.lost(event.at - CALM, before.at + WAITS):
                    self.wrong(
                        f"{what}: {before.key}, taken at {before.at - self.began:.3f}, before {key}, taken at "
                        f"{event.at - self.began:.3f}"
                    )
            else:
                latest[event.connection] = event

    def gateway_names(self, gateway: str) -> tuple[str, ...]:
        """Whose troubles are those of a client of that gateway."""
        return self.processes.get(gateway, gateway), REDIS, AUTH, CLIENTS, MACHINE

    # Access

    def expires(self, user: str, since: float, at: float) -> None:
        """A token of the user that is used from then on expires."""
        self._expiry[user].append((since, at))

    def admitted(self, user: str, gateway: str, room: str, at: float) -> None:
        """A client was told that it is in a room."""
        self.seen["admitted"] += 1
        self._facts.append(Fact("is admitted", user, gateway, room, at, at))

    def heard(self, user: str, socket: str, room: str, number: int, said_at: float, at: float) -> None:
        """A client was told what had been said in a room."""
        self.seen["heard"] += 1
        before = self._heard[socket, room]
        if before and number <= before[-1]:
            self.wrong(f"{user} on {socket} hears {number} in {room} after {before[-1]}")
        before.append(number)
        self._facts.append(Fact("is told what is said", user, socket.partition(".")[0], room, said_at, at))

    def expect(self, expected: Expected) -> None:
        """It has to."""
        self._expected.append(expected)

    def ended(self, socket: str, room: str, at: float) -> None:
        """The client is not in the room any more, or its connection has ended."""
        self._ended[socket, room].append(at)

    def judge_access(self) -> None:
        """Look at everything that clients were let do, and were told."""
        for fact in self._facts:
            for ban in self.bans:
                if ban.concerns(fact.user, fact.room) and ban.since < fact.said_at and fact.at < ban.until:
                    latest = self._latest(ban, fact.gateway)
                    if fact.said_at > latest:
                        self.wrong(
                            f"{fact.user} {fact.what} in {fact.room} at {fact.said_at - self.began:.3f}, by "
                            f"{self.processes.get(fact.gateway)}: {self._story(ban)}, at the latest "
                            f"{latest - self.began:.3f}"
                        )
        for expected in self._expected:
            self._judge_expected(expected)

    def _latest(self, ban: Ban, gateway: str) -> float:
        """Until when that gateway may act on an older yes."""
        names = self.gateway_names(gateway)
        stale = ban.since + self.ttl + STALE
        latest = self.troubles.stretched(names, stale, ban.since - CALM, self.ttl + LINKED)
        if ban.told_at is not None:
            told = self.troubles.stretched(names, ban.told_at + AT_ONCE, ban.told_at - CALM, LINKED)
            latest = min(latest, told)
        return latest

    def _story(self, ban: Ban) -> str:
        told = "nobody was told" if ban.told_at is None else f"told by {ban.how} at {ban.told_at - self.began:.3f}"
        return f"no since {ban.since - self.began:.3f}, {told}"

    def _judge_expected(self, expected: Expected) -> None:
        at = expected.at
        if expected.number in self._heard.get((expected.socket, expected.room), ()):
            return
        excused = (
            not self.troubles.quiet(self.gateway_names(expected.gateway), at - CALM, at + 2.0)
            or any(at - 2.0 < ended < at + 2.0 for ended in self._ended.get((expected.socket, expected.room), ()))
            or self._in_question(expected.user, expected.room, at - 2.0, at + 2.0)
        )
        if not excused:
            self.wrong(
                f"{expected.user} on {expected.socket} does not hear {expected.number}, said in {expected.room} at "
                f"{at - self.began:.3f}, and nothing is wrong"
            )

    def _in_question(self, user: str, room: str, since: float, until: float) -> bool:
        """Whether access to the room may be doubted between these times."""
        return any(
            ban.concerns(user, ban.room if ban.how == "delete" else room)
            and ban.since <= until
            and ban.until + 3.0 >= since
            for ban in self.bans
        ) or any(
            begun <= until and since <= over + GRACE and over <= until for begun, over in self._expiry.get(user, ())
        )

    def closed(self, user: str, gateway: str, code: int, reason: str, at: float) -> None:
        """A client that behaves was closed."""
        self.seen[f"closed {code}"] += 1
        if code in HARMLESS:
            names = (self.processes.get(gateway, gateway), CLIENTS, MACHINE)
            if gateway and self.troubles.quiet(names, at - CALM, at):
                self.wrong(f"{user} loses its connection to {gateway} at {at - self.began:.3f}, and nothing is wrong")
        elif code not in REFUSED or not self._ever_refused(user, at):
            self.wrong(f"{user} is closed by {gateway} with {code} {reason} at {at - self.began:.3f}")

    def _ever_refused(self, user: str, at: float) -> bool:
        return any(ban.user == user and ban.since < at < ban.until + CALM for ban in self.bans) or any(
            begun < at and over <= at + 1.0 for begun, over in self._expiry.get(user, ())
        )

    # Rooms

    def present(self, line: Mapping[str, Any]) -> None:
        """A presence event was handled, perhaps again."""
        payload = line["payload"]
        what = str(line["type"]).rpartition(":")[2]
        # What a service found in Redis when it was told to look: that may be later than the first events of the epoch.
        self._found[payload["epoch"]].update((user, room) for user, room in line.get("there", ()))
        event = what, str(line["user"]), str(line["room"])
        epoch = self._presence.setdefault(payload["epoch"], {})
        known = epoch.setdefault(payload["number"], event)
        if known != event:
            self.wrong(f"presence event {payload['number']} of {payload['epoch']} is {known}, and {event}")

    def judge_presence(self) -> None:
        """``joined`` and ``left`` alternate; nothing of the present epoch is missing."""
        for name, epoch in self._presence.items():
            there: dict[tuple[str, str], bool] = {}
            for number in sorted(epoch):
                what, user, room = epoch[number]
                self.seen[what] += 1
                if what != "reset" and there.get((user, room)) == (what == "joined"):
                    self.wrong(f"in epoch {name} {user} {what} {room} twice, the second time by number {number}")
                there[user, room] = what == "joined"

    def judge_rooms(self, rooms: Mapping[tuple[str, str], str], there: Mapping[tuple[str, str], str]) -> list[str]:
        """How the room cache differs from who is there, both user and room to socket."""
        found = [f"room:{room} has {user} at {socket}, and there is {there.get((user, room))}"
                 for (user, room), socket in rooms.items() if there.get((user, room)) != socket]  # fmt: skip
        return found + [f"room:{room} lacks {user} at {socket}" for (user, room), socket in there.items()
                        if (user, room) not in rooms]  # fmt: skip

    def judge_told(
        self, rooms: Iterable[tuple[str, str]], ignored: Callable[[str], bool] = lambda _: False
    ) -> list[str]:
        """How what services were told, and have handled, differs from the room cache: user and room. Users that are
        ``ignored`` are left out.
        """
        epoch, events = next(reversed(self._presence.items()), ("", {}))
        present = dict.fromkeys(self._found[epoch], True)
        for number in sorted(events):
            what, user, room = events[number]
            if what != "reset":
                present[user, room] = what == "joined"
        told = {key for key, is_there in present.items() if is_there and not ignored(key[0])}
        cached = set(rooms)
        found = []
        if missing := set(range(1, max(events, default=0) + 1)) - events.keys():
            found.append(f"presence events {sorted(missing)[:10]} of epoch {epoch} are missing")
        if told != cached:
            found.append(f"services were told of {sorted(told - cached)}, not of {sorted(cached - told)}")
        return found

"""Who is in rooms, as clients are told in a chaos run: held to whose connections are there. No I/O: the world calls it.

The watchers of :mod:`tests.chaos.crowd` are users with several connections each. They write down when a connection is
in a room, when it is gone, and what it is told. In seconds:

==============  ======================================================================================================
:data:`KNOWN`   after the last trouble of a gateway, of Redis or of the machine, and after a user has come or gone, who
                is connected there knows it; it is looked at once a second, whatever goes on elsewhere
==============  ======================================================================================================

However many connections a user has, others hear that it joined when they did not know it, and that it left when they
did; and they hear nothing while one of its connections stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from tests.chaos.crowd import WATCHERS
from tests.chaos.histories import two_in_five
from tests.chaos.ledger import AUTH, MACHINE, REDIS, Ledger

__all__ = ["CONFIG", "KNOWN", "Presences"]

KNOWN = 10.0
CONFIG = """
"p*" = {presence = true}
"""
CROWD = "crowd"
"""The name of its process."""
CLOSING = 2.0
"""Seconds until a client has noticed that its connection was closed."""


@dataclass
class Seat:
    """One connection of a user in a room, and all that follow it. ``socket``: of the present one; ``since``: when it
    was told who is there. ``known``: users, and what each shows; ``None`` until it was told.
    """

    name: str
    user: str
    room: str
    socket: str = ""
    since: float = inf
    known: dict[str, Any] | None = None


@dataclass
class Stay:
    """A connection in a room, from when to when."""

    gateway: str
    begun: float
    ended: float = inf


@dataclass
class Member:
    """A user in a room. ``stays``: its connections by seat, and ``past`` ones. ``changed``: when it came, or went."""

    stays: dict[str, Stay] = field(default_factory=dict)
    past: list[Stay] = field(default_factory=list)
    changed: float = -inf


@dataclass(frozen=True)
class Claim:
    """It is a hole, unless one of these had a trouble between these times, or all of the connections ended then."""

    what: str
    names: tuple[str, ...]
    since: float
    until: float
    stays: tuple[Stay, ...] = ()


class Presences:
    """``users``: how many. ``callers``: they, for the crowd: with one to ``most`` connections each."""

    def __init__(self, ledger: Ledger, users: int, most: int) -> None:
        self.rooms = [f"p{number}" for number in range(max(users // 30, 2))]
        self.callers = {f"{WATCHERS}{each}": (two_in_five(self.rooms, each), each % most + 1) for each in range(users)}
        self.over = not users
        self._ledger = ledger
        self._seats = {
            (name, room): Seat(name, user, room)
            for user, (rooms, connections) in self.callers.items()
            for name in (f"{user}/{number}" for number in range(connections))
            for room in rooms
        }
        self._by_room: dict[str, list[Seat]] = defaultdict(list)
        for seat in self._seats.values():
            self._by_room[seat.room].append(seat)
        self._users = {room: frozenset(seat.user for seat in seats) for room, seats in self._by_room.items()}
        self._members: dict[tuple[str, str], Member] = defaultdict(Member)
        self._claims: list[Claim] = []
        self._looked: list[tuple[float, str, int]] = []
        self._next = inf

    # What was written down

    def take(self, line: dict[str, Any]) -> None:
        """What one of the watchers has written down."""
        at, what = line["at"], line["what"]
        self._next = min(self._next, at + KNOWN)
        while at >= self._next:
            self._look(self._next)
            self._next += 1.0
        if what == "gone":
            for room in self.callers[line["user"]][0]:
                self._leaves(self._seats[line["seat"], room], at)
            return
        seat = self._seats.get((line["seat"], line["room"]))
        if what == "error" or seat is None:
            self._ledger.seen[f"watchers get {line['payload'].get('code')}"] += 1
        elif what == "entered":
            self._leaves(seat, at)
            seat.socket = line["socket"]
            member = self._members[seat.user, seat.room]
            if not member.stays:
                member.changed = at
            member.stays[seat.name] = Stay(_gateway(seat), at)
        else:
            self._learns(seat, line["payload"], at)
            if line["answers"]:
                seat.since = at

    def _leaves(self, seat: Seat, at: float) -> None:
        member = self._members[seat.user, seat.room]
        stay = member.stays.pop(seat.name, None)
        seat.socket, seat.since = "", inf
        if stay is not None:
            stay.ended = at
            member.past = [each for each in member.past if each.ended > at - 2 * KNOWN] + [stay]
            if not member.stays:
                member.changed = at

    def _learns(self, seat: Seat, payload: dict[str, Any], at: float) -> None:
        seen, wrong = self._ledger.seen, self._ledger.wrong
        whole, joined, left = (payload.get(what) for what in ("users", "joined", "left"))
        seen["told who is in a room" if whole is not None else "told of changes in a room"] += 1
        story = f"{seat.name} in {seat.room} at {at - self._ledger.began:.3f}"
        if whole is not None:
            seat.known = {}
        elif seat.known is None:
            wrong(f"{story} is told a difference, and knows nothing: {payload}")
            seat.known = {}
        for user in left or ():
            if seat.known.pop(user, None) is None:
                wrong(f"{story} is told that {user} left, whom it did not know there")
            self._stays_on(seat, user, at, story)
        for each in (*(whole or ()), *(joined or ())):
            user, data = each["userId"], each.get("data", {})
            if seat.known.get(user) == data:
                wrong(f"{story} is told that {user} joined, who was there")
            seat.known[user] = data
            if data != {"is": user}:
                self._claim(f"{story} is told that {user} shows {data}", self._names(seat, user, at), at)
        if payload["count"] != len(seat.known):
            wrong(f"{story} is told that {payload['count']} are there, and of {len(seat.known)}")

    def _stays_on(self, seat: Seat, user: str, at: float, story: str) -> None:
        """A user is said to have left: none of its connections was there all the time."""
        for stay in self._members[user, seat.room].stays.values():
            if stay.begun < at - KNOWN:
                names = self._names_of(_gateway(seat), stay.gateway)
                text = f"{story} is told that {user} left, who is there since {stay.begun - self._ledger.began:.3f}"
                self._claim(text, names, at, stay)

    # What must hold

    def _look(self, at: float) -> None:
        """Compare what everybody knows with what they should."""
        for room, seats in self._by_room.items():
            there = {user for user in self._users[room] if self._members[user, room].stays}
            for seat in seats:
                if not seat.socket or seat.since > at - KNOWN or seat.known is None:
                    continue
                self._looked.append((at, _gateway(seat), len(there)))
                for user in there.symmetric_difference(seat.known):
                    member = self._members[user, room]
                    if member.changed <= at - KNOWN:
                        does = "knows that" if user in seat.known else "does not know that"
                        text = f"{seat.name} in {room} {does} {user} is there at {at - self._ledger.began:.3f}"
                        names = self._names(seat, user, at)
                        self._claim(f"{text}, {KNOWN:g} s after that changed", names, at, *member.stays.values())

    def differences(self) -> list[str]:
        """How what everybody knows differs from who is there, when all should be there."""
        found = [f"{seat.name} is not in {seat.room}" for seat in self._seats.values() if not seat.socket]
        if not found:
            for seat in self._seats.values():
                known, there = (seat.known or {}).keys(), self._users[seat.room]
                if known != there:
                    lacks, has = sorted(there - known), sorted(known - there)
                    found.append(f"{seat.name} in {seat.room} does not know of {lacks}, but of {has}")
        return found[:5]

    def judge(self) -> None:
        """Look at what was excused by nothing. All troubles are known."""
        troubles = self._ledger.troubles
        for claim in self._claims:
            ended = claim.stays and all(stay.ended < claim.until + CLOSING for stay in claim.stays)
            if troubles.quiet(claim.names, claim.since, claim.until) and not ended:
                self._ledger.wrong(claim.what)
        for at, gateway, users in self._looked:
            if troubles.quiet(self._names_of(gateway), at - KNOWN, at):
                self._ledger.seen["judged who knows of whom"] += users

    def _claim(self, what: str, names: tuple[str, ...], at: float, *stays: Stay) -> None:
        """Troubles that are known by now excuse it at once: there may be many of these."""
        if self._ledger.troubles.quiet(names, at - KNOWN, at):
            self._claims.append(Claim(what, names, at - KNOWN, at, stays))

    def _names(self, seat: Seat, user: str, at: float) -> tuple[str, ...]:
        """Whose troubles excuse what the connection is told of the user."""
        member = self._members[user, seat.room]
        stays: Iterable[Stay] = (*member.stays.values(), *member.past)
        return self._names_of(_gateway(seat), *(stay.gateway for stay in stays if stay.ended > at - 2 * KNOWN))

    def _names_of(self, *gateways: str) -> tuple[str, ...]:
        names = dict.fromkeys(self._ledger.processes.get(gateway, gateway) for gateway in gateways)
        return *names, REDIS, AUTH, MACHINE, CROWD


def _gateway(seat: Seat) -> str:
    return seat.socket.partition(".")[0]

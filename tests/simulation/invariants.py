"""What must hold, whatever goes wrong: looked at whenever somebody is told something, and at the end.

The bounds are in virtual seconds:

==================  ==================================================================================================
:data:`AT_ONCE`     after a gateway heard ``auth:invalidate`` nothing that it forbids is delivered, sent or admitted
:data:`DELETED`     the same after a key of the access cache was deleted, at a gateway whose links are well: the keys
                    are compared with Redis first, which takes the lags of both links as well
:data:`DEAF`        a gateway that does not hear notices by then, and then counts as one whose links were lost
:data:`LINKED`      after its links are back no new login is let in by an answer from before
:data:`DOUBT`       and open connections have been asked about by then, and after two answers of Redis; ``SETTLING``
                    later if another gateway is silent, or slow
:data:`STALE`       after an answer's ``ttl``, if nobody told anything, the auth service has been asked again, and after
                    two answers of Redis
:data:`SETTLED`     after Redis takes writes and nothing is wrong any more, the room cache is right, and everybody in
                    a room with history has got all of it
:data:`UNFOLLOWED`  after something was said that a gateway did not hear, as Redis forgot that it listens, the same
==================  ==================================================================================================

Nothing is asked of a gateway that is paused, nor of doubts while the auth service cannot be asked: its troubles are
followed by :data:`RECOVERY`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.logger import LogEvent, formatEvent
from txredisapi import ResponseError

from kraftek.contract.errors import Code, NotPublished
from kraftek.core.access.listening import PATIENCE, SETTLING
from kraftek.core.rooms.room_cache import users_sockets
from tests.simulation.network import COMMANDS, SUBSCRIBER
from tests.simulation.people import Ban, Client, Request, user_of
from tests.simulation.presences import look_at_presence
from tests.simulation.virtual_time import WALL

if TYPE_CHECKING:
    from tests.simulation.gateways import GatewayProcess
    from tests.simulation.world import World

__all__ = ["MOST_IN_STREAM", "SETTLED", "UNFOLLOWED", "Invariants", "Violation"]

AT_ONCE = 0.0005
DELETED = 0.05
DEAF = 6.5
LINKED = 0.0005
DOUBT = 1.0
STALE = 1.0
RECOVERY = 4.5
SETTLED = 15.0
UNFOLLOWED = 12.0

MOST_IN_STREAM = 4
"""Events that the stream takes."""

TIMEOUT = 2.0
"""Seconds that the service has for an answer."""

TTL = 6.0
"""Seconds for which answers without a ``ttl`` of their own are kept."""


class Violation(AssertionError):  # noqa: N818  # what it is, as Twisted names its own
    """Something that must hold does not."""


class _Told:
    """What one service was told of presence: ``present`` has who it thinks is there."""

    def __init__(self, invariants: Invariants, name: str) -> None:
        self.present: dict[tuple[str, str], bool] = {}
        self._invariants = invariants
        self._name = name
        self._epoch = "", 0
        self._epochs: set[str] = set()

    def hear(self, event: Any) -> None:
        """It is told."""
        invariants, name = self._invariants, self._name
        epoch, number = event["payload"]["epoch"], event["payload"]["number"]
        if epoch != self._epoch[0]:
            if epoch in self._epochs:
                invariants.wrong(f"{name}: presence events of epoch {epoch} come after those of {self._epoch[0]}")
            if event["eventType"] != "gateway:room:reset":
                invariants.wrong(f"{name}: epoch {epoch} begins with {event['eventType']}, and nobody was told of it")
            self._epochs.add(epoch)
        elif number <= self._epoch[1]:
            invariants.wrong(f"{name}: presence event {number} comes after {self._epoch[1]}")
        self._epoch = epoch, number
        if event["eventType"] == "gateway:room:reset":
            invariants.tell(f"{name} is told of another epoch, or to read all rooms")
            self.present = dict.fromkeys(invariants.in_rooms(), True)
            return
        key = event["userId"], event["roomId"]
        joined = event["eventType"] == "gateway:client:joined"
        invariants.tell(f"{name} is told {event['eventType']} {key} {event['socketId']}")
        invariants.seen[f"{name} joined" if joined else f"{name} left"] += 1
        if self.present.get(key, False) == joined:
            invariants.wrong(f"{name}: {key[0]} {'joined' if joined else 'left'} {key[1]} twice")
        self.present[key] = joined


class Invariants:
    """They are told what happens, and collect what is wrong in ``violations``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: list[str] = []
        self.story: list[str] = []
        self.losses = 0
        self._handled: dict[tuple[str, str], list[int]] = {}
        self._refused: set[tuple[str, str]] = set()
        self._answered_at: dict[tuple[str, str], float] = {}
        self._requests: dict[tuple[str, str], Request] = {}
        self._told = {"chat": _Told(self, "chat"), "log": _Told(self, "log")}
        self._unread: dict[bytes, None] = {}
        self._told_to: set[tuple[Client, int]] = set()
        self._granted: dict[tuple[Client, str], float] = {}
        self.seen: Counter[str] = Counter()

    def wrong(self, what: str) -> None:
        """It does not hold."""
        self.violations.append(f"at {self.world.time.now:.4f}: {what}")

    def tell(self, what: str) -> None:
        """It happened: for whoever reads how a run went wrong."""
        self.story.append(f"{self.world.time.now:9.4f} {what}")

    def check(self) -> None:
        """Raise :class:`Violation` if anything is wrong by now."""
        for server in self.world.servers:
            if server.missing:
                raise NotImplementedError(f"the simulated Redis lacks {server.missing}")
        if self.violations:
            raise Violation("\n".join(self.violations))

    # Access

    def admitted(self, client: Client, room: str) -> None:
        """The client was told that it is in the room."""
        self.seen["admitted"] += 1
        self.tell(f"{client} is admitted to {room} by {client.token}")
        self._granted[client, room] = self.world.time.now
        self._judge(client, room, "admitted", new=True)

    def refreshed(self, client: Client, room: str | None) -> None:
        """The client was told that another token counts in its rooms, of which this is the first."""
        self.seen["refreshed"] += 1
        self.tell(f"{client} is in its rooms by {client.token}, first in {room}")
        if room is not None and room not in client.grants:
            self.wrong(f"{client} is told that it is in {room}, where it is not")

    def delivered(self, client: Client, room: str, number: int) -> None:
        """The client was told something that was said in the room."""
        self.seen["delivered"] += 1
        self.tell(f"{client} hears {number} in {room}")
        self.world.expected.discard((client, number))
        if room not in client.grants:
            self.wrong(f"{client} is told what is said in {room}, where it is not")
            return
        self._judge(client, room, "told what is said", new=False)

    def must_hear(self, client: Client, room: str) -> bool:
        """Whether nothing excuses it if the client does not hear what is said in the room now."""
        now, gateway = self.world.time.now, client.gateway
        token = client.grants.get(room)
        return (
            client.open
            and token is not None
            and client.entered[room] < now - 0.5
            and gateway.lives
            and gateway.up_since is not None
            and gateway.undisturbed_since < now - 1.0
            and not gateway.lag[SUBSCRIBER]
            and (gateway.unfollowed_at < gateway.up_since or not self.world.has_history(room))
            and (gateway.follows(room) or not self.world.has_history(room))  # without it is told by who has a lease
            and all(link.server is self.world.network.server for link in gateway.links(SUBSCRIBER))
            and not self._reason(client, room)
        )

    def told(self, client: Client, user: str, number: int) -> None:
        """The client was told something that was said to this user: once, and while it has access to any room."""
        self.seen["told"] += 1
        self.tell(f"{client} is told {number}")
        self.world.expected.discard((client, number))
        if client.user != user:
            self.wrong(f"{client} is told what is for {user}")
        if (client, number) in self._told_to:
            self.wrong(f"{client} is told {number} twice")
        self._told_to.add((client, number))
        forbidden = [self._forbidden(client, room, "told what is for its user", new=False) for room in client.grants]
        if forbidden and all(forbidden):
            self.violations += forbidden[0]

    def must_be_told(self, client: Client) -> bool:
        """Whether nothing excuses it if the client does not hear what is said to its user now."""
        gateway = client.gateway
        follows = gateway.follows_users and gateway.up_since is not None and gateway.unfollowed_at < gateway.up_since
        excused = self.world.setup.users and not follows
        return not excused and bool(client.grants) and all(self.must_hear(client, room) for room in client.grants)

    def have_heard(self, clients: list[Client], room: str, number: int, since: float, kept: bool) -> None:
        """They had to hear it by now. ``kept``: it is part of a history, which a gateway that is back, and has a lag,
        reads with some questions first.
        """
        for client in clients:
            if (client, number) in self.world.expected:
                self.world.expected.discard((client, number))
                gateway = client.gateway
                here = client.open and room in client.grants and client.entered[room] < since
                forgotten = gateway.up_since is None or gateway.unfollowed_at > gateway.up_since
                reads = gateway.up_since is not None and since < gateway.up_since + 8 * gateway.lag[COMMANDS]
                here = here and not (kept and (forgotten or reads or client.began_anew >= since))
                if here and gateway.lives and gateway.undisturbed_since < since and not self._reason(client, room):
                    self.wrong(f"{client} does not hear what is said in {room} at {since:.4f}, and nothing is wrong")

    def _reason(self, client: Client, room: str) -> bool:
        """Whether access to the room may be in question: a token of the client is or was refused, or is over soon."""
        auth, now = self.world.auth, self.world.time.now
        since = min(self._granted[client, room], now) - 10.0
        tokens = client.grants[room]
        if any(auth.expiry.get(token, now + 2.0) < now + 1.0 for token in tokens):
            return True
        return self.world.garbled or any(
            (ban.until is None or ban.until >= since) and any(ban.questions(token, room) for token in tokens)
            for ban in auth.bans
        )

    def _judge(self, client: Client, room: str, what: str, *, new: bool, at: float | None = None) -> None:
        self.violations += self._forbidden(client, room, what, new=new, at=at)

    def _forbidden(self, client: Client, room: str, what: str, *, new: bool, at: float | None = None) -> list[str]:
        """Why it must not be."""
        now = self.world.time.now if at is None else at
        found = [self._forbids(client, room, token, now, new=new) for token in sorted(client.grants[room])]
        return [f"at {self.world.time.now:.4f}: {client} is {what} in {room} by {why}" for why in found if all(found)]

    def _forbids(self, client: Client, room: str, token: str, now: float, *, new: bool) -> str:
        """Why it must not be there by this token, if it must not."""
        auth, gateway = self.world.auth, client.gateway
        if auth.expiry.get(token, now + 1) <= now:
            return f"{token}, which expired at {auth.expiry[token]}"
        for ban in auth.bans:
            if ban.until is None and ban.concerns(token, room):
                latest, why = self._latest(ban, gateway, token, new=new)
                if now > latest:
                    return (
                        f"{token}: no since {ban.since:.4f}, told by {ban.how or 'nothing'} at {ban.told_at}, "
                        f"at the latest {latest:.4f} ({why})"
                    )
        return ""

    def _latest(self, ban: Ban, gateway: GatewayProcess, token: str, *, new: bool) -> tuple[float, str]:
        """Until when the gateway may act on an older yes, and why."""
        auth, world = self.world.auth, self.world
        heard = ban.heard.get(gateway)
        if heard is not None:
            return heard + AT_ONCE, "heard"
        trouble = self._trouble()
        bounds = []
        # By its ttl. A new login may use the answer as long as it is fresh, and none that is older.
        ttl = auth.ttls.get(token, TTL)
        stale = ban.since + ttl + STALE
        asked = stale + 4 * gateway.lag[COMMANDS]
        bounds.append((stale if new else max(asked, trouble, gateway.undisturbed_since + DOUBT), "ttl"))
        up = gateway.up_since
        if ban.told_at is not None and up is not None:  # who has no link hears nothing
            if up > ban.told_at:
                doubt = up + DOUBT + self._settling(gateway, up) + 4 * gateway.lag[COMMANDS]
                bounds.append((up + LINKED if new else max(doubt, trouble), "its links were lost"))
            elif ban.how == "delete" and gateway.undisturbed_since < ban.told_at:
                bounds.append((ban.told_at + DELETED + world.lag_of(gateway), "deleted"))
            elif gateway.lives:
                bounds.append((max(ban.told_at + DEAF, gateway.undisturbed_since + DEAF), "deaf"))
        return min(bounds)

    def _unknown(self, gateway: GatewayProcess) -> bool:
        """Whether the gateway may have lost Redis before it knew whether a changed key was deleted: it counts as that,
        as long as the auth service cannot be asked.
        """
        in_trouble = self._trouble() >= self.world.time.now
        return in_trouble and gateway.undisturbed_since >= self.world.auth.well_until - 1.0

    def _trouble(self) -> float:
        """Until when the auth service may be in trouble."""
        auth = self.world.auth
        return self.world.time.now if auth.state != "up" else auth.troubled_until + RECOVERY

    def _settling(self, gateway: GatewayProcess, up: float) -> float:
        """For how long the gateway, back since ``up``, may wait to be told by one that is slow, in trouble, or dead."""
        others = [other for other in self.world.gateways if other is not gateway]
        silent = any(other.undisturbed_since > up - PATIENCE * other.process.dead for other in others)
        slow = any(other.lag[SUBSCRIBER] for other in others if other.lives)
        return SETTLING if silent or slow else 0.0

    def revoked(self, client: Client, room: str) -> None:
        """The client was told that it has no access to the room any more."""
        self.seen["revoked"] += 1
        self.tell(f"{client} loses {room}: ACCESS_REVOKED")
        if room not in client.grants:
            return
        if not self._reason(client, room):
            self.wrong(f"{client} loses {room}, and nobody ever took {client.token} back")

    def refused(self, client: Client, command: tuple[str, str, str], payload: Any) -> None:
        """An ``authenticate``, ``join`` or ``leave`` was refused."""
        self.seen[f"refused {payload['code']}"] += 1
        self.tell(f"{client}: {command} is refused with {payload}")
        if command[0] == "join" and payload["code"] == Code.ACCESS_DENIED:
            self.world.time.later(None, 0.0001, self._is_out, client, command[2])

    def _is_out(self, client: Client, room: str) -> None:
        if client.open and room in client.grants and client.entered[room] < self.world.time.now - 0.001:
            self.wrong(f"{client} is still in {room}, which it was denied")

    def closed(self, client: Client, code: int) -> None:
        """The gateway closes the client's connection."""
        self.seen[f"closed {code}"] += 1
        self.tell(f"{client} is closed with {code}")
        if code == 1011:
            self.wrong(f"{client} is closed with 1011")
        elif code == 4409 and not any(self._newer(other, client) for other in self.world.clients):
            self.wrong(f"{client} is closed with 4409, and there was no newer login")

    def _newer(self, other: Client, client: Client) -> bool:
        # A gateway knows Redis's clock as exactly as its lag allows.
        # Of a clock that was there only while it had no link, or before it was started, it knows nothing.
        clocks = [server.ahead for server in self.world.servers]
        unknown = max(clocks) - min(clocks) if client.gateway.started_at else _peak(clocks)
        alike = 0.01 + 2 * self.world.worst_lag + unknown
        return other is not client and (
            (
                other.user == client.user
                and any(
                    (other, room) in self._granted and self._granted[other, room] > self._came(client, room) - alike
                    for room in client.entered
                )
            )
            or not self._may_be_in(other).isdisjoint(self._may_be_in(client) | _is_in(client))
            or not self._may_be_in(client).isdisjoint(_is_in(other))
        )

    def _came(self, client: Client, room: str) -> float:
        """When it entered, at the earliest. With a history it is told so when Redis has said where that is."""
        late = self.world.has_history(room) or client.gateway.follows_users
        return client.came[room] if late else client.entered[room]

    def _may_be_in(self, client: Client) -> set[tuple[str, str]]:
        """As whom and where it may have been let in, and is told later, or had left before it could be told. In a room
        with history clients are told when Redis has said where the room is, and at first where the user is.
        """
        late = client.user is None and client.gateway.follows_users
        return {
            (client.user or "" if command == "join" else user_of(token), room)
            for command, token, room in client.commands.values()
            if room and (not client.open or late or self.world.has_history(room))
        }

    # Requests

    def answered(self, client: Client, number: str, message: Any) -> None:
        """A request is answered."""
        self.seen[f"answer {message['type']} {(message.get('payload') or {}).get('code', '')}".strip()] += 1
        self.tell(f"{client} is answered: {message}")
        request = client.requests.pop(number, None)
        if request is None:
            self.wrong(f"{client} is answered {number} twice, or without having asked: {message}")
            return
        request.answer = message
        code = (message.get("payload") or {}).get("code")
        suspended = code == Code.AUTH_UNAVAILABLE and request.room in client.grants
        if suspended and not self._reason(client, request.room) and not self._unknown(client.gateway):
            self.wrong(f"{client} is told AUTH_UNAVAILABLE in {request.room}, and nobody took anything back")
        if message["type"] == "chat:note:added" and message["payload"] != {"n": request.payload}:
            self.wrong(f"{client} gets another request's answer to {number}: {message}")
        if code == Code.SERVICE_UNAVAILABLE and self.world.calm:
            self.wrong(f"{client} is told SERVICE_UNAVAILABLE of {number}, and nothing is wrong")
        answered_at = self._answered_at.get((request.user, number))
        latest = min(self.world.time.now, request.began_at + TIMEOUT) - 0.3
        if code == Code.TIMEOUT and self.world.calm and answered_at is not None and answered_at < latest:
            self.wrong(f"{client} is told TIMEOUT of {number}, which was answered at {answered_at:.4f}")
        handled = self._handled.get((request.user, number))
        if code == Code.SERVICE_UNAVAILABLE:
            # Whoever hears this may ask anew, under another id.
            self._refused.add((request.user, number))
            if handled and handled[-1] == self.losses:
                self.wrong(f"{client} is told SERVICE_UNAVAILABLE of {number}, which the service has")

    def handled(self, event: Any) -> None:
        """The service got an event."""
        self.seen["handled"] += 1
        self.tell(f"the service is sent {event}")
        number, user, room = event.get("id"), event["userId"], event.get("roomId")
        client = self.world.clients_by_id[event["socketId"]]
        if client.user != user:
            self.wrong(f"the service is told that {client} is {user}")
        if room in client.grants:
            self._judge(client, room, "heard by the service", new=False, at=event["timestamp"] / 1000 - WALL)
        if number is None:
            return
        times = self._handled.setdefault((user, number), [])
        if (user, number) in self._refused:
            self.wrong(f"the service gets {number} of {user}, who was told SERVICE_UNAVAILABLE")
        if times and times[-1] == self.losses:
            self.wrong(f"the service gets {number} of {user} twice, room {room}")
        times.append(self.losses)

    def sends_again(self, request: Request) -> None:
        """The client sends a request again: the service may get it now."""
        self._refused.discard((request.user, request.id))

    def service_answers(self, event: Any) -> None:
        """The service answers an event."""
        self._answered_at.setdefault((event["userId"], event["id"]), self.world.time.now)

    def disconnected(self, client: Client) -> None:
        """A connection ended: its requests are answered elsewhere, or never."""

    # Rooms

    def presence(self, event: Any) -> None:
        """A presence event was published."""
        self._told["chat"].hear(event)

    def appended(self, length: int, event: bytes) -> None:
        """An event was appended to a stream, which has so many now."""
        if length > MOST_IN_STREAM:
            self.wrong(f"{length} events wait in a stream for {MOST_IN_STREAM}")
        self._unread[event] = None
        self._told["log"].hear(msgspec.json.decode(event))

    def read(self, event: bytes) -> None:
        """The service on the stream handles it."""
        self.seen["read"] += 1
        if event in self._unread:
            if event != next(iter(self._unread)):
                self.wrong(f"{event!r} is read before {next(iter(self._unread))!r}, or that was removed")
            del self._unread[event]

    def claims_lost(self) -> None:
        """What Redis knew of requests is gone: whoever sends one again may have it handled again."""
        self.losses += 1

    def data_lost(self) -> None:
        """Redis lost data. Who is where services are told by ``gateway:room:reset``, and by nothing before that."""
        self.claims_lost()
        self._unread.clear()

    def in_rooms(self) -> dict[tuple[str, str], str]:
        """User and room to socket, as services read it."""
        server = self.world.network.server
        if server is None:
            return {}
        prefix = self.world.named("room:")
        found = {}
        for key, value in server.keyspace.data.items():
            if key.startswith(prefix):
                room = key.removeprefix(prefix).decode()
                for user, socket in value.items():
                    found[user.decode(), room] = socket.decode()
        return found

    def end(self) -> None:
        """Everything is well, and has been for :data:`SETTLED` seconds: nothing waits, and services read the truth."""
        self._look_at_rooms()
        self.world.histories.end()
        for client in self.world.clients:
            for room in client.grants if client.open else ():
                if not any(self.world.auth.allows(token, room) for token in client.grants[room]):
                    self.wrong(f"{client} is still in {room} by {sorted(client.grants[room])}")
            if client.open and client.requests:
                self.wrong(f"{client} has no answer to {sorted(client.requests)}")
        self.check()

    def _look_at_rooms(self) -> None:
        there: dict[tuple[str, str], list[str]] = {}
        for client in self.world.clients:
            if client.open and client.gateway.lives:
                for room in client.grants:
                    assert client.user is not None
                    there.setdefault((client.user, room), []).append(client.socket_id)
        found = self.in_rooms()
        look_at_presence(self.world, found)
        for key, socket in found.items():
            if socket not in there.get(key, ()):
                self.wrong(f"room:{key[1]} has {key[0]} at {socket}, and there is {there.get(key)}")
        for key, sockets in there.items():
            if key not in found:
                self.wrong(f"room:{key[1]} lacks {key[0]}, who is there at {sockets}")
            if self.world.single and len(sockets) > 1:
                self.wrong(f"{key[0]} has {len(sockets)} sockets in {key[1]}: {sockets}")
        for service, told in self._told.items():
            present = {key for key, value in told.present.items() if value}
            if present != found.keys():
                self.wrong(f"{service} thinks that there are {sorted(present)}, and there are {sorted(found)}")
        if self._unread:
            self.wrong(f"never read: {list(self._unread)}")
        self.look_at_strings()

    def look_at_strings(self) -> None:
        """The string of each user and room names the socket that the room has; the newest, if two share the string."""
        found, strings = self.in_rooms(), self._strings()
        expected = {f"socket:{user}:{room}" for user, room in found}
        if strings.keys() != expected:
            self.wrong(f"the keys are {sorted(strings)}, and should be {sorted(expected)}")
        for key, socket in strings.items():
            named = {one: self._entered(*pair, one) for pair, one in found.items() if "socket:" + ":".join(pair) == key}
            if named and named.get(socket) != max(named.values()):
                self.wrong(f"{key} is {socket}, and the rooms have {named}, by when they entered")

    def _entered(self, user: str, room: str, socket: str) -> float:
        """When a socket entered a room, by Redis."""
        server = self.world.network.server
        assert server is not None
        score: float = server.keyspace.data[self.world.named(users_sockets(user, room))][socket.encode()]
        return score

    def _strings(self) -> dict[str, str]:
        server = self.world.network.server
        assert server is not None
        prefix = self.world.named("")
        return {
            key.removeprefix(prefix).decode(): value.decode()
            for key, value in server.keyspace.data.items()
            if key.startswith(prefix + b"socket:")
        }

    # Logs

    def logged(self, event: LogEvent) -> None:
        """Something was logged, by whatever part."""
        failure = event.get("log_failure")
        text = formatEvent(event) or ""
        self.tell(f"logged: {text} {'' if failure is None else failure.getErrorMessage()}")
        known = text and failure is not None and failure.check(ResponseError, NotPublished) is not None
        if "a bug" in text or "Unhandled" in text or (failure is not None and not known):
            # Of a failure that nobody handled Twisted logs that there is one, and then which, without a text.
            self.wrong(f"logged: {text}\n{'' if text or failure is None else failure.getTraceback()}")


def _is_in(client: Client) -> set[tuple[str, str]]:
    return {(client.user or "", room) for room in client.entered}


def _peak(clocks: Sequence[float]) -> float:
    """By how much one of these was ahead of one before it and of one after it, at most."""
    found = [clocks[at] - max(min(clocks[:at]), min(clocks[at + 1 :])) for at in range(1, len(clocks) - 1)]
    return max([0.0, *found])

"""Everybody around the gateways: clients, a service that answers, and the auth service, which changes its mind.

They tell :mod:`tests.simulation.invariants` what they see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any

import hiredis
import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred
from zope.interface import implementer

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.history import FUNCTION, TELL, TELL_USERS, USERS_FUNCTION
from kraftek.contract.interfaces import IAccessChecker, IClientLink
from kraftek.contract.lua import Script
from kraftek.contract.messages import Grant, Outgoing, Token
from kraftek.contract.names import BROADCAST, room_topic, token_key, user_key, user_topic
from tests.simulation.gateways import GatewayProcess
from tests.simulation.keyspace import Refusal
from tests.simulation.presences import Watching
from tests.simulation.redis import Peer, Server
from tests.simulation.virtual_time import WALL, Process
from tests.support.copies import Copy

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["AuthService", "Ban", "ChatService", "Checker", "Client", "LogService", "Request", "user_of"]

CHANNEL = "events:chat"
STREAM = "events:log"

_CLIENT_LAG = 0.0001


class Request(Struct, eq=False):
    """A request, which may be sent again over other connections. ``began_at``: when it was sent for the first time."""

    id: str
    user: str
    room: str
    token: str
    payload: int
    began_at: float = inf
    answer: Any = None
    client: Any = None
    copies: int = 0


@implementer(IClientLink)
class Client:
    """One connection of a user. ``grants``: the rooms it has been told that it is in, each with the tokens that it may
    be there by: the one that it was let in with, and whatever it showed since, for which room ever. A new token counts
    in each room that permits it, before it is answered, and even if the room that it was shown for does not.

    ``token``: the newest that was answered well; ``newer``: those shown since, or not answered yet. ``entered``: since
    when it is in each room, and ``came``: when it had asked to be. ``shown``: each token that it showed, with the room.
    ``copies``: what its page has of rooms with history, and has from former connections; ``began_anew``: when it was
    told last that it has missed something there.
    """

    peer = "simulated"
    numbers = count(1)

    def __init__(self, world: World, gateway: GatewayProcess) -> None:
        self.world = world
        self.gateway = gateway
        self.user: str | None = None
        self.token: str | None = None
        self.newer: set[str] = set()
        self.grants: dict[str, set[str]] = {}
        self.entered: dict[str, float] = {}
        self.came: dict[str, float] = {}
        self.commands: dict[str, tuple[str, str, str]] = {}
        self.requests: dict[str, Request] = {}
        self.shown: set[tuple[str, str]] = set()
        self.copies: dict[str, Copy] = {}
        self.began_anew = 0.0
        self.since: dict[str, Any] = {}
        self.user_since: dict[str, Any] = {}
        self.presence = Watching(self)
        self.open = True
        self.closing: str | None = None
        self.socket_id = ""
        self.session = gateway.core.gateway.open(self, gateway.dialect)

    def __repr__(self) -> str:
        return f"<{self.user} on {self.socket_id}>"

    # What it does

    def authenticate(self, token: str, room: str | None) -> None:
        """Show a token, for a room, or for those that it is in."""
        self.shown.update((token, each) for each in ([*self.grants] if room is None else [room]))
        for tokens in (self.newer, *self.grants.values()):
            tokens.add(token)
        number = f"a{next(self.world.numbers)}"
        self.commands[number] = "authenticate", token, room or ""
        where = {} if room is None else {"roomId": room, **self._since(number, room), **self.presence.data}
        if self.user is None:
            where |= self._since_as(number, user_of(token))
        self.send({"type": "authenticate", "payload": {"token": token, **where}, "id": number})

    def join(self, room: str) -> None:
        """Ask to be in one room more."""
        number = f"j{next(self.world.numbers)}"
        self.commands[number] = "join", "", room
        self.send(
            {
                "type": "join",
                "payload": {"roomId": room, **self._since(number, room), **self.presence.data},
                "id": number,
            }
        )

    def _since(self, number: str, room: str) -> dict[str, Any]:
        """Where the page was in the room, unless it is there."""
        if room not in self.grants:
            self.came[room] = self.world.time.now
        if not self.gateway.follows(room):
            self.copies.pop(room_topic(room), None)  # what it hears there has no offset
        copy = self.copies.get(room_topic(room))
        self.since[number] = copy.since if copy is not None and room not in self.grants else None
        return {"since": self.since[number]} if self.since[number] else {}

    def _since_as(self, number: str, user: str) -> dict[str, Any]:
        """Where the page was in what its user is told."""
        if not self.gateway.follows_users:
            self.copies.pop(user_topic(user), None)
        copy = self.copies.get(user_topic(user))
        self.user_since[number] = None if copy is None else copy.since
        return {"userSince": self.user_since[number]} if self.user_since[number] else {}

    @property
    def goes_back(self) -> list[str]:
        """The rooms to which its page may come back, if it is away and knows where it was."""
        if self.open or not self.copies or not self.user:
            return []
        kept = room_topic("")
        return [topic.removeprefix(kept) for topic in self.copies if topic.startswith(kept)] or [*self.grants]

    def leave(self, room: str) -> None:
        """Leave a room."""
        number = f"l{next(self.world.numbers)}"
        self.commands[number] = "leave", "", room
        self.send({"type": "leave", "payload": {"roomId": room}, "id": number})

    def request(self, request: Request) -> None:
        """Ask the service something, or again."""
        self.requests[request.id] = request
        request.client, request.began_at = self, min(request.began_at, self.world.time.now)
        request.copies += 1
        message = {"type": "chat:note:add", "payload": {"n": request.payload}, "id": request.id, "roomId": request.room}
        self.send({**message, "resent": True} if request.copies > 1 else message)

    def burst(self, room: str, count: int) -> None:
        """Send so many events at once."""
        for number in range(count):
            self.send({"type": "chat:note:seen", "payload": {"n": number}, "roomId": room})

    def disconnect(self) -> None:
        """Close, or lose, the connection."""
        if self.open:
            self._ended()
            self.world.time.later(self.gateway.process, _CLIENT_LAG, self.session.lost)

    def send(self, message: Any) -> None:
        """Say it."""
        data = json.dumps(message).encode()
        self.world.time.later(self.gateway.process, _CLIENT_LAG, self._deliver, data)

    def _deliver(self, data: bytes) -> None:
        if self.open:
            self.session.receive(data)

    def _ended(self) -> None:
        self.open = False
        self.world.invariants.disconnected(self)

    # IClientLink

    def write(self, outgoing: Outgoing) -> None:
        if self.open:
            message = msgspec.json.decode(outgoing.text)
            if not self.presence.told(message):
                self._told(message)

    def close(self, code: int, reason: str) -> None:
        if self.open:
            self.closing = f"{code} {reason}"
            self.world.invariants.closed(self, code)
            self._ended()

    def pause(self) -> None:
        """It sends on all the same: the bound is the edge's business."""

    def resume(self) -> None:
        """See :meth:`pause`."""

    def slow(self, seconds: float) -> None:
        """See :meth:`pause`."""

    # What it is told

    def _told(self, message: Any) -> None:
        invariants, number = self.world.invariants, message.get("id")
        payload = message.get("payload")
        match message["type"]:
            case "connected":
                self.socket_id = payload["socketId"]
            case "authenticated" | "joined" as what:
                self._let_in(what, number, payload)
            case "position":
                topic = room_topic(message["roomId"]) if "roomId" in message else user_topic(self.user or "")
                self.world.histories.positioned(self, topic, payload)
            case "left":
                _, _, room = self.commands.pop(number)
                self._leaves(room)
            case "error" if number in self.commands:
                invariants.refused(self, self.commands.pop(number), payload)
            case "error" if number is None:
                if payload["code"] == Code.ACCESS_REVOKED and "roomId" in message:
                    invariants.revoked(self, message["roomId"])
                    self._leaves(message["roomId"])
            case _ if number is not None:
                invariants.answered(self, number, message)
            case "chat:message:new":
                self._hears(message["roomId"], payload["n"], message.get("offset"))
            case "chat:message:yours":
                invariants.told(self, payload["user"], payload["n"])
                if (offset := message.get("userOffset")) is not None:
                    self.world.histories.copy_of(self, user_topic(payload["user"])).heard(offset, payload["n"])

    def _hears(self, room: str, number: int, offset: int | None) -> None:
        self.world.invariants.delivered(self, room, number)
        if offset is not None:
            self.world.histories.copy_of(self, room_topic(room)).heard(offset, number)

    def _let_in(self, what: str, number: str, payload: Any) -> None:
        _, token, room = self.commands.pop(number)
        if what == "authenticated":
            first, self.token, self.user = self.user is None, token, payload["userId"]
            where, since = payload.get("userPosition"), self.user_since.pop(number, None)
            if first and self.gateway.follows_users:
                self.world.histories.answered(self, user_topic(self.user), where or {}, since)
            elif where is not None:
                self.world.invariants.wrong(f"{self} is told where its user is: {payload}")
            self.newer = {token for command, token, _ in self.commands.values() if command == "authenticate"}
        if room:
            self._enters(room, payload, self.since.pop(number))
        else:
            self.world.invariants.refreshed(self, payload["roomId"])

    def _enters(self, room: str, payload: Any, since: Any) -> None:
        assert self.token is not None
        was_there = room in self.grants
        self.grants[room] = {self.token, *self.newer}
        self.entered.setdefault(room, self.world.time.now)
        self.world.invariants.admitted(self, room)
        if self.gateway.follows(room) and not (was_there and payload.keys().isdisjoint({"epoch", "recovered"})):
            self.world.histories.answered(self, room_topic(room), payload, since)
        self.presence.entered(room)

    def _leaves(self, room: str) -> None:
        self.presence.left(room)
        self.grants.pop(room, None)
        self.entered.pop(room, None)


class ChatService:
    """A service on Pub/Sub that answers requests, as the kit does. ``answers``: after how many seconds, or never."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.answers: float | None = 0.005
        self._reader = hiredis.Reader()
        self._attached: tuple[Server, Peer] | None = None

    def attach(self, server: Server) -> None:
        """Subscribe at this server."""
        if server is self.world.network.server:
            if self._attached is not None:
                self._attached[0].disconnect(self._attached[1])
            self._reader = hiredis.Reader()
            peer = server.connect(self._received)
            server.subscribe(peer, self.world.named(CHANNEL))
            self._attached = server, peer

    def _received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            self.world.time.later(None, _CLIENT_LAG, self._handle, msgspec.json.decode(reply[2]))

    def _handle(self, event: Any) -> None:
        if event["eventType"] == "chat:note:add" and "id" in event and self.answers is not None:
            self.world.time.later(None, self.answers, self._answer, event)

    def _answer(self, event: Any) -> None:
        answer = {
            "type": "chat:note:added",
            "recipients": [event["socketId"]],
            "payload": event["payload"],
            "inReplyTo": event["id"],
        }
        self.world.invariants.service_answers(event)
        if self.world.publish_raw(event["replyTo"], answer) == 0:
            self.world.publish("events:broadcast", {**answer, "userIds": [event["userId"]]})

    def say(self, room: str, number: int, but_for: Sequence[str] = ()) -> bool:
        """Tell everybody in a room something, but for these sockets. Returns whether that was done."""
        message: dict[str, Any] = {"type": "chat:message:new", "payload": {"n": number}}
        if but_for:
            message["excludeSocketIds"] = list(but_for)
        if not self.world.has_history(room):
            return self.world.publish("events:broadcast", {**message, "roomId": room}) is not None
        told = self._tell_room(room, message, str(number))
        if isinstance(told, list) and told[1] and self.world.random.random() < 0.25:
            again = self._tell_room(room, message, str(number))  # as if the reply had been lost
            if again != [0, *told[1:]]:
                self.world.invariants.wrong(f"{number} is told twice: {told}, {again}")
        return isinstance(told, list)

    def _tell_room(self, room: str, message: Any, number: str) -> Any:
        return self._call(FUNCTION, TELL, room, message, number)

    def _call(self, function: str, script: Script, whom: str, message: Any, number: str) -> Any:
        """By the Function, where there is one, or by the script."""
        server = self.world.network.server
        if server is None:
            return None
        words = whom, msgspec.json.encode(message), number, self.world.setup.prefix, BROADCAST
        told = server.call("FCALL", function, "0", *words)
        if isinstance(told, Refusal) and str(told).startswith(("ERR Function not found", "ERR unknown command")):
            told = server.call("EVAL", script.source, "0", *words)
        return told

    def tell(self, user: str, number: int) -> bool:
        """Tell all connections of a user something. Returns whether that was done."""
        message = {"type": "chat:message:yours", "payload": {"n": number, "user": user}}
        if not self.world.setup.users:
            return self.world.publish("events:broadcast", {**message, "userIds": [user]}) is not None
        return isinstance(self._call(USERS_FUNCTION, TELL_USERS, f'["{user}"]', message, str(number)), list)


class LogService:
    """A service on a stream that a few events fill. ``reads``: whether it handles what is in there."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.reads = True

    def read(self) -> None:
        """Handle some entries. Its group is made anew when it is gone."""
        server, stream = self.world.network.server, self.world.named(STREAM)
        if server is not None and self.reads:
            server.call("XGROUP", "CREATE", stream, "log", "0", "MKSTREAM")
            answer = server.call("XREADGROUP", "GROUP", "log", "c", "COUNT", "2", "NOACK", "STREAMS", stream, ">")
            for _, entries in answer if isinstance(answer, list) else ():
                for _, fields in entries:
                    self.world.invariants.read(fields[1])


class Ban(Struct, eq=False):
    """The auth service's no: to a user (``token`` empty) or a token, in one room or all.

    ``told_at``: when Redis took the invalidation or the deletion that says so, or ``None``; ``how`` it was told;
    ``heard``: when each gateway heard an ``auth:invalidate``; ``until``: when it was taken back.
    """

    user: str
    token: str
    room: str | None
    since: float
    told_at: float | None = None
    how: str = ""
    heard: dict[GatewayProcess, float] = {}
    until: float | None = None

    def concerns(self, token: str, room: str) -> bool:
        """Whether that token is refused in that room by it."""
        mine = token == self.token if self.token else user_of(token) == self.user
        return mine and self.room in (None, room)

    def questions(self, token: str, room: str) -> bool:
        """Whether it puts that in question: a deleted key is about all rooms, an invalidation about all tokens."""
        if self.how == "invalidate":
            return user_of(token) == self.user and self.room in (None, room)
        return self.concerns(token, self.room if self.how == "delete" and self.room is not None else room)


def user_of(token: str) -> str:
    """A token is its user's name and a number: ``ann/1``. An ending ``/x5`` says that it expires 5 s after 0."""
    return token.partition("/")[0]


class AuthService:
    """Who may what. ``state``: ``up``, ``slow`` (a second), ``down`` (refused at once) or ``hangs``.

    ``ttls``: of the answers about each token, in seconds; ``expiry``: when tokens expire, in the simulation's seconds.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.state = "up"
        self.well_until = self.troubled_until = 0.0
        self.bans: list[Ban] = []
        self.ttls: dict[str, float] = {}
        self.expiry: dict[str, float] = {}
        self.asked = 0

    def allows(self, token: str, room: str) -> bool:
        """The truth."""
        return not self.expired(token) and not any(ban.until is None and ban.concerns(token, room) for ban in self.bans)

    def expired(self, token: str) -> bool:
        """Whether the token's time is over."""
        return self.expiry.get(token, self.world.time.now + 1) <= self.world.time.now

    def set(self, state: str) -> None:
        """Change how it answers."""
        if self.state == "up":
            self.well_until = self.world.time.now
        self.note()
        self.state = state

    def note(self) -> None:
        """Keep until when it was not well."""
        if self.state != "up":
            self.troubled_until = self.world.time.now

    def ban(self, user: str, token: str, room: str | None) -> Ban:
        """Change its mind."""
        ban = Ban(user, token, room, self.world.time.now)
        self.bans.append(ban)
        return ban

    def invalidate(self, ban: Ban) -> None:
        """Tell it with ``auth:invalidate``."""
        message = {"userId": ban.user, **({} if ban.room is None else {"roomId": ban.room})}
        ban.how, ban.told_at = "invalidate", self.world.time.now
        self.world.publish("auth:invalidate", message)  # while Redis is away nobody hears it, and everybody knows that

    def delete(self, ban: Ban) -> None:
        """Tell it by deleting a key of the cache."""
        key = token_key(Token(ban.token).digest) if ban.token else user_key(ban.user)
        ban.how = "delete"
        server = self.world.network.server
        if server is not None and server.call("DEL", self.world.named(key)) == 1:
            ban.told_at = self.world.time.now

    def forgive(self) -> None:
        """Take all bans back."""
        for ban in self.bans:
            if ban.until is None:
                ban.until = self.world.time.now


@implementer(IAccessChecker)
class Checker:
    """The auth service, as one gateway asks it."""

    def __init__(self, auth: AuthService, process: Process) -> None:
        self._auth = auth
        self._process = process

    def check(self, token: Token, room_id: str | None, turn: str = "") -> Deferred[Grant]:
        auth, answer = self._auth, Deferred[Grant]()
        auth.asked += 1
        seconds = {"up": 0.002, "slow": 1.0, "down": 0.001, "hangs": 3.0}[auth.state]
        arrives = auth.state in {"up", "slow"}
        decided: list[Grant | PeerError] = []

        def decide() -> None:
            decided.append(self._decision(token.value, room_id or "") if arrives else _unavailable())

        def fire() -> None:
            (decision,) = decided
            if isinstance(decision, Grant):
                answer.callback(decision)
            else:
                answer.errback(decision)

        auth.world.time.later(None, seconds / 2, decide)
        self._process.callLater(seconds, fire)
        return answer

    def vouches(self, source: str) -> bool:
        return True

    def on_change(self, listener: Callable[[], None]) -> None:
        """It takes back what it has said by ``auth:invalidate``, or by deleting keys."""

    def _decision(self, token: str, room: str) -> Grant | PeerError:
        auth = self._auth
        if not auth.allows(token, room):
            return PeerError(Code.AUTH_FAILED, "Access denied", closes=True)
        expiry = auth.expiry.get(token)
        expires_at = None if expiry is None else WALL + expiry
        return Grant(user_of(token), room, ttl=auth.ttls.get(token), expires_at=expires_at)


def _unavailable() -> PeerError:
    return PeerError(Code.AUTH_UNAVAILABLE, "access cannot be checked at present", retry_after=1.0)

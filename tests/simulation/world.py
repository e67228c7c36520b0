"""Gateways, a Redis, and everybody around them, on virtual time. What happens in it: :mod:`tests.simulation.steps`."""

from __future__ import annotations

import gc
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from random import Random
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from twisted.logger import globalLogPublisher

import kraftek.bus.standing
import kraftek.contract.names
import kraftek.core.history.log
from kraftek.contract.errors import Code
from kraftek.contract.names import room_topic
from kraftek.contract.settings import Auth, Config, Limits, Redis, Registration, RoomPolicy, Users
from kraftek.core.history.rules import Rules
from tests.simulation.gateways import GatewayProcess
from tests.simulation.histories import Histories
from tests.simulation.invariants import MOST_IN_STREAM, SETTLED, TIMEOUT, TTL, UNFOLLOWED, Invariants
from tests.simulation.network import BASE_LAG, COMMANDS, SUBSCRIBER, Link, Network
from tests.simulation.people import (
    CHANNEL,
    STREAM,
    AuthService,
    ChatService,
    Checker,
    Client,
    LogService,
    Request,
)
from tests.simulation.redis import Server
from tests.simulation.virtual_time import Process, VirtualTime

__all__ = ["Setup", "World"]

_TICK = 0.1
"""Seconds between two looks of Redis for what has expired."""


class Setup(Struct, frozen=True):
    """What a run begins with. ``oldest``: Redis is a 6.2. ``history``: messages that are kept of rooms that
    ``with_history`` covers, and ``users`` of each user, for so many seconds. ``mixed``: the first gateway knows nothing
    of that, as an older one. ``presence``: clients ask who is in their rooms.
    """

    seed: int = 0
    gateways: int = 2
    single: bool = True
    prefix: str = ""
    in_flight: int = 10_000
    oldest: bool = False
    history: int = 0
    with_history: str = "*"
    users: int = 0
    history_ttl: float = 600.0
    mixed: bool = False
    presence: bool = False


def _rooms(setup: Setup) -> tuple[RoomPolicy, ...]:
    some: Any = {"history": setup.history, "history_ttl": setup.history_ttl}
    kept = (RoomPolicy(pattern=setup.with_history, presence=setup.presence, **some),) if setup.history else ()
    return (*kept, RoomPolicy(pattern="*", presence=True)) if setup.presence else kept


class World:
    """``expected``: which clients have still to be told what. ``calm``: there was no fault until now. ``ample``: more
    may be in flight than a gateway sends by itself. ``garbled``: cached grants were overwritten.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.single = setup.single
        self.random = Random(setup.seed)
        self.time = VirtualTime()
        self.numbers = count(1)
        self.network = Network(self.time, self._lag)
        self.servers: list[Server] = []
        self.invariants = Invariants(self)
        self.histories = Histories(self)
        self.auth = AuthService(self)
        self.chat = ChatService(self)
        self.log = LogService(self)
        self.gateways: list[GatewayProcess] = []
        self.clients: list[Client] = []
        self.clients_by_id: dict[str, Client] = {}
        self.requests: list[Request] = []
        self.expected: set[tuple[Client, int]] = set()
        self.garbled = False
        self.worst_lag = 0.0
        self.calm = self.ample = setup.in_flight >= 100
        self._saved: Any = None
        self._kept: Any = None
        self.config = Config(
            sessions="single" if setup.single else "many",
            redis=Redis(url="unix:///simulated", prefix=setup.prefix, in_flight=setup.in_flight),
            auth=Auth(cache_ttl=TTL),
            limits=Limits(request_window=60.0),
            services=(
                Registration(name="chat", channel=CHANNEL, reply=True, timeout=TIMEOUT, presence=True),
                Registration(name="log", channel=STREAM, transport="stream", max_length=MOST_IN_STREAM, presence=True),
            ),
            rooms=_rooms(setup),
            users=Users(history=setup.users, history_ttl=setup.history_ttl),
        )
        self._rules = Rules(self.config.rooms)

    @contextmanager
    def running(self) -> Iterator[World]:
        """Start it, and end it: nothing of it is left then."""
        observer: Any = self.invariants.logged
        state = random.getstate()
        random.seed(self.setup.seed)
        # Ids are made where nobody passes a source of chance: with those of the system no run would come twice.
        modules = kraftek.contract.names, kraftek.bus.standing, kraftek.core.history.log
        makers: list[dict[str, Any]] = [vars(module) for module in modules]
        for maker in makers:
            maker["token_hex"] = self._token_hex
        globalLogPublisher.addObserver(observer)
        try:
            self.new_server(None)
            for _ in range(self.setup.gateways):
                self.start_gateway()
            self._tick()
            self.time.pass_until(0.2)
            yield self
        finally:
            self._end()
            globalLogPublisher.removeObserver(observer)
            for maker in makers:
                maker["token_hex"] = secrets.token_hex
            random.setstate(state)

    def _end(self) -> None:
        """Let everything go: a failure that nobody handled is logged when its Deferred is collected."""
        for gateway in self.gateways:
            gateway.process.dead = True
            vars(gateway).pop("core", None)
            vars(gateway).pop("bus", None)
        for client in self.clients:
            vars(client).pop("session")
        self.time.forget()
        self.network.links.clear()
        gc.collect()

    def _token_hex(self, size: int) -> str:
        return f"{self.random.getrandbits(8 * size):0{2 * size}x}"

    def has_history(self, room: str) -> bool:
        """Whether what the room is told is kept."""
        return self._rules.keep(room_topic(room))

    def named(self, name: str) -> bytes:
        """The name of a key or a channel in Redis."""
        return f"{self.setup.prefix}{name}".encode()

    # Gateways

    def start_gateway(self) -> GatewayProcess:
        """One more."""
        name = f"g{len(self.gateways)}"
        config = self.config
        if self.setup.mixed and not self.gateways:
            config = replace(config, rooms=(), users=Users())
        gateway = GatewayProcess(name, self.time, self.network, config, self._checker, self._heard)
        self.gateways.append(gateway)
        return gateway

    def _checker(self, process: Process) -> Checker:
        return Checker(self.auth, process)

    def _heard(self, gateway: GatewayProcess, body: bytes) -> None:
        message = msgspec.json.decode(body)
        for ban in self.auth.bans:
            if ban.how == "invalidate" and ban.user == message["userId"] and ban.room == message.get("roomId"):
                ban.heard.setdefault(gateway, self.time.now)

    def kill(self, gateway: GatewayProcess) -> None:
        """Its process dies."""
        gateway.kill()
        for client in self.clients:
            if client.gateway is gateway:
                client.disconnect()

    # Clients

    def connect(self, gateway: GatewayProcess) -> Client:
        """A client connects."""
        client = Client(self, gateway)
        self.clients.append(client)
        self.clients_by_id[client.socket_id] = client
        return client

    # Redis

    def new_server(self, snapshot: Any, ahead: float = 0.0) -> Server:
        """Redis is there, with these data; services find it a moment later."""
        data, histories = snapshot if snapshot is not None else (None, {})
        server = Server(self.time, self.random, data, ahead, oldest=self.setup.oldest)
        self.servers.append(server)
        self.network.server = server
        server.listeners.append(partial(self._published, server))
        server.keyspace.appended = partial(self._appended, server)
        self.histories.watch(server, {room: list(said) for room, said in histories.items()})
        self.time.later(None, 0.02 if len(self.servers) > 1 else 0.0, self.chat.attach, server)
        return server

    def _published(self, server: Server, channel: bytes, body: bytes, receivers: int) -> None:
        if channel == self.named(CHANNEL):
            event = msgspec.json.decode(body)
            if event["eventType"].startswith("gateway:"):
                if server is self.network.server:
                    self.invariants.presence(event)
            elif receivers:
                self.invariants.handled(event)

    def _appended(self, server: Server, key: bytes, fields: list[bytes]) -> None:
        if server is self.network.server and key == self.named(STREAM):
            self.invariants.appended(server.keyspace.xlen(key), fields[1])

    def disturbed(self) -> None:
        """Something is wrong with Redis, or was."""
        for gateway in self.gateways:
            gateway.disturbed()

    def save(self) -> None:
        """What Redis holds now is on disk, and what a replica has."""
        if self.network.server is not None:
            self._saved = self._snapshot(self.network.server)

    def _snapshot(self, server: Server) -> Any:
        return server.keyspace.copy(), self.histories.copy(server)

    def stop_redis(self) -> None:
        """Redis's process ends."""
        if self.network.server is not None:
            self._kept = self._snapshot(self.network.server)
            self.network.crash()

    def start_redis(self, data: str) -> None:
        """It is there again, with these data: ``kept``, ``saved`` or ``empty``."""
        if self.network.server is None:
            self.new_server({"kept": self._kept, "saved": self._saved, "empty": None}[data])
            if data != "kept":
                self.invariants.data_lost()

    def fail_over(self, ahead: float, *, lives: bool) -> None:
        """A replica takes over."""
        old = self.network.server
        if old is None:
            return
        if lives:
            old.refuses = "READONLY"
        else:
            self.network.crash()
        self.new_server(self._saved or self._snapshot(old), ahead)
        self.invariants.data_lost()
        self.disturbed()

    def garble(self, prefix: str) -> None:
        """Something else writes what cannot be read."""
        server, begin = self.network.server, self.named(prefix)
        if server is None or server.refuses is not None:
            return
        self.disturbed()
        if prefix == "gateways:lost":
            server.call("SADD", begin, b"\xff", b"[1]")
            return
        for key, value in tuple(server.keyspace.data.items()):
            if key.startswith(begin) and isinstance(value, dict):
                self.garbled = True  # as if it had been deleted
                server.call("HSET", key, *[word for field in value for word in (field, b"{\xff")])
            elif key.startswith(begin):
                server.call("SET", key, b"{\xff", "KEEPTTL")
                self.invariants.claims_lost()

    def resume_all(self) -> None:
        """Paused gateways go on."""
        for gateway in self.gateways:
            if gateway.process.paused:
                gateway.process.resume()
                gateway.disturbed()

    def say(self, room: str, but_for: Client | None = None) -> None:
        """The service tells a room something: those who must hear it, do."""
        number = next(self.numbers)
        hearers = [
            client for client in self.clients if client is not but_for and self.invariants.must_hear(client, room)
        ]
        self.expected.update((client, number) for client in hearers)
        if not self.chat.say(room, number, () if but_for is None else (but_for.socket_id,)):
            self.expected.difference_update((client, number) for client in hearers)
        kept = self.has_history(room)
        self.time.later(None, 0.5, self.invariants.have_heard, hearers, room, number, self.time.now, kept)

    def tell(self, user: str) -> None:
        """The service tells a user something: each connection of it that must hear it, does."""
        number = next(self.numbers)
        hearers = [client for client in self.clients if client.user == user and self.invariants.must_be_told(client)]
        self.expected.update((client, number) for client in hearers)
        if not self.chat.tell(user, number):
            self.expected.difference_update((client, number) for client in hearers)
        kept = bool(self.setup.users)
        for client in hearers:
            room = next(iter(client.grants))
            self.time.later(None, 0.5, self.invariants.have_heard, [client], room, number, self.time.now, kept)

    def _tick(self) -> None:
        self.time.later(None, _TICK, self._tick)
        if self.network.server is not None:
            self.network.server.expire()
        self.log.read()

    def publish(self, channel: str, message: Any) -> int | None:
        """A service publishes; ``None`` when there is no Redis."""
        return self.publish_raw(f"{self.setup.prefix}{channel}", message)

    def publish_raw(self, channel: str, message: Any) -> int | None:
        """The same, for a name with its prefix."""
        server = self.network.server
        if server is None:
            return None
        receivers: int = server.call("PUBLISH", channel, msgspec.json.encode(message))
        return receivers

    # Lag

    def _lag(self, link: Link) -> float:
        gateway = next((each for each in self.gateways if each.process is link.process), None)
        extra = 0.0 if gateway is None else gateway.lag.get(link.kind, 0.0)
        return BASE_LAG + extra + self.random.random() * (BASE_LAG + extra)

    def lag_of(self, gateway: GatewayProcess) -> float:
        """What a look-up after an announcement takes, at most."""
        return 2 * gateway.lag[SUBSCRIBER] + 8 * gateway.lag[COMMANDS] + 20 * BASE_LAG

    # Time

    def pass_time(self, seconds: float) -> None:
        """Time passes, and what is wrong comes out."""
        self.time.pass_until(self.time.now + seconds)
        self.invariants.check()

    def heal(self) -> None:
        """Nothing is wrong any more."""
        self.auth.set("up")
        self.chat.answers = 0.005
        self.log.reads = True
        for gateway in self.gateways:
            gateway.lag = {SUBSCRIBER: 0.0, COMMANDS: 0.0}
        self.resume_all()
        self.disturbed()
        for link in tuple(self.network.links):
            if link.deaf:
                link.cut()
        if self.network.server is None:
            self.new_server(None)
            self.invariants.data_lost()
        assert self.network.server is not None
        self.network.server.refuses = None
        for link in tuple(self.network.links):
            if link.server is not self.network.server:
                link.cut()

    def settle(self) -> None:
        """Nothing is wrong any more, for long enough; then look at everything, and try everything."""
        self.heal()
        self.pass_time(SETTLED)
        self.invariants.end()
        self._come_back()
        probes = [self.probe(gateway) for gateway in self.gateways if gateway.accepts]
        for room in {room for client in self.clients for room in client.grants}:
            self.say(room)
        self._show_refused_tokens()
        self.pass_time(UNFOLLOWED if any(gateway.unfollowed_at > 0 for gateway in self.gateways) else 1.0)
        if not self.ample:
            # What a gateway sends by itself may fill it at times: whoever is told SERVICE_UNAVAILABLE may ask anew.
            probes = [self._ask_anew(request) for request in probes]
            self.pass_time(1.0)
        for request in probes:
            answer = request.answer
            if answer is None or answer["type"] != "chat:note:added":
                self.invariants.wrong(f"{request.client.gateway.name} does not work: {answer}")
        self.invariants.end()

    def probe(self, gateway: GatewayProcess) -> Request:
        """A user whom nobody refused anything comes, and asks the service."""
        client = self.connect(gateway)
        client.authenticate("probe/1", gateway.name)
        return self._ask(client)

    def _ask(self, client: Client) -> Request:
        number = next(self.numbers)
        request = Request(f"p{number}", "probe", client.gateway.name, "probe/1", number)
        client.request(request)
        return request

    def _ask_anew(self, request: Request) -> Request:
        """If it was told to."""
        answer = request.answer or {"type": ""}
        refused = answer["type"] == "error" and answer["payload"]["code"] == Code.SERVICE_UNAVAILABLE
        return self._ask(request.client) if refused else request

    def _come_back(self) -> None:
        """Every page that is away tries to go on, unless its user is there."""
        there = {client.user for client in self.clients if client.open}
        accepting = [gateway for gateway in self.gateways if gateway.accepts]
        for gone in [client for client in self.clients if client.goes_back]:
            if accepting and not (self.single and gone.user in there):
                there.add(gone.user)
                self.come_back(gone, self.random.choice(accepting))
        self.pass_time(1.0)

    def come_back(self, gone: Client, gateway: GatewayProcess) -> None:
        """A page whose connection ended connects again, and goes on where it was."""
        assert gone.token is not None
        client = self.connect(gateway)
        rooms = gone.goes_back
        client.copies, gone.copies = gone.copies, {}
        client.authenticate(gone.token, rooms[0])
        for room in rooms[1:]:
            client.join(room)

    def _show_refused_tokens(self) -> None:
        """Whoever is refused tries once more, everywhere."""
        shown = {(token, room) for client in self.clients for token, room in client.shown}
        for token, room in sorted(shown):
            if not self.auth.allows(token, room):
                for gateway in self.gateways:
                    if gateway.accepts:
                        self.connect(gateway).authenticate(token, room)

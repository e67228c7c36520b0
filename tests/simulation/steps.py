"""What happens in a run, step by step. Which steps, :mod:`tests.simulation.programs` draws.

Each step names clients, gateways, rooms and so on by number; the number is taken modulo how many there are, so that any
part of a program is a program. A step that makes no sense at its time does nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from msgspec import Struct

from tests.simulation.gateways import GatewayProcess
from tests.simulation.people import Client, Request
from tests.simulation.world import Setup, World

__all__ = [
    "ROOMS",
    "USERS",
    "Answers",
    "Ask",
    "AskAgain",
    "AuthIs",
    "Authenticate",
    "Ban",
    "Burst",
    "ComeBack",
    "Connect",
    "Cut",
    "CutAll",
    "Deafen",
    "Disconnect",
    "FailOver",
    "Flush",
    "Forgive",
    "Garble",
    "Join",
    "Kill",
    "Lag",
    "Leave",
    "Limit",
    "Pause",
    "Program",
    "Reads",
    "Refuse",
    "Resume",
    "Save",
    "Say",
    "Start",
    "Step",
    "Stop",
    "Tell",
    "Unfollow",
    "Wait",
    "run",
]

USERS = ("ann", "bob", "a:b", "a")
ROOMS = ("red", "blue", "c", "b:c")
"""``a:b`` in ``c`` and ``a`` in ``b:c`` share ``socket:a:b:c``. A program has the first two of each, or all."""

_BETWEEN = (0.0003, 0.004, 0.03, 0.3)
"""Seconds between two steps, one of these."""

CALM = 0.3
"""Seconds after which Redis has what clients did, if nothing is wrong."""

Kind = Literal["subscriber", "commands"]


class Step(Struct, frozen=True):
    """Something that happens. ``fault``: it is none of what an installation without faults sees every day."""

    fault: ClassVar[bool] = False

    def run(self, world: World) -> None:
        """Have it happen."""
        raise NotImplementedError


class Program(Struct, frozen=True):
    """A run."""

    setup: Setup
    steps: tuple[Step, ...]


class Wait(Step, frozen=True):
    seconds: float

    def run(self, world: World) -> None:
        world.pass_time(self.seconds)
        if world.calm and self.seconds >= CALM:
            world.invariants.look_at_strings()


# Clients


class Connect(Step, frozen=True):
    gateway: int
    token: str
    room: str

    def run(self, world: World) -> None:
        if (gateway := _gateway(world, self.gateway)) is not None:
            world.connect(gateway).authenticate(self.token, self.room)


class Authenticate(Step, frozen=True):
    """A client shows another token: for a room, or for those that it is in."""

    client: int
    number: int
    room: str | None

    def run(self, world: World) -> None:
        client = _client(world, self.client)
        if client is not None and client.user is not None:
            client.authenticate(f"{client.user}/{self.number}", self.room)


class Join(Step, frozen=True):
    client: int
    room: str

    def run(self, world: World) -> None:
        client = _client(world, self.client)
        if client is not None and client.user is not None:
            client.join(self.room)


class Leave(Step, frozen=True):
    client: int
    room: int

    def run(self, world: World) -> None:
        client = _client(world, self.client)
        if client is not None and client.grants:
            client.leave(_of(list(client.grants), self.room))


class Disconnect(Step, frozen=True):
    client: int

    def run(self, world: World) -> None:
        client = _client(world, self.client)
        if client is not None:
            client.disconnect()


class Ask(Step, frozen=True):
    """A client sends a request."""

    client: int
    room: int

    def run(self, world: World) -> None:
        client = _client(world, self.client)
        if client is not None and client.grants:
            assert client.user is not None
            assert client.token is not None
            room = _of(list(client.grants), self.room)
            number = next(world.numbers)
            request = Request(f"r{number}", client.user, room, client.token, number)
            world.requests.append(request)
            client.request(request)


class Burst(Step, frozen=True):
    """A client sends many events at once: more than may be in flight, if that is bounded."""

    client: int

    def run(self, world: World) -> None:
        client = _client(world, self.client)
        if client is not None:
            for room in tuple(client.grants)[:1]:
                client.burst(room, 12)


class AskAgain(Step, frozen=True):
    """A client whose connection ended sends a request again, over another one."""

    request: int
    gateway: int

    def run(self, world: World) -> None:
        lost = [request for request in world.requests if not request.client.open]
        gateway = _gateway(world, self.gateway)
        if lost and gateway is not None:
            request = _of(lost, -1 - self.request)
            client = world.connect(gateway)
            client.authenticate(request.token, request.room)
            world.invariants.sends_again(request)
            client.request(request)


class ComeBack(Step, frozen=True):
    """A page whose connection ended comes back, to where it was in rooms with history."""

    client: int
    gateway: int

    def run(self, world: World) -> None:
        gone = [client for client in world.clients if client.goes_back]
        gateway = _gateway(world, self.gateway)
        if gone and gateway is not None:
            world.come_back(_of(gone, -1 - self.client), gateway)


# Services


class Say(Step, frozen=True):
    """The service tells a room something: all, or all but one of those that are in it."""

    room: str
    but_for: int | None = None

    def run(self, world: World) -> None:
        there = [client for client in world.clients if client.open and self.room in client.grants]
        world.say(self.room, _of(there, self.but_for) if there and self.but_for is not None else None)


class Tell(Step, frozen=True):
    """The service tells a user something, wherever that is."""

    user: str

    def run(self, world: World) -> None:
        world.tell(self.user)


class Answers(Step, frozen=True):
    """The service answers so fast from now on, or never."""

    seconds: float | None

    def run(self, world: World) -> None:
        world.chat.answers = self.seconds


class Reads(Step, frozen=True):
    """The service on a stream handles its events from now on, or does not."""

    reads: bool

    def run(self, world: World) -> None:
        world.log.reads = self.reads


# The auth service


class Ban(Step, frozen=True):
    user: str
    number: int | None
    room: str | None
    how: Literal["invalidate", "delete", "silently"]

    def run(self, world: World) -> None:
        token = "" if self.number is None else f"{self.user}/{self.number}"
        ban = world.auth.ban(self.user, token, self.room)
        if self.how == "invalidate":
            world.auth.invalidate(ban)
        elif self.how == "delete":
            world.auth.delete(ban)


class Forgive(Step, frozen=True):
    def run(self, world: World) -> None:
        world.auth.forgive()


class AuthIs(Step, frozen=True):
    state: Literal["up", "slow", "down", "hangs"]

    def run(self, world: World) -> None:
        world.auth.set(self.state)


class Limit(Step, frozen=True):
    """Answers about a token that nobody has shown yet have a ``ttl``, or it expires after so many seconds."""

    token: str
    ttl: float | None
    expires: float | None

    def run(self, world: World) -> None:
        if any(self.token == token for client in world.clients for token, _ in client.shown):
            return
        if self.ttl is not None:
            world.auth.ttls.setdefault(self.token, self.ttl)
        if self.expires is not None:
            world.auth.expiry.setdefault(self.token, world.time.now + self.expires)


# Connections to Redis


class Lag(Step, frozen=True):
    fault = True
    gateway: int
    kind: Kind
    seconds: float

    def run(self, world: World) -> None:
        if (gateway := _gateway(world, self.gateway)) is not None:
            gateway.lag[self.kind] = self.seconds
            world.worst_lag = max(world.worst_lag, self.seconds)
            gateway.disturbed()


class Cut(Step, frozen=True):
    fault = True
    gateway: int
    kinds: tuple[Kind, ...]
    part: float

    def run(self, world: World) -> None:
        if (gateway := _gateway(world, self.gateway)) is not None:
            gateway.disturbed()
            for link in [link for kind in self.kinds for link in gateway.links(kind)]:
                link.cut(self.part)


class CutAll(Step, frozen=True):
    """The network between all gateways and Redis breaks for a moment; Redis lives on."""

    fault = True

    def run(self, world: World) -> None:
        world.disturbed()
        for link in tuple(world.network.links):
            link.cut()


class Deafen(Step, frozen=True):
    """A connection carries nothing any more, and stays open."""

    fault = True
    gateway: int
    kind: Kind

    def run(self, world: World) -> None:
        if (gateway := _gateway(world, self.gateway)) is not None:
            gateway.disturbed()
            for link in gateway.links(self.kind):
                link.deaf = True


class Unfollow(Step, frozen=True):
    """Redis forgets, and tells nobody, that a gateway has subscribed to what rooms and users with history are told."""

    fault = True
    gateway: int

    def run(self, world: World) -> None:
        if (gateway := _gateway(world, self.gateway)) is not None:
            gateway.unfollowed_at = world.time.now
            for link in gateway.links("subscriber"):
                link.lose_subscriptions(world.named("gateways:history:"))


# Redis


class Refuse(Step, frozen=True):
    fault = True
    kind: Literal["READONLY", "MISCONF", "NOREPLICAS", "OOM"] | None

    def run(self, world: World) -> None:
        if world.network.server is not None:
            world.network.server.refuses = self.kind
            world.disturbed()


class Save(Step, frozen=True):
    """What Redis holds now is what a replica has, and what is on disk."""

    def run(self, world: World) -> None:
        world.save()


class Stop(Step, frozen=True):
    """Redis's process ends."""

    fault = True

    def run(self, world: World) -> None:
        world.stop_redis()


class Start(Step, frozen=True):
    """It is there again, with its data (if it was stopped in an orderly way), with what was saved, or empty."""

    data: Literal["kept", "saved", "empty"]

    def run(self, world: World) -> None:
        world.start_redis(self.data)


class FailOver(Step, frozen=True):
    """A replica takes over, with what was saved. The old primary lives on, read-only, with its connections, or dies."""

    fault = True
    ahead: float
    lives: bool

    def run(self, world: World) -> None:
        world.fail_over(self.ahead, lives=self.lives)


class Flush(Step, frozen=True):
    fault = True

    def run(self, world: World) -> None:
        if world.network.server is not None:
            world.network.server.call("FLUSHALL")
            world.invariants.data_lost()


class Garble(Step, frozen=True):
    """Something else writes what cannot be read: a cached grant, an answer, an entry of a dead gateway."""

    prefix: Literal["access:token:", "request:", "gateways:lost"]

    fault = True

    def run(self, world: World) -> None:
        world.garble(self.prefix)


# Gateways


class Pause(Step, frozen=True):
    fault = True
    gateway: int

    def run(self, world: World) -> None:
        if (gateway := _gateway(world, self.gateway)) is not None:
            gateway.process.paused = True


class Resume(Step, frozen=True):
    def run(self, world: World) -> None:
        world.resume_all()


class Kill(Step, frozen=True):
    """A gateway dies, or stops as it should; another one starts."""

    gateway: int
    orderly: bool

    def run(self, world: World) -> None:
        if (gateway := _gateway(world, self.gateway)) is not None:
            if self.orderly:
                gateway.stop()
            else:
                world.calm = False
                world.kill(gateway)
            world.start_gateway()


def run(program: Program, story: list[str] | None = None) -> World:
    """Run a program to its end. Raises :class:`tests.simulation.invariants.Violation`. ``story`` is given its lines."""
    world = World(program.setup)
    if story is not None:
        world.invariants.story = story
    with world.running():
        for step in program.steps:
            world.invariants.tell(str(step))
            world.calm = world.calm and not step.fault
            step.run(world)
            world.pass_time(world.random.choice(_BETWEEN))
        world.invariants.tell("Nothing is wrong any more.")
        world.settle()
    world.invariants.check()
    return world


def _of(things: list[Any], number: int) -> Any:
    return things[number % len(things)]


def _gateway(world: World, number: int) -> GatewayProcess | None:
    living = [gateway for gateway in world.gateways if gateway.accepts]
    return _of(living, number) if living else None


def _client(world: World, number: int) -> Client | None:
    there = [client for client in world.clients if client.open]
    return _of(there, number) if there else None

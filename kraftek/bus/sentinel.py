"""Where the master is, as Redis Sentinel knows it: asked at each attempt to connect, and told of each fail-over.

:class:`kraftek.bus.RedisBus` makes a :class:`SentinelEndpoint` for URLs that begin with ``redis+sentinel://``, where it
otherwise makes a :class:`kraftek.bus.endpoint.RedisEndpoint`. https://redis.io/docs/latest/develop/reference/sentinel-clients/
says what a client has to do. That the server is a master, each connection to it checks by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast
from weakref import WeakSet

from msgspec import Struct
from msgspec.structs import replace
from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from kraftek.bus.connections import ConnectionOwner, RedisConnection
from kraftek.bus.endpoint import Backoff, ConnectionService, RedisEndpoint
from kraftek.bus.outage import Outage
from kraftek.contract.redis_url import RedisAddress
from kraftek.contract.settings import Redis

__all__ = ["Master", "SentinelConnection", "SentinelEndpoint", "SentinelError"]

SWITCH = b"+switch-master"
"""The channel on which a sentinel tells of a fail-over: ``<name> <old host> <old port> <host> <port>``."""


class SentinelError(Exception):
    """A sentinel does not name the master, or the master that it names is unreachable; the text is for the operator."""


class Master(Struct, frozen=True):
    """The master as a sentinel has it. ``epoch``: of two sentinels the one with the greater knows better."""

    host: str
    port: int
    epoch: int

    @property
    def place(self) -> str:
        """For comparing, and for the log."""
        return f"{self.host}:{self.port}"


class SentinelConnection(RedisConnection):
    """To a sentinel. ``master`` is what it says, once the connection is ready.

    ``listener`` is called with each message of :data:`SWITCH`; without one the connection is for one question.
    """

    def __init__(
        self,
        clock: IReactorTime,
        address: RedisAddress,
        config: Redis,
        owner: ConnectionOwner,
        listener: Callable[[bytes], None] | None = None,
    ) -> None:
        super().__init__(clock, address, config, owner)
        self._name = address.master
        self._listener = listener
        self._epoch = 0
        self._place = ("", 0)

    @property
    def master(self) -> Master:
        """The answer."""
        return Master(*self._place, self._epoch)

    def identify(self) -> Sequence[Deferred[Any]]:
        """It is no Redis, and needs not be one."""
        return []

    def prepare(self) -> Sequence[Deferred[Any]]:
        # Already during a fail-over the first names the new master; the other alone knows the epoch. They are answered
        # and the subscription is made within one iteration of the sentinel, so that no fail-over comes in between.
        place = self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name).addCallback(self._found)
        details = self.ask("SENTINEL", "MASTER", self._name).addCallback(self._detailed)
        return [place, details, *([self.ask("SUBSCRIBE", SWITCH)] if self._listener else [])]

    def replied(self, reply: Any) -> None:
        if type(reply) is not list or not reply or reply[0] != b"message" or self._listener is None:
            super().replied(reply)
            return
        try:
            self._listener(reply[2])
        except Exception:  # noqa: BLE001  # the edge's one guard: it must not unwind the reader
            self.log.failure("Failed on a message of a sentinel")

    def give_up(self, reason: str) -> None:
        if "NOAUTH" in reason:
            reason = f"it wants a password, as sentinel_password at the end of the URL: {reason}"
        elif "WRONGPASS" in reason or "AUTH " in reason:
            reason = f"it refuses sentinel_username and sentinel_password of the URL: {reason}"
        elif "unknown command" in reason:
            reason = f"it is no sentinel: {reason}"
        super().give_up(reason)

    def _found(self, place: list[bytes] | None) -> None:
        if place is None:
            self.give_up(f"it knows no master named {self._name}")
        else:
            host, port = place
            self._place = host.decode(), int(port)

    def _detailed(self, fields: list[bytes]) -> None:
        self._epoch = int(dict(zip(fields[::2], fields[1::2], strict=True))[b"config-epoch"])


class Sentinel:
    """One sentinel, which is asked and listened to. ``name`` is for logs.

    ``address``: its own, with its own user and password, and the master's name.
    """

    def __init__(self, reactor: Any, clock: Any, address: RedisAddress, config: Redis) -> None:
        self._clock = clock
        self._address = address
        self._config = config
        self._endpoint = RedisEndpoint(reactor, address, config.ca, config.ping_timeout)
        self.name = self._endpoint.name

    async def ask(self) -> Master:
        """Where the master is. Raises whatever stands in the way, after ``ping_timeout`` to connect and to answer."""
        question = _Question()
        factory: Any = Factory()
        factory.protocol = partial(SentinelConnection, self._clock, self._address, self._config, question)
        factory.noisy = False
        question.connection = await self._endpoint.connect(factory)
        return await question.answer

    def listen(
        self, seen: Callable[[Sentinel, Master], None], heard: Callable[[Sentinel, bytes], None]
    ) -> ConnectionService:
        """A connection that calls ``seen`` when it is established, and ``heard`` with each message."""
        outage = Outage(f"The sentinel at {self.name}", self._clock)
        owner = _Listening(outage, self._clock, partial(seen, self))
        protocol = partial(
            SentinelConnection, self._clock, self._address, self._config, owner, listener=partial(heard, self)
        )
        owner.service = ConnectionService(self._endpoint, protocol, owner.backoff, self._clock, outage.failed)
        return owner.service


class _Question:
    """The owner of a connection for one question."""

    def __init__(self) -> None:
        self.connection: Any = None
        self.answer: Deferred[Master] = Deferred(lambda _: self.connection.transport.abortConnection())

    def connection_ready(self, connection: RedisConnection) -> None:
        assert isinstance(connection, SentinelConnection)
        self.answer.callback(connection.master)
        connection.transport.abortConnection()

    def connection_lost(self, connection: RedisConnection, reason: str) -> None:
        if not self.answer.called:
            self.answer.errback(SentinelError(reason))


class _Listening:
    """The owner of a connection that listens."""

    def __init__(self, outage: Outage, clock: IReactorTime, seen: Callable[[Master], None]) -> None:
        self.backoff = Backoff(RedisEndpoint.longest_wait, clock)
        self.service: ConnectionService | None = None
        self._outage = outage
        self._seen = seen

    def connection_ready(self, connection: RedisConnection) -> None:
        assert isinstance(connection, SentinelConnection)
        self.backoff.reset()
        self._outage.over()
        self._seen(connection.master)

    def connection_lost(self, connection: RedisConnection, reason: str) -> None:
        if self.service is not None and self.service.running:
            self._outage.failed(reason)


@implementer(IStreamClientEndpoint)
class SentinelEndpoint(MultiService):
    """Where the master is. While it runs it listens to all sentinels, and drops every connection that it has made as
    soon as one of them tells of another master.

    Dropped at once, because the old master may go on as one: a fail-over by command demotes it some ten seconds later,
    and what is written there until then is lost. A sentinel that was cut off from the others may name a former master:
    what it says is older by its epoch. Parameters and errors are those of
    :class:`kraftek.bus.endpoint.RedisEndpoint`; ``clock`` measures time-outs.
    """

    log = Logger()

    # A fail-over takes seconds, and is over for clients as soon as the new master is found.
    longest_wait = 0.5

    def __init__(self, reactor: Any, clock: Any, address: RedisAddress, config: Redis) -> None:
        super().__init__()
        self._reactor = reactor
        self._address = replace(address, sentinels=())
        self._config = config
        login = {"username": address.sentinel_username, "password": address.sentinel_password}
        places = [replace(self._address, host=host, port=port, **login) for host, port in address.sentinels]
        self._sentinels = [Sentinel(reactor, clock, place, config) for place in places]
        self._epoch = 0
        self._place: str | None = None
        self._connections: WeakSet[RedisConnection] = WeakSet()
        self.name = f"{address.master} (sentinels {', '.join(sentinel.name for sentinel in self._sentinels)})"
        for sentinel in self._sentinels:
            sentinel.listen(self._seen, self._heard).setServiceParent(self)

    @property
    def address(self) -> RedisAddress | None:
        """Where the master is, if a sentinel has said so."""
        if self._place is None:
            return None
        host, _, port = self._place.rpartition(":")
        return replace(self._address, host=host, port=int(port))

    # IStreamClientEndpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    # Within

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        master = await self._look_up()
        address = replace(self._address, host=master.host, port=master.port)
        endpoint = RedisEndpoint(self._reactor, address, self._config.ca, self._config.ping_timeout)
        try:
            protocol = await endpoint.connect(factory)
        except Exception as error:
            raise SentinelError(f"the master at {master.place}: {error}") from error
        connection = cast("RedisConnection", protocol)
        if master.place != self._place:
            connection.give_up(f"the master is at {self._place} meanwhile")
        self._connections.add(connection)
        return protocol

    async def _look_up(self) -> Master:
        """Ask one sentinel after the other. Those that are of no use are asked last from now on."""
        reasons: list[str] = []
        outdated: list[tuple[Sentinel, Master]] = []
        for sentinel in tuple(self._sentinels):
            try:
                master = await sentinel.ask()
            except (CancelledError, ConnectingCancelledError):
                raise
            except Exception as error:  # noqa: BLE001  # whatever it is, another may know
                reasons.append(f"the sentinel at {sentinel.name}: {error}".rstrip("."))
            else:
                if master.epoch >= self._epoch:
                    self._knows(sentinel, master)
                    return master
                outdated.append((sentinel, master))
            self._sentinels.remove(sentinel)
            self._sentinels.append(sentinel)
        if outdated and not reasons:
            # All were set up anew: if one was merely cut off, the others would contradict it, or not answer.
            sentinel, master = max(outdated, key=lambda found: found[1].epoch)
            self._knows(sentinel, master)
            return master
        if outdated:
            reasons.append("what the others know is older than what was known before")
        raise SentinelError("; ".join(reasons))

    def _knows(self, sentinel: Sentinel, master: Master) -> None:
        self._epoch = master.epoch
        self._is_at(sentinel, master.place)

    def _seen(self, sentinel: Sentinel, master: Master) -> None:
        """What a sentinel says when it can be listened to, perhaps after a fail-over that it told nobody here."""
        if master.epoch > self._epoch:
            self._knows(sentinel, master)

    def _heard(self, sentinel: Sentinel, message: bytes) -> None:
        name, _, _, host, port = message.decode("utf-8", "replace").split(" ")
        if name == self._address.master:
            self._is_at(sentinel, f"{host}:{port}")

    def _is_at(self, sentinel: Sentinel, place: str) -> None:
        """Give up the connections to any other place; the sentinel that told of this one is asked first."""
        if place == self._place:
            return
        self._place = place
        self.log.info(
            "The master {master} is at {place}, says the sentinel at {sentinel}",
            master=self._address.master,
            place=place,
            sentinel=sentinel.name,
        )
        self._sentinels.remove(sentinel)
        self._sentinels.insert(0, sentinel)
        for connection in tuple(self._connections):
            connection.give_up(f"the master is at {place} now")
        self._connections.clear()

"""The connection to Redis that listens. Made by :class:`kraftek.bus.RedisBus`, driven by Twisted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from socket import MSG_PEEK
from typing import Any

from msgspec import Struct
from twisted.internet.defer import Deferred, FirstError, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from txredisapi import ResponseError

from kraftek.bus.connections import ConnectionOwner, RedisConnection
from kraftek.bus.replies import INCOMPLETE
from kraftek.bus.server import Server
from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import NotPublished
from kraftek.contract.iteration import Iteration
from kraftek.contract.redis_url import RedisAddress
from kraftek.contract.settings import Redis

__all__ = [
    "TRACKING_CHANNEL",
    "Channels",
    "Deafness",
    "Listeners",
    "SubscriberConnection",
    "SubscriberState",
    "Tracked",
    "cause_of",
]

TRACKING_CHANNEL = b"__redis__:invalidate"
"""The channel on which Redis announces which tracked keys changed. Its messages are a list of keys, or ``None``."""

Listeners = Mapping[bytes, Sequence[Callable[[Any], None]]]
"""The listeners of each channel, called with its messages."""


_PEEKED = 65_536
"""Bytes that are looked at for the end of a reply, one by one."""


class SubscriberState(Struct, kw_only=True):
    """The connection for another version of the gateway. ``id``: Redis's number for it; ``server``: whose it is."""

    id: int
    server: Server


class SubscriberConnection(RedisConnection):
    """Listens. ``id`` is Redis's number for this connection, once it is ready. ``factory.inherited``: what another
    version of the gateway gave, if this was its connection; it is subscribed already.
    """

    def __init__(
        self,
        clock: IReactorTime,
        address: RedisAddress,
        config: Redis,
        owner: ConnectionOwner,
        iteration: Iteration,
        accounts: Accounts,
        listeners: Listeners,
    ) -> None:
        super().__init__(clock, address, config, owner)
        self._iteration = iteration
        self._accounts = accounts
        self._listeners = listeners
        self._arriving = 0
        self._frozen = False
        self.id = 0

    def connectionMade(self) -> None:
        """Go on at once with what is prepared already."""
        state: SubscriberState | None = getattr(self.factory, "inherited", None)
        if state is None:
            super().connectionMade()
        else:
            self.id, self.server = state.id, state.server
            self._heard()
            self._owner.connection_ready(self)

    def freeze(self) -> bool:
        """Read nothing more, from the end of a reply on. ``False``: that has yet to come.

        hiredis does not say whether it has read a part of a reply, nor give it back. So Redis is asked something, and
        all up to the answer is read byte by byte.
        """
        if not self._frozen:
            self._frozen = True
            self.replies.hand_out_all()
            self.transport.pauseProducing()
            self.ask("PING").addErrback(lambda _: None)
        while self.waiting and self._read_one():
            pass
        return not self.waiting

    def thaw(self) -> None:
        """Read again."""
        self._frozen = False
        self.transport.resumeProducing()

    def _read_one(self) -> bool:
        socket: Any = self.transport.getHandle()
        try:
            data = socket.recv(_PEEKED, MSG_PEEK)
        except OSError:
            return False
        for at in range(len(data)):
            self._reader.feed(data, at, 1)
            reply = self._reader.gets()
            if reply is not INCOMPLETE:
                socket.recv(at + 1)
                self.hand_out([reply])
                return True
        if data:
            socket.recv(len(data))
        return False

    def prepare(self) -> Sequence[Deferred[Any]]:
        return [self.ask("CLIENT", "ID").addCallback(self._identified)]

    def listen(self, channels: Iterable[bytes]) -> Deferred[Any]:
        """Subscribe, also when subscribed already. One command per channel, so that each has its one answer."""
        return self.need([self.ask("SUBSCRIBE", channel) for channel in channels])

    def waits_for_rest(self, size: int) -> None:
        self._arriving += size
        self._accounts.arriving += size

    def hand_out(self, replies: list[Any], *, more: bool = False) -> None:
        if self._arriving:
            self._arrived()
        if more:
            super().hand_out(replies)
            return
        *others, last = replies
        super().hand_out(others)
        self._iteration.ending = True
        try:
            self.replied(last)
        finally:
            self._iteration.ending = False

    def replied(self, reply: Any) -> None:
        if type(reply) is not list or reply[0] != b"message":
            super().replied(reply)
            return
        _, channel, body = reply
        for listener in self._listeners.get(channel, ()):
            try:
                listener(body)
            except Exception:  # noqa: BLE001  # the edge's one guard: it must not unwind the reader
                self.log.failure("Failed on a message on {channel}", channel=channel.decode(errors="replace"))

    def connectionLost(self, why: Failure) -> None:
        self._arrived()
        super().connectionLost(why)

    def _arrived(self) -> None:
        self._accounts.arriving -= self._arriving
        self._arriving = 0

    def _identified(self, number: int) -> None:
        self.id = number


class Channels(dict[bytes, tuple[Callable[[Any], None], ...]]):
    """The listeners of each channel, by its name with the prefix. ``connection``: that on which Redis is asked for
    them, if there is one. Whoever makes another one subscribes to all of them there.
    """

    connection: SubscriberConnection | None = None

    def subscribe(self, name: bytes, listener: Callable[[Any], None]) -> None:
        """One listener more."""
        known = self.get(name, ())
        self[name] = (*known, listener)
        if self.connection is not None and not known:
            self.connection.listen([name]).addErrback(lambda _: None)

    async def unsubscribe(self, name: bytes) -> None:
        """None of them any more, once Redis has said so."""
        try:
            with suppress(NotPublished, ResponseError):
                await (self.connection.ask("UNSUBSCRIBE", name) if self.connection else succeed(None))
        finally:
            self.pop(name, None)

    def follow(self, name: bytes, listener: Callable[[Any], None]) -> Deferred[None]:
        """Have this listener alone. Fires when Redis has subscribed us."""
        self[name] = (listener,)
        if self.connection is None:
            return fail(NotPublished("Redis is unavailable"))
        return self.connection.listen([name]).addCallbacks(lambda _: None, cause_of)

    def unfollow(self, name: bytes) -> None:
        """None any more, from now on."""
        self.pop(name, None)
        if self.connection is not None:
            self.connection.ask("UNSUBSCRIBE", name).addErrback(lambda _: None)


def cause_of(failure: Failure) -> Failure:
    """What one of several has failed with."""
    return failure.value.subFailure if isinstance(failure.value, FirstError) else failure


class Tracked:
    """Who is told of keys that changed, as :meth:`kraftek.contract.interfaces.IBus.track` has it.

    ``prefix``: that of all names.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._by_prefix: dict[str, Callable[[list[str] | None], None]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_prefix)

    def add(self, prefix: str, listener: Callable[[list[str] | None], None]) -> None:
        """Call ``listener`` with the changed keys under ``prefix``."""
        self._by_prefix[prefix] = listener

    def changed(self, keys: list[bytes] | None) -> None:
        """Redis says so."""
        for prefix, listener in self._by_prefix.items():
            if keys is None:
                listener(None)
                continue
            names = [key.decode("utf-8", "replace").removeprefix(self._prefix) for key in keys]
            names = [name for name in names if name.startswith(prefix)]
            if names:
                listener(names)


class Deafness:
    """Nobody listens, from :meth:`begin` to :meth:`end`. ``too_long`` is called so many ``seconds`` after something was
    last heard for sure.
    """

    def __init__(self, clock: IReactorTime, seconds: float, too_long: Callable[[], None]) -> None:
        self._clock = clock
        self._seconds = seconds
        self._too_long = too_long
        self._alarm: IDelayedCall | None = None

    def begin(self, heard: float) -> None:
        """The connection that listens was lost, perhaps another time. ``heard``: when it last gave an answer."""
        if self._alarm is None:
            left = heard + self._seconds - self._clock.seconds()
            self._alarm = self._clock.callLater(max(0.0, left), self._ring)

    def end(self) -> None:
        """Another one listens, or nobody will."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self) -> None:
        self._alarm = None
        self._too_long()

"""The third connection to Redis: it waits for entries of streams, as one consumer of a consumer group.

Made by :meth:`kraftek.bus.RedisBus.read`; called through :class:`kraftek.interfaces.IReading`. It has a connection of
its own because a command that waits (``XREADGROUP BLOCK``) keeps all others on its connection waiting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from twisted.application.internet import ClientService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import ResponseError
from zope.interface import implementer

from kraftek.bus.endpoint import Backoff, RedisEndpoint
from kraftek.bus.links import Link
from kraftek.bus.resp import Argument
from kraftek.config import Redis, RedisAddress
from kraftek.errors import NotPublished
from kraftek.interfaces import EntryListener, IBus, IBusListener, IReading
from kraftek.scripts import Script

__all__ = ["Reading", "ReadingLink"]

BATCH = 100
"""Entries taken from the dead at a time."""

FORGOTTEN_AFTER = 60_000
"""Milliseconds after which a consumer that has nothing and asks for nothing is removed from its group. One that lives
asks every second, and Redis makes it anew should it come back."""

# An entry that was trimmed away while it was being handled is nobody's any more (6.2 still hands out its empty shell).
TAKE = Script("""
local stream, group, me, idle, most, whose = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local known, taken = {}, {}
for i = 6, #ARGV do known[ARGV[i]] = true end
local search = {'XPENDING', stream, group, 'IDLE', idle, '-', '+', most + #ARGV - 5}
if whose ~= '' then search[#search + 1] = whose end
for _, found in ipairs(redis.call(unpack(search))) do
    local id, delivered = found[1], found[4]
    if not known[id] then
        local entry = redis.call('XCLAIM', stream, group, me, idle, id)[1]
        if entry then
            taken[#taken + 1] = {id, entry[2], delivered + 1}
        else
            redis.call('XACK', stream, group, id)
        end
    end
end
return taken
""")

FORGET = Script("""
for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local about = {}
    for i = 1, #consumer, 2 do about[consumer[i]] = consumer[i + 1] end
    if about.pending == 0 and about.idle > tonumber(ARGV[2]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], about.name)
    end
end
return 0
""")


class ReadingLink(Link):
    """The connection that waits. ``id`` is Redis's number for it, once it is ready."""

    id = 0

    def prepare(self) -> Sequence[Deferred[Any]]:
        select = self.ask("SELECT", self._address.database)
        return [select, self.ask("CLIENT", "ID").addCallback(partial(setattr, self, "id"))]

    def evaluate(self, script: Script, stream: str, *args: Argument) -> Deferred[Any]:
        """Run a script on a stream. It goes whole: that costs nothing every other second."""
        return self.ask("EVAL", script.source, 1, stream, *args)


@implementer(IReading, IBusListener)
class Reading(ClientService):
    """Streams as one consumer reads them.

    What was handed out is *open* until it was acknowledged. No other consumer gets it as long as this one lives, and
    this one never gets it twice: neither after a lost connection, nor when the acknowledgement itself was lost.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: RedisEndpoint,
        address: RedisAddress,
        config: Redis,
        bus: IBus,
        group: str,
        consumer: str,
        window: int,
        claim_after: float,
        alone: bool,
    ) -> None:
        factory = Factory.forProtocol(partial(ReadingLink, reactor, address, config, self))
        factory.noisy = False
        self._backoff = Backoff()
        super().__init__(endpoint, factory, retryPolicy=self._backoff, clock=reactor)
        self._reactor: IReactorTime = reactor
        self._bus = bus
        self._prefix = config.prefix
        self._group = group
        self._consumer = consumer
        self._window = window
        self._claim_after = claim_after
        self._alone = alone
        # A ping that comes while Redis waits for entries is answered after that, and must not be late.
        self._wait = min(1.0, config.ping_timeout / 2, claim_after / 3)
        self._streams: dict[str, EntryListener] = {}
        self._open: dict[tuple[str, str], bool] = {}
        self._link: ReadingLink | None = None
        self._begun: set[str] = set()
        self._asked: Deferred[None] | None = None
        self._sleep: Deferred[None] | None = None

    # IReading

    def follow(self, streams: Mapping[str, EntryListener]) -> Deferred[None]:
        self._begun.intersection_update(streams)
        self._streams = dict(streams)
        self._wake()
        if self._asked is None:
            return succeed(None)
        assert self._link is not None
        self._bus.call("CLIENT", [], ["UNBLOCK", self._link.id]).addErrback(lambda _: None)
        followed: Deferred[None] = Deferred()
        self._asked.chainDeferred(followed)
        return followed

    def ack(self, stream: str, entry_id: str) -> None:
        entry = stream, entry_id
        if entry not in self._open:
            return
        self._open[entry] = True
        acknowledging = self._bus.call("XACK", [stream], [self._group, entry_id])
        acknowledging.addErrback(self._not_acknowledged)
        acknowledging.addCallbacks(lambda _: self._close(entry), lambda failure: failure.trap(NotPublished))

    # IBusListener

    def bus_up(self) -> None:
        """What was finished while Redis was away is acknowledged now."""
        for (stream, entry_id), finished in tuple(self._open.items()):
            if finished:
                self.ack(stream, entry_id)
        self._wake()

    def bus_down(self) -> None:
        """Nothing is asked for until it is back: what came could not be answered."""

    # LinkOwner

    def link_ready(self, link: Link) -> None:
        assert isinstance(link, ReadingLink)
        self._link = link
        self._begun.clear()
        Deferred.fromCoroutine(self._read(link)).addErrback(self._failed, link)

    def link_lost(self, link: Link, reason: Failure) -> None:
        self._link = None
        if self.running:
            self.log.warn("Lost a connection to Redis: {reason}", reason=reason.getErrorMessage())
        self._wake()

    # Within

    async def _read(self, link: ReadingLink) -> None:
        look_again = 0.0
        while link is self._link and self.running:
            now = self._reactor.seconds()
            room = self._window - len(self._open)
            if not self._bus.available:
                await self._woken(self._claim_after)
            elif new := self._streams.keys() - self._begun:
                await self._begin(link, new.pop())
            elif now >= look_again:
                await self._look(link, room)
                look_again = now + self._claim_after / 3
            elif self._streams and room > 0:
                await self._ask(link, room)
            else:
                await self._woken(look_again - now)
            self._backoff.reset()

    async def _begin(self, link: ReadingLink, stream: str) -> None:
        """Before anything new: what Redis has handed to this consumer, or to one before it, and what never arrived."""
        try:
            await link.ask("XGROUP", "CREATE", self._prefix + stream, self._group, "0", "MKSTREAM")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        if stream not in self._streams:
            return
        self._begun.add(stream)
        whose = "" if self._alone else self._consumer
        while await self._take(link, stream, BATCH, 0.0, whose):
            pass

    async def _look(self, link: ReadingLink, room: int) -> None:
        """Keep what is open, and take what the dead left behind."""
        for stream in {stream for stream, _ in self._open}:
            ids = self._open_of(stream)
            name = self._prefix + stream
            await link.ask("XCLAIM", name, self._group, self._consumer, 0, *ids, "IDLE", 0, "JUSTID")
        for stream in tuple(self._streams):
            if room > 0:
                room -= await self._take(link, stream, min(BATCH, room), self._claim_after, "")
            await link.evaluate(FORGET, self._prefix + stream, self._group, FORGOTTEN_AFTER)

    async def _take(self, link: ReadingLink, stream: str, most: int, idle: float, whose: str) -> int:
        listener = self._streams.get(stream)
        if listener is None:
            return 0
        known = self._open_of(stream)
        args = (self._group, self._consumer, int(idle * 1000), most, whose)
        taken = await self._answer(link.evaluate(TAKE, self._prefix + stream, *args, *known))
        for entry_id, fields, delivered in taken:
            self._hand_over(listener, stream, entry_id, fields, delivered)
        return len(taken)

    async def _ask(self, link: ReadingLink, room: int) -> None:
        streams = self._streams
        names = [self._prefix + stream for stream in streams]
        # Redis counts for each stream by itself.
        most = max(1, room // len(names))
        wait = max(1, int(self._wait * 1000))
        reading = ("XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", most, "BLOCK", wait, "STREAMS")
        found = await self._answer(link.ask(*reading, *names, *(">" for _ in names)))
        for name, entries in found or ():
            stream = name.decode().removeprefix(self._prefix)
            for entry_id, fields in entries:
                self._hand_over(streams[stream], stream, entry_id, fields, 1)

    async def _answer(self, asking: Deferred[Any]) -> Any:
        """What Redis answers. Who changes what is followed meanwhile is told when it has been handed over."""
        self._asked = Deferred()
        try:
            return await asking
        finally:
            # In the next turn: what came with this answer goes first.
            self._reactor.callLater(0, self._asked.callback, None)
            self._asked = None

    def _hand_over(
        self, listener: EntryListener, stream: str, entry_id: bytes, fields: list[bytes], delivered: int
    ) -> None:
        name = entry_id.decode()
        self._open[stream, name] = False
        event = dict(zip(fields[::2], fields[1::2], strict=True)).get(b"event", b"")
        try:
            listener(name, event, delivered)
        except Exception:  # noqa: BLE001  # the edge's one guard: one bad entry must not end the reading
            self.log.failure("Failed on an entry of {stream}", stream=stream)

    def _open_of(self, stream: str) -> list[str]:
        return [entry_id for its_stream, entry_id in self._open if its_stream == stream]

    def _not_acknowledged(self, failure: Failure) -> None:
        failure.trap(ResponseError)
        self.log.failure("An entry was not acknowledged", failure=failure)

    def _close(self, entry: tuple[str, str]) -> None:
        self._open.pop(entry, None)
        self._wake()

    def _woken(self, seconds: float) -> Deferred[None]:
        """Fires when there may be something to do, after ``seconds`` at the latest."""
        sleep: Deferred[None] = Deferred()
        self._sleep = sleep
        alarm = self._reactor.callLater(seconds, self._wake)
        return sleep.addBoth(lambda _: alarm.cancel() if alarm.active() else None)

    def _wake(self) -> None:
        sleep, self._sleep = self._sleep, None
        if sleep is not None:
            sleep.callback(None)

    def _failed(self, failure: Failure, link: ReadingLink) -> None:
        if failure.check(ResponseError):
            # The stream or its group is gone, or there is no right to it: begin again.
            link.give_up(failure.getErrorMessage())
        elif not failure.check(NotPublished):
            self.log.failure("Failed to read", failure=failure)
            link.give_up("failed to read")

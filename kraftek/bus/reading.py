"""The third connection to Redis: it waits for entries of a stream, as one consumer of a consumer group.

Made by :meth:`kraftek.bus.RedisBus.read`; called through :class:`kraftek.contract.interfaces.IReading`. It has a
connection of its own because a command that waits (``XREADGROUP BLOCK``) keeps all others on its connection waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import ResponseError
from zope.interface import implementer

from kraftek.bus.connections import RedisConnection
from kraftek.bus.endpoint import Backoff, ConnectionService, RedisEndpoint, Waiting
from kraftek.bus.outage import Outage
from kraftek.bus.sentinel import SentinelEndpoint
from kraftek.contract.accounts import Accounts
from kraftek.contract.consumer_groups import CLAIM, FORGET, FORGOTTEN_AFTER, JOIN, Consumer, event_in, new_entries
from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import EntryListener, IBus, IBusListener, IReading
from kraftek.contract.log_once import OnceUntilItWorks
from kraftek.contract.lua import Argument, Script
from kraftek.contract.redis_url import RedisAddress
from kraftek.contract.settings import Redis

__all__ = ["Reading", "ReadingConnection"]

BATCH = 20
"""Entries read, or claimed from dead consumers, at a time."""

MOST_BYTES = 16_777_216
"""Bytes of entries that wait to be finished: no more are read then. Those of one batch come on top."""

FINISH = Script("""
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
return redis.call('XDEL', KEYS[1], ARGV[2])
""")


class ReadingConnection(RedisConnection):
    """The connection that waits. ``id`` is Redis's number for it, once it is ready."""

    id = 0

    def prepare(self) -> Sequence[Deferred[Any]]:
        select = self.ask("SELECT", self._address.database)
        return [select, self.ask("CLIENT", "ID").addCallback(partial(setattr, self, "id"))]

    def evaluate(self, script: Script, stream: str, *args: Argument) -> Deferred[Any]:
        """Run a script on a stream. It goes whole: that costs nothing every other second."""
        return self.ask("EVAL", script.source, 1, stream, *args)


@implementer(IReading, IBusListener)
class Reading(ConnectionService):
    """A stream as one consumer reads it.

    What was handed out is *open* until it was acknowledged. No other consumer gets it as long as this one lives, and
    this one never gets it twice: neither after a lost connection, nor when the acknowledgement itself was lost.

    ``connection``: the present one. ``same_server``: whether it leads where all others do; otherwise it was given up.
    """

    log = Logger()

    def __init__(
        self,
        clock: Any,
        endpoint: RedisEndpoint | SentinelEndpoint,
        address: RedisAddress,
        config: Redis,
        bus: IBus,
        *,
        group: str,
        consumer: str,
        stream: str,
        listener: EntryListener,
        window: int,
        claim_after: float,
        same_server: Callable[[], bool],
        accounts: Accounts,
        waiting: Waiting,
    ) -> None:
        self._backoff = Backoff(endpoint.longest_wait, clock)
        protocol = partial(ReadingConnection, clock, address, config, self)
        super().__init__(endpoint, protocol, self._backoff, waiting, self._unavailable)
        self._clock: IReactorTime = clock
        self._outage = Outage(f"The stream {stream}", clock)
        self._bus = bus
        self._stream = stream
        self._consumer = Consumer(config.prefix + stream, group, consumer)
        self._listener = listener
        self._window = window
        self._claim_after = claim_after
        self._same_server = same_server
        # A ping that comes while Redis waits for entries is answered after that, and must not be late.
        self._wait = max(1, int(1000 * min(1.0, config.ping_timeout / 2, claim_after / 3)))
        self._accounts = accounts
        # Whether it is finished, and the size of each that is not.
        self._open: dict[str, bool] = {}
        self._sizes: dict[str, int] = {}
        self._once = OnceUntilItWorks()
        self.connection: ReadingConnection | None = None
        self._ends = False
        self._ended: Deferred[None] = Deferred()
        self._sleep: Deferred[None] | None = None

    # IReading

    def end(self) -> Deferred[None]:
        self._ends = True
        self._wake()
        if self.connection is None:
            return succeed(None)
        self._bus.call("CLIENT", [], ["UNBLOCK", self.connection.id]).addErrback(lambda _: None)
        return self._ended

    def go_on(self) -> None:
        over, self._ends = self._ended.called, False
        if over:
            self._ended = Deferred()
            if self.connection is not None:
                self.connection_ready(self.connection)

    def ack(self, entry_id: str) -> None:
        if entry_id not in self._open:
            return
        self._open[entry_id] = True
        self._accounts.intake -= self._sizes.pop(entry_id, 0)
        finishing = self._bus.call(FINISH, [self._stream], [self._consumer.group, entry_id])
        entry = (entry_id,)
        finishing.addCallbacks(self._acknowledged, self._not_acknowledged, callbackArgs=entry, errbackArgs=entry)

    # IBusListener

    def bus_up(self) -> None:
        """What was finished while Redis was away is acknowledged now."""
        self._ack_again()
        self._wake()

    def bus_down(self) -> None:
        """Nothing is asked for until it is back: what came could not be answered."""

    def epoch_changed(self) -> None:
        """Nothing to do: a stream that is gone is read anew when Redis says so."""

    # LinkOwner

    def connection_ready(self, connection: RedisConnection) -> None:
        assert isinstance(connection, ReadingConnection)
        self.connection = connection
        if not self._same_server():
            return
        Deferred.fromCoroutine(self._read(connection)).addErrback(self._failed, connection)

    def connection_lost(self, connection: RedisConnection, reason: str) -> None:
        self.connection = None
        if connection.refused:
            self._unavailable(reason)
        self._wake()
        self._has_ended()

    # Within

    async def _read(self, connection: ReadingConnection) -> None:
        begun = False
        look_again = 0.0
        while connection is self.connection and not self._ends:
            now = self._clock.seconds()
            room = self._room()
            if not self._bus.available:
                await self._woken(self._claim_after)
            elif not begun:
                await self._begin(connection)
                begun = True
            elif now >= look_again:
                await self._look(connection, room)
                look_again = now + self._claim_after / 3
            elif room > 0:
                await self._ask(connection, room)
            else:
                await self._woken(look_again - now)
            self._backoff.reset()
            self._outage.over()
        self._has_ended()

    async def _begin(self, connection: ReadingConnection) -> None:
        """Before anything new: what Redis has handed to this consumer, and what never arrived."""
        await connection.evaluate(JOIN, self._consumer.stream, self._consumer.group, FORGOTTEN_AFTER)
        while await self._take(connection, BATCH, 0.0, self._consumer.name):
            pass

    async def _look(self, connection: ReadingConnection, room: int) -> None:
        """Keep what is open, and take what the dead left behind."""
        self._ack_again()
        if self._open:
            await connection.ask(*self._consumer.keep(self._open))
        if room > 0:
            await self._take(connection, room, self._claim_after, "")
        await connection.evaluate(FORGET, self._consumer.stream, self._consumer.group, FORGOTTEN_AFTER)

    async def _take(self, connection: ReadingConnection, most: int, idle: float, whose: str) -> int:
        claim = self._consumer.claim(idle, most, whose=whose, in_hand=self._open)
        claimed = await connection.evaluate(CLAIM, self._consumer.stream, *claim)
        for entry_id, fields, delivered in claimed:
            self._hand_over(entry_id, event_in(fields), delivered)
        return len(claimed)

    async def _ask(self, connection: ReadingConnection, room: int) -> None:
        for entry_id, event in new_entries(await connection.ask(*self._consumer.read(room, self._wait))):
            self._hand_over(entry_id, event, 1)

    def _room(self) -> int:
        """How many more entries may be open. Their sizes are not known before they are read."""
        if sum(self._sizes.values()) >= MOST_BYTES:
            return 0
        return min(BATCH, self._window - len(self._open))

    def _hand_over(self, entry_id: bytes, event: bytes, delivered: int) -> None:
        name = entry_id.decode()
        self._open[name] = False
        self._sizes[name] = len(event)
        self._accounts.intake += len(event)
        try:
            self._listener(name, event, delivered)
        except Exception:  # noqa: BLE001  # the edge's one guard: one bad entry must not end the reading
            self.log.failure("Failed on an entry of {stream}", stream=self._stream)

    def _has_ended(self) -> None:
        if self._ends and not self._ended.called:
            self._ended.callback(None)

    def _ack_again(self) -> None:
        """What was finished and is open still: Redis was away, or could take no more."""
        for entry_id, finished in tuple(self._open.items()):
            if finished:
                self.ack(entry_id)

    def _acknowledged(self, _: object, entry_id: str) -> None:
        self._once.works()
        self._close(entry_id)

    def _not_acknowledged(self, failure: Failure, entry_id: str) -> None:
        if failure.check(NotPublished):
            return
        text = "Entries are not acknowledged, and come again, until they can be"
        self._once.failed(self.log.failure, text, failure=failure)
        self._close(entry_id)

    def _close(self, entry_id: str) -> None:
        self._open.pop(entry_id, None)
        self._wake()

    def _woken(self, seconds: float) -> Deferred[None]:
        """Fires when there may be something to do, after ``seconds`` at the latest."""
        sleep: Deferred[None] = Deferred()
        self._sleep = sleep
        alarm = self._clock.callLater(seconds, self._wake)
        return sleep.addBoth(lambda _: alarm.cancel() if alarm.active() else None)

    def _wake(self) -> None:
        sleep, self._sleep = self._sleep, None
        if sleep is not None:
            sleep.callback(None)

    def _failed(self, failure: Failure, connection: ReadingConnection) -> None:
        if failure.check(ResponseError):
            # The stream or its group was removed, or there is no permission for it: begin again.
            connection.refused = True
            connection.give_up(failure.getErrorMessage())
        elif not failure.check(NotPublished):
            self.log.failure("Failed to read", failure=failure)
            connection.give_up("failed to read")

    def _unavailable(self, reason: str) -> None:
        # Otherwise the bus reports it, once for all readers.
        if self._bus.available:
            self._outage.failed(reason)

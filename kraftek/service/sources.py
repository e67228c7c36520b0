"""Where a service's events come from: a channel, a stream, or the partitions of one. Each is one way to share them.

Made and stopped by :class:`kraftek.service.instance.Instance`; they pass events to
:class:`kraftek.service.handling.Handling`.

Over Pub/Sub every instance gets every event that is published while it listens. Over a stream the instances are the
consumers of one group:

- Without partitions each reads as many entries as it can handle at a time. While it handles an entry it resets the
  entry's idle time; idle entries belong to dead instances, and are claimed.
- With partitions an instance reads those whose leases it holds, each one event at a time. An instance that takes over a
  lease begins with what its last holder left unfinished, so the order is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from kraftek.contract.consumer_groups import CLAIM, FORGOTTEN_AFTER, JOIN, Consumer, event_in, new_entries
from kraftek.contract.lua import Script, lua
from kraftek.contract.names import instances_key, lease_key
from kraftek.service.backend import Backend, Reader
from kraftek.service.handling import Entry, Handling
from kraftek.service.jobs import Jobs
from kraftek.service.processor import EventProcessor, Incoming
from kraftek.service.waiting import Waiting

__all__ = ["Partitions", "Source", "Stream", "Subscription"]

TOLD = 1.0
"""Seconds for which a socket whose event was refused hears of no further one without an id: an error for each would
take as long as to handle them.
"""

SLICE = 0.004
"""Seconds for which events over Pub/Sub are begun before more is read: plain functions run meanwhile, one after the
other. If 64 of a few milliseconds each did, nobody else's event would be read for so long, and users could not take
turns.
"""

EMPTY = 5
"""Turns of the loop without an event after which there is none to be read: what arrives in one is read in another one,
after one or two more."""

BLOCK = 500
"""Milliseconds that Redis lets a reader wait: a stop or the loss of a lease is noticed after so long at most."""

SHARE = Script(lua(__package__, "time", "share"))
TAKE_NEXT = Script(lua(__package__, "claimed", "fields", "take_next"))

RELEASE = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
""")


class Source(Protocol):
    """Passes on events from ``begin`` until :class:`Jobs` is stopping."""

    async def begin(self) -> None: ...

    def stop(self) -> None:
        """Accept no more events: called when the jobs are stopping, before they end."""


class Subscription:
    """Events over Pub/Sub. ``clock`` gives seconds."""

    def __init__(
        self,
        processor: EventProcessor,
        backend: Backend,
        jobs: Jobs,
        handling: Handling,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processor = processor
        self._backend = backend
        self._jobs = jobs
        self._handling = handling
        self._clock = clock
        self._waiting = Waiting()
        self._told: set[str] = set()
        self._told_since = 0.0
        self._in_progress = self._to_begin = 0
        self._spawning = False
        self._last: tuple[Incoming, float] | None = None  # what was begun last, and when
        # The slice that has begun since something was read: when it ends, how many events were begun in it, and whether
        # it is over. After one that had too little time for all, not many more are tried at once.
        self._until: float | None = None
        self._begun = 0
        self._over = self._arrived = False
        self._at_once = processor.concurrency

    async def begin(self) -> None:
        await self._backend.subscribe(self._processor.channel, self._received)

    def stop(self) -> None:
        self._jobs.spawn(self._backend.unsubscribe, self._processor.channel)

    def _received(self, body: bytes) -> None:
        self._arrived = True
        event = self._handling.opened(body)
        if event is None:
            return
        if self._waiting.put(event, len(body)):
            self._next()
            return
        self._processor.refused += 1
        if event.id is not None or self._is_to_be_told(event.socket_id):
            self._jobs.spawn(self._handling.refuse, event)

    def _is_to_be_told(self, socket_id: str) -> bool:
        now = self._clock()
        if now - self._told_since >= TOLD:
            self._told_since = now
            self._told.clear()
        if socket_id in self._told:
            return False
        self._told.add(socket_id)
        return True

    def _next(self) -> None:
        if self._spawning:
            return  # under Twisted a spawned coroutine may end at once, and call this again from within
        self._spawning = True
        concurrency, at_once = self._processor.concurrency, self._at_once
        while not self._over and self._in_progress < concurrency and self._to_begin < min(len(self._waiting), at_once):
            self._in_progress += 1
            self._to_begin += 1
            self._jobs.spawn(self._handle)
        self._spawning = False

    async def _handle(self) -> None:
        """Handle the next event, unless the slice is over: whose turn it is may be another one after the next read."""
        self._to_begin -= 1
        try:
            if self._is_time():
                self._begun += 1
                event = self._waiting.take()
                self._last = event, self._clock()
                await self._handling.published(event)
        finally:
            self._in_progress -= 1
            self._next()

    def _charge(self, now: float) -> None:
        """What was begun last has had its time: it has ended, or waits."""
        if self._last is not None:
            event, began = self._last
            self._last = None
            self._waiting.charge(event, now - began)

    def _is_time(self) -> bool:
        now = self._clock()
        self._charge(now)
        if self._until is None:
            self._until = now + SLICE
            self._jobs.spawn(self._go_on)
        self._over = now >= self._until
        return not self._over

    async def _go_on(self) -> None:
        """A job, because a stop waits for those."""
        self._charge(self._clock())
        await self._backend.pause()
        self._charge(self._clock())
        if self._over:
            await self._read()
        self._at_once = 2 * self._begun if self._over else self._processor.concurrency
        self._until, self._begun, self._over = None, 0, False
        self._next()

    async def _read(self) -> None:
        """Read for as long as the slice took, or until nothing comes: or Redis would end the connection of a service
        whose handlers take long, because too much waits for it.
        """
        now = self._clock()
        until = 2 * now - (now if self._until is None else self._until - SLICE)
        empty = 0
        while empty < EMPTY and self._clock() < until:
            self._arrived = False
            await self._backend.pause()
            empty = 0 if self._arrived else empty + 1


class Stream:
    """Entries of a stream, as many at a time as ``concurrency`` allows. ``name``: the consumer's."""

    def __init__(self, name: str, processor: EventProcessor, backend: Backend, jobs: Jobs, handling: Handling) -> None:
        self._processor = processor
        self._backend = backend
        self._jobs = jobs
        self._handling = handling
        self._consumer = Consumer(processor.channel, processor.name, name)
        self._entries: dict[bytes, Entry] = {}

    async def begin(self) -> None:
        self._jobs.spawn(self._jobs.persistently, self._read)

    def stop(self) -> None:
        """Nothing to do: the reading loop checks whether the jobs are stopping."""

    async def _read(self, reader: Reader) -> None:
        consumer = self._consumer
        await self._backend.run(JOIN, [consumer.stream], [consumer.group, FORGOTTEN_AFTER])
        look_again = 0.0
        while not self._jobs.stopping or self._entries:
            now = time.monotonic()
            if now >= look_again:
                look_again = now + self._processor.claim_after / 3
                await self._refresh()
            free = self._free()
            if not free:
                await self._jobs.change_within(look_again - now)
                continue
            block = max(1, min(BLOCK, int((look_again - now) * 1000)))
            for entry_id, body in new_entries(await reader.read(*consumer.read(free, block))):
                self._take(entry_id, body, 1)

    async def _refresh(self) -> None:
        """Reset the idle time of entries in hand, and claim idle entries of other consumers."""
        consumer, attempts = self._consumer, self._processor.attempts
        if self._entries:
            await self._backend.call(*consumer.keep(self._entries))
        free = self._free()
        if free:
            last = any(entry.delivered == attempts > 1 for entry in self._entries.values())
            claim = consumer.claim(self._processor.claim_after, free, attempts=attempts, alone=last)
            for entry_id, fields, delivered in await self._backend.run(CLAIM, [consumer.stream], claim):
                self._take(entry_id, event_in(fields), delivered)

    def _free(self) -> int:
        return 0 if self._jobs.stopping else self._processor.concurrency - len(self._entries)

    def _take(self, entry_id: bytes, body: bytes, delivered: int) -> None:
        if entry_id not in self._entries:
            entry = self._entries[entry_id] = Entry(self._consumer.stream, entry_id, body, delivered)
            self._jobs.spawn(self._handle, entry)

    async def _handle(self, entry: Entry) -> None:
        try:
            await self._handling.delivered(entry)
        finally:
            del self._entries[entry.id]


class Partitions:
    """Entries of those partitions of a stream whose leases this instance holds. ``name``: its own, also as consumer."""

    def __init__(self, name: str, processor: EventProcessor, backend: Backend, jobs: Jobs, handling: Handling) -> None:
        self._name = name
        self._processor = processor
        self._backend = backend
        self._jobs = jobs
        self._handling = handling
        self._streams = processor.streams
        self._leases = [lease_key(stream, processor.name) for stream in self._streams]
        self._followed: dict[int, bool] = {}  # partitions, and whether to continue with them

    async def begin(self) -> None:
        self._jobs.spawn(self._jobs.persistently, self._share)

    def stop(self) -> None:
        """Nothing to do: the reading loops check whether the jobs are stopping, and release their leases."""

    async def _share(self, _: Reader) -> None:
        """Hold a fair share of the partitions."""
        processor, jobs = self._processor, self._jobs
        keys = [instances_key(processor.channel, processor.name), *self._leases]
        milliseconds = int(processor.claim_after * 1000)
        while True:
            leaving = jobs.stopping and not self._followed
            share, held = await self._backend.run(SHARE, keys, (self._name, milliseconds, int(jobs.stopping)))
            if leaving:
                return
            for number in sorted(held):
                if number not in self._followed and not jobs.stopping:
                    self._followed[number] = True
                    jobs.spawn(self._following, number)
            continued = [number for number in self._followed if number in held]
            for number in continued[share:]:
                self._followed[number] = False
            await jobs.change_within(processor.claim_after / 3)

    async def _following(self, number: int) -> None:
        try:
            await self._jobs.persistently(lambda reader: self._follow(number, reader))
        finally:
            del self._followed[number]
            self._jobs.change()

    async def _follow(self, number: int, reader: Reader) -> None:
        """One partition, one event after the other, for as long as its lease is held."""
        group, stream, lease = self._processor.name, self._streams[number], self._leases[number]
        await self._backend.run(JOIN, [stream], [group, FORGOTTEN_AFTER])
        while self._followed[number] and not self._jobs.stopping:
            found = await self._backend.run(TAKE_NEXT, [lease, stream], [group, self._name])
            if not found:
                return  # another instance holds the lease now
            if len(found) == 1:
                await reader.read("XREAD", "COUNT", 1, "BLOCK", BLOCK, "STREAMS", stream, found[0])
            else:
                entry_id, fields, delivered = found
                await self._handling.delivered(Entry(stream, entry_id, event_in(fields), delivered))
        await self._backend.run(RELEASE, [lease], [self._name])

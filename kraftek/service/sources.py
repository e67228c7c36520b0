"""Where a service's events come from: a channel, a stream, or the partitions of one. Each is one way to share them.

Made and stopped by :class:`kraftek.service.instance.Instance`; they pass events to
:class:`kraftek.service.handling.Handling`, in the order that :mod:`kraftek.service.lanes` keeps.

Over Pub/Sub every instance gets every event that is published while it listens. Over a stream the instances are the
consumers of one group:

- Each stream, or each of its partitions, is read by the one instance that holds its lease. It reads ahead, and has one
  event of each room in hand. Whoever gets the lease begins with what its last holder left unfinished, also if it had
  the lease before. An instance that was stopped for a while may go on without the lease: it begins nothing then
  (``begin.lua``), reads nothing (``take.lua``), and what it had in hand is not committed once another instance has
  taken it over (``pending.lua``).
- With ``unordered`` and no partitions each reads as many entries as it can handle at a time. While it handles an entry
  it resets the entry's idle time; idle entries belong to dead instances, and are claimed.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from typing import Any, Protocol

from msgspec import Struct

from kraftek.contract.consumer_groups import CLAIM, FORGOTTEN_AFTER, JOIN, Consumer, event_in, new_entries
from kraftek.contract.lua import Argument, Script, lua
from kraftek.contract.names import instances_key, lease_key
from kraftek.service.backend import Away, Backend, Command, Reader, Rejected
from kraftek.service.commits import Entry
from kraftek.service.handling import Handling
from kraftek.service.jobs import Jobs
from kraftek.service.lanes import EVENTS, Hand, Hands, user_of
from kraftek.service.processor import EventProcessor, Incoming, NoEvent

__all__ = ["ORDERED", "SLICE", "Leased", "Shared", "Source", "Subscription"]

ORDERED = ".ordered"
"""How the names of instances end that read streams only under a lease."""

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

BATCH = 100
"""Entries that are read at a time."""

BATCH_BYTES = 4 * 1024 * 1024
"""Bytes of them, about."""

ACTIVE = 2000
"""Milliseconds in which a consumer that reads sends a command."""

SHARE = Script(lua(__package__, "time", "share"))
TAKE = Script(lua(__package__, "fields", "take"))
KEEP = Script(lua(__package__, "time", "keep"))
BEGIN = Script(lua(__package__, "begin"))

RELEASE = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
""")


class Source(Protocol):
    """Passes on events from ``begin`` until :class:`Jobs` is stopping."""

    async def begin(self) -> None: ...

    def stop(self) -> None:
        """Accept no more events: called when the jobs are stopping, before they end."""

    def beat(self) -> Command | None:
        """The command that keeps what this instance has in Redis; another thread calls this."""


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
        self._hands: Hands[Incoming] = Hands(processor.concurrency, processor.unordered, self._next)
        self._told: OrderedDict[str, float] = OrderedDict()  # sockets, and when each was told
        self._last: tuple[Hand[Incoming], Incoming, float] | None = None  # what was begun last, and when
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

    def beat(self) -> None:
        """Subscribers have nothing to keep."""

    def _received(self, body: bytes) -> None:
        self._arrived = True
        event = self._handling.opened(body)
        if event is None or self._hands.put(event, event, len(body)):
            return
        self._processor.refused += 1
        if event.id is not None or self._is_to_be_told(event.socket_id):
            self._jobs.spawn(self._handling.refuse, event)

    def _is_to_be_told(self, socket_id: str) -> bool:
        now, told = self._clock(), self._told
        while told and now - next(iter(told.values())) >= TOLD:
            told.popitem(last=False)
        if socket_id in told:
            return False
        told[socket_id] = now
        return True

    def _next(self, hand: Hand[Incoming]) -> None:
        """A job for each event that may begin. It is chosen when its job begins: until then another one may be next."""
        while not (self._over or self._jobs.cut_off) and hand.begun < min(hand.ready, self._at_once):
            hand.begun += 1
            self._jobs.spawn(self._handle, hand)

    async def _handle(self, hand: Hand[Incoming]) -> None:
        """Handle the next event, unless the slice is over: whose turn it is may be another one after the next read."""
        job = self._jobs.begins
        hand.begun -= 1
        if self._is_time():
            self._begun += 1
            event, ended = hand.take()
            self._last = hand, event, self._clock()
            await self._handling.published(event, ended, job)

    def _charge(self, now: float) -> None:
        """What was begun last has had its time: it has ended, or waits."""
        if self._last is not None:
            hand, event, began = self._last
            self._last = None
            hand.lanes.charge(user_of(event), now - began)

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
        self._hands.next()

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


class Shared:
    """Entries of a stream that all instances read, in no order, each as many at a time as ``concurrency`` allows.
    ``name``: the consumer's.
    """

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

    def beat(self) -> Command | None:
        entries = tuple(self._entries)
        return self._consumer.keep(entries) if entries else None

    async def _read(self, reader: Reader) -> None:
        consumer = self._consumer
        await self._backend.run(JOIN, [consumer.stream], [consumer.group, FORGOTTEN_AFTER])
        look_again = 0.0
        while not self._jobs.stopping or self._entries:
            now = time.monotonic()
            if now >= look_again:
                look_again = now + self._processor.claim_after / 3
                await self._refresh()
                continue  # a stop may have begun, and all have ended, meanwhile
            if not (free := self._free()):
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
        if free := self._free():
            last = any(entry.delivered == attempts > 1 for entry in self._entries.values())
            claim = consumer.claim(self._processor.claim_after, free, attempts=attempts, alone=last)
            for entry_id, fields, delivered in await self._backend.run(CLAIM, [consumer.stream], claim):
                self._take(entry_id, event_in(fields), delivered)

    def _free(self) -> int:
        return 0 if self._jobs.stopping else self._processor.concurrency - len(self._entries)

    def _take(self, entry_id: bytes, body: bytes, delivered: int) -> None:
        if entry_id not in self._entries:
            stream, name = self._consumer.stream, self._consumer.name
            entry = self._entries[entry_id] = Entry(stream, entry_id, body, delivered, name, self._lost)
            self._handling.begin(entry, lambda: self._ended(entry_id))

    def _lost(self) -> None:
        """Another instance has it, and nothing is to be done about the others."""

    def _ended(self, entry_id: bytes) -> None:
        del self._entries[entry_id]
        self._jobs.change()


class _Reading(Struct, eq=False):
    """That this instance reads a stream, from when it has the ``lease``, whose key is ``place``. ``lost``: it does not
    any more, or begins anew; what it has read and not begun is left to whoever reads it next.
    """

    stream: str
    place: str
    lease: bytes
    lost: bool = False

    def lose(self) -> None:
        self.lost = True


class _Waiting(Struct, eq=False):
    """An entry that was read. ``body``: empty if it was not kept; otherwise ``event`` is in it, unless it is none.
    ``ended`` is known from when it is its turn.
    """

    reading: _Reading
    id: bytes
    body: bytes
    event: Incoming | None
    delivered: int
    ended: Callable[[], None] = lambda: None


class Leased:
    """Entries of those streams whose leases this instance holds: partitions, or the one stream that there is. ``name``:
    its own, also as consumer.
    """

    def __init__(self, name: str, processor: EventProcessor, backend: Backend, jobs: Jobs, handling: Handling) -> None:
        self._name = name
        self._processor = processor
        self._backend = backend
        self._jobs = jobs
        self._handling = handling
        self._streams = processor.streams
        self._leases = [lease_key(stream, processor.name) for stream in self._streams]
        self._keys = [instances_key(processor.channel, processor.name), *self._leases]
        self._followed: dict[int, bool] = {}  # numbers of streams, and whether to continue with them
        self._readings: list[_Reading] = []
        self._hands: Hands[_Waiting] = Hands(processor.concurrency, processor.unordered, self._next)
        self._chosen: dict[_Reading, list[_Waiting]] = {}
        self._in_hand: Counter[str] = Counter()
        self._last: list[_Waiting] = []  # one that is on its last attempt, and those that wait for it

    async def begin(self) -> None:
        self._jobs.spawn(self._jobs.persistently, self._share)

    def stop(self) -> None:
        for reading in self._readings:
            reading.lose()

    def beat(self) -> Command:
        milliseconds = int(self._processor.claim_after * 1000)
        return ("EVAL", KEEP.source, len(self._keys), *self._keys, self._name, milliseconds)

    # Which streams

    async def _share(self, _: Reader) -> None:
        """Hold a fair share of the leases."""
        processor, jobs = self._processor, self._jobs
        milliseconds = int(processor.claim_after * 1000)
        while True:
            leaving = jobs.stopping and not self._followed
            words = (self._name, milliseconds, int(jobs.stopping))
            share, held, instances = await self._backend.run(SHARE, self._keys, words)
            if leaving:
                return
            leases: dict[int, bytes] = dict(held)
            for number in sorted(leases):
                if number not in self._followed and not jobs.stopping:
                    self._followed[number] = True
                    jobs.spawn(self._following, number, leases[number])
            continued = [number for number in self._followed if number in leases]
            for number in continued[share:]:
                self._followed[number] = False
            await self._look_for_others(instances, [self._streams[number] for number in continued])
            if not jobs.stopping or self._followed:
                await jobs.change_within(processor.claim_after / 3)

    async def _look_for_others(self, instances: list[bytes], streams: list[str]) -> None:
        """Say who else reads, and keeps no order: by name, or because it does so without a lease."""
        names = set(instances)
        for stream in streams:
            with suppress(Rejected):  # the group is lost, and made again
                for reply in await self._backend.call("XINFO", "CONSUMERS", stream, self._processor.name):
                    consumer = dict(zip(reply[::2], reply[1::2], strict=True))
                    if consumer[b"idle"] < ACTIVE:
                        names.add(consumer[b"name"])
        for name in sorted(name.decode() for name in names):
            if not name.endswith(ORDERED):
                self._jobs.warn(
                    f"{name} reads {self._processor.channel}, too, and keeps no order: an instance of an older "
                    "version, or one with unordered=True. The order of rooms is kept from when it has stopped"
                )

    async def _following(self, number: int, lease: bytes) -> None:
        try:
            await self._jobs.persistently(partial(self._follow, number, lease))
        finally:
            del self._followed[number]
            self._jobs.change()

    async def _follow(self, number: int, lease: bytes, reader: Reader) -> None:
        """Read one stream for as long as its lease is held, and give that back when nothing of it is in hand."""
        reading = _Reading(self._streams[number], self._leases[number], lease)
        await self._backend.run(JOIN, [reading.stream], [self._processor.name, FORGOTTEN_AFTER])
        self._readings.append(reading)
        try:
            await self._read(number, reading, reader)
        finally:
            reading.lose()
            self._readings.remove(reading)
        while self._in_hand[reading.stream]:
            await self._jobs.change_within(BLOCK / 1000)
        await self._backend.run(RELEASE, [reading.place], [lease])

    # What is in them

    async def _read(self, number: int, reading: _Reading, reader: Reader) -> None:
        words = reading.lease, self._processor.name, self._name
        look_from, most = "-", BATCH
        while self._followed[number] and not (reading.lost or self._jobs.stopping):
            if self._hands.waiting > EVENTS - BATCH:
                await self._jobs.change_within(BLOCK / 1000)
                continue
            found = await self._backend.run(TAKE, [reading.place, reading.stream], [*words, look_from, most])
            if not found:
                return  # another instance holds the lease now, or has held it meanwhile
            look_from, entries, *last = found
            if last:
                await reader.read("XREAD", "COUNT", 1, "BLOCK", BLOCK, "STREAMS", reading.stream, *last)
            size = sum(self._take(reading, *entry) for entry in entries)
            if entries:
                most = max(1, min(BATCH, BATCH_BYTES * len(entries) // max(1, size)))

    def _take(self, reading: _Reading, entry_id: bytes, fields: list[bytes], delivered: int) -> int:
        body = event_in(fields)
        event: Incoming | None = None
        with suppress(NoEvent):
            event = self._processor.open(body)
        place = event or _NO_EVENT
        kept = self._hands.keeps(place, len(body))
        waiting = _Waiting(reading, entry_id, body if kept else b"", event if kept else None, delivered)
        self._hands.put(waiting, place, len(waiting.body), bounded=False)
        return len(body)

    def _next(self, hand: Hand[_Waiting]) -> None:
        while hand.ready and not self._jobs.cut_off:
            waiting, ended = hand.take()
            if waiting.reading.lost:
                ended()
            else:
                self._choose(waiting, ended)

    def _choose(self, waiting: _Waiting, ended: Callable[[], None]) -> None:
        """It is the entry's turn."""
        waiting.ended = ended
        self._in_hand[waiting.reading.stream] += 1
        if waiting.delivered == self._processor.attempts > 1:
            # Of the entries in hand when an instance ends only one is the cause. So one on its last attempt is tried
            # without another such one beside it: if the instance ends then, that counts against it alone.
            self._last.append(waiting)
            if len(self._last) > 1:
                return
        self._send(waiting)

    def _send(self, waiting: _Waiting) -> None:
        chosen = self._chosen.get(waiting.reading)
        if chosen is None:
            self._chosen[waiting.reading] = [waiting]
            self._jobs.spawn(self._note, waiting.reading)
        else:
            chosen.append(waiting)

    async def _note(self, reading: _Reading) -> None:
        """Begin entries, all those at once that are chosen until Redis has answered for the ones before."""
        try:
            while chosen := self._chosen[reading]:
                self._chosen[reading] = []
                begun: list[Any] = []
                if not reading.lost:
                    begun = await self._begun(reading, chosen)
                for waiting, answer in zip_longest(chosen, begun, fillvalue=0):
                    self._begin(waiting, answer)
        finally:
            del self._chosen[reading]

    async def _begun(self, reading: _Reading, chosen: list[_Waiting]) -> list[Any]:
        words: list[Argument] = [reading.lease, self._processor.name, self._name]
        for waiting in chosen:
            words += (waiting.id, waiting.delivered + 1, int(not waiting.body))
        begun: list[Any] = []
        try:
            begun = await self._backend.run(BEGIN, [reading.place, reading.stream], words)
        except (Away, Rejected) as error:
            self._jobs.warn(f"Entries of {reading.stream} wait, and are read again: {error}")
        if not begun:
            reading.lose()
        return begun

    def _begin(self, waiting: Any, answer: Any) -> None:
        """``answer``: what ``begin.lua`` has for the entry."""
        ended = partial(self._ended, waiting)
        if answer == 0 or self._jobs.cut_off:
            ended()
        else:
            reading, body = waiting.reading, waiting.body or event_in(answer)
            entry = Entry(reading.stream, waiting.id, body, waiting.delivered, self._name, reading.lose)
            self._handling.begin(entry, ended, waiting.event)

    def _ended(self, waiting: _Waiting) -> None:
        self._in_hand[waiting.reading.stream] -= 1
        if waiting in self._last:
            self._last.remove(waiting)
            if self._last:
                self._send(self._last[0])
        waiting.ended()


_NO_EVENT = Incoming(event_type="")

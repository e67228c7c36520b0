"""One running instance of a service: takes events from Redis, has them handled, and commits what their handlers said.

Made, started and stopped by the backends. All of it runs on one thread, in the coroutines of whichever backend there
is.

Over Pub/Sub every instance gets every event that is published while it listens. Over a stream the instances are the
consumers of one group:

- Without partitions each takes what it has hands for. While it handles an entry it keeps that fresh; what went stale
  is a dead instance's, and is claimed.
- With partitions an instance reads those whose leases it holds, each one event at a time: whoever takes a lease over
  begins with what its last holder left unfinished. So order holds.

What a handler said and the acknowledgement of its entry are one transaction, which does nothing once somebody else
has acknowledged the entry. So an event may be handled twice, but is answered once.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from secrets import token_hex
from typing import Any

import msgspec
from msgspec import Struct

from kraftek.contract.consumer_groups import CLAIM, DEAD_LETTERS, FORGOTTEN_AFTER, JOIN
from kraftek.contract.errors import Code
from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.lua import Script, lua
from kraftek.contract.messages import Broadcast, ReceivedError
from kraftek.contract.names import dead_letters, instances_key, lease_key, reply_channel
from kraftek.contract.surrogates import read
from kraftek.service.backend import Away, Backend, Job, Reader, Rejected, Signal
from kraftek.service.processor import Argument, Command, EventProcessor, Incoming, NoEvent, Refused

__all__ = ["Instance"]

WAITING = 10_000
"""Events of Pub/Sub that wait for a free hand; more are refused."""

BLOCK = 500
"""Milliseconds that Redis lets a reader wait: so long may a stop or the loss of a lease go unnoticed by it."""

RETRY = 0.1
"""Seconds until a handler that failed is called again; each time four times as many."""

PAUSE = 1.0
"""Seconds between attempts to reach Redis."""

COMMIT = Script(lua(__package__, "commit"))
SHARE = Script(lua(__package__, "time", "share"))
TAKE_NEXT = Script(lua(__package__, "claimed", "fields", "take_next"))

RELEASE = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
""")

_decode_answer = msgspec.json.Decoder(Broadcast).decode


class Entry(Struct, frozen=True):
    """An event in a stream. ``delivered``: how often it was, this time included."""

    stream: str
    id: bytes
    body: bytes
    delivered: int


class Instance:
    """A service while it runs. ``name`` is its name among the consumers of the group."""

    def __init__(self, processor: EventProcessor, backend: Backend) -> None:
        self.name = f"{socket.gethostname()}.{os.getpid()}.{token_hex(4)}"
        self._processor = processor
        self._backend = backend
        self._once_a_minute = OnceAMinute(time.monotonic)
        self._stopping = False
        self._cut_off = False
        self._jobs: dict[int, Job | None] = {}
        self._numbers = count()
        self._waiting: deque[bytes] = deque()
        self._handing_out = False
        self._entries: dict[bytes, Entry] = {}
        self._changes: set[Signal] = set()
        self._beginning: Job | None = None
        self._answers: dict[int, Signal] = {}
        self._reply_to = processor.prefix + reply_channel(self.name)
        self._followed: dict[int, bool] = {}  # partitions, and whether they are to be kept

    def start(self) -> None:
        """Begin, also while Redis is away."""
        self._beginning = self._spawn(self._begin())

    async def stop(self) -> None:
        """Take nothing more, finish what was begun, for ``grace`` seconds at most, and be done."""
        deadline = time.monotonic() + self._processor.grace
        self._stopping = True
        if self._beginning is not None:
            self._cut_off = True  # it never came to take anything
            self._beginning.cancel()
        if self._processor.transport == "pubsub":
            self._spawn(self._backend.unsubscribe(self._processor.channel))
        self._change()
        while self._jobs and (left := deadline - time.monotonic()) > 0:
            await self._change_within(left)
        self._cut_off = True
        for job in tuple(self._jobs.values()):
            if job is not None:
                job.cancel()

    # Link: what handlers ask for

    def call(self, *command: Argument) -> Any:
        return self._backend.call(*command)

    async def request(self, event: Mapping[str, Any], timeout: float) -> Any:
        number = next(self._numbers)
        answer = self._answers[number] = self._backend.signal()
        try:
            asked = {**event, "id": number, "replyTo": self._reply_to}
            await self._backend.call(*self._processor.to_gateway(asked).parts)
            told = await answer.wait(timeout)
        finally:
            del self._answers[number]
        if told is None:
            raise Refused("TIMEOUT", f"{event['eventType']}: no answer within {timeout:g} s")
        if told.type == "error":
            error = msgspec.json.decode(told.payload, type=ReceivedError)
            raise Refused(error.code or Code.INTERNAL, error.message, error.retry_after)
        return msgspec.json.decode(told.payload)

    def _answered(self, body: bytes) -> None:
        try:
            answer, _ = read(_decode_answer, body)
        except (msgspec.DecodeError, RecursionError) as error:
            self._warn(f"Left out what is no answer: {error}")
            return
        waiting = self._answers.get(answer.in_reply_to) if isinstance(answer.in_reply_to, int) else None
        if waiting is not None:
            waiting.set(answer)

    # Taking events

    async def _begin(self) -> None:
        processor = self._processor
        await self._backend.subscribe(self._reply_to, self._answered)
        if processor.transport == "pubsub":
            await self._backend.subscribe(processor.channel, self._heard)
        elif processor.partitions:
            self._spawn(self._steadily(self._share))
        else:
            self._spawn(self._steadily(self._read))
        self._beginning = None
        self._backend.info(f"{processor.name} takes events from {processor.channel}")

    def _heard(self, body: bytes) -> None:
        if len(self._waiting) < WAITING:
            self._waiting.append(body)
            self._next()
        else:
            self._spawn(self._turn_away(body))

    def _next(self) -> None:
        if self._handing_out:
            return  # under Twisted what is spawned may be done at once, and ask for the next from within
        self._handing_out = True
        while self._waiting and len(self._entries) < self._processor.concurrency:
            number = b"%d" % next(self._numbers)
            entry = self._entries[number] = Entry("", number, self._waiting.popleft(), 1)
            self._spawn(self._published(entry))
        self._handing_out = False

    async def _read(self, reader: Reader) -> None:
        """Without partitions: whatever comes, as long as there are hands."""
        processor, backend = self._processor, self._backend
        stream, group = processor.channel, processor.name
        await backend.run(JOIN, [stream], [group, FORGOTTEN_AFTER])
        look_again = 0.0
        while not self._stopping or self._entries:
            now = time.monotonic()
            if now >= look_again:
                look_again = now + processor.claim_after / 3
                await self._refresh(stream)
            free = 0 if self._stopping else processor.concurrency - len(self._entries)
            if not free:
                await self._change_within(look_again - now)
                continue
            block = max(1, min(BLOCK, int((look_again - now) * 1000)))
            where = ("GROUP", group, self.name, "COUNT", free, "BLOCK", block, "STREAMS", stream, ">")
            for _, entries in await reader.read("XREADGROUP", *where) or ():
                for entry_id, fields in entries:
                    self._take(stream, entry_id, fields, 1)

    async def _refresh(self, stream: str) -> None:
        """Keep what is in hand, and claim what went stale in the hands of others."""
        processor, me = self._processor, (self._processor.name, self.name)
        if self._entries:
            await self._backend.call("XCLAIM", stream, *me, 0, *self._entries, "IDLE", 0, "JUSTID")
        free = 0 if self._stopping else processor.concurrency - len(self._entries)
        if free:
            last = any(entry.delivered == processor.attempts > 1 for entry in self._entries.values())
            stale = (int(processor.claim_after * 1000), free, "", processor.attempts, int(last))
            for entry_id, fields, delivered in await self._backend.run(CLAIM, [stream], [*me, *stale]):
                self._take(stream, entry_id, fields, delivered)

    def _take(self, stream: str, entry_id: bytes, fields: Sequence[bytes], delivered: int) -> None:
        if entry_id not in self._entries:
            entry = self._entries[entry_id] = _entry(stream, entry_id, fields, delivered)
            self._spawn(self._delivered(entry))

    # Partitions

    async def _share(self, _: Reader) -> None:
        """Hold a fair share of the partitions."""
        processor = self._processor
        alive = instances_key(processor.channel, processor.name)
        leases = [self._lease(number) for number in range(processor.partitions)]
        milliseconds = int(processor.claim_after * 1000)
        while True:
            leaving = self._stopping and not self._followed
            args = (self.name, milliseconds, int(self._stopping))
            share, held = await self._backend.run(SHARE, [alive, *leases], args)
            if leaving:
                return
            for number in sorted(held):
                if number not in self._followed and not self._stopping:
                    self._followed[number] = True
                    self._spawn(self._following(number))
            kept = [number for number in self._followed if number in held]
            for number in kept[share:]:
                self._followed[number] = False
            await self._change_within(processor.claim_after / 3)

    async def _following(self, number: int) -> None:
        try:
            await self._steadily(lambda reader: self._follow(number, reader))
        finally:
            del self._followed[number]
            self._change()

    async def _follow(self, number: int, reader: Reader) -> None:
        """One partition, one event after the other, for as long as its lease is held."""
        processor, lease = self._processor, self._lease(number)
        stream = processor.streams[number]
        await self._backend.run(JOIN, [stream], [processor.name, FORGOTTEN_AFTER])
        while self._followed[number] and not self._stopping:
            taken = await self._backend.run(TAKE_NEXT, [lease, stream], [processor.name, self.name])
            if not taken:
                return  # the lease is another's by now
            if len(taken) == 1:
                await reader.read("XREAD", "COUNT", 1, "BLOCK", BLOCK, "STREAMS", stream, taken[0])
            else:
                await self._delivered(_entry(stream, *taken))
        await self._backend.run(RELEASE, [lease], [self.name])

    def _lease(self, number: int) -> str:
        return lease_key(self._processor.streams[number], self._processor.name)

    # Having them handled

    def _warn(self, text: str) -> None:
        self._once_a_minute(self._backend.warn, text)

    async def _published(self, entry: Entry) -> None:
        """An event that came over Pub/Sub: one attempt, and what fails is told."""
        try:
            with self._loss():
                event = self._processor.open(entry.body)
                try:
                    await self._commit(None, await self._processor.handle(event, self))
                except Away:
                    raise
                except Exception as error:  # noqa: BLE001  # a handler's, whatever it is
                    if not self._cut_off:
                        self._backend.failed(f"{event.event_type} failed", error)
                        await self._commit(None, self._processor.failure(event))
        finally:
            del self._entries[entry.id]
            self._next()

    async def _turn_away(self, body: bytes) -> None:
        message = f"{self._processor.name} has too much to do"
        with self._loss():
            event = self._processor.open(body)
            await self._commit(None, self._processor.refusal(event, "SERVICE_UNAVAILABLE", message, 1.0))

    @contextmanager
    def _loss(self) -> Iterator[None]:
        """What came over Pub/Sub is lost with what it ends with here, and that is nobody's fault."""
        try:
            yield
        except NoEvent as error:
            self._warn(f"Left out what is no event: {error}")
        except Away as error:
            self._once_a_minute(
                self._backend.warn, f"Events were lost, and their senders not told, because Redis is away: {error}"
            )

    async def _delivered(self, entry: Entry) -> None:
        """An entry of a stream: tried until it is done, or put aside with the reason."""
        processor = self._processor
        try:
            event = processor.open(entry.body)
            if entry.delivered > processor.attempts:
                reason = f"delivered {entry.delivered - 1} times and never finished"
                await self._put_aside(entry, event, reason, entry.delivered - 1)
            else:
                await self._attempt(entry, event)
        except NoEvent as error:
            await self._put_aside(entry, None, f"no event: {error}", 1)
        except Rejected as error:
            # It stays in the group's list, and is delivered again.
            self._backend.failed(f"Redis refuses to commit entry {entry.id.decode()} of {entry.stream}", error)
            await self._backend.signal().wait(PAUSE)
        finally:
            self._entries.pop(entry.id, None)

    async def _attempt(self, entry: Entry, event: Incoming) -> None:
        attempt, delay = 1, RETRY
        while True:
            try:
                await self._commit(entry, await self._processor.handle(event, self))
            except Away:
                delay = PAUSE  # nobody's fault, and as long as it lasts nobody else gets the entry
            except Exception as error:  # noqa: BLE001  # a handler's, whatever it is
                if self._cut_off:
                    return
                self._backend.failed(f"{event.event_type} failed, attempt {attempt}", error)
                if attempt == self._processor.attempts:
                    await self._put_aside(entry, event, f"{type(error).__name__}: {error}", attempt)
                    return
                delay = RETRY * 4 ** (attempt - 1)
                attempt += 1
            else:
                return
            await self._backend.signal().wait(delay)

    async def _put_aside(self, entry: Entry, event: Incoming | None, reason: str, attempts: int) -> None:
        self._backend.warn(f"Put entry {entry.id.decode()} of {entry.stream} aside: {reason}")
        kept = ("event", entry.body, "reason", reason[:1000], "attempts", attempts, "id", entry.id)
        letter = Command(("XADD", dead_letters(entry.stream), "MAXLEN", "~", DEAD_LETTERS, "*", *kept))
        while True:
            try:
                await self._commit(entry, [letter, *(self._processor.failure(event) if event else ())])
            except Away:
                await self._backend.signal().wait(PAUSE)
            else:
                return

    async def _commit(self, entry: Entry | None, commands: Sequence[Command]) -> None:
        """Send what was said, all of it together; an entry's only if nobody else has acknowledged it."""
        if entry is None and len(commands) == 1:
            await self._backend.call(*commands[0].parts)
        elif entry is not None or commands:
            args: list[Argument] = [self._processor.name, entry.id if entry else ""]
            for command in commands:
                args += ("unheard" if command.unheard else "always", len(command.parts), *command.parts)
            await self._backend.run(COMMIT, [entry.stream] if entry else [], args)

    # Coroutines that run

    async def _steadily(self, work: Callable[[Reader], Awaitable[None]]) -> None:
        """Work until it is done; again and again when Redis is away or has forgotten the group."""
        reader = self._backend.reader()
        try:
            while True:
                try:
                    await work(reader)
                except (Away, Rejected) as error:
                    self._once_a_minute(
                        self._backend.warn, f"Redis does not serve, trying again every {PAUSE:g} s: {error}"
                    )
                    if self._stopping:
                        return
                    await self._change_within(PAUSE)
                else:
                    return
        finally:
            reader.close()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> Job:
        number = next(self._numbers)
        self._jobs[number] = None
        job = self._backend.spawn(self._guarded(number, coroutine))
        if number in self._jobs:  # under Twisted it may be done by now
            self._jobs[number] = job
        return job

    async def _guarded(self, number: int, coroutine: Coroutine[Any, Any, None]) -> None:
        """The one guard: a fault of ours ends one piece of work, and is logged."""
        try:
            await coroutine
        except Exception as error:  # noqa: BLE001
            if not self._cut_off:
                self._backend.failed("An event was lost", error)
        finally:
            del self._jobs[number]
            self._change()

    def _change(self) -> None:
        for change in tuple(self._changes):
            change.set()

    async def _change_within(self, seconds: float) -> None:
        """Until something changes, or time is up."""
        change = self._backend.signal()
        self._changes.add(change)
        try:
            await change.wait(seconds)
        finally:
            self._changes.discard(change)


def _entry(stream: str, entry_id: bytes, fields: Sequence[bytes], delivered: int) -> Entry:
    body = dict(zip(fields[::2], fields[1::2], strict=True)).get(b"event", b"")
    return Entry(stream, entry_id, body, delivered)

"""Handles an event that a service has received, and commits the commands of its handler.

Called by :mod:`kraftek.service.sources`. The commands of a handler and the acknowledgement of its entry are one
transaction, which does nothing unless the entry is this instance's. So an event may be handled twice, but is answered
once.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct

from kraftek.contract.consumer_groups import dead_letter
from kraftek.contract.errors import Code
from kraftek.contract.names import dead_letters
from kraftek.service.backend import Away, Backend, Refusing, Rejected
from kraftek.service.cancels import Cancels
from kraftek.service.commits import Command, Commits, Entry, NotNow
from kraftek.service.deadlines import Deadlines
from kraftek.service.jobs import PAUSE, Jobs
from kraftek.service.link import Link
from kraftek.service.processor import EventProcessor, Incoming, NoEvent

__all__ = ["Entry", "Handling"]

RETRY = 0.1
"""Seconds until a handler that failed is called again; each time four times as many."""

RETRY_AFTER = 1.0
"""Seconds after which those that are refused because too much waits should try again."""


class _Work(Struct, eq=False):
    """An event in hand. ``attempt``: which call of its handler this is. ``job``: the number of the job that calls it.
    ``given_up``: another job has it now, because the handler has exceeded its time. ``cancelled``: by its client.
    """

    event: Incoming
    entry: Entry | None
    ended: Callable[[], None]
    attempt: int = 1
    job: int = -1
    given_up: bool = False
    cancelled: bool = False


class Handling:
    """Handles events. ``link``: what handlers can use while they run; ``warn`` logs a line, once a minute. ``cancels``
    are to begin before events come.
    """

    def __init__(
        self, processor: EventProcessor, backend: Backend, jobs: Jobs, link: Link, warn: Callable[[str], None]
    ) -> None:
        self._processor = processor
        self._backend = backend
        self._commits = Commits(backend)
        self._jobs = jobs
        self._link = link
        self._warn = warn
        self._deadlines = Deadlines(backend, jobs, self._give_up)
        self.cancels = Cancels(processor, backend, self._cancel, warn)

    def opened(self, body: bytes) -> Incoming | None:
        """What came over Pub/Sub, if it is an event."""
        try:
            return self._processor.open(body)
        except NoEvent as error:
            self._warn(f"Ignored a message that is not an event: {error}")
            return None

    async def published(self, event: Incoming, ended: Callable[[], None], job: int) -> None:
        """An event that came over Pub/Sub: one attempt; the sender gets an error if it fails. ``job``: which one calls
        this. ``ended`` is called when the next one of the room may begin.
        """
        await self._run(_Work(event, None, ended, job=job), None)

    def begin(self, entry: Entry, ended: Callable[[], None], event: Incoming | None = None) -> None:
        """An entry of a stream: tried until it succeeds, or dead-lettered with the reason. ``event``: it, if it was
        opened already.
        """
        try:
            event = event or self._processor.open(entry.body)
        except NoEvent as error:
            self._jobs.spawn(self._set_aside, entry, None, f"not an event: {error}", 1, ended)
            return
        if entry.delivered > self._processor.attempts:
            times = entry.delivered - 1
            self._jobs.spawn(self._set_aside, entry, event, f"delivered {times} times and never finished", times, ended)
        else:
            self._spawn(_Work(event, entry, ended))

    def stop(self) -> None:
        """Called when the jobs are stopping, before they end."""
        self._deadlines.stop()

    def goes_on(self, work: _Work) -> None:
        """Its handler has sent a part of its answer, or a piece of a text: its time begins anew."""
        self._deadlines.renew(work, self._processor.time_limit(work.event))

    async def refuse(self, event: Incoming) -> None:
        """Refuse an event that came over Pub/Sub while too many wait."""
        message = f"service {self._processor.name} is overloaded"
        with self._loss():
            await self.commit(None, self._processor.refusal(event, Code.SERVICE_UNAVAILABLE, message, RETRY_AFTER))

    # Within

    def _spawn(self, work: _Work, error: BaseException | None = None) -> None:
        work.job = self._jobs.spawn(self._run, work, error)

    async def _run(self, work: _Work, error: BaseException | None) -> None:
        """``error``: that of the attempt before, which is given up."""
        try:
            if work.entry is None:
                with self._loss():
                    await self._try_once(work, error)
            else:
                await self._try(work, work.entry, error)
        finally:
            if not work.given_up:
                work.ended()

    async def _call(self, work: _Work) -> Sequence[Command]:
        """Call the handler. What it has done when its time is up does not count: whatever it returns is ignored, and so
        is what it does about being cancelled. When its client has cancelled the request it may still return something.
        """
        event, processor = work.event, self._processor
        if self.cancels and self.cancels.has(event):
            return _cancelled(processor, event)
        try:
            with self._deadlines.watch(processor.time_limit(event), work):
                return await processor.handle(event, self._link, work)
        except (Exception, CancelledError):
            if not work.cancelled or work.given_up or self._jobs.cut_off:
                raise
            return _cancelled(processor, event)

    def _cancel(self, is_cancelled: Callable[[Incoming], bool]) -> None:
        for work in self._deadlines.watched():
            if not work.cancelled and is_cancelled(work.event):
                work.cancelled = True
                self._jobs.cancel(work.job)

    def _give_up(self, work: _Work) -> None:
        name, limit = work.event.event_type, self._processor.time_limit(work.event)
        work.given_up = True
        self._jobs.cancel(work.job)
        error = TimeoutError(f"the handler of {name} has not ended within {limit:g} s, and is cancelled")
        self._spawn(_Work(work.event, work.entry, work.ended, work.attempt), error)

    # Over Pub/Sub

    async def _try_once(self, work: _Work, error: BaseException | None) -> None:
        event, processor = work.event, self._processor
        try:
            if error is None:
                commands = await self._call(work)
                if not work.given_up:
                    await self.commit(None, commands)
        except (NotNow, Refusing) as why:
            processor.refused += 1
            self._warn(f"What handlers have done cannot be committed, and their events are refused: {why}")
            message = f"service {processor.name} cannot do it at present"
            await self.commit(None, processor.refusal(event, Code.SERVICE_UNAVAILABLE, message, RETRY_AFTER))
        except Away:
            raise
        except (Exception, CancelledError) as failed:  # noqa: BLE001  # a handler's, whatever it is
            error = failed
        if error is not None and not (self._jobs.cut_off or work.given_up):
            self._backend.failed(f"{event.event_type} failed", error)
            await self.commit(None, processor.failure(event))

    @contextmanager
    def _loss(self) -> Iterator[None]:
        """Log why an event over Pub/Sub is lost, where that is no error of the service."""
        try:
            yield
        except Away as error:
            self._warn(f"Events were lost, and their senders got no error, because Redis is unavailable: {error}")

    # Over a stream

    async def _try(self, work: _Work, entry: Entry, error: BaseException | None) -> None:
        while not (work.given_up or self._jobs.cut_off):
            if error is not None:
                self._backend.failed(f"{work.event.event_type} failed, attempt {work.attempt}", error)
                if work.attempt == self._processor.attempts:
                    reason = f"{type(error).__name__}: {error}"
                    await self._dead_letter(entry, work.event, reason, work.attempt)
                    return
                delay = RETRY * 4 ** (work.attempt - 1)
                work.attempt, error = work.attempt + 1, None
                await self._backend.signal().wait(delay)
            try:
                commands = await self._call(work)
                if not work.given_up:
                    await self._settle(entry, commands)
            except Away:
                # No attempt: while Redis is unavailable no other instance gets the entry.
                await self._backend.signal().wait(PAUSE)
            except (Exception, CancelledError) as failed:  # noqa: BLE001  # a handler's, whatever it is
                error = failed
            else:
                return

    async def _set_aside(
        self, entry: Entry, event: Incoming | None, reason: str, attempts: int, ended: Callable[[], None]
    ) -> None:
        try:
            await self._dead_letter(entry, event, reason, attempts)
        finally:
            ended()

    async def _dead_letter(self, entry: Entry, event: Incoming | None, reason: str, attempts: int) -> None:
        self._backend.warn(f"Dead-lettered entry {entry.id.decode()} of {entry.stream}: {reason}")
        letter = dead_letter(entry.body, reason, entry.id, "attempts", attempts)
        keep = Command(("XADD", dead_letters(entry.stream), *letter))
        while True:
            try:
                await self._settle(entry, [keep, *(self._processor.failure(event) if event else ())])
            except Rejected as error:
                # Its room waits: what comes after it would be out of order.
                self._backend.failed(f"Redis refuses to commit entry {entry.id.decode()} of {entry.stream}", error)
                await self._backend.signal().wait(PAUSE)
            else:
                return

    async def _settle(self, entry: Entry, commands: Sequence[Command]) -> None:
        """Commit, as often as it takes: the entry is pending until then. What was committed before is not again."""
        while True:
            try:
                if not await self.commit(entry, commands):
                    entry.lost()
            except (Away, NotNow) as error:
                self._warn(f"What handlers have done waits, and is committed as soon as possible: {error}")
                await self._backend.signal().wait(PAUSE)
            else:
                return

    async def commit(self, entry: Entry | None, commands: Sequence[Command]) -> bool:
        """Do what a handler wants done: all of it, with the acknowledgement of its entry, or nothing. Returns whether
        the entry was this instance's.
        """
        return await self._commits.commit(commands, self._processor.name, entry)


def _cancelled(processor: EventProcessor, event: Incoming) -> Sequence[Command]:
    """The answer to a request that its client has cancelled: others may wait for it, too."""
    return processor.refusal(event, Code.CANCELLED, "cancelled by the client")

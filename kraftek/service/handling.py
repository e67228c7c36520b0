"""Handles an event that a service has received, and commits the commands of its handler.

Called by :mod:`kraftek.service.sources`. The commands of a handler and the acknowledgement of its entry are one
transaction, which does nothing if another instance has acknowledged the entry. So an event may be handled twice, but is
answered once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec import Struct

from kraftek.contract.consumer_groups import dead_letter
from kraftek.contract.errors import Code
from kraftek.contract.names import dead_letters
from kraftek.service.backend import Away, Backend, Refusing, Rejected
from kraftek.service.commits import Full, commit
from kraftek.service.jobs import PAUSE, Jobs
from kraftek.service.processor import Command, EventProcessor, Incoming, Link, NoEvent

__all__ = ["Entry", "Handling"]

RETRY = 0.1
"""Seconds until a handler that failed is called again; each time four times as many."""

RETRY_AFTER = 1.0
"""Seconds after which those that are refused because too much waits should try again."""


class Entry(Struct, frozen=True):
    """An event in a stream. ``delivered``: how often it was, this time included."""

    stream: str
    id: bytes
    body: bytes
    delivered: int


class Handling:
    """Handles events. ``link``: what handlers can use while they run; ``warn`` logs a line, once a minute."""

    def __init__(
        self, processor: EventProcessor, backend: Backend, jobs: Jobs, link: Link, warn: Callable[[str], None]
    ) -> None:
        self._processor = processor
        self._backend = backend
        self._jobs = jobs
        self._link = link
        self._warn = warn

    # Over Pub/Sub

    def opened(self, body: bytes) -> Incoming | None:
        """What came over Pub/Sub, if it is an event."""
        try:
            return self._processor.open(body)
        except NoEvent as error:
            self._warn(f"Ignored a message that is not an event: {error}")
            return None

    async def published(self, event: Incoming) -> None:
        """An event that came over Pub/Sub: one attempt; the sender gets an error if it fails."""
        with self._loss():
            try:
                await self.commit(None, await self._processor.handle(event, self._link))
            except (Full, Refusing) as error:
                self._processor.refused += 1
                self._warn(f"What handlers have done cannot be committed, and their events are refused: {error}")
                message = f"service {self._processor.name} cannot do it at present"
                await self.commit(None, self._processor.refusal(event, Code.SERVICE_UNAVAILABLE, message, RETRY_AFTER))
            except Away:
                raise
            except Exception as error:  # noqa: BLE001  # a handler's, whatever it is
                if not self._jobs.cut_off:
                    self._backend.failed(f"{event.event_type} failed", error)
                    await self.commit(None, self._processor.failure(event))

    async def refuse(self, event: Incoming) -> None:
        """Refuse an event that came over Pub/Sub while too many wait."""
        message = f"service {self._processor.name} is overloaded"
        with self._loss():
            await self.commit(None, self._processor.refusal(event, Code.SERVICE_UNAVAILABLE, message, RETRY_AFTER))

    @contextmanager
    def _loss(self) -> Iterator[None]:
        """Log why an event over Pub/Sub is lost, where that is no error of the service."""
        try:
            yield
        except Away as error:
            self._warn(f"Events were lost, and their senders got no error, because Redis is unavailable: {error}")

    # Over a stream

    async def delivered(self, entry: Entry) -> None:
        """An entry of a stream: tried until it succeeds, or dead-lettered with the reason."""
        processor = self._processor
        try:
            event = processor.open(entry.body)
            if entry.delivered > processor.attempts:
                reason = f"delivered {entry.delivered - 1} times and never finished"
                await self._dead_letter(entry, event, reason, entry.delivered - 1)
            else:
                await self._attempt(entry, event)
        except NoEvent as error:
            await self._dead_letter(entry, None, f"not an event: {error}", 1)
        except Rejected as error:
            # It stays pending, and is delivered again.
            self._backend.failed(f"Redis refuses to commit entry {entry.id.decode()} of {entry.stream}", error)
            await self._backend.signal().wait(PAUSE)

    async def _attempt(self, entry: Entry, event: Incoming) -> None:
        attempt, delay = 1, RETRY
        while True:
            try:
                await self._settle(entry, await self._processor.handle(event, self._link))
            except Away:
                delay = PAUSE  # no attempt: while Redis is unavailable no other instance gets the entry
            except Exception as error:  # noqa: BLE001  # a handler's, whatever it is
                if self._jobs.cut_off:
                    return
                self._backend.failed(f"{event.event_type} failed, attempt {attempt}", error)
                if attempt == self._processor.attempts:
                    await self._dead_letter(entry, event, f"{type(error).__name__}: {error}", attempt)
                    return
                delay = RETRY * 4 ** (attempt - 1)
                attempt += 1
            else:
                return
            await self._backend.signal().wait(delay)

    async def _dead_letter(self, entry: Entry, event: Incoming | None, reason: str, attempts: int) -> None:
        self._backend.warn(f"Dead-lettered entry {entry.id.decode()} of {entry.stream}: {reason}")
        letter = dead_letter(entry.body, reason, entry.id, "attempts", attempts)
        keep = Command(("XADD", dead_letters(entry.stream), *letter))
        await self._settle(entry, [keep, *(self._processor.failure(event) if event else ())])

    async def _settle(self, entry: Entry, commands: Sequence[Command]) -> None:
        """Commit, as often as it takes: the entry is pending until then. What was committed before is not again."""
        while True:
            try:
                await self.commit(entry, commands)
            except (Away, Full) as error:
                self._warn(f"What handlers have done waits, and is committed as soon as possible: {error}")
                await self._backend.signal().wait(PAUSE)
            else:
                return

    async def commit(self, entry: Entry | None, commands: Sequence[Command]) -> None:
        """Do what a handler wants done: all of it, with the acknowledgement of its entry, or nothing."""
        if entry is None:
            await commit(self._backend, commands)
        else:
            await commit(self._backend, commands, self._processor.name, entry.stream, entry.id)

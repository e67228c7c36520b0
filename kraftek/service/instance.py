"""One running instance of a service: starts, sends requests to other services for its handlers, and stops.

Made, started and stopped by the backends. All of it runs on one thread, in the coroutines of the backend. Its events
come from :mod:`kraftek.service.sources`, and are handled by :mod:`kraftek.service.handling`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.lua import Argument, Script
from kraftek.service.backend import Backend
from kraftek.service.comparison import Comparison
from kraftek.service.handling import Handling
from kraftek.service.jobs import Jobs
from kraftek.service.messages import Message
from kraftek.service.processor import EventProcessor
from kraftek.service.pulse import Pulse
from kraftek.service.receipts import Receipt
from kraftek.service.requests import Requests, new_name
from kraftek.service.self_registration import SelfRegistration
from kraftek.service.sources import ORDERED, Leased, Shared, Source, Subscription
from kraftek.service.threads import Threads

__all__ = ["Instance"]


class Instance:
    """A service while it runs. ``name`` is its name among the consumers of the group. ``handling`` makes a
    :class:`Handling`. ``compares``: what it runs with is compared with its registration.
    """

    def __init__(
        self,
        processor: EventProcessor,
        backend: Backend,
        handling: Callable[..., Handling] = Handling,
        *,
        compares: bool = True,
    ) -> None:
        self.name = new_name() + ("" if processor.unordered else ORDERED)
        self._processor = processor
        self._backend = backend
        self._warn = partial(OnceAMinute(time.monotonic), backend.warn)
        self._jobs = Jobs(backend, self._warn)
        self._threads = Threads(backend)
        self._handling = handling(processor, backend, self._jobs, self, self._warn)
        self._source = self._choose_source(self._handling)
        self._registration = SelfRegistration(processor, backend) if processor.register else None
        beats = [self._source.beat, *(() if self._registration is None else (self._registration.beat,))]
        limit = partial(getattr, processor, "timeout")
        self._pulse = Pulse(backend, processor.claim_after / 3, limit, processor.handlers(), *beats)
        self._comparison = Comparison(processor, backend) if compares else None
        self._begun = False
        self._requests = Requests(self.name, processor, backend, self._warn)

    def start(self) -> None:
        """Start, also while Redis is unavailable."""
        self._pulse.start()
        self._jobs.spawn(self._begin)

    async def stop(self) -> None:
        """Accept no more events, finish those in hand within ``grace`` seconds, and end."""
        self._jobs.stopping = True
        if self._comparison is not None:
            self._comparison.stop()
        if self._registration is not None:
            self._registration.stop()
        self._source.stop()
        self._handling.stop()
        # Until it has begun it has received no events.
        await self._jobs.end(self._processor.grace if self._begun else 0.0)
        self._pulse.stop()

    # Link: for handlers

    def call(self, *command: Argument) -> Any:
        return self._backend.call(*command)

    def awaitable(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        return self._backend.awaitable(coroutine)

    def in_thread(self, work: Callable[[], Any]) -> Awaitable[Any]:
        return self._threads.run(work)

    async def run_for(self, work: Any, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        self._handling.goes_on(work)
        return await self._backend.run(script, keys, args)

    def request(self, event: Mapping[str, Any], timeout: float) -> Coroutine[Any, Any, Any]:
        return self._requests.request(event, timeout)

    def receipt(self, message: Message | None, seconds: float) -> Coroutine[Any, Any, Receipt]:
        return self._requests.receipt(message, seconds)

    # Beginning

    def _choose_source(self, handling: Handling) -> Source:
        processor, backend, jobs = self._processor, self._backend, self._jobs
        if processor.transport == "pubsub":
            return Subscription(processor, backend, jobs, handling)
        kind = Shared if processor.unordered and not processor.partitions else Leased
        return kind(self.name, processor, backend, jobs, handling)

    async def _begin(self) -> None:
        await self._requests.begin()
        await self._handling.cancels.begin()
        if self._comparison is not None:
            self._comparison.start()
        await self._source.begin()
        if self._registration is not None and not self._jobs.stopping:
            self._registration.start()
        self._begun = True
        self._backend.info(f"Service {self._processor.name} receives events from {self._processor.channel}")

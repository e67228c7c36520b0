"""One running instance of a service: starts, sends requests to other services for its handlers, and stops.

Made, started and stopped by the backends. All of it runs on one thread, in the coroutines of the backend. Its events
come from :mod:`kraftek.service.sources`, and are handled by :mod:`kraftek.service.handling`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from itertools import count
from secrets import token_hex
from typing import Any

import msgspec

from kraftek.contract.errors import Code
from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.lua import Argument
from kraftek.contract.messages import Broadcast, ReceivedError
from kraftek.contract.names import reply_channel
from kraftek.contract.surrogates import read
from kraftek.service.backend import Backend, Signal
from kraftek.service.commits import Full, commit
from kraftek.service.handling import RETRY_AFTER, Handling
from kraftek.service.jobs import Jobs
from kraftek.service.processor import EventProcessor, Refused
from kraftek.service.sources import Partitions, Source, Stream, Subscription
from kraftek.service.threads import Threads

__all__ = ["Instance"]

_decode_answer = msgspec.json.Decoder(Broadcast).decode


class Instance:
    """A service while it runs. ``name`` is its name among the consumers of the group."""

    def __init__(self, processor: EventProcessor, backend: Backend) -> None:
        self.name = f"{socket.gethostname()}.{os.getpid()}.{token_hex(4)}"
        self._processor = processor
        self._backend = backend
        self._warn = partial(OnceAMinute(time.monotonic), backend.warn)
        self._jobs = Jobs(backend, self._warn)
        self._threads = Threads(backend)
        self._source = self._choose_source(Handling(processor, backend, self._jobs, self, self._warn))
        self._begun = False
        self._numbers = count(1)
        self._answers: dict[int, Signal] = {}
        self._reply_to = processor.prefix + reply_channel(self.name)

    def start(self) -> None:
        """Start, also while Redis is unavailable."""
        self._jobs.spawn(self._begin)

    async def stop(self) -> None:
        """Accept no more events, finish those in hand within ``grace`` seconds, and end."""
        self._jobs.stopping = True
        self._source.stop()
        # Until it has begun it has received no events.
        await self._jobs.end(self._processor.grace if self._begun else 0.0)

    # Link: for handlers

    def call(self, *command: Argument) -> Any:
        return self._backend.call(*command)

    def awaitable(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        return self._backend.awaitable(coroutine)

    def in_thread(self, work: Callable[[], Any]) -> Awaitable[Any]:
        return self._threads.run(work)

    async def request(self, event: Mapping[str, Any], timeout: float) -> Any:
        number = next(self._numbers)
        answer = self._answers[number] = self._backend.signal()
        try:
            message = {**event, "id": number, "replyTo": self._reply_to}
            await commit(self._backend, [self._processor.to_gateway(message)])
            reply = await answer.wait(timeout)
        except Full as full:
            raise Refused(Code.SERVICE_UNAVAILABLE, f"{event['eventType']}: {full}", RETRY_AFTER) from None
        finally:
            del self._answers[number]
        if reply is None:
            raise Refused("TIMEOUT", f"{event['eventType']}: no answer within {timeout:g} s")
        if reply.type == "error":
            error = msgspec.json.decode(reply.payload, type=ReceivedError)
            raise Refused(error.code or Code.INTERNAL, error.message, error.retry_after)
        return msgspec.json.decode(reply.payload)

    def _answered(self, body: bytes) -> None:
        try:
            answer, _ = read(_decode_answer, body)
        except (msgspec.DecodeError, RecursionError) as error:
            self._warn(f"Ignored a message that is not an answer: {error}")
            return
        waiting = self._answers.get(answer.in_reply_to) if isinstance(answer.in_reply_to, int) else None
        if waiting is not None:
            waiting.set(answer)

    # Beginning

    def _choose_source(self, handling: Handling) -> Source:
        processor, backend, jobs = self._processor, self._backend, self._jobs
        if processor.transport == "pubsub":
            return Subscription(processor, backend, jobs, handling)
        kind = Partitions if processor.partitions else Stream
        return kind(self.name, processor, backend, jobs, handling)

    async def _begin(self) -> None:
        await self._backend.subscribe(self._reply_to, self._answered)
        await self._source.begin()
        self._begun = True
        self._backend.info(f"Service {self._processor.name} receives events from {self._processor.channel}")

"""Requests to other services, and their answers. Made for an instance of a service, and for a publisher."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from itertools import count
from secrets import token_hex
from typing import Any

import msgspec

from kraftek.contract.errors import Code
from kraftek.contract.messages import Broadcast, ReceivedError
from kraftek.contract.names import reply_channel
from kraftek.contract.payloads import payload_decoder
from kraftek.contract.surrogates import read
from kraftek.service.backend import Backend, Signal
from kraftek.service.commits import Commits, Full
from kraftek.service.handling import RETRY_AFTER
from kraftek.service.processor import EventProcessor, Refused

__all__ = ["Requests", "new_name"]

_decode_answer = msgspec.json.Decoder(Broadcast).decode
_decode_payload = payload_decoder(Any).decode


def new_name() -> str:
    """A name for an instance, unique among all of them."""
    return f"{socket.gethostname()}.{os.getpid()}.{token_hex(4)}"


class Requests:
    """Those that wait for an answer, on a channel of their own; ``name`` is its last part. ``warn`` logs a line."""

    def __init__(self, name: str, processor: EventProcessor, backend: Backend, warn: Callable[[str], None]) -> None:
        self._processor = processor
        self._backend = backend
        self._commits = Commits(backend)
        self._warn = warn
        self._numbers = count(1)
        self._answers: dict[int, Signal] = {}
        self._reply_to = processor.prefix + reply_channel(name)

    async def begin(self) -> None:
        """Listen for answers; returns when Redis has confirmed it."""
        await self._backend.subscribe(self._reply_to, self._answered)

    async def request(self, event: Mapping[str, Any], timeout: float) -> Any:
        """The payload of the answer. Raises :class:`Refused` for an error, or when there is none in time."""
        number = next(self._numbers)
        answer = self._answers[number] = self._backend.signal()
        try:
            await self.emit({**event, "id": number, "replyTo": self._reply_to})
            reply = await answer.wait(timeout)
        finally:
            del self._answers[number]
        if reply is None:
            raise Refused("TIMEOUT", f"{event['eventType']}: no answer within {timeout:g} s")
        if reply.type == "error":
            error = msgspec.json.decode(reply.payload, type=ReceivedError)
            raise Refused(error.code or Code.INTERNAL, error.message, error.retry_after)
        return _decode_payload(reply.payload)

    async def emit(self, event: Mapping[str, Any]) -> None:
        """Send an event at once. Raises :class:`Refused` while too many wait for a gateway."""
        try:
            await self._commits.commit([self._processor.to_gateway(event)])
        except Full as full:
            raise Refused(Code.SERVICE_UNAVAILABLE, f"{event['eventType']}: {full}", RETRY_AFTER) from None

    def _answered(self, body: bytes) -> None:
        try:
            answer, _ = read(_decode_answer, body)
        except (msgspec.DecodeError, RecursionError) as error:
            self._warn(f"Ignored a message that is not an answer: {error}")
            return
        waiting = self._answers.get(answer.in_reply_to) if isinstance(answer.in_reply_to, int) else None
        if waiting is not None:
            waiting.set(answer)

"""The parts of an answer, as a handler sends them. Made by :class:`kraftek.service.processor.Context`."""

from __future__ import annotations

from secrets import token_hex
from typing import Any, Protocol

import msgspec
from msgspec import Raw

from kraftek.contract.lua import Argument, Script, lua
from kraftek.contract.messages import PARTS_KEPT, REQUEST_KNOWN, Envelope
from kraftek.contract.names import REQUEST_PROGRESS, parts_key
from kraftek.contract.surrogates import encode
from kraftek.service.messages import Message

__all__ = ["PROGRESS", "Parts"]

PROGRESS = Script(lua(__package__, "progress"))

_encode = msgspec.json.Encoder().encode


class _Processor(Protocol):
    prefix: str
    transport: Any

    def sized(self, name: str, body: bytes) -> bytes: ...


class Parts:
    """Those of one run of a handler."""

    def __init__(self, processor: _Processor, event: Envelope) -> None:
        self._processor = processor
        self._event = event
        self._run = token_hex(4)
        self._number = 0

    def next(self, payload: Any) -> tuple[list[str], list[Argument]]:
        """The key and the arguments of :data:`PROGRESS` for one more. Raises :class:`TooLarge`."""
        event, processor = self._event, self._processor
        assert event.id is not None
        part = encode(payload)
        place = {"run": self._run, "number": self._number + 1, "payload": Raw(part)}
        message = Message(REQUEST_PROGRESS, Raw(_encode(place)), recipients=(event.socket_id,), in_reply_to=event.id)
        body = processor.sized(event.event_type, _encode(message))
        self._number += 1
        over, lasts = int(processor.transport == "stream"), round(1000 * REQUEST_KNOWN)
        args: list[Argument] = [self._run, self._number, part, body, event.reply_to, PARTS_KEPT, lasts, over]
        return [processor.prefix + parts_key(event.socket_id, event.id)], args

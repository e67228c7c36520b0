"""Requests to other services, and their answers; and the receipts of messages to clients. Made for an instance of a
service, and for a publisher.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from itertools import count
from secrets import token_hex
from typing import Any

import msgspec

from kraftek.contract.errors import Code
from kraftek.contract.messages import RECEIPT_USERS, Broadcast, ReceiptName, ReceiptPart, ReceivedError
from kraftek.contract.names import GATEWAY_LEASES, RECEIPT, reply_channel, room_key
from kraftek.contract.payloads import payload_decoder
from kraftek.contract.surrogates import read
from kraftek.service.backend import Backend
from kraftek.service.commits import Commits, Full
from kraftek.service.errors import TooLarge
from kraftek.service.handling import RETRY_AFTER
from kraftek.service.messages import Message
from kraftek.service.processor import EventProcessor, Refused
from kraftek.service.receipts import ADDRESSED, GRACE, Collector, Receipt, check_receipt, with_receipt

__all__ = ["Requests", "new_name"]

_decode_answer = msgspec.json.Decoder(Broadcast).decode
_decode_payload = payload_decoder(Any).decode
_decode_part = msgspec.json.Decoder(ReceiptPart).decode


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
        self._answers: dict[int, Callable[[Broadcast], None]] = {}
        self._reply_to = processor.prefix + reply_channel(name)

    async def begin(self) -> None:
        """Listen for answers; returns when Redis has confirmed it."""
        await self._backend.subscribe(self._reply_to, self._answered)

    async def request(self, event: Mapping[str, Any], timeout: float) -> Any:
        """The payload of the answer. Raises :class:`Refused` for an error, or when there is none in time."""
        number = next(self._numbers)
        answer = self._backend.signal()
        self._answers[number] = answer.set
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

    async def receipt(self, message: Message | None, seconds: float) -> Receipt:
        """Send a message to clients, at once, and wait for what gateways say of it: no longer than so many seconds,
        and :data:`~kraftek.service.receipts.GRACE`. Raises :class:`TooLarge` for a room with too many users, and
        :class:`ValueError` for what there is no receipt for.
        """
        if message is None:
            return Receipt()
        check_receipt(message, seconds)
        prefix, number = self._processor.prefix, next(self._numbers)
        name = ReceiptName(self._reply_to, number)
        publish, room_id = self._processor.publish, message.room_id
        said = [publish(self._processor.broadcast, each) for each in with_receipt(message, name, seconds)]
        keys = [prefix + GATEWAY_LEASES, *([prefix + room_key(room_id)] if room_id else [])]
        gateways, *here = await self._backend.run(ADDRESSED, keys, [RECEIPT_USERS])
        if not here:
            raise TooLarge(f"{message.type}: more than {RECEIPT_USERS} users are in the room, too many for a receipt")
        words = [word.decode() for word in here[0]]
        sockets = dict(zip(words[::2], words[1::2], strict=True))
        ids = [gateway.decode() for gateway in gateways]
        collector = Collector(ids, message.user_ids, sockets, message.exclude_socket_ids or ())
        ended = self._backend.signal()

        def heard(answer: Broadcast) -> None:
            if answer.type == RECEIPT:
                collector.heard(_decode_part(answer.payload))
                if collector.done:
                    ended.set()

        self._answers[number] = heard
        try:
            await self._commits.commit(said)
            await ended.wait(seconds + GRACE)
        finally:
            del self._answers[number]
        return collector.receipt()

    async def emit(self, event: Mapping[str, Any]) -> None:
        """Send an event at once. Raises :class:`Refused` while too many wait for a gateway."""
        try:
            await self._commits.commit([self._processor.to_gateway(event)])
        except Full as full:
            raise Refused(Code.SERVICE_UNAVAILABLE, f"{event['eventType']}: {full}", RETRY_AFTER) from None

    def _answered(self, body: bytes) -> None:
        try:
            answer, _ = read(_decode_answer, body)
            waiting = self._answers.get(answer.in_reply_to) if isinstance(answer.in_reply_to, int) else None
            if waiting is not None:
                waiting(answer)
        except (msgspec.DecodeError, RecursionError) as error:
            self._warn(f"Ignored a message that is not an answer: {error}")

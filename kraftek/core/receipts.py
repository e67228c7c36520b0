"""Who has acknowledged a message: what services that ask for it are told of the clients of this process.

Services say beforehand that they will wait for the acknowledgements of a message: the command
:data:`kraftek.contract.names.RECEIPT`, which :mod:`kraftek.core.deliveries` hands over, with those that the message
will be for. Every gateway says at once which of these users it has, also that it has none, and later which of them have
acknowledged it. So whoever waits knows who was addressed, and which gateway owes an answer, without asking anybody.

A client acknowledges a message by a word of its own, once it was handled there. That something was written to a socket
says nothing: it may be half-open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from secrets import randbits
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus
from kraftek.contract.messages import (
    ID_LENGTH,
    RECEIPT_LONGEST,
    RECEIPT_USERS,
    Broadcast,
    ReceiptName,
    ReceiptPart,
    RequestId,
)
from kraftek.contract.metrics import Counters
from kraftek.contract.names import RECEIPT
from kraftek.contract.settings import Limits
from kraftek.core.session import Session

__all__ = ["ReceiptState", "Receipts"]

_NUMBER = 52
"""Bits of the number under which clients acknowledge a message: what JavaScript's numbers hold. It is random, so that a
late word to another gateway, or about another message, acknowledges nothing."""

_CHANNEL = 512
"""Characters of a channel that is told."""


class _Opening(Struct):
    seconds: Annotated[float, Meta(gt=0, le=RECEIPT_LONGEST)]


class _Answer(Struct, rename="camel"):
    type: str
    in_reply_to: RequestId
    payload: ReceiptPart


class ReceiptState(Struct):
    """A message whose acknowledgements are waited for, until this time. ``number``: under which clients do it.
    ``owing``: users that have not, each with the sockets that it was for.
    """

    name: ReceiptName
    number: int
    until: float
    owing: dict[str, list[str]]
    acknowledged: list[str]
    size: int


_decode_opening: Final = msgspec.json.Decoder(_Opening).decode
_encode: Final = msgspec.json.Encoder().encode


class Receipts:
    """The messages whose acknowledgements are waited for. ``limits``: its ``receipts`` are the sockets that may owe
    one, and the messages, in all; one channel may wait for half of them. ``seconds``: a monotonic clock.
    """

    def __init__(
        self, gateway_id: str, bus: IBus, limits: Limits, counters: Counters, seconds: Callable[[], float]
    ) -> None:
        self._gateway_id = gateway_id
        self._bus = bus
        self._limits = limits
        self._counters = counters
        self._seconds = seconds
        self._by_name: dict[ReceiptName, ReceiptState] = {}
        self._by_number: dict[int, ReceiptState] = {}
        self._sizes: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._by_name)

    def begin(self, message: Broadcast, sessions: Iterable[Session]) -> None:
        """The message of this name will be for these sessions. Raises ``msgspec.ValidationError`` for what is no such
        command.
        """
        name, opening = message.receipt, _decode_opening(message.payload)
        if name is None or not name.reply_to.startswith(self._bus.channel_name("")) or len(name.reply_to) > _CHANNEL:
            raise msgspec.ValidationError("expected a receipt, with a channel with the prefix as its replyTo")
        if len(str(name.id)) > ID_LENGTH or name in self._by_name:
            raise msgspec.ValidationError(f"expected a receipt whose id is new, and of at most {ID_LENGTH} characters")
        owing: dict[str, list[str]] = {}
        for session in sessions:
            if session.user_id is not None:
                owing.setdefault(session.user_id, []).append(session.socket_id)
        self._counters.receipts += 1
        size = 1 + sum(map(len, owing.values()))
        if not owing:
            self._say(name, ReceiptPart(self._gateway_id, done=True))
        elif refused := self._refusal(name, len(owing), size):
            self._counters.receipts_refused += 1
            self._say(name, ReceiptPart(self._gateway_id, refused=refused))
        else:
            self._add(ReceiptState(name, randbits(_NUMBER), self._seconds() + opening.seconds, owing, [], size))
            self._say(name, ReceiptPart(self._gateway_id, waiting=tuple(owing)))

    def number(self, name: ReceiptName | None) -> int | None:
        """Under which clients are to acknowledge the message of this name, if anybody waits for that."""
        receipt = None if name is None else self._by_name.get(name)
        return None if receipt is None else receipt.number

    def acknowledged(self, session: Session, number: RequestId | None) -> None:
        """A client says that it has handled a message. It counts if the message was for its socket."""
        receipt = self._by_number.get(number) if isinstance(number, int) else None
        user_id = session.user_id
        if receipt is None or user_id is None or session.socket_id not in receipt.owing.get(user_id, ()):
            return
        self._counters.receipts_acknowledged += 1
        del receipt.owing[user_id]
        receipt.acknowledged.append(user_id)
        if not receipt.owing:
            self._end(receipt)

    def sweep(self) -> None:
        """Called several times a second: end what was waited for long enough."""
        now = self._seconds()
        for receipt in [each for each in self._by_name.values() if each.until <= now]:
            self._end(receipt)

    def stop(self) -> None:
        """The clients are gone: nobody acknowledges anything any more."""
        for receipt in tuple(self._by_name.values()):
            self._end(receipt)

    def give(self) -> list[ReceiptState]:
        """For another version of the gateway."""
        return list(self._by_name.values())

    def take(self, given: Iterable[ReceiptState]) -> None:
        """Go on with what another version gave."""
        for receipt in given:
            self._add(receipt)

    def _refusal(self, name: ReceiptName, users: int, size: int) -> str:
        if users > RECEIPT_USERS:
            return f"more than {RECEIPT_USERS} users"
        own, most = self._sizes.get(name.reply_to, 0) + size, self._limits.receipts
        return "limits.receipts is reached" if own > most // 2 or self._sizes.total() + size > most else ""

    def _add(self, receipt: ReceiptState) -> None:
        self._by_name[receipt.name] = self._by_number[receipt.number] = receipt
        self._sizes[receipt.name.reply_to] += receipt.size

    def _end(self, receipt: ReceiptState) -> None:
        del self._by_name[receipt.name], self._by_number[receipt.number]
        channel = receipt.name.reply_to
        self._sizes[channel] -= receipt.size
        if not self._sizes[channel]:
            del self._sizes[channel]
        acknowledged, waiting = tuple(receipt.acknowledged), tuple(receipt.owing)
        self._say(receipt.name, ReceiptPart(self._gateway_id, acknowledged, waiting, done=True))

    def _say(self, name: ReceiptName, part: ReceiptPart) -> None:
        """While Redis is unavailable it is not said: to who waits this gateway owes it."""
        channel = name.reply_to.removeprefix(self._bus.channel_name(""))
        with suppress(NotPublished):
            self._bus.publish(channel, _encode(_Answer(RECEIPT, name.id, part)), lambda _: None)

"""Events that services send to one another: they come here without knowing each other's channels.

Made by :mod:`kraftek.daemon.assembly`. A service appends to the stream ``events:gateway`` (``docs/services.rst``,
"Events between services"); one gateway process takes each entry, and hands it to its service as if a client had sent
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.structs import fields
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.contract.consumer_groups import DEAD_LETTERS
from kraftek.contract.errors import Code, NotPublished, PeerError
from kraftek.contract.interfaces import IBus, IEventRouter, IReading, IServiceRegistry, Undelivered
from kraftek.contract.json_text import JsonBounds, is_long
from kraftek.contract.log_once import OnceUntilItWorks
from kraftek.contract.messages import ID_LENGTH, NULL, Envelope, ErrorPayload, RequestId
from kraftek.contract.metrics import Counters
from kraftek.contract.names import GATEWAY_GROUP, GATEWAY_STREAM, dead_letters
from kraftek.contract.surrogates import is_whole, mended, read
from kraftek.core.dispatch import Dispatch

__all__ = ["ServiceEvents"]

ATTEMPTS = 5
"""Gateway processes that an entry may outlive, before it is taken for what they die of."""

RETRIES = 20
"""Sweeps on which an event that Redis refuses is tried again: five seconds. A primary that became a replica, a start or
a shortage of memory may be over by then; a key of another type, or a missing right, is not."""

HELD = 100
"""Refused events that are tried again at a time, lest they leave no room for others. More are given up at once."""

Text = Annotated[str, Meta(min_length=1, max_length=256)]


class Sent(Struct, frozen=True, rename="camel"):
    """An entry, as a service writes it."""

    source: str
    event_type: str
    payload: Raw = NULL
    id: Annotated[str, Meta(max_length=ID_LENGTH)] | int | None = None
    reply_to: Text | None = None
    user_id: Annotated[str, Meta(max_length=256)] = ""
    room_id: Text | None = None
    traceparent: str | None = None


class _Answer(Struct, rename="camel", omit_defaults=True):
    type: str
    payload: ErrorPayload | dict[str, int]
    in_reply_to: RequestId | UnsetType = UNSET


_NAMES = {field.name: field.encode_name for field in fields(Sent)}
_TYPES = {field.name: field.type for field in fields(Sent)}

_decode = msgspec.json.Decoder(Sent).decode
_encode = msgspec.json.Encoder().encode


class ServiceEvents:
    """Takes events of services. ``bounds``: of their JSON, which are those of clients'. ``now`` gives Unix seconds.

    Each is delivered at least once: an entry is removed when its service has it, or its sender was told why not.
    """

    _log = Logger()

    def __init__(
        self,
        gateway_id: str,
        registry: IServiceRegistry,
        router: IEventRouter,
        dispatch: Dispatch,
        bus: IBus,
        counters: Counters,
        bounds: JsonBounds,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._gateway_id = gateway_id
        self._registry = registry
        self._router = router
        self._dispatch = dispatch
        self._bus = bus
        self._counters = counters
        self._bounds = bounds
        self._now = now
        self._again: list[Callable[[], None]] = []
        self._refused: dict[str, int] = {}
        self._once = OnceUntilItWorks()
        self._reading: IReading | None = None

    def begin(self) -> None:
        """Take events from now on."""
        self._reading = self._bus.read(GATEWAY_GROUP, self._gateway_id, GATEWAY_STREAM, self._received, window=2 * HELD)

    def end(self) -> Deferred[None]:
        """Take none any more. Fires when nothing more comes."""
        return succeed(None) if self._reading is None else self._reading.end()

    def sweep(self) -> None:
        """Try again what may not have arrived."""
        if self._bus.available:
            again, self._again = self._again, []
            for step in again:
                step()

    def _received(self, entry_id: str, event: bytes, delivered: int) -> None:
        if delivered > ATTEMPTS:
            reason = f"delivered to {delivered - 1} gateways, and never finished"
            self._refuse(entry_id, event, _what_can_be_read(event), Code.INTERNAL, reason)
        else:
            self._counters.intake += 1
            self._take(entry_id, event)

    def _take(self, entry_id: str, event: bytes) -> None:
        try:
            event.decode()
            sent, event = read(_decode, event)
            if type(sent.id) is int and is_long(sent.id):
                raise msgspec.ValidationError(f"Expected an integer of at most {ID_LENGTH} characters - at `$.id`")
            if len(event) > self._bounds.harmless and (complaint := self._bounds.complaint(event, around=1)):
                raise msgspec.ValidationError(complaint)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._refuse(entry_id, event, _what_can_be_read(event), Code.INVALID_MESSAGE, str(error))
            return
        if self._registry.find(sent.source) is None:
            self._refuse(entry_id, event, sent, Code.ACCESS_DENIED, "the source is not a registered service")
            return
        try:
            self._send(entry_id, event, sent)
        except PeerError as error:
            self._refuse(entry_id, event, sent, error.code, error.message)
        except NotPublished:
            self._again.append(partial(self._take, entry_id, event))

    def _send(self, entry_id: str, event: bytes, sent: Sent) -> None:
        service = self._router.route(sent.event_type)
        envelope = Envelope(
            event_type=sent.event_type,
            user_id=sent.user_id,
            socket_id="",
            timestamp=int(self._now() * 1000),
            gateway_id=self._gateway_id,
            reply_to=sent.reply_to or "",
            payload=sent.payload,
            room_id=sent.room_id,
            id=sent.id,
            traceparent=sent.traceparent,
            source=sent.source,
        )
        self._dispatch.send(service, envelope, partial(self._sent, entry_id, event, sent, service.reply))

    def _sent(self, entry_id: str, event: bytes, sent: Sent, replies: bool, taken: int) -> None:
        if taken > 0:
            if sent.id is not None and not replies:
                self._answer(sent, "ack", {"receivers": taken})
        elif taken == Undelivered.LOST or (taken == Undelivered.REFUSED and self._may_try_again(entry_id)):
            self._again.append(partial(self._take, entry_id, event))
            return
        elif taken == Undelivered.FULL:
            self._counters.streams_full += 1
            self._tell(sent, Code.SERVICE_UNAVAILABLE, "too many events wait for this service", retry_after=1.0)
        elif taken == Undelivered.REFUSED:
            self._counters.publishes_refused += 1
            self._tell(sent, Code.SERVICE_UNAVAILABLE, "the event could not be handed over at present")
            self._bury(entry_id, event, "Redis refused to hand it over; the gateway's log says why")
            return
        else:
            self._counters.published_to_nobody += 1
            self._tell(sent, Code.SERVICE_UNAVAILABLE, "nobody listens for this event at present")
        self._finish(entry_id)

    def _may_try_again(self, entry_id: str) -> bool:
        tried = self._refused.get(entry_id, 0)
        if tried == RETRIES or (tried == 0 and len(self._refused) == HELD):
            return False
        self._refused[entry_id] = tried + 1
        return True

    def _refuse(self, entry_id: str, event: bytes, sent: Sent, code: Code, message: str) -> None:
        self._counters.intake_refused += 1
        self._tell(sent, code, message)
        self._bury(entry_id, event, message)

    def _bury(self, entry_id: str, event: bytes, reason: str) -> None:
        about = ("MAXLEN", "~", DEAD_LETTERS, "*", "event", event, "reason", reason, "id", entry_id)
        burying = self._bus.call("XADD", [dead_letters(GATEWAY_STREAM)], about)
        entry = entry_id, event, reason
        burying.addCallbacks(self._buried, self._not_buried, callbackArgs=(entry_id,), errbackArgs=entry)

    def _tell(self, sent: Sent, code: Code, message: str, retry_after: float | None = None) -> None:
        self._answer(sent, "error", ErrorPayload(code, message, sent.event_type, retry_after))

    def _answer(self, sent: Sent, type: str, payload: ErrorPayload | dict[str, int]) -> None:
        prefix = self._bus.channel_name("")
        if sent.reply_to is None or not sent.reply_to.startswith(prefix):
            return
        answer = _Answer(type, payload, UNSET if sent.id is None else sent.id)
        try:
            self._bus.publish(sent.reply_to.removeprefix(prefix), _encode(answer), lambda _: None)
        except NotPublished:
            self._counters.publishes_lost += 1

    def _finish(self, entry_id: str) -> None:
        assert self._reading is not None
        self._refused.pop(entry_id, None)
        self._reading.ack(entry_id)

    def _buried(self, _: object, entry_id: str) -> None:
        self._once.works()
        self._finish(entry_id)

    def _not_buried(self, failure: Failure, entry_id: str, event: bytes, reason: str) -> None:
        if failure.check(NotPublished):
            self._again.append(partial(self._bury, entry_id, event, reason))
            return
        text = "Events that cannot be delivered are not kept, until they can be"
        self._once.failed(self._log.failure, text, failure=failure)
        self._finish(entry_id)


def _what_can_be_read(event: bytes) -> Sent:
    """Of what is wrong, as much as it takes to answer."""
    whole = mended(event)
    try:
        words = msgspec.json.decode(whole or event, type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        words = {}
    found: dict[str, Any] = {"event_type": ""}
    for field in ("event_type", "id", "reply_to"):
        with suppress(msgspec.DecodeError, UnicodeDecodeError, KeyError):
            value = msgspec.json.decode(words[_NAMES[field]], type=_TYPES[field])
            if whole is None or is_whole(value):
                found[field] = value
    return Sent("", **found)

"""Events between services, which need not know each other's channels.

Made by :mod:`kraftek.daemon.assembly`. A service appends to the stream ``events:gateway`` (``docs/services.rst``,
"Events between services"); one gateway process reads each entry, and sends it to its service as if it came from a
client.
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

from kraftek.contract.consumer_groups import dead_letter
from kraftek.contract.errors import Code, NotPublished, PeerError
from kraftek.contract.interfaces import IBus, IEventRouter, IReading, IServiceRegistry, Undelivered
from kraftek.contract.json_text import JsonBounds, is_long
from kraftek.contract.log_once import OnceUntilItWorks, failing
from kraftek.contract.messages import ID_LENGTH, NULL, Envelope, ErrorPayload, RequestId
from kraftek.contract.metrics import Counters
from kraftek.contract.names import GATEWAY_GROUP, GATEWAY_STREAM, dead_letters
from kraftek.contract.surrogates import is_whole, mended, read
from kraftek.core.dispatch import Dispatch

__all__ = ["ServiceEvents"]

ATTEMPTS = 5
"""Deliveries of an entry to gateways that died before they finished it; after these it is dead-lettered."""

RETRIES = 20
"""Sweeps on which an event that Redis refuses is retried: five seconds. A failover, a restart or a shortage of memory
may be over by then; a key of another type or a missing permission is not."""

RETRIED = 100
"""Refused events that are retried at a time, so that they leave room for others. More are dead-lettered at once."""

Text = Annotated[str, Meta(min_length=1, max_length=256)]


class Sent(Struct, frozen=True, rename="camel"):
    """An event as a service appends it to the stream."""

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
    """Routes events of services. ``bounds``: those of clients' JSON. ``now`` returns Unix seconds.

    Delivery is at least once: an entry is removed after its service got it, or after its sender got an error.
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
        self._retries: list[Callable[[], None]] = []
        self._refused: dict[str, int] = {}
        self._once = OnceUntilItWorks()
        self._reading: IReading | None = None

    def begin(self) -> None:
        """Start reading events, or go on with it."""
        if self._reading is not None:
            self._reading.go_on()
            return
        self._reading = self._bus.read(
            GATEWAY_GROUP, self._gateway_id, GATEWAY_STREAM, self._received, window=2 * RETRIED
        )

    def end(self) -> Deferred[None]:
        """Stop reading events. Fires when no more entries come."""
        return succeed(None) if self._reading is None else self._reading.end()

    def sweep(self) -> None:
        """Retry events that may not have arrived."""
        if self._bus.available:
            retries, self._retries = self._retries, []
            for step in retries:
                step()

    def _received(self, entry_id: str, event: bytes, delivered: int) -> None:
        if delivered > ATTEMPTS:
            reason = f"delivered to {delivered - 1} gateways, none of which finished it"
            self._reject(entry_id, event, _what_can_be_read(event), Code.INTERNAL, reason)
        else:
            self._counters.intake += 1
            self._accept(entry_id, event)

    def _accept(self, entry_id: str, event: bytes) -> None:
        try:
            event.decode()
            sent, event = read(_decode, event)
            if type(sent.id) is int and is_long(sent.id):
                raise msgspec.ValidationError(f"Expected an integer of at most {ID_LENGTH} characters - at `$.id`")
            if len(event) > self._bounds.harmless and (complaint := self._bounds.complaint(event, around=1)):
                raise msgspec.ValidationError(complaint)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._reject(entry_id, event, _what_can_be_read(event), Code.INVALID_MESSAGE, str(error))
            return
        if self._registry.find(sent.source) is None:
            self._reject(entry_id, event, sent, Code.ACCESS_DENIED, "the source is not a registered service")
            return
        try:
            self._send(entry_id, event, sent)
        except PeerError as error:
            self._reject(entry_id, event, sent, error.code, error.message)
        except NotPublished:
            self._retries.append(partial(self._accept, entry_id, event))

    def _send(self, entry_id: str, event: bytes, sent: Sent) -> None:
        service = self._router.route(sent.event_type)
        envelope = Envelope(
            event_type=sent.event_type,
            user_id=sent.user_id,
            socket_id="",
            timestamp=int(self._now() * 1000),
            gateway_id=self._gateway_id,
            # What the gateway answers the service must not: whose answer the sender hears first would be chance.
            reply_to=(sent.reply_to or "") if service.reply or sent.id is None else "",
            payload=sent.payload,
            room_id=sent.room_id,
            id=sent.id,
            traceparent=sent.traceparent,
            source=sent.source,
        )
        self._dispatch.send(service, envelope, partial(self._sent, entry_id, event, sent, service.reply))

    def _sent(self, entry_id: str, event: bytes, sent: Sent, replies: bool, receipt: int) -> None:
        if receipt > 0:
            if sent.id is not None and not replies:
                self._answer(sent, "ack", {"receivers": receipt})
        elif receipt == Undelivered.LOST or (receipt == Undelivered.REFUSED and self._may_try_again(entry_id)):
            self._retries.append(partial(self._accept, entry_id, event))
            return
        elif receipt == Undelivered.FULL:
            self._counters.streams_full += 1
            self._send_error(sent, Code.SERVICE_UNAVAILABLE, "too many events wait for this service", retry_after=1.0)
        elif receipt == Undelivered.REFUSED:
            self._counters.publishes_refused += 1
            self._send_error(sent, Code.SERVICE_UNAVAILABLE, "Redis refused the event")
            self._dead_letter(entry_id, event, "Redis refused it; the gateway's log says why")
            return
        else:
            self._counters.published_to_nobody += 1
            service = sent.event_type.partition(":")[0]
            self._send_error(sent, Code.SERVICE_UNAVAILABLE, f"service {service} has no subscriber at present")
        self._finish(entry_id)

    def _may_try_again(self, entry_id: str) -> bool:
        tried = self._refused.get(entry_id, 0)
        if tried == RETRIES or (tried == 0 and len(self._refused) == RETRIED):
            return False
        self._refused[entry_id] = tried + 1
        return True

    def _reject(self, entry_id: str, event: bytes, sent: Sent, code: Code, message: str) -> None:
        self._counters.intake_refused += 1
        self._send_error(sent, code, message)
        self._dead_letter(entry_id, event, message)

    def _dead_letter(self, entry_id: str, event: bytes, reason: str) -> None:
        letter = dead_letter(event, reason, entry_id)
        writing = self._bus.call("XADD", [dead_letters(GATEWAY_STREAM)], letter)
        entry = entry_id, event, reason
        writing.addCallbacks(self._dead_lettered, self._not_dead_lettered, callbackArgs=(entry_id,), errbackArgs=entry)

    def _send_error(self, sent: Sent, code: Code, message: str, retry_after: float | None = None) -> None:
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

    def _dead_lettered(self, _: object, entry_id: str) -> None:
        self._once.works()
        self._finish(entry_id)

    def _not_dead_lettered(self, failure: Failure, entry_id: str, event: bytes, reason: str) -> None:
        if failure.check(NotPublished):
            self._retries.append(partial(self._dead_letter, entry_id, event, reason))
            return
        text = "Writing undeliverable events to the dead-letter stream failed, and they are lost until it works again"
        self._once.failed(failing(self._log, failure), text)
        self._finish(entry_id)


def _what_can_be_read(event: bytes) -> Sent:
    """The fields of a malformed event that are needed to answer it, as far as they can be read."""
    whole = mended(event)
    try:
        values = msgspec.json.decode(whole or event, type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        values = {}
    found: dict[str, Any] = {"event_type": ""}
    for field in ("event_type", "id", "reply_to"):
        with suppress(msgspec.DecodeError, UnicodeDecodeError, KeyError):
            value = msgspec.json.decode(values[_NAMES[field]], type=_TYPES[field])
            if (whole is None or is_whole(value)) and not (type(value) is int and is_long(value)):
                found[field] = value
    return Sent("", **found)

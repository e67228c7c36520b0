"""Sends events to services: published on a channel, or appended to a Redis Stream, by the service's registration.

Called by the gateway for clients' events, by :mod:`kraftek.core.requests` for requests, and by
:mod:`kraftek.core.service_events` for events of other services.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.contract.errors import Code, Limit, NotPublished, PeerError
from kraftek.contract.interfaces import IBus, IServiceRegistry, Undelivered
from kraftek.contract.log_once import OnceUntilItWorks, failing
from kraftek.contract.lua import ForEach, Receipt, Script, Value, lua
from kraftek.contract.messages import Envelope
from kraftek.contract.names import EPOCH, GATEWAY_BYTES, GATEWAY_LENGTH, GATEWAY_STREAM, place_of, stream_of
from kraftek.contract.settings import Registration
from kraftek.core.answer_budget import LARGE
from kraftek.core.stream_shares import StreamShares

__all__ = ["KNOWN", "Dispatch", "once", "target_of"]

_SEND = {
    "pubsub": "local function send(channel, body) return redis.call('PUBLISH', channel, body) end",
    "stream": f"""{lua(__package__, "fields", "streams", FULL=Undelivered.FULL)}
local send, _, keep = streams()
""",
}
"""How one event goes to a service, by the service's transport."""

_KEEP = {"pubsub": "", "stream": "keep()"}

TRIM = Script(lua(__package__, "fields", "streams", "epochs", "trim_streams", FULL=Undelivered.FULL))

_INTAKE = Registration(
    name=GATEWAY_STREAM,
    channel=GATEWAY_STREAM,
    transport="stream",
    max_length=GATEWAY_LENGTH,
    max_bytes=GATEWAY_BYTES,
)
"""The gateways' own stream, which services append to."""

_AT_ONCE = 500
"""Presence events that one call of it tells: they take Redis 5 ms."""

_RETRY_AFTER = 1.0
"""Seconds after which a user who was refused should try again: what waits is looked at as often."""

_HEAD = 200
"""Bytes of an event in a stream beside its payload and two of its names: 192, its room and its id. Without them one who
sends small events would fill a stream with what counts as half of it."""

_encode = msgspec.json.Encoder().encode
_socket_id = attrgetter("socket_id")


def _to_append(
    events: list[tuple[str, int, int, Envelope, Receipt]],
) -> tuple[Sequence[Sequence[Value]], list[bytes]]:
    streams, most, most_bytes, envelopes, _ = zip(*events, strict=True)
    return (streams, most, most_bytes), [*map(_encode, envelopes)]


APPEND = ForEach.make(
    "place",
    "most, bytes",
    _to_append,
    "return send(place, body, most, bytes)",
    _SEND["stream"],
    _KEEP["stream"],
)


def _to_send(events: list[tuple[str, str, Envelope, Receipt]]) -> tuple[Sequence[Sequence[Value]], list[bytes]]:
    targets, records, envelopes, _ = zip(*events, strict=True)
    return (targets, records, [*map(_socket_id, envelopes)]), [*map(_encode, envelopes)]


_ACK = """
local ack = '{"type":"ack","payload":{"receivers":' .. receipt .. '}}'
redis.call('SET', record, ack, 'KEEPTTL')
"""


KNOWN = f"""
local known = redis.call('GETRANGE', record, 0, {LARGE})
return #known > {LARGE} and '=' .. redis.call('STRLEN', record) or known
"""
"""Answers with what a record holds, or with ``=`` and its size."""


@lru_cache(256)
def once(transport: str, replies: bool, lifetime: int, most: int, most_bytes: int) -> ForEach:
    """The script that sends events to services as :meth:`Dispatch.send` does, unless that was done before.

    Each of its messages is the channel or stream, the key of the request record, the event, and the receipt callback.
    The record lives for ``lifetime`` milliseconds. It holds ``?`` and the socket that sent the event, and then the
    answer. The receipt of an event that has a record already is the content of that record, or ``=`` and its size when
    it is more than :data:`kraftek.core.answer_budget.LARGE`. The callback is not called when the event was sent to a
    service that replies. What is the same for all events of a service is part of the script; services with equal
    settings share a script, and so a command. ``most``, ``most_bytes``: what may wait in a stream.
    """
    return ForEach.make(
        "target, record",
        "socket",
        _to_send,
        f"""
if not redis.call('SET', record, '?' .. socket, 'NX', 'PX', '{lifetime}') then {KNOWN} end
local sent, receipt = pcall(send, target, body, {most}, {most_bytes})
if not sent or receipt <= 0 then redis.call('DEL', record) end
if not sent then error(receipt, 0) end
if receipt <= 0 then return receipt end
{"return nil" if replies else f"{_ACK} return receipt"}
""",
        _SEND[transport],
        _KEEP[transport],
    )


class Dispatch:
    """Sends events to services. What waits in the streams of a service, by its name: ``waiting`` events of
    ``waiting_bytes``, and ``presence_waiting`` events about presence for which there is no room yet; ``dead_letters``.
    ``events:gateway`` is the stream of events between services.

    ``send_once(script, message)``: as ``IBus.run`` with a script of :meth:`once_of` and a message of :func:`once`.
    """

    _log = Logger()

    def __init__(self, registry: IServiceRegistry, bus: IBus) -> None:
        self.waiting: dict[str, int] = {}
        self.waiting_bytes: dict[str, int] = {}
        self.presence_waiting: dict[str, int] = {}
        self.dead_letters: dict[str, int] = {}
        self._once = OnceUntilItWorks()
        self.send_once = bus.run
        self._registry = registry
        self._bus = bus
        self._shares: dict[str, StreamShares] = {}
        self._looking: set[str] = set()

    def send(self, service: Registration, envelope: Envelope, receipt: Callable[[int], None]) -> None:
        """Publish or append it. ``receipt`` is called once: as that of ``IBus.publish``, or with ``Undelivered.FULL``.

        The readers of a stream are unknown: it counts as one receiver. Raises ``NotPublished`` as ``IBus.publish``.
        """
        if service.transport == "pubsub":
            self._bus.publish(service.channel, _encode(envelope), receipt)
        else:
            message = (target_of(service, envelope), service.max_length, service.max_bytes, envelope, receipt)
            self._bus.run(APPEND, message)

    def once_of(self, service: Registration, lifetime: int) -> ForEach:
        """The script that sends its requests once, whose records live for so many milliseconds."""
        return once(service.transport, service.reply, lifetime, service.max_length, service.max_bytes)

    def send_fairly(self, service: Registration, envelope: Envelope, receipt: Callable[[int], None]) -> None:
        """As :meth:`send`, for an event of a user. Raises ``PeerError`` when its share of a stream is used up."""
        if service.transport == "pubsub":
            self._bus.publish(service.channel, _encode(envelope), receipt)
            return
        refusal = self.refusal(service, envelope)
        if refusal is not None:
            raise refusal
        self.send(service, envelope, receipt)

    def refusal(self, service: Registration, envelope: Envelope) -> PeerError | None:
        """Why the user must wait before this event is sent to a stream; otherwise it counts as sent."""
        stream = target_of(service, envelope)
        shares = self._shares.get(stream) or self._make_shares(service, stream)
        size = _HEAD + len(envelope.event_type) + len(envelope.user_id) + len(envelope.payload)
        if shares.takes(envelope.user_id, size):
            return None
        return PeerError(
            Code.RATE_LIMITED,
            f"too many events of this user wait for service {service.name}",
            retry_after=_RETRY_AFTER,
            id=envelope.id,
            event_type=envelope.event_type,
            limit=Limit.SHARE,
        )

    def longest_timeout(self) -> float:
        """The longest timeout of all services that reply, in seconds."""
        return max((service.timeout for service in self._registry.services() if service.reply), default=0.0)

    def sweep(self) -> None:
        """Remove handled events from streams, tell presence events that waited, and see what waits. Called every second
        or so.
        """
        services = [_INTAKE, *(service for service in self._registry.services() if service.transport == "stream")]
        names = {service.name for service in services}
        for seen in (self.waiting, self.waiting_bytes, self.presence_waiting, self.dead_letters):
            for gone in seen.keys() - names:
                del seen[gone]
        streams = {stream for service in services for stream in _streams(service)}
        for gone in self._shares.keys() - streams:
            del self._shares[gone]
        self._once.keep(names)
        for service in services:
            self._look(service)

    def _make_shares(self, service: Registration, stream: str) -> StreamShares:
        look = partial(self._look, service)
        shares = self._shares[stream] = StreamShares(service.max_length, service.max_bytes, look)
        return shares

    def _look(self, service: Registration) -> None:
        if service.name in self._looking:
            return
        self._looking.add(service.name)
        streams = _streams(service)
        asked = {stream: shares.asked() for stream in streams if (shares := self._shares.get(stream)) is not None}
        bounds = service.max_length, service.max_bytes
        args = (*bounds, int(service.presence), self._bus.epoch or "", _AT_ONCE)
        looking = self._bus.call(TRIM, [EPOCH, *streams], args)
        looking.addBoth(self._looked, service.name)
        looking.addCallbacks(self._seen, self._not_seen, (service, asked), errbackArgs=(service.name,))

    def _looked(self, answer: Any, name: str) -> Any:
        self._looking.discard(name)
        return answer

    def _seen(self, levels: list[list[int]], service: Registration, asked: dict[str, float]) -> None:
        name = service.name
        self.waiting[name] = sum(length for length, *_ in levels)
        self.waiting_bytes[name] = sum(waiting for _, waiting, *_ in levels)
        self.dead_letters[name] = sum(dead for *_, dead in levels)
        owed, self.presence_waiting[name] = self.presence_waiting.get(name, 0), sum(left for *_, left, _ in levels)
        for stream, (length, waiting, handled, *_) in zip(_streams(service), levels, strict=True):
            if stream in asked:
                self._shares[stream].seen(asked[stream], length, waiting, handled)
        self._once.works(name)
        if 0 < self.presence_waiting[name] < owed:
            self._look(service)

    def _not_seen(self, failure: Failure, name: str) -> None:
        if failure.check(NotPublished) is None:
            text = "Cannot trim the stream of {service}"
            self._once.failed(failing(self._log, failure), text, about=name, service=name)


def target_of(service: Registration, envelope: Envelope) -> str:
    """The channel or the stream that the event goes to. A channel has no partitions, whatever is configured."""
    if service.transport == "pubsub":
        return service.channel
    return place_of(service.channel, service.partitions, envelope.room_id or envelope.socket_id)


def _streams(service: Registration) -> list[str]:
    if service.partitions == 0:
        return [service.channel]
    return [stream_of(service.channel, number) for number in range(service.partitions)]

"""Sends events to services: published on a channel, or appended to a Redis Stream, by the service's registration.

Called by the gateway for clients' events, by :mod:`kraftek.core.requests` for requests, and by
:mod:`kraftek.core.service_events` for events of other services.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter

import msgspec
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus, IServiceRegistry, Undelivered
from kraftek.contract.log_once import OnceUntilItWorks, failing
from kraftek.contract.lua import ForEach, Receipt, Script, Value, lua
from kraftek.contract.messages import Envelope
from kraftek.contract.names import place_of, stream_of
from kraftek.contract.settings import Registration

__all__ = ["Dispatch", "once", "target_of"]

_SEND = {
    "pubsub": "local function send(channel, body) return redis.call('PUBLISH', channel, body) end",
    "stream": lua(__package__, "fields", "trim", "send_to_stream", FULL=Undelivered.FULL),
}
"""How one event goes to a service, by the service's transport."""

TRIM = Script(lua(__package__, "fields", "trim", "trim_streams"))

_encode = msgspec.json.Encoder().encode
_socket_id = attrgetter("socket_id")


def _to_append(events: list[tuple[str, int, Envelope, Receipt]]) -> tuple[Sequence[Sequence[Value]], list[bytes]]:
    streams, most, envelopes, _ = zip(*events, strict=True)
    return (streams, most), [*map(_encode, envelopes)]


APPEND = ForEach.make("stream", "most", _to_append, "return send(stream, body, most)", _SEND["stream"])


def _to_send(events: list[tuple[str, str, Envelope, Receipt]]) -> tuple[Sequence[Sequence[Value]], list[bytes]]:
    targets, records, envelopes, _ = zip(*events, strict=True)
    return (targets, records, [*map(_socket_id, envelopes)]), [*map(_encode, envelopes)]


_ACK = """
local ack = '{"type":"ack","payload":{"receivers":' .. receipt .. '}}'
redis.call('SET', record, ack, 'KEEPTTL')
"""


@lru_cache(256)
def once(transport: str, replies: bool, lifetime: int, most: int) -> ForEach:
    """The script that sends events to services as :meth:`Dispatch.send` does, unless that was done before.

    Each of its messages is the channel or stream, the key of the request record, the event, and the receipt callback.
    The record lives for ``lifetime`` milliseconds. It holds ``?`` and the socket that sent the event, and then the
    answer. The receipt of an event that has a record already is the content of that record. The callback is not called
    when the event was sent to a service that replies. What is the same for all events of a service is part of the
    script; services with equal settings share a script, and so a command. ``most``: events that may wait in a stream.
    """
    return ForEach.make(
        "target, record",
        "socket",
        _to_send,
        f"""
if not redis.call('SET', record, '?' .. socket, 'NX', 'PX', '{lifetime}') then return redis.call('GET', record) end
local sent, receipt = pcall(send, target, body, {most})
if not sent or receipt <= 0 then redis.call('DEL', record) end
if not sent then error(receipt, 0) end
if receipt <= 0 then return receipt end
{"return nil" if replies else f"{_ACK} return receipt"}
""",
        _SEND[transport],
    )


class Dispatch:
    """Sends events to services. ``waiting``: how many events wait in the streams of a service, by its name."""

    _log = Logger()

    def __init__(self, registry: IServiceRegistry, bus: IBus) -> None:
        self.waiting: dict[str, int] = {}
        self._once = OnceUntilItWorks()
        self._registry = registry
        self._bus = bus

    def send(self, service: Registration, envelope: Envelope, receipt: Callable[[int], None]) -> None:
        """Publish or append it. ``receipt`` is called once: as that of ``IBus.publish``, or with ``Undelivered.FULL``.

        The readers of a stream are unknown: it counts as one receiver. Raises ``NotPublished`` as ``IBus.publish``.
        """
        if service.transport == "pubsub":
            self._bus.publish(service.channel, _encode(envelope), receipt)
        else:
            self._bus.run(APPEND, (target_of(service, envelope), service.max_length, envelope, receipt))

    def longest_timeout(self) -> float:
        """The longest timeout of all services that reply, in seconds."""
        return max((service.timeout for service in self._registry.services() if service.reply), default=0.0)

    def sweep(self) -> None:
        """Remove handled events from streams, and count those that wait. Called every second or so."""
        services = [service for service in self._registry.services() if service.transport == "stream"]
        names = {service.name for service in services}
        for gone in self.waiting.keys() - names:
            del self.waiting[gone]
        self._once.keep(names)
        for service in services:
            trimming = self._bus.call(TRIM, _streams(service))
            name = (service.name,)
            trimming.addCallbacks(self._trimmed, self._not_trimmed, callbackArgs=name, errbackArgs=name)

    def _trimmed(self, waiting: int, name: str) -> None:
        self.waiting[name] = waiting
        self._once.works(name)

    def _not_trimmed(self, failure: Failure, name: str) -> None:
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

"""Sends events to services in the gateway's own process without Redis; to all others as usual.

Made by :mod:`kraftek.daemon.assembly` in place of :class:`kraftek.core.dispatch.Dispatch`, if there are such services.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import Struct
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus, IBusListener, IServiceRegistry, Undelivered
from kraftek.contract.lua import ForEach, Value
from kraftek.contract.messages import Envelope
from kraftek.contract.settings import Registration
from kraftek.core.dispatch import KNOWN, Dispatch
from kraftek.core.request_queue import Request

__all__ = ["Listeners", "LocalDispatch"]

Listeners = dict[str, Callable[[bytes], None] | None]
"""By the channels of the services in this process: who takes their events; ``None`` while nobody does."""

_ACK = b'{"type":"ack","payload":{"receivers":1}}'
"""What the record of a request holds whose service does not reply, once it has it."""

_OBJECTS = 1024
"""Bytes that an event takes beside its payload, about: thousands of empty ones may wait for one claim."""

_encode = msgspec.json.Encoder().encode


def _to_claim(messages: list[tuple[str, str, Any]]) -> tuple[Sequence[Sequence[Value]], list[bytes]]:
    records, sockets, _ = zip(*messages, strict=True)
    return (records, sockets), [b""] * len(messages)


@lru_cache(256)
def _claim(lifetime: int) -> ForEach:
    """Claims requests as :func:`kraftek.core.dispatch.once` does, without the events: the result is 1, or what the
    record of one that was sent before holds.
    """
    return ForEach.make(
        "record",
        "socket",
        _to_claim,
        f"""
if redis.call('SET', record, '?' .. socket, 'NX', 'PX', '{lifetime}') then return 1 end
{KNOWN}
""",
    )


class _Event(Struct, eq=False):
    """An event until its service gets it. It is the receipt callback of its own claim.

    ``receipt``: its sender's, or for one that has a ``script``, which claims it, the request. ``lost``: its claim may
    stand in Redis already, because the connection was lost before the result. ``settled``: whether it is the ``first``
    of its kind is known.
    """

    channel: str
    envelope: Envelope
    receipt: Callable[[int], None] | Request
    claimed: Callable[[_Event, int | bytes], None]
    script: ForEach | None = None
    lost: bool = False
    settled: bool = False
    first: bool = False

    def __call__(self, receipt: int | bytes) -> None:
        self.claimed(self, receipt)

    @property
    def line(self) -> str:
        return self.envelope.room_id or self.envelope.socket_id

    @property
    def size(self) -> int:
        return len(self.envelope.payload) + _OBJECTS

    @property
    def waits(self) -> bool:
        """Whether its sender has not been told by now that nobody knows."""
        return type(self.receipt) is not Request or self.receipt in self.receipt.queue.requests


@implementer(IBusListener)
class LocalDispatch(Dispatch):
    """``services``: those of this process. A request is claimed in Redis, so that it runs once wherever it is sent
    again; what has no ``id`` never comes to Redis. Events of a room stay in order, those without one by their socket:
    each waits for what was sent before it. So ``most_bytes`` wait together at most.

    They are handed over in another iteration of the reactor: no answer comes before its request waits for it.
    """

    _log = Logger()

    def __init__(
        self,
        registry: IServiceRegistry,
        bus: IBus,
        clock: IReactorTime,
        accounts: Accounts,
        services: Listeners,
        *,
        most_bytes: int,
    ) -> None:
        super().__init__(registry, bus)
        self.send_once = self._send_once
        self._clock = clock
        self._accounts = accounts
        self._services = services
        self._most_bytes = most_bytes
        self._bytes = 0
        self._lines: dict[str, deque[_Event]] = {}
        self._lost: list[_Event] = []
        self._due: dict[str, None] = {}
        bus.add_listener(self)

    # Dispatch

    def send(self, service: Registration, envelope: Envelope, receipt: Callable[[int], None]) -> None:
        if service.channel in self._services:
            self._put(_Event(service.channel, envelope, receipt, self._claimed, settled=True, first=True))
        else:
            super().send(service, envelope, receipt)

    def send_fairly(self, service: Registration, envelope: Envelope, receipt: Callable[[int], None]) -> None:
        if service.channel in self._services:
            self.send(service, envelope, receipt)
        else:
            super().send_fairly(service, envelope, receipt)

    def once_of(self, service: Registration, lifetime: int) -> ForEach:
        return _claim(lifetime) if service.channel in self._services else super().once_of(service, lifetime)

    def sweep(self) -> None:
        super().sweep()
        self._try_again()

    def _send_once(self, script: ForEach, message: tuple[Any, ...]) -> None:
        channel, _, envelope, request = message
        if channel not in self._services:
            self._bus.run(script, message)
        elif self._services[channel] is None:
            self._clock.callLater(0, request, 0)
        else:
            self._put(_Event(channel, envelope, request, self._claimed, script))

    # IBusListener

    def bus_up(self) -> None:
        self._try_again()

    def bus_down(self) -> None:
        """Receipts say so."""

    def epoch_changed(self) -> None:
        """Then it is as if nothing had been claimed before."""

    # Within

    def _put(self, event: _Event) -> None:
        if self._bytes >= self._most_bytes:
            raise NotPublished(f"events of {self._most_bytes} bytes wait for their services")
        if event.script is not None:
            self._claim(event, event.script)
        self._hold(event.size)
        self._lines.setdefault(event.line, deque()).append(event)
        if event.settled:
            self._advance_later(event.line)

    def _claim(self, event: _Event, script: ForEach) -> None:
        assert isinstance(event.receipt, Request)
        self._bus.run(script, (event.receipt.record, event.envelope.socket_id, event))

    def _claimed(self, event: _Event, receipt: int | bytes) -> None:
        if receipt == Undelivered.LOST and event.waits:
            event.lost = True
            self._lost.append(event)
            return
        own = b"?" + event.envelope.socket_id.encode()
        event.settled, event.first = True, receipt == 1 or (event.lost and receipt == own)
        if not event.first and event.waits:
            event.receipt(receipt)  # type: ignore[arg-type]  # a request's takes records, too
        self._advance_later(event.line)

    def _try_again(self) -> None:
        """Claim what was lost: it may stand, and nobody else will do it."""
        lost, self._lost = self._lost, []
        for event in lost:
            try:
                if event.script is not None and event.waits:
                    self._claim(event, event.script)
                else:
                    event.settled = True
                    self._advance_later(event.line)
            except NotPublished:
                self._lost.append(event)

    def _advance_later(self, line: str) -> None:
        if not self._due:
            self._clock.callLater(0, self._advance)
        self._due[line] = None

    def _advance(self) -> None:
        due, self._due = self._due, {}
        for name in due:
            line = self._lines.get(name)
            while line and line[0].settled:
                event = line.popleft()
                self._hold(-event.size)
                try:
                    if event.first and event.waits:
                        self._hand_over(event)
                except Exception:  # noqa: BLE001  # one event's fault must not keep the others
                    self._log.failure("An event was lost: a bug, please report it")
            if not line:
                self._lines.pop(name, None)

    def _hand_over(self, event: _Event) -> None:
        take, request = self._services[event.channel], event.receipt
        if take is not None:
            take(_encode(event.envelope))
        received = int(take is not None)
        if isinstance(request, Request):
            if received and request.queue.service.reply:
                return
            kept = ("SET", (request.record,), (_ACK, "XX", "KEEPTTL")) if received else ("DEL", (request.record,))
            self._bus.call(*kept).addErrback(lambda _: None)
        event.receipt(received)

    def _hold(self, size: int) -> None:
        self._bytes += size
        self._accounts.in_flight += size

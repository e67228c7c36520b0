"""Requests that wait for their answers, in queues. Made by :mod:`kraftek.core.requests`."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from msgspec import Struct

from kraftek.contract.messages import RequestId
from kraftek.contract.settings import Registration
from kraftek.core.dispatch import once
from kraftek.core.session import Session

__all__ = ["Request", "RequestQueue"]


class Request(Struct, eq=False, gc=False):
    """``record``: the key of its record in Redis, the same whenever it is sent again. ``lasts``: it may be sent again,
    by another socket too. ``sent_at``: by the clock. ``answer``: what is being stored in the record, once settled.

    It does not hold the event: with a thousand that wait, the payloads alone would fill a processor's cache. It is its
    own receipt callback, for the same reason, also when its answer is stored. The garbage collector need not track it:
    it is referenced until it is settled.
    """

    session: Session
    name: str
    record: str
    lasts: bool
    queue: RequestQueue
    id: RequestId
    sent_at: float
    answer: bytes = b""

    def __call__(self, receipt: int | bytes) -> None:
        self.queue.receipt(self, receipt)


class RequestQueue:
    """Requests of one service, in the order in which they are due. ``receipt`` is called with the receipt of each.
    ``target``: the channel or stream of all of them, or empty. ``window``: seconds for which answers are stored.
    """

    __slots__ = ("receipt", "requests", "script", "service", "target")

    def __init__(self, service: Registration, window: float, receipt: Callable[[Request, int | bytes], None]) -> None:
        self.service = service
        self.receipt = receipt
        self.target = "" if service.transport == "stream" and service.partitions else service.channel
        known = window + service.timeout if service.reply else window
        self.script = once(service.transport, service.reply, ceil(known * 1000), service.max_length)
        self.requests: dict[Request, None] = {}

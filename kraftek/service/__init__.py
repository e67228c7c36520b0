"""The kit for service authors: :class:`EventProcessor` with a function per event, and backends that run it.

A service author imports the processor from here and a backend: :mod:`kraftek.service.asyncio` or
:mod:`kraftek.service.twisted`. What happens to an event is in :mod:`kraftek.service.processor`, which does no I/O;
how events are read from Redis in :mod:`kraftek.service.sources`, in which order they are begun in
:mod:`kraftek.service.lanes`, and how failures and crashes are handled in
:mod:`kraftek.service.handling`. :mod:`kraftek.service.instance` puts these together, on top of a backend. What is said
outside of handlers is in :mod:`kraftek.service.publisher`. Tests of services use :mod:`kraftek.service.testing`.
"""

from kraftek.service.backend import Away, Rejected
from kraftek.service.commits import OldGateway, Told
from kraftek.service.processor import Context, EventProcessor, Refused, TooLarge
from kraftek.service.receipts import Receipt

__all__ = ["Away", "Context", "EventProcessor", "OldGateway", "Receipt", "Refused", "Rejected", "Told", "TooLarge"]

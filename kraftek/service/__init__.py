"""The kit of a service author: :class:`EventProcessor` with a function per event, and backends to run it through.

A service author imports the processor from here and a backend: :mod:`kraftek.service.asyncio` or
:mod:`kraftek.service.twisted`. What happens to an event is in :mod:`kraftek.service.processor`, which does no I/O;
how events are taken from Redis in :mod:`kraftek.service.sources`, and what becomes of them when something fails or dies
in :mod:`kraftek.service.handling`. :mod:`kraftek.service.instance` puts these together, over the few things that a
backend can do. Tests of services use :mod:`kraftek.service.testing`.
"""

from kraftek.service.processor import Context, EventProcessor, Refused

__all__ = ["Context", "EventProcessor", "Refused"]

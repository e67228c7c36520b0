"""Compares what a service runs with and what gateways publish about it, and says what to change where it differs.

Made by :class:`kraftek.service.instance.Instance`, for which it stops nothing; ``kraftek check`` uses :func:`compare`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from kraftek.contract.names import REGISTRATIONS, reply_channel
from kraftek.contract.registrations import Given, differences, read_published, timeout_at
from kraftek.service.backend import Away, Backend, Rejected
from kraftek.service.processor import EventProcessor
from kraftek.service.watch import Watch

__all__ = ["Comparison", "Finding", "compare"]

INTERVAL = 30.0
"""Seconds between two looks."""

SOON = 5.0
"""The same while something is to be mended, or gateways differ: a reload takes them one after the other."""

_ID = "[0-9a-f]" * 12
_REPLY_CHANNELS = f"*{reply_channel(_ID)}"
"""Pattern over the channels that gateways are subscribed to: one each, with the prefix before it."""


class Finding(Struct, frozen=True):
    """``lines`` say what differs. ``sure``: no gateway sees it otherwise, so that it is no reload that is under way.
    ``compared``: a gateway was there to compare with. ``timeout``: the seconds that gateways wait for its answers.
    """

    lines: list[str] = []
    sure: bool = True
    compared: bool = True
    timeout: float | None = None


async def compare(call: Callable[..., Awaitable[Any]], given: Given) -> Finding:
    """Look once. ``call`` runs a Redis command; its errors are raised."""
    bodies = await call("HVALS", given.prefix + REGISTRATIONS)
    fleet = read_published(bodies)
    if fleet:
        return Finding(*differences(given, fleet), timeout=timeout_at(fleet, given.name))
    subject = f"Service {given.name} is not compared with its registration"
    if bodies:
        return Finding([f"{subject}: the gateways publish those in a newer form. Update the SDK"], compared=False)
    prefixes = await _prefixes(call)
    if given.prefix in prefixes:
        why = "the gateways there publish none, as those of older versions, or use another database of this Redis"
        return Finding([f"{subject}: {why}"], compared=False)
    where = f'no gateway with the prefix "{given.prefix}" is connected to this Redis'
    if not prefixes:
        return Finding([f"{subject}: no gateway is connected to this Redis"], compared=False)
    there = ", ".join(f'"{prefix}"' for prefix in prefixes)
    mend = f'Either give the service prefix = "{prefixes[0]}", or write prefix = "{given.prefix}" under [redis] of them'
    return Finding([f"Service {given.name}: {where}; there are gateways with {there}. {mend}, and restart them"], False)


async def _prefixes(call: Callable[..., Awaitable[Any]]) -> list[str]:
    """Those of the gateways that are connected. Found by what they are subscribed to: there is nothing to write, and
    nothing to clean up, and Redis looks through its channels, not through its keys.
    """
    try:
        channels = await call("PUBSUB", "CHANNELS", _REPLY_CHANNELS)
    except Rejected:
        return []  # we may not ask
    names = (re.fullmatch(f"(.*){reply_channel(_ID)}", channel.decode("utf-8", "replace")) for channel in channels)
    return sorted({name[1] for name in names if name is not None})


class Comparison(Watch):
    """The watch over one service, from ``start`` to ``stop``. Each difference is told once, until it changes; one that
    not all gateways have, once it lasts.
    """

    last_words = "The service is not compared with its registration any more"

    def __init__(self, processor: EventProcessor, backend: Backend) -> None:
        super().__init__(backend, SOON if processor.register else 0.0)  # gateways have to hear of it first
        self._processor = processor
        self._seen = Finding()
        self._told = Finding()

    async def turn(self) -> float:
        """Look, and sooner again where something differs."""
        await self.look()
        return SOON if self._seen.lines else INTERVAL

    async def look(self) -> None:
        """Look once, and tell what is new."""
        try:
            finding = await compare(self._backend.call, self._given())
        except Away:
            return  # the loop has the same Redis, and says so
        except Rejected as error:
            why = f"Service {self._processor.name} is not compared with its registration: Redis refuses that: {error}"
            finding = Finding([why], compared=False)
        if finding.timeout is not None:
            self._processor.registered(finding.timeout)
            finding = replace(finding, timeout=None)
        lasts = finding == self._seen
        self._seen = finding
        if finding != self._told and (finding.sure or lasts):
            self._tell(finding)

    def _tell(self, finding: Finding) -> None:
        told, self._told = self._told, finding
        for line in finding.lines:
            if line not in told.lines:
                (self._backend.warn if finding.compared or not finding.sure else self._backend.info)(line)
        if not finding.lines:
            self._backend.info(f"Service {self._processor.name} agrees with its registration at the gateways")

    def _given(self) -> Given:
        processor = self._processor
        prefix = processor.prefix
        return Given(
            name=processor.name,
            channel=processor.channel.removeprefix(prefix),
            transport=processor.transport,
            partitions=processor.partitions,
            prefix=prefix,
            broadcast=processor.broadcast.removeprefix(prefix),
            reply=processor.reply,
            answered=processor.answered,
            registers=processor.register,
        )

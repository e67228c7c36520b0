"""Consumer groups of a Redis Stream: joining one, reading as one of its consumers, taking over from consumers that
died, and forgetting these.

Used by the gateway (:mod:`kraftek.bus.reading`) and by services (:mod:`kraftek.service.sources`). Their commands are
here; each has its own loop. The gateway's loop belongs to one connection, ends with it, and waits for acknowledgements
from outside. A service's loop restarts by itself, and waits for its own handlers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msgspec import Struct

from kraftek.contract.lua import Argument, Script, lua

__all__ = ["CLAIM", "FORGET", "FORGOTTEN_AFTER", "JOIN", "Consumer", "dead_letter", "event_in", "new_entries"]

FORGOTTEN_AFTER = 60_000
"""Milliseconds after which a consumer that has no pending entries and sends no commands is removed from its group. A
live one sends a command every second, and Redis creates it again if it comes back."""

_DEAD_LETTERS = 10_000
"""Entries that a dead-letter stream may hold (:func:`kraftek.contract.names.dead_letters`)."""

_DEAD_LETTER_BYTES = 67_108_864
"""Bytes of entries as large as the newest that it may hold: 64 MiB. Nothing has to be measured for that. However the
sizes mix, the n-th largest is an n-th of it at most."""

_REASON = 1000
"""Characters of a reason that are kept."""

FORGET = Script(lua(__package__, "fields", "forget_consumers"))
"""Remove idle consumers from the stream's group."""

JOIN = Script(lua(__package__, "fields", "join_group", "forget_consumers"))
"""The same, after making the group where it is missing."""

CLAIM = Script(lua(__package__, "claimed", "claim_pending"))
"""Take over entries that are pending for another consumer, or that were sent to this one and lost. Its arguments are
those of :meth:`Consumer.claim`."""


class Consumer(Struct, frozen=True):
    """A consumer of a group. ``stream``: the key with its prefix."""

    stream: str
    group: str
    name: str

    def read(self, most: int, milliseconds: int) -> tuple[Argument, ...]:
        """The command that reads new entries, and waits so long for one: :func:`new_entries` parses its answer."""
        group = ("GROUP", self.group, self.name)
        return ("XREADGROUP", *group, "COUNT", most, "BLOCK", milliseconds, "STREAMS", self.stream, ">")

    def keep(self, entries: Iterable[str | bytes]) -> tuple[Argument, ...]:
        """The command that resets the idle time of entries in hand, so that no other consumer claims them."""
        return ("XCLAIM", self.stream, self.group, self.name, 0, *entries, "IDLE", 0, "JUSTID")

    def claim(
        self,
        idle: float,
        most: int,
        *,
        whose: str = "",
        attempts: int = 0,
        alone: bool = False,
        in_hand: Iterable[str] = (),
    ) -> tuple[Argument, ...]:
        """The arguments of :data:`CLAIM` beside the stream. Its answer has ``(id, fields, number of deliveries)`` of
        each entry.

        ``idle``: seconds that an entry has been idle at least. ``whose``: the consumer to take it from, or any.
        ``attempts``: which delivery is the last one; 0 is none. ``alone``: an entry on its last attempt is in hand, so
        another one is not taken. ``in_hand``: ids to leave out.
        """
        return (self.group, self.name, int(idle * 1000), most, whose, attempts, int(alone), *in_hand)


def new_entries(answer: Any) -> Iterator[tuple[bytes, bytes]]:
    """Ids and events in the answer of ``XREADGROUP`` for one stream; none after a time-out."""
    for _, entries in answer or ():
        for entry_id, fields in entries:
            yield entry_id, event_in(fields)


def event_in(fields: Sequence[bytes]) -> bytes:
    """The event that an entry holds; empty when the entry has no field ``event``."""
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(b"event", b"")


def dead_letter(event: bytes, reason: str, entry_id: str | bytes, *more: Argument) -> tuple[Argument, ...]:
    """The arguments of ``XADD`` after the key, which is :func:`~kraftek.contract.names.dead_letters`, for an entry.

    ``more``: names and values of further fields.
    """
    fields = ("event", event, "reason", reason[:_REASON], "id", entry_id, *more)
    most = min(_DEAD_LETTERS, max(1, _DEAD_LETTER_BYTES // (len(event) + 1)))
    return ("MAXLEN", "~", most, "*", *fields)

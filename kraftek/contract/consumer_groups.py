"""Consumer groups of a Redis Stream: joining one, reading as one of its consumers, taking over from consumers that
died, and forgetting these.

For both who read streams: the gateway (:mod:`kraftek.bus.reading`) and services (:mod:`kraftek.service.sources`). What
they say to Redis is here; how they wait is theirs. The gateway's loop belongs to one connection, and ends with it; it
waits for acknowledgements that come from outside. A service's begins again by itself, and waits for its own handlers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msgspec import Struct

from kraftek.contract.lua import Script, lua

__all__ = ["CLAIM", "DEAD_LETTERS", "FORGET", "FORGOTTEN_AFTER", "JOIN", "Consumer", "event_in", "new_entries"]

FORGOTTEN_AFTER = 60_000
"""Milliseconds after which a consumer that has nothing in hand and asks for nothing is removed from its group. One that
lives asks every second, and Redis makes it anew should it come back."""

DEAD_LETTERS = 10_000
"""Entries of one stream that are kept after they were put aside (:func:`kraftek.contract.names.dead_letters`)."""

FORGET = Script(lua(__package__, "fields", "forget_consumers"))
"""Remove idle consumers from the stream's group."""

JOIN = Script(lua(__package__, "fields", "join_group", "forget_consumers"))
"""The same, after making the group where it is missing."""

CLAIM = Script(lua(__package__, "claimed", "claim_pending"))
"""Take over entries that are pending for another consumer, or that this one was handed and never got. Its arguments are
those of :meth:`Consumer.claim`."""


class Consumer(Struct, frozen=True):
    """One that reads a stream in a group. ``stream``: the key as Redis has it."""

    stream: str
    group: str
    name: str

    def read(self, most: int, milliseconds: int) -> tuple[str | int, ...]:
        """The command that takes new entries, and waits so long for the first: :func:`new_entries` reads its answer."""
        who = ("GROUP", self.group, self.name)
        return ("XREADGROUP", *who, "COUNT", most, "BLOCK", milliseconds, "STREAMS", self.stream, ">")

    def keep(self, entries: Iterable[str | bytes]) -> tuple[str | bytes | int, ...]:
        """The command that says that these are still in hand: nobody claims them for as long as they were left idle."""
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
    ) -> tuple[str | int, ...]:
        """What :data:`CLAIM` takes beside the stream. It answers with ``(id, fields, how often it was delivered)`` of
        each entry.

        ``idle``: seconds for which nobody kept it. ``whose``: the consumer to take from, or any. ``attempts``: after
        how many deliveries it is on its last; 0 is never. ``alone``: one that is on its last is in hand, and another
        of that kind is left where it is. ``in_hand``: left out.
        """
        return (self.group, self.name, int(idle * 1000), most, whose, attempts, int(alone), *in_hand)


def new_entries(answer: Any) -> Iterator[tuple[bytes, bytes]]:
    """Ids and events of what ``XREADGROUP`` answers for one stream; none when nothing came in time."""
    for _, entries in answer or ():
        for entry_id, fields in entries:
            yield entry_id, event_in(fields)


def event_in(fields: Sequence[bytes]) -> bytes:
    """The event that an entry holds; nothing when somebody wrote it who does not know how."""
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(b"event", b"")

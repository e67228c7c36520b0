"""Consumer groups of a Redis Stream: joining one, taking over from consumers that died, and forgetting these.

For both who read streams: the gateway (:mod:`kraftek.bus.reading`) and services (:mod:`kraftek.service.instance`).
"""

from __future__ import annotations

from kraftek.contract.lua import Script, lua

__all__ = ["CLAIM", "DEAD_LETTERS", "FORGET", "FORGOTTEN_AFTER", "JOIN"]

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
"""Take over entries that are pending for another consumer, or that this one was handed and never got."""

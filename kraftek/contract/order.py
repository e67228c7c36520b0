"""What each event for a Socket.IO client ends in, so that it can say where it was when it comes back.

All that is told to rooms with history is told in one order, whatever the room, because Redis runs scripts one after the
other. ``tell.lua`` beside this module numbers it. What a client has got last says what it has got of all its rooms: all
up to there, and nothing of what is later. So the word is short, and the same for all clients of this process.

Made by :mod:`kraftek.daemon.assembly`, kept up to date by :mod:`kraftek.core.ordering`.
"""

from __future__ import annotations

import re

__all__ = ["UNCERTAIN", "Order", "number_in", "same_order"]

UNCERTAIN = "-"
"""What is sent while nobody knows whether something is missing: with this no client is recovered."""

_WORD = re.compile(r"[0-9a-f]{12}\.[0-9]{1,16}")


class Order:
    """``now``: where the order is, ``<epoch>.<number>``: clients have got all up to there when they have got what is
    written to them.
    """

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = UNCERTAIN

    @property
    def certain(self) -> bool:
        """Whether that is known."""
        return self.now is not UNCERTAIN


def number_in(word: str) -> int | None:
    """The number, or ``None`` for what does not say where somebody was."""
    return int(word[13:]) if _WORD.fullmatch(word) else None


def same_order(one: str, other: str) -> bool:
    """Whether they are of one epoch: then the numbers can be compared."""
    return one[:13] == other[:13]

"""Names in which one ``*`` may stand for any text, as those of ``[rooms]``; ``history.lua`` reads them likewise."""

from __future__ import annotations

from typing import Self

from msgspec import Struct

__all__ = ["Wildcard"]


class Wildcard(Struct, frozen=True):
    """``tail``: what follows the ``*``; ``None`` where there is none, and ``head`` is the one name."""

    head: str
    tail: str | None

    @classmethod
    def of(cls, text: str) -> Self:
        """The pattern that is written so."""
        head, star, tail = text.partition("*")
        return cls(head, tail if star else None)

    def covers(self, name: str) -> bool:
        """Whether it is for this name."""
        head, tail = self.head, self.tail
        if tail is None:
            return name == head
        return len(name) >= len(head) + len(tail) and name.startswith(head) and name.endswith(tail)

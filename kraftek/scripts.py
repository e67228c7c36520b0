"""A Lua script that Redis runs in one piece, as a value.

Made by :mod:`kraftek.rooms` and :mod:`kraftek.access`, run by :meth:`kraftek.interfaces.IBus.call`.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import sha1

from msgspec import Struct

__all__ = ["Script"]


class Script(Struct, frozen=True, dict=True):
    """``source`` is Lua; it names its keys by ``KEYS`` and everything else by ``ARGV``."""

    source: str

    @cached_property
    def digest(self) -> str:
        """The name under which Redis remembers the script: the source's SHA-1 in hex (``EVALSHA``)."""
        return sha1(self.source.encode(), usedforsecurity=False).hexdigest()

"""What is kept of one session whose client may come back. Made by :mod:`kraftek.core.recoverable`."""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_urlsafe

from kraftek.contract.order import UNCERTAIN

__all__ = ["Kept"]


class Kept:
    """What is kept of one session. ``entered``: where it has entered its rooms. ``floor``: what it is sent at or after
    this word of the order says what it has got. ``written``: it is in Redis. ``spoiled``: it has missed something and
    was not told, so that it must not be recovered. ``taken``: it belongs to another socket by now.
    """

    __slots__ = ("_changed", "entered", "floor", "pid", "sid", "sockets", "spoiled", "taken", "written")

    def __init__(self, sid: str, changed: Callable[[], None]) -> None:
        self.pid = token_urlsafe(18)
        self.sid = sid
        self.sockets: tuple[str, ...] = (sid,)
        self.entered: dict[str, tuple[str, int]] = {}
        self.floor = UNCERTAIN
        self.written = self.spoiled = self.taken = False
        self._changed = changed

    def changed(self) -> None:
        """Its rooms have changed, or how it gets their messages."""
        self._changed()

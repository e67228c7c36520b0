"""What a topic is told while one client catches up with it. Made by :mod:`kraftek.core.resuming`.

:mod:`kraftek.core.admission` makes one of what a client's user is told before the client is answered.
"""

from __future__ import annotations

from collections.abc import Callable

from zope.interface import implementer

from kraftek.contract.interfaces import IOutlet
from kraftek.contract.messages import Outgoing

__all__ = ["CatchUp"]


@implementer(IOutlet)
class CatchUp:
    """The first outlet of a client in a topic whose history it is about to get. It keeps what is delivered meanwhile,
    up to ``most`` bytes; past them it is ``overrun``, and the history is read once more.

    ``until``: once the client has got all up to this offset, what comes later passes to ``outlet``.
    """

    __slots__ = ("_bytes", "_kept", "_most", "_outlet", "overrun", "until")

    def __init__(self, most: int, outlet: Callable[[], IOutlet]) -> None:
        self._most = most
        self._outlet = outlet
        self._kept: list[Outgoing] = []
        self._bytes = 0
        self.overrun = False
        self.until: int | None = None

    def write(self, outgoing: Outgoing) -> None:
        """As that of a link."""
        if self.until is None:
            self._bytes += len(outgoing.text) + sum(map(len, outgoing.attachments))
            self.overrun = self.overrun or self._bytes > self._most
            if not self.overrun:
                self._kept.append(outgoing)
            return
        about = outgoing.about
        if about is None or about.offset is None or about.offset > self.until:
            self._outlet().write(outgoing)

    def clear(self) -> None:
        """Forget what was kept: it is about to be read."""
        self._kept.clear()
        self._bytes = 0
        self.overrun = False

    def interrupt(self) -> None:
        """Something was not delivered meanwhile: it has to be read."""
        self.clear()
        self.overrun = True

    def open(self, until: int) -> None:
        """The client has got all up to this offset."""
        self.until = until
        kept, self._kept = self._kept, []
        for outgoing in kept:
            self.write(outgoing)

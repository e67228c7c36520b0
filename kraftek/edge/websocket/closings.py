"""The closing handshakes under way (RFC 6455, section 7): a gateway that stops or drains waits for them.

Kept by :class:`kraftek.edge.websocket.factory.ClientFactory`, which its connections tell.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred

__all__ = ["Closings"]


class Closings:
    """The connections that were sent a close frame and still exist.

    A client whose connection is cut before it has answered reports it as not closed cleanly, and with code 1006 if a
    reset discards the close frame before it is read.
    """

    def __init__(self) -> None:
        self._connections: set[object] = set()
        self._waiting: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._connections)

    def begin(self, connection: object) -> None:
        """A close frame was sent."""
        self._connections.add(connection)

    def end(self, connection: object) -> None:
        """The connection was lost, closed or not."""
        self._connections.discard(connection)
        if self._waiting and not self._connections:
            waiting, self._waiting = self._waiting, []
            for over in waiting:
                over.callback(None)

    def over(self) -> Deferred[None]:
        """Fires when none is under way; at once when there is none. It may be cancelled, or given a time-out."""
        over: Deferred[None] = Deferred(self._waiting.remove)
        if self._connections:
            self._waiting.append(over)
        else:
            over.callback(None)
        return over

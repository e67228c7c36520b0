"""What of one WebSocket was read and is not handled yet, and why the socket is not read.

Made by :class:`kraftek.edge.websocket.protocol.ClientProtocol` when there is something of that.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.python.failure import Failure

from kraftek.contract.turns import BUDGET, FROZEN, HELD, TURN, Turns

__all__ = ["Connection", "Unhandled"]


class Connection(Protocol):
    """The connection. ``unhandled``: this, ``None`` when all is handled and nothing keeps it from being read."""

    unhandled: Unhandled | None
    heard: bool
    transport: Any

    def step(self, data: bytes, at: int) -> int:
        """Handle a little of ``data``, from ``at`` on; where the rest begins."""

    def ended(self, reason: Failure) -> None:
        """The connection was lost, and all that was read of it is handled."""


class Unhandled:
    """One connection's. The reasons for which it is not read are a set: it is read again when the last one is gone.

    What it keeps counts in the account ``unhandled``. As long as there is something ``TURN`` is a reason, which bounds
    it: to one read, and with TLS what that held besides. (TLS hands out up to three records after it is told to pause.)

    The end of the stream comes after what was read before, as it would if that were handled at once.
    """

    __slots__ = ("_at", "_connection", "_data", "_end", "_reasons", "_turns")

    def __init__(self, connection: Connection, turns: Turns) -> None:
        self._connection = connection
        self._turns = turns
        self._data = b""
        self._at = 0
        self._reasons = 0
        self._end: Failure | None = None
        connection.unhandled = self

    @property
    def lost(self) -> bool:
        """Whether the connection is there no more."""
        return self._end is not None

    def begin(self, data: bytes, at: int) -> None:
        """The first step is done; go on with ``data`` from ``at`` on."""
        self._keep(data)
        self._at = at
        if not self._reasons:
            self._turns.start(self)
        if self._data:
            self.stop(TURN)

    def add(self, data: bytes) -> None:
        """Something was read in the meantime."""
        self._keep(self._data[self._at :] + data)
        self.stop(TURN)
        self._wait()

    def stop(self, reason: int) -> None:
        """Do not read it, for this reason too."""
        if not self._reasons:
            self._connection.heard = True
            self._connection.transport.pauseProducing()
        self._reasons |= reason

    def go(self, reasons: int) -> None:
        """These reasons not to read it are gone."""
        before, self._reasons = self._reasons, self._reasons & ~reasons
        if before == self._reasons:
            return
        if self._reasons:
            self._wait()
            return
        self._read_on()
        if not self._data:
            self._connection.unhandled = None

    def freeze(self) -> None:
        """Neither read it nor handle what was read, until ``FROZEN`` is gone."""
        self.stop(FROZEN)
        self._turns.remove(self)

    def put_back(self, data: bytes) -> None:
        """Handle what came before what is left."""
        self._keep(data + self.left)
        self.stop(TURN)

    @property
    def left(self) -> bytes:
        """What is not handled."""
        return self._data[self._at :]

    def end(self, reason: Failure) -> bool:
        """The connection was lost. Whether that has to wait until the rest is handled: then ``ended`` is called.

        What comes after messages that are held goes with them.
        """
        self._end = reason
        if not self._data or self._reasons & HELD:
            self.drop()
            return False
        self._reasons = TURN
        self._wait()
        return True

    def drop(self) -> None:
        """Nothing more is handled."""
        self._keep(b"")
        self._turns.remove(self)
        self._connection.unhandled = None
        if self._reasons:
            self._reasons = 0
            self._read_on()

    # What the turns call.

    def step(self) -> bool:
        connection = self._connection
        if not self._data or connection.unhandled is not self:
            return False
        before = self._at
        after = connection.step(self._data, before)
        self._at += after - before
        if self._at < len(self._data):
            return self._reasons in (0, TURN)
        self._keep(b"")
        if self._end is not None:
            self.drop()
            connection.ended(self._end)
        elif self._reasons & TURN:
            # Not forgotten before it has rested.
            self._reasons &= ~TURN
            if not self._reasons:
                self._read_on()
        elif not self._reasons:
            connection.unhandled = None
        return False

    def rest(self) -> None:
        if not self._data and not self._reasons and self._connection.unhandled is self:
            self._connection.unhandled = None

    def unslowed(self) -> None:
        self.go(BUDGET)

    def failed(self) -> None:
        self.drop()
        if self._end is not None:
            self._connection.ended(self._end)
        else:
            self._connection.transport.abortConnection()

    def give_up(self) -> None:
        self.failed()

    def _keep(self, data: bytes) -> None:
        self._data, self._at = data, 0
        self._turns.keep(self, len(data))

    def _wait(self) -> None:
        if self._reasons == TURN:
            self._turns.add(self)

    def _read_on(self) -> None:
        self._connection.heard = True
        if self._end is None:
            self._connection.transport.resumeProducing()

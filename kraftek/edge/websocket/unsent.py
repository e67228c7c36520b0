"""What waits for one WebSocket client that does not read, in the chunks in which its transport gets it.

Made by :class:`kraftek.edge.websocket.outbox.Outbox` while its client is blocked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kraftek.contract.messages import Outgoing
from kraftek.edge.backlogs import Backlog
from kraftek.edge.websocket.frames import deflated_wire, wire

__all__ = ["CHUNK", "Unsent"]

CHUNK = 65_536
"""Bytes that a transport gets at a time. It keeps a copy of its own; what it has not yet got all clients share."""


class Unsent:
    """Frames that were begun, and behind them the ``backlog``. ``window_bits`` is set when messages are compressed."""

    __slots__ = ("_at", "_begun", "_window_bits", "backlog")

    def __init__(self, backlog: Backlog, window_bits: int) -> None:
        self.backlog = backlog
        self._window_bits = window_bits
        self._begun: deque[bytes] = deque()
        # So much of the first of them the transport has.
        self._at = 0

    @property
    def is_cut(self) -> bool:
        """Whether the transport has the beginning of a frame, and nothing else may be written before its end."""
        return self._at > 0

    def begin(self, frames: Sequence[bytes], at: int = 0) -> None:
        """Frames that go before the backlog; the transport has ``at`` bytes of the first."""
        self._begun.extend(frames)
        self._at = at
        self.backlog.due = sum(map(len, frames)) - at > self.backlog.room

    def insert(self, frame: bytes) -> None:
        """Have this follow the frames that the transport has the beginning of."""
        self._begun.insert(1, frame)

    def next_chunk(self) -> bytes:
        """The next for the transport; empty when nothing waits."""
        begun = self._begun
        if not begun:
            messages = self.backlog.take(CHUNK)
            frames = self._frames(messages[0]) if len(messages) == 1 else b"".join(map(self._frames, messages))
            if len(frames) <= 2 * CHUNK:
                return frames
            self.begin((frames,))
        parts, left, at = [], CHUNK, self._at
        while begun and left:
            frame = begun[0]
            size = len(frame) - at
            if size > left:
                parts.append(frame[at : at + left])
                at += left
                break
            parts.append(frame[at:] if at else frame)
            begun.popleft()
            left -= size
            at = 0
        self._at = at
        if not begun:
            self.backlog.due = False
        return b"".join(parts)

    def left(self) -> list[bytes]:
        """All that the transport has not got, in frames. The first is the rest of one if it ``is_cut``."""
        while messages := self.backlog.take(CHUNK):
            self._begun.extend(map(self._frames, messages))
        begun = [*self._begun]
        if self._at:
            begun[0] = begun[0][self._at :]
        return begun

    def abandon(self) -> bytes:
        """Forget what waits. What is left of the frame that the transport has the beginning of."""
        self.backlog.end()
        rest = self._begun[0][self._at :] if self._at else b""
        self._begun.clear()
        self._at = 0
        return rest

    def _frames(self, message: Outgoing) -> bytes:
        return deflated_wire(message, self._window_bits) if self._window_bits else wire(message)

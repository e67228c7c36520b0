"""A message that a client sends in frames, within its bounds. Made by :mod:`kraftek.edge.websocket.protocol`."""

from __future__ import annotations

from kraftek.edge.websocket.deflate import Inflater

__all__ = ["Incoming", "TooLargeError"]

_EMPTY_FRAMES = 128
"""Empty frames that a message may have. Some clients end one with such a frame; none needs many."""


class TooLargeError(Exception):
    """The message is larger than it may be, or will be."""


class Incoming:
    """A message that arrives in pieces. ``data``: the pieces so far. ``limit``: bytes that it may have, decompressed;
    ``inflater`` enforces that itself.
    """

    __slots__ = ("_announced", "_empty", "_frames", "_limit", "binary", "data")

    def __init__(self, limit: int, binary: bool, inflater: Inflater | None) -> None:
        self._limit = inflater.longest if inflater is not None and inflater.under_way else limit
        self._announced = 0
        self._empty = 0
        self._frames = 0
        self.binary = binary
        # In one piece: a list of thousands of small ones takes many times what they hold.
        self.data = bytearray()

    def announce(self, size: int) -> bool:
        """A frame of this size begins; whether it is the first.

        Raises :class:`TooLargeError` before any of it is read.
        """
        first = not self._frames
        self._frames += 1
        self._announced += size
        self._empty += not size
        if self._announced > self._limit:
            raise TooLargeError("message too large")
        if self._empty > _EMPTY_FRAMES:
            raise TooLargeError("too many empty fragments")
        return first

"""The texts of a room that are told piece by piece. Used by :class:`kraftek.client.recovery.Recovery`."""

from __future__ import annotations

from msgspec import Struct, field
from msgspec.structs import replace

from kraftek.client.messages import Message

__all__ = ["Texts", "whole"]

_MOST = 100
"""Texts of a room that go on at a time. The one that has got no piece for longest is forgotten then."""


class Texts(Struct):
    """Those that go on, as far as they were heard from the beginning."""

    known: dict[str, str] = field(default_factory=dict)

    def add(self, message: Message) -> Message:
        """The message, with the text to which it belongs."""
        append, piece = message.append, message.payload
        if append is None or not isinstance(piece, str):
            return message
        before = self.known.pop(append.key, None)
        if append.first is not None:
            before = ""
        text = None if before is None else before + piece
        if text is not None and not append.last:
            self.known[append.key] = text
            if len(self.known) > _MOST:
                del self.known[next(iter(self.known))]
        return replace(message, append=replace(append, text=text))

    def forget(self) -> None:
        """Pieces may have been missed."""
        self.known.clear()


def whole(message: Message) -> Message:
    """A message of a page: a text is whole there."""
    if message.append is None or not isinstance(message.payload, str):
        return message
    return replace(message, append=replace(message.append, text=message.payload))

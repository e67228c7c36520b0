"""Texts that are told to a room piece by piece, such as an AI's answer. Used by :mod:`kraftek.service.processor` and
:mod:`kraftek.service.publisher`.
"""

from __future__ import annotations

from typing import Any, TypedDict

import msgspec
from msgspec import Struct

from kraftek.contract.history import APPEND
from kraftek.contract.lua import Argument
from kraftek.contract.names import GATEWAY_OWN
from kraftek.contract.surrogates import check_name, encode
from kraftek.service.commits import Told
from kraftek.service.errors import TooLarge

__all__ = ["APPEND", "Piece", "PieceOptions", "told"]

KEY_BYTES = 256


class PieceOptions(TypedDict, total=False):
    """The optional arguments of :meth:`kraftek.service.Context.append_to_room`."""

    first: bool
    last: bool
    id: str


class Piece(Struct, frozen=True):
    """One of them. ``first``: the text ``key`` begins anew with it; ``last``: it ends. ``id``: it is told once, however
    often it is sent with this one.
    """

    type: str
    key: str
    text: str
    room_id: str
    first: bool = False
    last: bool = False
    id: str = ""

    def arguments(self, prefix: str, broadcast: str) -> list[Argument]:
        """Those of :data:`APPEND`. Raises ``ValueError`` for what is no name, and ``TypeError`` for what is no text."""
        if not isinstance(self.text, str):
            raise TypeError(f"{self.type}: expected a text, as pieces are joined; found {type(self.text).__name__}")
        for name in (self.type, self.key, self.room_id, self.id):
            check_name(name)
        if "" in (self.type, self.key, self.room_id) or len(self.key.encode()) > KEY_BYTES:
            raise ValueError(f"{self.type}: expected a type, a room, and a key of 1 to {KEY_BYTES} bytes")
        if self.type == "disconnect" or self.type.startswith(GATEWAY_OWN):
            raise ValueError(f"{self.type}: expected a type that is no command to gateways")
        flags = " ".join(name for name in ("first", "last") if getattr(self, name))
        whole = msgspec.json.decode(encode(self.text), type=str)  # with no half of a surrogate pair
        return [self.room_id, self.type, self.key, whole, flags, self.id, prefix, broadcast]


def told(answer: Any) -> Told:
    """What :data:`APPEND` returns. Raises :class:`TooLarge`."""
    if isinstance(answer, bytes):
        raise TooLarge(f"expected {answer.decode()}")
    taken, offset, epoch = answer
    return Told(taken, offset, epoch.decode())

"""The state of a gateway that another version goes on with, and its formats.

Written by :mod:`kraftek.daemon.upgrade`, read by :mod:`kraftek.daemon.succession`.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from kraftek.daemon.image import Inheritance

__all__ = ["FORMATS", "State", "chosen", "read_state"]

FORMATS = (1,)
"""Formats of the state that this version writes and reads: the newest first. Two versions that follow each other have
one in common, so that the way back is open."""


class State(Struct, kw_only=True):
    """All that is handed over. Each socket has its descriptor, what is of its connection, and what is of its session;
    each listener its endpoint string. ``subscriber``: the connection that listens to Redis, if it is handed over.
    """

    version: str
    gateway_id: str
    sockets: list[tuple[int, bytes, bytes]]
    listeners: list[tuple[str, int]]
    core: bytes
    subscriber: tuple[int, bytes] | None = None

    @property
    def encoded(self) -> bytes:
        """As :func:`read_state` reads it."""
        return msgspec.msgpack.encode(self)

    @property
    def connected(self) -> list[int]:
        """The descriptors of all connections."""
        found = [descriptor for descriptor, _, _ in self.sockets]
        return found if self.subscriber is None else [*found, self.subscriber[0]]

    @property
    def descriptors(self) -> list[int]:
        """All of them."""
        return [*self.connected, *(descriptor for _, descriptor in self.listeners)]


def chosen(offered: str) -> int | None:
    """The newest format of these, as ``1,2``, that this version reads."""
    known = [each for each in FORMATS if str(each) in offered.split(",")]
    return known[0] if known else None


def read_state(inheritance: Inheritance) -> State:
    """The state that another version has written. Raises ``ValueError``."""
    if inheritance.format not in FORMATS:
        raise ValueError(f"the state has format {inheritance.format}; expected one of {FORMATS}")
    with open(inheritance.state, "rb", closefd=False) as file:
        file.seek(0)
        return msgspec.msgpack.decode(file.read(), type=State)

"""How many clients each address has.

Asked by :mod:`kraftek.edge.websocket` and :mod:`kraftek.edge.engineio.clients` for a new client; what is let in is
counted where it lives: connections in :mod:`kraftek.edge.websocket`, Engine.IO clients in
:mod:`kraftek.edge.engineio.clients`. Made by :mod:`kraftek.daemon.assembly`.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["Addresses"]


class Addresses:
    """The clients of each address. ``limit``: of one; 0 is no limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._clients: Counter[str] = Counter()

    def full(self, address: str) -> bool:
        """Whether no more clients from this address are accepted."""
        return 0 < self._limit <= self._clients[address]

    def add(self, address: str) -> None:
        """One came."""
        self._clients[address] += 1

    def remove(self, address: str) -> None:
        """One left."""
        self._clients[address] -= 1
        if not self._clients[address]:
            del self._clients[address]

"""Which address a client counts for, and how many clients each address has.

Asked by :mod:`kraftek.edge.websocket` and :mod:`kraftek.edge.engineio.polling` for a new client; what is let in is
counted where it lives: connections in :mod:`kraftek.edge.websocket`, Engine.IO clients in
:mod:`kraftek.edge.engineio.clients`. Made by :mod:`kraftek.daemon.assembly`.
"""

from __future__ import annotations

import re
from collections import Counter

from twisted.internet.interfaces import IAddress

__all__ = ["Addresses"]

_WITH_PORT = re.compile(r"\[([^\]]+)\](?::\d+)?|([^:]+):\d+")


class Addresses:
    """The clients of each address. ``limit``: of one; 0 is no limit. ``proxies``: how many there are in front of the
    gateway, each of which appends to ``X-Forwarded-For``; with 0 the header is ignored.
    """

    def __init__(self, limit: int, proxies: int) -> None:
        self._limit = limit
        self._proxies = proxies
        self._clients: Counter[str] = Counter()

    def of(self, peer: IAddress | None, forwarded: str) -> str:
        """The address that a client counts for whose connection comes from ``peer``.

        ``forwarded``: all of its ``X-Forwarded-For``, separated by commas. What stands there before the word of the
        proxies is the client's own invention. All of a UNIX socket have one address, which is empty.
        """
        if self._proxies:
            # Some proxies (Azure's) give the port as well, another one for each connection.
            told = forwarded.split(",")[-self._proxies :][0].strip()
            with_port = _WITH_PORT.fullmatch(told)
            if told:
                return with_port[1] or with_port[2] if with_port else told
        return getattr(peer, "host", "")

    def full(self, address: str) -> bool:
        """Whether no more clients of this address are let in."""
        return 0 < self._limit <= self._clients[address]

    def add(self, address: str) -> None:
        """One came."""
        self._clients[address] += 1

    def remove(self, address: str) -> None:
        """One left."""
        self._clients[address] -= 1
        if not self._clients[address]:
            del self._clients[address]

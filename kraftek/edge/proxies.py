"""What the proxies in front of the gateway report of a client: its address, and its scheme.

Asked by :mod:`kraftek.edge.public_site` for each request.
"""

from __future__ import annotations

import re

from twisted.internet.interfaces import IAddress

__all__ = ["Proxies"]

_WITH_PORT = re.compile(r"\[([^\]]+)\](?::\d+)?|([^:]+):\d+")

_SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}


class Proxies:
    """``number``: how many there are, each of which appends to ``X-Forwarded-For``; with 0 the header is ignored.

    ``in_between``: whether a connection is accepted from a proxy, and its client is known later. That is so with any of
    them, or where one speaks the PROXY protocol.
    """

    def __init__(self, number: int, *, proxy_protocol: bool = False) -> None:
        self._number = number
        self.in_between = number > 0 or proxy_protocol

    def address(self, peer: IAddress | None, forwarded: str | None) -> str:
        """The address that a client counts for whose connection comes from ``peer``.

        ``forwarded``: all of its ``X-Forwarded-For``. What stands there before the word of the proxies is the client's
        own invention. All of a UNIX socket have one address, which is empty.
        """
        if reported := self._reported(forwarded):
            # Some proxies (Azure's) give the port as well, another one for each connection.
            with_port = _WITH_PORT.fullmatch(reported)
            return with_port[1] or with_port[2] if with_port else reported
        return getattr(peer, "host", "")

    def scheme(self, forwarded: str | None, *, secure: bool) -> str | None:
        """The scheme of the page's own connections, ``None`` where that is not known.

        ``forwarded``: all of its ``X-Forwarded-Proto``. ``secure``: whether our own port speaks TLS. Behind proxies
        that says nothing, and a plain port may have one in front that nobody reported us about.
        """
        if self._number:
            return _SCHEMES.get(self._reported(forwarded).lower())
        return "https" if secure else None

    def _reported(self, forwarded: str | None) -> str:
        return (forwarded or "").split(",")[-self._number :][0].strip() if self._number else ""

"""Where clients connect: Twisted's endpoint strings, and ``reuseport:`` for several processes on one port.

Called by :mod:`kraftek.daemon.lifecycle`, which has the strings from the configuration.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.tcp import Port

__all__ = ["server_endpoint"]

_BACKLOG = 4096
"""Connections that may wait to be accepted: Linux's own bound (``net.core.somaxconn``). Twisted's default is 50, and
when a gateway restarts under its clients they all come back within the same second."""


def server_endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """The server endpoint of this string. Raises ``ValueError`` when it cannot be understood."""
    kind, _, rest = description.partition(":")
    if kind == "reuseport":
        kind, description, reactor = "tcp", f"tcp:{rest}", _Sharing(reactor)
    if kind in ("tcp", "tcp6", "ssl", "unix") and ":backlog=" not in description:
        description += f":backlog={_BACKLOG}"
    endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    return endpoint


class _SharedPort(Port):
    """A port that other processes of the same user may listen on too: the kernel spreads connections over them."""

    def createInternetSocket(self) -> socket.socket:
        created: socket.socket = super().createInternetSocket()
        created.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        return created


class _Sharing:
    """What ``tcp:`` endpoints need of a reactor, for ``reuseport:PORT[:interface=ADDRESS]``."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenTCP(self, port: int, factory: IProtocolFactory, backlog: int, interface: str) -> IListeningPort:
        shared = _SharedPort(port, factory, backlog, interface, reactor=self._reactor)
        shared.startListening()
        return shared

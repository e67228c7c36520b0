"""Where clients connect: Twisted's endpoint strings, and ``reuseport:`` for several processes on one port.

Called by :mod:`kraftek.daemon`, which has the strings from the configuration.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.tcp import Port
from zope.interface import implementer

__all__ = ["server_endpoint"]

_BACKLOG = 4096
"""Connections that may wait to be accepted: Linux's own bound (``net.core.somaxconn``). Twisted's default is 50, and
when a gateway restarts under its clients they all come back within the same second."""


def server_endpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """What listens where the endpoint string says. Raises ``ValueError`` when it cannot be understood."""
    kind, _, rest = description.partition(":")
    if kind == "reuseport":
        port, _, interface = rest.partition(":interface=")
        return _SharedEndpoint(reactor, int(port), interface.replace("\\:", ":"))
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


@implementer(IStreamServerEndpoint)
class _SharedEndpoint:
    """``reuseport:PORT[:interface=ADDRESS]``."""

    def __init__(self, reactor: Any, port: int, interface: str) -> None:
        self._reactor = reactor
        self._port = port
        self._interface = interface

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        port = _SharedPort(self._port, protocolFactory, _BACKLOG, self._interface, reactor=self._reactor)
        return execute(port.startListening).addCallback(lambda _: port)

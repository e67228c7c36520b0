"""Sockets of clients that pass from one version of the gateway to another, in the same process: how they are taken from
their transports, and put into new ones.

Used by :mod:`kraftek.edge.websocket`. Twisted's ``adoptStreamConnection`` would make a copy of the descriptor, and it
fails when the client has just reset its connection; the transport is made here as Twisted's port makes it.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from twisted.internet import tcp, unix
from twisted.internet.interfaces import IProtocol, ISSLTransport
from twisted.protocols.policies import ProtocolWrapper

__all__ = ["adopt", "plain_transport", "unwritten"]

_NOBODY = ("", 0)
"""The address of a client that is gone."""


def plain_transport(transport: Any) -> tcp.Connection | None:
    """The transport of the socket itself, below what read the header of a proxy; ``None`` with TLS, whose keys stay in
    this process.
    """
    while isinstance(transport, ProtocolWrapper) and not ISSLTransport.providedBy(transport):
        transport = transport.transport
    return transport if isinstance(transport, tcp.Connection) and not ISSLTransport.providedBy(transport) else None


def unwritten(transport: tcp.Connection) -> bytes:
    """What the transport was given, and the kernel has not taken."""
    buffered: Any = transport
    rest: bytes = buffered.dataBuffer[buffered.offset :]
    return rest + b"".join(buffered._tempDataBuffer)  # noqa: SLF001


def adopt(reactor: Any, descriptor: int, protocol: IProtocol) -> Any:
    """A transport for a connected socket, which belongs to it from now on. The protocol is not told yet."""
    taken = socket.socket(fileno=descriptor)
    taken.setblocking(False)
    peer: Any = _NOBODY
    with suppress(OSError):
        peer = taken.getpeername()
    kind: Any = unix.Server if taken.family == socket.AF_UNIX else tcp.Server
    transport = kind(taken, protocol, peer, None, 0, reactor)
    transport.repstr = f"<{type(protocol).__name__} on descriptor {descriptor}>"
    return transport

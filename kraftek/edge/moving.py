"""Connections of clients that pass from one version of the gateway to another, in the same process.

Made by :mod:`kraftek.daemon.assembly`, called by :mod:`kraftek.daemon.upgrade`. What passes is a WebSocket over plain
TCP or a Unix socket, with or without Engine.IO. The others stay: TLS that ends here, long-polling, and HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kraftek.contract.interfaces import IClientLink, IDialect, IMovableLink, IReceiver
from kraftek.edge.engineio.clients import EngineClient, EngineClients
from kraftek.edge.engineio.moving import MovableEngine
from kraftek.edge.engineio.moving import decode as decode_engine
from kraftek.edge.engineio.moving import restore as restore_engine
from kraftek.edge.sockets import adopt
from kraftek.edge.websocket.factory import ClientFactory
from kraftek.edge.websocket.moving import decode, reopen
from kraftek.edge.websocket.outbox import Outbox

__all__ = ["EdgeMove", "Open"]

Open = Callable[[IClientLink, IDialect], IReceiver]
"""The session that the client of this link has."""


class EdgeMove:
    """Gives and takes. ``speaks``: what speaks on top of Engine.IO, of what it gave and of what opens sessions;
    ``None`` without Socket.IO.
    """

    def __init__(
        self,
        clients: ClientFactory,
        engine_clients: EngineClients,
        speaks: Callable[[EngineClient, tuple[bytes, Open]], IReceiver] | None,
    ) -> None:
        self._clients = clients
        self._engine_clients = engine_clients
        self._speaks = speaks

    def freezes(self, freezing: bool) -> None:
        """Whether connections are about to be frozen: none begins with another message then."""
        self._clients.freezing = freezing

    @property
    def others(self) -> int:
        """Connections that are no WebSockets."""
        return self._clients.connections.count - int(self._clients.countConnections)

    def movable(self, link: IClientLink) -> IMovableLink | None:
        """What is handed over of it, if it can be."""
        found: Any = MovableEngine(link) if isinstance(link, EngineClient) else link
        return found if IMovableLink.providedBy(found) and found.movable else None

    def restore(self, descriptor: int, given: bytes, open: Open) -> IMovableLink:
        """Go on with a connection that another version has given: frozen, until it is told to thaw."""
        state, clients = decode(given), self._clients
        if state.engine is not None and self._speaks is None:
            raise ValueError("there is a Socket.IO client, and Socket.IO is off")
        protocol: Any = clients.buildProtocol(None)
        transport = adopt(clients.reactor, descriptor, protocol)
        if state.counted_as is not None:
            protocol.counted_as = state.counted_as
        clients.connections.restored(state.counted_as)
        protocol.makeConnection(transport)
        protocol.peer = state.peer
        protocol.message_limit = clients.limits.message_bytes
        if state.engine is not None:
            protocol.engine_sid = ""
            protocol.message_limit = self._engine_clients.settings.max_payload
        reopen(protocol, state.window_bits)
        protocol.freeze()
        if state.unread:
            protocol.unhandled.put_back(state.unread)
        outbox: Outbox = protocol.outbox
        outbox.restore(state)
        transport.registerProducer(outbox, True)
        if state.engine is None or self._speaks is None:
            clients.clients.add(state.peer)
            clients.heartbeat.restore(protocol, state.slot)
            protocol.session = open(outbox, clients.dialects[clients.default]())
        else:
            engine = decode_engine(state.engine)
            client, protocol.session = restore_engine(self._engine_clients, outbox, engine)
            client.open(self._speaks(client, (engine.receiver, open)))
        return outbox

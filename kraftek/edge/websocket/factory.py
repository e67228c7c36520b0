"""WebSocket clients: what is spoken with whom, and what each may do. Made by :mod:`kraftek.daemon.assembly`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet.interfaces import IReactorTime

from kraftek.contract.interfaces import IClientLink, IDialect, IReceiver
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import ROOM_ID_LENGTH, Authenticate, Token
from kraftek.contract.metrics import Counters, RefusalReason
from kraftek.contract.settings import Limits
from kraftek.contract.turns import Turns
from kraftek.edge.addresses import Addresses
from kraftek.edge.backlogs import Backlogs
from kraftek.edge.connections import Connections
from kraftek.edge.engineio.clients import EngineClients
from kraftek.edge.engineio.packets import EngineError, read_request
from kraftek.edge.http_responses import RefusedError
from kraftek.edge.http_server import SERVER, Request
from kraftek.edge.websocket.autobahn_internals import quickened
from kraftek.edge.websocket.closings import Closings
from kraftek.edge.websocket.deflate import accepted
from kraftek.edge.websocket.handshake import read_handshake
from kraftek.edge.websocket.heartbeat import Heartbeat
from kraftek.edge.websocket.protocol import ClientProtocol

__all__ = ["ClientFactory"]


class ClientFactory(WebSocketServerFactory):
    """Accepts WebSocket clients and opens a session for each.

    ``dialects`` has a function for each subprotocol that makes a dialect, in order of preference; the first is also
    used for clients that offer none. ``compression``: messages may be compressed. Engine.IO clients go to
    ``engine_clients``. ``fastpath``: override slow parts of Autobahn. ``closings`` are the closing handshakes in
    progress. ``connections`` counts all, and ``clients`` those of each address. ``backlogs``: what waits for clients
    that do not read.

    It listens nowhere: handshakes come from :mod:`kraftek.edge.public_site`.
    """

    protocol: Any = ClientProtocol
    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        open_session: Callable[[IClientLink, IDialect, Authenticate | None], IReceiver],
        dialects: Mapping[str, Callable[[], IDialect]],
        *,
        limits: Limits,
        backlogs: Backlogs,
        connections: Connections,
        clients: Addresses,
        iteration: Iteration,
        turns: Turns,
        counters: Counters,
        compression: bool = False,
        engine_clients: EngineClients | None = None,
        fastpath: bool = True,
    ) -> None:
        super().__init__(reactor=reactor, server=SERVER)
        self.open_session = open_session
        self.dialects = dialects
        self.limits = limits
        self.backlogs = backlogs
        self.connections = connections
        self.clients = clients
        self.iteration = iteration
        self.turns = turns
        self.counters = counters
        self.heartbeat = Heartbeat(reactor, limits.ping_interval, limits.ping_timeout)
        self.closings = Closings()
        # Another version is about to go on with all connections: none is to begin with another message.
        self.freezing = False
        self.default = next(iter(dialects))
        self._compression = compression
        self._engine_clients = engine_clients
        self.setProtocolOptions(
            failByDrop=False,
            # A client may not hold the closing handshake open. A second more than is meant: Autobahn's timers (txaio's
            # batched ones) go off up to a second early, and that cut off close codes just written.
            closeHandshakeTimeout=2.0,
            openHandshakeTimeout=0,  # it is over before Autobahn is asked
        )
        if fastpath:
            self.protocol = quickened(ClientProtocol, self)

    def accept(self, request: Request, address: str, *, engine: bool) -> None:
        """Answer a handshake of a client that counts for ``address``; ``engine``: for Engine.IO.

        Raises :class:`RefusedError`.
        """
        handshake = read_handshake(request)
        sid = credentials = None
        if engine:
            sid = self._engine_sid(request)
            # Of these clients some fail when their subprotocol is not confirmed, whatever it is.
            subprotocol = next((name for name in handshake.subprotocols if name.isascii()), None)
        else:
            subprotocol = self._chosen(handshake.subprotocols)
            credentials = _credentials(request)
        # One that changes over from polling counts already.
        if not sid and self.clients.full(address):
            raise RefusedError(429, RefusalReason.ADDRESS, "too many connections from this address")
        protocol: Any = self.buildProtocol(None)
        if (counted_as := request.channel.counted_as) is not None:
            protocol.counted_as = counted_as
        request.switch(protocol)
        protocol.peer = address
        protocol.credentials = credentials
        protocol.message_limit = self.limits.message_bytes
        if engine and self._engine_clients is not None:
            # It counts, has a heartbeat, and its own size of messages there.
            protocol.engine_sid = sid
            protocol.message_limit = self._engine_clients.settings.max_payload
        protocol.begin(handshake.key, subprotocol, accepted(handshake.extensions) if self._compression else None)

    def opened(self, protocol: ClientProtocol) -> IReceiver | None:
        """The handshake is done: forget what it was made of, and open a session."""
        subprotocol = protocol.websocket_protocol_in_use or self.default
        credentials: Authenticate | None = protocol.credentials
        protocol.credentials = None
        protocol.forget_handshake()
        protocol.transport.registerProducer(protocol.outbox, True)
        if protocol.engine_sid is not None and self._engine_clients is not None:
            return self._engine_clients.connect(protocol.engine_sid or None, protocol.outbox)
        self.clients.add(protocol.outbox.peer)
        self.heartbeat.add(protocol)
        return self.open_session(protocol.outbox, self.dialects[subprotocol](), credentials)

    def closed(self, protocol: ClientProtocol) -> None:
        """The connection was lost."""
        self.closings.end(protocol)
        self.connections.closed(protocol.counted_as)
        if protocol.slot >= 0:
            self.heartbeat.remove(protocol)
            self.clients.remove(protocol.outbox.peer)

    def _chosen(self, offered: tuple[str, ...]) -> str | None:
        """The subprotocol to speak, ``None`` with clients that offer none. Raises :class:`RefusedError`."""
        chosen = next((name for name in self.dialects if name in offered), None)
        if chosen is None and offered:
            expected = f"no common subprotocol, expected one of {', '.join(self.dialects)}"
            raise RefusedError(400, RefusalReason.SUBPROTOCOL, expected)
        return chosen

    def _engine_sid(self, request: Request) -> str:
        """The Engine.IO session that a WebSocket is for, empty for a new one. Raises :class:`RefusedError`."""
        assert self._engine_clients is not None
        try:
            sid = read_request("GET", request.query, websocket=True)
            if sid is not None:
                self._engine_clients.find(sid)
        except EngineError as error:
            raise RefusedError(error.status, RefusalReason.HANDSHAKE, str(error), json=error.body) from None
        return sid or ""


def _credentials(request: Request) -> Authenticate | None:
    query = request.query
    kind, _, token = (request.header("authorization") or "").partition(" ")
    if kind.lower() != "bearer":
        token = query.get("token", "")
    if not token.strip():
        return None
    room_id = query.get("roomId") or None
    if room_id is not None and len(room_id) > ROOM_ID_LENGTH:
        expected = f"roomId: expected at most {ROOM_ID_LENGTH} characters"
        raise RefusedError(400, RefusalReason.HANDSHAKE, expected)
    return Authenticate(Token(token.strip()), room_id)

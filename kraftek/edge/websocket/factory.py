"""WebSocket clients: what is spoken with whom, and what each may do. Made by :mod:`kraftek.daemon.assembly`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from resource import RLIMIT_NOFILE, getrlimit
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet.interfaces import IReactorTime

from kraftek.contract.interfaces import IClientLink, IDialect, IReceiver
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import ROOM_ID_LENGTH, Authenticate, Token
from kraftek.contract.metrics import Counters, RefusalReason
from kraftek.contract.settings import Limits
from kraftek.edge.addresses import Addresses
from kraftek.edge.engineio.clients import EngineClients
from kraftek.edge.engineio.packets import EngineError, read_request
from kraftek.edge.http_server import SERVER, RefusedError, Request
from kraftek.edge.websocket.autobahn_internals import quickened
from kraftek.edge.websocket.closings import Closings
from kraftek.edge.websocket.deflate import accepted
from kraftek.edge.websocket.handshake import read_handshake
from kraftek.edge.websocket.heartbeat import Heartbeat
from kraftek.edge.websocket.protocol import ClientProtocol

__all__ = ["ClientFactory", "max_connections"]

_OTHER_FILES = 64
"""Open files a process needs besides its clients' sockets: Redis, logs, the auth service."""


class ClientFactory(WebSocketServerFactory):
    """Accepts WebSocket clients and opens a session for each.

    ``dialects`` has a function for each subprotocol that makes a dialect, in order of preference; the first is also
    used for clients that offer none. ``compression``: messages may be compressed. Engine.IO clients go to
    ``engine_clients``. ``fastpath``: override slow parts of Autobahn. ``closings`` are the closing handshakes in
    progress.

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
        addresses: Addresses,
        iteration: Iteration,
        counters: Counters,
        compression: bool = False,
        engine_clients: EngineClients | None = None,
        fastpath: bool = True,
    ) -> None:
        super().__init__(reactor=reactor, server=SERVER)
        self.open_session = open_session
        self.dialects = dialects
        self.limits = limits
        self.addresses = addresses
        self.iteration = iteration
        self.counters = counters
        self.heartbeat = Heartbeat(reactor, limits.ping_interval, limits.ping_timeout)
        self.closings = Closings()
        self.max_connections = max_connections(limits)
        self._default = next(iter(dialects))
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
        if not sid and self.addresses.full(address):
            raise RefusedError(429, RefusalReason.ADDRESS, "too many connections from this address")
        protocol: Any = self.buildProtocol(None)
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
        subprotocol = protocol.websocket_protocol_in_use or self._default
        credentials: Authenticate | None = protocol.credentials
        protocol.credentials = None
        protocol.forget_handshake()
        protocol.transport.registerProducer(protocol.outbox, True)
        if protocol.engine_sid is not None and self._engine_clients is not None:
            return self._engine_clients.connect(protocol.engine_sid or None, protocol.outbox)
        protocol.counted_as = protocol.outbox.peer
        self.addresses.add(protocol.counted_as)
        self.heartbeat.add(protocol)
        return self.open_session(protocol.outbox, self.dialects[subprotocol](), credentials)

    def closed(self, protocol: ClientProtocol) -> None:
        """The connection was lost."""
        self.closings.end(protocol)
        address, protocol.counted_as = protocol.counted_as, None
        if address is not None:
            self.heartbeat.remove(protocol)
            self.addresses.remove(address)

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


def max_connections(limits: Limits) -> int:
    """How many clients this process may have."""
    return limits.connections or max(1, getrlimit(RLIMIT_NOFILE)[0] - _OTHER_FILES)


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

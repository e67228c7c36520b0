"""The public port's factory: connections, their limits, and the handshake. Made by :mod:`kraftek.daemon.assembly`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from resource import RLIMIT_NOFILE, getrlimit
from typing import TYPE_CHECKING, Any

from autobahn.twisted.websocket import WebSocketServerFactory
from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.interfaces import IProtocolFactory, IReactorTime

from kraftek.contract.interfaces import IClientLink, IDialect, IReceiver
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import ROOM_ID_LENGTH, Authenticate, Token
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Limits
from kraftek.edge.addresses import Addresses
from kraftek.edge.engineio.clients import EngineClients
from kraftek.edge.engineio.packets import EngineError, read_request
from kraftek.edge.origins import Origins
from kraftek.edge.websocket.autobahn_internals import bounds_inflation, quickened
from kraftek.edge.websocket.closings import Closings
from kraftek.edge.websocket.heartbeat import Heartbeat
from kraftek.edge.websocket.protocol import ClientProtocol

if TYPE_CHECKING:
    from twisted.internet.interfaces import IAddress

__all__ = ["ClientFactory", "max_connections"]

_UPGRADE = re.compile(rb"\r\nupgrade:[^\r]*websocket", re.IGNORECASE)

_OTHER_FILES = 64
"""Open files a process needs besides its clients' sockets: Redis, logs, the auth service."""


class ClientFactory(WebSocketServerFactory):
    """Accepts WebSocket clients and opens a session for each; plain HTTP requests go to the factory ``http``.

    ``dialects`` gives what makes a dialect for each subprotocol, in order of preference; the first is also spoken with
    clients that offer none. ``compression``: messages may be compressed. Whoever asks for ``engine_path`` speaks
    Engine.IO, and is one of ``engine_clients``. ``fastpath``: what is slow about Autobahn is overridden.
    ``closings`` are the closing handshakes under way.
    """

    protocol: Any = ClientProtocol
    noisy = False

    def __init__(
        self,
        reactor: IReactorTime,
        open_session: Callable[[IClientLink, IDialect, Authenticate | None], IReceiver],
        dialects: Mapping[str, Callable[[], IDialect]],
        http: IProtocolFactory,
        *,
        limits: Limits,
        origins: Origins,
        addresses: Addresses,
        iteration: Iteration,
        counters: Counters,
        compression: bool = False,
        engine_path: str = "",
        engine_clients: EngineClients | None = None,
        fastpath: bool = True,
    ) -> None:
        super().__init__(reactor=reactor, server="kraftek-gateway")
        self.open_session = open_session
        self.dialects = dialects
        self.http = http
        self.limits = limits
        self.origins = origins
        self.addresses = addresses
        self.iteration = iteration
        self.counters = counters
        self.heartbeat = Heartbeat(reactor, limits.ping_interval, limits.ping_timeout)
        self.closings = Closings()
        self.max_connections = max_connections(limits)
        self._default = next(iter(dialects))
        self._turned_away = ""
        self._engine_path = engine_path
        self._engine_clients = engine_clients
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            failByDrop=False,
            # A client may not hold the handshake open, nor the closing one. A second more than is meant: Autobahn's
            # timers (txaio's batched ones) go off up to a second early, and that cut off close codes just written.
            openHandshakeTimeout=limits.handshake_timeout + 1.0,
            closeHandshakeTimeout=2.0,
            maxMessagePayloadSize=limits.message_bytes,
            maxFramePayloadSize=limits.message_bytes,
            allowedOrigins=["*"],
            allowNullOrigin=True,
            perMessageCompressionAccept=_accept_deflate if compression and bounds_inflation() else None,
        )
        if fastpath:
            self.protocol = quickened(ClientProtocol, self)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        # Connections that are over the limit by so much are not even told.
        if self.countConnections >= self.max_connections + _OTHER_FILES // 2:
            self.counters.connections_refused += 1
            return None
        return super().buildProtocol(addr)

    def turn_away(self, reason: str) -> None:
        """Refuse whoever comes from now on, with 503 and this reason: the process stops."""
        self._turned_away = reason
        if self._engine_clients is not None:
            self._engine_clients.turn_away(reason)

    def is_plain_http(self, head: bytes) -> bool:
        """Whether this request asks for anything but a WebSocket."""
        return _UPGRADE.search(head) is None

    def admit(self, protocol: ClientProtocol, request: ConnectionRequest) -> str | None:
        """The subprotocol to speak, ``None`` for a client that offers none. Raises ``ConnectionDeny``."""
        headers: dict[str, str] = request.headers
        if not self.origins.allow(headers.get("origin"), headers.get("host", "")):
            raise ConnectionDeny(403, "origin not allowed")
        if self._turned_away:
            raise ConnectionDeny(503, self._turned_away)
        if self.countConnections > self.max_connections:
            raise ConnectionDeny(503, "too many connections")
        if self._engine_clients is not None and request.path == self._engine_path:
            protocol.engine_sid = _engine_sid(self._engine_clients, request)
        address = self.addresses.of(protocol.transport.getPeer(), headers.get("x-forwarded-for", ""))
        protocol.peer = address
        # One that changes over from polling counts already.
        if not protocol.engine_sid and self.addresses.full(address):
            raise ConnectionDeny(429, "too many connections from this address")
        if protocol.engine_sid is not None:
            return None
        offered = [name for name in request.protocols if name]
        chosen = next((name for name in self.dialects if name in offered), None)
        if chosen is None and offered:
            raise ConnectionDeny(400, f"no common subprotocol, expected one of {', '.join(self.dialects)}")
        protocol.credentials = _credentials(request)
        return chosen

    def opened(self, protocol: ClientProtocol) -> IReceiver | None:
        """The handshake is done: forget what it was made of, and open a session."""
        subprotocol = protocol.websocket_protocol_in_use or self._default
        credentials: Authenticate | None = protocol.credentials
        protocol.credentials = None
        protocol.forget_handshake()
        protocol.transport.registerProducer(protocol.outbox, True)
        if protocol.engine_sid is not None and self._engine_clients is not None:
            # It counts, has a heartbeat, and its own size of messages there.
            protocol.maxMessagePayloadSize = protocol.maxFramePayloadSize = self._engine_clients.settings.max_payload
            return self._engine_clients.connect(protocol.engine_sid or None, protocol.outbox)
        protocol.counted_as = protocol.outbox.peer
        self.addresses.add(protocol.counted_as)
        self.heartbeat.add(protocol)
        return self.open_session(protocol.outbox, self.dialects[subprotocol](), credentials)

    def closed(self, protocol: ClientProtocol) -> None:
        """The connection is gone, or is none of ours."""
        self.closings.end(protocol)
        address, protocol.counted_as = protocol.counted_as, None
        if address is not None:
            self.heartbeat.remove(protocol)
            self.addresses.remove(address)


def max_connections(limits: Limits) -> int:
    """How many clients this process may have."""
    return limits.connections or max(1, getrlimit(RLIMIT_NOFILE)[0] - _OTHER_FILES)


def _accept_deflate(offers: Iterable[object]) -> PerMessageDeflateOfferAccept | None:
    """The first offer to compress (RFC 7692) that is one of permessage-deflate.

    Either side begins each message anew: nothing is kept from one to the next, and a message to a room is the same
    bytes for everybody.
    """
    deflate = next((offer for offer in offers if isinstance(offer, PerMessageDeflateOffer)), None)
    if deflate is None:
        return None
    return PerMessageDeflateOfferAccept(deflate, request_no_context_takeover=True, no_context_takeover=True)


def _engine_sid(clients: EngineClients, request: ConnectionRequest) -> str:
    """The Engine.IO session that a WebSocket is for, empty for a new one. Raises ``ConnectionDeny``."""
    query = {name: values[0] for name, values in request.params.items()}
    try:
        sid = read_request("GET", query, websocket=True)
        if sid is not None:
            clients.find(sid)
    except EngineError as error:
        raise ConnectionDeny(error.status, str(error)) from None
    return sid or ""


def _credentials(request: ConnectionRequest) -> Authenticate | None:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "bearer":
        token = request.params.get("token", [""])[0]
    if not token.strip():
        return None
    room_id: str | None = request.params.get("roomId", [None])[0]
    if room_id is not None and len(room_id) > ROOM_ID_LENGTH:
        raise ConnectionDeny(400, f"roomId: expected at most {ROOM_ID_LENGTH} characters")
    return Authenticate(Token(token.strip()), room_id)

"""The clients' port: WebSocket handshakes, Engine.IO's long-polling, the files of pages, and an answer to all other
requests. Made by :mod:`kraftek.daemon.assembly`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from msgspec import Struct
from msgspec.structs import replace
from twisted.internet.interfaces import IAddress, IReactorTime, ISSLTransport
from twisted.logger import Logger

from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.metrics import Counters, RefusalReason
from kraftek.contract.names import SUBPROTOCOL
from kraftek.contract.settings import Limits
from kraftek.edge.arrivals import Arrivals
from kraftek.edge.connections import Connections
from kraftek.edge.engineio.packets import EngineError, ErrorCode
from kraftek.edge.engineio.polling import Polling
from kraftek.edge.hosts import Hosts
from kraftek.edge.http_responses import RefusedError, Response, printable
from kraftek.edge.http_server import HttpChannel, HttpServer, Request
from kraftek.edge.origins import Origins, Verdict
from kraftek.edge.proxies import Proxies
from kraftek.edge.refusals import Refusals
from kraftek.edge.websocket.factory import ClientFactory
from kraftek.edge.websocket.handshake import asks_for_websocket

__all__ = ["Page", "PublicSite", "pages"]

_CLIENT = Path(__file__).parents[1] / "client/js/kraftek.js"
_CLIENT_PATH = b"/kraftek.js"
_HEALTH_PATH = b"/health"

_TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".mjs": b"text/javascript; charset=utf-8",
    ".rst": b"text/plain; charset=utf-8",
    ".svg": b"image/svg+xml",
}

_SECURITY = (
    (b"Content-Security-Policy", b"default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Referrer-Policy", b"no-referrer"),
)

_UPGRADE = Response(
    426,
    f"This is a WebSocket endpoint: connect with the subprotocol {SUBPROTOCOL}.\n".encode(),
    headers=((b"Upgrade", b"websocket"),),
)


_NOT_KEPT = ((b"Cache-Control", b"no-store"),)


class Page(Struct, frozen=True):
    """A file, in memory."""

    body: bytes
    content_type: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    tag: str

    def response(self, request: Request) -> Response:
        """What a GET or HEAD of it is answered."""
        headers = (*self.headers, (b"Cache-Control", b"no-cache"), (b"ETag", self.tag.encode()))
        known = request.tokens("if-none-match")
        if self.tag in known or f"W/{self.tag}" in known:  # a proxy that compresses weakens it
            return Response(304, headers=headers)
        return Response(200, self.body, self.content_type, headers)


def _page(file: Path, *headers: tuple[bytes, bytes]) -> Page:
    body = file.read_bytes()
    return Page(body, _TYPES[file.suffix], headers, f'"{sha256(body).hexdigest()[:32]}"')


def pages(directory: Path | None) -> dict[bytes, Page]:
    """The files of a directory by their paths, ``index.html`` as ``/`` too."""
    if directory is None:
        return {}
    files = (file for file in directory.rglob("*") if file.suffix in _TYPES)
    found = {f"/{file.relative_to(directory).as_posix()}".encode(): _page(file, *_SECURITY) for file in files}
    if b"/index.html" in found:
        found[b"/"] = found[b"/index.html"]
    return found


class PublicSite(HttpServer):
    """Passes WebSocket handshakes to ``websockets``; at the path of ``polling`` clients use Engine.IO, with either
    transport. ``files`` are those of the demo.
    ``ready``: what ``/health`` says.

    Pages of other origins than ``origins`` get neither.

    All ``connections`` count from accept on, for their address too. Behind proxies that is known when the head of a
    request has arrived, and it counts until the answer: between requests the connection counts for no address.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        *,
        hosts: Hosts,
        origins: Origins,
        proxies: Proxies,
        limits: Limits,
        counters: Counters,
        connections: Connections,
        websockets: ClientFactory,
        polling: Polling | None = None,
        files: Mapping[bytes, Page] = {},
    ) -> None:
        super().__init__(
            clock,
            hosts,
            head_timeout=limits.handshake_timeout,
            request_timeout=limits.request_timeout,
            max_body=polling.max_body if polling is not None else 0,
        )
        self.origins = origins
        self._proxies = proxies
        self._counters = counters
        self._websockets = websockets
        self.turns = websockets.turns
        self._polling = polling
        self._pages = {**files, _CLIENT_PATH: _page(_CLIENT, *_FOR_EVERY_PAGE)}
        self._connections = connections
        self.ready: Callable[[], bool] = lambda: True
        self._refusals = Refusals(clock)
        self.arrivals = Arrivals(clock, limits, reported=proxies.in_between)
        # When the address is known that a connection counts for, if it counts for any.
        self._at_accept = limits.connections_per_address > 0 and not proxies.in_between
        self._at_head = limits.connections_per_address > 0 and proxies.in_between
        self._turned_away: tuple[RefusalReason, str] | None = None
        self._stops = False
        self._once_a_minute = OnceAMinute(clock.seconds)

    def turn_away(self, text: str, why: RefusalReason = RefusalReason.STOPPING) -> None:
        """Let no new client in from now on, and answer 503 with this text; with an empty one let them in again, unless
        the process stops. Then connections that a proxy keeps for its next requests are closed, so that it sends these
        elsewhere.
        """
        if self._stops:
            return
        self._turned_away = (why, text) if text else None
        if why is RefusalReason.STOPPING:
            self._stops = True
            self.deadlines.end_rests()
        if self._polling is not None:
            self._polling.turn_away(text, why)

    # What Twisted and the HTTP server call.

    def buildProtocol(self, addr: IAddress | None) -> Any:
        connections = self._connections
        if not self._at_accept:
            connections.opened()
            return super().buildProtocol(addr)
        address = self._proxies.address(addr, None)
        if connections.by_address.full(address):
            self._counters.connections_refused[RefusalReason.ADDRESS] += 1
            return self._refusals.refuse()
        connections.opened()
        channel: Any = super().buildProtocol(addr)
        self._count(channel, address)
        return channel

    def answered(self, channel: HttpChannel) -> None:
        if self._stops:
            channel.persistent = False
        if self._at_head and channel.counted_as is not None:
            self._connections.by_address.remove(channel.counted_as)
            channel.counted_as = None

    def lost(self, channel: HttpChannel) -> None:
        self._connections.closed(channel.counted_as)

    def refuse_head(self, request: Request) -> Response | None:
        if not self._at_head:
            return None
        address = self._address(request)
        if self._connections.by_address.full(address):
            self._counters.connections_refused[RefusalReason.ADDRESS] += 1
            return Response(429, b"too many connections from this address\n")
        self._count(request.channel, address)
        return None

    def refuse_body(self, request: Request) -> Response | None:
        if asks_for_websocket(request):
            self._counters.connections_refused[RefusalReason.HANDSHAKE] += 1
            return Response(400, b"expected a handshake without a body\n")
        return None

    def expect(self, request: Request) -> None:
        if self._polling is not None and request.path in self._polling.paths and self._may_post(request):
            self._polling.expect(request)

    def refuse_host(self, request: Request) -> Response:
        self._counters.connections_refused[RefusalReason.HOST] += 1
        return super().refuse_host(request)

    def headers(self, request: Request) -> Iterator[tuple[bytes, bytes]]:
        yield from super().headers(request)
        if self._stops:
            yield b"Connection", b"close"
        # The client for browsers any page may import: whom it may connect to is asked when it does.
        if request.path == _CLIENT_PATH:
            return
        yield b"Vary", b"Origin"
        verdict = self._verdict(request)
        if verdict is Verdict.ANYBODY:
            yield b"Access-Control-Allow-Origin", b"*"
        elif verdict is Verdict.NAMED and (origin := request.header("origin")):
            yield b"Access-Control-Allow-Origin", origin.encode("latin-1")
            yield b"Access-Control-Allow-Credentials", b"true"

    def respond(self, request: Request) -> None:
        engine = self._polling is not None and request.path in self._polling.paths
        handshake = asks_for_websocket(request)
        try:
            if handshake:
                self._upgrade(request, engine=engine)
            elif engine:
                self._poll(request)
            else:
                self._answer_page(request)
        except RefusedError as refusal:
            self._counters.connections_refused[refusal.reason] += 1
            request.answer(replace(refusal.response, closes=handshake))

    def _count(self, channel: HttpChannel, address: str) -> None:
        self._connections.by_address.add(address)
        channel.counted_as = address

    def _upgrade(self, request: Request, *, engine: bool) -> None:
        if not (engine and request.query.get("sid")):
            self.arrivals.charge(self._address(request), engine=engine)
        if request.take_rest():
            raise RefusedError(400, RefusalReason.HANDSHAKE, "expected nothing before the answer to the handshake")
        self._check_origin(request, engine=engine)
        if self._turned_away is not None:
            raise RefusedError(503, *self._turned_away)
        self._websockets.accept(request, self._address(request), engine=engine)

    def _poll(self, request: Request) -> None:
        if not request.query.get("sid"):
            self.arrivals.charge(self._address(request), engine=True)
        self._check_origin(request, engine=True)
        assert self._polling is not None
        self._polling.respond(request, self._address(request))

    def _answer_page(self, request: Request) -> None:
        if request.path == _HEALTH_PATH and request.method in (b"GET", b"HEAD"):
            status, body = (200, b"ready\n") if self.ready() else (503, b"not ready\n")
            request.answer(Response(status, body, headers=_NOT_KEPT))
            return
        page = self._pages.get(unquote_to_bytes(request.path))
        if page is None:
            # Without files there is nothing but the WebSocket, wherever one asks.
            request.answer(_UPGRADE if len(self._pages) == 1 else Response(404, b"not found\n"))
        elif request.method not in (b"GET", b"HEAD"):
            request.answer(Response(405, b"expected GET\n", headers=((b"Allow", b"GET, HEAD"),)))
        else:
            request.answer(page.response(request))

    def _may_post(self, request: Request) -> bool:
        return self.hosts.allow(request.host_name) and self._verdict(request) is not Verdict.REFUSED

    def _address(self, request: Request) -> str:
        return self._proxies.address(request.getClientAddress(), request.header("x-forwarded-for"))

    def _scheme(self, request: Request) -> str | None:
        secure = ISSLTransport.providedBy(request.channel.transport)
        return self._proxies.scheme(request.header("x-forwarded-proto"), secure=secure)

    def _verdict(self, request: Request) -> Verdict:
        return self.origins.judge(request.header("origin") or "", request.host_name, self._scheme(request))

    def _check_origin(self, request: Request, *, engine: bool) -> None:
        if self._verdict(request) is not Verdict.REFUSED:
            return
        origin = printable(request.header("origin") or "")
        scheme = self._scheme(request)
        where = f"{scheme}://" * bool(scheme) + (printable(request.host_name) or "no host")
        self._once_a_minute(
            self._log.warn,
            "The origin {origin} was refused at {where} (logged once a minute): if its pages may connect, name it in "
            '"origins" of the configuration',
            origin=origin,
            where=where,
        )
        text = f'The origin {origin} may not connect to {where}: name it in "origins" of the gateway\'s configuration'
        json = EngineError(ErrorCode.FORBIDDEN, text).body if engine else None
        raise RefusedError(403, RefusalReason.ORIGIN, text, json=json)


_FOR_EVERY_PAGE = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"Access-Control-Allow-Origin", b"*"),
    (b"Cross-Origin-Resource-Policy", b"cross-origin"),
)

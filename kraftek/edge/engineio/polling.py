"""HTTP long-polling for the clients of :mod:`kraftek.edge.engineio.clients`: a GET that is held until there is
something to say, and POSTs. Served by :mod:`kraftek.edge.public_site`; the rules are
https://github.com/socketio/engine.io-protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any, cast

from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from kraftek.edge.addresses import Addresses
from kraftek.edge.engineio.clients import EngineClients
from kraftek.edge.engineio.packets import EngineError, ErrorCode, read_request
from kraftek.edge.origins import Origins

__all__ = ["BoundedRequest", "Polling"]

_TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

_CORS = {
    b"Access-Control-Allow-Credentials": b"true",
    b"Access-Control-Allow-Methods": b"GET, POST, OPTIONS",
    b"Access-Control-Max-Age": b"600",
    b"Vary": b"Origin",
}


class BoundedRequest(Request):
    """A request whose body is not read when it is larger than its site's ``max_body`` bytes."""

    content: Any
    channel: Any
    _refused = False

    def gotLength(self, length: int | None) -> None:
        # Twisted's own would write a body of 100 kB to a file, and wait for the disk.
        self.content = BytesIO()
        if length is not None and length > self._max_body():
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        if not self._refused:
            if self.content.tell() + len(data) > self._max_body():
                self._refuse()
            else:
                super().handleContentChunk(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if not self._refused:
            super().requestReceived(command, path, version)

    def _max_body(self) -> int:
        max_body: int = self.channel.site.max_body
        return max_body

    def _refuse(self) -> None:
        # Twisted has the body read to its end before anybody may answer.
        self._refused = True
        self.channel.transport.write(_TOO_LARGE)
        self.channel.loseConnection()


class Polling(Resource):
    """The resource at ``path``."""

    isLeaf = True

    def __init__(self, path: str, clients: EngineClients, origins: Origins, addresses: Addresses) -> None:
        super().__init__()
        self.path = path.encode()
        self.max_body = clients.settings.max_payload
        self._clients = clients
        self._origins = origins
        self._addresses = addresses

    def render(self, request: Request) -> Any:
        request.setHeader(b"Content-Type", b"text/plain; charset=UTF-8")
        request.setHeader(b"Cache-Control", b"no-store")
        request.setHeader(b"X-Content-Type-Options", b"nosniff")
        try:
            self._check_origin(request)
            if request.method == b"OPTIONS":
                return self._preflight(request)
            sid = read_request(_text(request.method), _query(request), websocket=False)
            if request.method == b"POST" and sid is not None:
                body = cast("BytesIO", request.content).read()
                self._clients.find(sid).post(body, _Answer(request).done)
            else:
                self._poll(request, sid)
        except EngineError as error:
            return _refusal(request, error.status, error.body)
        return NOT_DONE_YET

    def _poll(self, request: Request, sid: str | None) -> None:
        answer = _Answer(request)
        if sid is not None:
            client = self._clients.find(sid)
            client.poll(answer.finish)
        else:
            forwarded = ",".join(request.requestHeaders.getRawHeaders("X-Forwarded-For", ()))
            address = self._addresses.of(request.getClientAddress(), forwarded)
            client = self._clients.poll(address, answer.finish)
        answer.lost = client.poll_lost

    def _check_origin(self, request: Request) -> None:
        origin = request.getHeader(b"Origin")
        if origin is None:
            return
        if not self._origins.allow(_text(origin), _text(request.getHeader(b"Host") or b"")):
            raise EngineError(ErrorCode.FORBIDDEN, "origin not allowed")
        request.setHeader(b"Access-Control-Allow-Origin", origin)
        for name, value in _CORS.items():
            request.setHeader(name, value)

    def _preflight(self, request: Request) -> bytes:
        asked = request.getHeader(b"Access-Control-Request-Headers")
        if asked is not None:
            request.setHeader(b"Access-Control-Allow-Headers", asked)
        request.setResponseCode(204)
        return b""


class _Answer:
    """The answer to a request, unless its connection goes away first: then ``lost`` is called."""

    def __init__(self, request: Request) -> None:
        self.lost: Callable[[], None] | None = None
        self._finished = False
        self._request = request
        request.notifyFinish().addErrback(self._gone)

    def finish(self, body: bytes | None) -> None:
        """Give it; ``None``: come back later."""
        if not self._finished:
            self._finished = True
            if body is None:
                # Nothing that comes on this connection would be answered any more.
                self._request.setResponseCode(503)
                self._request.setHeader(b"Connection", b"close")
                self._request.channel.persistent = False
                body = b""
            self._request.setHeader(b"Content-Length", b"%d" % len(body))
            self._request.write(body)
            self._request.finish()

    def done(self) -> None:
        """What a POST is answered."""
        self.finish(b"ok")

    def _gone(self, reason: Failure) -> None:
        if not self._finished:
            self._finished = True
            if self.lost is not None:
                self.lost()


def _refusal(request: Request, status: int, body: bytes) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", b"application/json")
    return body


def _query(request: Request) -> dict[str, str]:
    return {_text(name): _text(values[0]) for name, values in request.args.items()}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")

"""The plain HTTP requests of the public port: files that pages need, and a word for whoever came by mistake."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from twisted.internet.interfaces import IReactorTime
from twisted.web.http import CACHED
from twisted.web.resource import IResource, Resource
from twisted.web.server import Request, Site
from twisted.web.static import File

from kraftek.edge.engineio.polling import BoundedRequest, Polling

__all__ = ["public_site"]

_CLIENT = Path(__file__).parents[1] / "client/js/kraftek.js"

_SECURITY = {
    b"Content-Security-Policy": b"default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'",
    b"X-Content-Type-Options": b"nosniff",
    b"Referrer-Policy": b"no-referrer",
}


class _UpgradeRequired(Resource):
    isLeaf = True

    def render(self, request: Request) -> bytes:
        request.setResponseCode(426, b"Upgrade Required")
        request.setHeader(b"Upgrade", b"websocket")
        request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
        return b"This is a WebSocket endpoint: connect with the subprotocol kraftek.v1.json.\n"


class _Files(File):
    # The type of a module must not be left to the machine's mime.types. Set on the class, for each file makes the next.
    contentTypes = {**File.contentTypes, ".js": "text/javascript", ".mjs": "text/javascript"}  # noqa: RUF012

    def directoryListing(self) -> Resource:
        return self.childNotFound

    def render(self, request: Request) -> bytes | int:
        for name, value in _SECURITY.items():
            request.setHeader(name, value)
        request.setHeader(b"Cache-Control", b"no-cache")
        answer: bytes | int = super().render(request)
        return answer


class _Client(Resource):
    """The client for browsers, which pages of any origin may import: whom they may connect to is asked elsewhere."""

    isLeaf = True
    path = b"/kraftek.js"

    def __init__(self) -> None:
        super().__init__()
        self._module = _CLIENT.read_bytes()
        self._tag = b'"%s"' % sha256(self._module).hexdigest()[:32].encode()

    def render_GET(self, request: Request) -> bytes:
        request.setHeader(b"Content-Type", b"text/javascript; charset=utf-8")
        request.setHeader(b"X-Content-Type-Options", b"nosniff")
        request.setHeader(b"Access-Control-Allow-Origin", b"*")
        request.setHeader(b"Cross-Origin-Resource-Policy", b"cross-origin")
        request.setHeader(b"Cache-Control", b"no-cache")
        return b"" if request.setETag(self._tag) is CACHED else self._module


class _PublicSite(Site):
    noisy = False
    requestFactory = BoundedRequest

    def __init__(self, root: Resource, polling: Polling | None, **options: object) -> None:
        super().__init__(root, **options)
        self._polling = polling
        self._client = _Client()
        self.max_body = polling.max_body if polling is not None else 0

    def getResourceFor(self, request: Request) -> IResource:
        if self._polling is not None and request.path == self._polling.path:
            return self._polling
        if request.path == _Client.path:
            return self._client
        resource: IResource = super().getResourceFor(request)
        return resource

    def log(self, request: object) -> None:
        """No access log: its lines would hold the query, and that may hold a token."""


def public_site(reactor: IReactorTime, files: Path | None, polling: Polling | None = None) -> Site:
    """The site of the public port: ``polling`` at its path, the client for browsers at ``/kraftek.js``, ``files`` at
    ``/`` when given, otherwise a mere hint.
    """
    root: Resource = _UpgradeRequired()
    if files is not None:
        root = _Files(str(files))
    return _PublicSite(root, polling, reactor=reactor)

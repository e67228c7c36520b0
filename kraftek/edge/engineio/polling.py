"""HTTP long-polling for the clients of :mod:`kraftek.edge.engineio.clients`: a GET that is held until there is
something to say, and POSTs. Served by :mod:`kraftek.edge.public_site`; the rules are
https://github.com/socketio/engine.io-protocol.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.python.failure import Failure

from kraftek.contract.metrics import RefusalReason
from kraftek.edge.engineio.clients import EngineClients
from kraftek.edge.engineio.packets import EngineError, read_request
from kraftek.edge.http_server import Request, Response

__all__ = ["Polling"]

_HEADERS = (
    (b"Cache-Control", b"no-store"),
    (b"X-Content-Type-Options", b"nosniff"),
)

_METHODS = (
    (b"Access-Control-Allow-Methods", b"GET, POST, OPTIONS"),
    (b"Access-Control-Max-Age", b"600"),
)


class Polling:
    """What is served at ``paths``: the one that is configured, and that without its slash at the end, which clients ask
    for whose ``addTrailingSlash`` is off. ``max_body``: bytes of a POST.
    """

    def __init__(self, path: str, clients: EngineClients) -> None:
        self.paths = frozenset((path.encode(), path.rstrip("/").encode()))
        self.max_body = clients.settings.max_payload
        self._clients = clients

    def turn_away(self, text: str, why: RefusalReason) -> None:
        """As :meth:`EngineClients.turn_away`."""
        self._clients.turn_away(text, why)

    def expect(self, request: Request) -> None:
        """The head of a request with a body has arrived. Until the body has, its session accepts no other POST."""
        try:
            sid = read_request(request.method.decode("latin-1"), request.query, websocket=False)
            if request.method == b"POST" and sid is not None:
                request.on_body = self._post(request, sid)
        except EngineError as error:
            refusal = _refusal(error)
            request.on_body = lambda: request.answer(refusal)

    def respond(self, request: Request, address: str) -> None:
        """Answer a request of a client at ``address``, now or later. Its origin may be here."""
        if request.method == b"OPTIONS":
            request.answer(_preflight(request))
            return
        try:
            sid = read_request(request.method.decode("latin-1"), request.query, websocket=False)
            if request.on_body is not None:
                request.on_body()
            elif request.method == b"POST" and sid is not None:
                self._post(request, sid)()
            else:
                self._poll(request, sid, address)
        except EngineError as error:
            request.answer(_refusal(error))

    def _post(self, request: Request, sid: str) -> Callable[[], None]:
        client, answer = self._clients.find(sid), _Answer(request)
        post = client.expect_post(answer.posted)
        answer.lost = client.post_lost
        request.on_chunk = post.add

        def on_body() -> None:
            answer.lost = None
            post.arrived()

        return on_body

    def _poll(self, request: Request, sid: str | None, address: str) -> None:
        answer = _Answer(request)
        if sid is not None:
            client = self._clients.find(sid)
            client.poll(answer.finish)
        else:
            client = self._clients.poll(address, answer.finish)
        answer.lost = client.poll_lost


class _Answer:
    """The answer to a request, unless its connection goes away first: then ``lost`` is called."""

    def __init__(self, request: Request) -> None:
        self.lost: Callable[[], None] | None = None
        self._request: Request | None = request  # until it is answered, or cannot be any more
        request.notifyFinish().addErrback(self._gone)

    def finish(self, body: bytes | None) -> None:
        """Give it; ``None``: come back later."""
        request, self._request = self._request, None
        if request is not None:
            # Where the process stops, nothing that comes on this connection would be answered any more.
            status, closes = (200, False) if body is not None else (503, True)
            request.answer(Response(status, body or b"", headers=_HEADERS, closes=closes))

    def posted(self, error: EngineError | None) -> None:
        """What a POST is answered."""
        if error is None:
            self.finish(b"ok")
            return
        request, self._request = self._request, None
        if request is not None:
            if self.lost is None:
                request.answer(_refusal(error))
            else:
                request.refuse(_refusal(error))

    def _gone(self, reason: Failure) -> None:
        request, self._request = self._request, None
        if request is not None and self.lost is not None:
            self.lost()


def _refusal(error: EngineError) -> Response:
    return Response(error.status, error.body, b"application/json", _HEADERS)


def _preflight(request: Request) -> Response:
    asked = request.header("access-control-request-headers")
    headers = () if asked is None else ((b"Access-Control-Allow-Headers", asked.encode("latin-1")),)
    return Response(204, headers=(*_HEADERS, *_METHODS, *headers))

"""HTTP long-polling for the clients of :mod:`kraftek.edge.engineio.clients`: a GET that is held until there is
something to say, and POSTs. Served by :mod:`kraftek.edge.public_site`; the rules are
https://github.com/socketio/engine.io-protocol.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.python.failure import Failure

from kraftek.contract.accounts import Accounts
from kraftek.contract.metrics import RefusalReason
from kraftek.edge.backlogs import IN_TRANSPORT
from kraftek.edge.engineio.clients import EngineClients
from kraftek.edge.engineio.packets import EngineError, read_request
from kraftek.edge.http_responses import Response
from kraftek.edge.http_server import Request

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
        client, answer = self._clients.find(sid), self._answer(request)
        post = client.expect_post(answer.posted)
        answer.lost = client.post_lost
        request.on_chunk = post.add

        def on_body() -> None:
            answer.lost = None
            post.arrived()

        return on_body

    def _poll(self, request: Request, sid: str | None, address: str) -> None:
        answer = self._answer(request)
        if sid is not None:
            client = self._clients.find(sid)
            client.poll(answer.finish)
        else:
            client = self._clients.poll(address, answer.finish)
        answer.lost, answer.progress = client.poll_lost, client.poll_progress

    def _answer(self, request: Request) -> _Answer:
        return _Answer(request, self._clients.backlogs.accounts)


class _Answer:
    """The answer to a request, unless its connection goes away first: then ``lost`` is called.

    A large one is in the account as long as the transport has not been given all of it: ``left`` are the bytes that it
    has not, and ``progress`` is called when they have become fewer.
    """

    def __init__(self, request: Request, accounts: Accounts) -> None:
        self.lost: Callable[[], None] | None = None
        self.progress: Callable[[], None] | None = None
        self.left = 0
        self._accounts = accounts
        self._counted = 0
        self._request: Request | None = request  # until it has its answer, or cannot have any
        request.notifyFinish().addErrback(self._gone)

    def finish(self, body: bytes | None) -> _Answer | None:
        """Give it; ``None``: come back later. Returns itself as long as some of it is left."""
        request, self._request = self._request, None
        if request is None:
            return None
        # Where the process stops, nothing that comes on this connection would be answered any more.
        status, closes = (200, False) if body is not None else (503, True)
        request.answer(Response(status, body or b"", headers=_HEADERS, closes=closes))
        if not request.unwritten:
            return None
        self._request = request
        self._keep(request.unwritten)
        request.on_progress = self._progressed
        return self

    def abort(self) -> None:
        """Drop what is left of it, and the connection."""
        request, self._request = self._request, None
        self._keep(0)
        if request is not None:
            request.abort()

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
        self._keep(0)
        if request is not None and self.lost is not None:
            self.lost()

    def _progressed(self) -> None:
        request = self._request
        if request is None:
            return
        self._keep(request.unwritten)
        if not self.left:
            self._request = None
        if self.progress is not None:
            self.progress()

    def _keep(self, left: int) -> None:
        """So much of it is left, in the account, and what the transport has."""
        counted = left + IN_TRANSPORT if left else 0
        self._accounts.unsent += counted - self._counted
        self.left, self._counted = left, counted


def _refusal(error: EngineError) -> Response:
    return Response(error.status, error.body, b"application/json", _HEADERS)


def _preflight(request: Request) -> Response:
    asked = request.header("access-control-request-headers")
    headers = () if asked is None else ((b"Access-Control-Allow-Headers", asked.encode("latin-1")),)
    return Response(204, headers=(*_HEADERS, *_METHODS, *headers))

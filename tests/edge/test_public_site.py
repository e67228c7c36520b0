"""The plain HTTP requests of the public port, over real sockets."""

from __future__ import annotations

from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

import kraftek
from kraftek.edge.public_site import public_site

CLIENT = Path(kraftek.__file__).parent / "client/js/kraftek.js"
CSP = "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'"


class Response:
    """What came back for one request."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        self.status = int(status.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


class OneRequest(Protocol):
    """Sends a request as it stands, and collects what comes until the other side closes."""

    def __init__(self, request: bytes) -> None:
        self.request = request
        self.data = b""
        self.done: Deferred[Response] = Deferred()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self.request)

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.done.callback(Response(self.data))


class HandedOver(Factory):
    """Hands every connection to the site as the WebSocket edge does: it is never started."""

    noisy = False

    def __init__(self, site: Site) -> None:
        self.site = site

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        protocol: Protocol | None = self.site.buildProtocol(addr)
        return protocol


class SiteCase(TestCase):
    """``serve`` a directory, or nothing, and ``ask`` for something."""

    timeout = 20
    port: IListeningPort

    async def serve(self, files: Path | None, polling: Any = None) -> None:
        factory = HandedOver(public_site(reactor, files, polling))
        self.port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
        self.addCleanup(self.port.stopListening)

    async def ask(self, path: str, method: str = "GET", headers: str = "", body: str = "") -> Response:
        address = self.port.getHost()
        assert isinstance(address, IPv4Address)
        request = f"{method} {path} HTTP/1.1\r\nHost: gateway.test\r\nConnection: close\r\n{headers}\r\n{body}"
        client = OneRequest(request.encode())
        await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", address.port), client)
        return await client.done


class NothingButAHintTest(SiteCase):
    async def test_every_request_is_told_to_upgrade(self) -> None:
        await self.serve(None)
        for method, path in [("GET", "/"), ("GET", "/board/index.html?x=1"), ("DELETE", "/x")]:
            response = await self.ask(path, method)
            assert response.status == 426, (method, path)
            assert response.headers["upgrade"] == "websocket"
            assert response.headers["content-type"] == "text/plain; charset=utf-8"
            assert b"kraftek.v1.json" in response.body

    async def test_a_body_that_nobody_reads_is_refused_before_it_arrives(self) -> None:
        await self.serve(None)
        assert (await self.ask("/", "POST", "Content-Length: 1000000000\r\n")).status == 413
        chunked = "Transfer-Encoding: chunked\r\n"
        assert (await self.ask("/", "POST", chunked, "5\r\nhello\r\n")).status == 413
        assert (await self.ask("/", "POST", "Content-Length: 0\r\n")).status == 426

    async def test_head_has_no_body(self) -> None:
        await self.serve(None)
        response = await self.ask("/", "HEAD")
        assert (response.status, response.body) == (426, b"")


class Echo(Resource):
    """Stands where long-polling does: at its path, and with its bound for bodies."""

    isLeaf = True
    path = b"/socket.io/"
    max_body = 10

    def render(self, request: Request) -> bytes:
        assert request.content is not None
        body: bytes = request.content.read()
        return b"polled " + body


class PollingTest(SiteCase):
    async def test_its_path_is_answered_by_it_and_no_other_is(self) -> None:
        await self.serve(None, Echo())
        response = await self.ask("/socket.io/?EIO=4", "POST", "Content-Length: 5\r\n", "hello")
        assert (response.status, response.body) == (200, b"polled hello")
        for path in ("/", "/socket.io", "/socket.io/more", "/x/socket.io/"):
            assert (await self.ask(path)).status == 426, path

    async def test_its_bound_holds_for_every_body(self) -> None:
        await self.serve(None, Echo())
        for path in ("/socket.io/", "/"):
            assert (await self.ask(path, "POST", "Content-Length: 11\r\n", "hello world")).status == 413


class ClientTest(SiteCase):
    async def test_the_client_is_there_for_pages_of_every_origin(self) -> None:
        await self.serve(None)
        response = await self.ask("/kraftek.js?v=1", headers="Origin: https://elsewhere.test\r\n")
        assert (response.status, response.body) == (200, CLIENT.read_bytes())
        assert response.headers["content-type"] == "text/javascript; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["cross-origin-resource-policy"] == "cross-origin"
        assert response.headers["cache-control"] == "no-cache"
        head = await self.ask("/kraftek.js", "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == str(len(response.body))
        assert (await self.ask("/kraftek.js", "POST", "Content-Length: 0\r\n")).status == 405

    async def test_it_is_not_sent_again_while_it_is_the_same(self) -> None:
        await self.serve(None)
        tag = (await self.ask("/kraftek.js")).headers["etag"]
        again = await self.ask("/kraftek.js", headers=f"If-None-Match: {tag}\r\n")
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["access-control-allow-origin"] == "*"
        assert (await self.ask("/kraftek.js", headers='If-None-Match: "other"\r\n')).status == 200

    async def test_nothing_else_of_it_is_served(self) -> None:
        await self.serve(None)
        for path in ("/kraftek.js/", "/kraftek.js/more", "/kraftek.d.ts", "/package.json", "/x/kraftek.js"):
            assert (await self.ask(path)).status == 426, path


class FilesTest(SiteCase):
    async def setUp(self) -> None:  # type: ignore[override]
        parent = Path(mkdtemp())
        self.addCleanup(rmtree, parent)
        files = parent / "board"
        (files / "parts").mkdir(parents=True)
        (parent / "secret.txt").write_text("not yours")
        (files / "index.html").write_text("<!doctype html><title>board</title>")
        (files / "board.js").write_text("export const x = 1;\n" * 10_000)
        (files / "module.mjs").write_text("export default 1;")
        (files / "style.css").write_text("body {}")
        (files / "parts" / "hidden-name.svg").write_text("<svg/>")
        await self.serve(files)

    async def test_files_are_served_with_their_types(self) -> None:
        for path, kind, content in [
            ("/", "text/html", b"<title>board</title>"),
            ("/index.html", "text/html", b"<title>board</title>"),
            ("/board.js?v=1", "text/javascript", b"export const x"),
            ("/module.mjs", "text/javascript", b"export default 1;"),
            ("/style.css", "text/css", b"body {}"),
            ("/kraftek.js", "text/javascript", b"export function connect"),
            ("/parts/hidden-name.svg", "image/svg+xml", b"<svg/>"),
        ]:
            response = await self.ask(path)
            assert response.status == 200, path
            assert response.headers["content-type"].partition(";")[0] == kind, path
            assert content in response.body
            assert len(response.body) == int(response.headers["content-length"])

    async def test_files_come_with_what_a_browser_must_not_do(self) -> None:
        for path in ("/", "/board.js", "/style.css", "/parts/hidden-name.svg"):
            for method in ("GET", "HEAD"):
                headers = (await self.ask(path, method)).headers
                assert headers["content-security-policy"] == CSP
                assert headers["x-content-type-options"] == "nosniff"
                assert headers["referrer-policy"] == "no-referrer"
                assert headers["cache-control"] == "no-cache"

    async def test_a_file_that_did_not_change_is_not_sent_again(self) -> None:
        first = await self.ask("/style.css")
        again = await self.ask("/style.css", headers=f"If-Modified-Since: {first.headers['last-modified']}\r\n")
        assert (again.status, again.body) == (304, b"")

    async def test_directories_are_not_listed(self) -> None:
        for path in ("/parts", "/parts/"):
            response = await self.ask(path)
            assert response.status in {302, 301, 404}, path
            assert b"hidden-name" not in response.body
        assert (await self.ask("/parts/")).status == 404

    async def test_nothing_beside_the_files_is_served(self) -> None:
        for beside in ("/..", "/%2e%2e", "/..%2f", "/%2e%2e%2f", "/parts/../..", "/", "/."):
            path = f"{beside}/secret.txt"
            response = await self.ask(path)
            assert response.status in {400, 404}, path
            assert b"not yours" not in response.body

    async def test_what_is_not_there_is_not_found(self) -> None:
        for path in ("/nothing", "/board.js/more", "/parts/nothing.svg"):
            assert (await self.ask(path)).status == 404, path

    async def test_files_are_not_written(self) -> None:
        for method in ("POST", "PUT", "DELETE"):
            assert (await self.ask("/index.html", method, "Content-Length: 0\r\n")).status in {405, 501}

    async def test_no_request_is_logged(self) -> None:
        with capturedLogs() as logged:
            for path in ("/?token=s3cret", "/nothing?token=s3cret", "/../?token=s3cret"):
                await self.ask(path)
        assert "s3cret" not in repr(logged)
        assert not [event for event in logged if event["log_namespace"].startswith("twisted.web")]

"""The plain requests of the clients' port, in memory: its pages, and what every answer has."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs

import kraftek
from kraftek.contract.settings import Limits
from kraftek.edge import public_site
from kraftek.edge.public_site import Page, pages
from kraftek.edge.websocket.handshake import Asked, asks_for_websocket
from tests.edge.websocket.edge import TOKEN, Edge, Peer, handshake

CLIENT = Path(kraftek.__file__).parent / "client/js/kraftek.js"
CSP = "default-src 'self'; connect-src 'self' ws: wss:; frame-ancestors 'none'"


class Response:
    """An answer; the names of headers are lower case."""

    def __init__(self, transport: StringTransport) -> None:
        head, _, self.body = transport.value().partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(status.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def ask(edge: Edge, path: str, method: str = "GET", headers: str = "", body: str = "") -> Response:
    protocol, transport = edge.accept()
    request = f"{method} {path} HTTP/1.1\r\nHost: gateway.test\r\n{headers}\r\n{body}"
    protocol.dataReceived(request.encode("latin-1"))
    edge.settle()
    return Response(transport)


# Without pages.


def test_every_request_is_told_to_upgrade() -> None:
    for method, path in [("GET", "/"), ("GET", "/board/index.html?x=1"), ("DELETE", "/x"), ("OPTIONS", "/")]:
        response = ask(Edge(), path, method)
        assert response.status == 426, (method, path)
        assert response.headers["upgrade"] == "websocket"
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert b"kraftek.v1.json" in response.body


def test_a_body_that_nobody_reads_is_refused_before_it_arrives() -> None:
    edge = Edge()
    assert ask(edge, "/", "POST", "Content-Length: 1000000000\r\n").status == 413
    assert ask(edge, "/", "POST", "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n").status == 413
    assert ask(edge, "/", "POST", "Transfer-Encoding: chunked\r\n", "0\r\n\r\n").status == 426
    assert ask(edge, "/", "POST", "Content-Length: 0\r\n").status == 426


@pytest.mark.parametrize("chunks", [1, 100])
def test_whether_a_body_comes_with_a_handshake_is_asked_once(chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def asks(request: Asked) -> bool:
        asked.append(request)
        return asks_for_websocket(request)

    monkeypatch.setattr(public_site, "asks_for_websocket", asks)
    edge = Edge()
    edge.site.max_body = 1_000
    upgrade = f"Upgrade: {'a,' * 7_900}\r\nTransfer-Encoding: chunked\r\n"
    assert ask(edge, "/anything", "POST", upgrade, "1\r\na\r\n" * chunks + "0\r\n\r\n").status == 426
    assert len(asked) == 2  # the head, and the whole request


def test_head_has_no_body() -> None:
    response = ask(Edge(), "/", "HEAD")
    assert (response.status, response.body) == (426, b"")


def test_plain_requests_count_as_connections_for_as_long_as_theirs_lasts() -> None:
    edge = Edge(limits=Limits(connections=2))
    for _ in range(10):
        protocol, _ = edge.accept()
        protocol.dataReceived(b"GET / HTTP/1.1\r\nHost: gateway.test\r\n\r\n")
        assert edge.connections.count == 1
        protocol.connectionLost()
        assert edge.connections.count == 0
    assert Peer(edge).status == 101
    assert edge.connections.count == 1


# Health.


def test_a_balancer_may_ask_whether_to_send_clients_here() -> None:
    edge = Edge()
    ready = ask(edge, "/health")
    assert (ready.status, ready.body, ready.headers["cache-control"]) == (200, b"ready\n", "no-store")
    edge.site.ready = lambda: False
    assert (ask(edge, "/health").status, ask(edge, "/health", "HEAD").status) == (503, 503)
    assert ask(edge, "/health", "DELETE").status == 426


def test_nobody_keeps_a_connection_to_a_gateway_that_stops() -> None:
    edge = Edge()
    resting, between = edge.accept()
    resting.dataReceived(b"GET /health HTTP/1.1\r\nHost: gateway.test\r\n\r\n")
    begun, in_the_middle = edge.accept()
    begun.dataReceived(b"GET /health HTTP/1.1\r\n")
    edge.site.turn_away("the gateway stops")
    assert (between.closed, in_the_middle.closed) == ("lost", None)
    begun.dataReceived(b"Host: gateway.test\r\n\r\n")
    assert Response(in_the_middle).headers["connection"] == "close"
    assert in_the_middle.closed == "lost"


# The client for browsers.


def test_the_client_is_there_for_pages_of_every_origin() -> None:
    edge = Edge()
    for origin in ("", "Origin: https://elsewhere.test\r\n", "Origin: https://gateway.test\r\n"):
        response = ask(edge, "/kraftek.js?v=1", headers=origin)
        assert (response.status, response.body) == (200, CLIENT.read_bytes())
        assert response.headers["content-type"] == "text/javascript; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers
        assert response.headers["cross-origin-resource-policy"] == "cross-origin"
        assert response.headers["cache-control"] == "no-cache"
    head = ask(edge, "/kraftek.js", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(response.body))
    refused = ask(edge, "/kraftek.js", "POST", "Content-Length: 0\r\n")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


def test_it_is_not_sent_again_while_it_is_the_same() -> None:
    edge = Edge()
    tag = ask(edge, "/kraftek.js").headers["etag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}"):
        again = ask(edge, "/kraftek.js", headers=f"If-None-Match: {known}\r\n")
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["access-control-allow-origin"] == "*"
    for other in ('"other"', "\xff"):
        assert ask(edge, "/kraftek.js", headers=f"If-None-Match: {other}\r\n").status == 200


def test_nothing_else_of_it_is_served() -> None:
    for path in ("/kraftek.js/", "/kraftek.js/more", "/kraftek.d.ts", "/package.json", "/x/kraftek.js"):
        assert ask(Edge(), path).status == 426, path


# Pages.


@pytest.fixture
def board(tmp_path: Path) -> dict[bytes, Page]:
    files = tmp_path / "board"
    (files / "parts").mkdir(parents=True)
    (tmp_path / "secret.html").write_text("not yours")
    (files / "index.html").write_text("<!doctype html><title>board</title>")
    (files / "board.js").write_text("export const x = 1;\n" * 10_000)
    (files / "module.mjs").write_text("export default 1;")
    (files / "style.css").write_text("body {}")
    (files / "page.rst").write_text("größe", "utf-8")
    (files / ".board.js.swp").write_text("an editor's")
    (files / "parts" / "picture.svg").write_text("<svg/>")
    return pages(files)


def test_files_are_served_with_their_types(board: dict[bytes, Page]) -> None:
    edge = Edge(files=board)
    for path, kind, content in [
        ("/", "text/html", b"<title>board</title>"),
        ("/index.html", "text/html", b"<title>board</title>"),
        ("/board.js?v=1", "text/javascript", b"export const x"),
        ("/board%2Ejs", "text/javascript", b"export const x"),
        ("/module.mjs", "text/javascript", b"export default 1;"),
        ("/style.css", "text/css", b"body {}"),
        ("/kraftek.js", "text/javascript", b"export function connect"),
        ("/parts/picture.svg", "image/svg+xml", b"<svg/>"),
        ("/page.rst", "text/plain", "größe".encode()),
    ]:
        response = ask(edge, path)
        assert response.status == 200, path
        assert response.headers["content-type"].partition(";")[0] == kind, path
        assert content in response.body
        assert len(response.body) == int(response.headers["content-length"])


def test_files_come_with_what_a_browser_must_not_do(board: dict[bytes, Page]) -> None:
    edge = Edge(files=board)
    for path in ("/", "/board.js", "/style.css", "/parts/picture.svg"):
        for method in ("GET", "HEAD"):
            headers = ask(edge, path, method).headers
            assert headers["content-security-policy"] == CSP
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["cache-control"] == "no-cache"


def test_a_file_that_did_not_change_is_not_sent_again(board: dict[bytes, Page]) -> None:
    edge = Edge(files=board)
    tag = ask(edge, "/style.css").headers["etag"]
    again = ask(edge, "/style.css", headers=f"If-None-Match: {tag}\r\n")
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        *(f"{beside}/secret.html" for beside in ("/..", "/%2e%2e", "/..%2f", "/%2e%2e%2f", "/parts/../..", "/", "/.")),
        "/parts", "/parts/", "/nothing", "/board.js/more", "/board.js/", "//board.js", "/.board.js.swp",
        "/board.js%00.html", "/%00", "/%ff%fe", "/%", "/" + "x" * 10_000,
    ],
)  # fmt: skip
def test_nothing_else_is_found(board: dict[bytes, Page], path: str) -> None:
    with capturedLogs() as logged:
        response = ask(Edge(files=board), path)
    assert response.status == 404
    assert b"not yours" not in response.body
    assert logged == []


def test_files_are_not_written(board: dict[bytes, Page]) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert ask(Edge(files=board), "/index.html", method, "Content-Length: 0\r\n").status == 405


# Every answer.


def test_no_request_is_logged_and_no_version_told(board: dict[bytes, Page]) -> None:
    with capturedLogs() as logged:
        for edge in (Edge(), Edge(files=board)):
            for method in ("GET", "HEAD", "POST", "OPTIONS", "BREW"):
                for path in ("/", "/nothing", "/kraftek.js", "*", "gateway.test:443"):
                    response = ask(edge, f"{path}?token={TOKEN}", method)
                    assert response.headers["server"] == "kraftek-gateway"
                    assert "date" in response.headers
                    assert TOKEN.encode() not in response.body
    assert logged == []


def test_pages_of_allowed_origins_may_read_all_of_them() -> None:
    edge = Edge()
    origin = "Origin: https://gateway.test\r\n"
    for response in (
        ask(edge, "/", headers=origin),
        ask(edge, "/", "POST", f"{origin}Content-Length: 10\r\n"),
        ask(edge, "/", "POST", f"{origin}Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"),
        ask(edge, "/", headers=f"{origin}X: y\r\nX: {'x' * 20_000}\r\n"),
    ):
        assert response.status in {413, 426, 431}
        assert response.headers["access-control-allow-origin"] == "https://gateway.test", response.status
        assert response.headers["access-control-allow-credentials"] == "true"
        assert response.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in ask(edge, "/", headers="Origin: https://evil.test\r\n").headers


def test_a_refused_origin_is_logged_once_a_minute() -> None:
    edge = Edge()
    with capturedLogs() as logged:
        for seconds in (0, 1, 58.9, 0.2):
            edge.clock.advance(seconds)
            protocol, transport = edge.accept()
            protocol.dataReceived(handshake(Origin="https://app.test\x1b[2J"))
            response = Response(transport)
            assert response.status == 403
            assert b'"origins"' in response.body
            assert b"https://app.test?[2J" in response.body
    assert edge.refused() == {"origin": 4}
    lines = [event["log_format"].format(**event) for event in logged]
    assert len(lines) == 2
    assert "https://app.test?[2J" in lines[0]


def test_a_host_of_somebody_else_is_refused() -> None:
    edge = Edge(hosts=["gateway.test"])
    assert Peer(edge).status == 101
    refused = Peer(edge, host="evil.test")
    assert refused.status == 421
    assert "evil.test" in refused.body
    assert '"hosts"' in refused.body
    assert edge.refused() == {"host": 1}

"""The port of the clients, as proxies, browsers and strangers speak to it: raw bytes to a gateway process."""

from __future__ import annotations

import json
import os
import re
import select
import ssl
import time
import zlib
from contextlib import closing, suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.frames import Opcode

from tests.integration.wire import Wire, certificate, frame, handshake, request

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.integration.conftest import Gateway, RedisServer, Shared, StartGateway, StartService

SOCKETIO = "/socket.io/?EIO=4&transport=websocket"
POLLING = "/socket.io/?EIO=4&transport=polling"
TOKEN = "s3cret-t0ken"
OPERATOR = {"operator": {"listen": ["tcp:0:interface=127.0.0.1"]}}


def memory(gateway: Gateway) -> int:
    """The process's resident memory, in MB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{gateway.pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1000


def processor_time(gateway: Gateway) -> float:
    """What the process has used, in seconds."""
    user, system = Path(f"/proc/{gateway.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def port(shared: Shared) -> int:
    """The port of a gateway with the default configuration."""
    return shared.gateway().port


class TestKeptConnections:
    """A handshake is understood wherever in a connection it comes: proxies use connections again."""

    def test_after_other_requests(self, port: int) -> None:
        for target, before in product(
            ["/", SOCKETIO],
            [
                [request("/kraftek.js")],
                [request("/")] * 3,
                [request(POLLING)],
                [request("/kraftek.js"), request("/", "HEAD"), request("/x", "POST", b"")],
            ],
        ):
            with Wire(port) as wire:
                for one in before:
                    wire.send(one)
                    wire.response(body=not one.startswith(b"HEAD"))
                wire.send(handshake(target))
                response = wire.response()
                assert response.status == 101, (target, before)
                assert response.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
                opcode, greeting = wire.frame()
                assert opcode == Opcode.TEXT
                assert b"connected" in greeting or greeting.startswith(b'0{"sid"')
                wire.send(frame(Opcode.PING, b"there?"))
                assert wire.frame() == (Opcode.PONG, b"there?")

    def test_pipelined_behind_other_requests(self, port: int) -> None:
        with Wire(port) as wire:
            wire.send(request("/kraftek.js") + request("/") + handshake())
            assert [wire.response().status for _ in range(3)] == [200, 426, 101]
            assert b"connected" in wire.frame()[1]

    def test_what_comes_with_a_handshake_refuses_it(self, port: int) -> None:
        """RFC 6455, section 4.1: a client waits for the answer. What does not is a smuggled request."""
        for before, more in product(
            [b"", request("/kraftek.js")], [frame(Opcode.TEXT, b"{}"), request("/kraftek.js"), b"x"]
        ):
            with Wire(port) as wire:
                wire.send(before + handshake() + more)
                if before:
                    assert wire.response().status == 200
                refusal = wire.response()
                assert refusal.status == 400, (before, more)
                assert b"before the answer" in refusal.body
                assert wire.closed()

    def test_a_handshake_with_a_body_is_refused(self, port: int) -> None:
        for body in ({"Content_Length": "7"}, {"Transfer_Encoding": "chunked"}, {"Content_Length": "99999999"}):
            with Wire(port) as wire:
                wire.send(handshake(**body) + frame(Opcode.TEXT, b"{")[:7])
                assert wire.response().status == 400, body
                assert wire.closed()

    def test_the_answer_to_a_refused_handshake_says_why(self, port: int) -> None:
        for wrong, status, why in [
            (handshake(Connection="close"), 400, b"Connection"),
            (handshake(Sec_WebSocket_Key="short"), 400, b"Sec-WebSocket-Key"),
            (handshake(Sec_WebSocket_Version="8"), 426, b"Sec-WebSocket-Version"),
            (handshake(Host=None), 400, b"Host"),
            (handshake(Sec_WebSocket_Protocol="mqtt"), 400, b"kraftek.v1.json"),
        ]:
            with Wire(port) as wire:
                wire.send(wrong)
                refusal = wire.response()
                assert refusal.status == status, wrong
                assert why in refusal.body
                assert b"/" in refusal.headers["content-type"].encode()


class TestOffers:
    """What a client offers and the gateway does not take is declined, and the handshake goes on."""

    @pytest.fixture(params=[False, True], ids=["plain", "compressing"])
    def port(self, shared: Shared, request: pytest.FixtureRequest) -> int:
        return shared.gateway(config={"compression": request.param}).port

    def test_extensions(self, port: int) -> None:
        for extensions in (
            "permessage-deflate; client_max_window_bits=8",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=abc",
            "permessage-deflate; client_no_context_takeover=1",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; mystery",
            "permessage-deflate; mystery=1, permessage-deflate",
            "permessage-bzip2, x-webkit-deflate-frame",
            'permessage-deflate; server_max_window_bits="10"',
            'mystery; a="b,c;d"',
            ";;,,= \xe9",
            "permessage-deflate; client_max_window_bits\r\nSec-WebSocket-Extensions: permessage-deflate",
            "permessage-deflate; server_max_window_bits=8\r\nSec-WebSocket-Extensions: mystery",
        ):
            with Wire(port) as wire:
                wire.send(handshake(Sec_WebSocket_Extensions=extensions))
                assert wire.response().status == 101, extensions
                assert b"connected" in wire.frame()[1]

    def test_other_headers(self, port: int) -> None:
        offers: list[dict[str, str]] = [
            {"Sec_WebSocket_Protocol": "kraftek.v1.json, kraftek.v1.json"},
            {"Sec_WebSocket_Protocol": "mqtt\r\nSec-WebSocket-Protocol: kraftek.v1.json"},
            {"Sec_WebSocket_Protocol": ", kraftek.v1.json ,"},
            {"Sec_WebSocket_Protocol": ""},
            {"Origin": ""},
            {"Host": "gateway.test:"},
            {"Host": "[::1]:3001"},
            {"Upgrade": "h2c, WebSocket"},
            {"Connection": "keep-alive, upgrade"},
            {"Content_Length": "0"},
        ]
        for headers in offers:
            with Wire(port) as wire:
                wire.send(handshake(**headers))
                response = wire.response()
                assert response.status == 101, headers
                if "kraftek" in headers.get("Sec_WebSocket_Protocol", ""):
                    assert response.headers["sec-websocket-protocol"] == "kraftek.v1.json"

    def test_socketio_confirms_the_first_subprotocol(self, port: int) -> None:
        for offered, confirmed in [
            ("my-app", "my-app"),
            ("my-app, other", "my-app"),
            ("a, a", "a"),
            (" , b", "b"),
            ("", None),
            (None, None),
        ]:
            with Wire(port) as wire:
                wire.send(handshake(SOCKETIO, Sec_WebSocket_Protocol=offered))
                response = wire.response()
                assert response.status == 101
                assert response.headers.get("sec-websocket-protocol") == confirmed


class TestPlainRequests:
    """HTTP that is not a handshake."""

    def test_the_body_of_a_form_is_not_parsed(self, shared: Shared) -> None:
        """A million ``&`` took twisted.web 0.8 s, and its fields were merged into the query."""
        process = shared.gateway()
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        with Wire(process.port) as wire:
            before = processor_time(process)
            for _ in range(5):
                wire.send(request(POLLING, "POST", b"&" * 999_999, **form))
                assert wire.response().status == 400
            assert processor_time(process) - before < 1.5
            wire.send(request("/socket.io/?EIO=4", "POST", b"transport=polling", **form))
            assert json.loads(wire.response().body)["code"] == 0

    def test_a_form_in_parts_is_a_body_like_any_other(self, port: int) -> None:
        with Wire(port) as wire:
            wire.send(request(POLLING, "POST", b"--x\r\n", Content_Type="multipart/form-data; boundary=x"))
            assert json.loads(wire.response().body)["code"] == 2

    def test_head_is_answered_as_get_without_the_body_and_leaves_no_line(
        self, gateway: StartGateway, redis_server: RedisServer
    ) -> None:
        process = gateway(redis_server, config=OPERATOR)
        process.wait_log("is ready")
        before = len(process.log())
        for path in ("/", "/kraftek.js", "/nothing", "/socket.io/", POLLING):
            target = path + ("&" if "?" in path else "?") + f"token={TOKEN}"
            with Wire(process.port) as wire:
                wire.send(request(target, "HEAD") + request("/kraftek.js", "HEAD") + request("/kraftek.js"))
                assert wire.response(body=False).status in {200, 426, 400}, path
                head, whole = wire.response(body=False), wire.response()
                assert head.headers["content-length"] == str(len(whole.body))
        with Wire(process.operator_port) as wire:
            for page in ("/metrics", "/health", "/nothing"):
                wire.send(request(f"{page}?token={TOKEN}", "HEAD"))
                assert wire.response(body=False).status in {200, 404}
        assert TOKEN not in process.log()
        assert len(process.log()) == before

    def test_a_target_may_be_absolute(self, port: int) -> None:
        for target, status in [
            ("http://gateway.test/kraftek.js", 200),
            ("HTTP://other.test:81/kraftek.js?v=1", 200),
            ("https://gateway.test", 426),
            ("http://gateway.test?EIO=4", 426),
            ("http://gateway.test/socket.io/?EIO=4&transport=polling", 200),
        ]:
            with Wire(port) as wire:
                wire.send(request(target))
                assert wire.response().status == status, target

    def test_an_absolute_target_may_ask_for_a_websocket(self, port: int) -> None:
        for target in ("http://gateway.test/", "ws://gateway.test/x", f"http://gateway.test{SOCKETIO}"):
            with Wire(port) as wire:
                wire.send(handshake(target))
                assert wire.response().status == 101

    def test_other_targets_are_survived(self, port: int) -> None:
        for target, method in product(["*", "gateway.test:443", "x", "//", "http:///"], ["GET", "OPTIONS", "CONNECT"]):
            with Wire(port) as wire:
                wire.send(request(target, method))
                assert wire.response().status in {400, 404, 426, 204, 200}, (target, method)

    def test_socketio_needs_no_slash_at_the_end(self, port: int) -> None:
        """Clients with ``addTrailingSlash: false`` ask without it; they got the native dialect."""
        for transport in ("websocket", "polling"):
            target = f"/socket.io?EIO=4&transport={transport}"
            with Wire(port) as wire:
                wire.send(handshake(target) if transport == "websocket" else request(target))
                response = wire.response()
                said = wire.frame()[1] if transport == "websocket" else response.body
                assert said.startswith(b'0{"sid":'), transport

    def test_no_version_is_told(self, shared: Shared) -> None:
        process = shared.gateway(config=OPERATOR)
        for at, asked in [
            (process.port, request("/")),
            (process.port, request(POLLING)),
            (process.port, request("/kraftek.js")),
            (process.port, request("*", "OPTIONS")),
            (process.port, handshake()),
            (process.operator_port, request("/metrics")),
            (process.operator_port, request("/nothing")),
        ]:
            with Wire(at) as wire:
                wire.send(asked)
                server = wire.response().headers.get("server", "")
                assert server in {"", "kraftek-gateway"}, asked

    def test_paths_of_the_board(self, gateway: StartGateway) -> None:
        process = gateway(args=["--demo"], auth="open")
        with Wire(process.port) as wire:
            for path, status in [
                ("/", 200),
                ("/board.js", 200),
                ("/board.js%00.html", 404),
                ("/%00", 404),
                ("/%ff%fe", 404),
                ("/%2e%2e/%2e%2e/etc/passwd", 404),
                ("/" + "x" * 5000, 404),
                ("/board.js/", 404),
                ("//board.js", 404),
                ("/%", 404),
            ]:
                wire.send(request(path))
                assert wire.response().status == status, path
        assert "Traceback" not in process.log()

    def test_header_values_that_are_not_ascii(self, gateway: StartGateway, redis_server: RedisServer) -> None:
        process = gateway(redis_server, config={"forwarded_for": 1, **OPERATOR})
        odd = "\xe9\xff"
        with Wire(process.port) as wire:
            wire.send(request(POLLING, X_Forwarded_For=odd))
            assert wire.response().status == 200
            wire.send(request(POLLING, X_Forwarded_Proto=odd, Host=odd, Accept=odd))
            assert wire.response().status == 200
            wire.send(request(POLLING, Origin=odd))
            assert wire.response().status == 403
            wire.send(request(f"{POLLING}&sid=%ff", X_Forwarded_For=odd))
            assert wire.response().status == 400
        for header in ("X_Forwarded_For", "X_Forwarded_Proto", "Authorization", "Cookie", "User_Agent"):
            with Wire(process.port) as wire:
                wire.send(handshake(**{header: odd}))
                assert wire.response().status == 101, header
        with Wire(process.port) as wire:
            wire.send(request("/", "POST", Content_Length="9" * 5_000))
            assert wire.response().status == 400
        for header in ("Origin", "Sec_WebSocket_Protocol", "Sec_WebSocket_Key", "Sec_WebSocket_Version", "Connection"):
            with Wire(process.port) as wire:
                wire.send(handshake(**{header: odd}))
                assert wire.response().status in {400, 403, 426}, header
        with Wire(process.operator_port) as wire:
            for page in ("/metrics", "/health"):
                wire.send(request(page, Accept=odd, Host="127.0.0.1"))
                assert wire.response().status == 200


def trickle(wire: Wire, piece: bytes, interval: float, seconds: float) -> float:
    """Send this again and again until there is an answer; the seconds until then, at most so many."""
    started = time.monotonic()
    while not select.select([wire.socket], [], [], interval)[0]:
        if time.monotonic() - started > seconds:
            pytest.fail(f"no answer within {seconds:g} s")
        wire.send(piece)
    return time.monotonic() - started


class TestDeadlines:
    """What comes slowly is cut off: bytes that trickle in keep no connection."""

    def test_a_slow_body(self, gateway: StartGateway, redis_server: RedisServer) -> None:
        process = gateway(redis_server, config={"limits": {"handshake_timeout": 1.0, "request_timeout": 2.0}})
        for asked, piece in [
            (request(POLLING, "POST", Content_Length="1000"), b"x"),
            (request(POLLING, "POST", Transfer_Encoding="chunked"), b"1\r\nx\r\n"),
        ]:
            with Wire(process.port) as wire:
                wire.send(request("/kraftek.js"))
                assert wire.response().status == 200
                wire.send(asked)
                assert 1.5 < trickle(wire, piece, 0.1, 9.0) < 8.0
                assert wire.response().status == 408
                assert wire.closed()

    def test_a_slow_head_wherever_it_comes(self, gateway: StartGateway, redis_server: RedisServer) -> None:
        process = gateway(redis_server, config={"limits": {"handshake_timeout": 1.0}})
        for before in (b"", request("/kraftek.js")):
            with Wire(process.port) as wire:
                if before:
                    wire.send(before)
                    wire.response()
                    time.sleep(1.5)  # between two requests a connection may rest for longer
                wire.send(b"GET / HTTP/1.1\r\nX-Long: ")
                assert 0.5 < trickle(wire, b"x", 0.05, 8.0) < 7.0
                assert wire.response().status == 408
                assert wire.closed()

    def test_whoever_says_nothing(self, gateway: StartGateway, redis_server: RedisServer) -> None:
        process = gateway(redis_server, config={"limits": {"handshake_timeout": 1.0}})
        with Wire(process.port) as wire:
            assert wire.closed()

    def test_a_held_poll_is_not_cut_off(self, gateway: StartGateway, redis_server: RedisServer) -> None:
        process = gateway(
            redis_server,
            config={"limits": {"handshake_timeout": 2.0, "request_timeout": 2.0}, "socketio": {"ping_interval": 3.0}},
        )
        with Wire(process.port) as wire:
            wire.send(request(POLLING))
            sid = json.loads(wire.response().body[1:])["sid"]
            wire.send(request(f"{POLLING}&sid={sid}"))
            assert wire.response().body == b"2"


class TestUnreadAnswers:
    """Whoever asks without reading is asked for no more: 64 KiB of requests would be 40 MB of answers."""

    def test_they_are_not_made(self, gateway: StartGateway, redis_server: RedisServer) -> None:
        process = gateway(redis_server)
        before = memory(process)
        wires = [Wire(process.port) for _ in range(5)]
        for wire in wires:
            wire.send(request("/kraftek.js") * 1_000)
        with Wire(process.port) as other:
            other.send(handshake())
            assert other.response().status == 101
        assert memory(process) - before < 30
        # Nothing is lost for who reads at last.
        assert [wires[0].response().status for _ in range(1_000)] == [200] * 1_000
        assert memory(process) - before < 30
        for wire in wires:
            wire.socket.close()


class TestOrigins:
    def test_pages_may_read_every_answer(self, port: int) -> None:
        """Also those that refuse a request: otherwise the console of a browser shows nothing but "CORS"."""
        page = {"Origin": "https://gateway.test"}
        for asked, status in [
            (request("/", **page), 426),
            (request(POLLING, **page), 200),
            (request("/socket.io/", **page), 400),
            (request(POLLING, "POST", Content_Length="1000001", **page), 413),
            (request("/", "POST", Content_Length="99999999", **page), 413),
            (request("/", "POST", Transfer_Encoding="chunked", **page) + b"fffff\r\n" + b"x" * 0xFFFFF + b"\r\n", 413),
        ]:
            with Wire(port) as wire:
                wire.send(asked)
                response = wire.response()
                assert response.status == status
                assert response.headers["access-control-allow-origin"] == page["Origin"], status
                assert response.headers["access-control-allow-credentials"] == "true"
                assert "origin" in response.headers["vary"].lower()

    def test_any_origin_is_no_credentials(self, gateway: StartGateway, redis_server: RedisServer) -> None:
        process = gateway(redis_server, config={"origins": ["*", "https://named.test"]})
        with Wire(process.port) as wire:
            wire.send(request(POLLING, Origin="https://evil.test"))
            anybody = wire.response().headers
            wire.send(request(POLLING, Origin="https://named.test"))
            named = wire.response().headers
        assert anybody["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in anybody
        assert named["access-control-allow-origin"] == "https://named.test"
        assert named["access-control-allow-credentials"] == "true"

    @pytest.mark.parametrize("asked", [handshake, request], ids=["websocket", "polling"])
    def test_a_refused_origin_is_told_its_developer(
        self, gateway: StartGateway, redis_server: RedisServer, asked: Any
    ) -> None:
        process = gateway(redis_server, config=OPERATOR)
        refused = 'kraftek_connections_refused_total{reason="origin"}'
        assert process.metric(refused) == 0
        target = "/" if asked is handshake else POLLING
        for _ in range(5):
            with Wire(process.port) as wire:
                wire.send(asked(f"{target}{'&' if '?' in target else '?'}token={TOKEN}", Origin="https://app.test"))
                response = wire.response()
                assert response.status == 403
                assert b"https://app.test" in response.body
                assert b"origins" in response.body
        assert process.metric(refused) == 5
        lines = [line for line in process.log().splitlines() if "https://app.test" in line]
        assert len(lines) == 1
        assert "origins" in lines[0]
        assert TOKEN not in process.log()

    def test_the_scheme_of_same_host_counts_where_it_is_known(
        self, gateway: StartGateway, redis_server: RedisServer
    ) -> None:
        process = gateway(redis_server, config={"forwarded_for": 1})
        for proto, origin, status in [
            ("https", "https://gateway.test", 101),
            ("https", "http://gateway.test", 403),
            ("http", "http://gateway.test", 101),
            ("http", "https://gateway.test", 403),
            ("wss", "https://gateway.test", 101),
            (None, "https://gateway.test", 101),
            (None, "http://gateway.test", 101),
        ]:
            with Wire(process.port) as wire:
                wire.send(handshake(Origin=origin, X_Forwarded_Proto=proto))
                assert wire.response().status == status, (proto, origin)

    def test_nobody_says_the_scheme_where_no_proxy_is_trusted(self, port: int) -> None:
        with Wire(port) as wire:
            wire.send(handshake(Origin="https://gateway.test", X_Forwarded_Proto="http"))
            assert wire.response().status == 101


class TestHosts:
    def test_only_these_names_are_answered(self, gateway: StartGateway, redis_server: RedisServer) -> None:
        """DNS rebinding: a page's own name that suddenly points here."""
        process = gateway(
            redis_server,
            config={"hosts": ["gateway.test", "*.inside.test"], **OPERATOR},
        )
        for host, status, operators in [
            ("gateway.test", 101, 200),
            ("Gateway.Test:3001", 101, 200),
            ("a.inside.test", 101, 200),
            ("evil.test", 421, 421),
            ("inside.test", 421, 421),
            ("127.0.0.1:9101", 421, 200),
            ("[::1]:9101", 421, 200),
            (None, 421, 200),
        ]:
            with Wire(process.port) as wire:
                wire.send(handshake(Host=host))
                assert wire.response().status == status, host
            with Wire(process.port) as wire:
                wire.send(request("/kraftek.js", Host=host))
                refused = wire.response()
                assert refused.status == (200 if status == 101 else 421), host
                if host == "evil.test":
                    assert b"evil.test" in refused.body
                    assert b"hosts" in refused.body
            with Wire(process.operator_port) as wire:
                wire.send(request("/health", Host=host))
                assert wire.response().status == operators, host


class TestTls:
    """The same over TLS of the gateway's own, where a connection changes hands another way."""

    def test_all_of_it(self, gateway: StartGateway, redis_server: RedisServer, tmp_path: Path) -> None:
        cert, key = certificate(tmp_path)
        process = gateway(redis_server, args=["--listen", f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={cert}"])
        tls = ssl.create_default_context(cafile=cert)
        page = {"Host": f"localhost:{process.port}", "Origin": f"https://localhost:{process.port}"}
        for target in ("/", SOCKETIO):
            with Wire(process.port, tls=tls) as wire:
                for asked in (request("/kraftek.js"), request("/")):
                    wire.send(asked)
                    wire.response()
                wire.send(handshake(target, **page))
                assert wire.response().status == 101
                assert b"sid" in (said := wire.frame()[1]) or b"connected" in said
                wire.send(frame(Opcode.PING, b"x" * 100))
                assert wire.frame() == (Opcode.PONG, b"x" * 100)
                wire.send(b"\x83\x80mask" + b"x" * 100_000)
                opcode, reason = wire.frame()
                assert (opcode, int.from_bytes(reason[:2], "big")) == (Opcode.CLOSE, 1002)
                assert wire.closed()
        with Wire(process.port, tls=tls) as wire:
            wire.send(handshake(**{**page, "Origin": f"http://localhost:{process.port}"}))
            assert wire.response().status == 403
            assert wire.closed()
        with Wire(process.port, tls=tls) as wire:
            wire.send(request(POLLING, "POST", Content_Length="1000001", **page))
            refused = wire.response()
            assert (refused.status, refused.headers["access-control-allow-origin"]) == (413, page["Origin"])
            assert wire.closed()


TOO_LARGE = """async (url) => {
  const closed = await Promise.all([70000, 3000000].map((size) => new Promise((resolve) => {
    const socket = new WebSocket(url.replace("http", "ws"), "kraftek.v1.json");
    socket.onmessage = () => socket.send("x".repeat(size));
    socket.onclose = (event) => resolve([event.code, event.reason]);
  })));
  const posted = [];
  for (const size of [1000001, 20000000]) {
    const target = url + "socket.io/?EIO=4&transport=polling&sid=x";
    const response = await fetch(target, { method: "POST", body: "x".repeat(size) });
    posted.push([response.status, await response.text()]);
  }
  return [closed, posted];
}"""


def test_a_browser_is_told_what_was_too_large(
    gateway: StartGateway, redis_server: RedisServer, browser: Browser
) -> None:
    """A connection that is closed with something unread is reset, and the browser never sees the answer."""
    process = gateway(redis_server)
    with closing(browser.new_page()) as page:
        page.goto(process.http_url)
        closed, posted = page.evaluate(TOO_LARGE, process.http_url)
    assert closed == [[1009, "message too large"]] * 2
    assert posted == [[413, "request body too large: expected at most 1000000 bytes\n"]] * 2


class TestBeforeAuthentication:
    def test_nothing_is_kept_after_a_protocol_error(self, gateway: StartGateway, redis_server: RedisServer) -> None:
        process = gateway(redis_server)
        before = memory(process)
        for head in (
            b"\x89\xff" + (2**40).to_bytes(8, "big"),  # a ping
            b"\x8a\xff" + (2**40).to_bytes(8, "big"),
            b"\x88\xff" + (2**40).to_bytes(8, "big"),
            b"\x82\xff" + (2**40).to_bytes(8, "big"),  # a message
            b"\x83\x80",  # no such opcode
        ):
            with Wire(process.port) as wire:
                wire.send(handshake())
                assert wire.response().status == 101
                assert b"connected" in wire.frame()[1]
                wire.send(head + b"mask")
                opcode, reason = wire.frame()
                assert opcode == Opcode.CLOSE
                assert int.from_bytes(reason[:2], "big") in {1002, 1009}
                sent = 0
                with suppress(OSError):
                    while sent < 100_000_000:
                        wire.send(b"x" * 1_000_000)
                        sent += 1_000_000
            assert memory(process) < before + 30

    def test_endless_fragments_that_are_empty_are_bounded(self, port: int) -> None:
        with Wire(port) as wire:
            wire.send(handshake())
            assert wire.response().status == 101
            assert b"connected" in wire.frame()[1]
            empty = frame(Opcode.CONT, b"", fin=False)
            with suppress(OSError):
                wire.send(frame(Opcode.TEXT, b"", fin=False))
                for _ in range(100):
                    wire.send(empty * 1000)
            opcode, reason = wire.frame()
            assert opcode == Opcode.CLOSE
            assert int.from_bytes(reason[:2], "big") == 1009

    def test_a_client_may_end_a_message_with_an_empty_fragment(self, port: int) -> None:
        with Wire(port) as wire:
            wire.send(handshake())
            assert wire.response().status == 101
            assert b"connected" in wire.frame()[1]
            wire.send(frame(Opcode.TEXT, b'{"type":', fin=False) + frame(Opcode.CONT, b'"a:b:c"}', fin=False))
            wire.send(frame(Opcode.CONT, b""))
            assert b"NOT_AUTHENTICATED" in wire.frame()[1]


LIMIT = 1_000_000


class TestCompressedMessages:
    """The limit is that of the message once decompressed, to the byte, whatever the reads and the compressor."""

    def test_of_about_the_limit(self, gateway: StartGateway, redis_server: RedisServer, service: StartService) -> None:
        notes = service(redis_server, "events:stickyNotes")
        process = gateway(redis_server, config={"compression": True, "limits": {"message_bytes": LIMIT}})
        head, tail = b'{"type":"stickyNotes:note:create","payload":"', b'"}'
        taken = 0
        for over, reads, level in product([0, 1, 5, 1000], [1, 2, 7], [0, 9]):
            size = LIMIT + over - len(head) - len(tail)
            compressor = zlib.compressobj(wbits=-15, level=level)
            deflated = (compressor.compress(head + b"0" * size + tail) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
            data = bytearray(frame(Opcode.TEXT, deflated))
            data[0] |= 0x40
            with Wire(process.port) as wire:
                wire.send(handshake("/?token=t&roomId=r", Sec_WebSocket_Extensions="permessage-deflate"))
                response = wire.response()
                assert response.status == 101
                assert "permessage-deflate" in response.headers["sec-websocket-extensions"]
                assert b"connected" in wire.frame()[1]
                assert b"authenticated" in wire.frame()[1]
                step = -(-len(data) // reads)
                for at in range(0, len(data), step):
                    with suppress(OSError):
                        wire.send(bytes(data[at : at + step]))
                    time.sleep(0.05)
                if over:
                    opcode, reason = wire.frame()
                    assert (opcode, int.from_bytes(reason[:2], "big")) == (Opcode.CLOSE, 1009), (over, reads, level)
                else:
                    taken += 1
                    event = notes.wait_received(taken)[-1]
                    assert len(event["payload"]) == size, (over, reads, level)
        assert len(notes.received()) == taken

"""The files of ``etc/proxies/`` as they are shipped, run by nginx, HAProxy and Caddy before two gateway processes.

Only addresses, names of files and the certificate are replaced. The proxies use their connections to the gateway again,
so that a handshake follows other requests there.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from websockets.frames import Opcode

from tests.integration.wire import Response, Wire, certificate, frame, handshake, request
from tests.support.ports import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Gateway, RedisServer, Shared, StartGateway

FILES = Path(__file__).resolve().parents[2] / "etc/proxies"
TOKEN = "s3cret-t0ken"
POLLING = "/socket.io/?EIO=4&transport=polling"
SOCKETIO = "/socket.io/?EIO=4&transport=websocket"


def program(name: str) -> str:
    """Where the proxy is: ``make test`` and CI see to it."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.fail(f"no {name}: apt-get install {name}, or make need-proxies")
    return found


def shipped(name: str, changes: dict[str, str]) -> str:
    """The file, with what differs from one place to another replaced."""
    text = (FILES / name).read_text()
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in {name} any more"
        text = text.replace(old, new)
    return text


class Proxy:
    """A proxy on a port of its own. ``logged`` is all that it ever logged."""

    def __init__(self, command: list[str], directory: Path, port: int, cafile: Path) -> None:
        self.port = port
        self.origin = f"https://localhost:{port}"
        self._directory = directory
        self._output = directory / "output.log"
        self._tls = ssl.create_default_context(cafile=cafile)
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env={
                    **os.environ,
                    "HOME": str(directory),
                    "XDG_DATA_HOME": str(directory),
                    "XDG_CONFIG_HOME": str(directory),
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_until(self._listens, lambda: f"the proxy:\n{self.logged()}", 20)

    def _listens(self) -> bool:
        assert self._process.poll() is None, f"the proxy ended:\n{self.logged()}"
        with suppress(OSError):
            self.wire().socket.close()
            return True
        return False

    def wire(self) -> Wire:
        """A connection to it."""
        return Wire(self.port, tls=self._tls)

    def websocket(self, path: str = "/", **headers: str | None) -> Wire:
        """A client that went through it: a thread by itself, for Python's TLS takes only one at a time."""
        wire = self.wire()
        wire.send(handshake(path, **{"Host": f"localhost:{self.port}", **headers}))
        response = wire.response()
        assert response.status == 101, response
        return wire

    def ask(self, target: str, method: str = "GET", body: bytes | None = None, /, **headers: str | None) -> Response:
        """One request on a connection of its own."""
        with self.wire() as wire:
            wire.send(request(target, method, body, **{"Host": f"localhost:{self.port}", **headers}))
            return wire.response()

    def logged(self) -> str:
        return "".join(file.read_text(errors="replace") for file in self._directory.rglob("*.log"))

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)


def start_nginx(directory: Path, port: int, gateways: list[int]) -> list[str]:
    changes = {
        "127.0.0.1:3001": f"127.0.0.1:{gateways[0]}",
        "127.0.0.1:3003": f"127.0.0.1:{gateways[1]}",
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "    listen [::]:443 ssl;\n": "",
        "gateway.example.org;": "localhost;",
        "/etc/ssl/gateway.example.org.crt": str(directory / "localhost.crt"),
        "/etc/ssl/private/gateway.example.org.key": str(directory / "localhost.key"),
        "/var/log/nginx": str(directory),
    }
    (directory / "kraftek.conf").write_text(shipped("nginx.conf", changes))
    places = "".join(
        f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "main.conf").write_text(
        f"daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/main.log;\n"
        + ("user root root;\n" if os.getuid() == 0 else "")
        + f"events {{}}\nhttp {{ {places} include {directory}/kraftek.conf; }}\n"
    )
    return [program("nginx"), "-p", str(directory), "-c", str(directory / "main.conf")]


def start_haproxy(directory: Path, port: int, gateways: list[int]) -> list[str]:
    (directory / "both.pem").write_bytes(
        b"".join((directory / f"localhost.{end}").read_bytes() for end in ("crt", "key"))
    )
    changes = {
        "127.0.0.1:3001": f"127.0.0.1:{gateways[0]}",
        "127.0.0.1:3003": f"127.0.0.1:{gateways[1]}",
        "bind :443 ": f"bind 127.0.0.1:{port} ",
        "/etc/haproxy/gateway.example.org.pem": str(directory / "both.pem"),
        "log /dev/log local0": "log stdout format raw local0",
        "hdr Host gateway.example.org": "hdr Host localhost",
        "maxconn 100000": "maxconn 100",
    }
    (directory / "haproxy.cfg").write_text(shipped("haproxy.cfg", changes))
    return [program("haproxy"), "-db", "-f", str(directory / "haproxy.cfg")]


def start_caddy(directory: Path, port: int, gateways: list[int]) -> list[str]:
    """Without HTTP/3, for which the UDP port of this number is not to be had."""
    changes = {
        "127.0.0.1:3001": f"127.0.0.1:{gateways[0]}",
        "127.0.0.1:3003": f"127.0.0.1:{gateways[1]}",
        "{\n\t# No query": "{\n\tadmin off\n\tauto_https off\n\tservers {\n\t\tprotocols h1 h2\n\t}\n\t# No query",
        "gateway.example.org {": f"https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls localhost.crt localhost.key",
    }
    (directory / "Caddyfile").write_text(shipped("Caddyfile", changes))
    return [program("caddy"), "run", "--adapter", "caddyfile", "--config", "Caddyfile"]


STARTS: dict[str, Callable[[Path, int, list[int]], list[str]]] = {
    "nginx": start_nginx,
    "haproxy": start_haproxy,
    "caddy": start_caddy,
}


CONFIG = {"forwarded_for": 1}


@pytest.fixture(params=STARTS)
def put_before(request: pytest.FixtureRequest, tmp_path: Path, stage: ExitStack) -> Callable[[list[Gateway]], Proxy]:
    """Each of the proxies, before these gateways."""

    def put(gateways: list[Gateway]) -> Proxy:
        directory = tmp_path / "proxy"
        directory.mkdir()
        cert, _ = certificate(directory)
        port = free_port()
        command = STARTS[request.param](directory, port, [each.port for each in gateways])
        proxy = Proxy(command, directory, port, cert)
        stage.callback(proxy.close)
        return proxy

    return put


@pytest.fixture
def proxy(put_before: Callable[[list[Gateway]], Proxy], shared: Shared) -> Proxy:
    return put_before([shared.gateway(number, config=CONFIG) for number in range(2)])


def test_websockets_and_other_requests_go_through_again_and_again(proxy: Proxy) -> None:
    for _ in range(10):
        assert proxy.ask("/kraftek.js").status == 200
        assert proxy.ask(POLLING).body.startswith(b'0{"sid":')
        with proxy.websocket("/?token=t&roomId=r") as native:
            assert json.loads(native.frame()[1])["type"] == "connected"
            assert json.loads(native.frame()[1])["type"] == "authenticated"
            native.send(frame(Opcode.CLOSE, b"\x03\xe8"))
            assert native.frame() == (Opcode.CLOSE, b"\x03\xe8")
        with proxy.websocket(SOCKETIO) as socketio:
            assert socketio.frame()[1].startswith(b'0{"sid":')


def test_at_once_as_well(proxy: Proxy) -> None:
    """More connections than are kept, from several sides."""
    wrong: list[Exception] = []

    def visit() -> None:
        try:
            for _ in range(5):
                assert proxy.ask("/kraftek.js").status == 200
                with proxy.websocket() as native:
                    assert json.loads(native.frame()[1])["type"] == "connected"
        except Exception as error:  # noqa: BLE001  # it is the test's, not the thread's
            wrong.append(error)

    visitors = [threading.Thread(target=visit) for _ in range(8)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert wrong == [], proxy.logged()


def test_a_session_of_long_polling_stays_where_it_began(proxy: Proxy) -> None:
    for _ in range(10):
        opened = proxy.ask(POLLING)
        sid = json.loads(opened.body[1:])["sid"]
        assert proxy.ask(f"{POLLING}&sid={sid}", "POST", b"40").body == b"ok"
        assert proxy.ask(f"{POLLING}&sid={sid}").body.startswith(b'40{"sid":')
        with proxy.websocket(f"{SOCKETIO}&sid={sid}") as upgraded:
            upgraded.send(frame(Opcode.TEXT, b"2probe"))
            assert upgraded.frame() == (Opcode.TEXT, b"3probe")


def test_the_page_is_of_the_same_host_with_its_scheme(proxy: Proxy) -> None:
    with proxy.websocket(Origin=proxy.origin) as page:
        assert json.loads(page.frame()[1])["type"] == "connected"
    with proxy.wire() as wire:
        wire.send(handshake(Host=f"localhost:{proxy.port}", Origin=proxy.origin.replace("https", "http")))
        refused = wire.response()
    assert refused.status == 403
    assert b"http://localhost" in refused.body


def test_no_log_has_a_query(
    put_before: Callable[[list[Gateway]], Proxy], gateway: StartGateway, redis_server: RedisServer
) -> None:
    gateways = [gateway(redis_server, config=CONFIG) for _ in range(2)]
    proxy = put_before(gateways)
    visited = f"/kraftek.js?token={TOKEN}"
    assert proxy.ask(visited, Referer=f"https://app.test/?token={TOKEN}", Authorization=f"Bearer {TOKEN}").status == 200
    assert proxy.ask(f"/?token={TOKEN}").status == 426
    with proxy.websocket(f"/?token={TOKEN}") as native:
        native.frame()
    for process in gateways:
        process.terminate()
    for _ in range(3):
        assert proxy.ask(f"/kraftek.js?token={TOKEN}").status in {502, 503, 504}
    wait_until(lambda: "/kraftek.js" in proxy.logged(), lambda: f"a line in:\n{proxy.logged()}")
    proxy.close()
    assert TOKEN not in proxy.logged()


def test_a_cookie_of_haproxy_leads_back(
    gateway: StartGateway, redis_server: RedisServer, tmp_path: Path, stage: ExitStack
) -> None:
    cert, _ = certificate(tmp_path)
    port = free_port()
    gateways = [gateway(redis_server, config={"forwarded_for": 1, "origins": ["https://app.test"]}) for _ in range(2)]
    proxy = Proxy(start_haproxy(tmp_path, port, [each.port for each in gateways]), tmp_path, port, cert)
    stage.callback(proxy.close)
    opened = proxy.ask(POLLING, Origin="https://app.test")
    assert opened.headers["access-control-allow-credentials"] == "true"
    assert "SameSite=None" in opened.headers["set-cookie"]
    reached = []
    for number in (1, 2, 1, 2):
        with proxy.websocket(Cookie=f"KRAFTEK=gateway{number}") as native:
            reached.append(json.loads(native.frame()[1])["payload"]["socketId"].partition(".")[0])
    assert reached[:2] == reached[2:]
    assert reached[0] != reached[1]


def test_gateways_behind_nginx_are_restarted_one_after_the_other(
    gateway: StartGateway, redis_server: RedisServer, tmp_path: Path, stage: ExitStack
) -> None:
    """It takes none for dead that has refused a connection."""
    cert, _ = certificate(tmp_path)
    gateways = [gateway(redis_server, config={"forwarded_for": 1}) for _ in range(2)]
    port = free_port()
    proxy = Proxy(start_nginx(tmp_path, port, [each.port for each in gateways]), tmp_path, port, cert)
    stage.callback(proxy.close)
    listens = f"tcp:{gateways[0].port}:interface=127.0.0.1"
    gateways[0].terminate()
    with proxy.websocket() as first, proxy.websocket():
        assert json.loads(first.frame()[1])["type"] == "connected"
        gateway(redis_server, config={"forwarded_for": 1}, args=["--listen", listens])
        gateways[1].terminate()
        with proxy.websocket() as second:
            assert json.loads(second.frame()[1])["type"] == "connected"

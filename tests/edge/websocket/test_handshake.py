"""What a handshake asks for, and what is not one."""

from __future__ import annotations

import pytest

from kraftek.edge.http_responses import RefusedError
from kraftek.edge.websocket.handshake import Handshake, asks_for_websocket, read_handshake

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class Asked:
    """A request with these headers; a list is several lines."""

    def __init__(
        self, headers: dict[str, str | list[str]], method: bytes = b"GET", version: bytes = b"HTTP/1.1"
    ) -> None:
        usual: dict[str, str | list[str]] = {
            "host": "gateway.test",
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-key": KEY,
            "sec-websocket-version": "13",
        }
        self.method = method
        self.clientproto = version
        self._headers = usual | headers
        self.host_name = next(iter(self.lines("host")), "")

    def lines(self, name: str) -> list[str]:
        value = self._headers.get(name, [])
        return [value] if isinstance(value, str) else value

    def tokens(self, name: str) -> list[str]:
        return [token for each in ",".join(self.lines(name)).split(",") if (token := each.strip())]


def test_a_handshake() -> None:
    asked = Asked(
        {
            "sec-websocket-protocol": ["b, a", "b,, c"],
            "sec-websocket-extensions": ["x; y=1", "permessage-deflate"],
            "connection": "keep-alive, UPGRADE",
        }
    )
    assert asks_for_websocket(asked)
    assert read_handshake(asked) == Handshake(KEY, ("b", "a", "c"), "x; y=1, permessage-deflate")
    assert read_handshake(Asked({})) == Handshake(KEY, (), "")


@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket", "h2c, websocket"])
def test_what_asks_for_a_websocket(upgrade: str) -> None:
    assert asks_for_websocket(Asked({"upgrade": upgrade}))


@pytest.mark.parametrize("upgrade", [[], "", "h2c", "websockets", "not websocket"])
def test_what_does_not(upgrade: str | list[str]) -> None:
    assert not asks_for_websocket(Asked({"upgrade": upgrade}))


@pytest.mark.parametrize("host", ["a", "a:", "a.b.test:80", "[::1]", "[::1]:3001", "127.0.0.1:1", "a_b"])
def test_hosts(host: str) -> None:
    assert read_handshake(Asked({"host": host}))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": []}, 400),
        ({"host": ["a", "a"]}, 400),
        ({"host": ""}, 400),
        ({"host": "a:b"}, 400),
        ({"host": "a:123456"}, 400),
        ({"host": "user@a"}, 400),
        ({"host": "a/b"}, 400),
        ({"host": "[::1"}, 400),
        ({"connection": []}, 400),
        ({"connection": "keep-alive"}, 400),
        ({"sec-websocket-version": []}, 400),
        ({"sec-websocket-version": ["13", "13"]}, 400),
        ({"sec-websocket-version": "8"}, 426),
        ({"sec-websocket-version": "013"}, 426),
        ({"sec-websocket-key": []}, 400),
        ({"sec-websocket-key": [KEY, KEY]}, 400),
        ({"sec-websocket-key": KEY[:-1]}, 400),
        ({"sec-websocket-key": KEY.replace("d", "!")}, 400),
        ({"sec-websocket-key": "A" * 24}, 400),
        ({"sec-websocket-key": KEY + "\n"}, 400),
    ],
)
def test_what_is_refused(headers: dict[str, str | list[str]], status: int) -> None:
    with pytest.raises(RefusedError) as refused:
        read_handshake(Asked(headers))
    assert refused.value.response.status == status
    assert refused.value.reason == "handshake"
    assert refused.value.response.body.startswith(b"not a WebSocket handshake: expected ")


@pytest.mark.parametrize(("method", "version", "status"), [(b"POST", b"HTTP/1.1", 405), (b"GET", b"HTTP/1.0", 505)])
def test_other_requests_are_refused(method: bytes, version: bytes, status: int) -> None:
    with pytest.raises(RefusedError) as refused:
        read_handshake(Asked({}, method, version))
    assert refused.value.response.status == status


def test_a_refusal_says_what_would_do() -> None:
    with pytest.raises(RefusedError) as refused:
        read_handshake(Asked({"sec-websocket-version": "8"}))
    assert (b"Sec-WebSocket-Version", b"13") in refused.value.response.headers

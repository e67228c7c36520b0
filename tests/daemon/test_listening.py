"""Where clients connect, on real sockets of this machine."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from twisted.internet import reactor as installed
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, _SystemdParser
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.python.systemd import ListenFDs
from twisted.trial.unittest import TestCase

from kraftek.daemon.listening import server_endpoint

reactor: Any = installed


class Recording:
    """A reactor that notes what it is asked to listen on."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def noted(*args: Any, **kwargs: Any) -> None:
            self.asked.append((name, args, kwargs))

        return noted


def asked(description: str) -> dict[str, Any]:
    """How an endpoint asks a reactor to listen."""
    recording = Recording()
    server_endpoint(recording, description).listen(Factory())
    [(_, _, keywords)] = recording.asked
    return keywords


@pytest.mark.parametrize("description", ["tcp:0", "tcp:port=0:interface=127.0.0.1", "tcp6:0"])
def test_there_is_room_for_a_storm(description: str) -> None:
    assert asked(description)["backlog"] == 4096


def test_there_is_room_on_unix_sockets_too(tmp_path: Path) -> None:
    assert asked(f"unix:{tmp_path}/socket")["backlog"] == 4096


def test_a_backlog_that_is_given_is_kept() -> None:
    assert asked("tcp:0:backlog=7")["backlog"] == 7


@pytest.mark.parametrize(
    "description",
    ["", "tcp", "tcp:x", "nonsense:1", "reuseport", "reuseport:", "reuseport:x", "reuseport:1:color=red"],
)
def test_what_cannot_be_understood(description: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        server_endpoint(reactor, description)


def test_a_socket_of_systemds_is_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_SystemdParser, "_sddaemon", ListenFDs([7], ["web"]))
    for description in ("systemd:domain=INET:index=0", "systemd:domain=INET:name=web"):
        endpoint: Any = server_endpoint(reactor, description)
        assert isinstance(endpoint, AdoptedStreamServerEndpoint)
        assert (endpoint.fileno, endpoint.addressFamily) == (7, socket.AF_INET)


class SharedPortTest(TestCase):
    timeout = 10

    async def listen(self, description: str) -> Any:
        port: Any = await server_endpoint(reactor, description).listen(Factory.forProtocol(Protocol))
        self.addCleanup(port.stopListening)
        return port.getHost()

    async def test_two_share_a_number(self) -> None:
        first = await self.listen("reuseport:0:interface=127.0.0.1")
        second = await self.listen(f"reuseport:{first.port}:interface=127.0.0.1")
        assert (second.host, second.port) == (first.host, first.port)

    async def test_arguments_by_name_or_in_order(self) -> None:
        first = await self.listen("reuseport:interface=127.0.0.1:port=0")
        assert (await self.listen(f"reuseport:{first.port}:127.0.0.1")).host == "127.0.0.1"

    async def test_everywhere_unless_told(self) -> None:
        assert (await self.listen("reuseport:0")).host == "0.0.0.0"

    async def test_ipv6(self) -> None:
        first = await self.listen(r"reuseport:0:interface=\:\:1")
        second = await self.listen(rf"reuseport:{first.port}:interface=\:\:1")
        assert (first.host, second.host) == ("::1", "::1")
        assert first.port == second.port

    async def test_who_does_not_share_keeps_the_port(self) -> None:
        alone = socket.create_server(("127.0.0.1", 0))
        with closing(alone), pytest.raises(CannotListenError, match="in use"):
            await self.listen(f"reuseport:{alone.getsockname()[1]}:interface=127.0.0.1")

    async def test_a_shared_port_is_shared_with_nobody_who_does_not_ask(self) -> None:
        first = await self.listen("reuseport:0:interface=127.0.0.1")
        with pytest.raises(CannotListenError, match="in use"):
            await self.listen(f"tcp:{first.port}:interface=127.0.0.1")

"""Where clients connect, on real sockets of this machine."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import ssl
import stat
import struct
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography.x509 import DNSName
from twisted.internet import reactor as installed
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, _SystemdParser
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.python.systemd import ListenFDs
from twisted.trial.unittest import TestCase

from kraftek.contract.errors import ConfigError
from kraftek.daemon.listening import Certificates, is_shared, server_endpoint
from tests.bus.test_endpoint import Authority

reactor: Any = installed


async def listen(description: str) -> Any:
    """A port, and the socket that it listens on."""
    return await server_endpoint(reactor, description).listen(Factory.forProtocol(Protocol))


def backlog(port: Any) -> int:
    """Connections that may wait: of a socket that listens this stands where others count what was sacked (tcp(7))."""
    return int(struct.unpack_from("6I", port.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 8)[5])


MOST = int(Path("/proc/sys/net/core/somaxconn").read_text())


def test_who_else_may_accept() -> None:
    shared = ["reuseport:3001", "systemd:domain=INET:index=0", "haproxy:systemd:domain=INET:index=0"]
    own = ["tcp:3001", "ssl:443", "unix:/x", "haproxy:tcp:3001"]
    assert [is_shared(description) for description in (*shared, *own)] == [True] * 3 + [False] * 4


class BacklogTest(TestCase):
    timeout = 10

    async def test_there_is_room_for_a_storm(self) -> None:
        for description in ("tcp:0", "tcp:port=0:interface=127.0.0.1", "tcp6:0", "reuseport:0"):
            port = await listen(description)
            assert backlog(port) == min(4096, MOST), description
            await port.stopListening()

    async def test_a_backlog_that_is_given_is_kept(self) -> None:
        port = await listen("tcp:0:backlog=7")
        assert backlog(port) == 7
        await port.stopListening()


@pytest.mark.parametrize(
    "description",
    ["", "tcp", "tcp:x", "nonsense:1", "reuseport", "reuseport:", "reuseport:x", "reuseport:1:color=red"],
)
def test_what_cannot_be_understood(description: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(f"{description}: ")):
        server_endpoint(reactor, description)


# What needs rights is done when the endpoint is made.


# Twisted hands pyOpenSSL its own kind of keys.
OLD_KEYS = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


class BoundTest(TestCase):
    timeout = 10

    async def test_a_port_is_bound_at_once_and_accepts_nobody_until_it_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            number = free.getsockname()[1]
        description = f"tcp:{number}:interface=127.0.0.1"
        endpoint = server_endpoint(reactor, description)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", number))
        with socket.socket() as early:
            assert early.connect_ex(("127.0.0.1", number)) == errno.ECONNREFUSED
        port: Any = await endpoint.listen(Factory.forProtocol(Protocol))
        assert port.getHost().port == number
        with pytest.raises(CannotListenError, match="in use"):
            server_endpoint(reactor, description)
        socket.create_connection(("127.0.0.1", number)).close()
        await port.stopListening()
        with socket.socket() as late:
            assert late.connect_ex(("127.0.0.1", number)) == errno.ECONNREFUSED

    async def test_two_that_start_at_the_same_time(self) -> None:
        """Linux lets both bind while neither listens."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            description = f"tcp:{free.getsockname()[1]}:interface=127.0.0.1"
        first, second = server_endpoint(reactor, description), server_endpoint(reactor, description)
        port: Any = await first.listen(Factory.forProtocol(Protocol))
        with pytest.raises(CannotListenError, match="in use"):
            await second.listen(Factory.forProtocol(Protocol))
        await port.stopListening()

    @OLD_KEYS
    async def test_keys_are_read_at_once(self) -> None:
        with TemporaryDirectory() as directory:
            path = Path(directory)
            Authority("ours").issue(path, DNSName("localhost"))
            files = f"privateKey={path}/redis.key:certKey={path}/redis.crt"
            endpoint = server_endpoint(reactor, f"ssl:0:interface=127.0.0.1:{files}")
        port: Any = await endpoint.listen(Factory.forProtocol(Protocol))

        def greeted() -> str | None:
            anybody = ssl.create_default_context()
            anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
            with (
                socket.create_connection(("127.0.0.1", port.getHost().port), 10) as plain,
                anybody.wrap_socket(plain) as s,
            ):
                return s.version()

        assert await deferToThread(greeted) == "TLSv1.3"
        await port.stopListening()

    @OLD_KEYS
    async def test_keys_are_read_again(self) -> None:
        certificates = Certificates()
        with TemporaryDirectory() as directory:
            path = Path(directory)
            Authority("ours").issue(path, DNSName("localhost"))
            description = f"ssl:0:interface=127.0.0.1:privateKey={path}/redis.key:certKey={path}/redis.crt"
            endpoint = server_endpoint(reactor, description, certificates)
            port: Any = await endpoint.listen(Factory.forProtocol(Protocol))

            def shown() -> str:
                return ssl.get_server_certificate(("127.0.0.1", port.getHost().port), timeout=10)

            first = await deferToThread(shown)
            Authority("ours").issue(path, DNSName("localhost"))
            use = certificates.read(["tcp:0", description])
            assert await deferToThread(shown) == first
            use()
            assert await deferToThread(shown) == (path / "redis.crt").read_text() != first
            (path / "redis.key").write_text("")
            with pytest.raises(ConfigError, match="expected a private key"):
                certificates.read([description])
        await port.stopListening()


@OLD_KEYS
def test_keys_that_do_not_fit(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        Authority("ours").issue(tmp_path / name, DNSName("localhost"))
    (tmp_path / "empty").write_text("")
    fit = "expected a private key and the certificate for it, in PEM"
    for key, certificate, why in [
        ("one/redis.key", "other/redis.crt", fit),
        ("one/redis.crt", "one/redis.crt", fit),
        ("empty", "empty", fit),
        ("missing", "one/redis.crt", "No such file or directory"),
    ]:
        description = f"ssl:0:privateKey={tmp_path}/{key}:certKey={tmp_path}/{certificate}"
        with pytest.raises(ConfigError) as caught:
            server_endpoint(reactor, description)
        assert str(caught.value).startswith(f"{description}: ")
        assert why in str(caught.value)


class UnixTest(TestCase):
    timeout = 10

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "gateway.sock"

    def left(self) -> None:
        """A socket as ``kill -9`` leaves it, with what Twisted writes beside it: a process that runs."""
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(self.path))
            killed.listen()
        Path(f"{self.path}.lock").symlink_to("1")

    async def test_one_that_was_left_behind_is_replaced(self) -> None:
        self.left()
        port = await listen(f"unix:{self.path}:mode=660")
        assert stat.S_IMODE(self.path.stat().st_mode) == 0o660
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.path))
        await port.stopListening()
        assert not self.path.exists()

    async def test_one_that_is_in_use_is_not(self) -> None:
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(self.path))
            other.listen(0)
            for _ in range(3):  # also when its queue is full
                with pytest.raises(CannotListenError, match="in use"):
                    await listen(f"unix:{self.path}")
        assert self.path.is_socket()

    async def test_what_is_no_socket_is_kept(self) -> None:
        self.path.write_text("data")
        with pytest.raises(CannotListenError, match="in use"):
            await listen(f"unix:{self.path}")
        assert self.path.read_text() == "data"

    async def test_only_one_looks_at_a_time(self) -> None:
        self.left()
        directory = os.open(self.path.parent, os.O_RDONLY)
        self.addCleanup(os.close, directory)
        fcntl.flock(directory, fcntl.LOCK_EX)
        with pytest.raises(CannotListenError, match="temporarily unavailable"):
            await listen(f"unix:{self.path}")

    async def test_a_directory_that_is_not_there(self) -> None:
        with pytest.raises(CannotListenError, match="No such file or directory"):
            await listen(f"unix:{self.path}/gateway.sock")


# Sockets of systemd's


def test_no_socket_was_passed() -> None:
    for description in ("systemd:domain=INET:index=3", "systemd:domain=INET:name=web"):
        with pytest.raises(ConfigError) as caught:
            server_endpoint(reactor, description)
        assert str(caught.value) == f"{description}: systemd has passed no such socket to this process"


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


class TakenOverTest(TestCase):
    """What another version listened on."""

    timeout = 10

    async def taken(self, port: Any, description: str) -> Any:
        """The same port, listened on by this version; the other has closed its own."""
        descriptor = os.dup(port.fileno())
        port.stopReading()
        port.socket.close()
        endpoint = server_endpoint(reactor, description, Certificates(), descriptor)
        os.close(descriptor)
        found: Any = await endpoint.listen(Factory.forProtocol(Protocol))
        self.addCleanup(found.stopListening)
        return found

    async def test_ports_go_on(self) -> None:
        for description in ("tcp:0:interface=127.0.0.1", "reuseport:0:interface=127.0.0.1", "haproxy:tcp:0"):
            port = await listen(description)
            number = port.getHost().port
            found = await self.taken(port, description)
            assert found.getHost().port == number
            assert backlog(found) == min(4096, MOST)
            socket.create_connection(("127.0.0.1", number)).close()

    async def test_a_path_keeps_its_rights(self) -> None:
        with TemporaryDirectory() as directory:
            path = Path(directory, "gateway.sock")
            found = await self.taken(await listen(f"unix:{path}:mode=600"), f"unix:{path}:mode=600")
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
            await found.stopListening()
            assert not path.exists()

    @OLD_KEYS
    async def test_so_does_tls_with_its_keys_as_they_are_now(self) -> None:
        with TemporaryDirectory() as directory:
            Authority("ours").issue(Path(directory), DNSName("localhost"))
            files = f"privateKey={directory}/redis.key:certKey={directory}/redis.crt"
            description = f"ssl:0:interface=127.0.0.1:{files}"
            found = await self.taken(await listen("tcp:0:interface=127.0.0.1"), description)
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

            def shake() -> str | None:
                address = "127.0.0.1", found.getHost().port
                with socket.create_connection(address) as plain, context.wrap_socket(plain) as secure:
                    return secure.version()

            assert await deferToThread(shake)

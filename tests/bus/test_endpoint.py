"""The ways to Redis, each connected to a real server: TCP, verified TLS, a Unix socket, and nothing there."""

from __future__ import annotations

import datetime
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from twisted.internet import reactor
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from kraftek.bus import RedisBus
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Redis
from tests.support.ports import free_port
from tests.support.redis_server import PrivateRedis
from tests.support.waiting import Lines, until, until_logged


class Authority:
    """A throw-away certificate authority."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = self._sign(self.name, self.key.public_key(), usage, critical=True)

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, extension: x509.ExtensionType, *, critical: bool
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(extension, critical=critical)
            .sign(self.key, hashes.SHA256())
        )

    def file(self, path: Path) -> str:
        """Its own certificate."""
        path.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        return str(path)

    def issue(self, directory: Path, *names: x509.GeneralName) -> None:
        """A certificate with these names: ``redis.crt`` and ``redis.key``."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
        certificate = self._sign(subject, key.public_key(), x509.SubjectAlternativeName(names), critical=False)
        (directory / "redis.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (directory / "redis.key").write_bytes(secret)


# TLS before a redis-server, of which not every build speaks it: `python -c TLS_FRONT CERTIFICATE KEY REDIS_PORT`.
TLS_FRONT = """
import sys
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.protocols.portforward import ProxyFactory

certificate, key, redis = sys.argv[1:]
endpoint = serverFromString(reactor, f"ssl:0:interface=127.0.0.1:certKey={certificate}:privateKey={key}")
endpoint.listen(ProxyFactory("127.0.0.1", int(redis))).addCallback(lambda port: print(port.getHost().port, flush=True))
reactor.run()
"""


class EndpointTest(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.redis = PrivateRedis()
        self.addCleanup(self.redis.close)
        self.port = free_port()

    def start(self, url: str, **config: Any) -> RedisBus:
        bus = RedisBus(reactor, Redis(url=url, **config), Iteration(reactor), Counters())
        bus.startService()
        self.addCleanup(bus.stopService)
        return bus

    async def check(self, bus: RedisBus) -> None:
        """It works."""
        await until(lambda: bus.available, "a connection to Redis")
        assert await bus.call("PING") == b"PONG"

    async def refused(self, url: str, why: str, **config: Any) -> None:
        """It is tried more than once and never works; the log says why."""
        with capturedLogs() as events:
            bus = self.start(url, **config)
            await until_logged(events, why, timeout=20.0)
        assert not bus.available

    def start_tls(self, authority: Authority, *names: x509.GeneralName) -> None:
        directory = self.redis.directory
        authority.issue(directory, *names)
        plain = free_port()
        self.redis.start("--port", str(plain))
        arguments = [str(directory / "redis.crt"), str(directory / "redis.key"), str(plain)]
        front = subprocess.Popen(
            [sys.executable, "-P", "-c", TLS_FRONT, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.addCleanup(front.wait, 10)
        self.addCleanup(front.kill)
        assert front.stdout is not None
        self.port = int(Lines(front.stdout).next("its port", 20.0))

    async def test_tcp_by_address(self) -> None:
        self.redis.start("--port", str(self.port))
        await self.check(self.start(f"redis://127.0.0.1:{self.port}"))

    async def test_tcp_by_name(self) -> None:
        self.redis.start("--port", str(self.port))
        await self.check(self.start(f"redis://localhost:{self.port}/3"))

    async def test_a_unix_socket(self) -> None:
        self.redis.start()
        await self.check(self.start(f"unix://{self.redis.path}?db=1"))

    async def test_tls_by_name_and_by_address(self) -> None:
        authority = Authority("ours")
        self.start_tls(authority, x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")))
        ca = authority.file(self.redis.directory / "ca.crt")
        await self.check(self.start(f"rediss://localhost:{self.port}", ca=ca))
        await self.check(self.start(f"rediss://127.0.0.1:{self.port}", ca=ca))

    async def test_tls_with_several_authorities_in_the_file(self) -> None:
        authority = Authority("ours")
        self.start_tls(authority, x509.DNSName("localhost"))
        ca = self.redis.directory / "ca.crt"
        others = [Path(Authority("other").file(self.redis.directory / "other.crt")).read_bytes() for _ in range(2)]
        authority.file(ca)
        ca.write_bytes(b"".join([others[0], ca.read_bytes(), others[1]]))
        await self.check(self.start(f"rediss://localhost:{self.port}", ca=str(ca)))

    async def test_tls_from_an_unknown_authority_is_refused(self) -> None:
        self.start_tls(Authority("theirs"), x509.DNSName("localhost"))
        ca = Authority("ours").file(self.redis.directory / "ca.crt")
        await self.refused(f"rediss://localhost:{self.port}", "certificate verify failed", ca=ca)

    async def test_tls_is_not_trusted_without_being_told_to(self) -> None:
        self.start_tls(Authority("theirs"), x509.DNSName("localhost"))
        await self.refused(f"rediss://localhost:{self.port}", "certificate verify failed")

    async def test_tls_for_another_name_is_refused(self) -> None:
        authority = Authority("ours")
        self.start_tls(authority, x509.DNSName("redis.example"))
        ca = authority.file(self.redis.directory / "ca.crt")
        await self.refused(f"rediss://localhost:{self.port}", "VerificationError", ca=ca)

    async def test_tls_where_none_is_spoken(self) -> None:
        self.redis.start("--port", str(self.port))
        await self.refused(f"rediss://localhost:{self.port}", f"Redis at localhost:{self.port} is unavailable")

    async def test_nothing_there_is_said_without_the_password(self) -> None:
        with capturedLogs() as events:
            bus = self.start(f"redis://:secret@127.0.0.1:{self.port}")
            said = f"Redis at 127.0.0.1:{self.port} is unavailable, trying again: Connection was refused"
            await until_logged(events, said)
        assert not bus.available
        assert "secret" not in repr(events)

    def test_an_authority_file_that_is_none_is_an_error_at_once(self) -> None:
        missing = self.redis.directory / "ca.crt"
        with pytest.raises(FileNotFoundError):
            self.start("rediss://localhost", ca=str(missing))
        missing.write_text("nothing")
        with pytest.raises(ValueError, match="PEM"):
            self.start("rediss://localhost", ca=str(missing))

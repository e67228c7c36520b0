"""With TLS: a read has several records, and all of them are handed out, also when the first made its reader pause."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL
from twisted.internet.ssl import ContextFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from websockets.frames import Frame, Opcode

from tests.edge.websocket.edge import RecordingTransport, handshake
from tests.edge.websocket.test_unhandled import World, texts
from tests.integration.wire import certificate

A_READ = 65_536
"""Bytes that Twisted reads at a time."""


class OneCertificate(ContextFactory):
    """Shows these."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._context = SSL.Context(SSL.TLS_SERVER_METHOD)
        self._context.use_certificate_file(str(cert))
        self._context.use_privatekey_file(str(key))

    def getContext(self) -> SSL.Context:
        return self._context


class TlsClient:
    """Lets the gateway read what it says in as few reads as possible."""

    def __init__(self, world: World, directory: Path) -> None:
        cert, key = certificate(directory)
        contexts: Any = OneCertificate(cert, key)
        self.transport = RecordingTransport()
        self.server: Any = TLSMemoryBIOFactory(contexts, False, world.edge.site).buildProtocol(None)
        self.server.makeConnection(self.transport)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(cert))
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        while not self._greeted():
            self.server.dataReceived(self._out.read())
            self._in.write(self.transport.value())
            self.transport.clear()
        self.say(handshake())

    @property
    def protocol(self) -> Any:
        return self.server.wrappedProtocol

    def say(self, data: bytes) -> None:
        """It arrives in one read."""
        self._tls.write(data)
        read = self._out.read()
        assert len(read) <= A_READ
        self.server.dataReceived(read)

    def _greeted(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True


@pytest.mark.parametrize("fastpath", [True, False], ids=["fastpath", "plain"])
def test_what_a_read_has_behind_a_large_message_joins_its_turn(
    fastpath: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(fastpath)
    client = TlsClient(world, tmp_path)
    protocol = client.protocol
    session, delivered = protocol.session, []
    received = type(protocol).dataReceived

    def noted(self: Any, data: bytes) -> None:
        delivered.append((len(data), client.transport.producerState))
        received(self, data)

    monkeypatch.setattr(type(protocol), "dataReceived", noted)
    large = b"x" * 50_000
    first, last = texts(500), texts(700, first=500)
    client.say(first + Frame(Opcode.TEXT, large, True).serialize(mask=True) + last)
    # The first record made it pause; the other three came all the same, and nothing else is read now.
    assert [state for _, state in delivered] == ["producing", "paused", "paused", "paused"]
    assert client.transport.producerState == "paused"
    kept = sum(size for size, _ in delivered)
    assert 0 < world.accounts.unhandled < kept
    world.iterate_all()
    numbers = [b"%d" % number for number in range(1200)]
    assert session.heard == [*numbers[:500], large, *numbers[500:]]
    assert client.transport.producerState == "producing"

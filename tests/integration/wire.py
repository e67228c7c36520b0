"""An HTTP/1.1 connection as a test wants it: raw bytes out, parsed responses and WebSocket frames in."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from websockets.frames import Frame, Opcode

__all__ = ["KEY", "Response", "Wire", "certificate", "frame", "handshake", "request"]

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""The key of RFC 6455, section 1.3."""


class Response(NamedTuple):
    """A response; the names of headers are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """A connection to a port of this machine."""

    def __init__(
        self,
        port: int,
        timeout: float = 10.0,
        tls: ssl.SSLContext | None = None,
        *,
        host: str = "127.0.0.1",
        source: str = "",
    ) -> None:
        self.socket = socket.create_connection((host, port), timeout, (source, 0) if source else None)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self._read = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _more(self) -> bool:
        data = self.socket.recv(65536)
        self._read += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        while len(self._read) < size:
            if not self._more():
                raise AssertionError(f"closed after {self._read!r}")
        taken, self._read = self._read[:size], self._read[size:]
        return taken

    def response(self, *, body: bool = True) -> Response:
        """The next response; ``body``: whether one follows, as it does not for HEAD."""
        while b"\r\n\r\n" not in self._read:
            if not self._more():
                raise AssertionError(f"closed after {self._read!r}")
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = int(headers.get("content-length", 0)) if body else 0
        return Response(int(status.split(" ")[1]), headers, self._take(size))

    def frame(self) -> tuple[int, bytes]:
        """The opcode and the payload of the next WebSocket frame."""
        first, size = self._take(2)
        if size > 125:
            size = int.from_bytes(self._take(2 if size == 126 else 8), "big")
        return first & 15, self._take(size)

    def closed(self) -> bool:
        """Whether the other side closes, and says nothing more before that."""
        with suppress(ConnectionResetError):
            self._more()
        return not self._read


def request(target: str = "/", method: str = "GET", body: bytes | None = None, /, **headers: str | None) -> bytes:
    """A request; ``_`` in the names of headers stands for ``-``, and ``None`` leaves one out."""
    given: dict[str, str | None] = {"Host": "gateway.test"}
    if body is not None:
        given["Content-Length"] = str(len(body))
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
    return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode("latin-1") + (body or b"")


def handshake(target: str = "/", **headers: str | None) -> bytes:
    """A WebSocket handshake, as :func:`request`."""
    usual = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Key": KEY, "Sec_WebSocket_Version": "13"}
    return request(target, **{**usual, **headers})


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A client's WebSocket frame."""
    return Frame(Opcode(opcode), payload, fin).serialize(mask=True)


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate of ``localhost`` and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert, private = directory / "localhost.crt", directory / "localhost.key"
    cert.write_bytes(made.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return cert, private

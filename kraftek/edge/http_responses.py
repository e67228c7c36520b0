"""What :mod:`kraftek.edge.http_server` answers, and how a connection ends with that."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from twisted.internet.interfaces import ISSLTransport

from kraftek.contract.metrics import RefusalReason

__all__ = ["RefusedError", "Response", "end_writing", "printable"]


class Response(Struct, frozen=True):
    """An answer. ``closes``: it is the last one on its connection."""

    status: int
    body: bytes = b""
    content_type: bytes = b"text/plain; charset=utf-8"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    closes: bool = False


class RefusedError(Exception):
    """A client is refused: the answer, and how it is counted.

    The text, one line, is also the body unless another one is given. It repeats nothing in which a token may stand.
    """

    def __init__(
        self,
        status: int,
        reason: RefusalReason,
        text: str,
        *,
        json: bytes | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(text)
        self.reason = reason
        if json is None:
            self.response = Response(status, f"{text}\n".encode(), headers=headers)
        else:
            self.response = Response(status, json, b"application/json", headers)


def printable(text: str, length: int = 200) -> str:
    """What a stranger sent, fit for a log or an answer."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:length])


def end_writing(transport: Any) -> None:
    """Close the connection for writing, and continue reading: closing with unread data resets a connection, and the
    last data written is lost. TLS has a closing alert of its own.
    """
    if ISSLTransport.providedBy(transport) or not hasattr(transport, "loseWriteConnection"):
        transport.loseConnection()
    else:
        transport.loseWriteConnection()

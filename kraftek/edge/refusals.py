"""Connections that are refused as soon as they are accepted: they are told why, and nothing of them is read.

Used by :mod:`kraftek.edge.public_site`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString

from kraftek.edge.http_responses import end_writing
from kraftek.edge.http_server import SERVER

__all__ = ["LINGERING", "Refusals"]

LINGERING = 16
"""Refused connections at most whose other side has yet to read the answer."""

_LINGER = 2.0
"""Seconds that it has for that. Closed earlier, with a request unread, TCP resets the connection, and the answer may be
lost."""

_BODY = b"too many connections from this address\n"

# Which page asks is not known here; to read no more than this any may.
_ANSWER = b"\r\n".join(
    (
        b"HTTP/1.1 429 Too Many Requests",
        b"Server: %s" % SERVER.encode(),
        b"Date: %s",
        b"Access-Control-Allow-Origin: *",
        b"Content-Type: text/plain; charset=utf-8",
        b"Content-Length: %d" % len(_BODY),
        b"Connection: close",
        b"",
        _BODY,
    )
)


class Refusals:
    """The refused connections that linger; when there are too many of them the oldest is cut off."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._lingering: dict[_Refusal, IDelayedCall] = {}

    def refuse(self) -> Protocol:
        """What speaks on a connection that is refused."""
        return _Refusal(self)

    def began(self, refusal: _Refusal) -> None:
        """One is told."""
        if len(self._lingering) >= LINGERING:
            next(iter(self._lingering)).abort()
        self._lingering[refusal] = self._clock.callLater(_LINGER, refusal.abort)

    def ended(self, refusal: _Refusal) -> None:
        """One is gone, or is about to be."""
        deadline = self._lingering.pop(refusal, None)
        if deadline is not None and deadline.active():
            deadline.cancel()


class _Refusal(Protocol):
    transport: Any

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    def connectionMade(self) -> None:
        self.transport.write(_ANSWER % datetimeToString())
        end_writing(self.transport)
        self._refusals.began(self)

    def abort(self) -> None:
        self._refusals.ended(self)
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._refusals.ended(self)

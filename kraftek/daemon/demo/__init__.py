"""Something to play with: the files of the board, and the notes service as a child of the gateway.

``kraftek.daemon.lifecycle`` uses both for ``--demo``. The service itself, ``notes.py``, is a program of its own, on the
kit for service authors: nothing here knows what it does.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IProcessTransport
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

#: The directory of the page, to be served as it stands: ``index.html``, and what that names beside it.
BOARD = Path(__file__).parent / "board"

#: Started by its path, not with ``-m``: so it does not import this package, and with it Twisted, for nothing.
NOTES = Path(__file__).parent / "notes.py"

#: Seconds between the end of the process and its next start, by the number of ends in a row.
BACK_OFF = backoffPolicy(initialDelay=0.5, maxDelay=30.0, factor=2.0)
#: A process that lived for so many seconds was well: the next back-off begins from the bottom.
WELL = 60.0
#: Seconds that the process gets to end by itself before it is killed. It needs some milliseconds.
GRACE = 2.0
#: Bytes of a log line; what is longer is cut.
LINE = 1000


class NotesService(Service):
    """Keeps one process of the notes service running for as long as the gateway runs.

    The process reads a pipe whose other end only the gateway has, and ends when that is closed: nothing is
    orphaned, even when the gateway is killed. When it ends by itself it is started again, later and later.
    """

    _log = Logger()

    def __init__(self, reactor: Any, redis: str, prefix: str = "") -> None:
        """``reactor`` is an IReactorProcess and IReactorTime; ``redis`` and ``prefix`` are those of ``[redis]``."""
        self._reactor = self._clock = reactor
        # Not as arguments: there may be a password in it, and everybody can read those.
        self._environment = {**os.environ, "REDIS_URL": redis, "REDIS_PREFIX": prefix}
        self._process: IProcessTransport | None = None
        self._next: IDelayedCall | None = None  # the next start, or while stopping the kill
        self._gone: Deferred[None] | None = None
        self._ends = 0
        self._started = 0.0

    def startService(self) -> None:
        """Start the process; it waits for Redis by itself."""
        super().startService()
        self._start()

    def stopService(self) -> Deferred[None]:
        """Take the process down; fires with None when it is gone, within ``GRACE`` seconds and a little."""
        super().stopService()
        self._cancel_next()
        if self._process is None:
            return succeed(None)
        self._gone = Deferred()
        self._next = self._reactor.callLater(GRACE, self._process.signalProcess, "KILL")
        self._process.closeStdin()
        return self._gone

    def _start(self) -> None:
        self._next = None
        self._started = self._clock.seconds()
        self._process = self._reactor.spawnProcess(
            _Output(self._said, self._ended), sys.executable, [sys.executable, str(NOTES)], env=self._environment
        )

    def _said(self, line: str) -> None:
        self._log.info("Notes service: {line}", line=line)

    def _ended(self, reason: Failure) -> None:
        self._process = None
        self._cancel_next()
        if self._gone is not None:
            gone, self._gone = self._gone, None
            gone.callback(None)
            return
        now = self._clock.seconds()
        self._ends = 0 if now - self._started > WELL else self._ends + 1
        delay = BACK_OFF(self._ends)
        self._log.warn(
            "Notes service ended ({reason}), starts again in {delay:.1f} s", reason=reason.value, delay=delay
        )
        self._next = self._reactor.callLater(delay, self._start)

    def _cancel_next(self) -> None:
        if self._next is not None and self._next.active():
            self._next.cancel()
        self._next = None


class _Output(ProcessProtocol):
    """The gateway's side of the process: its log, line by line, and its end."""

    def __init__(self, said: Callable[[str], None], ended: Callable[[Failure], None]) -> None:
        self._said = said
        self._ended = ended
        self._rest = b""

    def errReceived(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:LINE]
        for line in lines:
            self._said(line[:LINE].decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        if self._rest:
            self.errReceived(b"\n")
        self._ended(reason)

"""The demo: the files of the board, and the notes service as a child process of the gateway.

``kraftek.daemon.lifecycle`` uses both for ``--demo``. The service itself, ``notes.py``, is a separate program that uses
:mod:`kraftek.service`; this module only runs it.
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

#: The directory of the page, served as it is: ``index.html`` and the files beside it.
BOARD = Path(__file__).parent / "board"

#: Started by its path, not with ``-m``, so that it does not import this package and Twisted for nothing.
NOTES = Path(__file__).parent / "notes.py"

#: Seconds between the end of the process and its next start, by the number of ends in a row.
BACK_OFF = backoffPolicy(initialDelay=0.5, maxDelay=30.0, factor=2.0)
#: After so many seconds a process counts as healthy, and the back-off starts again from the shortest delay.
WELL = 60.0
#: Seconds that the process has to end by itself before it is killed. It needs some milliseconds.
GRACE = 2.0
#: Bytes of a log line; longer ones are cut.
LINE = 1000


class NotesService(Service):
    """Keeps one process of the notes service running for as long as the gateway runs.

    The process reads a pipe whose other end only the gateway has, and ends when that is closed, so that it is not
    orphaned even when the gateway is killed. When it ends by itself it is restarted, with a back-off.
    """

    _log = Logger()

    def __init__(self, reactor: Any, redis: str, prefix: str = "") -> None:
        """``reactor`` is an IReactorProcess and IReactorTime; ``redis`` and ``prefix`` are those of ``[redis]``."""
        self._reactor = self._clock = reactor
        # Not as arguments: the URL may contain a password, and every user of the machine can read arguments.
        self._environment = {**os.environ, "REDIS_URL": redis, "REDIS_PREFIX": prefix}
        self._process: IProcessTransport | None = None
        self._next: IDelayedCall | None = None  # the next start, or while stopping the kill
        self._stopped: Deferred[None] | None = None
        self._ends = 0
        self._started = 0.0

    def startService(self) -> None:
        """Start the process; it waits for Redis by itself."""
        super().startService()
        self._start()

    def stopService(self) -> Deferred[None]:
        """Stop the process; fires with None when it has ended, within ``GRACE`` seconds and a little."""
        super().stopService()
        self._cancel_next()
        if self._process is None:
            return succeed(None)
        self._stopped = Deferred()
        self._next = self._reactor.callLater(GRACE, self._process.signalProcess, "KILL")
        self._process.closeStdin()
        return self._stopped

    def _start(self) -> None:
        self._next = None
        self._started = self._clock.seconds()
        self._process = self._reactor.spawnProcess(
            _Output(self._log_line, self._ended), sys.executable, [sys.executable, str(NOTES)], env=self._environment
        )

    def _log_line(self, line: str) -> None:
        self._log.info("Notes service: {line}", line=line)

    def _ended(self, reason: Failure) -> None:
        self._process = None
        self._cancel_next()
        if self._stopped is not None:
            stopped, self._stopped = self._stopped, None
            stopped.callback(None)
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
    """The gateway's side of the process: passes on its log, line by line, and its end."""

    def __init__(self, log_line: Callable[[str], None], ended: Callable[[Failure], None]) -> None:
        self._log_line = log_line
        self._ended = ended
        self._rest = b""

    def errReceived(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:LINE]
        for line in lines:
            self._log_line(line[:LINE].decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        if self._rest:
            self.errReceived(b"\n")
        self._ended(reason)

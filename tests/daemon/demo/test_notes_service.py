"""The notes service as a child of the gateway: real processes, and a clock where time matters."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.error import ProcessTerminated
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from kraftek.daemon.demo import BOARD, GRACE, LINE, NotesService
from tests.support.waiting import until

NOWHERE = "unix:///nowhere/redis.sock"


class Spawned:
    """A process that a test says everything about."""

    def __init__(self, protocol: ProcessProtocol) -> None:
        self.protocol = protocol
        self.done: list[str] = []

    def closeStdin(self) -> None:
        self.done.append("end of input")

    def signalProcess(self, name: str) -> None:
        self.done.append(name)

    def end(self) -> None:
        self.protocol.processEnded(Failure(ProcessTerminated(1)))


class Spawning(Clock):
    """A reactor that starts no processes, but remembers which it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Spawned] = []

    def spawnProcess(self, protocol: ProcessProtocol, *command: Any, **options: Any) -> Spawned:
        self.processes.append(Spawned(protocol))
        return self.processes[-1]

    def next_start(self) -> float:
        """Let it come to the next start; how long that took."""
        before, known = self.seconds(), len(self.processes)
        (call,) = self.getDelayedCalls()
        self.advance(call.getTime() - self.seconds())
        assert len(self.processes) == known + 1
        return self.seconds() - before


@implementer(ILogObserver)
class Lines(list[str]):
    """What the service under test logs."""

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_namespace") == "kraftek.daemon.demo.NotesService":
            self.append(formatEvent(event))


class LoggedTestCase(TestCase):
    """Keeps what is logged."""

    def setUp(self) -> None:
        self.lines = Lines()
        globalLogPublisher.addObserver(self.lines)
        self.addCleanup(globalLogPublisher.removeObserver, self.lines)


class TimeTest(LoggedTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.reactor = Spawning()
        self.service = NotesService(self.reactor, NOWHERE)
        self.service.startService()

    def test_starts_again_later_and_later(self) -> None:
        waits = []
        for _ in range(10):
            self.reactor.processes[-1].end()
            waits.append(self.reactor.next_start())

        # Each wait has up to one second of jitter in it.
        assert 0.5 <= waits[0] <= 3
        assert waits[4] > waits[0]
        assert 30 <= waits[9] <= 31
        assert len([line for line in self.lines if "starts again in" in line]) == 10

    def test_starts_again_soon_after_a_good_life(self) -> None:
        for _ in range(8):
            self.reactor.processes[-1].end()
            self.reactor.next_start()
        self.reactor.advance(61)
        self.reactor.processes[-1].end()

        assert self.reactor.next_start() < 3

    def test_stops_by_end_of_input(self) -> None:
        (process,) = self.reactor.processes
        stopped = self.service.stopService()
        assert process.done == ["end of input"]
        self.assertNoResult(stopped)

        process.end()

        self.successResultOf(stopped)
        assert self.reactor.getDelayedCalls() == []
        assert self.reactor.processes == [process]

    def test_kills_what_does_not_end(self) -> None:
        (process,) = self.reactor.processes
        stopped = self.service.stopService()
        self.reactor.advance(GRACE)
        assert process.done == ["end of input", "KILL"]
        self.assertNoResult(stopped)

        process.end()

        self.successResultOf(stopped)

    def test_stops_between_two_starts(self) -> None:
        self.reactor.processes[-1].end()

        self.successResultOf(self.service.stopService())

        assert self.reactor.getDelayedCalls() == []

    def test_can_be_started_after_a_stop(self) -> None:
        self.service.stopService()
        self.reactor.processes[-1].end()

        self.service.startService()

        assert len(self.reactor.processes) == 2

    def test_logs_whole_lines(self) -> None:
        protocol = self.reactor.processes[-1].protocol
        protocol.childDataReceived(2, b"one\ntwo")
        protocol.childDataReceived(2, b" and a half\n\xff\n" + b"x" * (LINE + 7))
        protocol.childDataReceived(1, b"standard output is nobody's\n")
        self.reactor.processes[-1].end()

        assert self.lines[:4] == [
            "Notes service: one",
            "Notes service: two and a half",
            "Notes service: \ufffd",
            "Notes service: " + "x" * LINE,
        ]


@pytest.mark.process
class ProcessTest(LoggedTestCase):
    timeout = 20

    def setUp(self) -> None:
        super().setUp()
        self.service = NotesService(reactor, NOWHERE)
        self.service.startService()
        self.addCleanup(self.service.stopService)

    def pid(self) -> int:
        process: Any = self.service._process
        return int(process.pid)

    def alive(self, pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    async def test_runs_the_service(self) -> None:
        # There is no Redis, and it says so: it runs, and its log is ours.
        await until(
            lambda: any("Redis is unavailable" in line for line in self.lines),
            lambda: f"that Redis is unavailable, in {self.lines}",
        )

    async def test_starts_it_again(self) -> None:
        first = self.pid()
        os.kill(first, signal.SIGKILL)

        await until(lambda: self.service._process is not None and self.pid() != first, "another process")

        assert not self.alive(first)
        assert any("starts again in" in line for line in self.lines)

    async def test_leaves_nothing_behind(self) -> None:
        await until(lambda: self.lines, "a line of the service's log")
        pid = self.pid()

        await self.service.stopService()

        assert not self.alive(pid)

    async def test_leaves_nothing_behind_that_is_stuck(self) -> None:
        await until(lambda: self.lines, "a line of the service's log")
        pid = self.pid()
        os.kill(pid, signal.SIGSTOP)

        await self.service.stopService()

        assert not self.alive(pid)

    async def test_stops_before_it_has_begun(self) -> None:
        pid = self.pid()  # of a process that Python has not even begun to run in

        await self.service.stopService()

        assert not self.alive(pid)


class BoardTest(TestCase):
    def test_the_files_are_installed(self) -> None:
        assert sorted(path.name for path in BOARD.iterdir()) == [
            "board.css",
            "board.js",
            "docs",
            "favicon.svg",
            "index.html",
        ]

    def test_the_page_asks_nobody_else(self) -> None:
        for path in (path for path in BOARD.iterdir() if path.is_file()):
            text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
            assert "http:" not in text
            assert "https:" not in text.replace('"https:"', "")
            assert "innerHTML" not in text

    def test_the_page_lets_nobody_in(self) -> None:
        policy = "default-src 'self'; connect-src 'self' ws: wss:"
        page = (BOARD / "index.html").read_text("utf-8")
        assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in page

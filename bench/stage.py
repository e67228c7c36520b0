"""Starts and stops what a run needs: a private Redis, the service, the gateway in question and the load.

`bench.workloads` plays on it. Every run has a gateway and a load of its own, on a port not used before; what they
print is kept in files. When a run is over they are killed: nothing of theirs is worth a farewell.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.contenders import Contender, Site
from bench.measure import family, resident_bytes
from bench.orders import Order, Outcome, Setting

START_SECONDS = 20.0
"""How long a process may take to be ready."""
LOAD_CLIENTS = 100_000
"""More clients than a load can have."""


class NotStartedError(Exception):
    """A process ended, or was not ready in time; the text holds the end of what it printed."""


class Load:
    """One load process."""

    def __init__(self, process: subprocess.Popen[bytes], setting: Setting) -> None:
        self._process = process
        self._write(setting)

    def do(self, order: Order) -> Outcome:
        """Have the order carried out and give its outcome; raises `RuntimeError` when the load is no more."""
        self.begin(order)
        return self.end()

    def begin(self, order: Order) -> None:
        """Give the order and do not wait: other loads may work at the same time."""
        self._write(order)

    def end(self) -> Outcome:
        """Wait for the outcome of the order given last."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the load ended")
        return msgspec.json.decode(line, type=Outcome)

    def _write(self, line: Order | Setting) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(line) + b"\n")
        self._process.stdin.flush()


@dataclass(frozen=True)
class Show:
    """One contender under load."""

    pids: list[list[int]]
    """The processes of each gateway process started: itself and its descendants."""
    loads: list[Load]

    def do(self, order: Order) -> Outcome:
        """Have the one load carry out an order."""
        return self.loads[0].do(order)

    def resident_bytes(self) -> int:
        """Give the resident memory of the gateway."""
        return sum(map(resident_bytes, self.pids))


class Stage:
    """A Redis and a service, for one run after another."""

    def __init__(self, directory: Path, logs: Path, redis_port: int, pids: dict[str, list[int]]) -> None:
        self._directory = directory
        self._logs = logs
        self._redis_port = redis_port
        self._pids = pids

    @contextlib.contextmanager
    def show(
        self, contender: Contender, ping_seconds: float, processes: int = 1, loads: int = 1, sticky: bool = False
    ) -> Iterator[Show]:
        """Start the contender and the load; raises `UnavailableError` or `NotStartedError`.

        ``sticky``: each process has a port of its own, and all in a room are connected to the same one; otherwise the
        kernel distributes them.
        """
        ports = [_free_port() for _ in range(processes if sticky else 1)]
        log = self._logs / f"{contender.name}.log"
        with contextlib.ExitStack() as running:
            gateways = []
            for number in range(processes):
                port = ports[number % len(ports)]
                home = self._directory / f"{contender.name}-{port}-{number}"
                home.mkdir()
                running.callback(shutil.rmtree, home, ignore_errors=True)
                site = Site(port, self._redis_port, ping_seconds, home, shared_port=processes > len(ports))
                gateways.append(running.enter_context(_running(contender.command(site), log)))
            _wait(lambda: sum(map(_listeners, ports)) >= processes, gateways, log)
            pids = [family(gateway.pid) for gateway in gateways]
            roles = self._pids | {f"gateway {number}": each for number, each in enumerate(pids, 1)}
            show = Show(pids, [])
            for number in range(loads):
                setting = Setting(ports, self._redis_port, contender.dialect, number * LOAD_CLIENTS, roles)
                command = [sys.executable, "-m", "bench.load"]
                process = running.enter_context(_running(command, self._logs / "load.log", piped=True))
                show.loads.append(Load(process, setting))
            yield show
        with socket.create_connection(("127.0.0.1", self._redis_port)) as redis:
            redis.sendall(b"FLUSHALL\r\n")
            redis.recv(100)


@contextlib.contextmanager
def open_stage(logs: Path) -> Iterator[Stage]:
    """Start the Redis and the service, and take them down again; raises `NotStartedError`."""
    redis_server = shutil.which("redis-server")
    if redis_server is None:
        raise NotStartedError("redis-server is not on PATH")
    with contextlib.ExitStack() as running:
        directory = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="kraftek-bench-")))
        port = _free_port()
        keep_nothing = ["--save", "", "--appendonly", "no", "--dir", str(directory)]
        # A contender that falls behind is to be measured, not thrown out by Redis.
        never_throw_out = ["--client-output-buffer-limit", "pubsub 0 0 0"]
        command = [redis_server, "--bind", "127.0.0.1", "--port", str(port), *keep_nothing, *never_throw_out]
        redis = running.enter_context(_running(command, logs / "redis.log"))
        _wait(lambda: _listeners(port) > 0, [redis], logs / "redis.log")
        command = [sys.executable, "-m", "bench.echo", str(port)]
        log = logs / "echo.log"
        echo = running.enter_context(_running(command, log))
        _wait(lambda: log.read_text().endswith("ready\n"), [echo], log)
        yield Stage(directory, logs, port, {"redis": [redis.pid], "service": [echo.pid]})


@contextlib.contextmanager
def _running(command: list[str], log: Path, piped: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command, its descendants in a process group with it, until the block ends."""
    pipe = subprocess.PIPE if piped else None
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def _wait(ready: Callable[[], bool], processes: list[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
            raise NotStartedError(f"{log.name}: {log.read_text(errors='replace').strip()[-400:]}")
        time.sleep(0.02)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _listeners(port: int) -> int:
    """Give how many sockets listen on a port of 127.0.0.1: looking at them costs them nothing."""
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1] == f"0100007F:{port:04X}" and row[3] == "0A" for row in table)

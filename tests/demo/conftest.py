"""A redis-server of one test, which it may stop and start again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from kraftek.bus.embedded import redis_server_path


class RedisServer:
    """On a Unix socket; it keeps nothing from one start to the next."""

    def __init__(self, directory: Path) -> None:
        self._socket = directory / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    def start(self) -> None:
        self._process = subprocess.Popen(
            [redis_server_path(), "--port", "0", "--unixsocket", self._socket, "--save", "", "--logfile", "/dev/null"],
            cwd=self._socket.parent,
        )  # fmt: skip
        answered = False
        while not answered:
            assert self._process.poll() is None, "redis-server did not start"
            with suppress(redis.ConnectionError), redis.Redis.from_url(self.url) as client:
                answered = bool(client.ping())

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()

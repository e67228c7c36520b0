"""Services and gateways end when they are asked to, whatever has become of Redis and its sentinels."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import GATEWAY_VARIABLE, toml
from tests.service.instances import program
from tests.support.ports import free_port
from tests.support.redis_server import PrivateRedis
from tests.support.sentinels import Sentinels
from tests.support.waiting import Lines

if TYPE_CHECKING:
    from contextlib import ExitStack

SERVICE = {"transport": "stream", "grace": 1.0}
BOUND = 15.0
"""Seconds from SIGTERM to the end, on a busy machine: the grace, and the time-outs of what is asked just then."""


class Silent:
    """A server that accepts, and says nothing."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.asked = threading.Event()
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self._connections.append(connection)
                if connection.recv(1):
                    self.asked.set()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for connection in self._connections:
            connection.close()


class Place:
    """Where a program is to find Redis. ``closes``: with the test."""

    said = ""
    """The program is there when it has said so, or has asked ``silent``, the first such server."""

    def __init__(self, stage: ExitStack) -> None:
        self._stage = stage
        self.silent: Silent | None = None
        self.url = self.make()

    def make(self) -> str:
        """Start what there is; its URL."""
        raise NotImplementedError

    def spoil(self) -> None:
        """What happens once the program is there."""

    def mute(self) -> Silent:
        silent = Silent()
        self._stage.callback(silent.close)
        self.silent = self.silent or silent
        return silent

    def sentinel(self, master: int) -> str:
        """A sentinel that names this port as the master's."""
        sentinels = Sentinels()
        self._stage.callback(sentinels.close)
        sentinels.server_ports[0] = master
        sentinels.start_sentinel(sentinels.ports[0])
        return f"redis+sentinel://127.0.0.1:{sentinels.ports[0]}/mymaster/0"


class SilentRedis(Place):
    def make(self) -> str:
        return f"redis://127.0.0.1:{self.mute().port}/0"


class SilentSentinels(Place):
    def make(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{self.mute().port}' for _ in range(3))}/mymaster/0"


class SilentMaster(Place):
    def make(self) -> str:
        return self.sentinel(self.mute().port)


class DeadMaster(Place):
    said = "unavailable"

    def make(self) -> str:
        return self.sentinel(free_port())


class FrozenRedis(Place):
    def make(self) -> str:
        self._redis = PrivateRedis()
        self._stage.callback(self._redis.close)
        self._redis.start()
        return self._redis.url

    def spoil(self) -> None:
        self._redis.freeze()


class Program:
    """A program that has its Redis there."""

    def __init__(self, kind: str, place: Place, directory: Path, stage: ExitStack) -> None:
        self.place = place
        self._begun = "is ready" if kind == "gateway" else "receives events from"
        command = gateway(directory, place.url) if kind == "gateway" else service(kind, place.url)
        environment = {key: value for key, value in os.environ.items() if not GATEWAY_VARIABLE.fullmatch(key)}
        self._process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        stage.callback(self._end)
        assert self._process.stdout is not None
        self._lines = Lines(self._process.stdout)

    def wait_for_place(self) -> None:
        if self.place.silent is not None:
            assert self.place.silent.asked.wait(30.0), f"{self.place} was not asked"
            return
        said = self.place.said or self._begun
        while said not in self._lines.next(said, 30.0):
            pass

    def stop(self) -> None:
        self._process.terminate()

    def seconds_to_end(self) -> float:
        """After :meth:`stop`."""
        begun = time.monotonic()
        self._process.wait(BOUND)
        logged = self._lines.rest()
        assert self._process.returncode in {0, -signal.SIGTERM}, logged
        assert "Traceback" not in "".join(logged), logged
        return time.monotonic() - begun

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()


def service(backend: str, url: str) -> list[str]:
    return [*program(backend), url, json.dumps(SERVICE)]


def gateway(directory: Path, url: str) -> list[str]:
    file = directory / "kraftek-gateway.toml"
    file.write_text(toml({"redis": {"url": url}, "auth": {"check": "open"}, "services": {"sample": "events:sample"}}))
    twistd = [sys.executable, str(Path(sys.prefix) / "bin/twistd"), "--nodaemon", "--pidfile="]
    return [*twistd, "kraftek-gateway", "--config", str(file), "--listen", "tcp:0:interface=127.0.0.1"]


@pytest.mark.parametrize("kind", ["asyncio", "twisted", "node", "gateway"])
def test_it_ends(kind: str, stage: ExitStack, tmp_path: Path) -> None:
    programs = []
    for make in (SilentRedis, SilentSentinels, SilentMaster, DeadMaster, FrozenRedis):
        directory = tmp_path / make.__name__
        directory.mkdir()
        programs.append(Program(kind, make(stage), directory, stage))
    for each in programs:
        each.wait_for_place()
    for each in programs:
        each.place.spoil()
    for each in programs:
        each.stop()
    print({type(each.place).__name__: round(each.seconds_to_end(), 1) for each in programs})

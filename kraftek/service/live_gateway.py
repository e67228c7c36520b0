"""A gateway process for tests of pages and apps. Started by :mod:`kraftek.service.testing`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["LiveGateway"]

START = 30.0
STOP = 20.0
"""Seconds that it may take."""

_TWISTD = "from twisted.scripts.twistd import run; run()"
_LISTENING = re.compile(r"Listening on (?P<host>\S+):(?P<port>\d+)$", re.MULTILINE)
_READY = re.compile(r"Gateway \S+ is ready$", re.MULTILINE)


class LiveGateway:
    """A gateway with this configuration, on a free port of this machine unless it says otherwise.

    ``url``: for WebSocket and Socket.IO clients. ``http_url``: of the same port; ``kraftek.js`` is below it.
    Raises :exc:`RuntimeError` with what the gateway said when it does not start.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="kraftek-gateway-")
        path = Path(self._directory.name)
        (path / "gateway.toml").write_text(_toml({"listen": ["tcp:0:interface=127.0.0.1"], **config}), "utf-8")
        self._log = path / "log"
        command = [sys.executable, "-P", "-c", _TWISTD, "--nodaemon", "--pidfile=", "kraftek-gateway"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [*command, "--config", "gateway.toml"], cwd=path, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        try:
            port = self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        self.url = f"ws://127.0.0.1:{port}/"
        self.http_url = f"http://127.0.0.1:{port}/"

    @property
    def log(self) -> str:
        """What it has logged until now."""
        return self._log.read_text("utf-8", "backslashreplace")

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._directory.cleanup()

    def _wait_until_ready(self) -> str:
        deadline = time.monotonic() + START
        while self._process.poll() is None and time.monotonic() < deadline:
            log = self.log
            if _READY.search(log) and (listening := _LISTENING.search(log)):
                return listening["port"]
            time.sleep(0.02)
        raise RuntimeError(f"The gateway did not start:\n{self.log}")


def _toml(settings: Mapping[str, Any]) -> str:
    return "".join(f"{_value(key)} = {_value(value)}\n" for key, value in settings.items())


def _value(value: Any) -> str:
    """JSON is TOML but for its objects."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(key)} = {_value(each)}" for key, each in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)

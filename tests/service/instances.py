"""The sample service as processes, through each of the backends of the kit for Python, and with the kit for Node."""

from __future__ import annotations

import atexit
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from kraftek.service import EventProcessor
from tests.service.js.kit import unpack

HERE = Path(__file__).parent


def program(backend: str) -> list[str]:
    """What starts the sample service; a URL of Redis and the settings as JSON come after it."""
    if backend == "node":
        return node_program(HERE / "js/sample.js")
    return [sys.executable, str(HERE / "sample.py"), backend]


@cache
def node_program(source: Path) -> list[str]:
    """What starts this program where it can import the kit for Node."""
    place = Path(tempfile.mkdtemp(prefix="kraftek-service-"))
    atexit.register(shutil.rmtree, place)
    return ["node", str(shutil.copy(source, unpack(place)))]


class Instances:
    """Processes of the sample service, until :meth:`stop`."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, backend: str, url: str, **settings: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([*program(backend), url, json.dumps(settings)], stderr=subprocess.PIPE)
        self.processes.append(process)
        return process

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate(timeout=10)


def stopped(process: subprocess.Popen[bytes]) -> str:
    """Stop it as an operator does; what it has logged."""
    process.send_signal(signal.SIGTERM)
    _, logged = process.communicate(timeout=20)
    assert process.returncode == 0, logged.decode()
    return logged.decode()


def registered(**settings: Any) -> EventProcessor:
    """The sample service as the gateway knows it."""
    return EventProcessor("sample", **settings)

"""The sample service as processes, through each of the backends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from kraftek.service import EventProcessor

SAMPLE = Path(__file__).parent / "sample.py"


class Instances:
    """Processes of the sample service, until :meth:`stop`."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, backend: str, url: str, **settings: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(SAMPLE), backend, url, json.dumps(settings)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
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

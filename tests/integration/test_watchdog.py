"""The service manager's watchdog: it hears from the reactor, and a process that it ends says where it hung."""

from __future__ import annotations

import signal
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import RedisServer, StartGateway


def test_it_is_heard_and_says_where_it_hangs(redis_server: RedisServer, gateway: StartGateway, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(10.0)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        process = gateway(redis_server, env=environ)
        heard = {systemd.recv(100) for _ in range(8)}
    assert heard == {b"READY=1", b"WATCHDOG=1"}
    process.process.send_signal(signal.SIGABRT)
    assert process.process.wait(15.0) == -signal.SIGABRT
    process.wait_log("Fatal Python error: Aborted")
    process.wait_log("runReactorWithLogging")

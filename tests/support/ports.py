"""Ports for servers that are told theirs before they start, and keep it when they are started again."""

from __future__ import annotations

import os
import random
import socket

__all__ = ["free_port"]

# Below those that systems give to connections and to whoever asks for any port (32768 upwards on Linux, 49152 on
# macOS): between the look and the server's start, and while a server is down, nothing else comes by such a port.
PORTS = range(20_000, 32_768)
# Each of pytest-xdist's workers has every sixteenth for itself.
WORKERS = 16
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    for port in random.sample(PORTS[WORKER % WORKERS :: WORKERS], 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port among a hundred")

"""Ports for servers that are told theirs before they start, and keep it when they are started again."""

from __future__ import annotations

import atexit
import random
import socket

__all__ = ["free_port", "give_back"]

# Below those that systems give to connections and to whoever asks for any port (32768 upwards on Linux, 49152 on
# macOS): between the look and the server's start, and while a server is down, nothing else comes by such a port.
PORTS = range(20_000, 32_768)
# The UDP port of the same number says to all processes of this machine that a port was given, until it is given back or
# this process ends.
_given: dict[int, socket.socket] = {}


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on, and that no process of tests has been given."""
    for port in random.sample(PORTS, min(len(PORTS), 100)):
        mark = socket.socket(type=socket.SOCK_DGRAM)
        try:
            mark.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            mark.close()
            continue
        _given[port] = mark
        return port
    raise AssertionError("no free port among a hundred")


def give_back(port: int) -> None:
    """Nothing is to listen there any more."""
    _given.pop(port).close()


@atexit.register
def _forget() -> None:
    for mark in _given.values():
        mark.close()

"""The protocols of systemd: the daemon's state, and the sockets that systemd passes. Called by the daemon.

``Type=notify`` of the unit file: see sd_notify(3). For sockets see sd_listen_fds(3).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress

__all__ = ["EXTENSION", "more_time", "name_sockets", "notify", "reloading", "watchdog_interval"]

EXTENSION = 5.0
"""Seconds between two calls of :func:`more_time`."""


def notify(state: str) -> None:
    """Send ``state`` (``READY=1``, ``STOPPING=1``) to the service manager, if it asked for it.

    A failure is ignored: the service manager has time-outs of its own.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.sendto(state.encode(), address)


def more_time() -> None:
    """Ask the service manager to wait for three times :data:`EXTENSION` from now on, while the daemon stops."""
    notify(f"EXTEND_TIMEOUT_USEC={3 * EXTENSION * 1_000_000:.0f}")


def reloading() -> None:
    """Tell the service manager that the configuration is read again; ``READY=1`` follows."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_interval(environ: Mapping[str, str], pid: int) -> float:
    """Seconds between two heartbeats, half of what the service manager waits for one: sd_watchdog_enabled(3). 0: it
    wants none, or it wants them of another process than ``pid``.
    """
    microseconds = environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or environ.get("WATCHDOG_PID", "") not in {"", str(pid)}:
        return 0.0
    return int(microseconds) / 2_000_000


def name_sockets(environ: MutableMapping[str, str]) -> None:
    """Name sockets that were passed without names ``unknown``, as systemd does for a unit without names.

    Twisted drops them otherwise. It reads the names when ``twisted.internet.endpoints`` is imported, so this is called
    before that.
    """
    passed = environ.get("LISTEN_FDS", "")
    if passed.isdecimal() and not environ.get("LISTEN_FDNAMES"):
        environ["LISTEN_FDNAMES"] = ":".join(["unknown"] * int(passed))

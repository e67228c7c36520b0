"""What is agreed with systemd: how the daemon is, and the sockets that it is given. Called by the daemon.

``Type=notify`` of the unit file: see sd_notify(3). For sockets see sd_listen_fds(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

__all__ = ["name_sockets", "notify"]


def notify(state: str) -> None:
    """Send ``state`` (``READY=1``, ``STOPPING=1``) to whoever started us, if it asked for it.

    When it cannot be told, it will find out by its own time-outs: nothing of ours stops for that.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.sendto(state.encode(), address)


def name_sockets(environ: MutableMapping[str, str]) -> None:
    """Name the sockets that came without names as systemd does where a unit has none: ``unknown``.

    Twisted drops them otherwise. It looks when ``twisted.internet.endpoints`` is imported: this is called before that.
    """
    passed = environ.get("LISTEN_FDS", "")
    if passed.isdecimal() and not environ.get("LISTEN_FDNAMES"):
        environ["LISTEN_FDNAMES"] = ":".join(["unknown"] * int(passed))

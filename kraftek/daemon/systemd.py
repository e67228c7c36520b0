"""Telling systemd how the daemon is: ``Type=notify`` of the unit file, see sd_notify(3). Called by the daemon."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

__all__ = ["notify"]


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

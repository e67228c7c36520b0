"""Telling systemd how the daemon is: ``Type=notify`` of the unit file, see sd_notify(3). Called by the daemon."""

from __future__ import annotations

import os
import socket

__all__ = ["notify"]


def notify(state: str) -> None:
    """Send ``state`` (``READY=1``, ``STOPPING=1``) to whoever started us, if it asked for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.sendto(state.encode(), address)

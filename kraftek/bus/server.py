"""What a server says of itself, and whether it is one that the gateway can use.

Asked by :mod:`kraftek.bus.connections` on each new connection.
"""

from __future__ import annotations

import re

from msgspec import Struct

__all__ = ["OLDEST", "Server", "UnsuitableServer", "examine", "server_in"]

OLDEST = (6, 2)
"""The oldest version of Redis that has all that the gateway uses: ``XPENDING IDLE``, ``GETDEL``, ACLs of channels."""


class UnsuitableServer(Exception):  # noqa: N818  # it says what the server is
    """Redis answers, but this server cannot be used; the text says why. ``lasting``: no fail-over will change that."""

    def __init__(self, reason: str, *, lasting: bool) -> None:
        super().__init__(reason)
        self.lasting = lasting


class Server(Struct, frozen=True, kw_only=True):
    """What a server says of itself; empty is what it does not say.

    ``run``: its run id, which is another one for each process. ``mode``: ``standalone``, ``cluster`` or ``sentinel``.
    ``role``: ``master`` or ``slave``. ``primary``: that of a replica. ``eviction``: its ``maxmemory-policy``.
    """

    version: str = ""
    run: str = ""
    mode: str = ""
    role: str = ""
    primary: str = ""
    eviction: str = ""


def server_in(info: bytes) -> Server:
    """Parse the answer to ``INFO``."""
    fields = dict(line.partition(":")[::2] for line in info.decode("utf-8", "replace").splitlines())

    def field(*names: str) -> str:
        return next((fields[name] for name in names if name in fields), "")

    host = field("master_host")
    return Server(
        version=field("redis_version"),  # Valkey says so, too: 7.2.4, which it is compatible with
        run=field("run_id"),
        mode=field("redis_mode", "server_mode"),  # Valkey's own name
        role=field("role"),
        primary=f"{host}:{field('master_port')}" if host else "",
        eviction=field("maxmemory_policy"),
    )


def examine(server: Server) -> None:
    """Raise :class:`UnsuitableServer` unless the gateway can use it."""
    if server.mode == "cluster":
        raise UnsuitableServer("it is a Redis Cluster; expected one server, or one with replicas", lasting=True)
    if server.mode == "sentinel":
        raise UnsuitableServer("it is a Sentinel; expected the address of Redis itself", lasting=True)
    numbers = re.match(r"(\d+)\.(\d+)", server.version)
    if numbers and tuple(map(int, numbers.groups())) < OLDEST:
        raise UnsuitableServer(f"it is Redis {server.version}; expected 6.2 or newer", lasting=True)
    if server.role != "master":
        primary = f" of {server.primary}" if server.primary else ""
        raise UnsuitableServer(f"it is a replica{primary}; expected the primary", lasting=False)

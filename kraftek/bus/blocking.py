"""A connection to Redis for a thread beside the reactor, which goes on while that is blocked.

Made by :mod:`kraftek.service.twisted`. It has a command in flight at a time, on a socket of Python's.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any

import hiredis

from kraftek.bus.resp import command
from kraftek.contract.lua import Argument
from kraftek.contract.redis_url import RedisAddress

__all__ = ["BlockingConnection"]


class BlockingConnection:
    """``where`` is asked for each new connection; ``None`` is not known yet. ``ca``: as in ``[redis]``. ``timeout``:
    seconds to connect, and for each answer.
    """

    def __init__(self, where: Callable[[], RedisAddress | None], ca: str, timeout: float) -> None:
        self._where = where
        self._ca = ca
        self._timeout = timeout
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader()

    def call(self, *parts: Argument) -> Any:
        """Redis's answer. Raises ``OSError``, also for what Redis refuses."""
        link = self._socket or self._connect()
        return self._ask(link, *parts)

    def close(self) -> None:
        """Disconnect. The next call connects anew."""
        link, self._socket = self._socket, None
        if link is not None:
            link.close()

    def _connect(self) -> socket.socket:
        address = self._where()
        if address is None:
            raise OSError("it is not known yet where the master is")
        if address.kind == "unix":
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            link.settimeout(self._timeout)
            link.connect(address.path)
        else:
            link = socket.create_connection((address.host, address.port), self._timeout)
        if address.kind == "tls":
            link = ssl.create_default_context(cafile=self._ca or None).wrap_socket(link, server_hostname=address.host)
        self._socket, self._reader = link, hiredis.Reader()
        if address.password:
            self._ask(link, "AUTH", *([address.username] if address.username else []), address.password)
        if address.database:
            self._ask(link, "SELECT", address.database)
        return link

    def _ask(self, link: socket.socket, *parts: Argument) -> Any:
        link.sendall(command(*parts))
        while (reply := self._reader.gets()) is False:
            data = link.recv(65536)
            if not data:
                raise OSError("Redis has closed the connection")
            self._reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise OSError(str(reply))
        return reply

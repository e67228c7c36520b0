"""A relay between a program and a server, which a test can make deaf or mute, or cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

__all__ = ["Relay"]


class Relay:
    """Listens on a free ``port`` of 127.0.0.1 and passes everything on to the port ``to``, both ways."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._open = True
        self._passes = {"to": True, "from": True}
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def mute(self) -> None:
        """What the program says from now on never reaches the server."""
        self._passes["to"] = False

    def deafen(self) -> None:
        """What the server says from now on never reaches the program."""
        self._passes["from"] = False

    def cut(self) -> None:
        """Close every connection, and each new one at once."""
        with self._lock:
            self._open = False
            sockets, self._sockets = self._sockets, set()
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Accept connections, and pass everything on."""
        self._passes = {"to": True, "from": True}
        self._open = True

    def close(self) -> None:
        """End it: the end of the test."""
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                program, _ = self._listener.accept()
                server = None
                with suppress(OSError):
                    server = socket.create_connection(("127.0.0.1", self._to))
                with self._lock:
                    if not self._open or server is None:
                        program.close()
                        if server is not None:
                            server.close()
                        continue
                    self._sockets |= {program, server}
                for way, source, sink in (("to", program, server), ("from", server, program)):
                    threading.Thread(target=self._pass_on, args=(way, source, sink), daemon=True).start()

    def _pass_on(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        passes = self._passes
        with suppress(OSError):
            while data := source.recv(65536):
                if passes[way]:
                    sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        source.close()

"""A port that leads to another one, and to a third one later: what a name or a virtual address does in a fail-over."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

__all__ = ["Forwarder"]


class Forwarder:
    """Forwards each connection to the port ``target``. Those that are open stay where they lead.

    ``port``: where it listens, on 127.0.0.1.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: set[socket.socket] = set()
        self._muted: set[socket.socket] = set()
        self._admits = True
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # until it is closed
            while True:
                near, _ = self._listener.accept()
                if not self._admits:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    near.close()
                    continue
                self._open |= {near, far}
                if not self._admits:  # since this one was accepted
                    self._cut(near)
                    self._cut(far)
                    continue
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(source, sink, sink is near), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not (answers and sink in self._muted):
                    sink.sendall(data)
        for end in (source, sink):
            self._cut(end)

    def _cut(self, end: socket.socket) -> None:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
        self._open.discard(end)
        self._muted.discard(end)

    def mute(self) -> None:
        """From now on no answer arrives on the connections that are open, but what is sent does."""
        self._muted |= self._open

    def cut(self) -> None:
        """Cut every connection."""
        for end in tuple(self._open):
            self._cut(end)

    def refuse(self) -> None:
        """Cut every connection, and make none until :meth:`admit`."""
        self._admits = False
        self.cut()

    def admit(self) -> None:
        """Make connections again."""
        self._admits = True

    def close(self) -> None:
        """Stop listening and cut every connection."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

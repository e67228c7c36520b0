"""The connections of the clients' ports, from accept on, and who is accepted.

Counted by :mod:`kraftek.edge.public_site` and :mod:`kraftek.edge.websocket`; the ports are those of
:mod:`kraftek.daemon.lifecycle`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IReactorTime, IReadDescriptor
from twisted.logger import LogEvent, Logger, formatEvent

from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.metrics import Counters
from kraftek.edge.addresses import Addresses

__all__ = ["Connections"]

_RETRY = 1.0
"""Seconds until the system is asked again for a connection that it could not give."""


class Connections:
    """All of this process, idle ones too, whatever they are for.

    ``limit``: how many it may have. With so many, accepting pauses: who comes then waits in the kernel's queue until
    one ends. ``by_address``: those of each address. Refused connections, which are told so and closed, count for
    neither.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, limit: int, by_address: Addresses, counters: Counters) -> None:
        self.count = 0
        self.limit = limit
        self.by_address = by_address
        self._clock = clock
        self._counters = counters
        self._ports: list[Any] = []
        self._paused = False
        self._held = False
        self._once_a_minute = OnceAMinute(clock.seconds)

    def __len__(self) -> int:
        return self.count

    def accept_from(self, port: Any) -> None:
        """Accept on this port whenever there is room."""
        readable = IReadDescriptor.providedBy(port)
        if not readable:
            return
        accept = port.doRead
        observer: Any = self._failed

        def accept_some() -> None:
            # It may have been found readable together with a port that took the last place.
            room = self.limit - self.count
            if room > 0:
                # Twisted's port takes as many at a time as came the last time, and some more.
                port.numberAccepts = min(port.numberAccepts, room)
                accept()

        port.doRead = accept_some
        # Twisted logs a line for each connection that the system cannot give, and asks again at once.
        port._logger = Logger(namespace="twisted.internet.tcp.Port", observer=observer)  # noqa: SLF001
        self._ports.append(port)
        if self._paused:
            port.stopReading()

    def hold(self) -> None:
        """Accept nobody for a while: who comes waits in the kernel's queue."""
        self._held = True
        self._pause()

    def go_on(self) -> None:
        """Accept again whenever there is room."""
        self._held = False
        self._resume()

    def allow(self, limit: int) -> None:
        """There may be so many from now on. Those that are there stay."""
        self.limit = limit
        self._resume()

    def end(self, port: Any) -> None:
        """The port stops listening."""
        if port in self._ports:
            self._ports.remove(port)

    def opened(self) -> None:
        """One was accepted."""
        self.count += 1
        if self.count >= self.limit:
            self._counters.accepting_paused += 1
            self._once_a_minute(
                self._log.warn,
                "All {limit} connections that this process may have are taken (logged once a minute): others wait "
                "until one ends",
                limit=self.limit,
            )
            self._pause()

    def restored(self, address: str | None) -> None:
        """One that another version had accepted, and counted for ``address``, if for any."""
        if address is not None:
            self.by_address.add(address)
        self.opened()

    def closed(self, address: str | None) -> None:
        """One ended, which was counted for ``address``, if for any."""
        self.count -= 1
        if address is not None:
            self.by_address.remove(address)
        if self._paused:
            self._resume()

    def _pause(self) -> None:
        self._paused = True
        for port in self._ports:
            port.stopReading()

    def _resume(self) -> None:
        if self._paused and not self._held and self.count < self.limit:
            self._paused = False
            for port in self._ports:
                port.startReading()

    def _failed(self, event: LogEvent) -> None:
        self._once_a_minute(
            self._log.warn,
            "A connection could not be accepted (logged once a minute): {why}",
            about="accept",
            why=formatEvent(event),
        )
        if not self._paused:
            self._pause()
            self._clock.callLater(_RETRY, self._resume)

"""The connections between gateways and the simulated Redis: in memory, with a lag each way, and cut at any byte.

The gateway's own bus runs over them, so that what is seen is what it does: batches half written, one connection of two
lost, what was sent on one overtaking what was sent on another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet import error
from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConnector, ITransport
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.simulation.redis import Peer, Server
from tests.simulation.virtual_time import Process, VirtualTime

__all__ = ["SUBSCRIBER", "Link", "Network"]

SUBSCRIBER, COMMANDS, UNKNOWN = "subscriber", "commands", "unknown"
"""What a link is for: only a subscriber asks for its ``CLIENT ID``."""

BASE_LAG = 0.0002
"""Seconds that everything takes one way, at least."""


@implementer(ITransport, IConnector)
class Link:
    """One connection: the transport of its client, and the client's half of the server's :class:`Peer`.

    ``deaf``: nothing arrives any more, either way, and nobody is told.
    """

    disconnecting = False

    def __init__(self, network: Network, process: Process, factory: Any) -> None:
        self.network = network
        self.process = process
        self.kind = UNKNOWN
        self.deaf = False
        self._broken = False
        self._factory = factory
        self._protocol: Any = None
        self._peer: Peer | None = None
        self.server: Server | None = None
        self._up: deque[tuple[float, bytes]] = deque()
        self._arrives_up = 0.0
        self._arrives_down = 0.0
        self.connected = False

    # The client's half

    def connect(self) -> None:
        """Try to connect."""
        self._factory.startedConnecting(self)
        self.network.time.later(self.process, 2 * BASE_LAG, self._connect)

    def _connect(self) -> None:
        server = self.network.server
        if server is None:
            refused = Failure(error.ConnectionRefusedError("the simulated Redis is down"))
            self._factory.clientConnectionFailed(self, refused)
            return
        self.connected = True
        self.server = server
        self._peer = server.connect(self._down)
        self.network.links.append(self)
        self._protocol = self._factory.buildProtocol(UNIXAddress("/simulated"))
        self._protocol.makeConnection(self)

    def stopConnecting(self) -> None:
        """The attempt is taken back."""
        self.process.callLater(0, self._factory.clientConnectionFailed, self, Failure(ConnectionDone()))

    def getDestination(self) -> UNIXAddress:
        """As ``IConnector`` has it."""
        return UNIXAddress("/simulated")

    getPeer = getHost = getDestination

    def write(self, data: bytes) -> None:
        """The client sends."""
        if not self.connected:
            return
        if b"$2\r\nID\r\n" in data:
            self.kind = SUBSCRIBER
        elif self.kind is UNKNOWN:
            self.kind = COMMANDS
        time = self.network.time
        self._arrives_up = max(self._arrives_up, time.now + self.network.lag(self))
        self._up.append((self._arrives_up, data))
        time.later(None, self._arrives_up - time.now, self._arrive_up)

    def writeSequence(self, data: Any) -> None:
        """As ``ITransport`` has it."""
        self.write(b"".join(data))

    def loseConnection(self, reason: Any = None) -> None:
        """The client closes, after what it has sent."""
        if self.connected:
            time = self.network.time
            self._end(ConnectionDone())
            time.later(None, max(self._arrives_up - time.now, 0) + BASE_LAG, self._gone)

    def abortConnection(self) -> None:
        """The client closes at once."""
        if self.connected:
            self._end(ConnectionLost("aborted"))
            self._up.clear()
            if not self.deaf:
                self.network.time.later(None, BASE_LAG, self._gone)

    disconnect = loseConnection

    # The server's half

    def _arrive_up(self) -> None:
        if not self._up:
            return
        _, data = self._up.popleft()
        if self._peer is not None and not self.deaf and self.server is not None:
            self.server.feed(self._peer, data)

    def _down(self, data: bytes) -> None:
        if not self.connected or self.deaf or self._broken:
            return
        time = self.network.time
        self._arrives_down = max(self._arrives_down, time.now + self.network.lag(self))
        time.later(self.process, self._arrives_down - time.now, self._arrive_down, data)

    def _arrive_down(self, data: bytes) -> None:
        if self.connected and not self.deaf and not self._broken:
            self._protocol.dataReceived(data)

    def _gone(self) -> None:
        """The server sees the end."""
        if self._peer is not None and self.server is not None:
            self.server.disconnect(self._peer)
        self._peer = None
        if self in self.network.links:
            self.network.links.remove(self)

    # Faults

    def lose_subscriptions(self, prefix: bytes) -> None:
        """The server forgets those to channels whose names begin so."""
        if self._peer is not None and self.server is not None:
            for channel in [each for each in self._peer.channels if each.startswith(prefix)]:
                self.server.unsubscribe(self._peer, channel)

    def cut(self, part: float = 0.0) -> None:
        """The connection breaks. Of what is on its way to the server this part arrives, to the byte."""
        if not self.connected:
            return
        sent = b"".join(data for _, data in self._up)
        self._up.clear()
        self._broken = True  # what the server answers now arrives nowhere
        kept = sent[: int(len(sent) * part)]
        if kept and self._peer is not None and not self.deaf and self.server is not None:
            self.server.feed(self._peer, kept)
        self._gone()
        self.network.time.later(self.process, BASE_LAG, self._end, ConnectionLost("cut"))

    def _end(self, why: Exception) -> None:
        if not self.connected:
            return
        self.connected = False
        reason = Failure(why)
        self.process.callLater(0, self._lost, reason)

    def _lost(self, reason: Failure) -> None:
        self._protocol.connectionLost(reason)
        self._factory.clientConnectionLost(self, reason)


class Network:
    """All links. ``server`` is where the address of Redis leads to now; ``lag`` gives the seconds one way of a link."""

    def __init__(self, time: VirtualTime, lag: Callable[[Link], float]) -> None:
        self.time = time
        self.lag = lag
        self.server: Server | None = None
        self.links: list[Link] = []

    def connect(self, process: Process, address: str, factory: Any) -> Link:
        """What ``connectUNIX`` does."""
        link = Link(self, process, factory)
        link.connect()
        return link

    def of(self, process: Process, kind: str) -> list[Link]:
        """The links of a process, of one kind."""
        return [link for link in self.links if link.process is process and link.kind == kind]

    def crash(self) -> None:
        """The server's process ends: every link to it breaks, with nothing of what was on its way."""
        server, self.server = self.server, None
        for link in tuple(self.links):
            if link.server is server:
                link.cut()

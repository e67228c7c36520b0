"""Engine.IO by itself and Socket.IO by itself, each with a small application on top: no gateway, no Redis.

With ``engineio`` it echoes; with ``socketio`` it is the application that the test suite of
https://github.com/socketio/socket.io-protocol wants, on the namespaces ``/`` and ``/custom``. That suite, and that of
engine.io-protocol, run against them as they are published, on port 3000::

    python -m tests.edge.dialects.servers engineio 3000 &
    cd engine.io-protocol/test-suite && npm ci && npm test

Both are served by the gateway's own transports. Port 0 is any free one; the one taken is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from zope.interface import implementer

from kraftek.contract.accounts import Accounts
from kraftek.contract.interfaces import IReceiver
from kraftek.contract.messages import Gap, Outgoing
from kraftek.contract.metrics import Counters
from kraftek.contract.names import SUBPROTOCOL
from kraftek.contract.settings import Limits
from kraftek.contract.turns import Turns
from kraftek.edge.addresses import Addresses
from kraftek.edge.connections import Connections
from kraftek.edge.dialects.native import NativeDialect
from kraftek.edge.dialects.socketio_packets import (
    MAIN,
    ConnectPacket,
    EventPacket,
    SocketError,
    SocketSession,
    SocketSettings,
    encode_ack,
    encode_event,
)
from kraftek.edge.engineio.clients import EngineClient, EngineClients
from kraftek.edge.engineio.connection import EngineSettings
from kraftek.edge.engineio.packets import encode_binary, encode_message
from kraftek.edge.engineio.polling import Polling
from kraftek.edge.hosts import Hosts
from kraftek.edge.origins import Origins
from kraftek.edge.proxies import Proxies
from kraftek.edge.public_site import PublicSite
from kraftek.edge.websocket.factory import ClientFactory
from tests.support.backlogs import make_backlogs
from tests.support.fastpath import FASTPATH, make_iteration

__all__ = ["Echo", "Namespaces", "serve"]

SETTINGS = EngineSettings(ping_interval=0.3, ping_timeout=0.2)
"""The times that both suites expect."""

SWEEP_INTERVAL = 0.005
A_MOMENT = 0.02
SIDS = count(1)


@implementer(IReceiver)
class Echo:
    """Says what it hears."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client

    def receive(self, data: bytes, binary: bool = False) -> None:
        self._client.write(encode_binary(data) if binary else encode_message(data))

    def charge(self, events: int, size: int) -> None:
        pass

    def lost(self) -> None:
        pass

    def overrun(self) -> Outgoing | None:
        return None

    def gap(self, gap: Gap) -> Outgoing | None:
        return None


@implementer(IReceiver)
class Namespaces:
    """Tells each client its ``auth``, and sends back what comes as ``message`` or ``message-with-ack``.

    The first a moment after the answer to its CONNECT: we write both at once, the suite's WebSocket library hands both
    out at once, and the suite, which awaits one after the other, would miss the second.
    """

    def __init__(self, clock: IReactorTime, client: EngineClient) -> None:
        self._clock = clock
        self._client = client
        self._session = SocketSession(SocketSettings(namespaces=frozenset((MAIN, "/custom"))))

    def receive(self, data: bytes, binary: bool = False) -> None:
        write = self._client.write
        try:
            packet = self._session.receive(data, binary)
        except SocketError as error:
            self._client.close(1002, str(error))
            return
        match packet:
            case ConnectPacket(namespace, auth):
                write(self._session.accept(namespace, f"sid-{next(SIDS)}"))
                said = encode_event("auth", auth or b"{}", namespace=namespace)
                self._clock.callLater(A_MOMENT, write, said)
            case EventPacket("message", args, _, namespace):
                write(encode_event("message-back", *args, namespace=namespace))
            case EventPacket("message-with-ack", args, int() as ack_id, namespace):
                write(encode_ack(ack_id, *args, namespace=namespace))
            case Outgoing():
                write(packet)

    def charge(self, events: int, size: int) -> None:
        pass

    def lost(self) -> None:
        pass

    def overrun(self) -> Outgoing | None:
        return None

    def gap(self, gap: Gap) -> Outgoing | None:
        return None


def serve(
    reactor: Any,
    path: str,
    application: Callable[[EngineClient], IReceiver],
    *,
    origins: Sequence[str] = ("*",),
    per_address: int = 0,
    proxies: int = 0,
) -> tuple[PublicSite, EngineClients]:
    """What listens, for ``path``, and its clients, which somebody has to ``sweep``."""
    iteration, counters, limits, addresses = make_iteration(reactor), Counters(), Limits(), Addresses(per_address)
    connections = Connections(reactor, 1000, Addresses(per_address), counters)
    turns, backlogs = Turns(reactor, Accounts()), make_backlogs(reactor, counters, limits)
    clients = EngineClients(
        reactor, iteration, counters, SETTINGS, application, addresses, 1000, turns=turns, backlogs=backlogs
    )

    def open_session(*_: object) -> Any:
        raise AssertionError("only Engine.IO is spoken here")

    websockets = ClientFactory(
        reactor,
        open_session,
        {SUBPROTOCOL: NativeDialect},
        limits=limits,
        backlogs=backlogs,
        connections=connections,
        clients=addresses,
        iteration=iteration,
        turns=turns,
        counters=counters,
        engine_clients=clients,
        fastpath=FASTPATH,
    )
    site = PublicSite(
        reactor,
        hosts=Hosts(),
        origins=Origins(origins),
        proxies=Proxies(proxies),
        limits=limits,
        counters=counters,
        connections=connections,
        websockets=websockets,
        polling=Polling(path, clients),
    )
    return site, clients


def main(kind: str, port: str) -> None:
    """Serve until killed."""
    from twisted.internet import reactor as installed

    reactor: Any = installed
    applications: dict[str, tuple[str, Callable[[EngineClient], IReceiver]]] = {
        "engineio": ("/engine.io/", Echo),
        "socketio": ("/socket.io/", partial(Namespaces, reactor)),
    }
    site, clients = serve(reactor, *applications[kind])
    LoopingCall(clients.sweep).start(SWEEP_INTERVAL)
    print(reactor.listenTCP(int(port), site, interface="127.0.0.1").getHost().port, flush=True)
    reactor.run()


if __name__ == "__main__":
    main(*sys.argv[1:])

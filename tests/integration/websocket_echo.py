"""A server that says back what it is told, on the gateway's own WebSocket edge: what the Autobahn test suite talks to.

``websocket_echo.py [--compression]`` listens on a free port of 127.0.0.1, prints it, and ends with its standard input.
With it short messages are compressed too: kosoku 0.1 cannot take an answer that is not ("Strings must be encoded before
hashing"), though RFC 7692 allows it.
The classes, the fast path and the reactor are those of the daemon; only what a session does is left out.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.internet import epollreactor

epollreactor.install()

from twisted.internet import reactor as installed  # noqa: E402
from twisted.internet.protocol import Protocol, connectionDone  # noqa: E402
from twisted.internet.stdio import StandardIO  # noqa: E402
from twisted.python.failure import Failure  # noqa: E402

from kraftek.contract.accounts import Accounts  # noqa: E402
from kraftek.contract.interfaces import IClientLink  # noqa: E402
from kraftek.contract.iteration import Iteration  # noqa: E402
from kraftek.contract.messages import Gap, Outgoing  # noqa: E402
from kraftek.contract.metrics import Counters  # noqa: E402
from kraftek.contract.names import SUBPROTOCOL  # noqa: E402
from kraftek.contract.settings import Limits  # noqa: E402
from kraftek.contract.turns import Turns  # noqa: E402
from kraftek.daemon.listening import server_endpoint  # noqa: E402
from kraftek.edge.addresses import Addresses  # noqa: E402
from kraftek.edge.backlogs import Backlogs  # noqa: E402
from kraftek.edge.connections import Connections  # noqa: E402
from kraftek.edge.dialects.native import NativeDialect  # noqa: E402
from kraftek.edge.hosts import Hosts  # noqa: E402
from kraftek.edge.origins import Origins  # noqa: E402
from kraftek.edge.policies import Policies  # noqa: E402
from kraftek.edge.proxies import Proxies  # noqa: E402
from kraftek.edge.public_site import PublicSite  # noqa: E402
from kraftek.edge.websocket import frames  # noqa: E402
from kraftek.edge.websocket.factory import ClientFactory  # noqa: E402
from kraftek.fastpath import speed_up, wanted  # noqa: E402

LARGEST = 16 * 2**20
"""Bytes of the suite's largest message (9.1.6)."""


class Echo:
    """In the place of a session."""

    def __init__(self, link: IClientLink) -> None:
        self._link = link

    def receive(self, data: bytes, binary: bool = False) -> None:
        self._link.write(Outgoing(b"", (data,)) if binary else Outgoing(data))

    def charge(self, events: int, size: int) -> None:
        pass

    def lost(self) -> None:
        pass

    def overrun(self) -> None:
        return None

    def gap(self, gap: Gap) -> None:
        return None


class UntilClosed(Protocol):
    """Ends the process with its standard input."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        reactor.stop()


def echo_session(link: IClientLink, *_: object) -> Any:
    return Echo(link)


frames._WORTH_DEFLATING = 0
reactor: Any = installed
iteration = Iteration(reactor)
fastpath = wanted(os.environ)
if fastpath:
    speed_up(reactor, iteration)
assert iteration.driven is fastpath
limits, counters = Limits(message_bytes=LARGEST, unsent_bytes=8 * LARGEST), Counters()
connections = Connections(reactor, 1000, Addresses(0), counters)
factory = ClientFactory(
    reactor,
    echo_session,
    {SUBPROTOCOL: NativeDialect},
    limits=limits,
    backlogs=Backlogs(Policies(), Accounts(), counters, reactor, limit=limits.unsent_bytes, patience=60.0),
    connections=connections,
    clients=Addresses(0),
    iteration=iteration,
    turns=Turns(reactor, Accounts()),
    counters=counters,
    compression="--compression" in sys.argv,
    fastpath=fastpath,
)
site = PublicSite(
    reactor,
    hosts=Hosts(),
    origins=Origins(["same-host"]),
    proxies=Proxies(0),
    limits=limits,
    counters=counters,
    connections=connections,
    websockets=factory,
)


def listening(port: Any) -> None:
    print(port.getHost().port, flush=True)


server_endpoint(reactor, "tcp:0:interface=127.0.0.1").listen(site).addCallback(listening)
StandardIO(UntilClosed())
reactor.run()

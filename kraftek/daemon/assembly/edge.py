"""The edge: what clients connect to. As in ``core.py``, each part is made in one place."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

from kraftek.contract.json_text import JsonBounds
from kraftek.contract.names import SUBPROTOCOL
from kraftek.daemon.assembly.core import Core
from kraftek.daemon.assembly.surroundings import Surroundings
from kraftek.daemon.demo import BOARD
from kraftek.daemon.open_files import connections_allowed
from kraftek.edge.addresses import Addresses
from kraftek.edge.backlogs import Backlogs
from kraftek.edge.connections import Connections
from kraftek.edge.dialects.native import NativeDialect
from kraftek.edge.dialects.socketio_client import SocketIOClient
from kraftek.edge.dialects.socketio_packets import SocketSettings
from kraftek.edge.engineio.clients import EngineClient, EngineClients
from kraftek.edge.engineio.connection import EngineSettings
from kraftek.edge.engineio.polling import Polling
from kraftek.edge.hosts import Hosts
from kraftek.edge.moving import EdgeMove, Open
from kraftek.edge.origins import Origins
from kraftek.edge.policies import Policies
from kraftek.edge.public_site import PublicSite, pages
from kraftek.edge.websocket.factory import ClientFactory

__all__ = ["Edge"]


class Edge:
    """The public port at ``site``: WebSocket, Socket.IO, and the few plain requests that clients need. Without
    Socket.IO ``engine_clients`` stay unused. ``reactor``: what has the clients' connections.
    """

    def __init__(self, given: Surroundings, core: Core, reactor: Any, *, fastpath: bool = True) -> None:
        limits = given.config.limits
        addresses = Addresses(limits.connections_per_address)
        self.connections = Connections(reactor, connections_allowed(given.config), addresses, given.counters)
        self.backlogs = Backlogs(
            Policies(given.config.events),
            given.accounts,
            given.counters,
            reactor,
            limit=limits.unsent_bytes,
            patience=limits.ping_timeout,
        )
        given.accounts.shed_by("unsent", self.backlogs.shed)
        self._make_clients(given, core, reactor, fastpath)
        self._make_site(given, reactor)

    def _make_clients(self, given: Surroundings, core: Core, reactor: Any, fastpath: bool) -> None:
        """Those of the native dialect, and those of Socket.IO."""
        limits, socketio, gateway = given.config.limits, given.config.socketio, core.gateway
        bounds, by_address = JsonBounds(limits.json_depth), Addresses(limits.connections_per_address)
        packets = SocketSettings(max_attachment_bytes=socketio.max_payload, bounds=bounds)
        order = core.recoverable.order

        def speaks(client: EngineClient, moved: tuple[bytes, Open] | None = None) -> SocketIOClient:
            return SocketIOClient(client, packets, gateway.open, moved, order=order)

        self.engine_clients = EngineClients(
            reactor,
            given.iteration,
            given.counters,
            EngineSettings(
                ping_interval=socketio.ping_interval,
                ping_timeout=socketio.ping_timeout,
                max_payload=socketio.max_payload,
            ),
            speaks,
            by_address,
            self.connections.limit,
            turns=core.turns,
            backlogs=self.backlogs,
        )
        self.clients = ClientFactory(
            reactor,
            gateway.open,
            {SUBPROTOCOL: lru_cache(partial(NativeDialect, bounds))},
            limits=limits,
            backlogs=self.backlogs,
            connections=self.connections,
            clients=by_address,
            iteration=given.iteration,
            turns=core.turns,
            counters=given.counters,
            compression=given.config.compression,
            engine_clients=self.engine_clients,
            fastpath=fastpath,
        )
        self.move = EdgeMove(self.clients, self.engine_clients, speaks if socketio.enabled else None)

    def _make_site(self, given: Surroundings, reactor: Any) -> None:
        """What reads the first lines of each connection, and says who goes on with it."""
        config = given.config
        self.site = PublicSite(
            reactor,
            hosts=Hosts(config.hosts),
            origins=Origins(config.origins),
            proxies=given.proxies,
            limits=config.limits,
            counters=given.counters,
            connections=self.connections,
            websockets=self.clients,
            polling=Polling(config.socketio.path, self.engine_clients) if config.socketio.enabled else None,
            files=pages(BOARD) if config.demo else {},
        )

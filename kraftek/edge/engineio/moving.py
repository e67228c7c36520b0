"""Engine.IO clients on a WebSocket that pass from one version of the gateway to another, in the same process.

Used by :mod:`kraftek.edge.moving`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct
from zope.interface import implementer

from kraftek.contract.interfaces import IClientLink, IMovableLink, IMovableReceiver
from kraftek.edge.engineio.clients import EngineClient, EngineClients, EngineSocket

__all__ = ["EngineState", "MovableEngine", "decode", "restore"]


class EngineState(Struct, kw_only=True):
    """A client as another version reads it: fields are added with defaults, and never change what they mean.
    ``heartbeat``, ``pinged``: as of its :class:`kraftek.edge.engineio.connection.EngineSession`. ``receiver``: what
    speaks on top.
    """

    sid: str
    heartbeat: float
    pinged: bool
    receiver: bytes


decode = msgspec.msgpack.Decoder(EngineState).decode


@implementer(IMovableLink)
class MovableEngine:
    """The link of a client, which is handed over together with its WebSocket."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._websocket: Any = client.direct

    @property
    def movable(self) -> bool:
        return self._websocket is not None and self._websocket.movable and IMovableReceiver.providedBy(self._receiver)

    @property
    def _receiver(self) -> Any:
        return self._client.receiver

    def freeze(self) -> bool:
        frozen: bool = self._websocket.freeze()
        return frozen

    def thaw(self) -> None:
        self._websocket.thaw()

    def give(self) -> tuple[int, bytes]:
        engine = self._client.engine
        state = EngineState(
            sid=engine.sid, heartbeat=engine.heartbeat, pinged=engine.pinged, receiver=self._receiver.give()
        )
        given: tuple[int, bytes] = self._websocket.give(msgspec.msgpack.encode(state))
        return given


def restore(clients: EngineClients, link: IClientLink, state: EngineState) -> tuple[EngineClient, EngineSocket]:
    """Go on with the client of this WebSocket. It was told everything already."""
    client = clients.new(link.peer, websocket=True, sid=state.sid)
    engine = client.engine
    engine.discard()
    engine.heartbeat = engine.deadline = state.heartbeat
    engine.pinged = state.pinged
    # Its answer to a ping may have waited meanwhile.
    client.unread = True
    return client, client.attach(link)

"""What is said outside of a handler: by a cron job, a web application, a test, or the command line.

The part that asyncio and Twisted have in common. Authors import ``Publisher`` of :mod:`kraftek.service.asyncio` or of
:mod:`kraftek.service.twisted`, which have its ``start`` and ``stop``.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterable
from functools import partial
from typing import Any, Unpack

from kraftek.contract.errors import Code
from kraftek.contract.log_once import OnceAMinute
from kraftek.service.backend import Away, Backend, Signal
from kraftek.service.commits import Command, Commits, Told
from kraftek.service.jobs import Jobs
from kraftek.service.messages import (
    Message,
    checked,
    disconnect,
    event_for,
    put_in_room,
    remove_from_room,
    to_everybody,
    to_room,
    to_room_or_users,
    to_sockets,
    to_users,
)
from kraftek.service.processor import EventProcessor
from kraftek.service.receipts import Receipt
from kraftek.service.requests import Requests, new_name
from kraftek.service.texts import APPEND, Piece, PieceOptions, told

__all__ = ["PATIENCE", "Publishing"]

PATIENCE = 5.0
"""Seconds that the first messages wait for the first connection to Redis."""


class Publishing:
    """Sends at once. What is sent to clients returns how many took it: the gateways, and whoever else subscribes to
    the same channel. With 0 no gateway did, and nobody keeps it, unless a room or a user has it in its history.

    Each fails with :class:`~kraftek.service.Away` while Redis is unavailable: it is not sent later, but what was on its
    way when the connection was lost may have arrived. ``source``: the registered service on whose behalf it sends
    events to others; without it there are no :meth:`emit` and :meth:`request`.
    """

    def __init__(self, backend: Backend, source: str, *, prefix: str, broadcast: str, message_bytes: int) -> None:
        name = source or "publisher"
        self._processor = EventProcessor(name, prefix=prefix, broadcast=broadcast, message_bytes=message_bytes)
        self._backend = backend
        self._source = source
        warn = partial(OnceAMinute(time.monotonic), backend.warn)
        self._commits = Commits(backend)
        self._jobs = Jobs(backend, warn)
        self._requests = Requests(new_name(), self._processor, backend, warn)
        self._running = self._connected = False
        self._waiting: list[Signal] = []

    def broadcast_to_room(
        self, type: str, payload: Any, room_id: str, exclude: Iterable[str] = (), *, id: str = ""
    ) -> Awaitable[Told]:
        """To everybody in a room, except for the sockets in ``exclude``. If the room has a history it is part of that:
        who is away now gets it later. There it is told once, however often it is sent with this ``id``.
        """
        return self._say(to_room(type, payload, room_id, exclude), id)

    def append_to_room(
        self, type: str, key: str, text: str, room_id: str, **options: Unpack[PieceOptions]
    ) -> Awaitable[Told]:
        """To everybody in a room, a piece of the text ``key``: :meth:`kraftek.service.Context.append_to_room`."""
        piece = Piece(type, key, text, room_id, **options)
        return self._backend.awaitable(self._append(piece))

    def broadcast_to_user(self, type: str, payload: Any, user_id: str, *, id: str = "") -> Awaitable[Told]:
        """To every socket of a user. Where users have a history it is part of that, likewise."""
        return self.broadcast_to_users(type, payload, (user_id,), id=id)

    def broadcast_to_users(self, type: str, payload: Any, user_ids: Iterable[str], *, id: str = "") -> Awaitable[Told]:
        """To every socket of these users, likewise, each of whom has a history of its own: ``taken`` is the sum, the
        ``offset`` that of the first. To nobody without users.
        """
        return self._say(to_users(type, payload, user_ids), id)

    def broadcast_to_sockets(self, type: str, payload: Any, socket_ids: Iterable[str]) -> Awaitable[int]:
        """To these sockets; to nobody without sockets."""
        return self._send(to_sockets(type, payload, socket_ids))

    def broadcast_to_everybody(self, type: str, payload: Any, exclude: Iterable[str] = ()) -> Awaitable[int]:
        """To everybody who has authenticated, except for the sockets in ``exclude``."""
        return self._send(to_everybody(type, payload, exclude))

    def broadcast_with_receipt(
        self,
        type: str,
        payload: Any,
        *,
        room_id: str | None = None,
        user_ids: Iterable[str] | None = None,
        exclude: Iterable[str] = (),
        timeout: float = 5.0,
    ) -> Awaitable[Receipt]:
        """To everybody in a room, except for the sockets in ``exclude``, or to every socket of these users. The
        :class:`~kraftek.service.Receipt` says who has acknowledged it within ``timeout`` seconds, 30 at most, and who
        is offline.

        Raises :class:`ValueError` for more than 1,000 users, and unless there is a room or there are users; for a room
        with more users it fails with :class:`~kraftek.service.TooLarge`. Fails with
        :class:`~kraftek.service.OldGateway` while a gateway does not know this.
        """
        return self.send_with_receipt(to_room_or_users(type, payload, room_id, user_ids, exclude), timeout)

    def send_with_receipt(self, message: Message | None, timeout: float) -> Awaitable[Receipt]:
        """The same with what :mod:`kraftek.service.messages` has read."""
        return self._backend.awaitable(self._with_receipt(message, timeout))

    def disconnect(
        self,
        *,
        user_ids: Iterable[str] = (),
        socket_ids: Iterable[str] = (),
        room_id: str | None = None,
        code: str = Code.ACCESS_REVOKED,
        message: str = "disconnected by a service",
    ) -> Awaitable[int]:
        """Close every socket of these users, and these sockets; with ``room_id`` those of them that are in that room.

        Raises :class:`ValueError` for a code that is none.
        """
        return self._send(disconnect(user_ids, socket_ids, room_id, code, message))

    def put_in_room(
        self,
        room_id: str,
        *,
        user_ids: Iterable[str] = (),
        socket_ids: Iterable[str] = (),
        permissions: Iterable[str] | None = None,
    ) -> Awaitable[int]:
        """Put every socket of these users, and these sockets, into a room, until they are gone or taken out. The auth
        service is not asked.

        ``permissions``: patterns over the events that they may send from there; unless given, all of ``source``'s, and
        without that none. Fails with :class:`~kraftek.service.OldGateway` while a gateway does not know this. Raises
        :class:`ValueError` for a room without a name.
        """
        own = (f"{self._source}:*:*",) if self._source else ()
        return self._send(put_in_room(room_id, user_ids, socket_ids, own if permissions is None else permissions))

    def remove_from_room(
        self, room_id: str, *, user_ids: Iterable[str] = (), socket_ids: Iterable[str] = ()
    ) -> Awaitable[int]:
        """Take every socket of these users, and these sockets, out of a room, however they came in. Fails likewise."""
        return self._send(remove_from_room(room_id, user_ids, socket_ids))

    def send(self, message: Message, *, id: str = "") -> Awaitable[Told]:
        """What :mod:`kraftek.service.messages` has read. Raises :class:`ValueError` for what makes no sense."""
        return self._say(checked(message), id)

    def emit(
        self, event: str, payload: Any = None, *, room_id: str | None = None, user_id: str = ""
    ) -> Awaitable[None]:
        """Send an event to a service, by the event's whole name.

        Fails with :class:`~kraftek.service.Refused` while too many wait. Raises :class:`ValueError` for an invalid
        name, and without a ``source``.
        """
        return self._backend.awaitable(self._emit(self._event(event, payload, room_id, user_id)))

    def request(
        self,
        event: str,
        payload: Any = None,
        *,
        room_id: str | None = None,
        user_id: str = "",
        timeout: float = 10.0,
    ) -> Awaitable[Any]:
        """The same, and wait so many seconds for its answer: the payload of it. Fails with
        :class:`~kraftek.service.Refused` when it is an error, or does not come in time.
        """
        return self._backend.awaitable(self._request(self._event(event, payload, room_id, user_id), timeout))

    # Called by the backends' publishers

    def _begin(self) -> None:
        self._running = True
        self._jobs.spawn(self._connect)

    async def _end(self) -> None:
        self._running = False
        await self._jobs.end(0.0)

    # Within

    async def _connect(self) -> None:
        await self._requests.begin()
        self._connected = True
        for each in self._waiting:
            each.set()

    async def _ready(self) -> None:
        if not self._running:
            raise RuntimeError("the publisher is not running: start it first, and send before it stops")
        if not self._connected:
            first = self._backend.signal()
            self._waiting.append(first)
            if not await first.wait(PATIENCE):
                raise Away(self._backend.fault or f"no answer within {PATIENCE:g} s")

    def _send(self, message: Message | None) -> Awaitable[int]:
        command = None if message is None else self._processor.publish(self._processor.broadcast, message)
        return self._backend.awaitable(self._publish(command))

    async def _publish(self, command: Command | None) -> int:
        return (await self._tell(command)).taken

    def _say(self, message: Message | None, id: str) -> Awaitable[Told]:
        command = None if message is None else self._processor.publish(self._processor.broadcast, message, id)
        return self._backend.awaitable(self._tell(command))

    async def _tell(self, command: Command | None) -> Told:
        await self._ready()
        return Told(0) if command is None else await self._commits.publish(command)

    async def _with_receipt(self, message: Message | None, timeout: float) -> Receipt:
        await self._ready()
        return await self._requests.receipt(message, timeout)

    async def _append(self, piece: Piece) -> Told:
        args = piece.arguments(self._processor.prefix, self._processor.broadcast)
        await self._ready()
        return told(await self._backend.run(APPEND, (), args))

    async def _emit(self, event: dict[str, Any]) -> None:
        await self._ready()
        await self._requests.emit(event)

    async def _request(self, event: dict[str, Any], timeout: float) -> Any:
        await self._ready()
        return await self._requests.request(event, timeout)

    def _event(self, event: str, payload: Any, room_id: str | None, user_id: str) -> dict[str, Any]:
        if not self._source:
            raise ValueError(f"{event}: a publisher needs a source, the name of a registered service, to send events")
        return event_for(self._source, event, payload, roomId=room_id, userId=user_id)

"""The room cache that services read from Redis: who is in which room, on this process and the others; and the presence
events that services get about it.

Called by :mod:`kraftek.core.membership` and :mod:`kraftek.core.rooms.leases` through
:class:`kraftek.contract.interfaces.IRooms`. The keys that services read are described in ``docs/services.rst``, "The
room cache": the hash ``room:<room>`` of user to socket, and the string ``socket:<user>:<room>``. Two more are the
gateways' own: the set ``sockets:["<user>","<room>"]`` of all sockets that the user has in that room; and for each
process the set ``gateway:<id>:entries``, so that others can clean up after it.

Each change of all these is one script, which also decides whether services get an event: no reader sees one key
without the other, and there is one ``joined`` and one ``left`` for a user in a room, in order, from any process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice
from typing import Any

import msgspec
from msgspec import Raw
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.interfaces import IBus, IRooms, IServiceRegistry
from kraftek.contract.log_once import OnceUntilItWorks
from kraftek.contract.lua import Script, lua
from kraftek.contract.messages import Envelope
from kraftek.contract.names import (
    CLIENT_JOINED,
    CLIENT_LEFT,
    LOST_GATEWAYS,
    entries_key,
    place_of,
    room_key,
    socket_key,
    sockets_key,
)
from kraftek.contract.settings import Registration

__all__ = ["ENTRIES_AT_ONCE", "Entry", "RedisRooms"]

Entry = tuple[str, str, str]
"""User, room and socket: a member of ``gateway:<id>:entries``, as JSON."""

ENTRIES_AT_ONCE = 200
"""Entries that one call of a script writes: it blocks Redis for one or two milliseconds."""

ENTER = Script(lua(__package__, "entries", "enter"))
LEAVE = Script(lua(__package__, "entries", "leave"))
RESTORE = Script(lua(__package__, "entries", "restore"))

_encode = msgspec.json.Encoder().encode


@implementer(IRooms)
class RedisRooms:
    """The rooms in Redis. ``now`` returns Unix seconds.

    A failure to publish presence events to a service is logged once, until it works again.
    """

    _log = Logger()

    def __init__(
        self,
        bus: IBus,
        registry: IServiceRegistry,
        gateway_id: str,
        reply_to: str,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._registry = registry
        self._gateway_id = gateway_id
        self._reply_to = reply_to
        self._now = now
        self._own = entries_key(gateway_id)
        self._listening: tuple[Registration, ...] = ()
        self._once = OnceUntilItWorks()
        registry.on_change(self._look_up)
        self._look_up()

    def enter(self, user_id: str, room_id: str, socket_id: str) -> Deferred[str | None]:
        displaced = self._run(ENTER, self._own, [(user_id, room_id, socket_id)], CLIENT_JOINED, {})
        return displaced.addCallback(lambda found: found if found is None else found.decode(errors="replace"))

    def leave(self, user_id: str, room_id: str, socket_id: str, reason: str) -> Deferred[None]:
        left = self._run(LEAVE, self._own, [(user_id, room_id, socket_id)], CLIENT_LEFT, {"reason": reason})
        return left.addCallback(lambda _: None)

    def restore(self, entries: Iterable[Entry]) -> Deferred[list[str]]:
        # All are sent before this returns: a session that leaves from now on leaves after it was restored.
        remaining = iter(entries)
        batches = []
        while batch := list(islice(remaining, ENTRIES_AT_ONCE)):
            batches.append(self._run(RESTORE, self._own, batch, CLIENT_JOINED, {}))
        return gatherResults(batches, consumeErrors=True).addCallbacks(_sockets, _first_error)

    def bury(self, entries: Sequence[Entry]) -> Deferred[None]:
        buried = self._run(LEAVE, LOST_GATEWAYS, entries, CLIENT_LEFT, {"reason": "gateway_lost"})
        return buried.addCallback(lambda _: None)

    def _run(
        self, script: Script, named_in: str, entries: Sequence[Entry], event: str, payload: dict[str, str]
    ) -> Deferred[Any]:
        services = self._listening
        keys = [named_in, LOST_GATEWAYS]
        args: list[str | bytes | int] = [len(services)]
        args += [service.max_length if service.transport == "stream" else 0 for service in services]
        for entry in entries:
            user_id, room_id, socket_id = entry
            sockets = sockets_key(_encode((user_id, room_id)).decode())
            keys += (room_key(room_id), socket_key(user_id, room_id), sockets)
            keys += [_place(service, room_id) for service in services]
            args += (user_id, socket_id, _encode(entry), self._event(event, entry, payload) if services else b"")
        return self._bus.call(script, keys, args).addCallback(self._done, keys)

    def _done(self, answer: list[Any], keys: Sequence[str]) -> Any:
        result, *failure = answer
        if failure:
            place, reason = (word.decode() for word in failure)
            text = "Cannot publish presence events to {place}: {reason}"
            self._once.failed(self._log.error, text, about=place, place=place, reason=reason)
        elif self._once.failing:
            self._once.works(*map(self._bus.channel_name, keys))
        return result

    def _event(self, event: str, entry: Entry, payload: dict[str, str]) -> bytes:
        user_id, room_id, socket_id = entry
        return _encode(
            Envelope(
                event_type=event,
                user_id=user_id,
                socket_id=socket_id,
                timestamp=int(self._now() * 1000),
                gateway_id=self._gateway_id,
                reply_to=self._reply_to,
                payload=Raw(_encode(payload)),
                room_id=room_id,
            )
        )

    def _look_up(self) -> None:
        self._listening = tuple(service for service in self._registry.services() if service.presence)


def _place(service: Registration, room_id: str) -> str:
    return place_of(service.channel, service.partitions if service.transport == "stream" else 0, room_id)


def _sockets(batches: list[list[bytes]]) -> list[str]:
    return [socket_id.decode() for socket_id in chain.from_iterable(batches)]


def _first_error(failure: Failure) -> Failure:
    error = failure.value
    return error.subFailure if isinstance(error, FirstError) else failure

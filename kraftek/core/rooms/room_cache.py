"""The room cache that services read from Redis: who is in which room, on this process and the others; and the presence
events that services get about it.

Called by :mod:`kraftek.core.rooms.reconciliation` and :mod:`kraftek.core.rooms.leases` through
:class:`kraftek.contract.interfaces.IRooms`. The keys that services read are described in ``docs/services.rst``, "The
room cache": the hash ``room:<room>`` of user to socket, and the string ``socket:<user>:<room>``. Two more are the
gateways' own: the sorted set ``sockets:["<user>","<room>"]`` of all sockets that the user has in that room, by when
each entered, in microseconds of Redis's clock; and for each process the set ``gateway:<id>:entries``, so that others
can clean up after it. The newest socket is the one that services read. In rooms that clients may watch the hash
``gateways:presence:<room>`` has what users show of themselves, by socket, and a channel of that name has a word when
somebody comes or goes.

Each change of all these is one script, which also decides whether services get an event: no reader sees one key
without the other, and there is one ``joined`` and one ``left`` for a user in a room, in order, from any process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Raw
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import Here, IBus, IRooms, IServiceRegistry, Mended, RoomEntry, Undelivered
from kraftek.contract.log_once import OnceUntilItWorks
from kraftek.contract.lua import Script, lua
from kraftek.contract.messages import Envelope
from kraftek.contract.names import (
    CLIENT_JOINED,
    CLIENT_LEFT,
    EPOCH,
    LOST_GATEWAYS,
    ROOMS_RESET,
    entries_key,
    place_of,
    room_key,
    shown_key,
    socket_key,
    sockets_key,
    stream_of,
)
from kraftek.contract.settings import Registration, RoomPolicy
from kraftek.core.rooms.shown import Shown

__all__ = ["ENTRIES_AT_ONCE", "RedisRooms", "encode_entry", "read_entry", "users_sockets"]

ENTRIES_AT_ONCE = 200
"""Entries that one call of a script writes: it blocks Redis for one or two milliseconds."""

_OLDER = 16
"""Older sockets of a user in a room that are reported at once: usually there is none."""

_RIVALS = 16
"""Users and rooms that share a string, at most: names with more colons than that are not looked through."""

_MOST_OWED = 10_000
"""Presence events that may wait for room in a stream: a few megabytes. One event takes the place of more."""

_TELL = "epochs", "fields", "streams", "presence"
_NUMBERS = {"FULL": Undelivered.FULL, "most_owed": _MOST_OWED}

BEGIN = Script(lua(__package__, "time", "keep_type", "outcome", "begin_epoch", *_TELL, **_NUMBERS))
COUNT = Script(lua(__package__, "time", "count"))
HERE = Script(lua(__package__, "other_epoch", "here"))
ENTER = Script(lua(__package__, "outcome", "shown", "enter", *_TELL, most_older=_OLDER, **_NUMBERS))
LEAVE = Script(lua(__package__, "outcome", "entries", "holder", "leave", *_TELL, **_NUMBERS))
MEND = Script(lua(__package__, "outcome", "entries", "holder", "shown", "mend", *_TELL, most_older=_OLDER, **_NUMBERS))

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RoomEntry).decode

_BREAK = "\n"
"""Where a script puts the epoch and the number of an event. JSON as it is encoded here has none of these."""


def encode_entry(entry: RoomEntry) -> bytes:
    """The entry as a member of ``gateway:<id>:entries``."""
    return _encode(entry)


def read_entry(member: bytes) -> RoomEntry | None:
    """The entry, if it was written by a gateway: only as it was written can it be removed."""
    try:
        entry = _decode(member)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return entry if _encode(entry) == member else None


@implementer(IRooms)
class RedisRooms:
    """The rooms in Redis. ``now`` returns Unix seconds. ``policies``: those of ``[rooms]``.

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
        *,
        policies: Sequence[RoomPolicy] = (),
    ) -> None:
        self._bus = bus
        self._registry = registry
        self._gateway_id = gateway_id
        self._reply_to = reply_to
        self._now = now
        self.shown = Shown(policies)
        self._own = entries_key(gateway_id)
        self._listening: tuple[Registration, ...] = ()
        self._once = OnceUntilItWorks()
        registry.on_change(self._look_up)
        self._look_up()

    def begin_epoch(self) -> Deferred[int]:
        assert self._bus.epoch is not None
        places = [(place, service) for service in self._listening for place in _places(service)]
        bounds = [_bounds(service) for _, service in places]
        keys = [self._own, LOST_GATEWAYS, EPOCH, *(place for place, _ in places)]
        event = self._event(ROOMS_RESET, ("", None, ""))
        began = self._bus.call(BEGIN, keys, [len(places), *bounds, self._bus.epoch, event])
        return began.addCallback(self._done, keys)

    def enter(self, entry: RoomEntry, at: int) -> Deferred[tuple[int, list[str]]]:
        return self._run(ENTER, self._own, [(entry, at)], CLIENT_JOINED).addCallback(_entered)

    def leave(self, entries: Sequence[tuple[RoomEntry, str]]) -> Deferred[None]:
        return self._run(LEAVE, self._own, entries, CLIENT_LEFT).addCallback(lambda _: None)

    def mend(self, entries: Sequence[tuple[RoomEntry, int]]) -> Deferred[list[Mended]]:
        return self._run(MEND, self._own, entries, CLIENT_JOINED).addCallback(_mended, entries)

    def count(self) -> Deferred[tuple[int, int]]:
        return self._bus.call(COUNT, [self._own]).addCallback(tuple)

    def scan(self, cursor: bytes) -> Deferred[tuple[bytes, list[RoomEntry]]]:
        scanned = self._bus.call("SSCAN", [self._own], [cursor, "COUNT", ENTRIES_AT_ONCE])
        return scanned.addCallback(self._scanned)

    def bury(self, entries: Sequence[RoomEntry]) -> Deferred[None]:
        departed = [(entry, "gateway_lost") for entry in entries]
        return self._run(LEAVE, LOST_GATEWAYS, departed, CLIENT_LEFT).addCallback(lambda _: None)

    def here(self, room_id: str, most: int, preferred: Sequence[str]) -> Deferred[Here]:
        keys = [room_key(room_id), shown_key(room_id), EPOCH]
        reading = self._bus.call(HERE, keys, [self._bus.epoch or "", most, *preferred])
        return reading.addCallback(_here)

    def _run(
        self, script: Script, named_in: str, entries: Sequence[tuple[RoomEntry, str | int]], event: str
    ) -> Deferred[Any]:
        services, shown = self._listening, self.shown
        keys = [named_in, LOST_GATEWAYS, EPOCH]
        args: list[str | bytes | int] = [len(services), *map(_bounds, services), self._bus.epoch or ""]
        for entry, more in entries:
            user_id, room_id, socket_id = entry
            rivals = _rivals(user_id, room_id) if ":" in user_id or ":" in room_id else ()
            keys += (room_key(room_id), socket_key(user_id, room_id), users_sockets(user_id, room_id))
            keys += [_place(service, room_id) for service in services]
            keys += rivals
            what = b""
            if shown and (what := shown.word(entry)):
                keys.append(shown_key(room_id))
            told = self._event(event, entry, more) if services else b""
            args += (user_id, socket_id, _encode(entry), told, more, len(rivals), what)
        return self._bus.call(script, keys, args).addCallback(self._done, keys)

    def _scanned(self, answer: list[Any]) -> tuple[bytes, list[RoomEntry]]:
        cursor, members = answer
        entries = [entry for member in members if (entry := read_entry(member)) is not None]
        if len(entries) < len(members):
            unreadable = [member for member in members if read_entry(member) is None]
            self._bus.call("SREM", [self._own], unreadable).addErrback(lambda _: None)
        return cursor, entries

    def _done(self, answer: Any, keys: Sequence[str]) -> Any:
        if type(answer) is list and answer and answer[0] == b"FAILED":
            _, answer, *failure = answer
            place, reason = (word.decode(errors="replace") for word in failure)
            text = "Cannot publish presence events to {place}: {reason}"
            self._once.failed(self._log.error, text, about=place, place=place, reason=reason)
        elif self._once.failing:
            self._once.works(*map(self._bus.channel_name, keys))
        return answer

    def _event(self, event: str, entry: tuple[str, str | None, str], reason: str | int = "") -> bytes:
        user_id, room_id, socket_id = entry
        why = f'"reason":{_encode(reason).decode()},' if event == CLIENT_LEFT else ""
        return _encode(
            Envelope(
                event_type=event,
                user_id=user_id,
                socket_id=socket_id,
                timestamp=int(self._now() * 1000),
                gateway_id=self._gateway_id,
                reply_to=self._reply_to,
                payload=Raw(f"{{{why}{_BREAK}}}".encode()),
                room_id=room_id,
            )
        )

    def _look_up(self) -> None:
        self._listening = tuple(service for service in self._registry.services() if service.presence)


def _bounds(service: Registration) -> str:
    return f"{service.max_length} {service.max_bytes}" if service.transport == "stream" else "0"


def _place(service: Registration, room_id: str) -> str:
    return place_of(service.channel, service.partitions if service.transport == "stream" else 0, room_id)


def _places(service: Registration) -> list[str]:
    """All places where the service gets events, whatever their rooms."""
    if service.transport == "stream" and service.partitions:
        return [stream_of(service.channel, number) for number in range(service.partitions)]
    return [service.channel]


def users_sockets(user_id: str, room_id: str) -> str:
    """The key of all sockets that the user has in the room."""
    return sockets_key(_encode((user_id, room_id)).decode())


def _rivals(user_id: str, room_id: str) -> list[str]:
    """The sockets of other users and rooms whose names come to the same key of :func:`socket_key`."""
    name = f"{user_id}:{room_id}"
    colons = [at for at, letter in enumerate(name) if letter == ":" and at not in (0, len(user_id))]
    return [users_sockets(name[:at], name[at + 1 :]) for at in colons[:_RIVALS]]


def _entered(answer: Any) -> tuple[int, list[str]]:
    if type(answer) is int:
        return answer, []
    at, *older = answer
    return at, _names(older)


def _here(answer: Any) -> Here:
    if answer is None:
        raise NotPublished("Redis has lost its data, and they are being written anew")
    count, *words = answer
    users = (word.decode(errors="replace") for word in words[::2])
    return Here(count, dict(zip(users, words[1::2], strict=True)))


def _mended(answers: Any, entries: Sequence[tuple[RoomEntry, int]]) -> list[Mended]:
    return [Mended(entries[position][0], newest == 1, _names(older)) for position, newest, *older in answers or ()]


def _names(sockets: Sequence[bytes]) -> list[str]:
    return [socket.decode(errors="replace") for socket in sockets]

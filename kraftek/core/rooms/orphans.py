"""Finds entries of the room cache that no gateway would ever remove, slowly, and hands them to their gateways.

What stands in the room cache stands in the entries of a gateway, too, which has a lease: so a dead one is cleaned up
after, and a live one removes what should not stand. That link may be missing, because Redis evicted a key or another
program removed it. The gateway of such an entry is in its socket's id: whether it should stand is found out as for all
others, by the gateway itself or by those that find its lease expired.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.contract.errors import NotPublished
from kraftek.contract.fleet import Fleet
from kraftek.contract.interfaces import IBus, RoomEntry
from kraftek.contract.log_once import OnceUntilItWorks, failing
from kraftek.contract.lua import Script, lua
from kraftek.contract.names import GATEWAY_LEASES, LOST_GATEWAYS, entries_key, gateway_of, room_key, sockets_key
from kraftek.core.rooms.leases import LEASE
from kraftek.core.rooms.room_cache import ENTRIES_AT_ONCE, encode_entry, users_sockets

__all__ = ["Orphans"]

STEP = 0.25
"""Seconds between two steps of all gateways together. One takes Redis half a millisecond."""

KEYS_AT_ONCE = 100
"""Keys that one step looks at: at 100,000 entries Redis has some 300,000, and all are seen in a quarter of an hour."""

OF_ONE, OF_ALL = 100, 1000
"""Sockets of one room, or of one user in a room, and of all, that one step looks at."""

FIND_ENTRIES = Script(lua(__package__, "find_entries"))
CLAIM = Script(lua(__package__, "time", "claim"))

_names_of = msgspec.json.Decoder(tuple[str, str]).decode


class Orphans:
    """Looks through Redis's keys, again and again."""

    _log = Logger()

    def __init__(self, bus: IBus, clock: IReactorTime, fleet: Fleet) -> None:
        self._bus = bus
        self._clock = clock
        self._fleet = fleet
        self._cursor = b"0"
        self._looking = False
        self._not_before = clock.seconds() + fleet.pause(STEP)
        self._once = OnceUntilItWorks()

    def sweep(self) -> None:
        """Called several times a second: takes the next step if it is time."""
        if self._bus.available and not self._looking and self._clock.seconds() >= self._not_before:
            self._looking = True
            looking = Deferred.fromCoroutine(self._look())
            looking.addCallbacks(self._succeeded, self._failed).addBoth(self._looked)

    async def _look(self) -> None:
        prefix, *prefixes = map(self._bus.channel_name, ("", room_key(""), sockets_key("")))
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", prefix) + "*"
        args: list[str | bytes | int] = [self._cursor, pattern, KEYS_AT_ONCE, *prefixes, OF_ONE, OF_ALL]
        cursor, rooms, sockets = await self._bus.call(FIND_ENTRIES, [], args)
        entries = sorted({*_in_rooms(rooms), *_of_users(sockets)})
        for first in range(0, len(entries), ENTRIES_AT_ONCE):
            await self._claim(entries[first : first + ENTRIES_AT_ONCE])
        self._cursor = cursor

    async def _claim(self, entries: list[RoomEntry]) -> None:
        keys = [LOST_GATEWAYS, GATEWAY_LEASES]
        args: list[str | bytes | float] = [LEASE]
        for entry in entries:
            user_id, room_id, socket_id = entry
            gateway_id = gateway_of(socket_id)
            keys += (room_key(room_id), users_sockets(user_id, room_id), entries_key(gateway_id))
            args += (user_id, socket_id, encode_entry(entry), gateway_id)
        if handed := await self._bus.call(CLAIM, keys, args):
            text = "{number} entries of the room cache had lost their gateway: Redis evicted keys, or they were removed"
            self._log.warn(text, number=handed)

    def _looked(self, _: object) -> None:
        self._looking = False
        self._not_before = self._clock.seconds() + self._fleet.pause(STEP)

    def _succeeded(self, _: None) -> None:
        self._once.works()

    def _failed(self, failure: Failure) -> None:
        if failure.check(NotPublished) is None:
            self._once.failed(failing(self._log, failure), "The room cache is not looked through, until it can be")


def _in_rooms(found: list[list[bytes]]) -> Iterator[RoomEntry]:
    """What is in rooms, as FIND_ENTRIES has it. A socket without a gateway was written by another system."""
    for name, *there in found:
        for user, socket in zip(there[::2], there[1::2], strict=True):
            try:
                entry = user.decode(), name.decode(), socket.decode()
            except UnicodeDecodeError:
                continue
            if gateway_of(entry[2]):
                yield entry


def _of_users(found: list[list[bytes]]) -> Iterator[RoomEntry]:
    """The same of users' sockets."""
    for names, *sockets in found:
        try:
            user_id, room_id = _names_of(names)
            entries = [(user_id, room_id, socket.decode()) for socket in sockets]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        yield from (entry for entry in entries if gateway_of(entry[2]))

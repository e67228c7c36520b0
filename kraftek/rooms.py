"""The room cache that services read: who is in which room, as this process and its peers write it into Redis.

Called by :mod:`kraftek.admission` through :class:`kraftek.interfaces.IRooms`. The keys are section 4 of the contract
with services (``docs/services.rst``): the hash ``room:<room>`` of user to socket, and the string
``socket:<user>:<room>``. Each change of both is one script, so that nobody sees one without the other and a newer
log-in's entry is never taken away by the older one's goodbye.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.interfaces import IBus, IRooms
from kraftek.scripts import Script

__all__ = ["RedisRooms"]

ENTER = Script("""
local before = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('SET', KEYS[2], ARGV[2])
return before ~= ARGV[2] and before
""")

LEAVE = Script("""
local user, leaver, heir = unpack(ARGV)
if redis.call('HGET', KEYS[1], user) == leaver then
    if heir then redis.call('HSET', KEYS[1], user, heir) else redis.call('HDEL', KEYS[1], user) end
end
if redis.call('GET', KEYS[2]) == leaver then
    if heir then redis.call('SET', KEYS[2], heir) else redis.call('DEL', KEYS[2]) end
end
""")

RESTORE = Script("""
local superseded = {}
for i = 1, #KEYS, 2 do
    local room, entry, user, socket = KEYS[i], KEYS[i + 1], ARGV[i], ARGV[i + 1]
    redis.call('HSETNX', room, user, socket)
    if redis.call('HGET', room, user) == socket then
        redis.call('SET', entry, socket)
    else
        superseded[#superseded + 1] = socket
    end
end
return superseded
""")

BATCH = 500
"""Entries that one call of RESTORE writes: one or two milliseconds in which Redis does nothing else."""


@implementer(IRooms)
class RedisRooms:
    """Rooms on a bus."""

    def __init__(self, bus: IBus) -> None:
        self._bus = bus

    def enter(self, user_id: str, room_id: str, socket_id: str) -> Deferred[str | None]:
        displaced: Deferred[bytes | None] = self._bus.call(ENTER, _keys(user_id, room_id), (user_id, socket_id))
        return displaced.addCallback(lambda found: found if found is None else found.decode())

    def leave(self, user_id: str, room_id: str, socket_id: str, heir: str | None) -> Deferred[None]:
        names = (user_id, socket_id) if heir is None else (user_id, socket_id, heir)
        left: Deferred[None] = self._bus.call(LEAVE, _keys(user_id, room_id), names)
        return left

    def restore(self, entries: Iterable[tuple[str, str, str]]) -> Deferred[list[str]]:
        # All are sent before this returns: who leaves from now on leaves after being restored.
        remaining = iter(entries)
        batches = []
        while batch := list(islice(remaining, BATCH)):
            keys = [key for user_id, room_id, _ in batch for key in _keys(user_id, room_id)]
            names = [name for user_id, _, socket_id in batch for name in (user_id, socket_id)]
            batches.append(self._bus.call(RESTORE, keys, names))
        return gatherResults(batches, consumeErrors=True).addCallbacks(_sockets, _first_error)


def _keys(user_id: str, room_id: str) -> tuple[str, str]:
    return f"room:{room_id}", f"socket:{user_id}:{room_id}"


def _sockets(batches: list[list[bytes]]) -> list[str]:
    return [socket_id.decode() for socket_id in chain.from_iterable(batches)]


def _first_error(failure: Failure) -> Failure:
    error = failure.value
    return error.subFailure if isinstance(error, FirstError) else failure

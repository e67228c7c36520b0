"""Which rooms have presence for clients, and what users show of themselves there with sockets of this process.

Made by :mod:`kraftek.core.rooms.room_cache`, which writes it where other gateways read it; :mod:`kraftek.core.presence`
and :mod:`kraftek.core.membership` look it up and say what it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from kraftek.contract.interfaces import RoomEntry
from kraftek.contract.settings import RoomPolicy

__all__ = ["Shown", "read_data"]

_NULL = b"null"
_NOTHING = b"-"


class Shown:
    """``policies``: those of ``[rooms]``. False where no room has presence."""

    def __init__(self, policies: Sequence[RoomPolicy] = ()) -> None:
        self._policies = tuple(policies) if any(policy.presence for policy in policies) else ()
        self._data: dict[RoomEntry, bytes] = {}

    def __bool__(self) -> bool:
        return bool(self._policies)

    def most(self, room_id: str) -> int:
        """How many of the users in the room clients are told of; 0 for a room without presence."""
        policy = next((policy for policy in self._policies if policy.covers(room_id)), None)
        return policy.presence_users if policy is not None and policy.presence else 0

    def show(self, entry: RoomEntry, data: bytes) -> bool:
        """The user shows this, JSON, with this socket in this room; nothing with ``null``. Whether that is a change."""
        if data == self.data(entry) or not self.most(entry[1]):
            return False
        if data == _NULL:
            del self._data[entry]
        else:
            self._data[entry] = data
        return True

    def data(self, entry: RoomEntry) -> bytes:
        """What it shows: ``null`` for nothing."""
        return self._data.get(entry, _NULL)

    def forget(self, entry: RoomEntry) -> None:
        """The socket is out of the room."""
        self._data.pop(entry, None)

    def word(self, entry: RoomEntry) -> bytes:
        """What scripts are given of it: nothing, where the room has no presence."""
        return self._data.get(entry, _NOTHING) if self.most(entry[1]) else b""


def read_data(given: Raw, most: int) -> bytes:
    """What a client gave of itself, if it did: JSON that every other client can read. Raises ``ValueError``."""
    if len(given) > most:
        raise ValueError(f"data: expected at most {most} bytes of JSON (limits.presence_bytes), found {len(given)}")
    if not given:
        return b""
    try:
        data = msgspec.json.encode(msgspec.json.decode(given))
    except (msgspec.DecodeError, UnicodeError, RecursionError, OverflowError) as error:
        raise ValueError(f"data: {error}") from None
    if len(data) > most:
        raise ValueError(f"data: expected at most {most} bytes of JSON (limits.presence_bytes), found {len(data)}")
    return data

"""How gateways, sockets and their channels are named, so that anything in the cluster knows whose socket it is; and how
events are.
"""

from __future__ import annotations

import re
from secrets import token_hex
from zlib import crc32

__all__ = [
    "NAME_LENGTH",
    "gateway_of",
    "new_gateway_id",
    "new_socket_id",
    "partition_of",
    "place_of",
    "reply_channel",
    "service_of",
    "stream_of",
]

NAME_LENGTH = 128
"""Characters of an event's name at most: docs/client-protocol.rst, "Event names"."""

_PART = r"[^\s:\x00-\x1f\x7f-\x9f\ud800-\udfff]+"
_EVENT = re.compile(rf"({_PART}):{_PART}:{_PART}")


def service_of(event: str) -> str | None:
    """The service that an event is for by its name, ``service:module:name``; ``None`` when that is no event's name."""
    parsed = _EVENT.fullmatch(event) if len(event) <= NAME_LENGTH else None
    return parsed[1] if parsed else None


def new_gateway_id() -> str:
    """A name for this process, unique in the cluster and over time."""
    return token_hex(6)


def new_socket_id(gateway_id: str) -> str:
    """``<gatewayId>.<random>``: 64 random bits, so that nobody guesses another's socket."""
    return f"{gateway_id}.{token_hex(8)}"


def gateway_of(socket_id: str) -> str:
    """The gateway process that a socket belongs to; empty for an id that no gateway of ours made."""
    return socket_id.rpartition(".")[0]


def reply_channel(gateway_id: str) -> str:
    """The channel that only this gateway process listens to: ``replyTo`` of the events it publishes."""
    return f"events:reply:{gateway_id}"


def stream_of(channel: str, partition: int) -> str:
    """The key of one partition's stream, of a service that keeps the order of each room."""
    return f"{channel}:{partition}"


def partition_of(place: str, partitions: int) -> int:
    """The partition of a room: CRC-32 of its UTF-8. An event from no room goes by its socket."""
    return crc32(place.encode("utf-8", "surrogatepass")) % partitions


def place_of(channel: str, partitions: int, place: str) -> str:
    """The key of the stream that events from a room, or else from a socket, go to."""
    return stream_of(channel, partition_of(place, partitions)) if partitions else channel

"""How gateways, sockets and their channels are named, so that anything in the cluster knows whose socket it is."""

from __future__ import annotations

from secrets import token_hex
from zlib import crc32

__all__ = ["gateway_of", "new_gateway_id", "new_socket_id", "partition_of", "place_of", "reply_channel", "stream_of"]


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

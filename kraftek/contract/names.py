"""Names that several sides must write alike: gateways, sockets and events; and all that the gateway, its services and
the auth service use in Redis.

Keys and channels are here without the configured prefix, which the bus and the service kit put before them.

==================================  ====================================================================================
``events:broadcast``                the channel on which services answer; ``redis.broadcast`` names another
``events:reply:<gateway>``          the channel that only this gateway process listens to
``events:cancel:<service>``         the channel on which a service hears of requests that were cancelled
``events:gateway``                  the stream of events from services to services, read by the group ``gateways``
``<stream>:dead``                   the dead-letter stream of a stream
``<stream>:level``, ``…:presence``  how full a service's stream is, and the presence events that wait for room in it
``auth:invalidate``                 the channel on which the auth service revokes access
``access:…``, ``access-ledger:…``   the access cache: :mod:`kraftek.core.access.redis`
``access-not-before:<userId>``      when a user's tokens were revoked: :mod:`kraftek.core.access.not_before`
``room:…``, ``socket:…``            the room cache that services read: :mod:`kraftek.core.rooms.room_cache`
``sockets:…``, ``gateway:…``        what gateways need to write it: the same
``gateways``, ``gateways:…``        leases of gateway processes: :mod:`kraftek.core.rooms.leases`; when they
                                    listened: :mod:`kraftek.core.access.listening`; the services that are
                                    registered with them, and those that have registered
                                    themselves: :mod:`kraftek.contract.registrations`
``gateway:epoch``                   the epoch of Redis's data: :attr:`kraftek.contract.interfaces.IBus.epoch`
``gateways:history:…``              what was told to topics: :mod:`kraftek.contract.history`
``gateways:presence:<room>``        what users show in a room, and the channel of who comes and goes there:
                                    :mod:`kraftek.core.rooms.room_cache`
``request:…``                       requests and their answers: :mod:`kraftek.core.requests`
``gateway:published:<digest>``      what was published under an idempotency key: :mod:`kraftek.daemon.publish_requests`
==================================  ====================================================================================
"""

from __future__ import annotations

import re
from secrets import token_hex
from zlib import crc32

__all__ = [
    "ACCESS",
    "BROADCAST",
    "CLIENT_JOINED",
    "CLIENT_LEFT",
    "COMMANDS",
    "ENTRIES",
    "EPOCH",
    "GATEWAY_BYTES",
    "GATEWAY_GROUP",
    "GATEWAY_LEASES",
    "GATEWAY_LENGTH",
    "GATEWAY_NAME",
    "GATEWAY_OWN",
    "GATEWAY_PRESENCE",
    "GATEWAY_STREAM",
    "HISTORY_FOLLOWING",
    "HISTORY_RULES",
    "INVALIDATION",
    "LAST_LOOK",
    "LISTENED",
    "LOST_GATEWAYS",
    "NAME_LENGTH",
    "RECEIPT",
    "REGISTRATIONS",
    "REQUESTS",
    "REQUEST_PROGRESS",
    "ROOMS_RESET",
    "ROOM_COMMANDS",
    "ROOM_HISTORY",
    "ROOM_PUT",
    "ROOM_REMOVE",
    "SELF_LEASES",
    "SELF_REGISTERED",
    "SUBPROTOCOL",
    "cancel_channel",
    "dead_letters",
    "default_channel",
    "entries_key",
    "gateway_of",
    "history_ids_key",
    "history_log_key",
    "history_position_key",
    "history_texts_key",
    "instances_key",
    "is_reserved",
    "kept_socket_key",
    "late_answer_key",
    "lease_key",
    "ledger_key",
    "level_key",
    "new_gateway_id",
    "new_socket_id",
    "not_before_key",
    "partition_of",
    "parts_beside",
    "parts_key",
    "place_of",
    "presence_key",
    "publish_key",
    "reply_channel",
    "room_key",
    "room_topic",
    "service_of",
    "shown_key",
    "socket_key",
    "sockets_key",
    "stream_of",
    "token_key",
    "topic_channel",
    "user_key",
    "user_topic",
]

SUBPROTOCOL = "kraftek.v1.json"
"""The WebSocket subprotocol of the gateway's own dialect."""

# Events

NAME_LENGTH = 128
"""Characters of an event's name at most: docs/client-protocol.rst, "Event names"."""

GATEWAY_NAME = "gateway"
"""The service, by their names, that the gateway's own events are of."""

GATEWAY_OWN = f"{GATEWAY_NAME}:"
"""Events whose names begin so come from the gateway itself, not from a client; and messages whose types do are for the
gateways themselves."""

CLIENT_JOINED = "gateway:client:joined"
CLIENT_LEFT = "gateway:client:left"
ROOMS_RESET = "gateway:room:reset"
"""Events for services with ``presence``: docs/services.rst, "Presence"."""

ROOM_PUT = "gateway:room:put"
ROOM_REMOVE = "gateway:room:remove"
"""Commands to gateways: docs/services.rst, "Putting users into rooms"."""

REQUEST_PROGRESS = "gateway:request:progress"
"""A part of the answer to a request, from its service to the gateway of its socket. Only for requests that ask for
parts: a gateway that does not know of them hands on no such request."""

ROOM_COMMANDS = (ROOM_PUT, ROOM_REMOVE)
"""Those two."""

RECEIPT = "gateway:receipt"
"""The command to say who acknowledges the message that follows, and what a gateway says of it: docs/services.rst,
"Receipts"."""

COMMANDS = (*ROOM_COMMANDS, RECEIPT)
"""All others whose types begin with :data:`GATEWAY_OWN`. A gateway that does not know one cannot carry it out."""

ROOM_HISTORY = "gateway:room:history"
"""What a grant has to permit, where it says what it permits, for a client to read the history of a room."""

_PART = r"[^\s:\x00-\x1f\x7f-\x9f\ud800-\udfff]+"
_EVENT = re.compile(rf"({_PART}):{_PART}:{_PART}")


def service_of(event: str) -> str | None:
    """The service that an event is for by its name, ``service:module:name``; ``None`` when that is no event's name."""
    parsed = _EVENT.fullmatch(event) if len(event) <= NAME_LENGTH else None
    return parsed[1] if parsed else None


# Gateways and sockets


def new_gateway_id() -> str:
    """A name for this process, unique in the cluster and over time."""
    return token_hex(6)


def new_socket_id(gateway_id: str) -> str:
    """``<gatewayId>.<random>``: 64 random bits, so that nobody guesses another's socket."""
    return f"{gateway_id}.{token_hex(8)}"


def gateway_of(socket_id: str) -> str:
    """The gateway process that a socket belongs to; empty for an id that no gateway of ours made."""
    return socket_id.rpartition(".")[0]


# Where events go

BROADCAST = "events:broadcast"
"""The channel on which services answer, unless ``redis.broadcast`` names another."""

GATEWAY_STREAM = "events:gateway"
"""The stream from which gateways read events between services: docs/services.rst, "Events between services"."""

GATEWAY_GROUP = "gateways"
"""The consumer group that all gateway processes are in there."""

GATEWAY_LENGTH, GATEWAY_BYTES = 100_000, 67_108_864
"""Events, and bytes of them, that may wait there: services wait while it is full."""

INVALIDATION = "auth:invalidate"
"""The channel on which the auth service revokes access: ``{"userId", "roomId"?}``."""


def reply_channel(gateway_id: str) -> str:
    """The channel that only this gateway process listens to: ``replyTo`` of the events it publishes."""
    return f"events:reply:{gateway_id}"


def cancel_channel(service: str) -> str:
    """The channel on which all instances of a service hear of requests that their clients have cancelled. Who does not
    know of that does not subscribe to it.
    """
    return f"events:cancel:{service}"


def is_reserved(channel: str) -> bool:
    """Whether it is a name of the gateway's own, which is no channel or stream of a service."""
    own = GATEWAY_STREAM, INVALIDATION, GATEWAY_LEASES
    return channel in own or channel.startswith((f"{GATEWAY_STREAM}:", *_OWN_NAMES))


def default_channel(service: str) -> str:
    """The channel or stream of a service whose registration names none."""
    return f"events:{service}"


def stream_of(channel: str, partition: int) -> str:
    """The key of one partition's stream, of a service that keeps the order of each room."""
    return f"{channel}:{partition}"


def partition_of(place: str, partitions: int) -> int:
    """The partition of a room: CRC-32 of its UTF-8. An event from no room goes by its socket."""
    return crc32(place.encode("utf-8", "surrogatepass")) % partitions


def place_of(channel: str, partitions: int, place: str) -> str:
    """The key of the stream that events from a room, or else from a socket, go to."""
    return stream_of(channel, partition_of(place, partitions)) if partitions else channel


def level_key(stream: str) -> str:
    """What is known of how full a service's stream is: ``streams.lua`` beside this module."""
    return f"{stream}:level"


def presence_key(stream: str) -> str:
    """The hash of presence events for which a service's stream has no room yet."""
    return f"{stream}:presence"


def dead_letters(stream: str) -> str:
    """The dead-letter stream of a stream: entries that could not be delivered or handled."""
    return f"{stream}:dead"


def instances_key(channel: str, service: str) -> str:
    """The sorted set of a service's instances that share its partitions."""
    return f"{channel}:instances:{service}"


def lease_key(stream: str, service: str) -> str:
    """The lease of one partition: the instance that reads it."""
    return f"{stream}:lease:{service}"


# Redis's data

EPOCH = "gateway:epoch"
"""The hash of the epoch of Redis's data: ``run``, the run id of the server that it was last used under, and ``epoch``.
Further fields belong to those that do something once an epoch: see :attr:`kraftek.contract.interfaces.IBus.epoch`."""

# Access

ACCESS = "access:"
"""The prefix of keys whose changes are announced to the gateways that hold them."""


def token_key(digest: str) -> str:
    """The key of the answers cached for a token."""
    return f"access:token:{digest}"


def user_key(user_id: str) -> str:
    """The key of a user's digests."""
    return f"access:user:{user_id}"


def ledger_key(user_id: str) -> str:
    """The key of what the other two should hold. Without the prefix :data:`ACCESS`: its changes are not announced."""
    return f"access-ledger:{user_id}"


def not_before_key(user_id: str) -> str:
    """The key of when a user's tokens were revoked, for gateways that check tokens themselves."""
    return f"access-not-before:{user_id}"


# Rooms and gateway processes

ENTRIES = "gateway:"
"""The prefix of the keys of :func:`entries_key`."""

LISTENED = "gateways:listened"
"""The hash of when gateway processes listened: :mod:`kraftek.core.access.listening`."""

LOST_GATEWAYS = "gateways:lost"
"""The set of entries of dead processes; the process that removes one cleans up after it."""

GATEWAY_LEASES = "gateways"
"""The leases: gateway ids by the time when each expires, by Redis's clock."""

LAST_LOOK = "gateways:looked"
"""When a gateway process last looked for expired leases."""


REGISTRATIONS = "gateways:registrations"
"""The hash of what each gateway process publishes about its services: :mod:`kraftek.contract.registrations`."""

SELF_REGISTERED = "gateways:registered"
"""The hash of services that have registered themselves, by their names; and the channel on which gateways hear of a new
one: :mod:`kraftek.core.self_registrations`."""

SELF_LEASES = "gateways:registered:leases"
"""Until when each of them stands: a sorted set of their names by Redis's time, in milliseconds."""


def entries_key(gateway_id: str) -> str:
    """The key of the set of what a process has written into the room cache."""
    return f"{ENTRIES}{gateway_id}:entries"


def room_key(room_id: str) -> str:
    """The hash of who is in a room: user id to socket id."""
    return f"room:{room_id}"


def socket_key(user_id: str, room_id: str) -> str:
    """The string with the id of the socket that the user has in the room."""
    return f"socket:{user_id}:{room_id}"


def sockets_key(user_and_room: str) -> str:
    """The sorted set of all sockets that the user has in the room; both as JSON, because names may have colons."""
    return f"sockets:{user_and_room}"


# Publishing


def publish_key(digest: str) -> str:
    """The key of what was published under an idempotency key, by the digest of that."""
    return f"gateway:published:{digest}"


# The history of what rooms and users are told

_HISTORY = f"{GATEWAY_LEASES}:history:"

HISTORY_RULES = f"{_HISTORY}rules"
"""The hash of the rules by which messages to topics are kept."""

HISTORY_FOLLOWING = f"{_HISTORY}following"
"""The gateway processes that deliver by these rules."""


def room_topic(room_id: str) -> str:
    """A room, as one of the topics that have a history."""
    return f"room:{room_id}"


def user_topic(user_id: str) -> str:
    """A user, as one of them."""
    return f"user:{user_id}"


def history_position_key(topic: str) -> str:
    """The hash of where the topic is."""
    return f"{_HISTORY}position:{topic}"


def history_log_key(topic: str) -> str:
    """The stream of what it was told."""
    return f"{_HISTORY}log:{topic}"


def history_texts_key(topic: str) -> str:
    """The hash of the texts that it was told in pieces."""
    return f"{_HISTORY}texts:{topic}"


def history_ids_key(topic: str) -> str:
    """The sorted set of the ids of that."""
    return f"{_HISTORY}ids:{topic}"


def topic_channel(topic: str) -> str:
    """The channel of what it is told: ``<epoch> <offset> <order> <message>``."""
    return f"{_HISTORY}{topic}"


def kept_socket_key(pid: str) -> str:
    """The hash of what is kept of a socket whose client may come back, by the name that it alone knows."""
    return f"{_HISTORY}socket:{pid}"


# Presence for clients

GATEWAY_PRESENCE = "gateway:room:presence"
"""What a permission has to cover for a client to see who is in its room."""


def shown_key(room_id: str) -> str:
    """The hash of what users show of themselves in the room, by socket; and the channel on which gateways hear that
    something may have changed there.
    """
    return f"{GATEWAY_LEASES}:presence:{room_id}"


# Requests

REQUESTS = "request:"
"""How the keys of requests and of their answers begin."""

_ADOPTED = f"{REQUESTS}adopted:"
_PARTS = f"{REQUESTS}parts:"


def late_answer_key(socket_id: str, request_id: str | int) -> str:
    """The key of an answer to the request of a socket whose gateway is not there."""
    return f"{_ADOPTED}{_named(socket_id, request_id)}"


def parts_key(socket_id: str, request_id: str | int) -> str:
    """The key of the stream of the parts of the answer to a request, by the socket whose request its service has."""
    return f"{_PARTS}{_named(socket_id, request_id)}"


def parts_beside(late_answer: str) -> str:
    """The same, of the request whose answer would be under that key."""
    return _PARTS + late_answer.removeprefix(_ADOPTED)


def _named(socket_id: str, request_id: str | int) -> str:
    return f"{socket_id}{':' if isinstance(request_id, str) else '#'}{request_id}"


_OWN_NAMES = (
    reply_channel(""),
    cancel_channel(""),
    ACCESS,
    ledger_key(""),
    not_before_key(""),
    room_key(""),
    "socket:",
    sockets_key(""),
    ENTRIES,
    f"{GATEWAY_LEASES}:",
    REQUESTS,
)
"""How all other names begin that are the gateway's own."""

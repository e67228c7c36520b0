"""The values that cross the gateway's edges: what dialects hand in, what they encode, what Redis carries.

The Structs are the protocol's document and its validator. Payloads travel as ``msgspec.Raw``: bytes of JSON that
the gateway does not parse.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from hashlib import sha256

from msgspec import Raw, Struct

from kraftek.contract.settings import EventPolicy

__all__ = [
    "ABSENT",
    "HISTORY_LIMIT",
    "ID_LENGTH",
    "NULL",
    "PARTS_KEPT",
    "RECEIPT_LONGEST",
    "RECEIPT_USERS",
    "ROOM_ID_LENGTH",
    "Ack",
    "Acknowledge",
    "Admitted",
    "AskPresence",
    "Authenticate",
    "Authenticated",
    "Broadcast",
    "Cancel",
    "Cancelled",
    "Closing",
    "Connected",
    "Delivery",
    "Drained",
    "Envelope",
    "ErrorMessage",
    "ErrorPayload",
    "Event",
    "Gap",
    "Grant",
    "History",
    "HistoryPage",
    "Inbound",
    "Join",
    "Joined",
    "Leave",
    "Left",
    "Outbound",
    "Outgoing",
    "Ping",
    "Place",
    "Pong",
    "Position",
    "Positioned",
    "Progress",
    "ReceiptName",
    "ReceiptPart",
    "ReceivedError",
    "Recover",
    "RequestId",
    "Since",
    "Standing",
    "Token",
    "Waiting",
]

NULL = Raw(b"null")

ABSENT = Raw(b"")
"""No JSON at all: where a client has left something out."""

RequestId = int | str
"""A client's own name for a request: an integer or a string."""

ID_LENGTH = 64
"""Characters of such a name at most; of an integer, as it is written."""

REQUEST_KNOWN = 130.0
"""Seconds for which services keep what belongs to a request: as long as gateways know it by default."""

REQUEST_LONGEST = 3600.0
"""Seconds that a request may take in all. Each part of its answer gives it its time limit anew."""

PARTS_KEPT = 262_144
"""Bytes that Redis keeps of the last parts of an answer, or one larger part."""

ROOM_ID_LENGTH = 256
"""Characters of a room's name at most, wherever a client names one: it becomes a key in Redis."""


HISTORY_LIMIT = 1000
"""Messages of a room's history that a client gets at once, at most."""

RECEIPT_USERS = 1000
"""Users whose acknowledgements a service may wait for with one message."""

RECEIPT_LONGEST = 30.0
"""Seconds that it may wait."""


class Token:
    """A client's token. Only ``value`` reveals it, and only the question to the auth service may use that.

    ``digest`` is its SHA-256 in hex: the name under which access is cached.
    """

    __slots__ = ("digest", "value")

    def __init__(self, value: str) -> None:
        self.value = value
        self.digest = sha256(value.encode("utf-8", "surrogatepass")).hexdigest()

    def __repr__(self) -> str:
        return f"<Token {self.digest[:8]}>"


class Grant(Struct, frozen=True, rename="camel", omit_defaults=True):
    """The auth service allows it: this user may be in this room, and may send these events.

    ``permissions``: patterns over event names (``stickyNotes:*:*``); ``None`` is every registered service.
    ``expires_at``: Unix seconds after which it is no longer valid. ``ttl``: seconds for which it may be cached.
    ``fresh_until``: Unix seconds until which it need not be checked again; set by the access cache. ``source``: the
    checker's fingerprint, of its configuration and of the key that has signed the token; empty for an auth service's.
    """

    user_id: str
    room_id: str | None = None
    permissions: tuple[str, ...] | None = None
    expires_at: float | None = None
    ttl: float | None = None
    fresh_until: float | None = None
    source: str = ""


# Client → gateway: what a dialect makes of what arrived.


class Position(Struct, frozen=True):
    """A place in a history."""

    epoch: str
    offset: int


class Since(Position, frozen=True, rename="camel"):
    """Where the client was in the history of a room, or of its user. ``socket_ids``: those that it had then, to which
    some messages were not sent on purpose.
    """

    socket_ids: tuple[str, ...] = ()


class Recover(Struct, frozen=True):
    """What the client was, by its ``pid``, and what it has got last: a word of :mod:`kraftek.contract.order`."""

    pid: str
    last: str


class Authenticate(Struct, frozen=True):
    """The client shows a token; ``room_id`` is the room it wants to be in with it. ``last``: so many messages of the
    room's history are to come first, unless it gets what it has missed ``since``. ``data``: what it shows of itself
    to others there. ``recover``: it was there before, and has to be told first whether it is let in as what it was
    (:class:`Admitted`). ``user_since``: where it was in what its user is told.
    """

    token: Token
    room_id: str | None = None
    id: RequestId | None = None
    since: Since | None = None
    last: int = 0
    data: Raw = ABSENT
    recover: Recover | None = None
    user_since: Since | None = None


class Join(Struct, frozen=True):
    """The client wants to be in one room more. ``last``, ``data``: as in :class:`Authenticate`."""

    room_id: str
    id: RequestId | None = None
    since: Since | None = None
    last: int = 0
    data: Raw = ABSENT


class History(Struct, frozen=True):
    """The client wants ``limit`` messages of a room's history: the last ones, or those before a position.
    ``socket_ids``: those that it had before.
    """

    room_id: str
    limit: int
    before: Position | None = None
    socket_ids: tuple[str, ...] = ()
    id: RequestId | None = None


class Leave(Struct, frozen=True):
    """The client wants to be out of a room."""

    room_id: str
    id: RequestId | None = None


class AskPresence(Struct, frozen=True):
    """The client wants to know who is in its room. ``version``: that of what it was told before, if it was.
    ``changes``: it wants to be told of them from now on.
    """

    room_id: str
    id: RequestId | None = None
    version: str | None = None
    changes: bool = True


class Place(Struct, frozen=True, gc=False):
    """A part of an answer: the ``number`` of those of one run of the handler, from 1."""

    run: str
    number: int


class Event(Struct, frozen=True, gc=False):
    """``name`` is as the client sent it, unchecked; ``room_id`` chooses among the rooms joined. ``resent``: the client
    has sent it before, under the same id. ``progress``: it takes the answer in parts; after this one, if it has some.
    """

    name: str
    payload: Raw = NULL
    id: RequestId | None = None
    room_id: str | None = None
    traceparent: str | None = None
    resent: bool = False
    progress: bool | Place = False


class Cancel(Struct, frozen=True):
    """The client gives a request up: that of this id, or else all of this name that wait on its connection. With both
    it may be a request of another connection.
    """

    id: RequestId | None
    event_type: str | None = None


class Acknowledge(Struct, frozen=True):
    """The client, and what it belongs to, has handled the message that came with this ``receipt``."""

    id: RequestId | None


class Ping(Struct, frozen=True):
    """The client checks the connection: browsers do not let programs see the WebSocket's own pings."""

    id: RequestId | None = None


Inbound = Authenticate | Join | Leave | History | AskPresence | Event | Cancel | Acknowledge | Ping

# Gateway → client: what a dialect encodes.


class Connected(Struct, frozen=True):
    """The first word to a client. ``pid``: the name by which it may come back, if it may; nobody else is told."""

    socket_id: str
    pid: str = ""


class Admitted(Struct, frozen=True):
    """A client that came back is let in: as what it was, or as another one. ``socket_id``: as it knows it."""

    socket_id: str
    pid: str


class Standing(Struct, frozen=True, rename="camel", omit_defaults=True):
    """Where a client begins in a history: after this offset. ``recovered``: whether it gets all that it has
    missed, if it has been there before; ``reason``: why it does not.
    """

    epoch: str | None = None
    offset: int | None = None
    recovered: bool | None = None
    reason: str | None = None


class Authenticated(Struct, frozen=True):
    """The token was good; ``room_id`` is the room that the client is in now, if any. ``expires_in``: seconds until its
    access expires, if it does; when it was in rooms before, that of all of them to expire first. ``standing``: in the
    room; ``user_standing``: in what the user is told. ``recovered``: it is what it was, and gets all that was told to
    its rooms since ``order``; services know it by this ``socket_id``.
    """

    user_id: str
    room_id: str | None
    id: RequestId | None = None
    expires_in: float | None = None
    standing: Standing | None = None
    recovered: bool = False
    order: str | None = None
    socket_id: str = ""
    user_standing: Standing | None = None


class Joined(Struct, frozen=True):
    """The client is in one room more, by an access that expires in so many seconds, if it does."""

    room_id: str
    id: RequestId | None = None
    expires_in: float | None = None
    standing: Standing | None = None


class Positioned(Struct, frozen=True):
    """Where the client is in a room with history from now on, or without a room in what its user is told, because of
    something that it could not know of.
    """

    room_id: str | None
    standing: Standing


class Left(Struct, frozen=True):
    """The client is out of a room."""

    room_id: str
    id: RequestId | None = None


class ErrorMessage(Struct, frozen=True):
    """Something went wrong. ``retry_after`` in seconds; ``room_id`` is the room that the client is no longer in;
    ``limit``: with ``RATE_LIMITED``, what there was too much of (:class:`kraftek.contract.errors.Limit`).
    """

    code: str
    message: str
    event_type: str | None = None
    retry_after: float | None = None
    id: RequestId | None = None
    room_id: str | None = None
    limit: str | None = None


class ErrorPayload(Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """The payload of every ``error`` that the gateway or the service kit sends: docs/client-protocol.rst, "Errors".

    ``room_id``: only where the message itself names no room.
    """

    code: str
    message: str
    event_type: str | None = None
    retry_after: float | None = None
    room_id: str | None = None
    limit: str | None = None


class ReceivedError(Struct, frozen=True, rename="camel"):
    """Of the payload of an ``error`` what is acted on. Any service may have written it, so nothing of it is certain."""

    code: str = ""
    message: str = ""
    retry_after: float | None = None
    limit: str | None = None


class Ack(Struct, frozen=True):
    """A request was received by ``receivers`` subscribers of the service's channel."""

    id: RequestId
    receivers: int


class Append(Struct, frozen=True, omit_defaults=True, gc=False, rename={"first": "from"}):
    """A message is a piece of the text ``key`` of its room, to be added to what came before. With ``first`` it is the
    whole of it up to here: all pieces from the offset ``first`` on, in place of what came before. ``last``: the text
    ends with it.
    """

    key: str
    first: int | None = None
    last: bool = False


class Delivery(Struct, frozen=True):
    """A service's message. ``room_id`` is set when it went to a room, ``id`` when it answers a request; ``offset`` when
    it is part of the room's history, or without a room of the user's, with its place in the ``order`` of all of these
    (:mod:`kraftek.contract.order`). ``receipt``: the number under which the client is to acknowledge it, if it is.
    ``append``: it is a piece of a text.
    """

    type: str
    payload: Raw = NULL
    room_id: str | None = None
    id: RequestId | None = None
    offset: int | None = None
    order: str | None = None
    receipt: int | None = None
    append: Append | None = None


class HistoryPage(Struct, frozen=True):
    """The answer to :class:`History`: messages in order. ``before``: where to go on from, if there are older ones."""

    room_id: str
    epoch: str
    messages: Sequence[Delivery]
    before: Position | None = None
    id: RequestId | None = None


class Progress(Struct, frozen=True):
    """A part of the answer to a request."""

    id: RequestId
    payload: Raw
    place: Place


class Pong(Struct, frozen=True):
    """The answer to a :class:`Ping`."""

    id: RequestId | None = None


class Drained(Struct, frozen=True):
    """The gateway stops: the client's socket is closed next, and it is to come back after so many seconds."""

    reconnect_after: float


class Closing(Struct, frozen=True):
    """The last word to a client: its socket is closed next, with this close code. ``returns``: it is to come back at
    once, with another token.
    """

    code: int
    returns: bool = False


class Gap(Struct, frozen=True):
    """What the client missed because it did not read in time: how many messages, by room and by the pattern of their
    policy. The room ``""`` stands for messages to the client or its user alone.
    """

    rooms: Mapping[str, Mapping[str, int]]


Outbound = (
    Connected
    | Admitted
    | Authenticated
    | Joined
    | Positioned
    | Left
    | ErrorMessage
    | Ack
    | Delivery
    | HistoryPage
    | Progress
    | Pong
    | Drained
    | Closing
    | Gap
)


class Waiting(Struct, eq=False, gc=False):
    """A message that waits for clients that do not read, the same for all of them. Belongs to
    :mod:`kraftek.edge.backlogs`.

    ``size``: bytes. ``at``: when it came, in seconds of the monotonic clock. ``policy``: that of its type, if it has
    one; ``place``: what a later one has in common with it that takes its place. ``overtakes``: it may be sent before
    messages that a later one would replace. ``holders``: how many clients it waits for.
    """

    size: int
    at: float
    room_id: str = ""
    policy: EventPolicy | None = None
    place: Hashable = None
    overtakes: bool = False
    holders: int = 0


class Outgoing(Struct, eq=False, gc=False):
    """A message as one dialect writes it, encoded once however many sockets it goes to.

    ``text`` is one text message; ``attachments`` are the binary messages that follow it. ``wire`` and ``deflated``
    belong to the transport: the same in its own framing, made when the first socket needs it. ``about``: what a service
    said in it; ``None`` when it is the gateway's own word, or an answer. ``waiting``: made when a client does not read.
    """

    text: bytes
    attachments: tuple[bytes, ...] = ()
    wire: bytes | None = None
    deflated: dict[int, bytes] | None = None
    about: Delivery | None = None
    waiting: Waiting | None = None


# Gateway ↔ services, on Redis.


class Envelope(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True, gc=False):
    """An event as services get it. ``timestamp`` is Unix time in milliseconds; identity is the gateway's own.

    ``source``: the service that sent it, when it was no client. ``user_id`` is then that service's word and may be
    empty, as ``socket_id`` is. ``progress``: whoever sent it takes the answer in parts.
    """

    event_type: str
    user_id: str
    socket_id: str
    timestamp: int
    gateway_id: str
    reply_to: str
    payload: Raw
    room_id: str | None = None
    id: RequestId | None = None
    traceparent: str | None = None
    source: str | None = None
    progress: bool = False


class Cancelled(Struct, frozen=True, rename="camel", omit_defaults=True):
    """A request that its client has cancelled, as its service is told. ``socket_id``: only where the id is that of one
    connection; otherwise it is the user's, and the service may have the request of another socket of theirs.
    """

    event_type: str
    user_id: str
    id: RequestId
    timestamp: int = 0
    socket_id: str = ""


class ReceiptName(Struct, frozen=True, rename="camel"):
    """Who waits for the acknowledgements of a message: a channel, and the message's name there."""

    reply_to: str
    id: RequestId


class ReceiptPart(Struct, frozen=True, rename="camel", omit_defaults=True):
    """What one gateway says of the acknowledgements of a message: of which users it has got one, and of which of those
    that it has it has not. ``done``: it says no more about it. ``refused``: why it does not wait for them.
    """

    gateway_id: str
    acknowledged: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    done: bool = False
    refused: str = ""


class Broadcast(Struct, frozen=True, rename="camel"):
    """A service's message to sockets, as it stands on ``events:broadcast`` and on reply channels. ``offset``: it was
    told to a room, or to users, with history, and this is for gateways that do not follow them. ``receipt``: who waits
    for its acknowledgements. ``append``: it is a piece of a text, told to a room.
    """

    type: str
    payload: Raw = NULL
    recipients: tuple[str, ...] | None = None
    exclude_socket_ids: tuple[str, ...] | None = None
    room_id: str | None = None
    receipt: ReceiptName | None = None
    user_ids: tuple[str, ...] | None = None
    in_reply_to: RequestId | None = None
    everybody: bool = False
    offset: int | None = None
    append: Append | None = None

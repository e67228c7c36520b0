"""What can be configured, with its defaults: the values that :mod:`kraftek.daemon.config` reads and everything else is
handed.

A range stands in the type of its field, and the description of that type is what the error message for a mistake says
was expected.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from kraftek.contract.names import BROADCAST
from kraftek.contract.redis_url import masked, shown
from kraftek.contract.wildcard import Wildcard

__all__ = [
    "Auth",
    "Config",
    "Drain",
    "EventPolicy",
    "HistoryPolicy",
    "Jwt",
    "Limits",
    "Operator",
    "Redis",
    "Registration",
    "RoomPolicy",
    "SelfRegistration",
    "SocketIO",
    "Users",
]

Flag = Annotated[bool, Meta(description="true or false")]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1, description="a whole number from 1 to 2147483647")]
Bytes = Annotated[int, Meta(ge=1, le=2**40, description="a number of bytes from 1 to 1099511627776")]
BytesOrZero = Annotated[int, Meta(ge=0, le=2**40, description="a number of bytes from 0 to 1099511627776")]
CountOrZero = Annotated[int, Meta(ge=0, le=2**31 - 1, description="a whole number from 0 to 2147483647")]
# At most a year, because inf is a number in TOML, and no timer takes it.
Seconds = Annotated[float, Meta(gt=0, le=31_536_000, description="seconds, more than 0 and at most a year")]
SecondsOrZero = Annotated[float, Meta(ge=0, le=31_536_000, description="seconds, from 0 to a year")]
Away = Annotated[float, Meta(ge=1, le=86_400, description="seconds, from 1 to 86400")]
Text = Annotated[str, Meta(description="a string")]
# Lone surrogates are what Python makes of an environment that is not UTF-8.
_BLACK = r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]"
Channel = Annotated[str, Meta(pattern=rf"^{_BLACK}+\Z", description="a Redis channel, without white space")]
UrlPath = Annotated[
    str, Meta(pattern=r"^/(?:[A-Za-z0-9_.~-]+/)+\Z", description='a path like "/socket.io/", with both slashes')
]
Prefix = Annotated[str, Meta(pattern=rf"^{_BLACK}*\Z", description="a prefix without white space, or nothing")]
Endpoints = Annotated[tuple[Text, ...], Meta(min_length=1, description="a list of one or more Twisted endpoints")]
PrivateEndpoints = Annotated[tuple[Text, ...], Meta(description="a list of Twisted endpoints")]
HostPatterns = Annotated[tuple[Text, ...], Meta(description="a list of host names")]
OriginPatterns = Annotated[tuple[Text, ...], Meta(description="a list of origins")]
Sessions = Annotated[Literal["single", "many"], Meta(description='"single" or "many"')]
Transport = Annotated[Literal["pubsub", "stream"], Meta(description='"pubsub" or "stream"')]
# What msgspec takes for the name of a field.
PayloadKey = Annotated[str, Meta(pattern=r'^[^"\\\x00-\x1f]*\Z', description="a key of an object, without escapes")]
Policy = Annotated[Literal["queue", "latest", "drop"], Meta(description='"queue", "latest" or "drop"')]
# What Python, as services have it, reads without reaching its limit of recursion.
Depth = Annotated[int, Meta(ge=1, le=512, description="a whole number from 1 to 512")]
PerSecond = Annotated[float, Meta(gt=0, le=1_000_000, description="events a second, more than 0 and up to a million")]
# Three parts, each a literal or "*": as permissions.
_PART = r"(?:\*|[^:*\s\x00-\x1f\x7f]+)"
EventPattern = Annotated[
    str, Meta(pattern=rf"^{_PART}:{_PART}:{_PART}\Z", max_length=128, description='patterns like "chat:message:*"')
]
# Of messages of services, which may have any number of parts.
_MESSAGE_PART = r"(?:\*|[^:*\s]+)"
MessagePattern = Annotated[
    str,
    Meta(pattern=rf"^{_MESSAGE_PART}(?::{_MESSAGE_PART})*\Z", max_length=128, description='patterns like "board:*:*"'),
]
MessagePatterns = Annotated[
    tuple[MessagePattern, ...], Meta(max_length=64, description="a list of up to 64 patterns of messages")
]
EventRates = Annotated[dict[EventPattern, PerSecond], Meta(description="a table of event patterns with their rates")]
Algorithm = Annotated[Literal["HS256", "RS256", "ES256"], Meta(description='"HS256", "RS256" or "ES256"')]
Files = Annotated[tuple[Text, ...], Meta(description="a list of files")]
Claim = Annotated[str, Meta(min_length=1, description="the name of a claim")]
Leeway = Annotated[float, Meta(ge=0, le=300, description="seconds, from 0 to 300")]
History = Annotated[int, Meta(ge=0, le=100_000, description="a whole number from 0 to 100000")]
PresenceUsers = Annotated[int, Meta(ge=1, le=1000, description="a whole number from 1 to 1000")]
HistoryBytes = Annotated[int, Meta(ge=1, le=2**26, description="a number of bytes from 1 to 67108864")]
Partitions = Annotated[int, Meta(ge=0, le=256, description="a whole number from 0 to 256")]
NamePattern = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9_.*-]{1,128}\Z", description='names of services such as "chat-*", with * for any part'),
]
NamePatterns = Annotated[tuple[NamePattern, ...], Meta(description="a list of names of services, which may have a *")]


class Redis(Struct, frozen=True, kw_only=True):
    """``[redis]``.

    ``url``: ``redis://``, ``rediss://`` (verified), ``unix://``, ``embedded:``, ``redis+sentinel://`` or
    ``rediss+sentinel://``. ``ca``: file of certificate authorities for TLS instead of the platform's. ``prefix``: put
    before every key and channel.
    ``broadcast``: the channel on which services answer. ``in_flight``: messages and commands that may wait for
    Redis's answer; ``in_flight_bytes``: their size together. ``ping_interval``, ``ping_timeout``: seconds; a dead link
    is noticed within their sum.
    """

    url: Text = "redis://127.0.0.1:6379/0"
    ca: Text = ""
    prefix: Prefix = ""
    broadcast: Channel = BROADCAST
    in_flight: Count = 10_000
    in_flight_bytes: Count = 16_777_216
    ping_interval: Seconds = 2.0
    ping_timeout: Seconds = 2.0

    def __repr__(self) -> str:
        return shown(self, url=masked(self.url))


class Auth(Struct, frozen=True, kw_only=True):
    """``[auth]``.

    ``check``: base URL of the auth service, ``jwt``, ``jwt+`` and such a URL, or ``open``. ``ca``: as in ``[redis]``.
    ``timeout``: seconds for one question. ``concurrency``: questions asked at a time; ``waiting``: how many may wait.
    ``cache_ttl``: seconds for which a grant without ``ttl`` is cached. ``cache_size``: answers cached in this process.
    ``denied_ttl``: seconds for which a denial is cached, against hammering.
    """

    check: Text = "http://127.0.0.1:3002"
    ca: Text = ""
    timeout: Seconds = 3.0
    concurrency: Count = 100
    waiting: CountOrZero = 10_000
    cache_ttl: SecondsOrZero = 300.0
    cache_size: Count = 50_000
    denied_ttl: SecondsOrZero = 1.0


class Jwt(Struct, frozen=True, kw_only=True):
    """``[jwt]``: tokens that the gateway checks itself.

    ``issuer``, ``audience``: what tokens must have as ``iss``, and in ``aud``. ``algorithm``: of every key.
    ``key_files``: each with a secret (HS256), or a public key in PEM. ``key_set``: https URL of a JWK Set, instead.
    ``user``, ``rooms``, ``permissions``: names of claims; without a name for the last two all are permitted.
    ``leeway``: seconds that clocks may differ. ``longest``: seconds from ``iat`` to ``exp`` at most.
    """

    issuer: Text = ""
    audience: Text = ""
    algorithm: Algorithm = "RS256"
    key_files: Files = ()
    key_set: Text = ""
    user: Claim = "sub"
    rooms: Text = "rooms"
    permissions: Text = "permissions"
    leeway: Leeway = 10.0
    longest: Seconds = 86_400.0


class Limits(Struct, frozen=True, kw_only=True):
    """``[limits]``. Times in seconds, sizes in bytes.

    ``connections``: of this process, from accept on; 0 is what the open-file limit allows.
    ``connections_per_address``: of one address of IPv4 or /64 of IPv6, and clients of one; 0 is off.
    ``authenticate_timeout``: until the first ``authenticate``. ``ping_interval``: between WebSocket pings, more than
    ``ping_timeout``. ``held_messages``, ``held_bytes``: held in order while access is checked; beyond them the client
    is not read.
    ``unsent_bytes``: that may wait for a client that does not read, and one larger message; past them it is closed.
    ``invalid_messages``: malformed ones in a row before a socket is closed. ``json_depth``: levels of arrays and
    objects within each other that a payload may have. ``rooms``: that one socket may be in; ``rooms_per_user``: and all
    sockets of a user here, each counted; 0 is off. ``requests``: of one socket that may wait for their answers.
    ``handshake_timeout``: for the head of every HTTP request; ``request_timeout``: for the body of a plain one.
    ``request_window``: how long, beyond its service's ``timeout``, a request and its answer are
    known if it is sent again; 0 is off. ``answer_bytes``: of what Redis holds for that at a time, of this process;
    :mod:`kraftek.core.answer_budget` says who has how much of it. ``presence_bytes``: of the data that a client shows
    of itself in a room, as JSON. ``receipts``: sockets that may owe services an acknowledgement. ``memory``: of the
    process; above it what waits is given up, the worst first, and new clients are turned away; 0 is off.

    What one may send in a second, 0 for no limit; after a quiet time as much as in ``burst`` seconds at once.
    ``events_per_…``, ``bytes_per_…``: messages of clients and what counts as much, and their bytes: of a socket, user,
    and address as for ``connections_per_address``. ``joins_per_user``: ``authenticate``, ``join``, ``leave``,
    ``history``. ``questions_per_…``: to the auth service. ``connects_per_address``: new clients.
    """

    message_bytes: Count = 65_536
    connections: CountOrZero = 0
    connections_per_address: CountOrZero = 0
    handshake_timeout: Seconds = 5.0
    authenticate_timeout: Seconds = 10.0
    ping_interval: Seconds = 25.0
    ping_timeout: Seconds = 20.0
    held_messages: Count = 64
    held_bytes: Count = 262_144
    unsent_bytes: Count = 1_048_576
    invalid_messages: Count = 10
    json_depth: Depth = 256
    rooms: Count = 64
    rooms_per_user: CountOrZero = 5000
    requests: Count = 256
    request_timeout: Seconds = 30.0
    request_window: SecondsOrZero = 120.0
    answer_bytes: Count = 268_435_456
    presence_bytes: Count = 1024
    receipts: Count = 100_000
    memory: BytesOrZero = 0
    burst: Seconds = 5.0
    events_per_socket: CountOrZero = 2000
    events_per_user: CountOrZero = 4000
    events_per_address: CountOrZero = 20_000
    bytes_per_socket: CountOrZero = 4_194_304
    bytes_per_user: CountOrZero = 8_388_608
    bytes_per_address: CountOrZero = 33_554_432
    joins_per_user: CountOrZero = 100
    questions_per_user: CountOrZero = 50
    questions_per_address: CountOrZero = 500
    connects_per_address: CountOrZero = 500


class SocketIO(Struct, frozen=True, kw_only=True):
    """``[socketio]``. Times in seconds, sizes in bytes.

    ``path``: where those clients connect. ``ping_interval``, ``ping_timeout``: of Engine.IO's own pings.
    ``max_payload``: of one message, and of one request that carries several. ``recovery``: clients that lose their
    connection come back as what they were, if all their rooms have a history, within ``max_disconnection``.
    """

    enabled: Flag = True
    path: UrlPath = "/socket.io/"
    ping_interval: Seconds = 25.0
    ping_timeout: Seconds = 20.0
    max_payload: Count = 1_000_000
    recovery: Flag = False
    max_disconnection: Away = 120.0


class Operator(Struct, frozen=True, kw_only=True):
    """``[operator]``.

    ``listen``: Twisted endpoint strings of the port for metrics and health, which is to be private; none is off.
    ``publish_token_file``: the file with the token for ``POST /publish`` there; none is off.
    """

    listen: PrivateEndpoints = ()
    publish_token_file: Text = ""


class Drain(Struct, frozen=True, kw_only=True):
    """``[drain]``: what SIGTERM does. Times in seconds.

    ``lead``: for how long ``/health`` is 503 before anybody is refused. ``seconds``: from then until the last client is
    closed, at most; so long requests in flight may take.
    """

    lead: SecondsOrZero = 0.0
    seconds: SecondsOrZero = 10.0


class Registration(Struct, frozen=True, kw_only=True):
    """One of ``[services]``.

    ``reply``: it answers requests itself, on the event's ``replyTo`` channel, within ``timeout`` seconds. ``requests``:
    those that may wait for its answers, on each gateway process. ``transport``: ``pubsub``, or ``stream``: then
    ``channel`` is the key of a Redis Stream where up to ``max_length`` events of up to ``max_bytes`` in all wait.
    ``partitions``: more than 0 spreads them by room over so many such streams, each read in order. ``presence``: it
    gets an event when a user enters or leaves a room. ``rate``: patterns of its events, each with how many a user may
    send in a second; the first that covers an event counts.
    """

    name: str
    channel: Channel
    reply: Flag = False
    timeout: Seconds = 10.0
    requests: Count = 10_000
    transport: Transport = "pubsub"
    max_length: Count = 100_000
    max_bytes: Bytes = 268_435_456
    partitions: Partitions = 0
    presence: Flag = False
    rate: EventRates = {}
    explicit: ClassVar[bool] = False


class SelfRegistration(Registration, frozen=True, kw_only=True):
    """Of a service that has registered itself: clients reach it only if a permission names it."""

    explicit: ClassVar[bool] = True


class EventPolicy(Struct, frozen=True, kw_only=True):
    """One of ``[events]``: what happens to messages of services to a client that does not read.

    ``pattern``: over their types, such as ``cursors:*:moved``, each part a literal or ``*``. ``policy``: ``queue``
    keeps all of them in order; ``latest`` keeps the newest of each room, type and value of ``key``, a key of the
    payload; ``drop`` keeps none. ``ttl``: seconds after which one that still waits is not sent; 0 is no end.
    """

    pattern: str
    policy: Policy = "queue"
    key: PayloadKey = ""
    ttl: SecondsOrZero = 0.0


class HistoryPolicy(Struct, frozen=True, kw_only=True):
    """What is kept of what services tell.

    ``history``: messages that are kept, 0 for none; ``history_bytes``: of them together, or one larger message.
    ``history_ttl``: seconds after the last one after which all are forgotten. ``events``: patterns over the types of
    messages that are kept; without any, all are.
    """

    history: History = 0
    history_ttl: Seconds = 600.0
    history_bytes: HistoryBytes = 1_048_576
    events: MessagePatterns = ()


class RoomPolicy(HistoryPolicy, frozen=True, kw_only=True):
    """One of ``[rooms]``: what is kept of what services tell rooms, and whether clients may see who is there.

    ``pattern``: the name of a room, or of several with one ``*`` for any text. ``presence``: clients may ask who is in
    the room, and hear of changes; ``presence_users``: how many users they are told of, at most.
    """

    pattern: str
    presence: Flag = False
    presence_users: PresenceUsers = 100

    def covers(self, room_id: str) -> bool:
        """Whether it is about this room. The first of ``[rooms]`` that is counts."""
        return Wildcard.of(self.pattern).covers(room_id)


class Users(HistoryPolicy, frozen=True, kw_only=True):
    """``[users]``, for what is told to users: of each of them."""


class Config(Struct, frozen=True, kw_only=True):
    """The whole of it.

    ``listen``: Twisted endpoint strings. ``sessions``: ``single`` or ``many`` sockets per user and room.
    ``origins``: ``same-host``, exact origins, ``*.example.org``, or ``*``. ``hosts``: names that requests may be
    addressed to, and ``*.example.org``; none: all. ``forwarded_for``: how many proxies in front of the gateway append
    to ``X-Forwarded-For``; 0 trusts the socket's own address. ``compression``: of messages, with clients that offer it.
    ``demo``: serve the board. ``auto_register``: services of these names may register themselves.
    """

    listen: Endpoints = ("tcp:3001",)
    sessions: Sessions = "single"
    origins: OriginPatterns = ("same-host",)
    hosts: HostPatterns = ()
    forwarded_for: CountOrZero = 0
    compression: Flag = False
    demo: Flag = False
    auto_register: NamePatterns = ()
    redis: Redis = Redis()
    auth: Auth = Auth()
    jwt: Jwt = Jwt()
    limits: Limits = Limits()
    socketio: SocketIO = SocketIO()
    operator: Operator = Operator()
    drain: Drain = Drain()
    services: tuple[Registration, ...] = ()
    events: tuple[EventPolicy, ...] = ()
    rooms: tuple[RoomPolicy, ...] = ()
    users: Users = Users()

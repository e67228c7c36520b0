"""What can be configured, with its defaults, and how it is read: options over environment over file.

Read by :mod:`kraftek.tap`; everything else is handed the finished values.
"""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Auth", "Config", "Limits", "Redis", "Service"]


class Redis(Struct, frozen=True, kw_only=True):
    """``[redis]``.

    ``url``: ``redis://``, ``rediss://`` (verified), ``unix://`` or ``embedded:``. ``ca``: file of certificate
    authorities for ``rediss://`` instead of the platform's. ``prefix``: put before every key and channel.
    ``broadcast``: the channel on which services answer. ``in_flight``: publishes and commands that may wait for
    Redis's answer. ``ping_interval``, ``ping_timeout``: seconds; a dead link is noticed within their sum.
    """

    url: str = "redis://127.0.0.1:6379/0"
    ca: str = ""
    prefix: str = ""
    broadcast: str = "events:broadcast"
    in_flight: int = 10_000
    ping_interval: float = 2.0
    ping_timeout: float = 2.0


class Auth(Struct, frozen=True, kw_only=True):
    """``[auth]``.

    ``check``: base URL of the auth service, or ``open``. ``ca``: as in ``[redis]``. ``timeout``: seconds for one
    question. ``concurrency``: questions asked at a time; ``waiting``: questions that may wait for their turn.
    ``cache_ttl``: seconds a yes is kept when it does not say. ``cache_size``: answers kept in this process.
    ``denied_ttl``: seconds a no is kept, against hammering.
    """

    check: str = "http://127.0.0.1:3002"
    ca: str = ""
    timeout: float = 3.0
    concurrency: int = 100
    waiting: int = 10_000
    cache_ttl: float = 300.0
    cache_size: int = 50_000
    denied_ttl: float = 1.0


class Limits(Struct, frozen=True, kw_only=True):
    """``[limits]``. Times in seconds, sizes in bytes.

    ``connections``: of this process; 0 is what the open-file limit allows. ``connections_per_address``: 0 is off.
    ``authenticate_timeout``: until the first ``authenticate``. ``ping_interval``, ``ping_timeout``: of WebSocket pings.
    ``held_messages``, ``held_bytes``: kept in order while access is asked about; past them the client is not read.
    ``unsent_bytes``: written to a client that does not read; past them it is closed. ``invalid_messages``: malformed
    ones in a row before a socket is closed. ``rooms``: that one socket may be in.
    """

    message_bytes: int = 65_536
    connections: int = 0
    connections_per_address: int = 0
    handshake_timeout: float = 5.0
    authenticate_timeout: float = 10.0
    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    held_messages: int = 64
    held_bytes: int = 262_144
    unsent_bytes: int = 1_048_576
    invalid_messages: int = 10
    rooms: int = 64


class Service(Struct, frozen=True, kw_only=True):
    """One of ``[services]``. ``reply``: it answers requests itself, on the event's ``replyTo`` channel."""

    name: str
    channel: str
    reply: bool = False


class Config(Struct, frozen=True, kw_only=True):
    """The whole of it.

    ``listen``: Twisted endpoint strings. ``sessions``: ``single`` or ``many`` sockets per user and room.
    ``origins``: ``same-host``, exact origins, ``*.example.org``, or ``*``. ``forwarded_for``: how many proxies in
    front of the gateway append to ``X-Forwarded-For``; 0 trusts the socket's own address. ``demo``: serve the board.
    """

    listen: tuple[str, ...] = ("tcp:3001",)
    sessions: str = "single"
    origins: tuple[str, ...] = ("same-host",)
    forwarded_for: int = 0
    demo: bool = False
    redis: Redis = Redis()
    auth: Auth = Auth()
    limits: Limits = Limits()
    services: tuple[Service, ...] = ()

"""What our user may not do in Redis, right by right: Redis itself names a missing one only to who needs it.

Made by :class:`kraftek.bus.RedisBus` for the gateway. ``docs/operations.rst`` has the rule that gives all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from msgspec import Struct
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import ResponseError

from kraftek.bus.connections import RedisConnection
from kraftek.bus.subscriber import TRACKING_CHANNEL
from kraftek.contract import names
from kraftek.contract.log_once import OnceUntilItWorks
from kraftek.contract.redis_url import RedisAddress
from kraftek.contract.settings import Config, Redis

__all__ = ["COMMANDS", "HISTORY_COMMANDS", "Need", "Rights", "needs_of"]

COMMANDS = """
CLIENT CACHING YES
CLIENT ID
CLIENT TRACKING OFF
CLIENT UNBLOCK 0
DEL key
EVAL script 0
EVALSHA digest 0
EXISTS key
GET key
GETRANGE key 0 0
HDEL key field
HEXISTS key field
HGET key field
HGETALL key
HINCRBY key field 0
HKEYS key
HLEN key
HMGET key field
HRANDFIELD key
HSET key field value
HVALS key
INFO
MEMORY USAGE key
PEXPIRE key 1
PING
PTTL key
PUBLISH channel message
SADD key member
SCAN 0
SCARD key
SELECT 0
SET key value
SISMEMBER key member
SMEMBERS key
SRANDMEMBER key
SREM key member
SSCAN key 0
STRLEN key
SUBSCRIBE channel
SUNIONSTORE key key
TIME
TYPE key
UNSUBSCRIBE channel
XACK key group 0-1
XADD key * field value
XCLAIM key group consumer 0 0-1
XDEL key 0-1
XGROUP CREATE key group 0
XGROUP DELCONSUMER key group consumer
XINFO CONSUMERS key group
XINFO GROUPS key
XINFO STREAM key
XLEN key
XPENDING key group
XRANGE key - +
XREADGROUP GROUP group consumer STREAMS key >
XTRIM key MAXLEN 0
ZADD key 0 member
ZCARD key
ZRANGE key 0 0
ZRANGEBYSCORE key 0 0
ZREM key member
ZREVRANGE key 0 0
ZSCORE key member
"""
"""All commands of the gateway, and of its scripts, in a form that Redis accepts."""

HISTORY_COMMANDS = """
EXPIRE key 1
FUNCTION LOAD code
XREVRANGE key + -
ZREMRANGEBYRANK key 0 0
ZREMRANGEBYSCORE key 0 0
"""
"""Those for histories."""

_WITH_SUBCOMMANDS = {"CLIENT", "FUNCTION", "MEMORY", "XGROUP", "XINFO"}


class Need(Struct, frozen=True):
    """A right, as ``ACL SETUSER`` has it, and a command that shows whether our user has it."""

    right: str
    command: tuple[str, ...]

    def is_missing(self, error: str) -> bool:
        """Whether this answer says so. A command that is not allowed says nothing of the key or channel in it."""
        return error.startswith("NOPERM") and (self.right[0] == "+") == ("to run the" in error)


def needs_of(config: Config) -> list[Need]:
    """All that the gateway needs with this configuration."""
    prefix = config.redis.prefix
    own = {"key": prefix + names.EPOCH, "channel": prefix + config.redis.broadcast}
    needs = []
    topics = _topics(config)
    for line in filter(None, (COMMANDS + HISTORY_COMMANDS * bool(topics)).split("\n")):
        words = line.split()
        name = "|".join(words[: 2 if words[0] in _WITH_SUBCOMMANDS else 1]).lower()
        needs.append(Need(f"+{name}", tuple(own.get(word, word) for word in words)))
    for pattern in _keys(config):
        key = prefix + pattern.replace("*", "x")
        needs += [Need(f"~{prefix}{pattern}", ("GET", key)), Need(f"~{prefix}{pattern}", ("SET", key, "value"))]
    published = [f"{prefix}{service.channel}" for service in config.services if service.transport == "pubsub"]
    replies = prefix + names.reply_channel("*")
    published += [replies, prefix + names.cancel_channel("*"), prefix + names.LISTENED]
    heard = [f"{prefix}{config.redis.broadcast}", prefix + names.INVALIDATION, prefix + names.LISTENED, replies]
    heard += [prefix + names.SELF_REGISTERED, TRACKING_CHANNEL.decode()]
    heard += [prefix + names.topic_channel(topic) for topic in topics]
    if any(policy.presence for policy in config.rooms):
        published.append(prefix + names.shown_key("*"))
        heard.append(prefix + names.shown_key("*"))
    needs += [Need(f"&{channel}", ("PUBLISH", channel.replace("*", "x"), "")) for channel in published]
    needs += [Need(f"&{channel}", ("SUBSCRIBE", channel.replace("*", "x"))) for channel in heard]
    return needs


def _topics(config: Config) -> list[str]:
    """What has a history."""
    rooms = [names.room_topic("*")] if any(policy.history for policy in config.rooms) else []
    return rooms + ([names.user_topic("*")] if config.users.history else [])


def _keys(config: Config) -> list[str]:
    keys = [
        names.EPOCH,
        names.GATEWAY_LEASES,
        names.LAST_LOOK,
        names.LISTENED,
        names.LOST_GATEWAYS,
        names.REGISTRATIONS,
        names.SELF_LEASES,
        names.SELF_REGISTERED,
        names.GATEWAY_STREAM,
        names.level_key(names.GATEWAY_STREAM),
        names.dead_letters(names.GATEWAY_STREAM),
        names.REQUESTS + "*",
        names.entries_key("*"),
        names.ledger_key("*"),
        names.not_before_key("*"),
        names.room_key("*"),
        names.socket_key("*", "*"),
        names.sockets_key("*"),
        names.token_key("*"),
        names.user_key("*"),
    ]
    if config.operator.publish_token_file:
        keys.append(names.publish_key("*"))
    keeps = _topics(config)
    if keeps or config.operator.publish_token_file:
        keys.append(names.HISTORY_RULES)
    if keeps:
        keys.append(names.HISTORY_FOLLOWING)
        keys += [names.history_position_key("*"), names.history_log_key("*")]
        keys += [names.history_ids_key("*"), names.history_texts_key("*")]
        if config.socketio.recovery:
            keys.append(names.kept_socket_key("*"))
    if any(policy.presence for policy in config.rooms):
        keys.append(names.shown_key("*"))
    for service in config.services:
        if service.transport == "stream":
            partitions = range(service.partitions)
            streams = [names.stream_of(service.channel, number) for number in partitions] or [service.channel]
            for stream in streams:
                keys += [stream, names.level_key(stream), names.presence_key(stream)]
    return keys


class _RightsConnection(RedisConnection):
    """A connection that finds out what is missing, and is closed.

    Within a transaction Redis checks the rights for each command, and executes none before ``EXEC``, which never comes.
    """

    def __init__(
        self, clock: IReactorTime, address: RedisAddress, config: Redis, owner: Rights, needs: Sequence[Need]
    ) -> None:
        super().__init__(clock, address, config, owner)
        self._needs = needs
        self.missing: list[str] = []

    def identify(self) -> Sequence[Deferred[Any]]:
        """Its rights are those on any server."""
        return []

    def prepare(self) -> Sequence[Deferred[Any]]:
        # Not in one write with the others: if this is refused they would be executed.
        return [self.ask("MULTI").addCallbacks(self._within, self._without)]

    def _within(self, _: object) -> Deferred[Any]:
        for need in self._needs:
            self.ask(*need.command).addErrback(self._refused_one, need)
        return self.ask("PING").addErrback(_forgive)

    def _without(self, failure: Failure) -> None:
        _forgive(failure)
        if failure.getErrorMessage().startswith("NOPERM"):
            self.missing = ["+multi"]

    def _refused_one(self, failure: Failure, need: Need) -> None:
        if need.is_missing(failure.getErrorMessage()) and need.right not in self.missing:
            self.missing.append(need.right)


def _forgive(failure: Failure) -> None:
    """A refusal is an answer; the loss of the connection is none."""
    failure.trap(ResponseError)


class Rights(Service):
    """Looks at our rights, on a connection of its own. ``missing``: those that it did not find the last time."""

    log = Logger()

    def __init__(
        self, endpoint: IStreamClientEndpoint, clock: Any, address: RedisAddress, config: Redis, needs: Sequence[Need]
    ) -> None:
        self.missing: list[str] = []
        factory: Any = Factory()
        factory.protocol = partial(_RightsConnection, clock, address, config, self, needs)
        factory.noisy = False
        self._factory = factory
        self._endpoint = endpoint
        self._needs = needs
        self._user = address.username or "default"
        self._once = OnceUntilItWorks()
        self._connecting: Deferred[Any] | None = None
        self._connection: RedisConnection | None = None
        self._over: Deferred[None] | None = None

    def look(self) -> None:
        """Find out, unless that is under way."""
        if self._needs and self.running and self._connecting is None:
            self._connecting = self._endpoint.connect(self._factory)
            # What stands in the way of a connection is logged by those that stay.
            self._connecting.addCallbacks(self._connected, self._ended)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        if self._connecting is None:
            return succeed(None)
        over: Deferred[None] = Deferred()
        self._over = over
        if self._connection is None:
            self._connecting.cancel()
        else:
            self._connection.give_up("stopped")
        return over

    # ConnectionOwner

    def connection_ready(self, connection: RedisConnection) -> None:
        assert isinstance(connection, _RightsConnection)
        self.missing = connection.missing
        self._once.keep(self.missing)
        for right in self.missing:
            line = "Redis refuses our user {user} the right {right}"
            self._once.failed(self.log.error, line, about=right, user=self._user, right=right)
        connection.give_up("done")

    def connection_lost(self, connection: RedisConnection, reason: str) -> None:
        self._ended(None)

    # Within

    def _connected(self, connection: RedisConnection) -> None:
        self._connection = connection

    def _ended(self, _: object) -> None:
        self._connecting = self._connection = None
        over, self._over = self._over, None
        if over is not None:
            over.callback(None)

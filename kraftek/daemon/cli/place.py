"""The options by which subcommands find the Redis of the gateways. Used by the modules beside it."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import CancelledError, Deferred
from zope.interface import implementer

from kraftek.bus import RedisBus
from kraftek.contract.clock import MonotonicClock
from kraftek.contract.interfaces import IBusListener
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Config, Redis
from kraftek.daemon.config import load
from kraftek.service import Away
from kraftek.service.publisher import PATIENCE

__all__ = ["configuration", "connected", "place_options"]


def place_options(parser: ArgumentParser) -> None:
    """Add them to those of a subcommand."""
    group = parser.add_argument_group("where Redis is")
    group.add_argument(
        "--config", metavar="FILE", help="the gateway's configuration; only what it says of Redis and services is used"
    )
    group.add_argument(
        "--redis",
        metavar="URL",
        help="as redis.url of the gateway; a password in it is safer in KRAFTEK_REDIS: everybody sees options",
    )
    group.add_argument("--prefix", help="as redis.prefix")
    group.add_argument("--broadcast", metavar="CHANNEL", help="as redis.broadcast")


def configuration(given: Namespace) -> Config:
    """What the options, the environment and the file say together, by the gateway's own rules.

    Raises :class:`~kraftek.contract.errors.ConfigError` and :class:`ValueError`.
    """
    options = {name: value for name in ("config", "redis") if (value := getattr(given, name)) is not None}
    config = load(options, os.environ)
    if config.redis.url == "embedded:":
        raise ValueError("redis.url is embedded:, a Redis that its gateway alone reaches: expected one for all")
    changes = {name: value for name in ("prefix", "broadcast") if (value := getattr(given, name)) is not None}
    return replace(config, redis=replace(config.redis, **changes))


@asynccontextmanager
async def connected(reactor: Any, redis: Redis) -> AsyncIterator[RedisBus]:
    """Redis. Raises :class:`~kraftek.service.Away` when it is not there within five seconds."""
    clock = MonotonicClock(reactor)
    bus = RedisBus(reactor, redis, Iteration(reactor), Counters(), clock, keeps_epoch=False)
    up = _Up()
    bus.startService()
    late = clock.callLater(PATIENCE, up.first.cancel)
    try:
        bus.add_listener(up)
        try:
            await up.first
        except CancelledError:
            raise Away(bus.fault) from None
        yield bus
    finally:
        if late.active():
            late.cancel()
        await bus.stopService()


@implementer(IBusListener)
class _Up:
    def __init__(self) -> None:
        self.first: Deferred[None] = Deferred()

    def bus_up(self) -> None:
        if not self.first.called:
            self.first.callback(None)

    def bus_down(self) -> None:
        pass

    def epoch_changed(self) -> None:
        pass

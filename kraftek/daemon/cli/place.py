"""The options by which subcommands find the Redis of the gateways. Used by the modules beside it."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from msgspec.structs import replace

from kraftek.contract.settings import Config
from kraftek.daemon.config import load

__all__ = ["configuration", "place_options"]


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

"""Check services: whether they are registered at the gateways as they run, and whether anybody receives their events.

Those of --config are compared with what gateways have, or one --service, with what else is said about it here. The
status is 1 if something is to be mended.
"""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec import ValidationError, convert
from msgspec.structs import asdict, replace

from kraftek.bus import RedisBus, RedisError
from kraftek.contract.names import default_channel, lease_key, stream_of
from kraftek.contract.registrations import Given, check
from kraftek.contract.settings import Config, Registration
from kraftek.daemon.cli.place import configuration, connected, place_options
from kraftek.service import Rejected
from kraftek.service.comparison import compare
from kraftek.service.sources import ACTIVE, ORDERED

__all__ = ["options", "run"]

KEYS = ("channel", "transport", "partitions", "reply")

Call = Callable[..., Awaitable[Any]]


def options(parser: ArgumentParser) -> None:
    """The options of the command."""
    group = parser.add_argument_group("which service; without this, those of --config")
    group.add_argument("--service", metavar="NAME", help="this one; what follows is over what --config says of it")
    group.add_argument("--channel", help="events:NAME unless given")
    group.add_argument("--transport", choices=["pubsub", "stream"], help="pubsub unless given")
    group.add_argument("--partitions", metavar="N", type=int, help="0 unless given")
    group.add_argument("--reply", action=BooleanOptionalAction, help="whether it answers; not compared unless given")
    place_options(parser)


async def run(reactor: Any, given: Namespace) -> int:
    """Do it."""
    said = {key: value for key in KEYS if (value := getattr(given, key)) is not None}
    if said and given.service is None:
        raise ValueError("--channel, --transport, --partitions and --reply go with --service")
    config = configuration(given)
    services = _services(config, given.service, said)
    async with connected(reactor, replace(config.redis, prefix="")) as bus:
        call = partial(_call, bus)
        done = [await _check(call, config, *each) for each in services]
    return 0 if all(done) else 1


def _services(config: Config, name: str | None, said: dict[str, Any]) -> list[tuple[Registration, bool]]:
    """Each with whether it is known if it answers."""
    if name is None:
        if not config.services:
            raise ValueError("expected --service NAME, or --config with services")
        return [(service, True) for service in config.services]
    known = next((service for service in config.services if service.name == name), None)
    service = known or Registration(name=name, channel=default_channel(name))
    try:
        service = convert(asdict(service) | said, Registration)
    except ValidationError as error:
        raise ValueError(f"{name}: {error}") from None
    others = (other for other in config.services if other.name != name)
    check(service, config.redis.broadcast, others)
    return [(service, known is not None or "reply" in said)]


async def _check(call: Call, config: Config, service: Registration, answers: bool) -> bool:
    redis = config.redis
    finding = await compare(
        call,
        Given(
            name=service.name,
            channel=service.channel,
            transport=service.transport,
            partitions=service.partitions,
            prefix=redis.prefix,
            broadcast=redis.broadcast,
            reply=service.reply if answers else None,
        ),
    )
    nobody, notes = await _listeners(call, service, redis.prefix)
    for line in [*finding.lines, *nobody, *notes]:
        print(line)
    if finding.lines or nobody:
        return False
    print(f"Service {service.name}: ok")
    return True


async def _listeners(call: Call, service: Registration, prefix: str) -> tuple[list[str], list[str]]:
    """What nobody receives, and what is worth knowing of those who do."""
    channel = prefix + service.channel
    if service.transport == "pubsub":
        (_, subscribers) = await call("PUBSUB", "NUMSUB", channel)
        return ([] if subscribers else [f"Service {service.name}: nobody is subscribed to {channel}"]), []
    streams = [stream_of(channel, number) for number in range(service.partitions)] or [channel]
    idle, unordered = [], set[str]()
    for stream in streams:
        readers = await _readers(call, stream, service.name)
        unordered |= {reader for reader in readers if not reader.endswith(ORDERED)}
        if not readers and not await call("EXISTS", lease_key(stream, service.name)):
            idle.append(f"Service {service.name}: no instance reads {stream}")
    kept = "keeps no order of rooms: it is of an older version, or has unordered=True"
    return idle, [f"Service {service.name}: {reader} {kept}" for reader in sorted(unordered)]


async def _readers(call: Call, stream: str, group: str) -> Sequence[str]:
    replies: list[list[Any]] = []
    with suppress(Rejected):  # there is no stream or no group yet
        replies = await call("XINFO", "CONSUMERS", stream, group)
    found = [dict(zip(reply[::2], reply[1::2], strict=True)) for reply in replies]
    return [each[b"name"].decode("utf-8", "backslashreplace") for each in found if each[b"idle"] < ACTIVE]


async def _call(bus: RedisBus, *command: Any) -> Any:
    try:
        return await bus.call(command[0], [], command[1:])
    except RedisError as error:
        raise Rejected(str(error)) from error

"""What a service must be to be registered, and what gateways publish about those that are.

The same rules hold for the configuration, for services that register themselves, and for the command ``kraftek check``.
Each gateway process keeps a :class:`Published`, as JSON, in a field of the hash ``gateways:registrations``, for as long
as it has its lease: :mod:`kraftek.core.rooms.leases`. The SDKs compare with it what they were given.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from kraftek.contract.names import COMMANDS, GATEWAY_NAME, is_reserved
from kraftek.contract.settings import Channel, Config, Partitions, Registration, Seconds, Transport

__all__ = [
    "LEASE",
    "MOST",
    "VERSION",
    "Given",
    "Mistake",
    "Published",
    "PublishedService",
    "check",
    "covers",
    "differences",
    "mistakes_of",
    "name_mistake",
    "published",
    "read_published",
    "table_of",
    "timeout_at",
]

VERSION = 1
"""Of the document. Fields may be added to it; a version that older readers would misunderstand has another number."""

LEASE = 15.0
"""Seconds that a service stands which has registered itself, unless it does so again: it does every five."""

MOST = 256
"""Services that may have registered themselves at a time."""

RELOAD = "reload them"

NAMES_SHOWN = 10
"""Services that a line names when the one in question is not among them."""


class Mistake(Struct, frozen=True):
    """``key``: of the registration, or ``name``. ``expected`` says what it should be."""

    key: str
    expected: str
    found: object


def name_mistake(name: str) -> Mistake | None:
    """Why no service can have this name."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name):
        return Mistake("name", "a name of 1 to 128 letters, digits, and _ . -", name)
    if name == GATEWAY_NAME:
        return Mistake("name", "another name: such events are the gateway's own", name)
    return None


def mistakes_of(service: Registration, broadcast: str, others: Iterable[Registration]) -> Iterator[Mistake]:
    """Why a service cannot be registered like that, beside ``others``. ``broadcast``: as in ``[redis]``."""
    if service.partitions and service.transport == "pubsub":
        yield Mistake("partitions", 'nothing unless the transport is "stream"', service.partitions)
    if service.channel == broadcast:
        yield Mistake("channel", "another channel than that of redis.broadcast", broadcast)
    elif is_reserved(service.channel):
        yield Mistake("channel", "a channel that is none of the gateway's own", service.channel)
    else:
        other = next((each for each in others if each.channel == service.channel), service)
        if (other.transport, other.partitions) != (service.transport, service.partitions):
            expected = f"the transport and partitions of {table_of(other.name)}, or another"
            yield Mistake("channel", expected, service.channel)


def check(service: Registration, broadcast: str, others: Iterable[Registration] = ()) -> None:
    """Raises ``ValueError`` for the first of these mistakes, the name's included."""
    for mistake in (name_mistake(service.name), *mistakes_of(service, broadcast, others)):
        if mistake is not None:
            raise ValueError(f"{mistake.key}: expected {mistake.expected}, found {mistake.found!r}")


def table_of(name: str) -> str:
    """A service's table in the configuration."""
    return f"services.{name}" if "." not in name else f"services.'{name}'"


def covers(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the patterns of ``auto_register`` is for this name."""
    return any(re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name) for pattern in patterns)


# What gateways publish


class PublishedService(Struct, frozen=True, kw_only=True):
    """A registration, as far as its service should know it, or may make it itself."""

    channel: Channel
    transport: Transport = "pubsub"
    partitions: Partitions = 0
    reply: bool = False
    timeout: Seconds = 10.0

    @classmethod
    def of(cls, service: Registration) -> PublishedService:
        """That of a registered service."""
        return cls(**{name: getattr(service, name) for name in cls.__struct_fields__})

    @property
    def words(self) -> bytes:
        """As JSON, the same to the byte in every SDK: instances of one service have to agree."""
        timeout = int(self.timeout) if self.timeout == int(self.timeout) else self.timeout
        return _encode(asdict(self) | {"timeout": timeout})


class Published(Struct, frozen=True, kw_only=True, rename="camel"):
    """The document. ``prefix`` and ``broadcast`` are those of ``[redis]``; channels are without the prefix.
    ``auto_register``: as configured. ``refused``: services that may not register themselves, and why. ``commands``:
    those to gateways that it knows (``unaware.lua`` beside this module).
    """

    version: int
    prefix: str
    broadcast: str
    services: dict[str, PublishedService]
    auto_register: tuple[str, ...] = ()
    refused: dict[str, str] = {}
    commands: tuple[str, ...] = ()


class _Version(Struct):
    version: int


def published(config: Config, services: Iterable[Registration], refused: Mapping[str, str] | None = None) -> bytes:
    """The document of a gateway with this configuration, and these services."""
    redis = config.redis
    document = Published(
        version=VERSION,
        prefix=redis.prefix,
        broadcast=redis.broadcast,
        services={service.name: PublishedService.of(service) for service in services},
        auto_register=config.auto_register,
        refused=dict(refused or {}),
        commands=COMMANDS,
    )
    return _encode(document)


def read_published(bodies: Iterable[bytes]) -> list[Published]:
    """Those that can be read: a newer version cannot, nor what another program wrote."""
    found = []
    for body in bodies:
        try:
            if msgspec.json.decode(body, type=_Version).version == VERSION:
                found.append(msgspec.json.decode(body, type=Published))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return found


_encode = msgspec.json.Encoder().encode


# What a service was given


class Given(Struct, frozen=True, kw_only=True):
    """What a service runs with. ``reply``: whether it answers requests, if it says so. ``answered``: the name of a
    client's request that it has answered, if it has. ``registers``: itself.
    """

    name: str
    channel: str
    transport: str
    partitions: int
    prefix: str
    broadcast: str
    reply: bool | None = None
    answered: str | None = None
    registers: bool = False


def timeout_at(fleet: Iterable[Published], name: str) -> float | None:
    """The seconds that gateways wait for a service's answers, the longest of them; ``None`` if none knows it."""
    return max((one.services[name].timeout for one in fleet if name in one.services), default=None)


class _Difference(Struct, frozen=True):
    """``difference`` is about the gateways, who are named after it; ``mend`` is both ways to mend it."""

    difference: str
    mend: str


def differences(given: Given, fleet: Sequence[Published]) -> tuple[list[str], bool]:
    """What differs, each with both ways to mend it; and whether all gateways agree about that."""
    found = Counter(each for one in fleet for each in _differences(given, one))
    lines = []
    for each, gateways in found.items():
        who = "the gateways" if gateways == len(fleet) else f"{gateways} of {len(fleet)} gateways"
        lines.append(f"Service {given.name}: {each.difference} {who}. {each.mend}")
    return lines, all(gateways == len(fleet) for gateways in found.values())


def _differences(given: Given, there: Published) -> Iterator[_Difference]:
    if there.broadcast != given.broadcast:
        yield _differs("broadcast", given.broadcast, there.broadcast, "redis", "restart")
    service = there.services.get(given.name)
    if service is None:
        yield _not_taken(given, there) if given.registers else _unknown(given, there.services)
        return
    table = table_of(given.name)
    keys = ["channel", "transport", *(["partitions"] if service.transport == given.transport else [])]
    for key in keys if given.reply is None else [*keys, "reply"]:
        here, at_gateways = getattr(given, key), getattr(service, key)
        if here != at_gateways:
            yield _differs(key, here, at_gateways, table, "reload")
    if given.reply is None and given.answered is not None and not service.reply:
        yield _Difference(
            f"it has answered {given.answered}, and clients got an ack in place of that: reply is false at",
            f"Either write reply = true under [{table}] of the gateways, and {RELOAD}; or return nothing there",
        )


def _differs(key: str, here: object, there: object, table: str, how: str) -> _Difference:
    mine, theirs = (msgspec.json.encode(value).decode() for value in (here, there))
    return _Difference(
        f"{key} is {mine} here, and {theirs} at",
        f"Either give the service {key} = {theirs}, or write {key} = {mine} under [{table}] of the gateways, and {how} "
        "them",
    )


def _unknown(given: Given, services: Mapping[str, PublishedService]) -> _Difference:
    same = [name for name, service in services.items() if service.channel == given.channel]
    known = same or sorted(services)
    shown = ", ".join(known[:NAMES_SHOWN]) + (" and others" if len(known) > NAMES_SHOWN else "")
    there = "nothing is" if not known else f"its channel is that of {shown}" if same else f"those that are: {shown}"
    keys = [f'channel = "{given.channel}"']
    if given.transport != "pubsub":
        keys.append(f'transport = "{given.transport}"')
    if given.partitions:
        keys.append(f"partitions = {given.partitions}")
    if given.reply:
        keys.append("reply = true")
    rename = f"Either give the service the name {shown}, or write" if len(known) == 1 else "Write"
    return _Difference(
        f"it is not registered ({there}) at",
        f"{rename} [{table_of(given.name)}] with {', '.join(keys)} into the gateways' configuration, and {RELOAD}",
    )


def _not_taken(given: Given, there: Published) -> _Difference:
    if given.name in there.refused:
        return _Difference(f"it may not register itself ({there.refused[given.name]}) at", "Change that in the service")
    if covers(there.auto_register, given.name):
        return _Difference("it has registered itself, and is not known yet at", "Wait for them")
    return _Difference(
        "it registers itself, and auto_register does not have its name at",
        f'Write it into auto_register = ["{given.name}"] of the gateways, and {RELOAD}; or register it there under '
        f"[{table_of(given.name)}]",
    )

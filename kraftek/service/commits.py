"""What handlers have done, as Redis runs it: all of it or nothing, with the acknowledgement of their entry.

Called by :mod:`kraftek.service.handling`, and by :mod:`kraftek.service.instance` for requests to other services.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct

from kraftek.contract.lua import Argument, Script, lua
from kraftek.contract.names import (
    COMMANDS,
    GATEWAY_BYTES,
    GATEWAY_LEASES,
    GATEWAY_LENGTH,
    HISTORY_RULES,
    REGISTRATIONS,
)
from kraftek.service.backend import Backend

__all__ = [
    "TELL",
    "TELL_UNKEPT",
    "UNAWARE",
    "Command",
    "Commits",
    "Entry",
    "Full",
    "NotNow",
    "OldGateway",
    "Told",
    "Topic",
    "Wants",
    "wants",
]

_FULL, _KEPT = -1, -2

_EMIT = "fields", "streams", "emit"
_TELLING = "history", "kept", "texts", "tell", "tell_users"
_NUMBERS = {"FULL": _FULL, "KEPT": _KEPT, "most": GATEWAY_LENGTH, "bytes": GATEWAY_BYTES}

_COMMITS = {
    (emits, rooms): Script(lua(__package__, *first, "pending", *(_EMIT if emits else ()), *tell, "commit", **_NUMBERS))
    for emits in (False, True)
    for rooms, first, tell in (
        ("none", (), ()),
        ("unkept", ("unkept",), ()),
        ("kept", (), _TELLING),
    )
}
"""By whether something is emitted, and whether something is said to rooms or users, of which none or some may have a
history."""

TELL_UNKEPT = Script(lua(__package__, "unkept", KEPT=_KEPT) + "\nreturn redis.call('PUBLISH', ARGV[1], ARGV[2])")
TELL = Script(lua(__package__, *_TELLING) + "\nreturn telling_to(unpack(ARGV))()")

UNAWARE = Script(lua(__package__, "time", "unaware"))
"""A gateway that does not know a command, and that command."""


class Wants(Struct, frozen=True):
    """A command to gateways that all of them must know; and the keys of their leases, and of what they publish."""

    leases: str
    published: str
    command: str


class Topic(Struct, frozen=True):
    """What may have a history: :mod:`kraftek.contract.history`; or users, each of which may, as ``users:`` and the JSON
    list with which the message ends. ``id`` is that of a message, which is told once; or empty.
    """

    name: str
    prefix: str
    id: str = ""


class Told(NamedTuple):
    """What became of a message. ``taken``: how many took it, the gateways and whoever else subscribes to the channel.
    ``offset`` and ``epoch``: where it is in the history of its room, or of the first of its users; 0 and empty if that
    has none. It is false if nobody took it, and it is in no history.
    """

    taken: int
    offset: int = 0
    epoch: str = ""

    def __bool__(self) -> bool:
        return self.taken > 0 or self.offset > 0


class Command(Struct, frozen=True):
    """A Redis command. ``when``: ``unheard`` is a ``PUBLISH`` that is sent only if the one before it had no receiver;
    its last word is the key under which its message is stored if it has none either. ``emit`` is an event for the
    stream of the gateways, which may be full: its parts are the stream and the event. ``wants``: what all gateways must
    know. ``topic``: of a ``PUBLISH``, which is told otherwise if that has a history.
    """

    parts: tuple[Argument, ...]
    when: Literal["always", "unheard", "emit"] = "always"
    wants: Wants | None = None
    topic: Topic | None = None

    @property
    def emits(self) -> bool:
        return self.when == "emit"

    def words(self, rooms: str) -> tuple[Argument, ...]:
        """As the script has it that commits."""
        if self.topic is not None and rooms == "kept":
            return ("tell", 5, *_telling(self))
        return (self.when, len(self.parts), *self.parts)


def _telling(command: Command) -> tuple[Argument, ...]:
    """The arguments of ``telling_to`` in ``tell_users.lua``."""
    assert command.topic is not None
    _, channel, body = command.parts
    return command.topic.prefix, channel, command.topic.name, body, command.topic.id


def wants(prefix: str, command: str) -> Wants | None:
    """What gateways must know for a message of this type."""
    if command not in COMMANDS:
        return None
    return Wants(prefix + GATEWAY_LEASES, prefix + REGISTRATIONS, command)


class Entry(Struct, frozen=True):
    """An event in a stream. ``delivered``: how often it was given to a handler, this time included. ``lost`` is called
    when another instance turns out to have the entry.
    """

    stream: str
    id: bytes
    body: bytes
    delivered: int
    consumer: str
    lost: Callable[[], None]


class NotNow(Exception):  # noqa: N818  # it says when it cannot be done
    """It cannot be done at present. Nothing was done."""


class OldGateway(NotNow):
    """A gateway of an older version runs, which would send this command to clients. Nothing was sent."""

    def __init__(self, gateway_id: str, command: str) -> None:
        super().__init__(f"gateway {gateway_id} is of a version that does not know {command}: upgrade it first")


class Full(NotNow):
    """As many events as may wait for the gateways already. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("too many events between services wait for a gateway")


class Commits:
    """Runs commands on a Redis.

    What is said to a room is part of its history if it has one. Only Redis knows that. It is asked by a short script,
    which costs about what ``PUBLISH`` does, until it says that some room has one: then by another one.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._kept = False

    async def commit(self, commands: Sequence[Command], group: str = "", entry: Entry | None = None) -> bool:
        """Run the commands; for an entry of a stream only if it is still pending for its consumer, which is the result.

        Raises :class:`NotNow`, and as :class:`~kraftek.service.backend.Backend` has it.
        """
        if entry is None and len(commands) == 1 and not commands[0].emits:
            await self.publish(commands[0])
            return True
        for wants in {command.wants for command in commands if command.wants is not None}:
            await self._all_know(wants)
        if entry is None and not commands:
            return True
        done = _KEPT
        while done == _KEPT:
            done = await self._run(commands, group, entry)
            self._kept = self._kept or done == _KEPT
        if done == _FULL:
            raise Full
        return bool(done)

    async def publish(self, command: Command) -> Told:
        """Run a single command, such as a ``PUBLISH``. Raises as :meth:`commit`."""
        if command.wants is not None:
            await self._all_know(command.wants)
        if command.topic is None:
            return Told(await self._backend.call(*command.parts))
        if not self._kept:
            rules = command.topic.prefix + HISTORY_RULES
            taken = await self._backend.run(TELL_UNKEPT, [], [*command.parts[1:], rules])
            if taken != _KEPT:
                return Told(taken)
            self._kept = True
        taken, offset, epoch = await self._backend.run(TELL, [], _telling(command))
        return Told(taken, offset, epoch.decode())

    async def _run(self, commands: Sequence[Command], group: str, entry: Entry | None) -> int:
        keys: list[str] = []
        args: list[Argument] = [group, ""]
        if entry is not None:
            keys, args = [entry.stream], [group, entry.id, "of", 1, entry.consumer]
        prefix = next((command.topic.prefix for command in commands if command.topic is not None), None)
        rooms = "none" if prefix is None else "kept" if self._kept else "unkept"
        for command in commands:
            args += command.words(rooms)
        if rooms == "unkept":
            args += ("rules", 1, f"{prefix}{HISTORY_RULES}")
        done: int = await self._backend.run(_COMMITS[any(command.emits for command in commands), rooms], keys, args)
        return done

    async def _all_know(self, wants: Wants) -> None:
        """Beforehand: in one step with the message it would be no safer: a gateway listens before it has its lease."""
        unaware = await self._backend.run(UNAWARE, [wants.leases, wants.published], [wants.command])
        if unaware:
            raise OldGateway(*(word.decode() for word in unaware))

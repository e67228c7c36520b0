"""What handlers have done, as Redis runs it: all of it or nothing, with the acknowledgement of their entry.

Called by :mod:`kraftek.service.handling`, and by :mod:`kraftek.service.instance` for requests to other services.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from msgspec import Struct

from kraftek.contract.lua import Argument, Script, lua
from kraftek.contract.names import COMMANDS, GATEWAY_BYTES, GATEWAY_LEASES, GATEWAY_LENGTH, REGISTRATIONS
from kraftek.service.backend import Backend

__all__ = ["UNAWARE", "Command", "Entry", "Full", "NotNow", "OldGateway", "Wants", "commit", "publish", "wants"]

_FULL = -1

_COMMIT = Script(lua(__package__, "pending", "commit"))

_COMMIT_AND_EMIT = Script(
    lua(
        __package__,
        "pending",
        "fields",
        "streams",
        "emit",
        "commit",
        FULL=_FULL,
        most=GATEWAY_LENGTH,
        bytes=GATEWAY_BYTES,
    )
)
"""The script is sent each time, so one that emits nothing is four times as short."""

UNAWARE = Script(lua(__package__, "time", "unaware"))
"""A gateway that does not know a command, and that command."""


class Wants(Struct, frozen=True):
    """A command to gateways that all of them must know; and the keys of their leases, and of what they publish."""

    leases: str
    published: str
    command: str


class Command(Struct, frozen=True):
    """A Redis command. ``when``: ``unheard`` is a ``PUBLISH`` that is sent only if the one before it had no receiver;
    its last word is the key under which its message is stored if it has none either. ``emit`` is an event for the
    stream of the gateways, which may be full: its parts are the stream and the event. ``wants``: what all gateways must
    know.
    """

    parts: tuple[Argument, ...]
    when: Literal["always", "unheard", "emit"] = "always"
    wants: Wants | None = None

    @property
    def emits(self) -> bool:
        return self.when == "emit"


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


async def commit(backend: Backend, commands: Sequence[Command], group: str = "", entry: Entry | None = None) -> bool:
    """Run the commands; for an entry of a stream only if it is still pending for its consumer, which is the result.

    Raises :class:`NotNow`, and as :class:`~kraftek.service.backend.Backend` has it.
    """
    for wants in {command.wants for command in commands if command.wants is not None}:
        await _all_know(backend, wants)
    if entry is None and len(commands) == 1 and not commands[0].emits:
        await backend.call(*commands[0].parts)
    elif entry is not None or commands:
        keys: list[str] = []
        args: list[Argument] = [group, ""]
        if entry is not None:
            keys, args = [entry.stream], [group, entry.id, "of", 1, entry.consumer]
        for command in commands:
            args += (command.when, len(command.parts), *command.parts)
        script = _COMMIT_AND_EMIT if any(command.emits for command in commands) else _COMMIT
        done = await backend.run(script, keys, args)
        if done == _FULL:
            raise Full
        return bool(done)
    return True


async def publish(backend: Backend, command: Command) -> int:
    """Run a single ``PUBLISH``. Returns how many took it. Raises as :func:`commit`."""
    if command.wants is not None:
        await _all_know(backend, command.wants)
    taken: int = await backend.call(*command.parts)
    return taken


async def _all_know(backend: Backend, wants: Wants) -> None:
    """Beforehand: in one step with the message it would be no safer, as a gateway listens before it has its lease."""
    unaware = await backend.run(UNAWARE, [wants.leases, wants.published], [wants.command])
    if unaware:
        raise OldGateway(*(word.decode() for word in unaware))

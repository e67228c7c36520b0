"""What handlers have done, as Redis runs it: all of it or nothing, with the acknowledgement of their entry.

Called by :mod:`kraftek.service.handling`, and by :mod:`kraftek.service.instance` for requests to other services.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from kraftek.contract.lua import Argument, Script, lua
from kraftek.contract.names import GATEWAY_BYTES, GATEWAY_LENGTH
from kraftek.service.backend import Backend
from kraftek.service.processor import Command

__all__ = ["Entry", "Full", "commit"]

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


class Full(Exception):  # noqa: N818  # it says what the stream is
    """As many events as may wait for the gateways already. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("too many events between services wait for a gateway")


async def commit(backend: Backend, commands: Sequence[Command], group: str = "", entry: Entry | None = None) -> bool:
    """Run the commands; for an entry of a stream only if it is still pending for its consumer, which is the result.

    Raises :class:`Full`, and as :class:`~kraftek.service.backend.Backend` has it.
    """
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

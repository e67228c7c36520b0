"""What handlers have done, as Redis runs it: all of it or nothing, with the acknowledgement of their entry.

Called by :mod:`kraftek.service.handling`, and by :mod:`kraftek.service.instance` for requests to other services.
"""

from __future__ import annotations

from collections.abc import Sequence

from kraftek.contract.lua import Argument, Script, lua
from kraftek.contract.names import GATEWAY_BYTES, GATEWAY_LENGTH
from kraftek.service.backend import Backend
from kraftek.service.processor import Command

__all__ = ["Full", "commit"]

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


class Full(Exception):  # noqa: N818  # it says what the stream is
    """As many events as may wait for the gateways already. Nothing was done."""

    def __init__(self) -> None:
        super().__init__("too many events between services wait for a gateway")


async def commit(
    backend: Backend, commands: Sequence[Command], group: str = "", stream: str = "", entry_id: bytes = b""
) -> None:
    """Run the commands; for an entry of a stream only if no other instance has acknowledged it.

    Raises :class:`Full`, and as :class:`~kraftek.service.backend.Backend` has it.
    """
    if not stream and len(commands) == 1 and not commands[0].emits:
        await backend.call(*commands[0].parts)
    elif stream or commands:
        args: list[Argument] = [group, entry_id]
        for command in commands:
            args += (command.when, len(command.parts), *command.parts)
        script = _COMMIT_AND_EMIT if any(command.emits for command in commands) else _COMMIT
        if await backend.run(script, [stream] if stream else [], args) == _FULL:
            raise Full

"""Commands as Redis reads them: the client's half of RESP2. Replies are read by hiredis.

Used by :mod:`kraftek.bus.connections` for commands, and by :mod:`kraftek.bus.redis_bus` for publishing.
"""

from __future__ import annotations

from collections.abc import Sequence

import hiredis

from kraftek.contract.lua import Argument

__all__ = ["command", "publish_head", "script_call", "script_head"]


def command(*parts: Argument) -> bytes:
    """A command's name and its arguments as an array of bulk strings. Text is UTF-8, numbers are decimal."""
    packed: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub knows no union
    return packed


def script_head(name: bytes, script: str) -> bytes:
    """What every ``EVAL`` or ``EVALSHA`` of this script without keys begins with, after how many parts it has."""
    return b"$%d\r\n%b\r\n$%d\r\n%b\r\n$1\r\n0" % (len(name), name, len(script.encode()), script.encode())


def script_call(head: bytes, args: Sequence[bytes]) -> bytes:
    """The command of which that is the head: as :func:`command`, in less than half of the time for each argument."""
    lines = [b""] * (2 * len(args) + 2)
    lines[0] = b"*%d\r\n%b" % (3 + len(args), head)
    try:
        lines[1:-1:2] = map(_LENGTHS.__getitem__, map(len, args))
    except IndexError:
        lines[1:-1:2] = [b"$%d" % len(arg) for arg in args]
    lines[2:-1:2] = args
    return b"\r\n".join(lines)


_LENGTHS = [b"$%d" % length for length in range(4096)]
"""The lines that say how long an argument is, written once: most are short."""


def publish_head(channel: bytes) -> bytes:
    """What every ``PUBLISH`` to this channel begins with, up to the length of its body."""
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$" % (len(channel), channel)

"""Commands as Redis reads them: the client's half of RESP2. Replies are read by hiredis.

Used by :mod:`kraftek.bus.links` for commands, and by :mod:`kraftek.bus.redis_bus` for publishing.
"""

from __future__ import annotations

import hiredis

__all__ = ["Argument", "command", "publish_head"]

Argument = bytes | str | int | float


def command(*parts: Argument) -> bytes:
    """A command's name and its arguments as an array of bulk strings. Text is UTF-8, numbers are decimal."""
    packed: bytes = hiredis.pack_command(parts)  # type: ignore[arg-type]  # its stub knows no union
    return packed


def publish_head(channel: bytes) -> bytes:
    """What every ``PUBLISH`` to this channel begins with, up to the length of its body."""
    return b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$" % (len(channel), channel)

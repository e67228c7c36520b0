"""What a grant permits: patterns over the names of events and of the gateway's own requests, part by part."""

from __future__ import annotations

from functools import lru_cache

from kraftek.contract.names import ROOM_HISTORY

__all__ = ["may_read", "permits"]


@lru_cache(maxsize=8192)
def permits(permissions: tuple[str, ...], name: str, explicit: bool = False) -> bool:
    """Whether one of the patterns (``service:module:name``, each part a literal or ``*``) covers the event name.
    ``explicit``: only one that names the service does.
    """
    parts = name.split(":")
    return any(
        len(pattern) == len(parts)
        and all(p in ("*", part) for p, part in zip(pattern, parts, strict=True))
        and not (explicit and pattern[0] == "*")
        for pattern in (permission.split(":") for permission in permissions)
    )


def may_read(permissions: tuple[str, ...] | None) -> bool:
    """Whether a grant with these permits to read the history of its room."""
    return permissions is None or permits(permissions, ROOM_HISTORY)

"""Which events a grant permits: patterns over event names, part by part."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["permits"]


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

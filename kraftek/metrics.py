"""What happened since the process started, as plain integers that cost nothing to count."""

from __future__ import annotations

__all__ = ["Counters"]


class Counters:
    """One per process, handed to whoever counts. Every attribute only grows."""

    __slots__ = (
        "access_asked",
        "access_failed",
        "access_hits",
        "access_invalidations",
        "broadcasts",
        "broadcasts_malformed",
        "broadcasts_without_target",
        "connections",
        "connections_refused",
        "delivered",
        "duplicates",
        "errors_internal",
        "errors_peer",
        "ping_timeouts",
        "published",
        "published_to_nobody",
        "publishes_lost",
        "received",
        "redis_connects",
        "revoked",
        "slow_consumers",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    def snapshot(self) -> dict[str, int]:
        """Every counter by name."""
        return {name: getattr(self, name) for name in self.__slots__}

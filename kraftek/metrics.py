"""What happened since the process started, as plain integers that cost nothing to count."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Counters"]


class Counters(Struct):
    """One per process, handed to whoever counts. Every value only grows."""

    access_asked: int = 0
    access_failed: int = 0
    access_hits: int = 0
    access_invalidations: int = 0
    answers_not_kept: int = 0
    broadcasts: int = 0
    broadcasts_malformed: int = 0
    broadcasts_without_target: int = 0
    connections: int = 0
    connections_refused: int = 0
    delivered: int = 0
    duplicates: int = 0
    entries_swept: int = 0
    errors_internal: int = 0
    errors_peer: int = 0
    intake: int = 0
    intake_refused: int = 0
    leases_lost: int = 0
    ping_timeouts: int = 0
    published: int = 0
    published_to_nobody: int = 0
    publishes_lost: int = 0
    received: int = 0
    redis_connects: int = 0
    replies_late: int = 0
    requests_repeated: int = 0
    requests_timed_out: int = 0
    revoked: int = 0
    slow_consumers: int = 0
    streams_full: int = 0

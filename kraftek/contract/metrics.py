"""What happened since the process started, as plain integers that cost nothing to count; and what there is now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Annotated, get_args, get_type_hints

from msgspec import Meta, Struct, field

from kraftek.contract.errors import Limit

__all__ = [
    "Counters",
    "Gauge",
    "Gauges",
    "RecoveryFailure",
    "RefusalReason",
    "ResumeFailure",
    "SkipReason",
    "described",
]


class RefusalReason(StrEnum):
    """Why a connection was refused."""

    ADDRESS = "address"  # too many of its address
    HANDSHAKE = "handshake"  # not as the protocol has it
    HOST = "host"
    MEMORY = "memory"  # the process has more than limits.memory
    ORIGIN = "origin"
    PROCESS = "process"  # too many of this process
    RATE = "rate"  # too many come from its address
    STOPPING = "stopping"
    SUBPROTOCOL = "subprotocol"


class ResumeFailure(StrEnum):
    """Why a client did not get what it has missed, as it is told."""

    EPOCH = "epoch"  # it is not certain that what it has is part of this history
    EXPIRED = "expired"
    TOO_MANY = "too_many"
    UNAVAILABLE = "unavailable"


class RecoveryFailure(StrEnum):
    """Why a Socket.IO client that came back was let in as another one."""

    ACCESS = "access"  # to one of its rooms
    HISTORY = "history"  # what a room was told meanwhile is not all there
    UNAVAILABLE = "unavailable"
    UNKNOWN = "unknown"  # too long away, or it has left, or is somebody else


class SkipReason(StrEnum):
    """Why a message was not sent to a client that did not read."""

    DROP = "drop"
    LATEST = "latest"  # a later one took its place
    TTL = "ttl"


PUBLISH_STATUSES = ("200", "400", "401", "403", "405", "409", "413", "415", "422", "500", "503")
"""What ``POST /publish`` is answered with."""


class Counters(Struct):
    """One per process, handed to all that count. Every value only grows. An operator sees ``kraftek_<name>_total``.

    One that is counted by something has a number for each value of that, which is its label.
    """

    accepting_paused: Annotated[
        int, Meta(description="Times that the process had as many connections as it may have, and accepted no more")
    ] = 0
    access_asked: Annotated[int, Meta(description="Questions to the auth service")] = 0
    access_failed: Annotated[int, Meta(description="Questions that the auth service did not answer")] = 0
    access_hits: Annotated[int, Meta(description="Checks of access that were answered from the cache")] = 0
    access_invalidations: Annotated[int, Meta(description="Times that cached access was invalidated")] = 0
    answers_not_kept: Annotated[
        int, Meta(description="Answers to requests that could not be stored for duplicates")
    ] = 0
    answers_too_large: Annotated[
        int, Meta(description="Answers to requests that were beyond the bytes that are stored for duplicates")
    ] = 0
    broadcasts: Annotated[int, Meta(description="Messages from services to clients")] = 0
    broadcasts_malformed: Annotated[int, Meta(description="Messages from services that could not be read")] = 0
    broadcasts_without_target: Annotated[
        int, Meta(description="Messages from services with neither recipients nor a room")
    ] = 0
    connections: Annotated[int, Meta(description="Clients that connected")] = 0
    connections_refused: Annotated[
        dict[str, int], Meta(description="Connections refused", extra={"label": "reason"})
    ] = field(default_factory=lambda: {reason.value: 0 for reason in RefusalReason})
    delivered: Annotated[int, Meta(description="Messages of services written to clients, each client counted")] = 0
    duplicates: Annotated[
        int, Meta(description="Sockets closed because the same user took their room with a newer login")
    ] = 0
    entries_swept: Annotated[int, Meta(description="Entries of dead gateways removed from the room cache")] = 0
    errors_internal: Annotated[int, Meta(description="Faults of the gateway")] = 0
    errors_peer: Annotated[int, Meta(description="Errors sent to clients")] = 0
    history_messages: Annotated[
        int, Meta(description="Messages of rooms' histories that clients asked for and got")
    ] = 0
    intake: Annotated[int, Meta(description="Events accepted from services")] = 0
    intake_refused: Annotated[int, Meta(description="Events of services refused")] = 0
    leases_lost: Annotated[int, Meta(description="Times that other gateways presumed this one dead")] = 0
    memory_exceeded: Annotated[int, Meta(description="Times that the process took more memory than limits.memory")] = 0
    memory_shed_bytes: Annotated[
        int, Meta(description="Bytes that were given up because the accounts were above limits.memory")
    ] = 0
    messages_skipped: Annotated[
        dict[str, int],
        Meta(
            description="Messages that clients which did not read were not sent, by what their policy says",
            extra={"label": "policy"},
        ),
    ] = field(default_factory=lambda: {reason.value: 0 for reason in SkipReason})
    not_recovered: Annotated[
        dict[str, int],
        Meta(description="Socket.IO clients that came back and were not recovered", extra={"label": "reason"}),
    ] = field(default_factory=lambda: {reason.value: 0 for reason in RecoveryFailure})
    not_resumed: Annotated[
        dict[str, int],
        Meta(description="Clients that did not get what they had missed", extra={"label": "reason"}),
    ] = field(default_factory=lambda: {reason.value: 0 for reason in ResumeFailure})
    parts_trimmed: Annotated[
        int, Meta(description="Times that parts of an answer were no longer kept, beyond the bytes for that")
    ] = 0
    ping_timeouts: Annotated[int, Meta(description="Clients dropped because they did not answer a ping")] = 0
    posts_refused: Annotated[
        int, Meta(description="Long-polling sessions closed because too much that clients had posted was not handled")
    ] = 0
    presence_reads: Annotated[int, Meta(description="Readings of who is in a room that clients watch")] = 0
    presence_told: Annotated[int, Meta(description="Messages about who is in a room, each client counted")] = 0
    publish_requests: Annotated[
        dict[str, int], Meta(description="Answers to POST /publish of the operator's port", extra={"label": "status"})
    ] = field(default_factory=lambda: dict.fromkeys(PUBLISH_STATUSES, 0))
    published: Annotated[int, Meta(description="Events published to services")] = 0
    published_to_nobody: Annotated[int, Meta(description="Events that no service listened for")] = 0
    publishes_lost: Annotated[
        int, Meta(description="Events whose fate is unknown: the connection to Redis was lost")
    ] = 0
    publishes_refused: Annotated[int, Meta(description="Events that Redis refused to take")] = 0
    rate_limited: Annotated[
        dict[str, int], Meta(description="Messages of clients refused with RATE_LIMITED", extra={"label": "limit"})
    ] = field(default_factory=lambda: {limit.value: 0 for limit in Limit})
    rate_limited_closed: Annotated[
        int, Meta(description="Clients closed with 4429 because they went on above their budget")
    ] = 0
    receipts: Annotated[int, Meta(description="Messages whose acknowledgements a service waits for")] = 0
    receipts_acknowledged: Annotated[int, Meta(description="Users who have acknowledged one of them")] = 0
    receipts_refused: Annotated[int, Meta(description="Those of these that were too many, or for too many")] = 0
    received: Annotated[int, Meta(description="Messages from clients")] = 0
    recovered: Annotated[int, Meta(description="Socket.IO clients that came back and were recovered")] = 0
    redis_connects: Annotated[int, Meta(description="Times that Redis was connected")] = 0
    replies_late: Annotated[int, Meta(description="Answers of services that were not waited for")] = 0
    requests_cancelled: Annotated[int, Meta(description="Requests that their clients have cancelled")] = 0
    requests_repeated: Annotated[int, Meta(description="Requests sent again that were not run again")] = 0
    requests_timed_out: Annotated[int, Meta(description="Requests that no service answered in time")] = 0
    resumed: Annotated[int, Meta(description="Clients that got all that they had missed in a room, or as a user")] = 0
    resumed_messages: Annotated[int, Meta(description="Messages that clients had missed and got")] = 0
    revoked: Annotated[int, Meta(description="Times that a socket lost a room because access was revoked")] = 0
    rooms_given: Annotated[int, Meta(description="Times that a service put a socket into a room")] = 0
    rooms_not_given: Annotated[
        int, Meta(description="Times that a socket was not put into a room because it was in limits.rooms of them")
    ] = 0
    slow_consumers: Annotated[int, Meta(description="Clients closed because they did not read what they were sent")] = 0
    slowed: Annotated[int, Meta(description="Times that a socket was not read for a while: it was over its budget")] = 0
    streams_full: Annotated[int, Meta(description="Events refused because a service's stream was full")] = 0
    told: Annotated[int, Meta(description="Messages told to rooms and users with history, of this process")] = 0
    told_fetched: Annotated[
        int, Meta(description="Those of them that did not arrive and were read from the history")
    ] = 0


def described() -> Iterator[tuple[str, str, str]]:
    """The names of the counters, what each counts, and its label: empty for a plain number."""
    for name, hint in get_type_hints(Counters, include_extras=True).items():
        meta = get_args(hint)[1]
        yield name, meta.description, (meta.extra or {}).get("label", "")


class Gauge(Struct, frozen=True):
    """Something that can be looked at when an operator asks: ``kraftek_<name>``.

    ``read`` gives the number, or with a ``label`` the number for each value of it. It is called at each look, and must
    not wait.
    """

    name: str
    description: str
    read: Callable[[], float | Mapping[str, float]]
    label: str = ""


class Gauges:
    """All of them. Whoever has something to look at adds it once, at the start."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def add(
        self, name: str, description: str, read: Callable[[], float | Mapping[str, float]], label: str = ""
    ) -> None:
        """Add one. Raises ``ValueError`` when there is one of that name."""
        if name in self._gauges:
            raise ValueError(f"there is a gauge {name!r} already")
        self._gauges[name] = Gauge(name, description, read, label)

    def __iter__(self) -> Iterator[Gauge]:
        return iter(self._gauges.values())

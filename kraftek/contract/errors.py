"""What can go wrong with a client, with the codes it sees on the wire.

Raised anywhere below the edges; turned into one ``error`` message at one place, :class:`kraftek.core.session.Session`.
The tables are in ``docs/errors.rst``.
"""

from __future__ import annotations

import re
from enum import StrEnum

__all__ = [
    "CLOSE_CODES",
    "DENIALS",
    "RESTART",
    "Code",
    "ConfigError",
    "Limit",
    "NotPublished",
    "PeerError",
    "Refusal",
    "is_code",
]


class Code(StrEnum):
    """The ``code`` of an ``error`` message."""

    NOT_AUTHENTICATED = "NOT_AUTHENTICATED"
    AUTH_FAILED = "AUTH_FAILED"
    DUPLICATE_CONNECTION = "DUPLICATE_CONNECTION"
    INVALID_EVENT = "INVALID_EVENT"
    INVALID_MESSAGE = "INVALID_MESSAGE"
    AUTH_TIMEOUT = "AUTH_TIMEOUT"
    AUTH_UNAVAILABLE = "AUTH_UNAVAILABLE"
    ACCESS_DENIED = "ACCESS_DENIED"
    ACCESS_REVOKED = "ACCESS_REVOKED"
    NO_HISTORY = "NO_HISTORY"
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105  # the name of an error
    NO_PRESENCE = "NO_PRESENCE"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"
    RATE_LIMITED = "RATE_LIMITED"
    SLOW_CONSUMER = "SLOW_CONSUMER"
    INTERNAL = "INTERNAL"


_CODE = re.compile("[A-Z][A-Z0-9_]{0,63}")


def is_code(text: str) -> bool:
    """Whether a service may close a socket with this code. It is a close frame's reason too, which has room for 123
    bytes (RFC 6455, section 5.5).
    """
    return bool(_CODE.fullmatch(text))


CLOSE_CODES: dict[str, int] = {
    Code.INVALID_MESSAGE: 4400,
    Code.AUTH_FAILED: 4401,
    Code.TOKEN_EXPIRED: 4401,
    Code.ACCESS_REVOKED: 4403,
    Code.AUTH_TIMEOUT: 4408,
    Code.DUPLICATE_CONNECTION: 4409,
    Code.SLOW_CONSUMER: 4413,
    Code.RATE_LIMITED: 4429,
    Code.INTERNAL: 1011,
}
"""The WebSocket close code that goes with an error, for those errors that can close a socket."""


DENIALS = frozenset({Code.AUTH_FAILED, Code.TOKEN_EXPIRED})
"""What a no of a checker is; anything else of its errors is neither a yes nor a no."""


RESTART = 1012
"""The close code of a gateway that stops: "Service Restart" of the WebSocket Close Code Number Registry (RFC 6455,
section 11.7). Clients come back."""


class Limit(StrEnum):
    """What there was too much of, the ``limit`` of a ``RATE_LIMITED`` of the gateway's: an error of a service has none.
    The table is in ``docs/limits.rst``.
    """

    USER = "user"  # events or bytes of one user
    ADDRESS = "address"  # events or bytes of one address
    EVENT = "event"  # a service's own rate for such events
    JOINS = "joins"
    QUESTIONS = "questions"  # to the auth service
    REQUESTS = "requests"  # of one connection that wait for their answers
    SHARE = "share"  # of one user, of what waits or is kept


class PeerError(Exception):
    """The client's fault, or a condition that the client must know about. Everything else that is raised is ours.

    ``closes``: the socket is closed with the code's entry in :data:`CLOSE_CODES` after the error was sent.
    ``retry_after``: seconds after which trying again makes sense.
    ``id``, ``event_type``: the request that is answered by this error, as far as it is known.
    ``room_id``: the room that the client is no longer in because of it, or whose messages it does not get.
    ``limit``: with ``RATE_LIMITED``, what there was too much of.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        closes: bool = False,
        retry_after: float | None = None,
        id: int | str | None = None,
        event_type: str | None = None,
        room_id: str | None = None,
        limit: Limit | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.closes = closes
        self.retry_after = retry_after
        self.id = id
        self.event_type = event_type
        self.room_id = room_id
        self.limit = limit

    def copy(self) -> PeerError:
        """The same error for somebody else, without what it answers."""
        closes, retry_after, limit = self.closes, self.retry_after, self.limit
        return PeerError(self.code, self.message, closes=closes, retry_after=retry_after, limit=limit)


class NotPublished(Exception):  # noqa: N818  # named after what did not happen, as Twisted's names do
    """Redis is unavailable, or too much is in flight to it: the message was not sent."""


class Refusal(Exception):  # noqa: N818  # as above
    """Redis refused a command: the message is its reply."""


class ConfigError(Exception):
    """The configuration is wrong; ``mistakes`` names every one of them."""

    EXIT_STATUS = 78
    """What the daemon exits with: EX_CONFIG of sysexits.h, on which the units of systemd do not restart it."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes

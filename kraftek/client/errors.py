"""The exceptions that both Python clients raise, or fail Deferreds and Futures with."""

from __future__ import annotations

__all__ = ["Closed", "QueueFull", "Refused"]


class Refused(Exception):  # noqa: N818  # it says what happened, as Twisted's names do
    """A request was answered with an error, or has no answer.

    ``code``: the gateway's or the service's, to act on. The client itself uses ``TIMEOUT`` when no answer came
    in time, ``TOO_LARGE`` when the gateway closed the socket because of a message like this one, ``LEFT`` for a
    room that was left before it was entered, and ``NO_TOKEN`` and ``SAME_TOKEN`` for a refresh. ``retry_after``:
    seconds after which trying again makes sense, if the other side gave any.
    """

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after = retry_after


class Closed(Exception):  # noqa: N818  # as above
    """The client is closed for good: by its own ``close()``, code 1000, or by a code that forbids reconnecting."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}".rstrip())
        self.code = code
        self.reason = reason


class QueueFull(Exception):  # noqa: N818  # as above
    """Too many messages wait for a connection or for their answers: no more are accepted."""

"""What handlers and the kit raise. Services import it from :mod:`kraftek.service`."""

from __future__ import annotations

__all__ = ["NoEvent", "Refused", "TooLarge"]


class TooLarge(ValueError):  # noqa: N818  # raised to handlers: it says what is wrong with the message
    """A message is larger than the processor's ``message_bytes``, its room than a receipt takes, or a text than what is
    kept of one. Nothing was sent.
    """


class Refused(Exception):  # noqa: N818  # raised by handlers: it says what happened to the event
    """Raised by a handler to refuse an event. The sender gets it as an ``error``, and the event is not retried.

    ``code``: for programs, in capitals. ``message``: for people. ``retry_after``: seconds after which a retry may
    succeed. :meth:`kraftek.service.Context.request` raises it, too, when the other service answers with an error, or
    not in time.
    """

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retry_after = retry_after


class NoEvent(ValueError):  # noqa: N818  # likewise
    """A message is not an event. No error can be sent, because its sender is unknown."""

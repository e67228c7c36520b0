"""What a conversation tells: to its user (:class:`Message`, :class:`Change`), and to the backend that runs it
(:data:`Action`).
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from msgspec import Struct

from kraftek.client.errors import Closed, Refused

__all__ = ["Action", "Ask", "Change", "Drop", "Dropped", "Hear", "Message", "Open", "Settle", "State"]


class State(Enum):
    """What a client is doing."""

    CLOSED = "closed"
    """Not connected, and stays so until ``connect()``."""
    CONNECTING = "connecting"
    """Asking for a token, opening a socket, authenticating."""
    READY = "ready"
    """Authenticated."""
    WAITING = "waiting"
    """The socket was lost. Another is opened by and by."""


class Message(Struct, frozen=True, rename="camel"):
    """A message of the gateway. ``room_id``: the room to which it was told, if to one."""

    type: str
    payload: Any = None
    id: int | str | None = None
    room_id: str | None = None


class Change(Struct, frozen=True):
    """The client is in another state now. Why: ``code`` and ``reason`` are those with which the last socket closed.

    ``wait``: seconds until the next attempt, when that is ``WAITING``.
    """

    state: State
    code: int = 0
    reason: str = ""
    wait: float = 0.0


# What a backend is to do.


class Ask(Struct, frozen=True):
    """Ask for a token, and give it to :meth:`Conversation.token`. ``refused``: the last one was."""

    attempt: int
    refused: bool


class Open(Struct, frozen=True):
    """Open a socket, and tell :meth:`Conversation.opened` or :meth:`Conversation.lost`."""

    attempt: int


class Drop(Struct, frozen=True):
    """Send ``last`` if the socket is open, close it with code 1000, or stop opening it."""

    attempt: int
    last: tuple[bytes, ...] = ()


class Settle(Struct, frozen=True):
    """What became of ``request()``, ``join()`` or ``leave()``."""

    id: str
    outcome: Message | Refused | Closed | None


class Hear(Struct, frozen=True):
    """A message that answers nothing: for whoever listens."""

    message: Message


class Dropped(Struct, frozen=True):
    """An event that was not sent and will not be: for whoever listens."""

    message: Message


Action = Ask | Open | Drop | Settle | Hear | Change | Dropped

"""The outputs of a conversation: for its user (:class:`Message`, :class:`Change`, :class:`Recovered`,
:class:`Presence`), and for the backend that runs it (:data:`Action`).
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from msgspec import Struct, field

from kraftek.client.errors import Closed, Refused

__all__ = [
    "Action",
    "Append",
    "Ask",
    "Change",
    "Drop",
    "Dropped",
    "Fetch",
    "Hear",
    "Message",
    "Open",
    "Part",
    "Presence",
    "Recovered",
    "Settle",
    "State",
]


class State(Enum):
    """What a client is doing."""

    CLOSED = "closed"
    """Not connected, and stays so until ``connect()``."""
    CONNECTING = "connecting"
    """Asking for a token, opening a socket, authenticating."""
    READY = "ready"
    """Authenticated."""
    WAITING = "waiting"
    """The socket was lost. Another one is opened after a back-off."""


class Append(Struct, frozen=True, rename={"first": "from"}):
    """A message is a piece of the text ``key`` of its room. ``text``: all of it up to here; ``None`` if its beginning
    was not heard. ``last``: it ends here. ``first``: the payload is no piece, but the text since that offset.
    """

    key: str
    first: int | None = None
    last: bool = False
    text: str | None = None


class Message(Struct, frozen=True, rename="camel"):
    """A message of the gateway. ``room_id``: the room to which it was sent, if any; ``offset``: its place in the
    history of that room, if the gateway keeps one; ``user_offset``: in that of the user. ``run``, ``number``: as of a
    :class:`Part`. ``receipt``: who sent it wants to know whether it was handled; the client says so under this number
    when listeners have returned. ``append``: it is a piece of a text.
    """

    type: str
    payload: Any = None
    id: int | str | None = None
    room_id: str | None = None
    offset: int | None = None
    run: str | None = None
    number: int | None = None
    user_offset: int | None = None
    receipt: int | None = None
    append: Append | None = None


class Part(Struct, frozen=True):
    """A part of an answer. ``number``: of those of one run of the service's handler; one with 1 begins anew."""

    id: str
    payload: Any
    run: str
    number: int


class Recovered(Struct, frozen=True):
    """A room was entered again, or the gateway had lost something itself. ``recovered``: all that was missed follows,
    and is heard in order; otherwise the state is to be fetched. ``reason``: the gateway's, or ``too_many``. Without a
    room it is about what the user is told, where that has a history.
    """

    room_id: str | None
    recovered: bool
    reason: str | None = None


class Presence(Struct, frozen=True):
    """Who is in a room. ``users``: each with what it shows of itself there, ``None`` for nothing; ``count``: how many
    there are, which may be more. ``joined``, ``left``: what is different from the last time; one of whom only the data
    is another has joined.
    """

    room_id: str
    users: dict[str, Any]
    count: int
    joined: dict[str, Any] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


class Change(Struct, frozen=True):
    """The client is in another state now. ``code`` and ``reason`` are those with which the last socket was closed.

    ``wait``: seconds until the next attempt, when that is ``WAITING``.
    """

    state: State
    code: int = 0
    reason: str = ""
    wait: float = 0.0


# Actions of a backend


class Ask(Struct, frozen=True):
    """Ask for a token, and pass it to :meth:`Conversation.token`. ``refused``: the last token was refused."""

    attempt: int
    refused: bool


class Open(Struct, frozen=True):
    """Open a socket, and call :meth:`Conversation.opened` or :meth:`Conversation.lost`."""

    attempt: int


class Drop(Struct, frozen=True):
    """Send ``last`` if the socket is open, close it with code 1000, or stop opening it."""

    attempt: int
    last: tuple[bytes, ...] = ()


class Settle(Struct, frozen=True):
    """The result of ``request()``, ``join()`` or ``leave()``."""

    id: str
    outcome: Message | Refused | Closed | None


class Hear(Struct, frozen=True):
    """A message that answers no request: for listeners."""

    message: Message


class Dropped(Struct, frozen=True):
    """An event that was not sent and will not be: for listeners."""

    message: Message


class Fetch(Struct, frozen=True):
    """Fetch a state, and call :meth:`Recovery.fetched`. ``id``: of :meth:`Recovery.snapshot`."""

    id: str


Action = Ask | Open | Drop | Settle | Part | Hear | Change | Dropped | Recovered | Presence | Fetch

"""A POST of a polling client, whose messages are handed on a few at a time.

Made by :mod:`kraftek.edge.engineio.clients`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from kraftek.edge.engineio.packets import EngineError, Message
from kraftek.edge.turns import STEP, Turns

__all__ = ["Post", "Posted", "Poster"]

Posted = Callable[[EngineError | None], None]
"""Answers a POST: with ok, or with the error."""


class Poster(Protocol):
    """The client. ``post``: this one, until it is answered. ``reasons``: why it is not read now, 0 when it is."""

    post: Post | None
    reasons: int

    def receive(self, data: bytes, binary: bool) -> None:
        """A message arrived."""

    def charge(self, events: int, size: int) -> None:
        """Something arrived that is no message."""

    def flush(self) -> None:
        """Send what the messages brought."""

    def posted(self) -> None:
        """All is handled. Send what that brought."""

    def close(self, code: int, reason: str) -> None:
        """Close the connection."""


class Post:
    """One POST, from its head on. ``answer`` is called when all is handled: the client may send the next one."""

    __slots__ = ("_answer", "_client", "_messages", "_stepping", "_turns")

    def __init__(self, client: Poster, answer: Posted, turns: Turns) -> None:
        self._client = client
        self._answer = answer
        self._turns = turns
        self._messages: Iterator[Message | None] | None = None
        self._stepping = False

    def begin(self, messages: Iterator[Message | None]) -> None:
        """The body has arrived, with these packets in it, ``None`` for one without a message."""
        self._messages = messages
        self._turns.start(self)

    def go(self) -> None:
        """The client is read again."""
        if not self._stepping:
            self._turns.start(self)

    # What the turns call.

    def step(self) -> bool:
        client, messages = self._client, self._messages
        if messages is None or client.reasons or client.post is not self:
            return False
        error, over = None, False
        self._stepping = True
        try:
            for _ in range(STEP):
                message = next(messages)
                if message is not None:
                    client.receive(*message)
                else:
                    client.charge(1, 0)
                if client.reasons:
                    break
        except StopIteration:
            over = True
        except EngineError as wrong:
            error, over = wrong, True
        if over:
            self._finish(error)
        else:
            client.flush()
        self._stepping = False
        return not over and not client.reasons

    def rest(self) -> None:
        """The client's next POST is another one."""

    def failed(self) -> None:
        self._finish(None)
        self._client.close(1011, "INTERNAL")

    def _finish(self, error: EngineError | None) -> None:
        self._client.posted()
        self._answer(error)

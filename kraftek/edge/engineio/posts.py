"""What polling clients post: kept within a bound, and handed on a few messages at a time.

Made by :mod:`kraftek.edge.engineio.clients`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from kraftek.contract.metrics import Counters
from kraftek.contract.turns import STEP, Turns
from kraftek.edge.addresses import network
from kraftek.edge.engineio.packets import EngineError, ErrorCode, Message

__all__ = ["Post", "Posted", "Poster", "Posts"]

Posted = Callable[[EngineError | None], None]
"""Answers a POST: with ok, or with the error."""


MOST = 67_108_864
"""Bytes of the bodies that all clients together have posted and that are not handled. Beyond them the largest is given
up of the address that has most: many clients of one cannot take the room of the others."""

TOO_MUCH = EngineError(ErrorCode.FORBIDDEN, "too much waits to be handled", 503)


class Poster(Protocol):
    """The client. ``post``: this one, until it is answered. ``reasons``: why it is not read now, 0 when it is."""

    peer: str
    post: Post | None
    reasons: int

    def receive(self, data: bytes, binary: bool) -> None:
        """A message arrived."""

    def charge(self, events: int, size: int) -> None:
        """Something arrived that is no message."""

    def flush(self) -> None:
        """Send what the messages brought."""

    def packets(self, body: bytes) -> Iterator[Message | None]:
        """What is in a body: messages, and ``None`` for each packet without one. Raises :class:`EngineError`."""

    def posted(self) -> None:
        """All is handled. Send what that brought."""

    def close(self, code: int, reason: str) -> None:
        """Close the connection."""


class Posts:
    """The POSTs of this process that are not handled: how many bytes they have, and whose turn it is."""

    def __init__(self, turns: Turns, counters: Counters) -> None:
        self.turns = turns
        self.counters = counters
        self._total = 0
        # By addresses, each with its bodies from the oldest on.
        self._sizes: dict[str, dict[Post, int]] = {}

    def keep(self, post: Post, size: int) -> None:
        """It has so many bytes that are not handled, 0 when there are none any more."""
        sizes = self._sizes.setdefault(post.address, {})
        self._total += size - sizes.get(post, 0)
        if size:
            sizes[post] = size
        else:
            sizes.pop(post, None)
            if not sizes:
                del self._sizes[post.address]
        self.turns.keep(post, size)
        while self._total > MOST:
            most = max(self._sizes.values(), key=lambda its: sum(its.values()))
            max(most, key=most.__getitem__).give_up()


class Post:
    """One POST of a client, from its head on. ``answer`` is called when all is handled: then the next one may come."""

    __slots__ = ("_answer", "_body", "_client", "_messages", "_posts", "_stepping", "address")

    def __init__(self, client: Poster, answer: Posted, posts: Posts) -> None:
        self.address = network(client.peer)
        self._client = client
        self._answer = answer
        self._posts = posts
        self._body: bytearray | None = bytearray()
        self._messages: Iterator[Message | None] | None = None
        self._stepping = False

    def add(self, data: bytes) -> None:
        """Some of the body arrived."""
        if self._body is not None:
            self._body += data
            self._posts.keep(self, len(self._body))

    def arrived(self) -> None:
        """That was all of it."""
        if self._client.post is self:
            body, self._body = bytes(self._body or b""), None
            self._messages = self._client.packets(body)
            self._posts.turns.start(self)

    def go(self, *, slowed: bool) -> None:
        """The client is read again. ``slowed``: it was not because it had sent more than its share."""
        if not self._stepping:
            (self._posts.turns.add if slowed else self._posts.turns.start)(self)

    def drop(self) -> None:
        """What arrives of it, or has, is of no use any more."""
        self._body = None
        self._posts.keep(self, 0)

    def give_up(self) -> None:
        """There is no room for it: the client is told, and has to connect again."""
        self._posts.counters.posts_refused += 1
        self._finish(TOO_MUCH)
        self._client.close(1013, "OVERLOADED")

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
        self.drop()
        self._messages = None
        self._client.posted()
        self._answer(error)

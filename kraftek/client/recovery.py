"""What a client has heard of each room and of its user, what it missed, and who fetches the state of either:
docs/client-protocol.rst.

Used by :class:`kraftek.client.conversation.Conversation`. Times are in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import Struct, field

from kraftek.client.deadlines import Deadlines
from kraftek.client.frames import check_room, frame
from kraftek.client.history import PAGE, Position
from kraftek.client.messages import Action, Fetch, Hear, Message, Recovered
from kraftek.client.outbox import Kind, Outbox
from kraftek.client.texts import Texts

__all__ = ["HELD", "NO_SNAPSHOT", "Recovery"]

HELD = 1024 * 1024
"""Bytes of a topic's messages that may wait until its state is fetched."""

_FORMER_SOCKETS = 8
"""A message that excludes one of so many sockets that were the client's before is not for it."""

_FIRST_WAIT = 1.0
_LONGEST_WAIT = 30.0
"""Seconds: the bounds of the back-off after a state could not be fetched, which doubles with each failure."""

NO_SNAPSHOT = "NO_SNAPSHOT"
"""The code of the error that a state could not be fetched."""

_FETCH = "fetch "
"""The prefix of a snapshot's id for the deadline at which it is fetched again."""


class _Snapshot(Struct):
    """``due``: it is to be fetched. ``busy``: that is under way; if it is ``due`` as well, once more after that."""

    room_id: str | None
    due: bool = True
    busy: bool = False
    failures: int = 0


class _Feed(Struct):
    """What was heard of one topic: a room, or the user. ``known``: it was entered and not left since; ``entered``: on
    this socket.
    """

    position: Position | None = None
    known: bool = False
    entered: bool = False
    snapshots: dict[str, _Snapshot] = field(default_factory=dict)
    held: deque[tuple[Message, int]] = field(default_factory=deque)
    size: int = 0
    texts: Texts = field(default_factory=Texts)

    @property
    def busy(self) -> bool:
        """Whether somebody fetches its state."""
        return any(each.busy for each in self.snapshots.values())

    def is_stale(self) -> None:
        """Messages may have been missed."""
        for each in self.snapshots.values():
            each.due = True

    def give_up(self) -> None:
        """Forget what waits."""
        self.held.clear()
        self.size = 0


class Recovery:
    """The positions in the histories of rooms and of the user, what is asked of these, and the snapshots of states. The
    user's have no room: ``None``.

    ``random`` returns numbers from 0 to 1; ``check_space`` raises if so many requests are too many; the rest is the
    conversation's own. ``last``: how many messages a room was told before are to come first, unless what was missed
    since does.
    """

    def __init__(
        self,
        random: Callable[[], float],
        actions: deque[Action],
        deadlines: Deadlines,
        ids: Iterator[str],
        outbox: Outbox,
        check_space: Callable[[int], None],
    ) -> None:
        self.last: dict[str | None, int] = {}
        self._outbox = outbox
        self._check_space = check_space
        self._random = random
        self._actions = actions
        self._deadlines = deadlines
        self._ids = ids
        self._feeds: dict[str | None, _Feed] = {}
        self._snapshots: dict[str, _Snapshot] = {}
        self._former_sockets: deque[str] = deque(maxlen=_FORMER_SOCKETS)

    def since(self, room_id: str | None) -> dict[str, Any]:
        """What the gateway is told, beside the room's name, of what was heard before, and what is to come first;
        nothing on the same socket, and nothing of the former to a gateway that keeps no history of the room.
        """
        feed = None if room_id is None else self._feeds.get(room_id)
        if feed is not None and feed.entered:
            return {}
        told = self._place("since", feed)
        if room_id in self.last:
            told["history"] = self.last[room_id]
        return told

    def user_since(self) -> dict[str, Any]:
        """The same of the user."""
        return self._place("userSince", self._feeds.get(None))

    def ask(self, due: float, room_id: str, before: Position | None, limit: int | None) -> str:
        """Ask for messages that a room was told before: a page is settled under the id returned, at ``due`` at the
        latest. Raises as ``request``.
        """
        check_room(room_id)
        self._check_space(self._outbox.pending)
        optional = {"before": before, "limit": limit, "socketIds": [*self._former_sockets] or None}
        asked = {"roomId": room_id, **{name: value for name, value in optional.items() if value is not None}}
        key = next(self._ids) + PAGE
        self._outbox.put(key, Kind.REQUEST, frame("history", asked, key), room_id)
        self._deadlines.set(key, due)
        return key

    def another_user(self) -> None:
        """Another user has heard nothing, and what excluded our sockets did not exclude theirs."""
        self._former_sockets.clear()
        for feed in self._feeds.values():
            feed.position = None

    def entered(self, room_id: str | None, payload: Any) -> None:
        """The gateway has let it into the room, with this payload; or it is the user, and this is the user's place."""
        feed = self._feed(room_id)
        if not feed.entered:
            feed.entered = True
            self._is_at(room_id, feed, payload)

    def left(self, room_id: str) -> None:
        """The room is not to be entered again, or was refused."""
        self.last.pop(room_id, None)
        if (feed := self._feeds.get(room_id)) is not None:
            feed.position, feed.known, feed.entered = None, False, False
            feed.texts.forget()
            feed.give_up()
            feed.is_stale()
            self._forget_if_unused(room_id, feed)

    def socket_lost(self, socket_id: str | None) -> None:
        """The socket was lost; ``socket_id``: its name, if it was authenticated."""
        if socket_id is not None:
            self._former_sockets.append(socket_id)
        for feed in self._feeds.values():
            feed.entered = False
        for key in self._snapshots:
            self._deadlines.cancel(_FETCH + key)

    def hear(self, message: Message, size: int) -> None:
        """A message came that answers nothing: it is heard once, and not before the state of its room, or of the user,
        which may be from before the message. ``size``: its bytes.
        """
        room_id = message.room_id
        offset = message.user_offset if room_id is None else message.offset
        feed = self._feeds.get(room_id)
        if feed is None:
            self._actions.append(Hear(message))
            return
        if message.type == "position" and feed.entered and _position(message.payload) is not None:
            self._is_at(room_id, feed, message.payload)
        if feed.position is not None and offset is not None:
            if offset <= feed.position.offset:
                return
            feed.position = Position(feed.position.epoch, offset)
        message = feed.texts.add(message)
        # What the gateway itself says outside of rooms is about the connection.
        if not feed.busy or (room_id is None and ":" not in message.type):
            self._actions.append(Hear(message))
            return
        feed.held.append((message, size))
        feed.size += size
        if feed.size > HELD:
            feed.give_up()
            feed.is_stale()
            self._actions.append(Recovered(room_id, recovered=False, reason="too_many"))

    # The state of a room, or of the user

    def snapshot(self, room_id: str | None) -> str:
        """Somebody wants to fetch a state whenever it must be: each :class:`Fetch` has the id returned."""
        key = next(self._ids)
        feed = self._feed(room_id)
        feed.snapshots[key] = self._snapshots[key] = _Snapshot(room_id)
        self._fetch_due(feed)
        return key

    def no_snapshot(self, key: str) -> None:
        """Nobody wants that any more."""
        if (snapshot := self._snapshots.pop(key, None)) is not None:
            feed = self._feeds[snapshot.room_id]
            del feed.snapshots[key]
            self._deadlines.cancel(_FETCH + key)
            self._release(feed)
            self._forget_if_unused(snapshot.room_id, feed)

    def fetched(self, key: str, error: BaseException | None, now: float) -> None:
        """The state was fetched, or could not be: then it is tried again when the room is entered again, and on this
        socket after a while.
        """
        if (snapshot := self._snapshots.get(key)) is None:
            return
        feed = self._feeds[snapshot.room_id]
        snapshot.busy = False
        if error is not None:
            snapshot.due = True
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(snapshot.failures, 10))
            snapshot.failures += 1
            if feed.entered:
                wait = max(wait, getattr(error, "retry_after", None) or 0.0) * (1.0 + self._random())
                self._deadlines.set(_FETCH + key, now + wait)
                whose = "user" if snapshot.room_id is None else "room"
                text = f"the state of the {whose} could not be fetched: {error}"
                why = {"code": NO_SNAPSHOT, "message": text}
                self._actions.append(Hear(Message("error", why, None, snapshot.room_id)))
        else:
            snapshot.failures = 0
        self._release(feed)
        if error is None:
            self._fetch(key, feed)

    def wake(self, key: str) -> bool:
        """The time of this name has come. Whether it is that of a snapshot."""
        if not key.startswith(_FETCH):
            return False
        key = key.removeprefix(_FETCH)
        self._fetch(key, self._feeds[self._snapshots[key].room_id])
        return True

    def _place(self, name: str, feed: _Feed | None) -> dict[str, Any]:
        if feed is None or feed.position is None:
            return {}
        return {name: {**msgspec.to_builtins(feed.position), "socketIds": [*self._former_sockets]}}

    def _feed(self, room_id: str | None) -> _Feed:
        return self._feeds.setdefault(room_id, _Feed())

    def _forget_if_unused(self, room_id: str | None, feed: _Feed) -> None:
        if not feed.known and not feed.snapshots:
            del self._feeds[room_id]

    def _is_at(self, room_id: str | None, feed: _Feed, payload: Any) -> None:
        """The gateway says from where a topic goes on, and whether nothing, or all that follows, was missed."""
        told = payload if isinstance(payload, dict) else {}
        recovered, reason = told.get("recovered") is True, told.get("reason")
        # Where users have no history nothing is said of theirs: each connection would be news.
        news = feed.known and (room_id is not None or feed.position is not None or bool(told))
        feed.known, feed.position = True, _position(payload)
        if news:
            self._actions.append(Recovered(room_id, recovered, reason))
        if reason == "unavailable" and feed.position is None:
            return  # the gateway cannot know yet: a "position" follows
        if not recovered:
            feed.texts.forget()
            feed.is_stale()
        self._fetch_due(feed)

    def _fetch_due(self, feed: _Feed) -> None:
        for key in feed.snapshots:
            self._fetch(key, feed)

    def _fetch(self, key: str, feed: _Feed) -> None:
        snapshot = feed.snapshots[key]
        if feed.entered and snapshot.due and not snapshot.busy:
            snapshot.due, snapshot.busy = False, True
            self._actions.append(Fetch(key))

    def _release(self, feed: _Feed) -> None:
        if not feed.busy:
            self._actions.extend(Hear(message) for message, _ in feed.held)
            feed.give_up()


def _position(payload: Any) -> Position | None:
    """Of what the gateway says of a topic; ``None`` where it keeps no history."""
    try:
        return msgspec.convert(payload, Position)
    except msgspec.ValidationError:
        return None

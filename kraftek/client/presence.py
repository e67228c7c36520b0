"""Who is in the rooms of a client, as far as the gateway tells: docs/client-protocol.rst, "Who is in a room".

Used by :class:`kraftek.client.conversation.Conversation`. Times are in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType, field

from kraftek.client.deadlines import Deadlines
from kraftek.client.frames import frame, is_held_up
from kraftek.client.messages import Action, Hear, Message, Presence
from kraftek.client.outbox import Kind, Outbox
from kraftek.contract.messages import ReceivedError

__all__ = ["Watching"]

_AGAIN = "presence "
"""The prefix of a room for the deadline after which the gateway is asked again."""

_LATER = {"SERVICE_UNAVAILABLE", "AUTH_UNAVAILABLE", "TOKEN_EXPIRED"}


class _User(Struct, rename="camel"):
    user_id: str
    data: Any = None


class _Told(Struct, rename="camel"):
    """What the gateway tells. Without ``users`` it is a change, or what is known is right."""

    count: int
    version: str | None = None
    users: list[_User] | UnsetType = UNSET
    joined: list[_User] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class _Watched(Struct):
    """One room. ``version``: that of the users and of the count; none before anything is known. ``asked``: the id of
    the question under way.
    """

    users: dict[str, Any] = field(default_factory=dict)
    count: int = 0
    version: str | None = None
    known: bool = False
    asked: str | None = None


class Watching:
    """The rooms of which somebody wants to know who is there. The gateway is asked about each once it is entered, on
    each socket, and tells of changes then.

    ``random`` returns numbers from 0 to 1; the rest is the conversation's own.
    """

    def __init__(
        self,
        random: Callable[[], float],
        actions: deque[Action],
        deadlines: Deadlines,
        outbox: Outbox,
        ids: Iterator[str],
    ) -> None:
        self._random = random
        self._actions = actions
        self._deadlines = deadlines
        self._outbox = outbox
        self._ids = ids
        self._rooms: dict[str, _Watched] = {}
        self._entered: set[str] = set()

    def watch(self, room_id: str) -> None:
        """Somebody wants to know it of this room."""
        self._rooms[room_id] = _Watched()
        self._ask(room_id)

    def unwatch(self, room_id: str) -> None:
        """Nobody wants to know it any more."""
        watched = self._rooms.pop(room_id)
        self._deadlines.cancel(_AGAIN + room_id)
        if watched.asked is not None:
            self._outbox.discard(watched.asked)
        if room_id in self._entered:
            payload = {"roomId": room_id, "changes": False, "version": watched.version}
            self._put({key: value for key, value in payload.items() if value is not None})

    def now(self, room_id: str) -> Presence | None:
        """Who is there, if that is known."""
        watched = self._rooms[room_id]
        return Presence(room_id, {**watched.users}, watched.count, {**watched.users}) if watched.known else None

    def entered(self, room_id: str) -> None:
        """The gateway has let it into the room."""
        if room_id not in self._entered:
            self._entered.add(room_id)
            self._ask(room_id)

    def left(self, room_id: str) -> None:
        """It is out of the room: nobody is known to be there."""
        self._entered.discard(room_id)
        if (watched := self._rooms.get(room_id)) is not None:
            self._deadlines.cancel(_AGAIN + room_id)
            watched.version, watched.asked = None, None

    def socket_lost(self) -> None:
        """It is in no room now. What is known is taken for right until the gateway says something else."""
        for room_id in self._entered & self._rooms.keys():
            self._deadlines.cancel(_AGAIN + room_id)
            self._rooms[room_id].asked = None
        self._entered.clear()

    def answered(self, message: Message, error: ReceivedError | None, now: float) -> None:
        """The gateway's answer to a question, unless nobody wants to know it any more."""
        room_id = next((room_id for room_id, each in self._rooms.items() if each.asked == message.id), None)
        if room_id is None:
            return
        self._rooms[room_id].asked = None
        if error is None:
            self._tell(room_id, message.payload)
        elif error.code in _LATER or is_held_up(error):
            wait = max(1.0, error.retry_after or 0.0) * (1.0 + self._random())
            self._deadlines.set(_AGAIN + room_id, now + wait)
        else:
            self._actions.append(Hear(msgspec.structs.replace(message, id=None, room_id=room_id)))

    def hear(self, message: Message) -> None:
        """A change."""
        if message.room_id in self._rooms:
            self._tell(message.room_id, message.payload)

    def wake(self, key: str) -> bool:
        """The time of this name has come. Whether it is that of a question."""
        if not key.startswith(_AGAIN):
            return False
        self._ask(key.removeprefix(_AGAIN))
        return True

    def _ask(self, room_id: str) -> None:
        watched = self._rooms.get(room_id)
        if watched is not None and room_id in self._entered and watched.asked is None:
            version = {} if watched.version is None else {"version": watched.version}
            watched.asked = self._put({"roomId": room_id, **version})

    def _put(self, payload: dict[str, Any]) -> str:
        key = next(self._ids)
        self._outbox.put(key, Kind.CONTROL, frame("presence", payload, key))
        return key

    def _tell(self, room_id: str, payload: Any) -> None:
        try:
            told = msgspec.convert(payload, _Told)
        except msgspec.ValidationError:
            return  # no gateway of ours says that
        watched = self._rooms[room_id]
        if told.users is UNSET and not watched.known:
            return  # a change of what somebody has asked before, who wants to know it no more
        users = {**watched.users, **_shown(told.joined)} if told.users is UNSET else _shown(told.users)
        for user_id in told.left:
            users.pop(user_id, None)
        before, count, known = watched.users, watched.count, watched.known
        watched.users, watched.count, watched.version, watched.known = users, told.count, told.version, True
        joined = {each: data for each, data in users.items() if each not in before or before[each] != data}
        left = [each for each in before if each not in users]
        if joined or left or not known or count != told.count:
            self._actions.append(Presence(room_id, {**users}, told.count, joined, left))


def _shown(users: Iterable[_User]) -> dict[str, Any]:
    return {user.user_id: user.data for user in users}

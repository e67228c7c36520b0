"""Messages that a client has yet to send, while it is offline or its socket is slow, or may have to send again.

Used by :class:`kraftek.client.conversation.Conversation`.
"""

from __future__ import annotations

import secrets
from collections.abc import Container, Iterator, Mapping
from enum import Enum
from itertools import count

import msgspec
from msgspec import Raw, Struct

__all__ = ["Kind", "Outbox", "ids"]


class Kind(Enum):
    """What happens to a message when its socket is lost."""

    EVENT = "event"
    """Sent once: it is lost with the socket."""
    REQUEST = "request"
    """Sent again on every socket, until it is discarded."""
    CONTROL = "control"
    """``join``, ``leave`` and the like, which are about one socket: not sent on another."""
    VOLATILE = "volatile"
    """An event for which another socket is too late."""
    CANCEL = "cancel"
    """About a request that was sent on this socket or an earlier one: it waits for the next. What was sent just before
    the socket was lost may not have been read: unless it is discarded, it is sent on another one, too."""
    CANCEL_AGAIN = "cancel again"
    """The same, the second time."""


_OF_THE_SOCKET = {Kind.CONTROL, Kind.VOLATILE}
_ANYWHERE = {Kind.CONTROL, Kind.CANCEL, Kind.CANCEL_AGAIN}

_CANCELS = 256
"""Cancels that were sent and are remembered, at most."""


class _Unsent(Struct, frozen=True):
    """``room_id``: the room that it names. A request that was sent has the default room of that time."""

    kind: Kind
    frame: bytes
    room_id: str | None = None


class _Place(Struct):
    run: str
    number: int


_encode = msgspec.json.Encoder().encode


class Outbox:
    """Messages by id, in the order of the calls: those still to be sent, and the requests sent on this socket.

    A request that names no room is sent for the room that is the default when it is sent for the first time: sent again
    for another one, it would be another request. What is for a room that is ``closed`` waits; the rest overtakes it.
    """

    def __init__(self) -> None:
        self._unsent: dict[str, _Unsent] = {}
        self._unanswered: dict[str, _Unsent] = {}
        # Requests that were sent, and are to be sent once more because the gateway has refused them for a while.
        self._refused: dict[str, _Unsent] = {}
        # Cancels that were sent on this socket, and not confirmed.
        self._cancels: dict[str, _Unsent] = {}
        # Requests that were sent when there was no room.
        self._nowhere: set[str] = set()
        # The longest message on this socket: if the gateway closes it with 1009, this one was too large.
        self._longest: tuple[int, str, _Unsent | None] = (0, "", None)
        self.events = 0
        """How many events wait."""

    @property
    def pending(self) -> int:
        """How many requests have no answer."""
        return (
            len(self._unanswered)
            + len(self._refused)
            + sum(each.kind is Kind.REQUEST for each in self._unsent.values())
        )

    def is_behind(self, room_id: str | None = None, closed: Container[str] = ()) -> bool:
        """Whether something waits that was to be sent by now: the socket, or the gateway, takes no more."""
        return bool(self._refused) or self._next(room_id, closed) is not None

    @property
    def is_from_nowhere(self) -> bool:
        """Whether some request is to be sent again from no room."""
        return bool(self._nowhere)

    def put(self, key: str, kind: Kind, frame: bytes, room_id: str | None = None) -> None:
        """Send it after everything else. ``room_id``: the room that it names, if it does."""
        self._unsent[key] = _Unsent(kind, frame, room_id)
        self.events += kind is Kind.EVENT

    def put_first(self, controls: Mapping[str, bytes]) -> None:
        """Send these before everything else but requests from no room."""
        nowhere = {key: message for key, message in self._unsent.items() if key in self._nowhere}
        before = {key: _Unsent(Kind.CONTROL, frame) for key, frame in controls.items()}
        self._unsent = nowhere | before | {key: self._unsent[key] for key in self._unsent if key not in nowhere}

    def take(self, room_id: str | None = None, closed: Container[str] = ()) -> bytes | None:
        """The next one to send on this socket; ``None`` when there is none. ``room_id``: the default room."""
        if self._refused:
            key = next(iter(self._refused))
            message = self._unanswered[key] = self._refused.pop(key)
            return message.frame
        next_key = self._next(room_id, closed)
        return None if next_key is None else self._take(next_key, room_id)

    def take_control(self) -> bytes | None:
        """The next one of those that are about this socket, unless requests from no room are to be sent before."""
        return None if self._nowhere else self.take_early()

    def take_early(self) -> bytes | None:
        """The next one of those that do not wait for rooms to be entered."""
        keys = (key for key, each in self._unsent.items() if each.kind is Kind.CONTROL or key in self._nowhere)
        key = next(keys, None)
        return None if key is None else self._take(key, None)

    def take_events(self, room_id: str | None = None, closed: Container[str] = ()) -> tuple[bytes, ...]:
        """All events that are still to be sent; nothing else is sent before them."""
        events = {key: each for key, each in self._unsent.items() if each.kind is Kind.EVENT}
        keys = [key for key, each in events.items() if (each.room_id or room_id) not in closed]
        self.events -= len(keys)
        return tuple(self._unsent.pop(key).frame for key in keys)

    def refuse(self, key: str) -> None:
        """The gateway has refused a request of this socket for a while: send it again, before what is unsent."""
        self._refused[key] = self._unanswered.pop(key)

    def discard(self, key: str) -> None:
        """Neither send a request, a control message or a cancel nor send it again."""
        self._unsent.pop(key, None)
        self._cancels.pop(key, None)
        self._refused.pop(key, None)
        self._unanswered.pop(key, None)
        self._nowhere.discard(key)

    def sent(self, key: str) -> bytes | None:
        """A request that was sent, on this socket or an earlier one."""
        sent, unsent = self._unanswered.get(key), self._unsent.get(key)
        if unsent is not None and unsent.frame.endswith(_RESENT + b"}"):
            sent = unsent
        return None if sent is None else sent.frame

    def ask_for_parts(self, key: str) -> None:
        """The answer to this request, which is yet to be sent, may come in parts."""
        message = self._unsent[key]
        self._unsent[key] = _Unsent(message.kind, _with(message.frame, b'"progress":true'), message.room_id)

    def progressed(self, key: str, run: str, number: int) -> bool:
        """A request of this socket has had this part of its answer: sent again, it asks for those after it. ``False``
        if it has had it before.
        """
        message = self._unanswered[key]
        members = msgspec.json.decode(message.frame, type=dict[str, Raw])
        had = msgspec.json.decode(members["progress"], type=bool | _Place)
        if isinstance(had, _Place) and had.run == run and number <= had.number:
            return False
        resent = members.pop("resent", None)
        members["progress"] = Raw(_encode(_Place(run, number)))
        frame = _encode(members | ({} if resent is None else {"resent": resent}))
        self._unanswered[key] = _Unsent(Kind.REQUEST, frame, message.room_id)
        return True

    def is_request(self, key: str) -> bool:
        """Whether this is a request that was neither answered nor discarded."""
        if key in self._unanswered or key in self._refused:
            return True
        return key in self._unsent and self._unsent[key].kind is Kind.REQUEST

    def is_unanswered(self, key: object) -> bool:
        """Whether this is a request that was sent on this socket."""
        return key in self._unanswered

    def requests(self) -> list[str]:
        """All requests that were neither answered nor discarded."""
        unsent = (key for key, each in self._unsent.items() if each.kind is Kind.REQUEST)
        return [*self._unanswered, *self._refused, *unsent]

    def too_large(self) -> tuple[str, bytes | None]:
        """The longest message of this socket: its id if it was a request that has no answer, itself if an event."""
        _, key, message = self._longest
        event = message is not None and message.kind in {Kind.EVENT, Kind.VOLATILE}
        return key if key in self._unanswered else "", message.frame if message is not None and event else None

    def socket_lost(self) -> None:
        """Unanswered requests are sent again, before the rest."""
        again = {
            key: _Unsent(Kind.REQUEST, _resent(each.frame), each.room_id) for key, each in self._unanswered.items()
        }
        rest = {key: message for key, message in self._unsent.items() if message.kind not in _OF_THE_SOCKET}
        self._unsent = again | self._refused | self._cancels | rest
        self._unanswered, self._refused, self._cancels, self._longest = {}, {}, {}, (0, "", None)

    def clear(self) -> None:
        """Remove everything."""
        self._unsent, self._unanswered, self._refused, self._cancels = {}, {}, {}, {}
        self._nowhere.clear()
        self._longest, self.events = (0, "", None), 0

    def _next(self, room_id: str | None, closed: Container[str]) -> str | None:
        for key, message in self._unsent.items():
            if message.kind in _ANYWHERE or key in self._nowhere or (message.room_id or room_id) not in closed:
                return key
        return None

    def _take(self, key: str, room_id: str | None) -> bytes:
        message = self._unsent.pop(key)
        self.events -= message.kind is Kind.EVENT
        frame = message.frame
        if message.kind is Kind.REQUEST:
            if message.room_id is None and key not in self._nowhere:  # it was not sent before
                if room_id is None:
                    self._nowhere.add(key)
                else:
                    frame = _with(frame, b'"roomId":' + _encode(room_id))
                message = _Unsent(Kind.REQUEST, frame, room_id)
            self._unanswered[key] = message
        elif message.kind is Kind.CANCEL:
            if len(self._cancels) == _CANCELS:
                del self._cancels[next(iter(self._cancels))]
            self._cancels[key] = _Unsent(Kind.CANCEL_AGAIN, frame)
        if len(frame) > self._longest[0]:
            self._longest = len(frame), key, message
        return frame


_RESENT = b'"resent":true'


def _resent(frame: bytes) -> bytes:
    """The same request, sent again."""
    return frame if frame.endswith(_RESENT + b"}") else _with(frame, _RESENT)


def _with(frame: bytes, member: bytes) -> bytes:
    """The JSON object with one member more."""
    return b"%b,%b}" % (frame[:-1], member)


def ids() -> Iterator[str]:
    """Ids without end, unique among all clients of a user, also among those in other processes."""
    name = secrets.token_hex(8)
    return (f"{name}-{number}" for number in count(1))

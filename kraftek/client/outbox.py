"""Messages that a client has yet to send, while it is offline or its socket is slow, or may have to send again.

Used by :class:`kraftek.client.conversation.Conversation`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import msgspec

__all__ = ["Kind", "Outbox"]


class Kind(Enum):
    """What happens to a message when its socket is lost."""

    EVENT = "event"
    """Sent once: it is lost with the socket."""
    REQUEST = "request"
    """Sent again on every socket, until it is discarded."""
    CONTROL = "control"
    """``join`` and ``leave``, which are about one socket: not sent on another."""
    VOLATILE = "volatile"
    """An event for which another socket is too late."""


_OF_THE_SOCKET = {Kind.CONTROL, Kind.VOLATILE}

_encode = msgspec.json.Encoder().encode


class Outbox:
    """Messages by id, in the order of the calls: those still to be sent, and the requests sent on this socket.

    A request that names no room is sent for the room that is the default when it is sent for the first time: sent again
    for another one, it would be another request.
    """

    def __init__(self) -> None:
        self._unsent: dict[str, tuple[Kind, bytes]] = {}
        self._unanswered: dict[str, bytes] = {}
        # Requests that were sent, and are to be sent once more because the gateway has refused them for a while.
        self._refused: dict[str, bytes] = {}
        # Requests that name no room and were not sent yet, and those that were sent when there was none.
        self._roomless: set[str] = set()
        self._nowhere: set[str] = set()
        # The longest message on this socket: if the gateway closes it with 1009, this one was too large.
        self._longest = (0, "")

    def __len__(self) -> int:
        return len(self._unsent) + len(self._unanswered) + len(self._refused)

    @property
    def is_behind(self) -> bool:
        """Whether something waits that was to be sent by now: the socket, or the gateway, takes no more."""
        return bool(self._unsent or self._refused)

    @property
    def is_from_nowhere(self) -> bool:
        """Whether some request is to be sent again from no room."""
        return bool(self._nowhere)

    def put(self, key: str, kind: Kind, frame: bytes, *, roomless: bool = False) -> None:
        """Send it after everything else. ``roomless``: it is a request that names no room."""
        self._unsent[key] = kind, frame
        if roomless:
            self._roomless.add(key)

    def put_first(self, controls: Mapping[str, bytes]) -> None:
        """Send these before everything else but requests from no room."""
        nowhere = {key: message for key, message in self._unsent.items() if key in self._nowhere}
        before = {key: (Kind.CONTROL, frame) for key, frame in controls.items()}
        self._unsent = nowhere | before | {key: self._unsent[key] for key in self._unsent if key not in nowhere}

    def take(self, room_id: str | None = None) -> bytes | None:
        """The next one to send on this socket; ``None`` when there is none. ``room_id``: the default room."""
        if self._refused:
            key = next(iter(self._refused))
            frame = self._unanswered[key] = self._refused.pop(key)
            return frame
        if not self._unsent:
            return None
        key = next(iter(self._unsent))
        kind, frame = self._unsent.pop(key)
        if key in self._roomless:
            self._roomless.remove(key)
            if room_id is None:
                self._nowhere.add(key)
            else:
                frame = _with(frame, b'"roomId":' + _encode(room_id))
        if len(frame) > self._longest[0]:
            self._longest = len(frame), key
        if kind is Kind.REQUEST:
            self._unanswered[key] = frame
        return frame

    def take_control(self) -> bytes | None:
        """The next one of those that are about this socket, unless requests from no room are to be sent before."""
        keys = () if self._nowhere else (key for key, (kind, _) in self._unsent.items() if kind is Kind.CONTROL)
        key = next(iter(keys), None)
        return None if key is None else self._unsent.pop(key)[1]

    def take_events(self) -> tuple[bytes, ...]:
        """All events that are still to be sent; nothing else is sent before them."""
        keys = [key for key, (kind, _) in self._unsent.items() if kind is Kind.EVENT]
        return tuple(self._unsent.pop(key)[1] for key in keys)

    def refuse(self, key: str) -> None:
        """The gateway has refused a request of this socket for a while: send it again, before what is unsent."""
        self._refused[key] = self._unanswered.pop(key)

    def discard(self, key: str) -> None:
        """Neither send it nor send it again."""
        self._unsent.pop(key, None)
        self._refused.pop(key, None)
        self._unanswered.pop(key, None)
        self._roomless.discard(key)
        self._nowhere.discard(key)

    def is_request(self, key: str) -> bool:
        """Whether this is a request that was neither answered nor discarded."""
        if key in self._unanswered or key in self._refused:
            return True
        return key in self._unsent and self._unsent[key][0] is Kind.REQUEST

    def is_unanswered(self, key: object) -> bool:
        """Whether this is a request that was sent on this socket."""
        return key in self._unanswered

    def requests(self) -> list[str]:
        """All requests that were neither answered nor discarded."""
        unsent = (key for key, (kind, _) in self._unsent.items() if kind is Kind.REQUEST)
        return [*self._unanswered, *self._refused, *unsent]

    def longest_request(self) -> str | None:
        """The longest message of this socket, if it was a request that has no answer."""
        _, key = self._longest
        return key if key in self._unanswered else None

    def socket_lost(self) -> None:
        """Unanswered requests are sent again, before the rest."""
        again = {key: (Kind.REQUEST, _resent(frame)) for key, frame in self._unanswered.items()}
        refused = {key: (Kind.REQUEST, frame) for key, frame in self._refused.items()}
        rest = {key: message for key, message in self._unsent.items() if message[0] not in _OF_THE_SOCKET}
        self._unsent, self._unanswered, self._longest = again | refused | rest, {}, (0, "")
        self._refused = {}

    def clear(self) -> None:
        """Remove everything."""
        self._unsent, self._unanswered, self._longest = {}, {}, (0, "")
        self._refused = {}
        self._roomless.clear()
        self._nowhere.clear()


_RESENT = b'"resent":true'


def _resent(frame: bytes) -> bytes:
    """The same request, sent again."""
    return frame if frame.endswith(_RESENT + b"}") else _with(frame, _RESENT)


def _with(frame: bytes, member: bytes) -> bytes:
    """The JSON object with one member more."""
    return b"%b,%b}" % (frame[:-1], member)

"""Messages as they are on the wire. Used by :class:`kraftek.client.conversation.Conversation`."""

from __future__ import annotations

from typing import Any

import msgspec

from kraftek.client.errors import Refused
from kraftek.contract.messages import ROOM_ID_LENGTH, ReceivedError
from kraftek.contract.names import NAME_LENGTH, service_of
from kraftek.contract.surrogates import check_name, encode

__all__ = ["check_event", "check_room", "error_of", "frame", "is_for_later", "is_held_up", "refused", "text_of"]


def check_event(type: str, room_id: str | None) -> None:
    """Raises ``ValueError`` for what is no event's name, or no room's."""
    if service_of(type) is None:
        rule = f"service:module:name, of at most {NAME_LENGTH} characters without white space"
        raise ValueError(f"an event's name is {rule}; found {type[: NAME_LENGTH + 1]!r}")
    if room_id is not None:
        check_room(room_id)


def check_room(room_id: str) -> None:
    """Raises ``ValueError`` for what is no room's name: no gateway would take it, on no socket."""
    if not isinstance(room_id, str) or not 1 <= len(room_id) <= ROOM_ID_LENGTH:
        raise ValueError(f"a room's name is a string of 1 to {ROOM_ID_LENGTH} characters")
    check_name(room_id)


def frame(type: str, payload: Any, id: str | int | None = None, room_id: str | None = None) -> bytes:
    """A message without what is ``None``."""
    optional = {"payload": payload, "id": id, "roomId": room_id}
    return encode({"type": type, **{key: value for key, value in optional.items() if value is not None}})


def error_of(payload: Any) -> ReceivedError:
    """What an ``error`` says. One of a service that does not follow the protocol is an error all the same."""
    try:
        return msgspec.convert(payload, ReceivedError)
    except msgspec.ValidationError:
        return ReceivedError(message=str(payload))


def is_held_up(error: ReceivedError) -> bool:
    """Whether the gateway has refused it for a while. A service's own refusal is its answer, also to the same id."""
    return error.code == "RATE_LIMITED" and error.limit is not None


def is_for_later(error: ReceivedError) -> bool:
    """Whether the token or the room is shown again on the same socket."""
    return error.code == "AUTH_UNAVAILABLE" or is_held_up(error)


def refused(error: ReceivedError) -> Refused:
    """The exception for it."""
    return Refused(error.code, error.message, error.retry_after)


def text_of(payload: Any, key: str) -> str | None:
    """A string in a payload, if it is there."""
    text = payload.get(key) if isinstance(payload, dict) else None
    return text if isinstance(text, str) else None

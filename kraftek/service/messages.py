"""The messages to clients that a handler's context and a publisher have in common, by whom they are for.

Used by :mod:`kraftek.service.processor` and :mod:`kraftek.service.publisher`, which send them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Raw

from kraftek.contract.errors import Code, is_code
from kraftek.contract.messages import Broadcast
from kraftek.contract.surrogates import encode

__all__ = ["Message", "disconnect", "to_everybody", "to_room", "to_sockets", "to_users"]


class Message(Broadcast, frozen=True, omit_defaults=True):
    """A message to clients; fields with default values are left out."""


def to_room(type: str, payload: Any, room_id: str, exclude: Iterable[str]) -> Message:
    """To everybody in a room but these sockets."""
    return Message(type, Raw(encode(payload)), room_id=room_id, exclude_socket_ids=_ids(exclude) or None)


def to_users(type: str, payload: Any, user_ids: Iterable[str]) -> Message | None:
    """To every socket of these users; nothing without users."""
    users = _ids(user_ids)
    return Message(type, Raw(encode(payload)), user_ids=users) if users else None


def to_sockets(type: str, payload: Any, socket_ids: Iterable[str]) -> Message | None:
    """To these sockets; nothing without sockets."""
    sockets = _ids(socket_ids)
    return Message(type, Raw(encode(payload)), recipients=sockets) if sockets else None


def to_everybody(type: str, payload: Any, exclude: Iterable[str]) -> Message:
    """To everybody who has authenticated, but these sockets."""
    return Message(type, Raw(encode(payload)), everybody=True, exclude_socket_ids=_ids(exclude) or None)


def disconnect(
    user_ids: Iterable[str], socket_ids: Iterable[str], room_id: str | None, code: str, message: str
) -> Message | None:
    """Close these sockets, and those of these users; with a room those that are in it. Nothing without any.

    Raises :class:`ValueError` for what is no code.
    """
    if not is_code(code):
        raise ValueError(f"{code}: expected a code of at most 64 capitals, digits and _, such as {Code.ACCESS_REVOKED}")
    users, sockets = _ids(user_ids), _ids(socket_ids)
    payload = Raw(encode({"code": code, "message": message}))
    named = Message("disconnect", payload, user_ids=users or None, recipients=sockets or None, room_id=room_id)
    return named if users or sockets else None


def _ids(ids: Iterable[str]) -> tuple[str, ...]:
    """Ids without empty ones. A single string counts as one id."""
    return tuple(filter(None, (ids,) if isinstance(ids, str) else ids))

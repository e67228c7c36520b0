"""What services say to gateways: messages to clients by whom they are for, and commands.

Used by :mod:`kraftek.service.processor` and :mod:`kraftek.service.publisher`, which send them; for ``kraftek send`` and
``POST /publish``, where anything may come in, by :func:`checked` and :func:`read`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from kraftek.contract.errors import Code, is_code
from kraftek.contract.messages import NULL, ROOM_ID_LENGTH, Broadcast
from kraftek.contract.names import GATEWAY_OWN, ROOM_COMMANDS, ROOM_PUT, ROOM_REMOVE, room_topic, service_of
from kraftek.contract.surrogates import encode
from kraftek.contract.surrogates import read as read_whole

__all__ = [
    "Message",
    "checked",
    "disconnect",
    "event_for",
    "put_in_room",
    "read",
    "remove_from_room",
    "to_everybody",
    "to_room",
    "to_room_or_users",
    "to_sockets",
    "to_users",
]

_DISCONNECT = "disconnect"


class Message(Broadcast, frozen=True, omit_defaults=True):
    """A message to clients; fields with default values are left out."""

    @property
    def topic(self) -> str | None:
        """Whom it is for, if that is a room or users alone: :class:`kraftek.service.commits.Topic`. It is part
        of their history, if they have one.
        """
        others = self.recipients or self.everybody or self.in_reply_to is not None
        if others or self.type == _DISCONNECT or self.type.startswith(GATEWAY_OWN):
            return None
        if self.user_ids:
            return None if self.room_id else f"users:{encode(self.user_ids).decode()}"
        return room_topic(self.room_id) if self.room_id else None


class _Given(Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A message as a stranger writes it: as gateways read it, but for what answers a request."""

    type: str
    payload: Raw = NULL
    recipients: tuple[str, ...] | None = None
    exclude_socket_ids: tuple[str, ...] | None = None
    room_id: str | None = None
    user_ids: tuple[str, ...] | None = None
    everybody: bool = False


class _Put(Struct, forbid_unknown_fields=True):
    permissions: tuple[str, ...] = ()


class _Disconnect(Struct, forbid_unknown_fields=True):
    code: str = Code.ACCESS_REVOKED
    message: str = ""


_decode = msgspec.json.Decoder(_Given).decode
_decode_put = msgspec.json.Decoder(_Put | None).decode
_decode_nothing = msgspec.json.Decoder(None).decode
_decode_disconnect = msgspec.json.Decoder(_Disconnect | None).decode


def read(body: bytes) -> Message:
    """A message as it is published, checked. Raises :class:`ValueError` that says what was wrong and expected."""
    try:
        body.decode()
        given, _ = read_whole(_decode, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"expected a message as JSON: {error}") from None
    return checked(Message(**{name: getattr(given, name) for name in given.__struct_fields__}))


def checked(message: Message) -> Message:
    """The message, if gateways can do with it what it says. Raises :class:`ValueError` as :func:`read` does."""
    addressed = bool(message.user_ids or message.recipients)
    if not message.type:
        raise ValueError("expected a type, such as news:item:new")
    if message.type.startswith(GATEWAY_OWN) and message.type not in ROOM_COMMANDS:
        known = " and ".join(ROOM_COMMANDS)
        raise ValueError(f"{message.type}: expected {known}, or a type that does not begin with {GATEWAY_OWN}")
    if "" in (message.room_id, *(message.user_ids or ()), *(message.recipients or ())):
        raise ValueError(f"{message.type}: expected names of rooms, users and sockets that are not empty")
    if message.type == _DISCONNECT:
        if not addressed or message.everybody or message.exclude_socket_ids:
            raise ValueError("disconnect: expected users or sockets to close, alone or with the room that they are in")
        _check_disconnect(message.payload)
    elif message.type in ROOM_COMMANDS:
        _check_command(message, addressed)
    elif (message.room_id is not None) + addressed + message.everybody != 1:
        raise ValueError(f"{message.type}: expected one of a room, users or sockets, and everybody")
    return message


def _check_command(message: Message, addressed: bool) -> None:
    if message.room_id is None or not addressed or message.everybody or message.exclude_socket_ids:
        raise ValueError(f"{message.type}: expected a room, and users or sockets")
    if len(message.room_id) > ROOM_ID_LENGTH:
        raise ValueError(f"{message.type}: expected a room's name of at most {ROOM_ID_LENGTH} characters")
    puts = message.type == ROOM_PUT
    try:
        (_decode_put if puts else _decode_nothing)(message.payload)
    except (msgspec.DecodeError, RecursionError) as error:
        what = "nothing but permissions" if puts else "nothing"
        raise ValueError(f"{message.type}: expected {what} in the payload: {error}") from None


def _check_disconnect(payload: Raw) -> None:
    try:
        command = _decode_disconnect(payload) or _Disconnect()
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"disconnect: expected a code and a message in the payload: {error}") from None
    if not is_code(command.code):
        expected = f"expected a code of at most 64 capitals, digits and _, such as {Code.ACCESS_REVOKED}"
        raise ValueError(f"{command.code}: {expected}")


def to_room(type: str, payload: Any, room_id: str, exclude: Iterable[str]) -> Message:
    """To everybody in a room but these sockets."""
    return Message(type, Raw(encode(payload)), room_id=room_id, exclude_socket_ids=_ids(exclude) or None)


def to_users(type: str, payload: Any, user_ids: Iterable[str]) -> Message | None:
    """To every socket of these users; nothing without users."""
    users = _ids(user_ids)
    return Message(type, Raw(encode(payload)), user_ids=users) if users else None


def to_room_or_users(
    type: str, payload: Any, room_id: str | None, user_ids: Iterable[str] | None, exclude: Iterable[str]
) -> Message | None:
    """To everybody in a room but these sockets, or to these users."""
    if room_id is not None and user_ids is None:
        return to_room(type, payload, room_id, exclude)
    if user_ids is None or room_id is not None or _ids(exclude):
        raise ValueError(f"{type}: expected users, or else a room, and what to exclude in it")
    return to_users(type, payload, user_ids)


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
    users, sockets = _ids(user_ids), _ids(socket_ids)
    payload = Raw(encode({"code": code, "message": message}))
    _check_disconnect(payload)
    named = Message(_DISCONNECT, payload, user_ids=users or None, recipients=sockets or None, room_id=room_id)
    return named if users or sockets else None


def put_in_room(
    room_id: str, user_ids: Iterable[str], socket_ids: Iterable[str], permissions: Iterable[str]
) -> Message | None:
    """Put these sockets, and those of these users, into a room; from there they may send what these patterns permit.
    Nothing without any.
    """
    payload = Raw(encode({"permissions": [permissions] if isinstance(permissions, str) else [*permissions]}))
    return _command(ROOM_PUT, payload, room_id, user_ids, socket_ids)


def remove_from_room(room_id: str, user_ids: Iterable[str], socket_ids: Iterable[str]) -> Message | None:
    """Take these sockets, and those of these users, out of a room. Nothing without any."""
    return _command(ROOM_REMOVE, Raw(encode(None)), room_id, user_ids, socket_ids)


def _command(
    type: str, payload: Raw, room_id: str, user_ids: Iterable[str], socket_ids: Iterable[str]
) -> Message | None:
    users, sockets = _ids(user_ids), _ids(socket_ids)
    if not (users or sockets):
        return None
    return checked(Message(type, payload, user_ids=users or None, recipients=sockets or None, room_id=room_id))


def _ids(ids: Iterable[str]) -> tuple[str, ...]:
    """Ids without empty ones. A single string counts as one id."""
    return tuple(filter(None, (ids,) if isinstance(ids, str) else ids))


def event_for(source: str, event: str, payload: Any, **optional: str | None) -> dict[str, Any]:
    """An event from one service to another. Raises :class:`ValueError` for an invalid name."""
    if service_of(event) is None:
        raise ValueError(f"{event}: expected service:module:name")
    sent = {"source": source, "eventType": event, "payload": Raw(encode(payload))}
    return sent | {name: value for name, value in optional.items() if value}

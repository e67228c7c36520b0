"""What clients ask of the gateway itself: the payloads of ``authenticate``, ``join``, ``leave``, ``history``,
``presence`` and ``cancel``, which are the same in every dialect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct, to_builtins

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.json_text import is_long
from kraftek.contract.messages import (
    ABSENT,
    HISTORY_LIMIT,
    ID_LENGTH,
    ROOM_ID_LENGTH,
    Append,
    AskPresence,
    Authenticate,
    Cancel,
    History,
    HistoryPage,
    Join,
    Leave,
    Position,
    RequestId,
    Since,
    Standing,
    Token,
)
from kraftek.contract.names import NAME_LENGTH

__all__ = [
    "RoomId",
    "ask_presence",
    "authenticate",
    "cancel",
    "explain",
    "history",
    "join",
    "leave",
    "page",
    "progress",
    "standing",
]

T = TypeVar("T")

RoomId = Annotated[str, Meta(min_length=1, max_length=ROOM_ID_LENGTH)]


_Epoch = Annotated[str, Meta(max_length=64)]
_SocketIds = Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=8)]
_Limit = Annotated[int, Meta(ge=1, le=HISTORY_LIMIT)]

_PAGE = 50
"""Messages of a history that a client gets which does not say how many."""


class _Since(Since, frozen=True, rename="camel"):
    epoch: _Epoch
    offset: Annotated[int, Meta(ge=0, le=2**53)]
    socket_ids: _SocketIds = ()


class _Before(Position, frozen=True):
    epoch: Annotated[_Epoch, Meta(min_length=1)]
    offset: Annotated[int, Meta(ge=1, le=2**53)]


class _Credentials(Struct):
    token: Annotated[str, Meta(max_length=16_384)] = ""
    roomId: RoomId | None = None
    since: _Since | None = None
    history: _Limit | None = None
    data: Raw = ABSENT
    userSince: _Since | None = None


class _Room(Struct):
    roomId: RoomId


class _Entered(Struct):
    roomId: RoomId
    since: _Since | None = None
    history: _Limit | None = None
    data: Raw = ABSENT


class _Asked(Struct):
    roomId: RoomId
    limit: _Limit = _PAGE
    before: _Before | None = None
    socketIds: _SocketIds = ()


class _Watched(Struct):
    roomId: RoomId
    version: Annotated[str, Meta(max_length=64)] | None = None
    changes: bool = True


_Id = int | Annotated[str, Meta(max_length=ID_LENGTH)]


class _Given(Struct):
    id: _Id | None = None
    eventType: Annotated[str, Meta(max_length=NAME_LENGTH)] | None = None


class _Options(Struct, forbid_unknown_fields=True):
    progress: _Id


class _Found(Struct, omit_defaults=True):
    type: str
    payload: Raw
    offset: int | None = None
    append: Append | None = None


_decode_given = msgspec.json.Decoder(_Given | None).decode
_decode_credentials = msgspec.json.Decoder(_Credentials).decode
_decode_room = msgspec.json.Decoder(_Room).decode
_decode_entered = msgspec.json.Decoder(_Entered).decode
_decode_asked = msgspec.json.Decoder(_Asked).decode
_decode_watched = msgspec.json.Decoder(_Watched).decode
_decode_options = msgspec.json.Decoder(_Options).decode


def authenticate(
    payload: Raw,
    id: RequestId | None = None,
    *,
    room_id: str | None = None,
    named: str = "authenticate",
    resumes: bool = False,
) -> Authenticate:
    """A token, and the room to be in with it: its own, or else ``room_id``.

    ``named``: what the payload is, for the client. ``resumes``: this dialect numbers what is told to rooms and users,
    so that the client can say where it was. Raises :class:`PeerError`, as the others do.
    """
    credentials = _read(named, payload, _decode_credentials, id)
    entered, token = credentials.roomId or room_id, Token(credentials.token)
    since, user_since = (credentials.since, credentials.userSince) if resumes else (None, None)
    return Authenticate(token, entered, id, since, credentials.history or 0, credentials.data, user_since=user_since)


def join(payload: Raw, id: RequestId | None, *, resumes: bool = False) -> Join:
    """The room to enter."""
    entered = _read("join", payload, _decode_entered, id)
    return Join(entered.roomId, id, entered.since if resumes else None, entered.history or 0, entered.data)


def history(payload: Raw, id: RequestId | None) -> History:
    """Which messages of which room."""
    asked = _read("history", payload, _decode_asked, id)
    return History(asked.roomId, asked.limit, asked.before, asked.socketIds, id)


def page(message: HistoryPage) -> dict[str, Any]:
    """The answer to :func:`history`."""
    found = [_Found(each.type, each.payload, each.offset, each.append) for each in message.messages]
    answer = {"roomId": message.room_id, "epoch": message.epoch, "messages": found}
    return answer if message.before is None else {**answer, "before": message.before}


def leave(payload: Raw, id: RequestId | None) -> Leave:
    """The room to be out of."""
    return Leave(_read("leave", payload, _decode_room, id).roomId, id)


def ask_presence(payload: Raw, id: RequestId | None) -> AskPresence:
    """The room of which the client wants to know who is there."""
    asked = _read("presence", payload, _decode_watched, id)
    return AskPresence(asked.roomId, id, asked.version, asked.changes)


def cancel(payload: Raw, id: RequestId | None, *, by_id: bool = False) -> Cancel:
    """Which request to cancel. ``id``: of the message itself; ``by_id``: this is the request's."""
    own_id = None if by_id else id
    given = _read("cancel", payload, _decode_given, own_id) or _Given()
    request_id = id if by_id else given.id
    if (request_id is None and given.eventType is None) or (type(request_id) is int and is_long(request_id)):
        raise PeerError(Code.INVALID_MESSAGE, "cancel: expected the id of a request", id=own_id)
    return Cancel(request_id, given.eventType)


def progress(options: Raw, id: RequestId | None) -> RequestId:
    """What stands beside a payload: the client takes the answer in parts, and what they are to name it by."""
    name = _read_as("options of an event", options, _decode_options, id).progress
    if type(name) is int and is_long(name):
        text = f"options of an event: expected an integer of at most {ID_LENGTH} characters - at `$.progress`"
        raise PeerError(Code.INVALID_MESSAGE, text, id=id)
    return name


def _read(named: str, payload: Raw, decode: Callable[[Raw], T], id: RequestId | None) -> T:
    return _read_as(f"payload of {named}", payload, decode, id)


def _read_as(what: str, json: Raw, decode: Callable[[Raw], T], id: RequestId | None) -> T:
    try:
        return decode(json)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise PeerError(Code.INVALID_MESSAGE, f"{what}: {explain(error)}", id=id) from None


def expiry(expires_in: float | None) -> dict[str, float]:
    """What an answer has to say of when access expires."""
    return {} if expires_in is None else {"expiresIn": expires_in}


def standing(where: Standing | None) -> dict[str, Any]:
    """What an answer has to say of where the client begins in a room."""
    return {} if where is None else to_builtins(where)


def explain(error: Exception) -> str:
    """The error for JSON that msgspec cannot read."""
    if isinstance(error, RecursionError):
        return "JSON is nested too deeply"
    # The former until msgspec 0.22.
    if isinstance(error, UnicodeDecodeError) or "UTF-8" in str(error):
        return "not UTF-8"
    return str(error)

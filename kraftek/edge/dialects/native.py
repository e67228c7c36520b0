"""The gateway's own dialect, subprotocol ``kraftek.v1.json``: one JSON object in one text message, both ways.

``{"type", "payload"?, "id"?, "roomId"?, "resent"?}``, as in docs/client-protocol.rst. It remembers nothing of a
connection, so all native clients share one instance.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct
from zope.interface import implementer

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IDialect
from kraftek.contract.json_text import JsonBounds, is_long, read_id
from kraftek.contract.messages import (
    ID_LENGTH,
    NULL,
    Ack,
    Acknowledge,
    Append,
    Authenticated,
    Closing,
    Connected,
    Delivery,
    Drained,
    ErrorMessage,
    ErrorPayload,
    Event,
    Gap,
    HistoryPage,
    Inbound,
    Joined,
    Left,
    Outbound,
    Outgoing,
    Ping,
    Place,
    Pong,
    Positioned,
    Progress,
    RequestId,
)
from kraftek.contract.names import SUBPROTOCOL
from kraftek.contract.settings import Limits
from kraftek.contract.surrogates import HALF, is_whole, mended
from kraftek.edge.dialects.commands import (
    RoomId,
    ask_presence,
    authenticate,
    cancel,
    expiry,
    explain,
    history,
    join,
    leave,
    page,
    standing,
)

__all__ = ["NativeDialect"]

_Id = int | Annotated[str, Meta(max_length=ID_LENGTH)]


class _Place(Place, frozen=True, gc=False):
    run: Annotated[str, Meta(max_length=ID_LENGTH)]
    number: Annotated[int, Meta(ge=0, le=2**53)]


class _Frame(Event, frozen=True, gc=False, rename={"name": "type", "room_id": "roomId"}):
    """Any message; nearly every one is an event, and as it is read here it goes to its service."""

    name: str
    payload: Raw = NULL
    id: _Id | None = None
    room_id: RoomId | None = None
    traceparent: Annotated[str, Meta(max_length=128)] | None = None
    resent: bool = False
    progress: bool | _Place = False


class _Reply(Struct, omit_defaults=True):
    type: str
    payload: Any
    id: RequestId | None = None
    roomId: str | None = None
    offset: int | None = None
    userOffset: int | None = None
    receipt: int | None = None
    append: Append | None = None


class _Part(Struct):
    type: str
    id: RequestId
    payload: Raw
    run: str
    number: int


_BOUNDS = JsonBounds(Limits().json_depth)

_decode_frame = msgspec.json.Decoder(_Frame).decode
_encode = msgspec.json.Encoder().encode


@implementer(IDialect)
class NativeDialect:
    """The grammar of ``kraftek.v1.json``. ``bounds``: of what clients send."""

    codec = SUBPROTOCOL
    recovers = False
    lasting_ids = True

    def __init__(self, bounds: JsonBounds = _BOUNDS) -> None:
        self._bounds = bounds
        self._harmless = bounds.harmless

    def received(self, data: bytes, binary: bool) -> Inbound | None:
        if binary:
            raise _refusal(data, "expected a text message, found a binary one")
        try:
            frame = _decode_frame(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            return self._received_mended(data, explain(error))
        request_id = frame.id
        if type(request_id) is int and is_long(request_id):
            raise PeerError(Code.INVALID_MESSAGE, f"Expected an integer of at most {ID_LENGTH} characters - at `$.id`")
        if len(data) > self._harmless and (complaint := self._bounds.complaint(data, around=1)):
            raise PeerError(Code.INVALID_MESSAGE, complaint, id=request_id)
        return frame if ":" in frame.name else self._command(frame)

    def _command(self, frame: _Frame) -> Inbound:
        match frame.name:
            case "authenticate":
                return authenticate(frame.payload, frame.id, room_id=frame.room_id, resumes=True)
            case "join":
                return join(frame.payload, frame.id, resumes=True)
            case "leave":
                return leave(frame.payload, frame.id)
            case "history":
                return history(frame.payload, frame.id)
            case "presence":
                return ask_presence(frame.payload, frame.id)
            case "cancel":
                return cancel(frame.payload, frame.id, by_id=True)
            case "receipt":
                return Acknowledge(frame.id)
            case "ping":
                return Ping(frame.id)
            case _:
                return frame

    def encode(self, message: Outbound) -> Outgoing | None:
        # Nearly every message is one, and a pattern takes as long as the encoding.
        if type(message) is Delivery:
            reply = _Reply(message.type, message.payload, message.id, message.room_id, message.offset)
            if message.receipt is not None:
                reply.receipt = message.receipt
            if message.offset is not None and message.room_id is None:
                reply.offset, reply.userOffset = None, message.offset
            reply.append = message.append
            return Outgoing(_encode(reply))
        match message:
            case ErrorMessage(code, text, event_type, retry_after, id, room_id, limit):
                error = ErrorPayload(code, text, event_type, retry_after, limit=limit)
                reply = _Reply("error", error, id, room_id)
            case Ack(id, receivers):
                reply = _Reply("ack", {"receivers": receivers}, id)
            case Connected(socket_id):
                reply = _Reply("connected", {"socketId": socket_id})
            case Authenticated(user_id, room_id, id, expires_in, where, user_standing=of_user):
                entered = {"success": True, "userId": user_id, "roomId": room_id}
                user = {} if of_user is None else {"userPosition": standing(of_user)}
                reply = _Reply("authenticated", {**entered, **expiry(expires_in), **standing(where), **user}, id)
            case Joined(room_id, id, expires_in, where):
                reply = _Reply("joined", {"roomId": room_id, **expiry(expires_in), **standing(where)}, id)
            case Left() | Pong() | Gap() | Drained() | Positioned() | HistoryPage():
                reply = _news(message)
            case Progress(id, payload, place):
                return Outgoing(_encode(_Part("progress", id, payload, place.run, place.number)))
            case Closing():
                return None
        return Outgoing(_encode(reply))

    def _received_mended(self, data: bytes, why: str) -> Inbound | None:
        """A message that was refused, unless halves of surrogate pairs in its payload are all that is wrong with it."""
        whole = mended(data)
        if whole is None:
            raise _refusal(data, why)
        message = self.received(whole, False)
        if message is not None and not is_whole(message):
            raise _refusal(data, HALF)
        return message


def _news(message: Left | Pong | Gap | Drained | Positioned | HistoryPage) -> _Reply:
    match message:
        case HistoryPage():
            return _Reply("history", page(message), message.id)
        case Left(room_id, id):
            return _Reply("left", {"roomId": room_id}, id)
        case Pong(id):
            return _Reply("pong", None, id)
        case Gap(rooms):
            return _Reply("gap", {"rooms": rooms})
        case Drained(reconnect_after):
            return _Reply("drain", {"reconnectAfter": reconnect_after})
        case Positioned(room_id, where):
            return _Reply("position", standing(where), None, room_id)


def _refusal(data: bytes, why: str) -> PeerError:
    return PeerError(Code.INVALID_MESSAGE, why, id=read_id(data))

"""What a kind of gateway expects its clients to say. `bench.crowd` asks; nothing here holds state.

Messages go out and come in as bytes. An event's payload is ``{"at", "who", "roomId", "text"}``: when it was said on
the load's clock in nanoseconds, by which client, in which room.
"""

from abc import ABC, abstractmethod

import msgspec


class Payload(msgspec.Struct):
    """What the load wants to know of an event that comes back."""

    at: int
    who: int


class _Message(msgspec.Struct):
    type: str
    payload: Payload


class _Greeting(msgspec.Struct):
    type: str


class Dialect(ABC):
    """How to greet, to say something and to understand."""

    path = "/"
    heartbeat: bytes | None = None
    """The message, if any, that asks whether the client is there."""
    heartbeat_answer = b""

    @abstractmethod
    def opening(self, who: int, room: int) -> bytes | None:
        """Give what the client says when its socket opens, ``None`` when that is all there is to do."""

    @abstractmethod
    def greeting(self, data: bytes, who: int, room: int) -> bytes | None:
        """Give what to say to a message that came before the client was ready, ``None`` when it now is.

        Raises `ValueError` when the gateway says something else than it should.
        """

    @abstractmethod
    def payload(self, data: bytes) -> Payload:
        """Give the payload of an event; raises `msgspec.MsgspecError` when it is none."""

    @abstractmethod
    def envelope(self, name: str) -> bytes:
        """Give the message that carries this event, with one ``%s`` for the payload."""

    def event(self, name: str, text: int) -> bytes:
        """Give an event with `text` bytes of text and one ``%d`` each for ``at``, ``who`` and the room's number."""
        return self.envelope(name) % (b'{"at":%%d,"who":%%d,"roomId":"r%%d","text":"%s"}' % (b"x" * text))

    def request(self, name: str, text: int) -> bytes:
        """As `event`, with an id, and so one ``%d`` more each for ``at`` and ``who``. Not every dialect has them."""
        raise NotImplementedError


class Native(Dialect):
    """``kraftek.v1.json``."""

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(_Message).decode
        self._greeting = msgspec.json.Decoder(_Greeting).decode

    def opening(self, who: int, room: int) -> bytes | None:
        return b'{"type":"authenticate","payload":{"token":"t%d","roomId":"r%d"}}' % (who, room)

    def greeting(self, data: bytes, who: int, room: int) -> bytes | None:
        match self._greeting(data).type:
            case "connected":
                return b""
            case "authenticated":
                return None
        raise ValueError(data[:200])

    def payload(self, data: bytes) -> Payload:
        return self._decode(data).payload

    def envelope(self, name: str) -> bytes:
        return b'{"type":"%s","payload":%%s}' % name.encode()

    def request(self, name: str, text: int) -> bytes:
        return self.event(name, text)[:-1] + b',"id":"%d-%d"}'


class SocketIO(Dialect):
    """Socket.IO 5 over Engine.IO 4, WebSocket transport."""

    path = "/socket.io/?EIO=4&transport=websocket"
    heartbeat = b"2"
    heartbeat_answer = b"3"

    def __init__(self) -> None:
        self._decode = msgspec.json.Decoder(tuple[str, Payload]).decode

    def opening(self, who: int, room: int) -> bytes:
        return b""

    def greeting(self, data: bytes, who: int, room: int) -> bytes | None:
        if data.startswith(b"0{"):
            return b"40"
        if data.startswith(b"40"):
            return b'42["authenticate",{"token":"t%d","roomId":"r%d"}]' % (who, room)
        if data.startswith(b'42["connected"'):
            return b""
        if data.startswith(b'42["authenticated"'):
            return None
        raise ValueError(data[:200])

    def payload(self, data: bytes) -> Payload:
        return self._decode(data[2:])[1]

    def envelope(self, name: str) -> bytes:
        return b'42["%s",%%s]' % name.encode()


class Listening(Native):
    """A socket that hears native messages without having asked: what the gateways that know no clients serve."""

    path = "/sub?id=r0"

    def opening(self, who: int, room: int) -> None:
        return None


DIALECTS: dict[str, type[Dialect]] = {
    "native": Native,
    "socketio": SocketIO,
    "cloop": Listening,
    "nchan": Listening,
}

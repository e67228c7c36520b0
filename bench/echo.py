"""The service that every contender carries messages to and from; the stage runs it as ``python -m bench.echo``.

It speaks the Redis contract for services and nothing else: what it hears on its channels it answers on
``events:broadcast``. ``bench:echo:ping`` is answered to the socket that sent it, anything else to the room that the
payload names, and ``bench:room:tell`` by the Function for rooms with history. The payload goes back as it came.
``bench:echo:call`` and requests, of a channel and of a stream, are answered on their ``replyTo``.
"""

import asyncio
import gc
import sys
from typing import cast

import hiredis
import msgspec
import uvloop

from kraftek.contract.history import FUNCTION
from kraftek.contract.names import BROADCAST


class Event(msgspec.Struct):
    """What a gateway publishes, as far as this service needs it."""

    eventType: str
    socketId: str
    payload: msgspec.Raw
    id: str | None = None
    replyTo: str = ""


class Answer(msgspec.Struct, omit_defaults=True):
    """What a gateway is to deliver."""

    type: str
    recipients: list[str]
    payload: msgspec.Raw
    inReplyTo: str | None = None


class Told(msgspec.Struct):
    """What a room with history is told."""

    type: str
    payload: msgspec.Raw


class Room(msgspec.Struct):
    """The room that a payload names."""

    roomId: str


_decode = msgspec.json.Decoder(Event).decode
_decode_room = msgspec.json.Decoder(Room).decode
_encode = msgspec.json.Encoder().encode


def answer(body: bytes) -> bytes:
    """Give the command that answers one event."""
    event = _decode(body)
    channel = BROADCAST
    if event.id is not None or event.eventType == "bench:echo:call":
        channel, said = event.replyTo, Answer("bench:echo:pong", [event.socketId], event.payload, event.id)
    elif event.eventType == "bench:echo:ping":
        said = Answer("bench:echo:pong", [event.socketId], event.payload)
    elif event.eventType == "bench:room:tell":
        room = _decode_room(event.payload).roomId
        words = "FCALL", FUNCTION, "0", room, _encode(Told("bench:room:said", event.payload))
        told: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]
        return told
    else:
        said = Answer("bench:room:said", [], event.payload)
    command: bytes = hiredis.pack_command((b"PUBLISH", channel, _encode(said)))  # type: ignore[arg-type]
    return command


class Publisher(asyncio.Protocol):
    """The connection that answers leave on. How many gateways heard each is not this service's business."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)


class Subscriber(asyncio.Protocol):
    """The connection that events arrive on. All that arrive in one read are answered in one write."""

    def __init__(self, channels: list[str], publisher: Publisher) -> None:
        self._channels = channels
        self._publisher = publisher
        self._reader = hiredis.Reader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(hiredis.pack_command(("SUBSCRIBE", *self._channels)))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        answers = []
        while (reply := self._reader.gets()) is not False:
            assert isinstance(reply, list)
            if reply[0] == b"message":
                answers.append(answer(reply[2]))
            elif reply[2] == len(self._channels):
                print("ready", flush=True)
        if answers:
            self._publisher.transport.write(b"".join(answers))


class Consumer(asyncio.Protocol):
    """The connection that a stream is read on, as the only one of its group."""

    def __init__(self, stream: str, group: str, publisher: Publisher) -> None:
        self._begin = ("XGROUP", "CREATE", stream, group, "0", "MKSTREAM")
        self._read = hiredis.pack_command(
            ("XREADGROUP", "GROUP", group, "echo", "COUNT", "1000", "BLOCK", "0", "STREAMS", stream, ">")  # type: ignore[arg-type]
        )
        self._done = ("XACK", stream, group)
        self._publisher = publisher
        self._reader = hiredis.Reader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(hiredis.pack_command(self._begin) + self._read)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):  # the stage has emptied Redis, and the group is gone
                self._transport.write(hiredis.pack_command(self._begin) + self._read)  # type: ignore[arg-type]
            elif isinstance(reply, list):
                ((_, entries),) = reply
                answers = [answer(fields[1]) for _, fields in entries]
                answers.append(hiredis.pack_command((*self._done, *(number for number, _ in entries))))
                self._publisher.transport.write(b"".join(answers))
                self._transport.write(self._read)


async def serve(redis_port: int) -> None:
    """Answer until the process is stopped; prints ``ready`` once it listens."""
    loop = asyncio.get_running_loop()
    _, publisher = await loop.create_connection(Publisher, "127.0.0.1", redis_port)
    await loop.create_connection(lambda: Consumer("events:queue", "queue", publisher), "127.0.0.1", redis_port)
    channels = ["events:bench", "events:ask"]
    await loop.create_connection(lambda: Subscriber(channels, publisher), "127.0.0.1", redis_port)
    await loop.create_future()


if __name__ == "__main__":
    gc.disable()
    uvloop.run(serve(int(sys.argv[1])))

"""The service that every contender carries messages to and from; the stage runs it as ``python -m bench.echo``.

It speaks the Redis contract for services and nothing else: it hears one channel and answers on
``events:broadcast``. ``bench:echo:ping`` is answered to the socket that sent it, anything else to the room that the
payload names. The payload goes back as it came.
"""

import asyncio
import gc
import sys
from typing import cast

import hiredis
import msgspec
import uvloop

BROADCAST = b"events:broadcast"


class Event(msgspec.Struct):
    """What a gateway publishes, as far as this service needs it."""

    eventType: str
    socketId: str
    payload: msgspec.Raw


class Answer(msgspec.Struct):
    """What a gateway is to deliver."""

    type: str
    recipients: list[str]
    payload: msgspec.Raw


_decode = msgspec.json.Decoder(Event).decode
_encode = msgspec.json.Encoder().encode


def answer(body: bytes) -> bytes:
    """Give the answer to one published event."""
    event = _decode(body)
    if event.eventType == "bench:echo:ping":
        return _encode(Answer("bench:echo:pong", [event.socketId], event.payload))
    return _encode(Answer("bench:room:said", [], event.payload))


class Publisher(asyncio.Protocol):
    """The connection that answers leave on. How many gateways heard each is not this service's business."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)


class Subscriber(asyncio.Protocol):
    """The connection that events arrive on. All that arrive in one read are answered in one write."""

    def __init__(self, channel: str, publisher: Publisher) -> None:
        self._channel = channel
        self._publisher = publisher
        self._reader = hiredis.Reader()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(hiredis.pack_command(("SUBSCRIBE", self._channel)))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        answers = []
        while (reply := self._reader.gets()) is not False:
            assert isinstance(reply, list)
            if reply[0] == b"message":
                answers.append(hiredis.pack_command((b"PUBLISH", BROADCAST, answer(reply[2]))))  # type: ignore[arg-type]
            else:
                print("ready", flush=True)
        if answers:
            self._publisher.transport.write(b"".join(answers))


async def serve(redis_port: int, channel: str) -> None:
    """Answer what comes on the channel until the process is stopped; prints ``ready`` once it listens."""
    loop = asyncio.get_running_loop()
    _, publisher = await loop.create_connection(Publisher, "127.0.0.1", redis_port)
    await loop.create_connection(lambda: Subscriber(channel, publisher), "127.0.0.1", redis_port)
    await loop.create_future()


if __name__ == "__main__":
    gc.disable()
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2]))

"""A service for tests, as a program, through either backend: ``python sample.py BACKEND REDIS_URL JSON``.

The JSON is what :class:`kraftek.service.EventProcessor` is made with. The handlers are the same for both backends; what
they did they note in Redis.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

from msgspec import Meta, Struct, to_builtins

from kraftek.service import Context, EventProcessor, Refused


class Place(Struct):
    x: Annotated[int, Meta(ge=0)]
    label: str = "here"


@dataclass
class Person:
    name: str
    age: int = 0


class Point(TypedDict):
    x: int


class Sleep(Struct):
    seconds: float
    mark: int = 0


class Write(Struct):
    before: list[str] = []
    also: list[str] = []
    emit: str = ""


class Rooms(Struct):
    rooms: list[str] = []
    users: list[str] = []
    also: list[str] = []
    emit: str = ""


class Heard(Struct):
    """Of whom it wants to know whether they have it: of these users, or of those in the room."""

    payload: Any = None
    users: list[str] | None = None
    timeout: float = 5.0


class Ask(Struct):
    event: str
    payload: Any = None
    timeout: float = 10.0


def sample(backend: str, **settings: Any) -> EventProcessor:  # noqa: C901  # many small ones
    processor = EventProcessor("sample", **settings)

    def pause(seconds: float) -> Awaitable[Any]:
        if backend == "asyncio":
            import asyncio

            return asyncio.sleep(seconds)
        from twisted.internet import reactor
        from twisted.internet.task import deferLater

        return deferLater(reactor, seconds)

    @processor.on("say:back")
    def back(context: Context, payload: Any) -> Any:
        return payload

    @processor.on("say:later")
    async def later(context: Context, payload: Any) -> Any:
        await pause(0.01)
        return payload

    @processor.on("say:awaitable")
    def awaitable(context: Context, payload: Any) -> Awaitable[Any]:
        return pause(0.01)

    @processor.on("say:who")
    async def who(context: Context, payload: Any) -> Any:
        names = ("user_id", "socket_id", "room_id", "event_type", "id", "source", "timestamp")
        return {name: getattr(context, name) for name in names}

    @processor.on("say:explicitly")
    def explicitly(context: Context, payload: Any) -> None:
        context.reply(payload)

    @processor.on("say:twice")
    def twice(context: Context, payload: Any) -> Any:
        context.reply(payload)
        return payload

    @processor.on("say:nothing")
    def nothing(context: Context) -> None:
        """Takes no payload, and returns none."""

    @processor.on("say:silent", answers=False)
    def silent(context: Context, payload: Any) -> None:
        """Looks on."""

    @processor.on("say:afterwards")
    def afterwards(context: Context) -> None:
        context.answer_later()

    @processor.on("say:blocked", thread=True)
    def blocked(context: Context, payload: Any) -> Any:
        context.broadcast_to_sockets("sample:said:blocked", payload, [context.socket_id])
        if payload == "refuse":
            raise Refused("NOT_NOW", "come back")
        if payload == "await":
            context.redis("PING")
        return threading.current_thread() is threading.main_thread()

    @processor.on("say:stored")
    async def stored(context: Context, payload: Any) -> Any:
        for part in ("größe", payload):
            await context.redis("RPUSH", "stored", part)
        raw = await context.redis("LRANGE", "stored", 0, -1)
        text = await context.redis("LRANGE", "stored", 0, -1, decode=True)
        await context.redis("DEL", "stored")
        return [part.decode() for part in raw] == text and text

    @processor.on("say:chained")
    def chained(context: Context) -> Awaitable[Any]:
        if backend == "asyncio":
            return context.redis("ECHO", "chained", decode=True)
        deferred: Any = context.redis("ECHO", "chained")
        answer: Awaitable[Any] = deferred.addCallback(bytes.decode)
        return answer

    @processor.on("go:dataclass")
    def dataclass(context: Context, person: Person) -> Any:
        return [person.name, person.age]

    @processor.on("go:typed")
    def typed(context: Context, point: Point) -> Any:
        return point["x"]

    @processor.on("go:to")
    def go(context: Context, place: Place) -> Place:
        return place

    @processor.on("tell:all")
    async def tell(context: Context, payload: Any) -> None:
        context.broadcast_to_room("sample:told:room", payload)
        context.broadcast_to_room("sample:told:others", payload, exclude=[context.socket_id])
        context.broadcast_to_room("sample:told:there", payload, room_id="there")
        context.broadcast_to_user("sample:told:user", payload, "bob")
        context.broadcast_to_users("sample:told:nobody", payload, [])
        context.broadcast_to_sockets("sample:told:socket", payload, [context.socket_id])
        context.also("SET", "also", json.dumps(payload))

    @processor.on("tell:heard")
    async def heard(context: Context, payload: Heard) -> Any:
        return to_builtins(
            await context.broadcast_with_receipt(
                "sample:told:heard", payload.payload, user_ids=payload.users, timeout=payload.timeout
            )
        )

    @processor.on("tell:rooms")
    async def rooms(context: Context, payload: Rooms) -> None:
        for number, room_id in enumerate(payload.rooms):
            context.broadcast_to_room("sample:told:rooms", number, room_id=room_id)
        context.broadcast_to_users("sample:told:users", "here", payload.users)
        if payload.emit:
            context.emit(payload.emit)
        if payload.also:
            context.also(*payload.also)

    @processor.on("tell:everybody")
    async def everybody(context: Context, payload: Any) -> None:
        context.broadcast_to_everybody("sample:told:everybody", payload, exclude=[context.socket_id])
        context.disconnect()
        context.disconnect(
            user_ids=["bob", ""], socket_ids=context.socket_id, room_id="r", code="BANNED", message="bye"
        )
        context.disconnect(user_ids=["eve"])
        if payload == "wrong":
            context.disconnect(user_ids=["eve"], code="banned")

    @processor.on("tell:enter")
    def enter(context: Context, room: str) -> None:
        context.put_in_room(room, user_ids=["bob", ""], socket_ids=context.socket_id)
        context.put_in_room(room, user_ids=["eve"], permissions=[])
        context.put_in_room(room)
        context.remove_from_room(room, user_ids=["mallory"])

    @processor.on("tell:half")
    async def half(context: Context, payload: Any) -> None:
        context.broadcast_to_room("sample:told:room", payload)
        context.also("SET", "also", 1)
        await pause(0)
        raise RuntimeError("secret reason")

    @processor.on("do:refuse")
    async def refuse(context: Context, payload: Any) -> None:
        raise Refused("NOT_NOW", "come back", retry_after=2.5)

    @processor.on("do:fail")
    def fail(context: Context, payload: Any) -> None:
        raise ValueError("secret reason")

    @processor.on("do:flaky")
    async def flaky(context: Context, times: int) -> int:
        tried = int(await context.redis("INCR", f"tried:{context.user_id}"))
        context.broadcast_to_sockets("sample:tried:once", tried, [context.socket_id])
        if tried <= times:
            raise RuntimeError("not yet")
        return tried

    @processor.on("do:sleep")
    async def sleep(context: Context, payload: Sleep) -> dict[str, Any]:
        await context.redis("RPUSH", f"begun:{context.room_id}", payload.mark)
        await pause(payload.seconds)
        context.also("RPUSH", f"done:{context.room_id}", payload.mark)
        context.also("HINCRBY", "by", str(os.getpid()), 1)
        return {"mark": payload.mark, "pid": os.getpid()}

    @processor.on("do:step")
    async def step(context: Context, payload: Sleep) -> None:
        steps, what = f"steps:{context.room_id}", f"{payload.mark} {os.getpid()}"
        await context.redis("RPUSH", steps, f"begun {what}")
        await pause(payload.seconds)
        context.also("RPUSH", steps, f"done {what}")
        context.also("HINCRBY", "by", str(os.getpid()), 1)

    @processor.on("do:write")
    async def write(context: Context, payload: Write) -> None:
        if payload.before:
            await context.redis(*payload.before)
        context.reply("written")
        context.broadcast_to_room("sample:told:room", "written")
        if payload.emit:
            context.emit(payload.emit)
        if payload.also:
            context.also(*payload.also)

    @processor.on("do:hang")
    async def hang(context: Context, payload: Any) -> None:
        await context.redis("RPUSH", f"begun:{context.room_id}", payload)
        while True:
            with suppress(BaseException):  # as those do that wait for a lock of another process
                await pause(3600)

    @processor.on("do:wait")
    async def wait(context: Context, payload: Any) -> None:
        try:
            await context.redis("RPUSH", f"begun:{context.room_id}", payload)
            await pause(3600)
        except BaseException:
            context.broadcast_to_room("sample:told:room", "cancelled" if context.cancelled else "stopped")
            if payload != "tidy":
                raise

    @processor.on("say:parts", timeout=1.0)
    async def parts(context: Context, texts: list[str]) -> Any:
        heard = [await context.progress(text) for text in texts]
        if context.user_id == "flaky" and await context.redis("INCR", "flaky") == 1:
            raise RuntimeError("not yet")
        return heard

    @processor.on("say:slowly", timeout=1.5)
    async def slowly(context: Context, texts: list[str]) -> str:
        for text in texts:
            await pause(0.4)
            await context.progress(text)
        return "".join(texts)

    @processor.on("say:text", timeout=1.5)
    async def text(context: Context, pieces: list[str]) -> Any:
        told = []
        for number, piece in enumerate(pieces):
            await pause(0.5)
            first, last, name = number == 0, number + 1 == len(pieces), f"{context.id}-{number}"
            told.append(await context.append_to_room("sample:told:text", "k", piece, first=first, last=last, id=name))
        return [each.offset for each in told]

    @processor.on("do:long", timeout=60.0)
    async def long(context: Context, seconds: float) -> str:
        await pause(seconds)
        return "done"

    @processor.on("do:block")
    async def block(context: Context, seconds: float) -> dict[str, Any]:
        await context.redis("RPUSH", f"begun:{context.room_id}", 0)
        time.sleep(seconds)
        await context.redis("PING")
        return {"pid": os.getpid()}

    @processor.on("do:die")
    async def die(context: Context, times: int) -> int:
        died = int(await context.redis("INCR", f"died:{context.room_id}"))
        if died <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        return died

    @processor.on("ask:other")
    async def ask(context: Context, payload: Ask) -> Any:
        return {"answer": await context.request(payload.event, payload.payload, timeout=payload.timeout)}

    @processor.on("ask:nobody")
    def emit(context: Context, payload: Ask) -> None:
        context.emit(payload.event, payload.payload)

    @processor.on("ask:room")
    async def room(context: Context, payload: Any) -> Any:
        return await context.who_is_in()

    @processor.on("gateway:client:joined")
    async def joined(context: Context, payload: Any) -> None:
        context.broadcast_to_room("sample:people:changed", sorted(await context.who_is_in()))

    @processor.on("gateway:room:reset")
    async def reset(context: Context) -> None:
        await pause(0.1)
        context.broadcast_to_room("sample:rooms:reset", None, room_id="all")

    return processor


if __name__ == "__main__":
    _, backend, url, settings = sys.argv
    if backend == "asyncio":
        from kraftek.service.asyncio import run
    else:
        from kraftek.service.twisted import run
    run(sample(backend, **json.loads(settings)), url)

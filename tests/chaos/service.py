"""A service of the chaos run: ``python -m tests.chaos.service NAME BACKEND TRANSPORT PARTITIONS URL FILE``.

It writes a line of JSON into the file for every event that a handler was called with, and whatever a handler commits is
counted in Redis, in the same transaction: the hash :data:`DONE`; and written down in :func:`order_key`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from secrets import token_hex
from typing import Any, Literal

from kraftek.service import Context, EventProcessor

__all__ = ["DONE", "order_key"]

DONE = "chaos:done"
"""Hash: how often the handling of each key was committed."""


def order_key(service: str) -> str:
    """List: room and key of whatever the service has committed the handling of, in this order."""
    return f"chaos:order:{service}"


async def pause(backend: str, seconds: float) -> None:
    """Let time pass, by the loop of that backend."""
    if backend == "asyncio":
        await asyncio.sleep(seconds)
    else:
        from twisted.internet import reactor, task  # the one that runs

        await task.deferLater(reactor, seconds)


def answer_in_parts(processor: EventProcessor, backend: str, note: Callable[..., None]) -> None:
    """Have it answer so, and write down how each run of the handler begins and ends."""

    @processor.on("talk:long")
    async def long(context: Context, payload: Any) -> Any:
        key, run = payload["key"], token_hex(4)
        note(context, key, run=run, how="begins")
        try:
            for number in range(payload["parts"]):
                await context.progress({"n": number + 1})
                await pause(backend, payload["every"])
        except BaseException:  # both kinds of being cancelled, and whatever Redis refuses
            note(context, key, run=run, how="is cancelled" if context.cancelled else "fails")
            raise
        context.also("HINCRBY", DONE, f"{processor.name} {key}", "1")
        note(context, key, run=run, how="ends")
        return {"key": key, "parts": payload["parts"]}


def main() -> None:
    """Serve until SIGTERM."""
    _, name, backend, transport, partitions, url, path = sys.argv
    kind: Literal["pubsub", "stream"] = "stream" if transport == "stream" else "pubsub"
    processor = EventProcessor(name, transport=kind, partitions=int(partitions), claim_after=1.0)
    file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def note(context: Context, payload: Any, **more: Any) -> None:
        line = {
            "at": time.monotonic(),
            "type": context.event_type,
            "user": context.user_id,
            "socket": context.socket_id,
            "room": context.room_id,
            "sent": context.timestamp,
            "id": context.id,
            "payload": payload,
            **more,
        }
        os.write(file, json.dumps(line).encode() + b"\n")

    def handle(context: Context, payload: Any) -> None:
        note(context, payload)
        context.also("HINCRBY", DONE, f"{name} {payload}", "1")
        context.also("RPUSH", order_key(name), f"{context.room_id} {payload}")

    @processor.on("say:back")
    def back(context: Context, payload: Any) -> Any:
        handle(context, payload)
        return payload

    @processor.on("note:heard", answers=False)
    def heard(context: Context, payload: Any) -> None:
        handle(context, payload)

    answer_in_parts(processor, backend, note)

    @processor.on("say:much")
    def much(_: Context, payload: Any) -> Any:
        return "x" * 50_000

    @processor.on("gateway:client:joined")
    def joined(context: Context, payload: Any) -> None:
        note(context, payload)

    @processor.on("gateway:client:left")
    def left(context: Context, payload: Any) -> None:
        note(context, payload)

    @processor.on("gateway:room:reset")
    async def reset(context: Context, payload: Any) -> None:
        there = []
        for key in await context.redis("KEYS", "room:*"):
            room = key.decode().removeprefix("room:")
            there += [[user.decode(), room] for user in await context.redis("HKEYS", key)]
        note(context, payload, there=there)

    if backend == "asyncio":
        from kraftek.service.asyncio import run  # one of the two
    else:
        from kraftek.service.twisted import run
    run(processor, url)


if __name__ == "__main__":
    main()

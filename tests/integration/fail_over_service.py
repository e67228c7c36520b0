"""A service of the fail-over tests, as a program: ``python fail_over_service.py BACKEND REDIS_URL NAME TRANSPORT``."""

from __future__ import annotations

import sys
from typing import Any

from kraftek.service import Context, EventProcessor

_, backend, url, name, transport = sys.argv
processor = EventProcessor(name, transport="stream" if transport == "stream" else "pubsub", claim_after=1.0)


@processor.on("say:back")
def back(context: Context, payload: Any) -> Any:
    return payload


@processor.on("say:all")
def say(context: Context, payload: Any) -> None:
    context.broadcast_to_room(f"{name}:said:all", payload)


@processor.on("gateway:client:joined")
async def joined(context: Context, payload: Any) -> None:
    await context.redis("RPUSH", "told", f"joined {context.user_id} {context.room_id}")


@processor.on("gateway:client:left")
async def left(context: Context, payload: Any) -> None:
    await context.redis("RPUSH", "told", f"left {context.user_id} {context.room_id}")


if backend == "asyncio":
    from kraftek.service.asyncio import run
else:
    from kraftek.service.twisted import run
run(processor, url)

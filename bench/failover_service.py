"""The services of `bench.failover`: they print whose requests they handled, and who came and went."""

from __future__ import annotations

import sys
from typing import Any

from kraftek.service import Context, EventProcessor

_, backend, url, name, transport = sys.argv
processor = EventProcessor(name, transport="stream" if transport == "stream" else "pubsub", claim_after=1.0)


@processor.on("say:back")
def back(_: Context, payload: Any) -> Any:
    print("handled", payload, flush=True)
    return payload


@processor.on("tell:room")
def tell(context: Context, payload: Any) -> None:
    context.broadcast_to_room("chat:told:room", payload)


@processor.on("gateway:client:joined")
def joined(context: Context, _: Any) -> None:
    print("joined", context.user_id, flush=True)


@processor.on("gateway:client:left")
def left(context: Context, _: Any) -> None:
    print("left", context.user_id, flush=True)


if backend == "asyncio":
    from kraftek.service.asyncio import run
else:
    from kraftek.service.twisted import run
run(processor, url)

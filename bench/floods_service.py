"""The service that `bench.floods` asks and floods: ``python -m bench.floods_service URL``."""

import sys
from typing import Any

from kraftek.service import Context, EventProcessor
from kraftek.service.asyncio import run

MUCH = "x" * 50_000

chat = EventProcessor("chat")


@chat.on("say:back")
def back(_: Context, payload: Any) -> Any:
    return payload


@chat.on("say:much")
def much(_: Context, __: Any) -> Any:
    return MUCH


@chat.on("say:parts")
async def parts(context: Context, _: Any) -> Any:
    for number in range(100):
        await context.progress([number, MUCH[:100]])
    return "all"


@chat.on("note:tell")
async def tell(context: Context, payload: Any) -> None:
    context.broadcast_to_room("chat:note:told", payload)


@chat.on("note:heard")
def heard(_: Context, __: Any) -> None:
    pass


if __name__ == "__main__":
    run(chat, sys.argv[1])

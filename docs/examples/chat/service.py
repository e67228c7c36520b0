"""The chat's service: sends each message to the room and keeps the last ones for whoever comes, or comes back.

A page asks for ``room:open`` when it has entered the room, and again only if the gateway cannot tell it what it missed.
"""

from typing import Annotated, Any

from msgspec import Meta, Raw, Struct, json

from kraftek.service import Context, EventProcessor
from kraftek.service.asyncio import run

KEPT = 100  # messages of a room

# A room keeps its order by default, so that everybody sees the messages in the order in which they were sent.
chat = EventProcessor("chat", transport="stream")


class Message(Struct):
    text: Annotated[str, Meta(min_length=1, max_length=2000)]
    id: Annotated[str, Meta(min_length=8, max_length=64)]  # by which its page knows it again


@chat.on("message:send")
async def send(context: Context, message: Message) -> dict[str, Any]:
    # It begins with the time, so that the numbers grow even if Redis has lost what it had.
    await context.redis("SET", key("count", context), context.timestamp, "NX")
    number = await context.redis("INCR", key("count", context))
    sent = {"number": number, "from": context.user_id, "text": message.text, "id": message.id}
    # All of this happens together when the function returns, also if the event is handled twice.
    context.also("RPUSH", key("messages", context), json.encode(sent))
    context.also("LTRIM", key("messages", context), -KEPT, -1)
    context.broadcast_to_room("chat:message:sent", sent)
    return {"number": number}


@chat.on("room:open")
async def open_room(context: Context, _: Any) -> dict[str, Any]:
    messages = await context.redis("LRANGE", key("messages", context), 0, -1)
    return {"messages": [Raw(message) for message in messages], "people": await people(context)}


@chat.on("gateway:client:joined")
@chat.on("gateway:client:left")
async def announce(context: Context, _: Any) -> None:
    context.broadcast_to_room("chat:people:changed", {"people": await people(context)})


async def people(context: Context) -> list[str]:
    return sorted(await context.who_is_in())


def key(kind: str, context: Context) -> str:
    return f"chat:{kind}:{context.room_id}"


if __name__ == "__main__":
    run(chat)

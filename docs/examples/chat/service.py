"""The chat's service: tells the room each message. The gateway keeps the last ones for who comes, or comes back."""

from typing import Annotated

from msgspec import Meta, Struct

from kraftek.service import Context, EventProcessor
from kraftek.service.asyncio import run

# A room keeps its order by default, so that everybody sees the messages in the order in which they were sent.
chat = EventProcessor("chat", transport="stream")


class Message(Struct):
    text: Annotated[str, Meta(min_length=1, max_length=2000)]
    id: Annotated[str, Meta(min_length=8, max_length=64)]  # by which its page knows it again


@chat.on("message:send")
def send(context: Context, message: Message) -> None:
    # It is told when the function returns, and once, also if the event is handled twice.
    said = {"from": context.user_id, "text": message.text, "id": message.id}
    context.broadcast_to_room("chat:message:sent", said)


if __name__ == "__main__":
    run(chat)

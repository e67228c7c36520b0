from itertools import count

from kraftek.service import Context, EventProcessor
from kraftek.service.asyncio import run

counter = EventProcessor("counter", channel="events:counter")
numbers = count(1)


@counter.on("button:press")
async def press(context: Context):
    context.broadcast_to_room("counter:number:changed", {"number": next(numbers), "by": context.user_id})


run(counter)

import asyncio

from kraftek.service import Context, EventProcessor
from kraftek.service.asyncio import run

counter = EventProcessor("counter", channel="events:counter")
shown = {"number": 0, "by": "nobody"}


@counter.on("button:press")
async def press(context: Context):
    await asyncio.sleep(3)  # hard work, and time to pull the cable
    shown.update(number=shown["number"] + 1, by=context.user_id)
    print(f"{context.user_id} pressed: {shown['number']}", flush=True)
    context.broadcast_to_room("counter:number:changed", shown)
    return shown


@counter.on("number:read")
async def read(context: Context):
    return shown


run(counter)

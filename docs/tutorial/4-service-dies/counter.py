import asyncio
import json

from kraftek.service import Context, EventProcessor
from kraftek.service.asyncio import run

counter = EventProcessor("counter", channel="events:counter", transport="stream")


@counter.on("button:press")
async def press(context: Context):
    shown = await read(context)
    await asyncio.sleep(3)  # hard work, and time to kill it
    shown = {"number": shown["number"] + 1, "by": context.user_id}
    print(f"{context.user_id} pressed: {shown['number']}", flush=True)
    context.also("SET", "counter:shown", json.dumps(shown))
    context.broadcast_to_room("counter:number:changed", shown)
    return shown


@counter.on("number:read")
async def read(context: Context):
    return json.loads(await context.redis("GET", "counter:shown") or '{"number": 0, "by": "nobody"}')


run(counter)

"""The clients, in a process of their own; the stage runs it as ``python -m bench.load``.

The first line on standard input is a `Setting`, each further line an `Order`; each order's `Outcome` is one line on
standard output. The clients are the same for every contender, only their dialect differs.
"""

import asyncio
import gc
import os
import sys

import msgspec
import uvloop

from bench.crowd import Crowd
from bench.drills import carry_out
from bench.orders import Order, Setting


async def obey() -> None:
    """Carry out orders until there are no more."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    setting = msgspec.json.decode(await orders.readline(), type=Setting)
    setting.pids["load"] = [os.getpid()]
    crowd = Crowd(setting)
    await crowd.open_line()
    decoder = msgspec.json.Decoder(Order)
    while line := await orders.readline():
        outcome = await carry_out(decoder.decode(line), crowd)
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.flush()
    os._exit(0)  # thousands of clients need no farewell


if __name__ == "__main__":
    gc.disable()
    uvloop.run(obey())

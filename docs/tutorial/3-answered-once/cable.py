"""A cable to pull: it passes on to the gateway, on port 3001, what comes to port 3000."""

import asyncio
from contextlib import suppress


async def copy(reader, writer):
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
    writer.close()


async def connected(reader, writer):
    gateway_reader, gateway_writer = await asyncio.open_connection("127.0.0.1", 3001)
    await asyncio.gather(copy(reader, gateway_writer), copy(gateway_reader, writer))


async def main():
    async with await asyncio.start_server(connected, "127.0.0.1", 3000) as server:
        await server.serve_forever()


asyncio.run(main())

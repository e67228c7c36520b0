"""A client of the demo, in an environment that has the wheel alone: ``round_trip.py asyncio|twisted URL``.

It opens the board, as the demo's page does, and hears from the service who is there.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any


async def over_asyncio(url: str) -> Any:
    import kraftek.service.asyncio  # noqa: F401  # it is complete, too
    from kraftek.client.asyncio import Client

    async with Client(url, token=lambda refused: "ada", room="kitchen") as client:
        opened = asyncio.get_running_loop().create_future()
        client.on("stickyNotes:board:opened", opened.set_result)
        client.emit("stickyNotes:board:open", {})
        return await asyncio.wait_for(opened, 30)


async def over_twisted(reactor: Any, url: str) -> None:
    from twisted.internet.defer import Deferred

    from kraftek.client.twisted import Client

    client = Client(url, token=lambda refused: "ada", room="kitchen")
    opened: Deferred[Any] = Deferred()
    client.on("stickyNotes:board:opened", opened.callback)
    await client.connect()
    client.emit("stickyNotes:board:open", {})
    check(await opened.addTimeout(30, reactor))
    await client.close()


def check(message: Any) -> None:
    assert message.payload == {"roomId": "kitchen", "notes": []}, message


if __name__ == "__main__":
    backend, url = sys.argv[1:]
    if backend == "asyncio":
        check(asyncio.run(over_asyncio(url)))
    else:
        from twisted.internet.task import react

        react(over_twisted, (url,))

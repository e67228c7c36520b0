"""A client and a service of authors on Twisted, on a reactor that goes by the wall clock: GATEWAY_URL REDIS_URL.

The client asks the service, which asks the service ``chat``. Of each question a line is written: the answer or the
error's code, and the seconds that it took.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from kraftek.client import Refused
from kraftek.client.twisted import Client
from kraftek.service import Context, EventProcessor
from kraftek.service.twisted import EventService

reactor: Any = installed
gateway_url, redis_url = sys.argv[1:]
asking = EventProcessor("asking")


@asking.on("listening:ask")
async def listening(context: Context, payload: Any) -> None:
    context.reply("yes")


@asking.on("question:put")
async def put(context: Context, payload: Any) -> None:
    context.reply(await context.request("chat:message:send", payload, timeout=6.0))


async def ask(client: Client, payload: str, timeout: float) -> None:
    began = time.monotonic()
    try:
        came = await client.request("asking:question:put", payload, timeout=timeout)
    except Refused as error:
        came = error.code
    print(json.dumps([came, time.monotonic() - began]), flush=True)


async def service_listens(client: Client) -> None:
    while True:
        try:
            await client.request("asking:listening:ask")
        except Refused as error:
            if error.code != "SERVICE_UNAVAILABLE":
                raise
            await deferLater(reactor, 0.05)
        else:
            return


async def main() -> None:
    EventService(reactor, asking, redis_url).startService()
    client = Client(gateway_url, lambda _: "ada", room="r1")
    await client.connect()
    await service_listens(client)
    await ask(client, "set the clock, and answer", 8.0)
    await ask(client, "do not answer", 2.0)
    await client.close()
    reactor.stop()


reactor.callWhenRunning(lambda: Deferred.fromCoroutine(main()))
reactor.run()

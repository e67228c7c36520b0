"""python-socketio's client, driven as client.js is: it leaves sockets to the garbage collector, so it has a process."""

from __future__ import annotations

import json
import os
import sys
import threading
from base64 import b64decode, b64encode
from typing import Any

import socketio

client = socketio.Client(reconnection_delay=0.05, reconnection_delay_max=0.2)
one_at_a_time = threading.Lock()


def report(*what: Any) -> None:
    with one_at_a_time:
        print(json.dumps(what, default=lambda data: {"$": b64encode(data).decode()}), flush=True)


def from_wire(value: dict[str, Any]) -> Any:
    return b64decode(value["$"]) if "$" in value else value


client.on("connect", lambda: report("connect", client.get_sid()))
client.on("connect_error", lambda *error: report("connect_error", *error))
client.on("disconnect", lambda reason: report("disconnect", reason))
client.on("*", lambda name, *args: report("event", name, *args))

for line in sys.stdin:
    command, *words = json.loads(line, object_hook=from_wire)
    match command, words:
        case "connect", [url, options]:
            client.connect(url, transports=options.get("transports"), auth=options.get("auth"))
        case "emit", [name, *args]:
            client.emit(name, tuple(args) or None)
        case "request", [name, *args]:
            client.emit(name, tuple(args) or None, callback=lambda *answer: report("ack", *answer))
        case "transport", []:
            report("transport", client.transport())
        case "disconnect", []:
            client.disconnect()
# Its threads may wait to reconnect.
os._exit(0)

"""python-socketio's client, driven as client.js is: it leaves sockets to the garbage collector, so it has a process."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable
from functools import partial
from typing import Any

import engineio
import socketio


class OneAfterTheOther(engineio.Client):  # type: ignore[misc]
    """The library handles each packet in a thread of its own, and the end of the connection in yet another: they
    overtake each other, and an attachment the packet that it belongs to. Here nothing is overtaken.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._todo: queue.Queue[Callable[[], Any]] = queue.Queue()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    def _trigger_event(self, event: str, *args: Any, run_async: bool = False, **options: Any) -> Any:
        handle = partial(super()._trigger_event, event, *args, **options)
        if run_async:
            return self._todo.put(handle)
        if threading.current_thread() is not self._worker:
            caught_up = threading.Event()
            self._todo.put(caught_up.set)
            caught_up.wait(1.0)  # who is told by the server to leave waits for the thread that reads, which may be us
        return handle()

    def _work(self) -> None:
        while True:
            self._todo.get()()


class Client(socketio.Client):  # type: ignore[misc]
    def _engineio_client_class(self) -> type[OneAfterTheOther]:
        return OneAfterTheOther


client = Client(reconnection_delay=0.05, reconnection_delay_max=0.2)
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
        case "started", []:
            report("started")
        case "connect", [url, options]:
            client.connect(url, transports=options.get("transports"), auth=options.get("auth"))
        case "emit", [name, *args]:
            client.emit(name, tuple(args) or None)
        case "request", [name, *args]:
            client.emit(name, tuple(args) or None, callback=lambda *answer: report("ack", *answer))
        case "transport", []:
            report("transport", client.transport())
        case "disconnect", []:
            # While a POST is under way the library forgets to say that it leaves, and waits for the end of its own GET.
            client.eio.queue.join()
            client.disconnect()
# Its threads may wait to reconnect.
os._exit(0)

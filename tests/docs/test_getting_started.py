"""The first event by hand comes out as docs/getting-started.rst says."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING

from tests.docs.pages import code
from tests.docs.test_examples import spoken

if TYPE_CHECKING:
    from tests.integration.conftest import Connect, RedisServer, StartGateway, StartService


def test_the_first_event(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, service: StartService
) -> None:
    notes = service(redis_server, "events:stickyNotes")
    # The fixture has read the first message by itself.
    (_, first), *rest = spoken(code("first-session"))
    assert json.loads(first)["type"] == "connected"
    ada = connect(gateway(redis_server))
    for who, says in rest:
        if who == ">":
            ada.send_raw(says)
        else:
            assert ada.receive() == json.loads(says)

    (event,) = notes.wait_received()
    shown = json.loads(code("first-event"))
    assert event.keys() == shown.keys()
    given = ("eventType", "userId", "roomId", "payload", "id")
    assert [event[key] for key in given] == [shown[key] for key in given]
    command, *arguments = shlex.split(code("first-broadcast").replace("\\\n", ""))
    assert command == "redis-cli"
    redis_server.client().execute_command(*arguments)
    told = ada.expect("stickyNotes:note:created")
    assert told["payload"] == json.loads(arguments[-1])["payload"]

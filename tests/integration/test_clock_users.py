"""The wall clock is set under a client and a service of authors on Twisted, on a reactor that goes by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.wall_clock import WallClock

if TYPE_CHECKING:
    from tests.integration.conftest import Json, RedisServer, StartGateway, StartService

PROGRAM = Path(__file__).resolve().parent / "clock_user.py"
CHANNEL = "events:chat"


@pytest.mark.parametrize("seconds", [-30, 3600], ids=["back", "forward"])
def test_nothing_that_waits_ends_before_its_time(
    seconds: int, redis_server: RedisServer, gateway: StartGateway, service: StartService, tmp_path: Path
) -> None:
    clock = WallClock(tmp_path)
    registered = {
        "asking": {"channel": "events:asking", "reply": True},
        "chat": {"channel": CHANNEL, "reply": True},
    }
    process = gateway(redis_server, services=registered)

    def answer(event: Json) -> None:
        if event["payload"] != "do not answer":
            clock.set(seconds)
            time.sleep(2.0)
            reply = {"type": "chat:message:sent", "payload": "here", "inReplyTo": event["id"]}
            redis_server.client().publish(event["replyTo"], json.dumps({**reply, "recipients": [event["socketId"]]}))

    service(redis_server, CHANNEL, on_event=answer)
    done = subprocess.run(
        [sys.executable, str(PROGRAM), process.url, redis_server.url],
        env={**os.environ, **clock.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (answered, after), (unanswered, late) = map(json.loads, done.stdout.splitlines())
    assert answered == "here"
    assert 2.0 <= after < 7.5
    assert unanswered == "TIMEOUT"
    assert 2.0 <= late < 5.5

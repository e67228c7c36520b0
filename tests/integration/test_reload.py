"""SIGHUP: a changed configuration takes effect under load, and loses nothing."""

from __future__ import annotations

import json
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

from tests.integration.conftest import toml
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Connect, RedisServer, StartGateway, StartService


def answer(event: dict[str, Any]) -> dict[str, Any]:
    return {"type": "x:y:z", "inReplyTo": event["id"], "recipients": [event["socketId"]]}


def test_a_reload_under_load(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, service: StartService, tmp_path: Path
) -> None:
    file = tmp_path / "gateway.toml"
    tables: dict[str, Any] = {
        "auth": {"check": "open"},
        "redis": {"url": redis_server.url},
        "services": {"chat": {"channel": "events:chat", "reply": True}},
    }
    file.write_text(toml(tables))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(15.0)
        process = gateway(args=("--config", str(file)), env={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert systemd.recv(100) == b"READY=1"
        service(redis_server, "events:chat", answer)
        ada = connect(process, token="ada", room="r1")
        over = threading.Event()
        answered: list[str] = []

        def ask() -> None:
            while not over.is_set():
                ada.send("chat:message:send", id=len(answered))
                answered.append(ada.receive()["type"])

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: len(answered) > 5, "the first answers")

        file.write_text("lisen = []\nlimits.rooms = 0")
        process.process.send_signal(signal.SIGHUP)
        process.wait_log("Not reloaded: ")
        assert systemd.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert systemd.recv(100) == b"READY=1"

        tables["services"]["notes"] = "events:notes"
        file.write_text(toml({"sessions": "many", **tables}))
        process.process.send_signal(signal.SIGHUP)
        process.wait_log("Reloaded")
        asked = len(answered)
        wait_until(lambda: len(answered) > asked + 5, "further answers")
        over.set()
        asking.join()

    log = process.log()
    for line in (
        f"Not reloaded: {file}: lisen: unknown key",
        f"Not reloaded: {file}: limits.rooms: expected",
        "services has changed",
        "sessions has changed: that needs a restart",
    ):
        assert line in log
    assert set(answered) == {"x:y:z"}
    ada.send("notes:note:create", id="new")
    refused = ada.receive()
    assert (refused["id"], refused["payload"]["code"]) == ("new", "SERVICE_UNAVAILABLE"), json.dumps(refused)

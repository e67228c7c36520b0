"""The operator's port of a running gateway, while clients talk and Redis comes and goes."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Connect, RedisServer, StartGateway

CONFIG = {"operator": {"listen": ["tcp:0:interface=127.0.0.1"]}}


def asked(url: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_and_health(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    running = gateway(redis_server, config=CONFIG)
    url = "http://" + running.wait_log(re.compile(r"Answering the operator on (\S+)"))[1]
    ada, bob = connect(running, token="ada", room="r"), connect(running, token="bob", room="r")
    redis_server.client().publish("events:broadcast", json.dumps({"type": "a:b:c", "roomId": "r"}))
    ada.expect("a:b:c")
    bob.expect("a:b:c")
    _, text = asked(f"{url}/metrics")
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(numbers["kraftek_sockets"]) == 2
    assert float(numbers["kraftek_rooms"]) == 1
    assert float(numbers["kraftek_redis_up"]) == 1
    assert float(numbers['kraftek_messages_total{direction="in"}']) == 2
    assert float(numbers['kraftek_messages_total{direction="out"}']) == 2
    assert float(numbers["kraftek_cpu_seconds_total"]) > 0
    status, body = asked(f"{url}/health")
    assert (status, json.loads(body)["redis"]) == (200, True)
    assert json.loads(body)["gatewayId"] == ada.socket_id.partition(".")[0]

    redis_server.kill()
    wait_until(lambda: asked(f"{url}/health")[0] == 503, lambda: f"status 503, but {asked(f'{url}/health')}")
    assert "kraftek_redis_up 0.0" in asked(f"{url}/metrics")[1]


def test_what_waits_for_a_service_is_a_number(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    services = {"jobs": {"channel": "events:jobs", "transport": "stream", "reply": True}}
    running = gateway(redis_server, config={**CONFIG, "services": services})
    url = "http://" + running.wait_log(re.compile(r"Answering the operator on (\S+)"))[1]
    ada = connect(running, token="ada", room="r")
    for number in range(3):
        ada.send("jobs:job:do", id=number)
    wait_until(
        lambda: 'kraftek_waiting{service="jobs"} 3.0' in asked(f"{url}/metrics")[1],
        lambda: f"three events that wait, but {asked(f'{url}/metrics')[1]}",
    )
    assert "kraftek_requests 3.0" in asked(f"{url}/metrics")[1]


def test_nobody_is_answered_unless_the_operator_wants_it(redis_server: RedisServer, gateway: StartGateway) -> None:
    running = gateway(redis_server)
    assert "operator" not in running.log()
    assert asked(f"{running.http_url}metrics")[0] == 426

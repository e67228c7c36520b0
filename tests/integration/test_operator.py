"""The operator's port of a running gateway, while clients talk and Redis comes and goes."""

from __future__ import annotations

import json
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Connect, RedisServer, StartGateway

CONFIG = {"operator": {"listen": ["tcp:0:interface=127.0.0.1"]}}

TOKEN = "0123456789abcdef"


def asked(url: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
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


def published(url: str, message: object, **headers: str) -> tuple[int, Any]:
    """Status and answer."""
    given = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", **headers}
    body = json.dumps(message).encode()
    request = urllib.request.Request(f"{url}/publish", body, {name.replace("_", "-"): at for name, at in given.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_whoever_has_the_token_publishes_once_over_any_gateway(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, tmp_path: Path
) -> None:
    file = tmp_path / "publish-token"
    file.write_text(f"{TOKEN}\n", "utf-8")
    file.chmod(0o600)
    config = {**CONFIG["operator"], "publish_token_file": str(file)}
    one, two = (gateway(redis_server, config={"operator": config}) for _ in range(2))
    urls = ["http://" + each.wait_log(re.compile(r"Answering the operator on (\S+)"))[1] for each in (one, two)]
    ada, bob = connect(one, token="ada", room="r"), connect(two, token="bob", room="r")

    key = {"Idempotency_Key": '"invoice-4711"'}
    paid = {"type": "billing:invoice:paid", "payload": {"n": 1}, "userIds": ["user_bob"]}
    for url in (*urls, *urls):
        assert published(url, paid, **key) == (200, {"taken": 2})
    status, problem = published(urls[1], {**paid, "payload": {"n": 2}}, **key)
    assert (status, problem["status"], "another message was published" in problem["detail"]) == (422, 422, True)
    assert published(urls[0], {"type": "news:item:new", "roomId": "r"}) == (200, {"taken": 2})
    assert bob.expect("billing:invoice:paid")["payload"] == {"n": 1}
    bob.expect("news:item:new")
    ada.expect("news:item:new")
    (kept,) = redis_server.client().scan_iter("gateway:published:*")
    assert 86_000 < redis_server.client().ttl(kept) <= 86_400

    assert published(urls[0], paid, Origin="https://evil.example")[0] == 403
    file.write_text("another-0123456789abcdef", "utf-8")
    one.process.send_signal(signal.SIGHUP)
    one.wait_log("Reloaded")
    assert published(urls[0], paid)[0] == 401
    bye = {"type": "disconnect", "userIds": ["user_ada"], "payload": {"code": "BANNED", "message": "bye"}}
    assert published(urls[1], bye) == (200, {"taken": 2})
    assert ada.expect("error")["payload"]["code"] == "BANNED"
    redis_server.kill()
    wait_until(lambda: published(urls[1], paid)[0] == 503, lambda: f"status 503, but {published(urls[1], paid)}")
    assert TOKEN not in one.log() + two.log()

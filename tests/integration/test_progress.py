"""An answer that comes in parts, through two gateways, one of which is killed in the middle of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.service.instances import Instances
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import Connect, RedisServer, StartGateway

SAMPLE = {"channel": "events:sample", "reply": True, "timeout": 5}
TEXTS = ["Be", "cause", " it", " is", " so."]


@pytest.mark.parametrize("kit", ["asyncio", "twisted", "node"])
def test_who_comes_back_to_another_gateway_hears_the_rest(
    kit: str, redis_server: RedisServer, gateway: StartGateway, connect: Connect, stage: ExitStack
) -> None:
    instances = Instances()
    stage.callback(instances.stop)
    instances.start(kit, redis_server.url)
    first, second = (gateway(redis_server, services={"sample": SAMPLE}) for _ in range(2))
    with redis_server.client() as redis:
        wait_until(lambda: redis.pubsub_numsub("events:sample")[0][1] == 1, "the instance", 20)
    event: dict[str, Any] = {"type": "sample:say:slowly", "payload": TEXTS, "id": "q", "roomId": "room"}
    ada = connect(first, "ada", "room")
    ada.send(**event, progress=True)
    part = ada.expect("progress")
    assert (part["id"], part["payload"], part["number"]) == ("q", "Be", 1)
    first.kill()
    ada = connect(second, "ada", "room")
    ada.send(**event, progress={"run": part["run"], "number": 1}, resent=True)
    parts = [ada.expect("progress") for _ in TEXTS[1:]]
    assert [(each["number"], each["payload"]) for each in parts] == [*enumerate(TEXTS, 1)][1:]
    assert {each["run"] for each in parts} == {part["run"]}
    assert ada.expect("sample:say:slowly") == {"type": "sample:say:slowly", "payload": "".join(TEXTS), "id": "q"}

"""The user of Redis that docs/operations.rst makes is permitted all that a gateway does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.docs.pages import code
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import AuthService, Connect, RedisServer, StartGateway

SERVICES = {
    "board": {"channel": "events:board", "transport": "stream", "reply": True, "presence": True, "timeout": 0.2},
    "notes": {"channel": "events:notes", "transport": "stream", "partitions": 2},
    "chat": "events:chat",
}


def test_rights_in_redis(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    redis = redis_server.client()
    redis.execute_command(*code("redis-acl").split())
    url = redis_server.url.replace("redis://", "redis://gateway:secret@")
    auth_service.allow("good", "ada")
    process = gateway(
        redis_server, auth=auth_service.url, services=SERVICES, config={"redis": {"url": url, "prefix": "kraftek:"}}
    )
    ada = connect(process, token="good", room="r1")
    ada.send("board:note:create", id=1)
    assert ada.receive()["payload"]["code"] == "TIMEOUT"
    ada.send("notes:note:create", id=2)
    assert ada.receive()["payload"] == {"receivers": 1}
    ada.send("chat:message:send", id=3)
    assert ada.receive()["payload"]["code"] == "SERVICE_UNAVAILABLE"
    redis.publish("kraftek:events:broadcast", json.dumps({"type": "x:y:z", "roomId": "r1"}))
    ada.expect("x:y:z")
    redis.xadd("kraftek:events:gateway", {"event": json.dumps({"source": "chat", "eventType": "notes:note:create"})})
    redis.xadd("kraftek:events:gateway", {"event": "malformed"})
    wait_until(lambda: redis.xlen("kraftek:events:gateway:dead") == 1, "the dead letter")
    wait_until(lambda: redis.exists("kraftek:access:user:ada"), "the cached answer")
    auth_service.deny("good")
    redis.publish("kraftek:auth:invalidate", json.dumps({"userId": "ada"}))
    ada.expect_error("ACCESS_REVOKED")
    ada.expect_close(4403)
    wait_until(lambda: not redis.exists("kraftek:room:r1"), "the room to be empty")
    process.terminate()

    assert redis.acl_log() == []

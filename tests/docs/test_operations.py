"""What docs/operations.rst says of Redis: the rights that a gateway needs, and what an outage does to revocations."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from docutils import nodes

from kraftek.contract.settings import Config
from kraftek.daemon.reload import LIVE, keys
from tests.docs.pages import CHECKOUT, code, page
from tests.service.instances import Instances
from tests.support.redis_server import oldest_redis_server
from tests.support.sentinels import Sentinels
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import AuthService, Connect, RedisServer, StartGateway, StartRedis

SERVICES = {
    "board": {"channel": "events:board", "transport": "stream", "reply": True, "presence": True, "timeout": 0.2},
    "notes": {"channel": "events:notes", "transport": "stream", "partitions": 2},
    "chat": "events:chat",
    "polls": {"channel": "events:polls", "reply": True},
}


def test_every_setting_is_named_with_what_its_change_takes() -> None:
    document, _ = page(CHECKOUT / "docs/operations.rst")
    (table,) = [each for each in document.findall(nodes.table) if "reload" in each["names"]]
    listed: dict[bool, list[str]] = {True: [], False: []}
    for row in list(table.findall(nodes.row))[1:]:
        names, effect = row.findall(nodes.entry)
        live = not effect.astext().startswith("with a restart")
        listed[live] += [literal.astext() for literal in names.findall(nodes.literal)]
    every = {key for key, _, _ in keys(Config())}
    assert sorted(listed[True]) == sorted(LIVE)
    assert sorted(listed[False]) == sorted(every - LIVE)


@pytest.mark.parametrize("binary", [binary for binary in ("", oldest_redis_server()) if binary is not None])
def test_rights_in_redis(
    binary: str, redis_servers: StartRedis, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    redis_server = redis_servers(binary=binary)
    redis: Any = redis_server.client()
    redis.execute_command(*code("redis-acl").split())
    url = redis_server.url.replace("redis://", "redis://gateway:secret@")
    auth_service.allow("good", "ada")
    process = gateway(
        redis_server, auth=auth_service.url, services=SERVICES, config={"redis": {"url": url, "prefix": "kraftek:"}}
    )
    polls = redis.pubsub(ignore_subscribe_messages=True)
    polls.subscribe("kraftek:events:polls")
    ada = connect(process, token="good", room="r1")
    told = wait_until(lambda: redis.xrange("kraftek:events:board", count=2)[1:], "the presence event")
    assert json.loads(told[0][1]["event"])["eventType"] == "gateway:client:joined"
    ada.send("polls:poll:vote", id=0)
    event = json.loads(wait_until(lambda: polls.get_message(timeout=0.1), "the request")["data"])
    answer = {"type": "polls:poll:voted", "inReplyTo": 0, "recipients": [ada.socket_id]}
    redis.publish(event["replyTo"], json.dumps(answer))
    ada.expect("polls:poll:voted")
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
    assert "refuses" not in process.log()


@pytest.mark.parametrize("backend", ["asyncio", "twisted"])
def test_rights_at_the_sentinels(backend: str, stage: ExitStack, gateway: StartGateway, connect: Connect) -> None:
    sentinels, instances = Sentinels(password="own"), Instances()
    stage.callback(sentinels.close)
    sentinels.start()
    for port in sentinels.ports:
        sentinels.ask(port, *code("sentinel-acl").split())
    url = sentinels.url.replace("?sentinel_password=own", "?sentinel_username=gateway&sentinel_password=secret")
    process = gateway(services={"sample": {"channel": "events:sample", "reply": True}}, config={"redis": {"url": url}})
    stage.callback(instances.stop)
    instances.start(backend, url)
    ada = connect(process, token="ada", room="r1")

    def answered() -> bool:
        ada.send("sample:say:back", id=1, payload="x")
        return bool(ada.receive()["payload"] == "x")

    wait_until(answered, "the service", 20.0)
    for port in sentinels.ports:
        wait_until(partial(_both_listen, sentinels, port), "two subscribers")
        # redis-py tells its name where it may, and goes on where it may not.
        refused = {entry[entry.index("object") + 1] for entry in sentinels.ask(port, "ACL", "LOG")}
        assert refused <= {"client", "client|setinfo"}


def _both_listen(sentinels: Sentinels, port: int) -> bool:
    """Whether both have subscribed, the gateway and the service."""
    with sentinels.client(port) as client:
        subscribed: list[str] = [each["sub"] for each in client.client_list() if each["user"] == "gateway"]
    return subscribed.count("1") == 2


def test_revocation_during_an_outage(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    """As docs/services.rst has it: it takes effect afterwards, also a message that nobody received."""
    redis = redis_server.client()
    redis.execute_command(*code("redis-acl").split())
    url = redis_server.url.replace("redis://", "redis://gateway:secret@")
    process = gateway(redis_server, auth=auth_service.url, config={"redis": {"url": url, "prefix": "kraftek:"}})
    clients = {}
    for name in ("bob", "ada"):
        auth_service.allow(name, name)
        clients[name] = connect(process, token=name, room="r1")
        wait_until(partial(redis.exists, f"kraftek:access:user:{name}"), "the cached answer")

    redis.execute_command("ACL", "SETUSER", "gateway", "off")
    redis.execute_command("CLIENT", "KILL", "USER", "gateway")
    process.wait_log("is unavailable")
    for name in clients:
        auth_service.deny(name)
    redis.delete("kraftek:access:user:ada")
    assert redis.publish("kraftek:auth:invalidate", json.dumps({"userId": "bob"})) == 0
    redis.execute_command("ACL", "SETUSER", "gateway", "on")
    process.wait_log("is back")

    for client in clients.values():
        client.expect_error("ACCESS_REVOKED")
        client.expect_close(4403)
    again = connect(process)
    again.send("authenticate", payload={"token": "bob", "roomId": "r1"})
    again.expect_error("AUTH_FAILED")

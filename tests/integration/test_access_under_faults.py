"""Access while links are cut, Redis comes back with its data or older ones, and the auth service hangs or is down."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.test_access import digest
from tests.support.forwarder import Forwarder
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import AuthService, Connect, Gateway, RedisServer, StartGateway

CHANNEL = "events:stickyNotes"
BAN = '{"userId": "ada"}'


def gone(redis: Any, key: str) -> bool:
    return not redis.exists(key)


def refused(process: Gateway, connect: Connect, token: str = "ada") -> None:
    """A new login by this token is refused."""
    client = connect(process)
    client.send("authenticate", payload={"token": token, "roomId": "r1"})
    client.expect_error("AUTH_FAILED")


@pytest.mark.parametrize("others", [0, 1])
def test_an_invalidation_while_the_links_are_cut(
    redis_server: RedisServer,
    gateway: StartGateway,
    connect: Connect,
    auth_service: AuthService,
    stage: ExitStack,
    others: int,
) -> None:
    """A lone gateway asks about everybody again; one beside another only about who was invalidated."""
    for name in ("ada", "bob"):
        auth_service.allow(name, name)
    forwarder = Forwarder(redis_server.port)
    stage.callback(forwarder.close)
    config = {"redis": {"url": f"redis://127.0.0.1:{forwarder.port}/0"}}
    for _ in range(others):
        gateway(redis_server, auth=auth_service.url)
    process = gateway(redis_server, auth=auth_service.url, config=config)
    clients = {name: connect(process, token=name, room="r1") for name in ("ada", "bob")}
    redis = redis_server.client()
    wait_until(partial(redis.exists, "access:user:ada", "access:user:bob"), "cached answers")
    forwarder.refuse()
    process.wait_log("is unavailable")
    wait_until(lambda: redis.pubsub_numsub("auth:invalidate") == [("auth:invalidate", others)], "the end of its links")
    auth_service.deny("ada")
    assert redis.publish("auth:invalidate", BAN) == others
    forwarder.admit()
    process.wait_log("is back", 20.0)
    refused(process, connect)
    clients["ada"].expect_error("ACCESS_REVOKED", 10.0)
    clients["ada"].expect_close(4403)
    clients["bob"].expect_nothing()
    wait_until(lambda: others or ("bob", "r1") in auth_service.questions[2:], "a question about bob")
    assert auth_service.questions.count(("bob", "r1")) == 2 - others


@pytest.mark.parametrize("saved", ["after", "before"])
def test_access_taken_back_while_redis_restarts(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService, saved: str
) -> None:
    """With its data, or killed and back with an older snapshot, in which who was refused since is let in."""
    auth_service.allow("ada", "ada")
    one, two = (gateway(redis_server, auth=auth_service.url, config={"sessions": "many"}) for _ in range(2))
    ada = connect(one, token="ada", room="r1")
    redis = redis_server.client()
    wait_until(partial(redis.exists, "access:user:ada"), "a cached answer")
    redis.save()
    if saved == "before":
        auth_service.deny("ada")
        redis.publish("auth:invalidate", BAN)
        ada.expect_error("ACCESS_REVOKED")
        wait_until(lambda: not redis.exists("access:user:ada"), "no cached answer")
    redis_server.kill(keep=True)
    for process in (one, two):
        process.wait_log("is unavailable")
    auth_service.deny("ada")
    redis_server.start()
    assert redis.exists("access:user:ada")
    for process in (one, two):
        process.wait_log("is back", 20.0)
        refused(process, connect)
    if saved == "after":
        ada.expect_error("ACCESS_REVOKED", 10.0)
    ada.expect_close(4403)


def test_both_keys_deleted_during_the_first_check(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    auth_service.allow("ada", "ada")
    auth_service.mode = "slow"
    process = gateway(redis_server, auth=auth_service.url)
    ada = connect(process)
    ada.send("authenticate", payload={"token": "ada", "roomId": "r1"})
    auth_service.wait_questions(1)
    auth_service.deny("ada")
    redis = redis_server.client()
    assert redis.delete(f"access:token:{digest('ada')}", "access:user:ada") == 1
    auth_service.mode = "ok"
    auth_service.release()
    ada.expect_error("AUTH_FAILED")
    assert auth_service.questions == [("ada", "r1")] * 2
    assert not redis.exists("access:user:ada")


def test_the_auth_service_is_down_for_longer_than_an_answer_is_kept(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    """The keys of an answer expire one after the other, here by an operator's hand; nobody loses anything by it."""
    auth_service.allow("ada", "ada", ttl=1)
    process = gateway(redis_server, auth=auth_service.url)
    ada = connect(process, token="ada", room="r1")
    redis = redis_server.client()
    keys = f"access:token:{digest('ada')}", "access:user:ada"
    wait_until(partial(redis.exists, keys[1]), "a cached answer")
    auth_service.mode = "down"
    ledger = redis.hgetall("access-ledger:ada")
    redis.hset("access-ledger:ada", mapping=dict.fromkeys(ledger, int(time.time() * 1_000_000)))
    for key in keys:
        redis.pexpire(key, 100)
        wait_until(partial(gone, redis, key), f"the end of {key}")
        for _ in range(20):
            assert redis.publish("events:broadcast", '{"type": "said", "roomId": "r1"}') == 1
            ada.expect("said")


def test_who_is_banned_while_the_auth_service_hangs_hears_nothing_more(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, auth_service: AuthService
) -> None:
    for name in ("ada", "bob"):
        auth_service.allow(name, name)
    process = gateway(redis_server, auth=auth_service.url, config={"auth": {"timeout": 10}})
    ada, bob = (connect(process, token=name, room="r1") for name in ("ada", "bob"))
    redis = redis_server.client()
    wait_until(partial(redis.exists, "access:user:ada", "access:user:bob"), "cached answers")
    auth_service.mode = "slow"
    auth_service.deny("ada")
    for name in ("ada", "bob"):
        redis.publish("auth:invalidate", f'{{"userId": "{name}"}}')
    auth_service.wait_questions(4)
    for number in range(3):
        redis.publish("events:broadcast", f'{{"type": "secret", "payload": {number}, "roomId": "r1"}}')
    redis.publish("events:broadcast", '{"type": "yours", "userIds": ["ada", "bob"]}')
    auth_service.mode = "ok"
    auth_service.release()
    ada.expect_error("ACCESS_REVOKED")
    ada.expect_close(4403)
    assert [bob.receive()["type"] for _ in range(4)] == ["secret"] * 3 + ["yours"]

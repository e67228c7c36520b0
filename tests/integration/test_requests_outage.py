"""Requests while Redis is lost or refuses: none is refused that its service has, and none runs twice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.test_requests import CHAT, Backstage, ask, nothing_more, refused
from tests.support.relay import Relay
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import Client, Connect, Gateway, RedisServer, StartGateway

SERVICES = {"chat": {"channel": "events:chat", "reply": True}, "notes": "events:notes"}
ANSWER = {"type": CHAT, "payload": "once", "id": "a-1"}


@pytest.fixture
def relay(stage: ExitStack, redis_server: RedisServer) -> Relay:
    made = Relay(redis_server.port)
    stage.callback(made.close)
    return made


@pytest.fixture
def here(redis_server: RedisServer, relay: Relay, gateway: StartGateway) -> Gateway:
    """A gateway whose connections to Redis can be cut."""
    url = f"redis://127.0.0.1:{relay.port}/0"
    return gateway(redis_server, services=SERVICES, config={"redis": {"url": url}, "sessions": "many"})


@pytest.fixture
def there(redis_server: RedisServer, gateway: StartGateway) -> Gateway:
    return gateway(redis_server, services=SERVICES, config={"sessions": "many"})


@pytest.fixture
def chat(redis_server: RedisServer) -> Backstage:
    return Backstage(redis_server, "events:chat")


def cut(relay: Relay, gateway: Gateway) -> int:
    """Cut its connections to Redis; where its log ends then."""
    end = len(gateway.log())
    relay.cut()
    gateway.wait_log("is unavailable, trying again", after=end)
    return end


def mend(relay: Relay, gateway: Gateway, end: int) -> None:
    relay.mend()
    gateway.wait_log("is back after", after=end)


def test_sent_again_while_its_gateway_has_lost_redis(
    redis_server: RedisServer, relay: Relay, here: Gateway, there: Gateway, connect: Connect, chat: Backstage
) -> None:
    """To the same gateway, and to another one; the socket is lost before Redis, and after it."""

    def asked() -> tuple[Client, Any]:
        ada = connect(here, token="ada", room="r1")
        ask(ada, "a-1")
        return ada, chat.hear()

    def answered(again: Client, event: Any) -> None:
        chat.hear_nothing()
        if chat.reply(event, "once") == 0:
            chat.reply_to_user(event, "once")
        assert again.receive() == ANSWER
        nothing_more(again, redis_server)
        again.close()
        redis_server.client().flushall()

    ada, event = asked()
    end = cut(relay, here)
    ada.close()
    again = connect(here, token="ada", room="r1")
    ask(again, "a-1")
    again.expect_nothing()
    mend(relay, here, end)
    answered(again, event)

    ada, event = asked()
    end = cut(relay, here)
    ada.close()
    again = connect(there, token="ada", room="r1")
    ask(again, "a-1")
    again.expect_nothing()
    answered(again, event)
    mend(relay, here, end)

    ada, event = asked()
    again = connect(here, token="ada", room="r1")
    end = cut(relay, here)
    ada.close()
    ask(again, "a-1", resent=True)
    ask(again, "new")
    refused(again, "SERVICE_UNAVAILABLE", "new")
    again.expect_nothing()
    mend(relay, here, end)
    answered(again, event)


def test_redis_is_lost_under_a_request(
    redis_server: RedisServer, relay: Relay, here: Gateway, connect: Connect, chat: Backstage
) -> None:
    """Its service has it, or has not: the client is told which, and by whom."""
    ada = connect(here, token="ada", room="r1")
    relay.deafen()
    ask(ada, "a-1")
    event = chat.hear()
    mend(relay, here, cut(relay, here))
    assert chat.reply(event, "once") == 1
    assert ada.receive() == ANSWER

    notes = Backstage(redis_server, "events:notes")
    relay.deafen()
    ask(ada, "a-2", event="notes:note:create")
    notes.hear()
    mend(relay, here, cut(relay, here))
    assert ada.receive() == {"type": "ack", "payload": {"receivers": 1}, "id": "a-2"}

    relay.mute()
    ask(ada, "a-3")
    ada.expect_nothing()
    mend(relay, here, cut(relay, here))
    assert "did not arrive" in refused(ada, "SERVICE_UNAVAILABLE", "a-3")["message"]
    ask(ada, "a-3")
    assert chat.hear()["id"] == "a-3"
    nothing_more(ada, redis_server)
    chat.hear_nothing()
    notes.hear_nothing()


REFUSES = {
    "MISCONF": {"save": "3600 1"},
    "NOREPLICAS": {"min-replicas-to-write": "1"},
    "OOM": {"maxmemory": "1"},
}
TAKES = {"save": "", "min-replicas-to-write": "0", "maxmemory": "0"}


def test_redis_refuses_writes(
    redis_server: RedisServer, here: Gateway, there: Gateway, connect: Connect, chat: Backstage
) -> None:
    """What is new is refused at once, what its service has is answered, and nothing runs twice afterwards."""
    bus = redis_server.client()
    place = Path(str(bus.config_get("dir")["dir"]))
    (place / "dump.rdb" / "in the way").mkdir(parents=True)
    bus.bgsave()
    wait_until(lambda: bus.info("persistence")["rdb_last_bgsave_status"] == "err", "a snapshot that failed")
    for kind, settings in REFUSES.items():
        ada, bob = connect(here, token="ada", room="r1"), connect(here, token="bob", room="r1")
        ask(ada, kind)
        event = chat.hear()
        for name, value in settings.items():
            bus.config_set(name, value)
        ask(bob, "new", kind)
        assert refused(bob, "SERVICE_UNAVAILABLE", "new")["retryAfter"] == 1.0
        ada.close()
        again, elsewhere = connect(here, token="ada", room="r1"), connect(there, token="ada", room="r1")
        for client in (again, elsewhere):
            ask(client, kind)
            client.expect_nothing()
        assert chat.reply(event, "once") == 1
        assert again.receive() == {**ANSWER, "id": kind}
        for name, value in TAKES.items():
            bus.config_set(name, value)
        assert elsewhere.receive() == {**ANSWER, "id": kind}
        ask(bob, "new", kind)
        chat.reply(chat.hear(), "now")
        assert bob.receive() == {"type": CHAT, "payload": "now", "id": "new"}
        for client in (again, elsewhere, bob):
            nothing_more(client, redis_server)
        chat.hear_nothing()

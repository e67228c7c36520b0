"""The rule for a service's user of Redis in docs/operations.rst suffices for all that the SDKs do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kraftek.contract.names import HISTORY_RULES, history_log_key, late_answer_key
from kraftek.service.testing import Contract
from tests.docs.pages import code
from tests.service.instances import Instances, registered, stopped
from tests.support.redis_server import PrivateRedis
from tests.support.waiting import wait_until

PREFIX = "kraftek:"
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("asyncio", {}),
    ("twisted", {}),
    ("node", {}),
    ("asyncio", {"transport": "stream", "partitions": 2}),
    ("twisted", {"transport": "stream"}),
    ("node", {"transport": "stream", "partitions": 2}),
]


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    server = PrivateRedis()
    server.start()
    server.call(*code("service-acl").replace("chat", "sample").split(" "))
    yield server
    server.close()


@pytest.mark.parametrize(("backend", "way"), WAYS, ids=["-".join((backend, *way)) for backend, way in WAYS])
def test_the_rule_of_the_manual_suffices(server: PrivateRedis, backend: str, way: dict[str, Any]) -> None:
    settings = {**way, "prefix": PREFIX, "register": True}
    url = server.url.replace("unix://", "unix://sample:secret@")
    instances = Instances()
    process = instances.start(backend, url, **settings)
    contract = Contract(server.url)
    redis: Any = contract.redis
    contract.reply_to = PREFIX + contract.reply_to
    contract._subscription.subscribe(contract.reply_to)
    try:
        processor = registered(**settings)
        contract.register(processor)
        contract.wait_for(processor)
        ada = contract.client("ada", "kept")
        assert ada.request("sample:ask:room") == {"ada": ada.socket_id}
        said = {"rooms": ["kept", "there"], "emit": "other:thing:set"}
        assert ada.request("sample:tell:rooms", said) is None
        assert contract.emitted()["eventType"] == "other:thing:set"
        rules = json.dumps([["room:kept", False, 9, 60_000, 9000], ["user:", "", 9, 60_000, 9000]])
        redis.hset(PREFIX + HISTORY_RULES, mapping={"rules": rules, "generation": "g"})
        assert ada.request("sample:tell:rooms", said) is None
        ada.send("sample:tell:rooms", {"rooms": ["kept"], "users": ["ada", "bob"]})
        wait_until(lambda: redis.xlen(PREFIX + history_log_key("room:kept")) == 2, "two messages that are kept")
        wait_until(lambda: redis.xlen(PREFIX + history_log_key("user:bob")) == 1, "one that is kept for a user")
        contract._subscription.unsubscribe()
        ada.send("sample:say:back", 1, id="q1", replyTo=f"{PREFIX}events:reply:gone")
        late = PREFIX + late_answer_key(ada.socket_id, "q1")
        wait_until(lambda: redis.exists(late) == 1, "an answer that waits")
        refused = [(entry["reason"], entry["object"]) for entry in redis.acl_log()]
        assert refused == []
        stopped(process)
    finally:
        instances.stop()
        contract.close()

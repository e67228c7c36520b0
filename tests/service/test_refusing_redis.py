"""While Redis takes no writes, an event of a stream waits: no attempt is counted, and nothing is put with the dead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kraftek.service import Context, EventProcessor
from kraftek.service.testing import Contract
from tests.support.redis_server import PrivateRedis
from tests.support.waiting import wait_until

REFUSALS = {
    "OOM": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    "READONLY": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
}


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    server = PrivateRedis()
    server.start()
    yield server
    server.close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # redis-py's, of connections that are dropped
@pytest.mark.parametrize("writes", ["within", "after"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_an_event_waits(refusal: str, writes: str, server: PrivateRedis) -> None:
    refuse, accept = REFUSALS[refusal]
    log = EventProcessor("log", transport="stream", attempts=2, claim_after=0.5)
    calls: list[str] = []

    @log.on("line:add")
    async def add(context: Context, payload: Any) -> str:
        calls.append(payload)
        if len(calls) == 1:
            server.call(*refuse)
        if writes == "within":
            await context.redis("SET", "last", payload)
        context.also("SET", "last", payload)
        return "added"

    contract = Contract(server.url)
    try:
        contract.run(log)
        ada = contract.client("ada", "r")
        ada.send("log:line:add", "first", id=1)
        wait_until(lambda: len(calls) > (3 if writes == "within" else 0), "attempts", 20.0)
        if writes == "after":
            # As long as an instance that was dead would have kept it from others, three times over.
            assert contract.hear(1.5) is None
        server.call(*accept)
        assert ada.receive(20.0) == {"type": "log:line:add", "payload": "added", "id": 1}
        assert server.call("XLEN", "events:log:dead") == 0
        assert server.call("XPENDING", "events:log", "log")["pending"] == 0
    finally:
        contract.close()

"""A service with the kit for Node does with its events what one with the kit for Python does: the same tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.service import test_contract
from tests.service.instances import Instances, stopped
from tests.support.redis_server import PrivateRedis

WAYS = {
    "pubsub": {},
    "stream": {"transport": "stream"},
    "partitions": {"transport": "stream", "partitions": 2},
}

OF_PYTHON = {
    "test_a_function_may_block_a_thread",
    "test_a_payload_is_of_any_type_that_msgspec_knows",
    "test_redis_answers_with_bytes_or_text",
    "test_what_a_context_awaits_is_of_its_backend",
}


@pytest.fixture(scope="module", params=[*WAYS.values()], ids=[*WAYS])
def stage(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """A Redis and one process of the service, for all tests of one way."""
    server, instances = PrivateRedis(), Instances()
    server.start()
    process = instances.start("node", server.url, **request.param)
    yield server.url, request.param
    logged = stopped(process)
    assert "An event was lost" not in logged
    server.close()


contract = test_contract.contract
globals().update(
    {name: test for name, test in vars(test_contract).items() if name.startswith("test_") and name not in OF_PYTHON}
)

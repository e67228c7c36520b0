"""The connection for a thread, to a real Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kraftek.bus.blocking import BlockingConnection
from kraftek.contract.redis_url import RedisAddress, redis_address
from tests.support.redis_server import PrivateRedis


@pytest.fixture
def redis() -> Iterator[PrivateRedis]:
    server = PrivateRedis()
    server.start()
    yield server
    server.close()


def test_it_asks_and_connects_again(redis: PrivateRedis) -> None:
    address: RedisAddress | None = None
    link = BlockingConnection(lambda: address, "", 5.0)
    with pytest.raises(OSError, match="not known yet"):
        link.call("PING")
    address = redis_address(redis.url.replace("db=0", "db=3"))
    link.call("SET", "größe", 7)
    assert link.call("GET", "größe") == b"7"
    with pytest.raises(OSError, match="ERR unknown command"):
        link.call("NONE", "such")
    assert link.call("GET", "größe") == b"7"
    redis.kill()
    with pytest.raises(OSError):  # noqa: PT011  # closed, reset or refused: it depends on when
        link.call("PING")
    link.close()
    redis.start()
    assert link.call("ECHO", "again") == b"again"
    link.close()
    link.close()


def test_it_logs_in(redis: PrivateRedis) -> None:
    redis.call("ACL", "SETUSER", "ann", "on", ">secret", "~*", "+@all")
    place = redis.url.removeprefix("unix://")
    link = BlockingConnection(lambda: redis_address(f"unix://ann:secret@{place}"), "", 5.0)
    assert link.call("ACL", "WHOAMI") == b"ann"
    link.close()
    refused = BlockingConnection(lambda: redis_address(f"unix://ann:wrong@{place}"), "", 5.0)
    with pytest.raises(OSError, match="WRONGPASS"):
        refused.call("PING")
    refused.close()

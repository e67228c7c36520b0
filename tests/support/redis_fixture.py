"""A Redis for a module of tests. ``tests/conftest.py`` has pytest load it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.redis_server import PrivateRedis

__all__ = ["server"]


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateRedis]:
    """The same for all tests of a module: what one leaves there the next one finds."""
    server = PrivateRedis()
    server.start()
    yield server
    server.close()

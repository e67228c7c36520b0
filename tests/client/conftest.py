"""Both clients, one after the other; and the integration tests' real parts, for tests of them with a real gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.client.backends import BACKENDS, BackendThread, MakeUser, User
from tests.integration.conftest import (
    auth_service,
    connect,
    gateway,
    redis_server,
    redis_servers,
    service,
    stage,
    starter,
)
from tests.support.waiting import wait_until

__all__ = ["auth_service", "connect", "gateway", "redis_server", "redis_servers", "service", "stage", "starter"]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[BackendThread]:
    """Where clients live."""
    thread = BACKENDS[request.param]()
    yield thread
    thread.stop()


@pytest.fixture(params=["javascript", *BACKENDS])
def library(request: pytest.FixtureRequest) -> str:
    """Each of the client libraries, by its name."""
    name: str = request.param
    return name


@pytest.fixture
def user(backend: BackendThread, stage: ExitStack) -> MakeUser:
    """Users: call it to make one. In the end their clients are closed, and have left nothing behind."""

    def clean() -> None:
        wait_until(
            lambda: backend.run(backend.leftovers) == [],
            lambda: f"nothing left behind: {backend.run(backend.leftovers)}",
        )

    stage.callback(clean)

    def make(url: str, token: Callable[[bool], Any] = lambda _: "ada", **options: Any) -> User:
        made = User(backend, url, token, {"room": "r1", "random": lambda: 0.05, **options})
        stage.callback(made.run, "close")
        return made

    return make

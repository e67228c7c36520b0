"""Both clients, one after the other; and the integration tests' real parts, for tests of them with a real gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.client.doors import DOORS, DoorThread, MakeUser, User
from tests.integration.conftest import auth_service, connect, gateway, redis_server, service, stage
from tests.support.waiting import wait_until

__all__ = ["auth_service", "connect", "gateway", "redis_server", "service", "stage"]


@pytest.fixture(scope="module", params=DOORS)
def door(request: pytest.FixtureRequest) -> Iterator[DoorThread]:
    """Where clients live."""
    thread = DOORS[request.param]()
    yield thread
    thread.stop()


@pytest.fixture
def user(door: DoorThread, stage: ExitStack) -> MakeUser:
    """Users: call it to make one. In the end their clients are closed, and have left nothing behind."""

    def clean() -> None:
        wait_until(lambda: door.run(door.leftovers) == [], lambda: f"nothing left behind: {door.run(door.leftovers)}")

    stage.callback(clean)

    def make(url: str, token: Callable[[bool], Any] = lambda _: "ada", **options: Any) -> User:
        made = User(door, url, token, {"room": "r1", "random": lambda: 0.05, **options})
        stage.callback(made.run, "close")
        return made

    return make

"""Marks are read off the code, and are true."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.needs import Guard, reached


def start() -> None:
    subprocess.run(["true"], check=True)


def idle() -> None:
    """Names nothing."""


class Starter:
    """Starts something once it is made."""

    def __init__(self) -> None:
        start()


class Case:
    def through_a_fellow(self) -> None:
        self.fellow()

    def fellow(self) -> None:
        PrivateRedis()

    def alone(self) -> None:
        idle()

    @property
    def place(self) -> Any:
        return Starter()

    def through_a_property(self) -> Any:
        return self.place


class PrivateRedis:
    """Known by its name."""

    def __init__(self) -> None:
        start()


STARTERS = {"first": Starter}


def inside() -> Callable[[], list[Starter]]:
    return lambda: [Starter()]


def from_a_table() -> Any:
    return STARTERS["first"]()


def imported_here() -> None:
    import subprocess as programs

    programs.run(["true"], check=True)


def wrapping(function: Callable[[], None]) -> Callable[[], None]:
    def wrapped() -> None:
        function()

    return wrapped


wrapped_start, wrapped_idle = wrapping(start), wrapping(idle)


# By name, because what a test is given is part of what it reaches.
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("idle", set()),
        ("start", {"process"}),
        ("Starter", {"process"}),
        ("inside", {"process"}),
        ("from_a_table", {"process"}),
        ("imported_here", {"process"}),
        ("wrapped_start", {"process"}),
        ("wrapped_idle", set()),
        ("PrivateRedis", {"redis"}),
        ("Case.through_a_fellow", {"redis"}),
        ("Case.through_a_property", {"process"}),
        ("Case.alone", set()),
    ],
)
def test_what_code_reaches(name: str, found: set[str]) -> None:
    owner, _, method = name.rpartition(".")
    place = globals()[owner] if owner else None
    assert reached(getattr(place, method) if place else globals()[name], place) == found


@pytest.fixture
def guard(request: pytest.FixtureRequest) -> Guard:
    plugin = request.config.pluginmanager.get_plugin("guard")
    assert isinstance(plugin, Guard)
    return plugin


def test_a_test_without_marks_starts_no_process(guard: Guard) -> None:
    with pytest.raises(PermissionError):
        os.posix_spawn("/bin/true", ["true"], {})
    with pytest.raises(PermissionError):
        os.fork()
    assert guard.refused == ["to start true", "to start os.fork"]
    guard.refused.clear()


def test_a_test_without_marks_talks_to_no_other_machine(guard: Guard) -> None:
    with socket.socket() as plain, pytest.raises(PermissionError):
        plain.connect(("192.0.2.1", 80))
    assert guard.refused == ["to connect to 192.0.2.1"]
    guard.refused.clear()


@pytest.mark.redis
def test_a_redis_may_be_started_and_nothing_else(guard: Guard) -> None:
    with pytest.raises(FileNotFoundError):
        os.posix_spawn("/nowhere/redis-server", ["redis-server"], {})
    with pytest.raises(PermissionError):
        os.posix_spawn("/nowhere/twistd", ["twistd"], {})
    assert guard.refused == ["to start twistd"]
    guard.refused.clear()


def test_the_marks_of_this_very_test(request: pytest.FixtureRequest) -> None:
    assert [mark.name for mark in request.node.iter_markers()] == []


@pytest.fixture
def server() -> str:
    """In place of that of ``tests/support/redis_fixture.py``."""
    return "nothing that was started"


def test_what_is_overridden_is_not_needed(server: str, request: pytest.FixtureRequest) -> None:
    assert server == "nothing that was started"
    assert request.node.get_closest_marker("redis") is None

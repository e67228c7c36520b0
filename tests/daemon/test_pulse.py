"""How late the reactor is, and when the service manager hears from it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from kraftek.daemon.pulse import Pulse
from kraftek.daemon.systemd import watchdog_interval


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def heard(systemd: socket.socket) -> list[bytes]:
    messages = []
    while True:
        try:
            messages.append(systemd.recv(100))
        except BlockingIOError:
            return messages


def started(watchdog: float = 0.0) -> tuple[Clock, Pulse]:
    clock = Clock()
    clock.advance(100)
    pulse = Pulse(clock, watchdog)
    pulse.start()
    return clock, pulse


def test_the_service_manager_hears_of_it_in_time(systemd: socket.socket) -> None:
    clock, _ = started(15.0)
    assert heard(systemd) == [b"WATCHDOG=1"]
    clock.pump([0.25] * 59)
    assert heard(systemd) == []
    clock.pump([0.25] * 2)
    assert heard(systemd) == [b"WATCHDOG=1"]


def test_also_when_it_wants_to_hear_often(systemd: socket.socket) -> None:
    clock, _ = started(0.05)
    clock.pump([0.05] * 4)
    assert len(heard(systemd)) == 5


def test_nobody_hears_of_it_without_a_watchdog(systemd: socket.socket) -> None:
    clock, _ = started()
    clock.pump([0.25] * 200)
    assert heard(systemd) == []


def test_the_longest_delay_is_remembered_for_a_while() -> None:
    clock, pulse = started()
    clock.pump([0.25] * 4)
    assert pulse.lag() == 0
    clock.advance(2.25)
    assert pulse.lag() == 2
    clock.pump([0.25] * 56)
    assert pulse.lag() == 2
    clock.pump([0.25] * 66)
    assert pulse.lag() == 0


def test_it_ends() -> None:
    clock, pulse = started(1.0)
    pulse.stop()
    pulse.stop()
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "30000000"}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, 0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ""}, 15),
        ({"WATCHDOG_USEC": ""}, 0),
        ({"WATCHDOG_USEC": "-1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
    ],
)
def test_what_systemd_asks_of_this_process(environ: dict[str, str], seconds: float) -> None:
    assert watchdog_interval(environ, 7) == seconds

"""What the daemon does to a process that is its own."""

from __future__ import annotations

import atexit
import faulthandler
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kraftek.daemon.garbage import INTERVAL
from kraftek.daemon.own_process import OwnProcess
from kraftek.daemon.signals import Signals

SIGNALS = (signal.SIGHUP, signal.SIGUSR2)


@pytest.fixture
def process() -> Iterator[list[Any]]:
    """Signals of this process are put back, and nothing is left to be called at its end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield []
    for number, handler in before.items():
        signal.signal(number, handler)
    atexit.unregister(os._exit)


class Reactor:
    def __init__(self) -> None:
        self.when_running: list[Any] = []

    def callWhenRunning(self, call: Any) -> None:
        self.when_running.append(call)

    def callFromThread(self, call: Any) -> None:
        call()

    def seconds(self) -> float:
        return 0.0


def own_process(
    reactor: Reactor, reload: Callable[[], None] = lambda: None, upgrade: Callable[[], None] = lambda: None
) -> OwnProcess:
    return OwnProcess(reactor, Signals(reactor, reload, lambda: None, lambda: False, upgrade))


def test_signals_are_the_daemons(process: list[Any]) -> None:
    reactor = Reactor()
    own = own_process(reactor, lambda: process.append("reload"), upgrade=lambda: process.append("upgrade"))
    own.begin()
    for number in SIGNALS:
        signal.raise_signal(number)
    assert process == ["reload", "upgrade"]
    assert len(reactor.when_running) == 1  # Twisted's handlers are there only then
    assert faulthandler.is_enabled()


def test_it_leaves_with_a_status(process: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_process(Reactor())
    monkeypatch.setattr(atexit, "register", lambda *call: process.append(call))
    own.leave_with(78)
    assert process == [(os._exit, 78)]


def test_garbage_is_collected_by_and_by() -> None:
    own = own_process(Reactor())
    assert [interval for _, interval in own.sweeps(())] == [INTERVAL]

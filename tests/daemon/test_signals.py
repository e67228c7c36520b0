"""What the first, the second and the third signal do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from kraftek.daemon.signals import Signals

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Reactor:
    """Calls at once what another thread asks for."""

    def callFromThread(self, call: Any) -> None:
        call()


@pytest.fixture
def done() -> Iterator[list[str]]:
    """What was done. Twisted's handler is one of ours; those of this process are put back."""
    done: list[str] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: done.append(f"stop {number}"))
    yield done
    for number, handler in before.items():
        signal.signal(number, handler)


def signals(done: list[str], *, stops: bool = False) -> Signals:
    reload, hurry, upgrade = (partial(done.append, word) for word in ("reload", "hurry", "upgrade"))
    return Signals(Reactor(), reload, hurry, lambda: stops, upgrade)


def send(*numbers: int) -> None:
    for number in numbers:
        signal.pthread_kill(threading.get_ident(), number)  # no other thread of the process gets it


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_stops_and_the_second_hurries(done: list[str], number: int) -> None:
    signals(done).install()
    send(number)
    assert done == [f"stop {number}"]
    send(signal.SIGTERM)
    assert done == [f"stop {number}", "hurry"]


def test_the_first_hurries_what_stops_for_another_reason(done: list[str]) -> None:
    signals(done, stops=True).install()
    send(signal.SIGTERM)
    assert done == ["hurry"]


def test_hanging_up_reloads(done: list[str]) -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signals(done).install_early()
        send(signal.SIGHUP, signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done == ["reload", "reload"]


@pytest.mark.parametrize("gone", [True, False])
def test_hanging_up_stops_when_the_terminal_is_gone(
    done: list[str], monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    before = signal.getsignal(signal.SIGHUP)
    hanging = signals(done)
    terminal, standard_input = os.openpty()
    try:
        monkeypatch.setattr("kraftek.daemon.signals._STDIN", standard_input)
        hanging.install_early()
        hanging.install()
        if gone:
            os.close(terminal)
        send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
        os.close(standard_input)
        if not gone:
            os.close(terminal)
    assert done == ([f"stop {signal.SIGTERM}"] if gone else ["reload"])


def test_the_third_is_left_to_the_system(done: list[str]) -> None:
    """As a signal shows that ends no process by itself."""
    signals(done).install()
    handle: Any = signal.getsignal(signal.SIGTERM)
    before = signal.signal(signal.SIGURG, handle)
    try:
        send(*[signal.SIGURG] * 5)
        assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGURG, before)
    assert done == [f"stop {signal.SIGURG}", "hurry"]


def test_the_third_ends_the_process() -> None:
    program = """
import os, signal
from kraftek.daemon.signals import Signals
signal.signal(signal.SIGTERM, lambda *_: print("stop", flush=True))
class Reactor:
    callFromThread = staticmethod(lambda call: call())
Signals(Reactor, bool, lambda: print("hurry", flush=True), bool, bool).install()
for _ in range(9):
    os.kill(os.getpid(), signal.SIGTERM)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (-signal.SIGTERM, ["stop", "hurry"], "")


def test_without_handlers_of_twisted_there_are_none(done: list[str]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signals(done).install()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_another_version_is_wanted(done: list[str]) -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        signals(done).install_early()
        send(signal.SIGUSR2)
        assert done == ["upgrade"]
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, before)


def test_what_waited_for_the_handlers_comes_then(done: list[str]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    send(signal.SIGTERM)
    assert done == []
    signals(done).install()
    assert done == [f"stop {signal.SIGTERM}"]

"""The thread beside the loop: it sees who blocks that, and goes on sending meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from kraftek.service import asyncio as over_asyncio
from kraftek.service.backend import Away
from kraftek.service.pulse import Pulse
from tests.support.waiting import wait_until


class Link:
    """Takes commands; the second one fails."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed = 0

    def call(self, *command: Any) -> None:
        self.sent.append(command)
        if len(self.sent) == 2:
            raise Away("gone")

    def close(self) -> None:
        self.closed += 1


def blocks(until: threading.Event) -> None:
    until.wait(30)


@pytest.mark.parametrize(
    ("named", "says"), [(True, "by the handler of chat:message:send, at "), (False, "by /")], ids=["handler", "other"]
)
def test_it_goes_on_while_the_loop_is_blocked_and_says_by_whom(
    monkeypatch: pytest.MonkeyPatch, named: bool, says: str
) -> None:
    link, warned, unblock = Link(), list[str](), threading.Event()

    def warn(text: str) -> None:
        warned.append(text)

    def watch() -> None:
        wait_until(lambda: warned and len(link.sent) > 3, "a warning and commands while the loop is blocked")
        unblock.set()

    async def play() -> None:
        backend = over_asyncio._Backend("redis://127.0.0.1:1")
        backend.start()
        monkeypatch.setattr(backend, "warn", warn)
        monkeypatch.setattr(backend, "blocking", lambda: link)
        handlers = {blocks.__code__: "chat:message:send"} if named else {}
        pulse = Pulse(backend, 0.02, lambda: 0.1, handlers, lambda: ("PING",))
        pulse.start()
        watcher = threading.Thread(target=watch)
        watcher.start()
        blocks(unblock)
        watcher.join()
        assert len(warned) == 1
        closed = link.closed
        pulse.stop()
        await asyncio.to_thread(wait_until, lambda: link.closed > closed, "the end")
        await backend.close()

    asyncio.run(play())
    assert says in warned[0]
    assert link.closed == 2
    assert set(link.sent) == {("PING",)}


def test_a_loop_that_runs_is_not_warned_of_and_nothing_need_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []

    async def play() -> None:
        backend = over_asyncio._Backend("redis://127.0.0.1:1")
        backend.start()
        monkeypatch.setattr(backend, "warn", warned.append)
        asked: list[float] = []

        def beat() -> None:
            asked.append(time.monotonic())

        def limit() -> float:
            return 5.0

        quiet, silent = Pulse(backend, 0.01, limit, {}), Pulse(backend, 0.01, limit, {}, beat)
        quiet.start()
        silent.start()
        async with asyncio.timeout(30):
            while len(asked) < 5:
                await asyncio.sleep(0.01)
        quiet.stop()
        silent.stop()
        await backend.close()

    asyncio.run(play())
    assert warned == []

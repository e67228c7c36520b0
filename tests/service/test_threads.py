"""Handlers in threads, on a loop of their own."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from kraftek.service import asyncio as over_asyncio
from kraftek.service.threads import Threads


def handlers() -> int:
    """How many threads there are for handlers. Others of the process may end meanwhile."""
    return sum(thread.name == "kraftek-handler" for thread in threading.enumerate())


def test_threads_are_used_again_and_give_back_what_happened() -> None:
    caller = ContextVar("caller", default="nobody")
    barrier = threading.Barrier(2, timeout=10)

    def work() -> tuple[str, str]:
        return threading.current_thread().name, caller.get()

    def together() -> int:
        barrier.wait()
        return threading.get_ident()

    def fails() -> None:
        raise LookupError("no such")

    async def play() -> None:
        backend = over_asyncio._Backend("redis://127.0.0.1:1")
        backend.start()
        threads = Threads(backend)
        before = handlers()
        caller.set("ada")
        for _ in range(3):
            assert await threads.run(work) == ("kraftek-handler", "ada")
        assert handlers() == before + 1
        with pytest.raises(LookupError, match="no such"):
            await threads.run(fails)
        assert len(set(await asyncio.gather(threads.run(together), threads.run(together)))) == 2
        assert handlers() == before + 2
        await backend.close()

    asyncio.run(play())


def test_a_thread_that_ends_after_the_loop_is_ignored() -> None:
    go, threads_before = threading.Event(), handlers()

    async def play() -> None:
        backend = over_asyncio._Backend("redis://127.0.0.1:1")
        backend.start()
        task = asyncio.create_task(Threads(backend).run(go.wait))
        await asyncio.sleep(0)
        task.cancel()
        await backend.close()

    asyncio.run(play())
    assert handlers() == threads_before + 1
    go.set()

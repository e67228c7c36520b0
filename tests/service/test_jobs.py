"""The coroutines of a running service, on a loop of their own."""

from __future__ import annotations

import asyncio
import gc

from kraftek.service import asyncio as over_asyncio
from kraftek.service.jobs import Jobs


def test_a_job_that_is_cancelled_before_it_begins_leaves_nothing_behind() -> None:
    begun: list[str] = []

    async def work(name: str) -> None:
        begun.append(name)

    async def play() -> None:
        backend = over_asyncio._Backend("redis://127.0.0.1:1")
        jobs = Jobs(backend, begun.append)
        jobs.spawn(work, "first")
        await jobs.end(10)
        jobs.spawn(work, "never")
        await jobs.end(0)
        await backend.close()

    asyncio.run(play())
    gc.collect()  # where a coroutine that was never awaited is warned of, which is an error here
    assert begun == ["first"]

"""Deadlines of handlers, on a loop of their own."""

from __future__ import annotations

import asyncio
import time

from kraftek.service import asyncio as over_asyncio
from kraftek.service.deadlines import Deadlines
from kraftek.service.jobs import Jobs


async def play(blocks: float) -> list[str]:
    """Whose time has passed: of one that may block the loop, one beside it, and two that wait longer than they may."""
    passed: list[str] = []
    backend = over_asyncio._Backend("redis://127.0.0.1:1")
    jobs = Jobs(backend, passed.append)
    deadlines = Deadlines(backend, jobs, passed.append)

    async def work(name: str, limit: float, takes: float, blocks: float = 0.0) -> None:
        with deadlines.watch(limit, name):
            assert name in deadlines.watched()
            time.sleep(blocks)
            await asyncio.sleep(takes)
        passed.append(f"{name} ended")

    jobs.spawn(work, "later", 0.2, 30.0)
    jobs.spawn(work, "earlier", 0.1, 30.0)
    jobs.spawn(work, "quick", 0.1, 0.0, blocks)
    jobs.spawn(work, "beside", 0.3, 0.05)
    async with asyncio.timeout(30):
        while len(passed) < 4:
            await asyncio.sleep(0.01)
    jobs.stopping = True
    deadlines.stop()
    await jobs.end(0.0)
    await backend.close()
    return passed


def test_who_takes_longer_is_called_and_who_ends_is_not() -> None:
    assert asyncio.run(play(0.0)) == ["quick ended", "beside ended", "earlier", "later"]


def test_a_time_in_which_nothing_ran_is_not_counted() -> None:
    assert sorted(asyncio.run(play(0.5))) == ["beside ended", "earlier", "later", "quick ended"]


def test_nobody_waits_for_a_deadline_that_is_no_more() -> None:
    async def stop() -> None:
        backend = over_asyncio._Backend("redis://127.0.0.1:1")
        jobs = Jobs(backend, print)
        deadlines = Deadlines(backend, jobs, print)
        with deadlines.watch(3600, "nobody"):
            await asyncio.sleep(0)
            jobs.stopping = True
            deadlines.stop()
        await asyncio.wait_for(jobs.end(3600), 10)
        await backend.close()

    asyncio.run(stop())

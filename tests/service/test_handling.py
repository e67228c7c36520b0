"""A handler whose client cancels its request, and one that sends parts of its answer, without a Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, cast

from kraftek.contract.lua import Argument, Script
from kraftek.service import Context, EventProcessor
from kraftek.service import asyncio as over_asyncio
from kraftek.service.handling import Handling
from kraftek.service.jobs import Jobs
from kraftek.service.link import Link


class Here(over_asyncio._Backend):
    """Redis is not asked: what is committed is kept."""

    def __init__(self) -> None:
        super().__init__("redis://127.0.0.1:1")
        self.committed: list[str] = []
        self.listener: Callable[[bytes], None] = lambda _: None

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        self.committed.append(repr(args))
        return 1

    async def call(self, *command: Argument) -> Any:
        self.committed.append(repr(command))
        return 1

    async def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        self.listener = listener

    # Link

    handling: Handling

    async def run_for(self, work: Any, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> int:
        self.handling.goes_on(work)
        return 1


class Place:
    """One service over Pub/Sub."""

    handling: Handling

    def __init__(self) -> None:
        self.backend = Here()
        self.warnings: list[str] = []
        self.ended: list[str] = []
        self.processor = EventProcessor("chat", timeout=0.5)
        self.jobs = Jobs(self.backend, self.warnings.append)

    async def handle(self, id: str) -> list[str]:
        """An event comes; what is committed when its handler has ended."""
        words: dict[str, Any] = {"eventType": "chat:a:b", "userId": "ada", "socketId": "g.1", "id": id, "replyTo": "r"}
        words["progress"] = True
        event = self.processor.open(json.dumps(words).encode())
        ended = asyncio.Event()
        self.backend.committed.clear()

        async def work() -> None:
            await self.handling.published(event, ended.set, self.jobs.begins)

        self.jobs.spawn(work)
        await asyncio.wait_for(ended.wait(), 10)
        return [*self.backend.committed]

    def cancel(self, id: str) -> None:
        """The client cancels it."""
        self.backend.listener(b'{"eventType":"chat:a:b","userId":"ada","id":"%b"}' % id.encode())

    def play(self, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async def played() -> None:
            link = cast("Link", self.backend)
            self.handling = Handling(self.processor, self.backend, self.jobs, link, self.warnings.append)
            self.backend.handling = self.handling
            await self.handling.cancels.begin()
            await story()
            self.jobs.stopping = True
            self.handling.stop()
            await self.jobs.end(10)
            await self.backend.close()

        asyncio.run(played())


def test_a_handler_is_cancelled_and_one_that_waits_is_not_begun() -> None:
    place = Place()
    begun: list[str] = []

    @place.processor.on("a:b")
    async def wait(context: Context) -> str:
        begun.append(str(context.id))
        asyncio.get_running_loop().call_soon(place.cancel, str(context.id))
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            assert context.cancelled
            if context.id == "tidy":
                return "done so far"
            raise
        raise AssertionError

    async def story() -> None:
        (committed,) = await place.handle("q")
        assert "CANCELLED" in committed
        (committed,) = await place.handle("q")
        assert "CANCELLED" in committed
        (committed,) = await place.handle("tidy")
        assert "done so far" in committed
        assert "CANCELLED" not in committed

    place.play(story)
    assert begun == ["q", "tidy"]


def test_each_part_gives_a_handler_its_time_anew() -> None:
    place = Place()

    @place.processor.on("a:b")
    async def slowly(context: Context) -> str:
        for number in range(4):
            await asyncio.sleep(0.2)
            part: Awaitable[bool] = context.progress(number)
            assert await part
        return "all"

    async def story() -> None:
        (committed,) = await place.handle("q")
        assert "all" in committed

    place.play(story)


def test_one_that_takes_longer_has_failed_although_it_was_cancelled() -> None:
    place = Place()

    @place.processor.on("a:b")
    async def stubborn(context: Context) -> None:
        asyncio.get_running_loop().call_soon(place.cancel, "q")
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    async def story() -> None:
        committed = await place.handle("q")
        assert "EVENT_PROCESSING_ERROR" in committed[0]

    place.play(story)

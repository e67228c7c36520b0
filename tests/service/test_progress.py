"""The parts of an answer, as a handler sends them: what leaves, and to whom nothing does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, cast

import pytest

from kraftek.contract.lua import Argument, Script
from kraftek.service import Context, EventProcessor, TooLarge
from kraftek.service.link import Link
from kraftek.service.processor import Incoming

REQUEST: dict[str, Any] = {
    "event_type": "chat:bot:ask",
    "user_id": "ada",
    "socket_id": "g.1",
    "reply_to": "replies",
    "id": 7,
}


class Sent:
    """A link that keeps what is sent, and says whether this instance is the one that sends."""

    def __init__(self, takes: int) -> None:
        self.parts: list[tuple[Sequence[str], Sequence[Argument]]] = []
        self._takes = takes

    def awaitable(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        return coroutine

    async def run_for(self, work: Any, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> int:
        self.parts.append((keys, args))
        return self._takes


def said(*parts: Any, takes: int = 1, settings: dict[str, Any] | None = None, **event: Any) -> tuple[Sent, list[bool]]:
    """What a handler that says these parts sends, and is told of each."""
    link, told = Sent(takes), list[bool]()
    processor = EventProcessor("chat", prefix="k:", **(settings or {}))

    @processor.on("bot:ask")
    async def handle(context: Context) -> None:
        for part in parts:
            told.append(await context.progress(part))

    given = {"progress": True, **REQUEST, **event}
    asyncio.run(processor.handle(Incoming(**given), cast("Link", link)))
    return link, told


def test_each_part_has_its_number_and_one_run() -> None:
    link, told = said("a", {"b": "ö"}, settings={"transport": "stream"})
    assert told == [True, True]
    (keys, first), (again, second) = link.parts
    assert keys == again == ["k:request:parts:g.1#7"]
    run, number, payload, body, reply_to, *_, over = first
    assert (number, payload, reply_to, over) == (1, b'"a"', "replies", 1)
    assert json.loads(cast("bytes", body)) == {
        "type": "gateway:request:progress",
        "payload": {"run": run, "number": 1, "payload": "a"},
        "recipients": ["g.1"],
        "inReplyTo": 7,
    }
    assert (second[0], second[1], second[2]) == (run, 2, '{"b":"ö"}'.encode())


def test_over_pubsub_another_instance_may_be_the_one() -> None:
    link, told = said("a", takes=0)
    assert told == [False]
    assert link.parts[0][1][-1] == 0


@pytest.mark.parametrize("event", [{"progress": False}, {"id": None}, {"socket_id": ""}])
def test_who_wants_no_parts_gets_none(event: dict[str, Any]) -> None:
    link, told = said("a", **event)
    assert told == [False]
    assert link.parts == []


def test_a_part_may_be_too_large() -> None:
    with pytest.raises(TooLarge):
        said("x" * 5000, settings={"message_bytes": 4096})


def test_after_the_answer_there_are_no_parts() -> None:
    context = Context(EventProcessor("chat"), Incoming(progress=True, **REQUEST), cast("Link", Sent(1)))
    assert not context.cancelled
    context.end()
    with pytest.raises(RuntimeError, match="has ended"):
        asyncio.run(cast("Coroutine[Any, Any, bool]", context.progress("a")))

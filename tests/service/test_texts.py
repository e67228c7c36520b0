"""Texts that services tell rooms in pieces. What becomes of them in Redis is in ``tests/contract/test_texts.py``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, cast

import pytest

from kraftek.contract.lua import Argument, Script
from kraftek.service import Context, EventProcessor, Told, TooLarge
from kraftek.service.link import Link
from kraftek.service.processor import Incoming
from kraftek.service.texts import APPEND, Piece, told

PIECE: dict[str, Any] = {"type": "bot:text:said", "key": "k", "text": "x", "room_id": "r"}


class Sent:
    """A link that keeps what is sent, and what Redis answers."""

    def __init__(self, answer: Any) -> None:
        self.pieces: list[Sequence[Argument]] = []
        self._answer = answer

    def awaitable(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        return coroutine

    async def run_for(self, work: Any, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        assert (script, keys) == (APPEND, ())
        self.pieces.append(args)
        return self._answer


def say(answer: Any, does: Callable[[Context], Awaitable[Any]]) -> tuple[list[Sequence[Argument]], list[Any]]:
    """What a handler that does this sends, and is told."""
    link, found = Sent(answer), []
    processor = EventProcessor("bot", prefix="k:")

    @processor.on("text:say")
    async def handle(context: Context) -> None:
        found.append(await does(context))

    asyncio.run(processor.handle(Incoming(event_type="bot:text:say", room_id="r"), cast("Link", link)))
    return link.pieces, found


def test_a_handler_says_pieces_in_its_room_or_another() -> None:
    args, found = say([2, 7, b"e"], lambda context: context.append_to_room("bot:text:said", "k", "x", first=True))
    assert args == [["r", "bot:text:said", "k", "x", "first", "", "k:", "k:events:broadcast"]]
    assert found == [Told(2, 7, "e")]
    args, _ = say(
        [2, 0, b""],
        lambda context: context.append_to_room("bot:text:said", "k", "ö\ud800", "s", first=True, last=True, id="1"),
    )
    assert args == [["s", "bot:text:said", "k", "ö\ufffd", "first last", "1", "k:", "k:events:broadcast"]]


def test_a_text_that_is_too_large_is_said_so() -> None:
    with pytest.raises(TooLarge, match="expected a text of at most 1000 bytes"):
        told(b"a text of at most 1000 bytes")


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": ""},
        {"key": "ö" * 129},
        {"type": ""},
        {"room_id": ""},
        {"type": "disconnect"},
        {"type": "gateway:room:put"},
        {"key": "\ud800"},
        {"id": "\ud800"},
    ],
)
def test_what_is_no_name_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"expected|half"):
        Piece(**{**PIECE, **wrong}).arguments("", "events:broadcast")


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a text, as pieces are joined; found dict"):
        Piece(**{**PIECE, "text": {}}).arguments("", "events:broadcast")


def test_after_its_handler_a_context_says_nothing() -> None:
    context = Context(EventProcessor("bot"), Incoming(event_type="bot:text:say", room_id="r"), cast("Link", Sent(None)))
    context.end()
    with pytest.raises(RuntimeError, match="has ended"):
        asyncio.run(cast("Coroutine[Any, Any, Told]", context.append_to_room("bot:text:said", "k", "x")))
    with pytest.raises(ValueError, match="belongs to no room"):
        Context(EventProcessor("bot"), Incoming(event_type="a:b:c"), cast("Link", Sent(None))).append_to_room(
            "a", "k", "x"
        )

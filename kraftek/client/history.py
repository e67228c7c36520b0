"""What a room was told before, as :meth:`kraftek.client.backend.Backend.history` gives it."""

from __future__ import annotations

from typing import TypedDict

import msgspec
from msgspec import Struct

from kraftek.client.errors import Closed, Refused
from kraftek.client.messages import Message
from kraftek.client.texts import whole

__all__ = ["PAGE", "HistoryOptions", "HistoryPage", "Position", "result_of"]

PAGE = "-page"
"""The end of the id of each request for a page."""


class Position(Struct, frozen=True):
    """A place in what a room was told. ``epoch``: another one means that the gateway has lost the history before."""

    epoch: str
    offset: int


class HistoryPage(Struct, frozen=True, rename="camel"):
    """Messages in order. ``before``: where to go on, if there are older ones."""

    room_id: str
    epoch: str
    messages: list[Message]
    before: Position | None = None


class HistoryOptions(TypedDict, total=False):
    """The optional arguments of :meth:`kraftek.client.backend.Backend.history`."""

    before: Position | None
    limit: int | None
    timeout: float | None


def result_of(key: str, outcome: Message | Refused | Closed | None) -> object:
    """What the awaitable of this id fires with, or fails with: the payload of an answer, or a page."""
    if not isinstance(outcome, Message):
        return outcome
    if not key.endswith(PAGE):
        return outcome.payload
    try:
        page = msgspec.convert(outcome.payload, HistoryPage)
    except msgspec.ValidationError as wrong:
        return Refused("NO_HISTORY", f"the answer is no page of a history: {wrong}")
    messages = [whole(msgspec.structs.replace(each, room_id=page.room_id)) for each in page.messages]
    return msgspec.structs.replace(page, messages=messages)

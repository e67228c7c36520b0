"""Pages of what a room was told before."""

from __future__ import annotations

from kraftek.client.errors import Refused
from kraftek.client.history import PAGE, HistoryPage, result_of
from kraftek.client.messages import Message


def test_a_page_has_messages_of_its_room() -> None:
    told = {"type": "a:b:c", "payload": 1, "offset": 3}
    page = result_of("1" + PAGE, Message("history", {"roomId": "r", "epoch": "e", "messages": [told]}))
    assert page == HistoryPage("r", "e", [Message("a:b:c", 1, None, "r", 3)])


def test_an_answer_that_is_no_page_says_what_is_wrong() -> None:
    refused = result_of("1" + PAGE, Message("history", {"roomId": "r"}))
    assert isinstance(refused, Refused)
    assert (refused.code, "epoch" in str(refused)) == ("NO_HISTORY", True)

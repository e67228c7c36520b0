"""What a processor says to a service author who gets it wrong. What it does with events is in test_contract.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kraftek.service import EventProcessor
from kraftek.service.processor import NoEvent


@pytest.mark.parametrize("handler", [lambda: None, lambda context: None, lambda context, payload, more: None])
def test_a_handler_takes_the_context_and_the_payload(handler: Any) -> None:
    processor = EventProcessor("chat")
    with pytest.raises(TypeError, match="chat:message:send: expected a function of the context"):
        processor.on("message:send")(handler)


@pytest.mark.parametrize("event", ["send", "a:b:c:d"])
def test_an_event_has_a_whole_name_or_one_within_the_service(event: str) -> None:
    with pytest.raises(ValueError, match="expected module:name or service:module:name"):
        EventProcessor("chat").on(event)


@pytest.mark.parametrize("word", ["eventType", "payload"])
def test_what_is_not_utf8_is_no_event(word: str) -> None:
    words = {"eventType": "chat:a:b", "userId": "ann", "socketId": "g.1", "timestamp": 1, "payload": "x"}
    body = json.dumps({**words, word: "?"}).encode().replace(b"?", b"\xff")
    with pytest.raises(NoEvent):
        EventProcessor("chat").open(body)


def test_an_event_has_one_handler() -> None:
    processor = EventProcessor("chat")
    processor.on("message:send")(lambda context, payload: None)
    with pytest.raises(ValueError, match="each once"):
        processor.on("chat:message:send")

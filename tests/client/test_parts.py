"""Requests whose answers come in parts, beside what the transcripts show of them."""

from __future__ import annotations

from collections import deque
from typing import Any

from kraftek.client.deadlines import Deadlines
from kraftek.client.messages import Message, Part
from kraftek.client.outbox import Kind, Outbox
from kraftek.client.parts import Parts


def test_only_a_new_part_of_a_request_that_asks_for_parts_is_told() -> None:
    actions: deque[Any] = deque()
    deadlines, outbox = Deadlines(), Outbox()
    parts = Parts(actions, deadlines, outbox)
    for key in ("asks", "plain"):
        outbox.put(key, Kind.REQUEST, b'{"type":"a:b:c","id":"%b"}' % key.encode(), "r1")
    parts.ask("asks", 10.0)
    while outbox.take("r1") is not None:
        pass
    part = Message("progress", "x", "asks", run="r", number=1)
    assert not parts.heard("asks", Message("a:b:c", "the answer", "asks"), 5.0)
    assert parts.heard("asks", part, 5.0)
    assert parts.heard("asks", part, 6.0)
    assert parts.heard("asks", Message("progress", "x", "asks"), 6.0)
    assert parts.heard("plain", part, 6.0)
    assert [*actions] == [Part("asks", "x", "r", 1)]
    assert deadlines.of("asks") == 15.0


def test_requests_that_were_answered_do_not_pile_up() -> None:
    outbox = Outbox()
    parts = Parts(deque(), Deadlines(), outbox)
    for number in range(100):
        key = str(number)
        outbox.put(key, Kind.REQUEST, b'{"type":"a:b:c"}')
        parts.ask(key, 10.0)
        outbox.discard(key)
    assert len(parts._limits) <= 4

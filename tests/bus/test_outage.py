"""What the log says of an outage, however often it fails meanwhile."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from kraftek.bus.outage import Outage


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outage(clock: Clock) -> Outage:
    return Outage("Redis at r:6379", clock)


def test_one_line_when_it_begins_one_a_minute_and_one_when_it_is_over(outage: Outage, clock: Clock) -> None:
    with capturedLogs() as events:
        for _ in range(130):
            outage.failed("no answer for 2 s.")
            clock.advance(1.0)
        assert outage.over()
    assert [(event["log_level"].name, formatEvent(event)) for event in events] == [
        ("warn", "Redis at r:6379 is unavailable, trying again: no answer for 2 s"),
        ("warn", "Redis at r:6379 is still unavailable after 60 s: no answer for 2 s"),
        ("warn", "Redis at r:6379 is still unavailable after 120 s: no answer for 2 s"),
        ("info", "Redis at r:6379 is back after 130 s"),
    ]


def test_the_next_one_begins_anew(outage: Outage) -> None:
    with capturedLogs() as events:
        for _ in range(2):
            outage.failed("no answer for 2 s")
            assert outage.over()
    assert [formatEvent(event) for event in events] == [
        "Redis at r:6379 is unavailable, trying again: no answer for 2 s",
        "Redis at r:6379 is back after 0 s",
    ] * 2


def test_where_there_was_none_nothing_is_over(outage: Outage) -> None:
    with capturedLogs() as events:
        assert not outage.over()
    assert events == []

"""Log lines that would repeat."""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger, capturedLogs, formatEvent
from twisted.python.failure import Failure

from kraftek.contract.errors import Refusal
from kraftek.contract.log_once import MINUTE, MOST, OnceAMinute, OnceUntilItWorks, failing


class Log:
    """What was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, text: str, **fields: Any) -> None:
        self.lines.append((text, fields))

    @property
    def texts(self) -> list[str]:
        return [text for text, _ in self.lines]


def test_each_line_is_logged_once_a_minute() -> None:
    log, now = Log(), 0.0
    once = OnceAMinute(lambda: now)
    for text in ("one", "two", "one", "two"):
        once(log, text, error="e")
    assert log.lines == [("one", {"error": "e"}), ("two", {"error": "e"})]
    now = MINUTE - 1
    once(log, "one")
    assert log.texts == ["one", "two"]
    now = MINUTE
    once(log, "one")
    assert log.texts == ["one", "two", "one"]


def test_what_a_line_is_about_tells_lines_apart() -> None:
    log = Log()
    once = OnceAMinute(lambda: 0.0)
    for about in ("a", "b", "a"):
        once(log, "text {about}", about=about)
    assert len(log.lines) == 2


def test_there_is_a_bound_to_what_is_logged() -> None:
    log, now = Log(), 0.0
    once = OnceAMinute(lambda: now)
    for number in range(2 * MOST):
        once(log, str(number))
    assert len(log.lines) == MOST
    now = MINUTE
    once(log, "more")
    assert log.texts[-1] == "more"


def test_a_failure_is_logged_once_until_it_works() -> None:
    log = Log()
    once = OnceUntilItWorks()
    once.works()
    for _ in range(2):
        once.failed(log, "fails", failure="f")
    assert log.lines == [("fails", {"failure": "f"})]
    once.works()
    once.failed(log, "fails")
    assert log.texts == ["fails", "fails"]


def test_failures_of_several_things_are_told_apart() -> None:
    log = Log()
    once = OnceUntilItWorks()
    for about in ("a", "b", "a"):
        once.failed(log, "fails", about=about)
    assert len(log.lines) == 2
    once.works("a")
    once.failed(log, "fails", about="a")
    once.failed(log, "fails", about="b")
    assert len(log.lines) == 3
    once.keep(["a"])
    once.failed(log, "fails", about="b")
    assert len(log.lines) == 4


def test_what_redis_refuses_is_one_line_and_a_fault_of_ours_has_a_traceback() -> None:
    with capturedLogs() as logged:
        for error in (Refusal("OOM {now}"), ZeroDivisionError("ours")):
            failing(Logger(), Failure(error))("{what} is not written", what="it")
    refused, ours = logged
    assert formatEvent(refused) == "it is not written: OOM {now}"
    assert "log_failure" not in refused
    assert ours["log_failure"].type is ZeroDivisionError

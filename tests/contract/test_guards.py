"""What is expected of a library, and the line that says what was found instead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.logger import Logger, capturedLogs, formatEvent

from kraftek.contract.guards import (
    UnexpectedError,
    expect_names,
    expect_parameters,
    expect_private_names,
    expect_values,
    usable,
)


class Library:
    """One that is as expected."""

    size = 1

    def __init__(self) -> None:
        self._kept: list[int] = []

    def read(self, fd: int, event: int) -> list[int]:
        return self._kept


def test_what_is_as_expected_passes() -> None:
    library = Library()
    expect_names(Library, "size", "read")
    expect_names(library, "_kept")
    expect_parameters(library.read, "fd", "event")
    expect_private_names(library.read, "_kept")
    expect_values(library, {"size": 1, "_kept": []})


@pytest.mark.parametrize(
    ("check", "why"),
    [
        (lambda: expect_names(Library, "size", "wide"), "Library has no wide"),
        (lambda: expect_names(Library(), "wide"), "Library has no wide"),
        (lambda: expect_parameters(Library().read, "fd"), r"Library.read takes \(fd, event\), not \(fd\)"),
        (lambda: expect_private_names(Library.read, "_other"), "Library.read uses _kept, not _other"),
        (lambda: expect_values(Library(), {"size": 2}), "size of Library is 1, not 2"),
        (lambda: expect_values(Library(), {"size": True}), "size of Library is 1, not True"),
        (lambda: expect_values(Library(), {"wide": 1}), "Library has no wide"),
    ],
)
def test_what_is_not_is_named(check: Callable[[], None], why: str) -> None:
    with pytest.raises(UnexpectedError, match=f"^{why}$"):
        check()


def test_a_part_is_used_in_silence() -> None:
    with capturedLogs() as logged:
        assert usable("a part", lambda: None, Logger().warn)
    assert logged == []


def unexpected() -> None:
    raise UnexpectedError("Library has no wide")


def broken() -> None:
    raise ZeroDivisionError("by 0")


@pytest.mark.parametrize(("check", "why"), [(unexpected, "Library has no wide"), (broken, "ZeroDivisionError: by 0")])
def test_a_part_is_left_out_with_one_line(check: Callable[[], None], why: str) -> None:
    with capturedLogs() as logged:
        assert not usable("a part", check, Logger().warn)
    assert [formatEvent(event) for event in logged] == [
        f"The fast path goes without a part: {why}. The gateway works the same, slower."
    ]

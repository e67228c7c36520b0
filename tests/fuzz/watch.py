"""What holds for every input, whatever it is for: no fault is logged, and it takes few steps and little memory."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NamedTuple

from twisted.logger import capturedLogs, eventAsText

__all__ = ["Target", "try_out"]


class Target(NamedTuple):
    """Code that strangers' bytes reach. ``run`` hands it an input, and raises when something does not hold.

    ``seeds``: inputs to begin with. ``longest``: bytes of one. ``calls`` and ``memory``: how many functions of Python
    may be called for an input, and how many bytes it may take at a time: so many, and so many more for each of its
    bytes. What takes more than that has a loop in a loop.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    longest: int = 4096
    calls: tuple[int, int] = (5_000, 50)
    memory: tuple[int, int] = (1_000_000, 200)


class _Calls:
    """Counts calls of functions that are written in Python."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            self.number += 1


def try_out(target: Target, data: bytes, *, measured: bool = True) -> None:
    """Raises when something does not hold for this input. ``measured``: also what it takes, which takes ten times as
    long.
    """
    with capturedLogs() as logged:
        if measured:
            _measure(target, data)
        else:
            target.run(data)
    faults = [eventAsText(event) for event in logged if "log_failure" in event]
    assert not faults, "\n".join(faults)


def _measure(target: Target, data: bytes) -> None:
    target.run(data)  # what is loaded and remembered once does not count
    calls = _Calls()
    tracemalloc.start()
    sys.setprofile(calls)
    try:
        target.run(data)
    finally:
        sys.setprofile(None)
        memory = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    _compare("calls", calls.number, target.calls, data)
    _compare("bytes", memory, target.memory, data)


def _compare(what: str, found: int, most: tuple[int, int], data: bytes) -> None:
    bound = most[0] + most[1] * len(data)
    assert found <= bound, f"{found} {what} for {len(data)} bytes: expected at most {bound}"

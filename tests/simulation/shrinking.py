"""Makes a failing program short: steps are left out as long as it fails in the same way.

Hypothesis could do it, by drawing the program again and again; this needs a tenth of the runs, because any part of a
program is a program.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from msgspec.structs import replace

from tests.simulation.steps import Program, run

__all__ = ["failure_of", "shortened"]


def failure_of(program: Program) -> Exception | None:
    """What it fails of."""
    try:
        run(program)
    except Exception as error:  # noqa: BLE001  # whatever it is
        return error
    return None


def shortened(program: Program, error: Exception, tick: Callable[[], None] = lambda: None) -> Program:
    """A program that fails in the same way, and no longer does when one of its steps is left out."""
    kind, size = _kind(error), max(len(program.steps) // 2, 1)
    while size:
        at, shorter = 0, False
        while at < len(program.steps):
            tick()
            candidate = replace(program, steps=program.steps[:at] + program.steps[at + size :])
            found = failure_of(candidate)
            if found is not None and _kind(found) == kind:
                program, shorter = candidate, True
            else:
                at += size
        if size > 1:
            size //= 2
        elif not shorter:
            break
    return program


def _kind(error: Exception) -> str:
    """What it is about, without names and times."""
    return (
        type(error).__name__
        + re.sub(r"<[^>]*>|\[[^]]*\]|\S*\d\S*|\b(ann|bob|a|red|blue|c)\b|\bat\b", "", str(error).split("\n")[0])[:60]
    )

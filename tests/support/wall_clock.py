"""A wall clock that a test sets, for processes that it starts. The monotonic clock goes on untouched.

Debian's ``faketime`` has libfaketime, which gives it to all of a process. CI installs it, and fails without. Elsewhere,
where it is not there, Python's own ``time.time`` is what is set.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["WallClock"]

LIBRARIES = ("usr/lib/*/faketime/libfaketime.so.1", "usr/local/lib/faketime/libfaketime.so.1")

PYTHON_ALONE = """
import os, time
true_time = time.time
def set_time():
    with open(os.environ["WALL_CLOCK"]) as file:
        return true_time() + float(file.read())
time.time = set_time
"""


class WallClock:
    """``environment`` is for the processes whose clock this is, also while they run. ``directory`` is for its files."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self.set(0)
        library = next((found for pattern in LIBRARIES for found in sorted(Path("/").glob(pattern))), None)
        if library is not None:
            self.environment = {
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(self._file),
                "FAKETIME_NO_CACHE": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        elif os.environ.get("CI") == "true":
            pytest.fail("no libfaketime to set the clock with: apt-get install faketime")
        else:
            (directory / "sitecustomize.py").write_text(PYTHON_ALONE)
            self.environment = {"PYTHONPATH": str(directory), "WALL_CLOCK": str(self._file)}

    def set(self, seconds: int) -> None:
        """Set the clock to so many seconds after the true time, or before it."""
        written = self._file.with_suffix(".new")
        written.write_text(f"{seconds:+d}\n")
        written.rename(self._file)

"""A wall clock that a test sets, for processes that it starts: libfaketime, which Debian has as ``faketime``.

The monotonic clock goes on untouched, as it does when an administrator or NTP sets a machine's clock.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["WallClock"]

LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/local/lib/faketime/libfaketime.so.1")


def _library() -> Path:
    for pattern in LIBRARIES:
        for found in sorted(Path("/").glob(pattern.lstrip("/"))):
            return found
    missing = "no libfaketime to set the clock with: apt-get install faketime"
    # CI installs it, and must not turn green without these tests.
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


class WallClock:
    """``environment`` is for the processes whose clock this is, also while they run. ``directory`` is for its file."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self.environment = {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, seconds: int) -> None:
        """Set the clock to so many seconds after the true time, or before it."""
        written = self._file.with_suffix(".new")
        written.write_text(f"{seconds:+d}\n")
        written.rename(self._file)

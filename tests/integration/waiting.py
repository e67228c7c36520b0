"""How integration tests wait: for a condition, never for time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

__all__ = ["wait_until"]

T = TypeVar("T")


def wait_until(seen: Callable[[], T], what: str | Callable[[], str], timeout: float = 10.0) -> T:
    """What ``seen`` returns, as soon as that is true; after ``timeout`` seconds fails with ``what``."""
    deadline = time.monotonic() + timeout
    while not (found := seen()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.005)
    return found

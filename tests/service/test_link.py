"""What a handler can use while it runs."""

from __future__ import annotations

import pytest

from kraftek.service import link


def test_a_handler_in_a_thread_is_told_that_it_can_await_nothing() -> None:
    with pytest.raises(RuntimeError, match="leaves when it has returned"):
        link.IN_THREAD.call("GET", "key")

"""What newcomers are told to write first is green."""

from __future__ import annotations

from typing import Any

from tests.docs.pages import code


def test_the_first_test_passes() -> None:
    module: dict[str, Any] = {}
    exec(code("first-test"), module)
    (test,) = [value for name, value in module.items() if name.startswith("test_")]
    test()

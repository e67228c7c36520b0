"""Names with one ``*`` for any text."""

from __future__ import annotations

import pytest

from kraftek.contract.wildcard import Wildcard


@pytest.mark.parametrize(
    ("pattern", "names", "others"),
    [
        ("board", ["board"], ["boards", "a board", ""]),
        ("*", ["", "board", "*"], []),
        ("board-*", ["board-", "board-1"], ["board", "a board-1"]),
        ("*-board", ["-board", "1-board"], ["board", "1-boards"]),
        ("aba*aba", ["abaaba", "aba-aba"], ["aba", "ababa"]),
    ],
)
def test_what_is_covered(pattern: str, names: list[str], others: list[str]) -> None:
    wildcard = Wildcard.of(pattern)
    assert [name for name in (*names, *others) if wildcard.covers(name)] == names

"""What inputs are made of: a few bytes that say how, and then the bytes that arrive."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

__all__ = ["NOT_JSON", "cut", "depth", "digits", "json_in"]

NOT_JSON: Any = object()

_SIZES = (1, 2, 3, 5, 8, 20, 100, 1000)


def cut(data: bytes, how: int) -> list[bytes]:
    """The data in the pieces in which a network may hand it over. ``how``: from 0, which is byte by byte."""
    if how == 0:
        return [data[at : at + 1] for at in range(len(data))]
    random, pieces = Random(how), []
    while data:
        size = random.choice(_SIZES)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def json_in(text: bytes) -> Any:
    """The value by Python's own reader, which has to agree with ours; :data:`NOT_JSON` when it is none.

    That reader takes what JSON has no words for, ``NaN``. An object that names a field twice is none here: which of the
    two counts, readers may differ about.
    """
    try:
        return json.loads(text.decode(), parse_constant=_refuse, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return NOT_JSON


def depth(value: Any) -> int:
    """How many arrays and objects are within each other."""
    match value:
        case dict():
            return 1 + max(map(depth, value.values()), default=0)
        case list():
            return 1 + max(map(depth, value), default=0)
    return 0


def digits(value: Any) -> int:
    """Of the longest integer in it."""
    match value:
        case int():
            return len(str(abs(value)))
        case dict():
            return max(map(digits, value.values()), default=0)
        case list():
            return max(map(digits, value), default=0)
    return 0


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a field that is named twice")
    return made

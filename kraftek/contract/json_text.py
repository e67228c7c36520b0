"""JSON as text: how deep it nests, how long its numbers are, and the id of a message that cannot be read.

Used by the dialects. A payload goes to its service as it was written and is not parsed on the way, so anything that
would crash the service's parser has to be found in the bytes.
"""

from __future__ import annotations

import re
from itertools import accumulate, islice
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from kraftek.contract.messages import ID_LENGTH, RequestId

__all__ = ["MAX_BRACKETS", "MAX_DIGITS", "JsonBounds", "is_long", "read_id"]

MAX_DIGITS: Final = 1_000
"""Of one number. Python's ``int`` refuses more than 4,300, with a ``ValueError`` that few services expect."""

MAX_BRACKETS: Final = 131_072
"""Lists and objects in one payload. To look how deep so many are takes 6 ms; as Python's they take 8 MB."""

_NOT_STRUCTURE: Final = bytes({*range(256)} - {*b'[]{}"'})
_NOT_OPENING: Final = bytes({*range(256)} - {*b"[{"})
_LEVELS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""As signed bytes, one up or one down."""

# A number has three parts at most. Of more than 1,000 digits, 334 or more stand in one of them. Wherever they begin,
# they cover one byte of each 334.
_RUN: Final = MAX_DIGITS // 3 + 1
_NUMBERS: Final = bytes(48 if byte in b"-+.0123456789eE" else 32 for byte in range(256))
"""Whatever stands in numbers as ``0``."""
_BLOCK: Final = MAX_DIGITS // 2
"""Wherever a longer number begins, it covers a whole block of so many."""
_ZEROS: Final = b"0" * _BLOCK
_NOT_DIGITS: Final = bytes({*range(256)} - {*b"0123456789"})

_MOST_IDS: Final = 1_000
"""Places where an id is looked for. Each takes a microsecond."""

# No string can hold this: a quote within one is escaped.
_ID: Final = re.compile(rb'"id"\s*+:\s*+(-?[0-9]{1,%d}(?![.0-9eE])|"(?:[^"\\]|\\.)*+")' % ID_LENGTH, re.DOTALL)

_FEW: Final = 8
"""Opening brackets; most messages have fewer."""

_BOUND: Final = 10 ** (ID_LENGTH - 1)
_decode_id = msgspec.json.Decoder(int | Annotated[str, Meta(max_length=ID_LENGTH)]).decode


def is_long(id: int) -> bool:
    """Whether an integer id, as it is written, is longer than a string may be."""
    return not -_BOUND < id < 10 * _BOUND


class JsonBounds:
    """What JSON of clients may be: so many levels deep, with numbers of at most :data:`MAX_DIGITS`.

    ``harmless``: JSON of so many bytes is within both, and need not be looked at.
    """

    __slots__ = ("_depth", "harmless")

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self.harmless = min(2 * depth + 1, MAX_DIGITS)

    def complaint(self, json: bytes, around: int = 0) -> str | None:
        """What is wrong with ``json``, which is well-formed and has the payload within so many levels, if anything."""
        depth = self._depth + around
        if _has_brackets(json, min(_FEW, depth + 1)) and _brackets(json) > depth:
            structure = _structure(json)
            if len(structure) // 2 > MAX_BRACKETS + around:
                return f"JSON with more than {MAX_BRACKETS} lists and objects"
            if max(accumulate(memoryview(structure.translate(_LEVELS)).cast("b")), default=0) > depth:
                return f"JSON is nested too deeply: more than {self._depth} levels"
        if json[_RUN - 1 :: _RUN].translate(None, _NOT_DIGITS) and _has_long_number(json):
            return f"JSON with a number of more than {MAX_DIGITS} digits"
        return None


def read_id(json: bytes) -> RequestId | None:
    """The id of a native message that was refused, however little of the rest makes sense; ``None`` without one, or
    where it stands behind a thousand of others.
    """
    depth, at = 0, 0
    found: RequestId | None = None
    for match in islice(_ID.finditer(json), _MOST_IDS):
        structure = _structure(json[at : match.start()])
        at = match.end()
        depth += 2 * (structure.count(b"[") + structure.count(b"{")) - len(structure)
        if depth == 1:
            try:
                found = _decode_id(match[1])
            except (msgspec.DecodeError, UnicodeDecodeError):
                found = None
    return None if found is None or (type(found) is int and is_long(found)) else found


def _has_brackets(json: bytes, number: int) -> bool:
    """Whether there are so many opening brackets. To find each costs a tenth per byte of what counting them does."""
    for bracket in (b"[", b"{"):
        at = json.find(bracket)
        while at >= 0:
            number -= 1
            if not number:
                return True
            at = json.find(bracket, at + 1)
    return False


def _brackets(json: bytes) -> int:
    return len(json.translate(None, _NOT_OPENING))


def _has_long_number(json: bytes) -> bool:
    marks = json.translate(_NUMBERS) + b" "
    within, looked, end = False, 0, 0
    for at in range(0, len(json) - _BLOCK + 1, _BLOCK):
        if at < end or not marks.startswith(_ZEROS, at):
            continue
        begin, end = marks.rfind(b" ", end, at) + 1, marks.find(b" ", at)
        if end - begin <= MAX_DIGITS:
            continue
        # It is in a string if there is an odd number of quotes before it.
        within ^= _without_escapes(json[looked:begin]).count(b'"') % 2 == 1
        looked = end
        if not within and len(json[begin:end].translate(None, _NOT_DIGITS)) > MAX_DIGITS:
            return True
    return False


def _structure(json: bytes) -> bytes:
    """The brackets, in order, that stand outside of strings. ``json`` begins outside of one."""
    json = _without_escapes(json)
    # To take out two quotes that stand together keeps what is within strings within, and what is outside outside.
    marks = json.translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    return b"".join(marks.split(b'"')[::2])


def _without_escapes(json: bytes) -> bytes:
    """It without what could be taken for the end of a string. ``json`` begins in the middle of no escape."""
    return json.replace(b"\\\\", b"").replace(b'\\"', b"") if b"\\" in json else json

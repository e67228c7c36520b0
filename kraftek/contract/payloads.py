"""Decoders of payloads, which strangers have written. Used by both SDKs."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isinf
from typing import Any, Final

import msgspec
from msgspec import Raw

__all__ = ["payload_decoder", "payload_reader"]

_HARMLESS: Final = 1_000
"""Bytes in which no more than 170 numbers fit: msgspec makes them in 3 ms."""

_FEW: Final = 100
_MARKS: Final = (b"e2", b"e3", b"e+", b"e0", b"E2", b"E3", b"E+", b"E0")
"""One of these is in every number from 1e290 on, unless it has 190 digits. To count them takes 6 ns for each byte."""

_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_HUGE: Final = re.compile(rb"[0-9][eE]\+?0*+[23][0-9]{2}(?![0-9])")


def payload_decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    """Of JSON that is of this type, with what numbers there are in it made by Python, unless they are declared as
    ``float``.

    Of those from 1e290 on msgspec 0.23 makes 60 in a millisecond, and Python 3,000: a client may send 10,000 in one
    event, for which all others would wait.
    """
    return msgspec.json.Decoder(kind, float_hook=_float)


def payload_reader(kind: Any) -> Callable[[Raw], Any]:
    """What reads payloads of this type. Where many such numbers are declared as ``float``, Python makes them, too: then
    what was read becomes ``kind`` afterwards, which takes twice as long.
    """
    decode = payload_decoder(kind).decode
    if kind is Any:
        return decode
    undeclared = payload_decoder(Any).decode

    def read(payload: Raw) -> Any:
        if len(payload) > _HARMLESS and _has_many_huge(bytes(payload)):
            return msgspec.convert(undeclared(payload), kind, str_keys=True)
        return decode(payload)

    return read


def _has_many_huge(json: bytes) -> bool:
    if sum(map(json.count, _MARKS)) <= _FEW:
        return False
    return len(_HUGE.findall(b'""'.join(_STRING.split(json)))) > _FEW


def _float(digits: str) -> float:
    value = float(digits)
    if isinf(value):
        raise ValueError("Number out of range")
    return value

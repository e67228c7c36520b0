r"""Halves of surrogate pairs in JSON: ``"\ud83d"``, what JavaScript and Python write for a text cut within an emoji.

No UTF-8 can carry one, and msgspec, as most decoders, refuses the whole message. In a payload it becomes U+FFFD, as
wherever a browser encodes text. Elsewhere it is refused: two names would become one.

Called where JSON was refused, by the dialects and by the readers of services' messages; and by the Python clients and
the service kit for what they send.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from kraftek.contract.messages import Token

__all__ = ["HALF", "MOST", "check_name", "encode", "is_whole", "mended", "read", "reread"]

S = TypeVar("S", bound=Struct)

HALF: Final = "half of a surrogate pair outside of the payload"
"""The error message for one that cannot be replaced."""

_REPLACEMENT: Final = "\ufffd"

MOST: Final = 10_000
"""Halves in one message. To replace so many takes a millisecond; a text has one where it was cut."""

# Half a pair, where each backslash that is itself escaped was taken out before.
_HALF: Final = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
_ESCAPED: Final = b"\\\\"
_MARK: Final = b"\0"
"""In its place. No JSON has such a byte."""

_encode = msgspec.json.Encoder().encode


def mended(json: bytes) -> bytes | None:
    """``json`` with U+FFFD in the place of each half, and all else to the byte; ``None`` when there is none, or there
    are more than anybody cuts texts into.
    """
    if (b"\\ud" not in json and b"\\uD" not in json) or _MARK in json:
        return None
    whole, halves = _HALF.subn(rb"\\ufffd", json.replace(_ESCAPED, _MARK), MOST + 1)
    return whole.replace(_MARK, _ESCAPED) if 0 < halves <= MOST else None


def is_whole(message: object) -> bool:
    """Whether what was read from mended JSON has U+FFFD nowhere, or in its ``payload`` alone."""
    return not any(_REPLACEMENT in name for name in _names(message))


def reread(decode: Callable[[bytes], S], json: bytes, error: msgspec.DecodeError) -> tuple[S, bytes]:
    """What ``decode``, which refused ``json`` with ``error``, makes of it once it is mended; and that JSON.

    Raises ``error`` when there is nothing to mend, and ``msgspec.DecodeError``.
    """
    whole = mended(json)
    if whole is None:
        raise error
    message = decode(whole)
    if not is_whole(message):
        raise msgspec.ValidationError(HALF)
    return message, whole


def read(decode: Callable[[bytes], S], json: bytes) -> tuple[S, bytes]:
    """What ``decode`` makes of ``json``, mended if it must be; and that JSON. Raises what ``decode`` does."""
    try:
        return decode(json), json
    except msgspec.DecodeError as error:
        return reread(decode, json, error)


def encode(value: Any) -> bytes:
    """The JSON of a payload that its author may have cut."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_replaced(msgspec.to_builtins(value, str_keys=True, enc_hook=msgspec.json.decode)))


def check_name(name: str) -> None:
    """Raise ``ValueError`` for a name, or a token, with half a pair in it. It repeats nothing of it."""
    if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
        raise ValueError("half of a surrogate pair in a name or a token")


def _names(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Token():
            yield value.value
        case tuple():
            for each in value:
                yield from _names(each)
        case Struct():
            for field in value.__struct_fields__:
                if field != "payload":
                    yield from _names(getattr(value, field))


def _replaced(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {_replaced(key): _replaced(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_replaced(inner) for inner in value]
    return value

"""Halves of surrogate pairs, in JSON and in what Python calls text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from kraftek.contract.messages import Authenticate, Broadcast, Event, Token
from kraftek.contract.surrogates import MOST, check_name, encode, is_whole, mended, reread

UNITS = st.lists(st.sampled_from(["\ud83d", "\ude00", "\\", '"', "u", "d83d", "é", "\n", "😀", "x"]), max_size=12)
TEXTS = UNITS.map("".join)


def whole(text: str) -> str:
    """What JavaScript's ``toWellFormed`` makes of it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@given(TEXTS)
def test_every_half_is_replaced_and_nothing_else(text: str) -> None:
    written = json.dumps(text).encode()
    found = mended(written)
    assert json.loads(found or written) == whole(text)
    assert (found is None) is (json.loads(written) == whole(text))
    if found is not None:
        assert mended(found) is None
        assert len(found) == len(written)


@pytest.mark.parametrize(
    ("json", "becomes"),
    [
        (rb'"\ud83d"', rb'"\ufffd"'),
        (rb'"\uDE00\uD83D"', rb'"\ufffd\ufffd"'),
        (rb'"\ud83d\ud83d\ude00\ude00"', rb'"\ufffd\ud83d\ude00\ufffd"'),
        (rb'"\\ud83d\\\ude00\\\\ude00"', rb'"\\ud83d\\\ufffd\\\\ude00"'),
        (rb'{"\ud83d": 1.50}', rb'{"\ufffd": 1.50}'),
        (rb'"\ud83d\u0041\ud7ff\ue000"', rb'"\ufffd\u0041\ud7ff\ue000"'),
        (rb'"\ud83d\ude00"', None),
        (rb'"\\ud83d"', None),
        (b'"\xf0\x9f\x98\x80"', None),
    ],
)
def test_all_else_stays_to_the_byte(json: bytes, becomes: bytes | None) -> None:
    assert mended(json) == becomes


def test_as_many_halves_as_nobody_cuts_texts_into() -> None:
    """A megabyte of them took 50 ms of a gateway."""
    pair = rb"\ud83d\ude00"
    most = b'"%b"' % (pair + rb"\uD83D" * MOST + pair)
    assert mended(most) == most.replace(rb"\uD83D", rb"\ufffd")
    assert mended(most.replace(pair, rb"\ude00", 1)) is None


def test_a_payload_may_be_mended_and_a_name_may_not() -> None:
    assert is_whole(Event("a:b:c", Raw(b'"\xef\xbf\xbd"'), "id", "room"))
    assert not is_whole(Event("a:b:\ufffd"))
    assert not is_whole(Event("a:b:c", id="\ufffd"))
    assert not is_whole(Broadcast("a", recipients=("x", "\ufffd")))
    assert not is_whole(Authenticate(Token("\ufffd")))
    assert is_whole(Authenticate(Token("t"), "r", 7))


def test_what_was_refused_is_read_again() -> None:
    decode = msgspec.json.Decoder(Broadcast).decode

    def read(json: bytes) -> tuple[Broadcast, bytes]:
        with pytest.raises(msgspec.DecodeError) as refused:
            decode(json)
        return reread(decode, json, refused.value)

    message, json = read(rb'{"type":"a","payload":"\ud83d"}')
    assert (bytes(message.payload), json) == (rb'"\ufffd"', rb'{"type":"a","payload":"\ufffd"}')
    with pytest.raises(msgspec.DecodeError, match="half of a surrogate pair"):
        read(rb'{"type":"\ud83d"}')
    with pytest.raises(msgspec.DecodeError, match="truncated"):
        read(b'{"type":"a"')
    with pytest.raises(msgspec.DecodeError, match=r"Expected `str`"):
        read(rb'{"type":7,"payload":"\ud83d"}')


class _Struct(msgspec.Struct):
    text: str
    raw: Raw


@dataclass
class _Dataclass:
    text: str


@given(st.recursive(TEXTS | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=8))
def test_what_an_author_cut_is_encoded(value: Any) -> None:
    json.loads(encode(value).decode())


def test_whatever_can_be_encoded_can_be_encoded_when_it_was_cut() -> None:
    value = {"a": [_Struct("\ud83d", Raw(b"[1]")), _Dataclass("x\ude00"), ("\ud83d\ude00",)], 1: "\ud83d"}
    assert msgspec.json.decode(encode(value)) == {
        "a": [{"text": "\ufffd", "raw": [1]}, {"text": "x\ufffd"}, ["😀"]],
        "1": "\ufffd",
    }
    assert encode({"text": "é"}) == '{"text":"é"}'.encode()
    with pytest.raises(TypeError):
        encode(["\ud83d", object()])


def test_a_name_with_half_a_pair_is_refused() -> None:
    for name in ("room", "комната 📝", "\ufffd", ""):
        check_name(name)
    for name in ("\ud83d", "room\ude00"):
        with pytest.raises(ValueError, match="half of a surrogate pair"):
            check_name(name)

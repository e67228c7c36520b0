"""What is found in the bytes of JSON, beside what a decoder finds in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kraftek.contract import json_text
from kraftek.contract.json_text import MAX_BRACKETS, MAX_DIGITS, JsonBounds, is_long, read_id

TRICKY = st.text('[]{}"\\,:id1 é\n', max_size=12)
VALUES = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TRICKY, inner, max_size=4),
    max_leaves=30,
)


def levels(value: Any) -> int:
    match value:
        case dict():
            return 1 + max(map(levels, value.values()), default=0)
        case list():
            return 1 + max(map(levels, value), default=0)
        case _:
            return 0


@given(VALUES, st.integers(1, 8), st.booleans())
def test_the_depth_is_that_of_the_value(value: Any, depth: int, ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii).encode()
    complaint = JsonBounds(depth).complaint(text)
    assert (complaint is not None) is (levels(value) > depth)
    assert JsonBounds(depth).complaint(b'{"payload":' + text + b"}", around=1) == complaint
    if complaint is not None:
        assert len(text) > JsonBounds(depth).harmless


@pytest.mark.parametrize("around", [0, 1])
def test_as_many_lists_and_objects_as_may_be(around: int) -> None:
    """A megabyte of them took 27 ms of a gateway."""
    most = b"[" + b'[{}],"[[",' * (MAX_BRACKETS // 2 - 1) + b"[]]"
    complaints = [
        JsonBounds(3).complaint(b'{"x":' * around + each + b"}" * around, around) for each in (most, b"[%b]" % most)
    ]
    assert complaints == [None, "JSON with more than 131072 lists and objects"]


@pytest.mark.parametrize("around", ["", "x" * 100, "x" * 166, "x" * 167, "x" * 500, '\\"[', "\\\\"])
@pytest.mark.parametrize(
    ("number", "digits"),
    [
        ("1" * MAX_DIGITS, MAX_DIGITS),
        ("1" * (MAX_DIGITS + 1), MAX_DIGITS + 1),
        ("-" + "1" * MAX_DIGITS, MAX_DIGITS),
        ("-0." + "1" * MAX_DIGITS, MAX_DIGITS + 1),
        (f"{'1' * 400}.{'2' * 300}e+{'3' * 300}", MAX_DIGITS),
        (f"{'1' * 334}.{'2' * 334}E-{'3' * 333}", MAX_DIGITS + 1),
        ("1e" + "0" * MAX_DIGITS, MAX_DIGITS + 1),
        ("9" * 60_000, 60_000),
    ],
)
def test_the_digits_of_a_number(number: str, digits: int, around: str) -> None:
    for text in (number, f'{{"{around}":{number}}}', f'["{around}",{number},"{around}"]'):
        assert (JsonBounds(256).complaint(text.encode()) is not None) is (digits > MAX_DIGITS)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps("1" * 5_000),
        json.dumps({"1" * 5_000: "2" * 5_000}),
        json.dumps(['\\"' + "1" * 5_000, "\\", "1" * 5_000 + "\\"]),
        "[" + ",".join(["12345678"] * 500) + "]",
        "[" + ",".join(["1" * 500] * 10) + "]",
        json.dumps("e" * 5_000),
        json.dumps(["1" * 5_000, 1] * 10),
        json.dumps(["\\" + "1" * 5_000 + "\\", "1" * 5_000 + '"'] * 10),
        "[" + ",".join(["1" * 1_000] * 10) + "]",
    ],
)
def test_what_is_no_long_number(text: str) -> None:
    assert JsonBounds(256).complaint(text.encode()) is None


def digits_of(text: str) -> int:
    """Those of the longest number, by a decoder."""
    found: list[Any] = [0]
    json.loads(text, parse_int=found.append, parse_float=found.append)
    return max(sum(map(str.isdigit, str(number))) for number in found)


NUMBERS = st.sampled_from(["1" * 499, "2" * 500, "3" * 1_000, "4" * 1_001, "-0." + "5" * 999, "6e+" + "7" * 1_000])
PIECES = st.lists(TRICKY.map(json.dumps) | NUMBERS | st.tuples(TRICKY, NUMBERS, TRICKY).map("".join).map(json.dumps))


@given(PIECES)
def test_a_long_number_is_one_whatever_stands_around_it(pieces: list[str]) -> None:
    text = f"[{','.join(pieces)}]"
    assert (JsonBounds(256).complaint(text.encode()) is not None) is (digits_of(text) > MAX_DIGITS)


@pytest.mark.parametrize(
    ("text", "looked"),
    [
        ('["' + "1" * 600 + '"' + ',""' * 100_000 + "]", []),
        ("[" + ",".join(["1" * 1_000] * 100) + "]", []),
        ('["' + '","'.join(["1" * 1_001] * 100) + '"]', [2, *[3] * 99]),
        ('[""' + ',"n"' * 1_000 + ',"' + "1" * 1_001 + '","' + "2" * 2_000 + '"]', [4_005, 3]),
    ],
)
def test_strings_are_told_apart_only_before_what_might_be_a_long_number(
    text: str, looked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To tell apart all those of a megabyte took 46 ms, and to look for long numbers among shorter ones 600."""
    pieces: list[int] = []

    def without_escapes(piece: bytes) -> bytes:
        pieces.append(len(piece))
        return piece

    monkeypatch.setattr(json_text, "_without_escapes", without_escapes)
    assert JsonBounds(256).complaint(text.encode()) is None
    assert pieces == looked


@given(st.dictionaries(TRICKY, VALUES, max_size=5), st.integers(-(10**20), 10**20) | TRICKY, st.data())
@example({"a": ["]"]}, 7, None)
def test_the_id_is_that_of_the_message_itself(rest: dict[str, Any], id: int | str, data: Any) -> None:
    rest.pop("id", None)
    at = 0 if data is None else data.draw(st.integers(0, len(rest)))
    members = [*rest.items()]
    members.insert(at, ("id", id))
    text = json.dumps(dict(members)).encode()
    assert read_id(text) == id
    assert read_id(json.dumps({"payload": dict(members), **rest}).encode()) is None


@pytest.mark.parametrize(
    ("text", "id"),
    [
        (b'{"id":7', 7),
        (b' {"id" : 7 ,', 7),
        (b'{"payload":[[[[}}}}],"id":7}', None),
        (b'{"payload":nope,"id":"q"}', "q"),
        (b'{"id":1,"id":2}', 2),
        (b'{"id":1,"id":[2]}', 1),
        (b'{"id":7.0}', None),
        (b'{"id":7e3}', None),
        (b'{"id":"' + b"x" * 64 + b'"}', "x" * 64),
        (b'{"id":"' + b"x" * 65 + b'"}', None),
        (b'{"id":' + b"9" * 64 + b"}", int("9" * 64)),
        (b'{"id":' + b"9" * 65 + b"}", None),
        (b'{"id":-' + b"9" * 63 + b"}", -int("9" * 63)),
        (b'{"id":-' + b"9" * 64 + b"}", None),
        (b'{"id":"\\ud83d"}', None),
        (b'{"id":"\xff"}', None),
        (b'"id":7', None),
        (b"", None),
        (b'{"text":"{\\"id\\":7","id"', None),
    ],
)
def test_as_much_of_an_id_as_can_be_read(text: bytes, id: int | str | None) -> None:
    assert read_id(text) == id


@pytest.mark.parametrize(("others", "id", "places"), [(0, 7, 1), (999, 7, 1_000), (1_000, 2, 1_000), (9_000, 2, 1_000)])
def test_an_id_is_looked_for_in_a_thousand_places(
    others: int, id: int, places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 kB of ids took 10 ms."""
    looked: list[bytes] = []
    structure = json_text._structure

    def found(piece: bytes) -> bytes:
        looked.append(piece)
        return structure(piece)

    monkeypatch.setattr(json_text, "_structure", found)
    assert read_id(b"{" + b'"id":2,' * others + b'"id":7}') == id
    assert len(looked) == places


def test_an_integer_is_as_long_as_it_is_written() -> None:
    for number in (0, 2**53, 10**64 - 1, 1 - 10**63):
        assert not is_long(number)
        assert len(str(number)) <= 64
    for number in (10**64, -(10**63), 10**5_000):
        assert is_long(number)

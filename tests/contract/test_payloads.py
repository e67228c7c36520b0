"""Numbers in payloads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from msgspec import Raw, Struct, ValidationError

from kraftek.contract.payloads import payload_decoder, payload_reader

NUMBERS = "[1.7976931348623157e308, -1e300, 5e-324, 1e-400, 0.1, 12]"


@pytest.mark.parametrize("kind", [Any, list[Any], list[object]])
def test_a_number_that_is_not_declared_is_made_by_python(kind: Any) -> None:
    decoder = payload_decoder(kind)
    assert decoder.float_hook is not None, "msgspec takes 20 µs for one of 1e293 and more"
    assert decoder.decode(NUMBERS) == json.loads(NUMBERS)
    with pytest.raises(ValidationError, match="Number out of range"):
        decoder.decode(NUMBERS.replace("12", "-1e400"))


def test_a_number_that_is_declared_is_checked() -> None:
    assert payload_decoder(list[float]).decode("[1, 1e300]") == [1.0, 1e300]
    with pytest.raises(ValidationError, match="Expected `float`, got `str`"):
        payload_decoder(list[float]).decode('["1"]')


class _Line(Struct, rename="camel"):
    drawn_at: datetime
    points: list[tuple[float, float]]
    by_number: dict[int, float] = {}
    data: bytes = b""


HUGE = ["1e293", "-1.5E+308", "17e0300", "1.7976931348623157e308"]
"""Whose numbers msgspec makes in 12 to 15 µs each."""


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The types of which something was made that Python had read."""
    found: list[Any] = []
    original = msgspec.convert

    def convert(value: Any, kind: Any, **more: Any) -> Any:
        found.append(kind)
        return original(value, kind, **more)

    monkeypatch.setattr(msgspec, "convert", convert)
    return found


@pytest.mark.parametrize("number", HUGE)
def test_many_huge_numbers_that_are_declared_are_made_by_python(number: str, converted: list[Any]) -> None:
    json_text = f"[{','.join([number] * 200)}]".encode()
    assert payload_reader(list[float])(Raw(json_text)) == [float(number)] * 200
    assert converted == [list[float]]
    with pytest.raises(ValidationError, match="Number out of range"):
        payload_reader(list[float])(Raw(json_text.replace(b"]", b",1e309]")))
    with pytest.raises(ValidationError, match="Expected `float`, got `str`"):
        payload_reader(list[float])(Raw(json_text.replace(b"]", b',"x"]')))


def test_what_is_made_of_it_is_the_same(converted: list[Any]) -> None:
    points = ",".join(["[1e300,-0.5]"] * 200)
    others = '"byNumber":{"7":1},"data":"aGk=","drawnAt":"2026-11-29T12:00:00Z"'
    read = payload_reader(_Line)(Raw(f'{{"points":[{points}],{others}}}'.encode()))
    expected = {7: 1.0}, b"hi", datetime(2026, 11, 29, 12, tzinfo=UTC)
    assert (read.by_number, read.data, read.drawn_at) == expected
    assert read.points == [(1e300, -0.5)] * 200
    assert converted == [_Line]


@pytest.mark.parametrize(
    "json_text",
    [
        "[" + ",".join(["1e293"] * 100) + "]",
        "[" + ",".join(["1e-293", "2e22", "0.25"] * 200) + "]",
        json.dumps(["1e293 5e+300, " * 200, '\\"2e299' * 100]),
    ],
)
def test_what_is_quick_is_made_by_msgspec(json_text: str, converted: list[Any]) -> None:
    assert payload_reader(list[float | str])(Raw(json_text.encode())) == json.loads(json_text)
    assert converted == []


def test_what_is_not_declared_is_read_as_it_is() -> None:
    assert payload_reader(Any)(Raw(NUMBERS.encode())) == json.loads(NUMBERS)

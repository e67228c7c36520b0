"""Numbers in payloads."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import ValidationError

from kraftek.contract.payloads import payload_decoder

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

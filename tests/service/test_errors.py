"""What handlers raise."""

from __future__ import annotations

from kraftek.service import Refused


def test_a_refusal_says_what_and_when_to_try_again() -> None:
    refused = Refused("SOLD_OUT", "none left", 2.5)
    assert str(refused) == "SOLD_OUT: none left"
    assert (refused.code, refused.message, refused.retry_after) == ("SOLD_OUT", "none left", 2.5)
    assert Refused("SOLD_OUT", "none left").retry_after is None

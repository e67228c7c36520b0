"""Receipts: each hole is found, and none where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from kraftek.service import Receipt
from tests.chaos.ledger import REDIS, Ledger
from tests.chaos.receipts import STRANGER, Mail, Receipts

USERS = ("page0", "page1", "page6", STRANGER)
RIGHT: dict[str, Any] = {"acknowledged": ("page0",), "offline": ("page1", STRANGER), "slow": ("page6",)}


class Story:
    """``page0`` and ``page6``, which is mute, are there, ``page1`` was; all are told something at 200."""

    def __init__(self) -> None:
        self.ledger = Ledger(processes={"g": "gateway-0"})
        self.receipts = Receipts(self.ledger)
        for page in USERS[:3]:
            self.takes("answered", page, 100.0)
        self.takes("gone", "page1", 150.0)
        self.takes("acknowledges", "page0", 200.5, n=1)

    def takes(self, what: str, page: str, at: float, **more: Any) -> None:
        self.receipts.take({"what": what, "user": page, "at": at, "room": "h0", **more})

    def holes(self, receipt: Receipt) -> list[str]:
        self.receipts.told(Mail(1, USERS, 200.0, receipt, 203.0))
        self.receipts.judge()
        return self.ledger.holes


def test_a_true_receipt_is_no_hole() -> None:
    story = Story()
    assert story.holes(Receipt(**RIGHT)) == []
    assert story.ledger.seen["receipts when nothing is wrong"] == 1
    assert story.ledger.seen["receipts: offline"] == 2


@pytest.mark.parametrize(
    ("receipt", "hole"),
    [
        ({**RIGHT, "offline": (STRANGER,)}, "and it was told to"),
        ({**RIGHT, "slow": ("page6", "page0")}, "and it was told to"),
        ({**RIGHT, "acknowledged": ("page0", "page6"), "slow": ()}, "page6 has not acknowledged it"),
        ({**RIGHT, "offline": (STRANGER,), "slow": ("page1", "page6")}, "page1 was away all the time"),
        ({**RIGHT, "offline": ("page0", "page1", STRANGER), "acknowledged": ()}, "page0 was there all the time"),
        ({**RIGHT, "offline": ("page1",), "owed": (STRANGER,)}, "and nothing is wrong"),
        ({**RIGHT, "complete": False}, "and nothing is wrong"),
    ],
)
def test_a_false_one_is(receipt: dict[str, Any], hole: str) -> None:
    assert any(hole in found for found in Story().holes(Receipt(**receipt)))


def test_a_gateway_may_owe_it_while_something_is_wrong() -> None:
    owing = Receipt(acknowledged=("page0",), owed=USERS[1:], complete=False)
    assert Story().holes(owing)
    story = Story()
    story.ledger.troubles.add(REDIS, 195.0, 196.0)
    assert story.holes(owing) == []


def test_what_changes_meanwhile_may_be_either() -> None:
    for what, at in (("gone", 199.0), ("error", 201.0)):
        story = Story()
        story.takes(what, "page6", at)
        assert story.holes(Receipt(acknowledged=("page0",), offline=USERS[1:])) == []


def test_none_at_all_is_a_hole_unless_something_is_wrong() -> None:
    story = Story()
    story.ledger.troubles.add(REDIS, 195.0, 196.0)
    story.receipts.failed(200.0, 201.0, "ConnectionError()")
    assert story.ledger.holes == []
    story.receipts.failed(220.0, 221.0, "ConnectionError()")
    assert "nothing is wrong: ConnectionError()" in story.ledger.holes[0]

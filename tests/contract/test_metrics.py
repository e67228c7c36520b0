"""Counters have descriptions, and gauges have names of their own."""

from __future__ import annotations

import pytest
from msgspec.structs import fields

from kraftek.contract.errors import Limit
from kraftek.contract.metrics import (
    PUBLISH_STATUSES,
    Counters,
    Gauges,
    RecoveryFailure,
    RefusalReason,
    ResumeFailure,
    SkipReason,
    described,
)


def test_every_counter_says_what_it_counts() -> None:
    descriptions = {name: description for name, description, _ in described()}
    assert list(descriptions) == [field.name for field in fields(Counters)]
    assert len(set(descriptions.values())) == len(descriptions)
    assert all(text[0].isupper() and not text.endswith(".") for text in descriptions.values())


def test_counters_are_in_order_and_begin_at_zero() -> None:
    names = [field.name for field in fields(Counters)]
    assert names == sorted(names)
    labels = {
        "": 0,
        "reason": dict.fromkeys(RefusalReason, 0),
        "limit": dict.fromkeys(Limit, 0),
        "policy": dict.fromkeys(SkipReason, 0),
        "status": dict.fromkeys(PUBLISH_STATUSES, 0),
    }
    for name, _, label in described():
        own = {"not_resumed": ResumeFailure, "not_recovered": RecoveryFailure}.get(name)
        expected = labels[label] if own is None else dict.fromkeys(own, 0)
        assert getattr(Counters(), name) == expected, name


def test_gauges_are_kept_in_order_and_a_name_is_taken_once() -> None:
    gauges = Gauges()
    gauges.add("b", "B", lambda: 1)
    gauges.add("a", "A", lambda: {"x": 2}, "service")
    assert [(gauge.name, gauge.description, gauge.read(), gauge.label) for gauge in gauges] == [
        ("b", "B", 1, ""),
        ("a", "A", {"x": 2}, "service"),
    ]
    with pytest.raises(ValueError, match="'a'"):
        gauges.add("a", "again", lambda: 3)

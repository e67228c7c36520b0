"""How many clients of an address are let in."""

from __future__ import annotations

from kraftek.edge.addresses import Addresses


def test_so_many_are_let_in() -> None:
    addresses = Addresses(2)
    addresses.add("one")
    assert not addresses.full("one")
    addresses.add("one")
    assert addresses.full("one")
    assert not addresses.full("other")
    addresses.remove("one")
    assert not addresses.full("one")


def test_without_a_limit_all_are() -> None:
    addresses = Addresses(0)
    for _ in range(1000):
        addresses.add("one")
    assert not addresses.full("one")

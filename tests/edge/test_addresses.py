"""How many clients of an address are let in."""

from __future__ import annotations

import pytest

from kraftek.edge.addresses import Addresses, owner


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


@pytest.mark.parametrize(
    ("address", "owned"),
    [
        ("93.184.216.34", "93.184.216.34"),
        ("::ffff:93.184.216.34", "93.184.216.34"),
        ("2606:2800:220:1::5", "2606:2800:220:1::"),
        ("127.0.0.1", ""),
        ("10.1.2.3", ""),
        ("192.168.1.1", ""),
        ("fe80::1%eth0", ""),
        ("fd00::1", ""),
        ("100.64.0.1", ""),
        ("", ""),
        ("unknown", ""),
    ],
)
def test_only_a_public_address_has_a_budget(address: str, owned: str) -> None:
    assert owner(address, reported=False) == owned


@pytest.mark.parametrize(
    ("address", "owned"),
    [
        ("93.184.216.34", "93.184.216.34"),
        ("10.1.2.3", "10.1.2.3"),
        ("fd00:0:0:1::7", "fd00:0:0:1::"),
        ("unknown", ""),
        ("127.0.0.1", ""),
    ],
)
def test_any_address_that_a_proxy_reports_has_a_budget(address: str, owned: str) -> None:
    assert owner(address, reported=True) == owned

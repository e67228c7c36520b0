"""Which address a client counts for, and how many are let in."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from kraftek.edge.addresses import Addresses

PROXY = IPv4Address("TCP", "10.0.0.1", 50000)


@pytest.mark.parametrize(
    ("proxies", "forwarded", "expected"),
    [
        (0, "192.0.2.1", "10.0.0.1"),
        (1, "192.0.2.1", "192.0.2.1"),
        (1, "203.0.113.9,192.0.2.1", "192.0.2.1"),
        (1, "203.0.113.9, 192.0.2.1 ", "192.0.2.1"),
        (2, "203.0.113.9, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
        # Fewer than there should be: somebody came by a shorter way.
        (3, "192.0.2.1, 10.0.0.2", "192.0.2.1"),
        (1, "", "10.0.0.1"),
        (1, "192.0.2.1,", "10.0.0.1"),
        (1, "2001:db8::1", "2001:db8::1"),
        (1, "192.0.2.1:50000", "192.0.2.1"),
        (1, "[2001:db8::1]:50000", "2001:db8::1"),
        (1, "[2001:db8::1]", "2001:db8::1"),
        (1, "unknown", "unknown"),
    ],
)
def test_the_address_is_what_the_trusted_proxies_say(proxies: int, forwarded: str, expected: str) -> None:
    assert Addresses(0, proxies).of(PROXY, forwarded) == expected


def test_without_a_word_of_theirs_it_is_the_sockets_own() -> None:
    addresses = Addresses(0, 0)
    assert addresses.of(IPv6Address("TCP", "2001:db8::1", 50000), "") == "2001:db8::1"
    assert addresses.of(UNIXAddress(b"/run/kraftek.sock"), "") == ""
    assert addresses.of(None, "") == ""


def test_so_many_are_let_in() -> None:
    addresses = Addresses(2, 0)
    addresses.add("one")
    assert not addresses.full("one")
    addresses.add("one")
    assert addresses.full("one")
    assert not addresses.full("other")
    addresses.remove("one")
    assert not addresses.full("one")


def test_without_a_limit_all_are() -> None:
    addresses = Addresses(0, 0)
    for _ in range(1000):
        addresses.add("one")
    assert not addresses.full("one")

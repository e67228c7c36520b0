"""What trusted proxies say of a client, and nobody else may."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from kraftek.edge.proxies import Proxies

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
    assert Proxies(proxies).address(PROXY, forwarded) == expected


def test_without_a_word_of_theirs_it_is_the_sockets_own() -> None:
    proxies = Proxies(0)
    assert proxies.address(IPv6Address("TCP", "2001:db8::1", 50000), "") == "2001:db8::1"
    assert proxies.address(UNIXAddress(b"/run/kraftek.sock"), "") == ""
    assert proxies.address(None, "") == ""
    assert proxies.address(None, None) == ""


@pytest.mark.parametrize(
    ("proxies", "forwarded", "secure", "scheme"),
    [
        (0, None, False, None),
        (0, None, True, "https"),
        (0, "http", True, "https"),
        (0, "https", False, None),
        (1, "https", False, "https"),
        (1, "HTTPS", False, "https"),
        (1, "http", True, "http"),
        (1, "wss", False, "https"),
        (1, "ws", False, "http"),
        (1, None, True, None),
        (1, "", False, None),
        (1, "gopher", False, None),
        (1, "http, https", False, "https"),
        (2, "http, https", False, "http"),
        (2, "https", False, "https"),
    ],
)
def test_the_scheme_is_ours_or_what_the_trusted_proxies_say(
    proxies: int, forwarded: str | None, secure: bool, scheme: str | None
) -> None:
    assert Proxies(proxies).scheme(forwarded, secure=secure) == scheme

"""Which names a port may be addressed by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kraftek.edge.hosts import Hosts

PATTERNS = ("gateway.example.org", "*.inside.test", "192.0.2.1", "[2001:db8::1]")


@pytest.mark.parametrize(
    ("host", "allowed", "leniently"),
    [
        ("gateway.example.org", True, True),
        ("GATEWAY.Example.org:3001", True, True),
        ("gateway.example.org:", True, True),
        ("a.inside.test", True, True),
        ("a.b.inside.test:80", True, True),
        ("inside.test", False, False),
        ("evilinside.test", False, False),
        ("gateway.example.org.evil.test", False, False),
        ("evil.test", False, False),
        ("gateway.example.org@evil.test", False, False),
        ("evil.test, a.inside.test", False, False),
        ("evil.test/a.inside.test", False, False),
        ("evil.test@a.inside.test", False, False),
        ("[evil].inside.test", False, False),
        ("gateway.example.org:80:80", False, False),
        ("gateway.example.org:x", False, False),
        ("192.0.2.1:3001", True, True),
        ("[2001:db8::1]:3001", True, True),
        ("192.0.2.2", False, True),
        ("[::1]:9101", False, True),
        ("[::1", False, False),
        ("127.0.0.1.evil.test", False, False),
        ("1", False, False),
        ("", False, True),
        (":80", False, True),
    ],
)
def test_the_rules(host: str, allowed: bool, leniently: bool) -> None:
    assert Hosts(PATTERNS).allow(host) is allowed
    assert Hosts(PATTERNS, lenient=True).allow(host) is leniently


@given(st.text() | st.text("[]:.@a0"))
def test_any_text_is_allowed_or_not(host: str) -> None:
    assert Hosts().allow(host) is True
    for hosts in (Hosts(PATTERNS), Hosts(PATTERNS, lenient=True), Hosts(["*.a"])):
        assert hosts.allow(host) in {True, False}

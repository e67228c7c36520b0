"""Which pages may connect: the table of rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kraftek.edge.origins import Origins

HOST = "gateway.example.org"


@pytest.mark.parametrize(
    ("patterns", "origin", "host", "allowed"),
    [
        # Without an Origin it is no browser.
        ([], None, HOST, True),
        (["same-host"], None, HOST, True),
        ([], f"https://{HOST}", HOST, False),
        # The same host: name and port, the scheme's own port when none is named.
        (["same-host"], f"https://{HOST}", HOST, True),
        (["same-host"], f"http://{HOST}", HOST, True),
        (["same-host"], f"http://{HOST}:80", HOST, True),
        (["same-host"], f"http://{HOST}", f"{HOST}:80", True),
        (["same-host"], f"https://{HOST}", f"{HOST}:443", True),
        (["same-host"], "http://GATEWAY.Example.org", "gateway.EXAMPLE.org", True),
        (["same-host"], "http://localhost:3001", "localhost:3001", True),
        (["same-host"], "http://[::1]:3001", "[::1]:3001", True),
        (["same-host"], "http://localhost:5173", "localhost:3001", False),
        (["same-host"], "http://localhost", "localhost:3001", False),
        (["same-host"], f"http://{HOST}:81", HOST, False),
        (["same-host"], f"https://{HOST}", f"{HOST}:80", False),
        (["same-host"], "https://evil.org", HOST, False),
        (["same-host"], f"https://{HOST}.evil.org", HOST, False),
        (["same-host"], f"https://evil{HOST}", HOST, False),
        (["same-host"], "https://example.org", HOST, False),
        (["same-host"], "null", HOST, False),
        (["same-host"], "", HOST, False),
        (["same-host"], "", "", False),
        (["same-host"], "https://", "", False),
        (["same-host"], f"https://{HOST}", f"{HOST}:port", False),
        (["same-host"], "https://[::1", "[::1", False),
        # Exactly this one.
        (["https://app.example.org"], "https://app.example.org", HOST, True),
        (["https://app.example.org"], "https://APP.example.org:443", HOST, True),
        (["https://App.Example.org:443"], "https://app.example.org", HOST, True),
        (["https://app.example.org"], "http://app.example.org", HOST, False),
        (["https://app.example.org"], "https://app.example.org:444", HOST, False),
        (["https://app.example.org"], "https://sub.app.example.org", HOST, False),
        (["http://[::1]:8080"], "http://[::1]:8080", HOST, True),
        (["https://a.org", "https://b.org"], "https://b.org", HOST, True),
        (["capacitor://localhost"], "capacitor://localhost", HOST, True),
        # Every host below.
        (["*.example.org"], "https://a.example.org", HOST, True),
        (["*.example.org"], "http://a.b.EXAMPLE.org:8080", HOST, True),
        (["*.example.org"], "https://example.org", HOST, False),
        (["*.example.org"], "https://evilexample.org", HOST, False),
        (["*.example.org"], "https://a.example.org.evil.net", HOST, False),
        (["*.example.org"], "https://evil.net/.example.org", HOST, False),
        (["*.example.org"], "https://evil.net?.example.org", HOST, False),
        (["*.example.org"], "https://evil.net#.example.org", HOST, False),
        (["*.example.org"], "https://a.example.org:99999", HOST, False),
        (["*.example.org"], "null", HOST, False),
        # Everybody.
        (["*"], "https://evil.org", HOST, True),
        (["*"], "null", HOST, True),
        (["*"], "no origin at all", HOST, True),
    ],
)
def test_the_rules(patterns: list[str], origin: str | None, host: str, allowed: bool) -> None:
    assert Origins(patterns).allow(origin, host) is allowed


@given(st.text() | st.text("https://[]:.@a0").map("http://{}".format), st.text() | st.text("[]:.@a0"))
def test_any_text_is_allowed_or_not(origin: str, host: str) -> None:
    allowed = Origins(["same-host", "*.example.org", "https://app.example.org"]).allow(origin, host)
    assert allowed is False or (allowed is True and "://" in origin)


@given(st.text())
def test_without_rules_no_page_connects(origin: str) -> None:
    assert not Origins([]).allow(origin, HOST)

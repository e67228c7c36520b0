"""Which pages may connect: the table of rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kraftek.edge.origins import Origins, Verdict

HOST = "gateway.example.org"


@pytest.mark.parametrize(
    ("patterns", "origin", "host", "allowed"),
    [
        # Without an Origin it is no browser.
        ([], "", HOST, True),
        (["same-host"], "", HOST, True),
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
def test_the_rules(patterns: list[str], origin: str, host: str, allowed: bool) -> None:
    assert (Origins(patterns).judge(origin, host, None) is not Verdict.REFUSED) is allowed


@pytest.mark.parametrize(
    ("scheme", "origin", "allowed"),
    [
        (None, "http://gateway.test", True),
        (None, "https://gateway.test", True),
        ("https", "https://gateway.test", True),
        ("https", "http://gateway.test", False),
        ("http", "http://gateway.test", True),
        ("http", "https://gateway.test", False),
        ("https", "https://app.example.org", True),
        ("https", "http://a.example.net", True),
    ],
)
def test_the_scheme_counts_for_the_same_host_where_it_is_known(scheme: str | None, origin: str, allowed: bool) -> None:
    origins = Origins(["same-host", "https://app.example.org", "*.example.net"])
    assert (origins.judge(origin, "gateway.test", scheme) is Verdict.NAMED) is allowed


@pytest.mark.parametrize(
    ("origin", "verdict"),
    [
        ("https://app.example.org", Verdict.NAMED),
        ("https://a.example.net", Verdict.NAMED),
        ("https://gateway.test", Verdict.NAMED),
        ("https://evil.test", Verdict.ANYBODY),
        ("null", Verdict.ANYBODY),
    ],
)
def test_everybodys_page_may_less_than_one_that_is_named(origin: str, verdict: Verdict) -> None:
    origins = Origins(["*", "same-host", "https://app.example.org", "*.example.net"])
    assert origins.judge(origin, "gateway.test", None) is verdict


@given(st.text() | st.text("https://[]:.@a0").map("http://{}".format), st.text() | st.text("[]:.@a0"))
def test_any_text_is_allowed_or_not(origin: str, host: str) -> None:
    origins = Origins(["same-host", "*.example.org", "https://app.example.org"])
    for scheme in (None, "https"):
        verdict = origins.judge(origin, host, scheme)
        assert verdict is Verdict.REFUSED or (verdict is Verdict.NAMED and (not origin or "://" in origin))


@given(st.text(min_size=1))
def test_without_rules_no_page_connects(origin: str) -> None:
    assert Origins([]).judge(origin, HOST, None) is Verdict.REFUSED

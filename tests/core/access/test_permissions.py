"""Which events a grant permits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kraftek.core.access.permissions import permits


@pytest.mark.parametrize(
    ("patterns", "name", "permitted"),
    [
        ((), "chat:message:send", False),
        (("chat:message:send",), "chat:message:send", True),
        (("chat:message:send",), "chat:message:delete", False),
        (("chat:*:*",), "chat:message:send", True),
        (("chat:*:*",), "chatter:message:send", False),
        (("chat:message:*",), "chat:message:send", True),
        (("chat:message:*",), "chat:room:send", False),
        (("*:*:send",), "mail:letter:send", True),
        (("*:*:*",), "anything:at:all", True),
        (("mail:*:*", "chat:*:*"), "chat:message:send", True),
        # A pattern has three parts, and a star is a whole one.
        (("*",), "chat:message:send", False),
        (("chat:*",), "chat:message:send", False),
        (("chat:*:*:*",), "chat:message:send", False),
        (("ch*:*:*",), "chat:message:send", False),
        (("",), "chat:message:send", False),
        # Letter by letter, nothing is a regular expression or a glob.
        (("CHAT:*:*",), "chat:message:send", False),
        (("chat:.*:.*",), "chat:message:send", False),
        (("chat:?:*",), "chat:m:send", False),
        (("chat:[m]:*",), "chat:m:send", False),
        # A star that a client sends is no star.
        (("chat:message:send",), "*:*:*", False),
    ],
)
def test_permits(patterns: tuple[str, ...], name: str, permitted: bool) -> None:
    assert permits(patterns, name) is permitted


def test_one_that_is_to_name_the_service_has_no_star_there() -> None:
    assert permits(("*:*:*", "wiki:page:read"), "wiki:page:read", explicit=True)
    assert permits(("wiki:*:*",), "wiki:page:read", explicit=True)
    assert not permits(("*:*:*", "*:page:read", "chat:*:*"), "wiki:page:read", explicit=True)


PART = st.text(st.characters(exclude_characters=":"), min_size=1, max_size=5)


@given(st.lists(PART, min_size=3, max_size=3), st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_name_is_covered_by_itself_with_any_of_its_parts_starred(parts: list[str], starred: list[bool]) -> None:
    pattern = ":".join("*" if star else part for part, star in zip(parts, starred, strict=True))
    assert permits((pattern,), ":".join(parts))


FEW = st.lists(st.sampled_from("ab") | PART.filter(lambda part: part != "*"), min_size=3, max_size=3)


@given(FEW, FEW)
def test_without_stars_a_name_is_covered_by_itself_alone(pattern: list[str], parts: list[str]) -> None:
    assert permits((":".join(pattern),), ":".join(pattern))
    assert permits((":".join(pattern),), ":".join(parts)) is (pattern == parts)

"""Commands are read back by hiredis as they were meant."""

from __future__ import annotations

import hiredis
from hypothesis import given
from hypothesis import strategies as st

from kraftek.bus.resp import command, publish_head

ARGUMENTS = st.binary() | st.text(st.characters(exclude_categories=["Cs"])) | st.integers() | st.floats()


def parsed(data: bytes) -> list[bytes]:
    reader = hiredis.Reader()
    reader.feed(data)
    found: list[bytes] = reader.gets()
    assert reader.gets() is False
    assert not reader.has_data()
    return found


@given(st.lists(ARGUMENTS, min_size=1))
def test_a_command_is_its_parts(parts: list[bytes | str | int | float]) -> None:
    assert parsed(command(*parts)) == [
        part if isinstance(part, bytes) else str(part).encode() for part in parts
    ]


@given(st.binary(), st.binary())
def test_a_publish_is_its_head_and_its_body(channel: bytes, body: bytes) -> None:
    assert parsed(publish_head(channel) + b"%d\r\n%b\r\n" % (len(body), body)) == [b"PUBLISH", channel, body]

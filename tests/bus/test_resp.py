"""Commands are read back by hiredis as they were meant."""

from __future__ import annotations

import hiredis
from hypothesis import given
from hypothesis import strategies as st

from kraftek.bus.resp import _LENGTHS, command, publish_head, script_call, script_head

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
    assert parsed(command(*parts)) == [part if isinstance(part, bytes) else str(part).encode() for part in parts]


HEAD = script_head(b"EVALSHA", "a1b2")


@given(st.lists(st.binary()))
def test_a_script_is_called_with_its_arguments(args: list[bytes]) -> None:
    assert parsed(script_call(HEAD, args)) == [b"EVALSHA", b"a1b2", b"0", *args]


def test_a_script_that_is_not_ascii() -> None:
    assert parsed(script_call(script_head(b"EVAL", "return 'ä'"), [])) == [b"EVAL", "return 'ä'".encode(), b"0"]


def test_lengths_beyond_those_remembered() -> None:
    args = [b"x" * length for length in range(len(_LENGTHS) - 3, len(_LENGTHS) + 3)]
    assert parsed(script_call(HEAD, args))[3:] == args
    assert parsed(script_call(HEAD, args[:3]))[3:] == args[:3]


@given(st.binary(), st.binary())
def test_a_publish_is_its_head_and_its_body(channel: bytes, body: bytes) -> None:
    assert parsed(publish_head(channel) + b"%d\r\n%b\r\n" % (len(body), body)) == [b"PUBLISH", channel, body]

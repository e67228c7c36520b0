"""Server frames, against an implementation that is not ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from kraftek.contract.messages import Outgoing
from kraftek.edge.websocket.frames import frame, wire

BOUNDARIES = [0, 1, 125, 126, 127, 65_535, 65_536, 65_537, 200_000]


def read(data: bytes) -> list[tuple[Opcode, bytes]]:
    """The frames in ``data``: each whole, unmasked, in the shortest form there is."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frames = []
    while data:
        parsing = Frame.parse(reader.read_exact, mask=False)
        try:
            next(parsing)
        except StopIteration as end:
            found: Frame = end.value
        assert found.fin
        written = found.serialize(mask=False)
        assert data.startswith(written)
        data = data[len(written) :]
        frames.append((found.opcode, bytes(found.data)))
    return frames


@pytest.mark.parametrize("size", BOUNDARIES)
@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
def test_a_frame_is_read_as_it_was_written(opcode: Opcode, size: int) -> None:
    assert read(frame(0x80 | opcode, b"x" * size)) == [(opcode, b"x" * size)]


@given(st.binary(max_size=300))
def test_any_payload(payload: bytes) -> None:
    assert read(frame(0x81, payload)) == [(Opcode.TEXT, payload)]


@pytest.mark.parametrize("attachments", [(), (b"one",), (b"", b"x" * 70_000)])
def test_a_message_is_a_text_and_its_attachments(attachments: tuple[bytes, ...]) -> None:
    expected = [(Opcode.TEXT, b"text"), *((Opcode.BINARY, data) for data in attachments)]
    assert read(wire(Outgoing(b"text", attachments))) == expected


def test_a_message_is_framed_once() -> None:
    outgoing = Outgoing(b"text")
    assert wire(outgoing) is wire(outgoing) is outgoing.wire


def test_without_a_text_there_are_only_attachments_and_without_both_an_empty_text() -> None:
    assert read(wire(Outgoing(b"", (b"one", b"")))) == [(Opcode.BINARY, b"one"), (Opcode.BINARY, b"")]
    assert read(wire(Outgoing(b""))) == [(Opcode.TEXT, b"")]

"""`bench.flooder`: what floods are made of is what they say."""

import json
import re
import zlib

import pytest

from bench.flooder import CHUNK, HELD, KINDS, PADDED, POSTED, deflated, fragments, frame


def frames(data: bytes) -> list[tuple[int, bytes]]:
    """The first two bytes of each frame as they stand there, and its payload; fails unless they are all whole."""
    found = []
    while data:
        head, size, at = int.from_bytes(data[:1]), data[1] & 127, 2
        assert data[1] & 128
        if size > 125:
            width = {126: 2, 127: 8}[size]
            size, at = int.from_bytes(data[2 : 2 + width]), 2 + width
        assert data[at : at + 4] == bytes(4)
        payload, data = data[at + 4 : at + 4 + size], data[at + 4 + size :]
        assert len(payload) == size
        found.append((head, payload))
    return found


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if not kind.startswith("HTTP") and kind not in {*POSTED, "handshakes"}]
)
def test_a_flood_is_of_whole_frames(kind: str) -> None:
    chunk = KINDS[kind]()(1)
    assert len(chunk) >= CHUNK // 2
    for head, payload in frames(chunk):
        text = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff") if head & 0x40 else payload
        if kind.startswith("Socket.IO"):
            text = re.sub(rb"[0-9-]+(/x,)?", b"", text, count=1)  # types of packets, attachments, namespace and ids
        if head & 0xF == 1 and head & 0x80 and text:
            json.loads(text)


def test_fragments_are_one_message() -> None:
    found = frames(b"".join(fragments()))
    assert [head for head, _ in found] == [1, *[0] * (HELD - 2), 0x80]
    assert b"".join(payload for _, payload in found) == PADDED


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_a_frame_has_its_length(size: int) -> None:
    assert frames(frame(2, bytes(size))) == [(0x82, bytes(size))]


def test_what_is_inflated_is_the_largest_message() -> None:
    assert zlib.decompressobj(-15).decompress(deflated(PADDED) + b"\x00\x00\xff\xff") == PADDED
    assert len(deflated(PADDED)) < 200


def test_heads_are_as_long_as_they_may_be() -> None:
    for kind in ("HTTP chunks", "HTTP queries"):
        head, _, _ = KINDS[kind]()(1).partition(b"\r\n\r\n")
        assert 15_000 < len(head) < 16_384 - 4

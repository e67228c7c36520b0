"""The bounds of a message that comes in frames."""

from __future__ import annotations

import pytest

from kraftek.edge.websocket.deflate import Inflater
from kraftek.edge.websocket.incoming import Incoming, TooLargeError


def test_frames_up_to_the_limit() -> None:
    incoming = Incoming(10, False, None)
    for size in (4, 0, 6, 0):
        incoming.announce(size)
    with pytest.raises(TooLargeError, match="too large"):
        incoming.announce(1)


def test_empty_frames_are_few() -> None:
    incoming = Incoming(10, False, None)
    for _ in range(128):
        incoming.announce(0)
    with pytest.raises(TooLargeError, match="empty"):
        incoming.announce(0)


def test_a_compressed_message_may_be_longer_before_it_is_decompressed() -> None:
    inflater = Inflater(1000)
    with pytest.raises(TooLargeError):
        Incoming(1000, False, inflater).announce(1001)  # one that is not compressed, of a client that could
    inflater.start_decompress_message()
    Incoming(1000, False, inflater).announce(inflater.longest)
    with pytest.raises(TooLargeError):
        Incoming(1000, False, inflater).announce(inflater.longest + 1)

"""Which offers to compress are taken, and that messages are decompressed to the byte and no further."""

from __future__ import annotations

import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kraftek.edge.websocket.deflate import CORRUPT, TOO_LARGE, Deflate, Inflater, accepted


@pytest.mark.parametrize(
    ("offers", "header", "bits"),
    [
        ("permessage-deflate", "permessage-deflate; client_no_context_takeover", 15),
        ("Permessage-Deflate;Client_Max_Window_Bits", "permessage-deflate; client_no_context_takeover", 15),
        ("permessage-deflate; client_max_window_bits=8", "permessage-deflate; client_no_context_takeover", 15),
        (
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=9; client_no_context_takeover",
            "permessage-deflate; server_no_context_takeover; server_max_window_bits=9; client_no_context_takeover",
            9,
        ),
        (
            'permessage-deflate; server_max_window_bits="10"',
            "permessage-deflate; server_max_window_bits=10; client_no_context_takeover",
            10,
        ),
        (
            'mystery; a="b, c; d", permessage-deflate; server_max_window_bits=8, permessage-deflate',
            "permessage-deflate; client_no_context_takeover",
            15,
        ),
    ],
)
def test_the_first_offer_that_can_be_taken(offers: str, header: str, bits: int) -> None:
    assert accepted(offers) == Deflate(header, bits)


@pytest.mark.parametrize(
    "offer",
    [
        "",
        ",",
        ";",
        '"',
        "mystery",
        "permessage-deflate; mystery",
        "permessage-deflate; =1",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=8",  # zlib cannot
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=09",
        "permessage-deflate; server_max_window_bits=abc",
        'permessage-deflate; server_max_window_bits="9',
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=",
        "permessage-deflate; client_no_context_takeover=1",
        "permessage-deflate; server_no_context_takeover=true",
        "permessage-deflate; client_max_window_bits; client_max_window_bits",
        "permessage-deflate; client_max_window_bits; CLIENT_max_window_bits=9",
        "permessage-deflate" + " " * 2000,
    ],
)
def test_what_is_declined(offer: str) -> None:
    assert accepted(offer) is None


@given(st.text() | st.text('permessage-deflate;,="\\ '))
def test_any_offer_is_taken_or_not(offers: str) -> None:
    assert accepted(offers) in {None, Deflate("permessage-deflate; client_no_context_takeover", 15)}


@pytest.mark.parametrize("letter", ['"', '"\\', ",", ";", '";', "a="])
def test_no_offer_takes_long(letter: str) -> None:
    started = time.process_time()
    for size in (1000, 16_000):
        assert accepted((letter * size)[:size]) is None
    assert time.process_time() - started < 0.1


def deflated(message: bytes, level: int = 9) -> bytes:
    compressor = zlib.compressobj(level, wbits=-15)
    return (compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def inflated(inflater: Inflater, data: bytes, step: int) -> bytes:
    inflater.start_decompress_message()
    message = b"".join(inflater.decompress_message_data(data[at : at + step]) for at in range(0, len(data), step))
    inflater.end_decompress_message()
    return message


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_up_to_the_limit_it_is_all_there(size: int, level: int, step: int) -> None:
    inflater = Inflater(1000)
    message = bytes(number * number % 251 for number in range(size))
    data = deflated(message, level)
    assert len(data) <= inflater.longest
    assert inflated(inflater, data, step) == message
    assert not inflater.under_way
    assert inflated(inflater, data, step) == message
    assert inflater.failure is None


@pytest.mark.parametrize("step", [1, 7, 100_000])
@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("over", [1, 2, 258, 100_000])
def test_past_the_limit_it_is_refused(over: int, level: int, step: int) -> None:
    inflater = Inflater(1000)
    assert len(inflated(inflater, deflated(b"x" * (1000 + over), level), step)) <= 1000
    assert inflater.failure == TOO_LARGE


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff", deflated(b"hello" * 10)[:-3], b"\x00\x05\x00\xfa\xff12345\x00\x09\x00\xf6\xff1"]
)
def test_what_is_broken_is_corrupt(data: bytes) -> None:
    inflater = Inflater(1000)
    inflated(inflater, data, 100)
    assert inflater.failure == CORRUPT


@given(st.binary(max_size=300))
def test_any_data_is_decompressed_or_not(data: bytes) -> None:
    inflater = Inflater(1000)
    assert len(inflated(inflater, data, 50)) <= 1000
    assert inflater.failure in {None, CORRUPT, TOO_LARGE}

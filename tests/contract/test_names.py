"""Names that say whose socket it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kraftek.contract.names import NAME_LENGTH, gateway_of, new_gateway_id, new_socket_id, reply_channel, service_of

NAMES = json.loads((Path(__file__).parents[1] / "client/names.json").read_text("utf-8"))
"""Names of events, and what is none: the same for gateways and for all clients."""


def test_no_two_gateways_have_the_same_name() -> None:
    assert len({new_gateway_id() for _ in range(1000)}) == 1000


def test_a_socket_id_says_whose_it_is() -> None:
    gateway_id = new_gateway_id()
    assert gateway_of(new_socket_id(gateway_id)) == gateway_id


def test_nobody_guesses_a_socket_id() -> None:
    random = [new_socket_id("g").removeprefix("g.") for _ in range(1000)]
    assert len(set(random)) == 1000
    assert {len(part) for part in random} == {16}  # 64 bits in hex


@pytest.mark.parametrize(
    ("socket_id", "gateway_id"),
    [
        ("g.1", "g"),
        ("a.b.1", "a.b"),
        ("xUc3kQ7aAAAB", ""),  # as the original gateway's sockets are named: no gateway of ours
        ("", ""),
        (".1", ""),
    ],
)
def test_the_gateway_of_any_text(socket_id: str, gateway_id: str) -> None:
    assert gateway_of(socket_id) == gateway_id


def test_each_gateway_has_its_own_reply_channel() -> None:
    assert reply_channel("g") == "events:reply:g"


def test_an_event_is_for_the_first_part_of_its_name() -> None:
    for name in NAMES["good"]:
        assert service_of(name) == name.partition(":")[0]
    assert service_of("a:b:" + "ж" * (NAME_LENGTH - 4)) == "a"


def test_what_names_no_event() -> None:
    assert [name for name in NAMES["bad"] if service_of(name) is not None] == []
    assert service_of("a:b:" + "ж" * (NAME_LENGTH - 3)) is None

"""What users show of themselves: what is taken of it, and where it is kept."""

from __future__ import annotations

import pytest
from msgspec import Raw

from kraftek.contract.interfaces import Here
from kraftek.contract.names import EPOCH, room_key, shown_key
from kraftek.contract.settings import RoomPolicy
from kraftek.core.registry import ServiceRegistry
from kraftek.core.rooms.room_cache import RedisRooms
from kraftek.core.rooms.shown import Shown, read_data
from tests.support.fakes import FakeBus


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (b'"%s"' % (b"x" * 100), "at most 50 bytes"),
        (b'"\\ud800"', "data: "),
        (b"1e999", "data: "),
        (b'{"a":', "data: "),
        (b"[" * 2000, "at most"),
    ],
)
def test_what_others_could_not_read_is_refused(given: bytes, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        read_data(Raw(given), 50)


def test_what_grows_when_it_is_written_anew_is_measured_then() -> None:
    with pytest.raises(ValueError, match="found 58"):
        read_data(Raw(b"[1e15,1e15,1e15]"), 50)


def test_data_is_written_anew_without_white_space() -> None:
    assert read_data(Raw(b' { "a" : [1, 2.5, null, "\\u00e9"] } '), 50) == '{"a":[1,2.5,null,"é"]}'.encode()
    assert read_data(Raw(b""), 50) == b""


def test_what_is_shown_in_a_room_without_presence_is_not_kept() -> None:
    shown = Shown((RoomPolicy(pattern="a*", history=1), RoomPolicy(pattern="*", presence=True)))
    assert not shown.show(("ann", "abc", "s"), b"1")
    assert shown.word(("ann", "abc", "s")) == b""
    assert shown.show(("ann", "b", "s"), b"1")
    assert not shown.show(("ann", "b", "s"), b"1")
    assert shown.word(("ann", "b", "s")) == b"1"
    shown.forget(("ann", "b", "s"))
    assert shown.word(("ann", "b", "s")) == b"-"
    assert (bool(shown), bool(Shown((RoomPolicy(pattern="a*", history=1),)))) == (True, False)


def test_scripts_are_given_it_only_where_clients_may_watch() -> None:
    bus = FakeBus()
    policies = (RoomPolicy(pattern="board-*", presence=True),)
    rooms = RedisRooms(bus, ServiceRegistry(), "g1", "replies", policies=policies)
    rooms.shown.show(("ann", "board-1", "g1.a"), b"[1]")
    for room_id, word in (("board-1", b"[1]"), ("board-2", b"-"), ("hall", b"")):
        rooms.enter(("ann", room_id, "g1.a"), 5)
        call = bus.calls.pop()
        assert call.args[-1] == word
        assert (shown_key(room_id) in call.keys) == bool(word)


def test_who_is_there_is_read_with_what_each_shows() -> None:
    bus = FakeBus()
    bus.epoch = "e1"
    reading = RedisRooms(bus, ServiceRegistry(), "g1", "replies").here("r", 2, ["ann", "bob"])
    call = bus.calls.pop()
    assert (call.keys, call.args) == ((room_key("r"), shown_key("r"), EPOCH), ("e1", 2, "ann", "bob"))
    found: list[Here] = []
    reading.addCallback(found.append)
    call.reply.callback([3, b"ann", b"[1]", b"eve", b""])
    assert found == [Here(3, {"ann": b"[1]", "eve": b""})]

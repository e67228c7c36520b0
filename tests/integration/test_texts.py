"""An answer in pieces, two gateways: whoever is there, comes late, or loses the socket, ends with the same text."""

from __future__ import annotations

import json
from random import Random
from socket import SHUT_RDWR
from typing import TYPE_CHECKING, Any

import pytest

from kraftek.contract.history import APPEND_FUNCTION

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Connect, Shared

PIECES, THERE, LATE, CUT = 200, 32, 4, 4
WORDS = ["and ", "then ", "the gateway ", 'said: "', "ö\n", "🙂", "why/not? "]
CONFIG = {"rooms": {"chat-*": {"history": 50}}, "sessions": "many"}


class House:
    """Two gateways on one Redis."""

    def __init__(self, shared: Shared, connect: Connect) -> None:
        self.redis = shared.redis_server
        self.gateways = [shared.gateway(number, config=CONFIG) for number in range(2)]
        self.connect = connect

    def append(self, room: str, piece: str, flags: str = "") -> None:
        """A service tells the room a piece of the answer."""
        with self.redis.client() as redis:
            redis.execute_command("FCALL", APPEND_FUNCTION, 0, room, "bot:text:said", "answer", piece, flags)


class Reader:
    """A client in a room, and what it makes of the text. ``bytes``: of the frames that it got in the room."""

    def __init__(self, house: House, number: int, room: str, **asked: Any) -> None:
        self.house, self.room = house, room
        self.text, self.bytes, self.frames, self.ended = "", 0, 0, False
        self.enter(number, **asked)

    def enter(self, number: int, **asked: Any) -> None:
        self.number = number
        self.client: Client = self.house.connect(self.house.gateways[number % 2])
        payload = {"token": f"u{number}", "roomId": self.room, **asked}
        self.client.send("authenticate", payload=payload)
        self.standing = self.client.expect("authenticated")["payload"]
        self.offset: int = self.standing["offset"]

    def come_back(self) -> None:
        """On the other gateway."""
        since = {"epoch": self.standing["epoch"], "offset": self.offset}
        self.enter(self.number + 1, since=since)
        assert self.standing["recovered"] is True

    def read(self, *, until: int | None = None) -> None:
        """As far as that offset, or to the end of the text."""
        while self.offset != until and not self.ended:
            message = self.client.expect("bot:text:said")
            assert message["offset"] > self.offset
            append = message["append"]
            assert append["key"] == "answer"
            self.text = message["payload"] if "from" in append else self.text + message["payload"]
            self.offset, self.ended = message["offset"], append.get("last", False)
            self.bytes += len(json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode())
            self.frames += 1


@pytest.fixture
def house(shared: Shared, connect: Connect) -> House:
    """Two gateways, and clients of them."""
    return House(shared, connect)


def test_everybody_ends_with_the_same_text(house: House) -> None:
    random, room = Random(1), "chat-1"
    pieces = [random.choice(WORDS) for _ in range(PIECES)]
    readers = [Reader(house, number, room) for number in range(THERE + CUT)]

    def say(first: int, last: int) -> None:
        for number in range(first, last):
            house.append(room, pieces[number], {0: "first", PIECES - 1: "last"}.get(number, ""))

    say(0, PIECES // 2)
    half = readers[THERE:]
    for reader in half:
        reader.read(until=PIECES // 2)
        reader.client.connection.socket.shutdown(SHUT_RDWR)
    say(PIECES // 2, 3 * PIECES // 4)
    late = [Reader(house, number, room, history=10) for number in range(LATE)]
    for reader in half:
        reader.come_back()
    say(3 * PIECES // 4, PIECES)
    after = [Reader(house, number, room, history=10) for number in range(2)]
    text = "".join(pieces)
    for reader in [*readers, *late, *after]:
        reader.read()
        assert reader.text == text
    assert {reader.frames for reader in readers[:THERE]} == {PIECES}
    assert {reader.frames for reader in late} == {1 + PIECES // 4}
    assert {reader.frames for reader in after} == {1}
    whole = len(json.dumps(text, ensure_ascii=False).encode())
    assert max(reader.bytes for reader in after) <= 1.1 * whole


def test_a_page_has_the_whole_text(house: House) -> None:
    room = "chat-2"
    reader = Reader(house, 1, room)
    for piece, flags in (("Once ", "first"), ("upon", ""), (" a time", "last")):
        house.append(room, piece, flags)
    reader.read()
    reader.client.send("history", payload={"roomId": room}, id=1)
    (message,) = reader.client.expect("history")["payload"]["messages"]
    assert (message["payload"], message["append"]) == ("Once upon a time", {"key": "answer", "from": 1, "last": True})

"""The notes service as its own process, spoken to as a gateway speaks to it."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kraftek.daemon.demo import NOTES, notes
from tests.support.redis_server import PrivateRedis
from tests.support.waiting import Lines, wait_until

Json = dict[str, Any]
CHANNEL = "events:stickyNotes"
NOTE: Json = {"x": 100, "y": 50.5, "text": "Молоко 🥛", "colour": "pink"}
AWAY = "Redis is unavailable, retrying every 1 s"
SERVES = "Service stickyNotes receives events from events:stickyNotes"
BEGUN = ["Redis is connected", SERVES]
ALONE = "Service stickyNotes is not compared with its registration: no gateway is connected to this Redis"
"""What it says at some time, because what plays the gateway here has no registry."""
STATED = {"by": "user_ann", "at": 1_700_000_000_000}


class Process:
    """The service, started as the gateway starts it."""

    def __init__(self, server: PrivateRedis, prefix: str = "", *command: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *(command or [str(NOTES)])],
            env={**os.environ, "REDIS_URL": server.url, "REDIS_PREFIX": prefix},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        self._lines = Lines(self._process.stderr)

    def log_line(self) -> str:
        while (line := self._lines.next()) == ALONE:
            pass
        return line

    def end_of_input(self) -> tuple[int, list[str]]:
        """Close its standard input; its exit code, and what else it logged."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait(10), [line for line in self._lines.rest() if line != ALONE]

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self.end_of_input()


class Gateway:
    """What a gateway does: publishes what clients said, hears what it shall deliver."""

    def __init__(self, server: PrivateRedis) -> None:
        self.redis = server.client(decode_responses=True)
        self._heard = self.redis.pubsub(ignore_subscribe_messages=True)
        self._heard.subscribe("events:broadcast", "gateway:g1")

    def wait_service(self, channel: str = CHANNEL) -> None:
        wait_until(lambda: self.redis.pubsub_numsub(channel)[0][1], f"a subscription to {channel}", 15.0)

    def say(self, name: str, payload: object, **changed: object) -> None:
        event = {
            "eventType": f"stickyNotes:{name}",
            "userId": STATED["by"],
            "socketId": "g1.ann",
            "roomId": "kitchen",
            "payload": payload,
            "timestamp": STATED["at"],
        }
        self.redis.publish(CHANNEL, json.dumps(event | changed))

    def hear(self) -> Json:
        """The next message to deliver, with the channel that it came on."""
        message = wait_until(lambda: self._heard.get_message(timeout=1), "a word of the service")
        told: Json = json.loads(message["data"])
        return {"channel": message["channel"]} | told

    def ask(self, name: str, payload: object, **changed: object) -> Json:
        self.say(name, payload, **changed)
        return self.hear()

    def create(self, **changed: object) -> Json:
        told = self.ask("note:create", NOTE | changed)
        assert told["type"] == "stickyNotes:note:created", told
        return dict(told["payload"]["note"])

    def board(self, room: str = "kitchen") -> list[Json]:
        return list(self.ask("board:open", {}, roomId=room)["payload"]["notes"])

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *exception: object) -> None:
        self._heard.close()
        self.redis.close()


@pytest.fixture(scope="module")
def lasting_redis() -> Iterator[PrivateRedis]:
    server = PrivateRedis()
    server.start()
    with Process(server):
        yield server
    server.close()


@pytest.fixture
def gateway(lasting_redis: PrivateRedis) -> Iterator[Gateway]:
    """Of an empty Redis, with a service: the same one in many tests, which takes them to leave it in order."""
    lasting_redis.call("FLUSHALL")
    with Gateway(lasting_redis) as gateway:
        gateway.wait_service()
        yield gateway


@pytest.fixture
def redis_server() -> Iterator[PrivateRedis]:
    """One of this test alone, to be stopped and started."""
    server = PrivateRedis()
    server.start()
    yield server
    server.close()


def test_a_created_note_is_told_to_the_room(gateway: Gateway) -> None:
    told = gateway.ask("note:create", NOTE)

    note = told["payload"]["note"]
    assert told == {
        "channel": "events:broadcast",
        "type": "stickyNotes:note:created",
        "roomId": "kitchen",
        "payload": {"roomId": "kitchen", "userId": "user_ann", "note": NOTE | STATED | {"id": note["id"]}},
    }


def test_the_service_names_the_notes(gateway: Gateway) -> None:
    first, second = gateway.create(id="mine"), gateway.create(id="mine")

    assert len({first["id"], second["id"], "mine"}) == 3


@pytest.mark.parametrize(
    ("does", "told", "parts"),
    [
        ("move", "moved", {"x": 0, "y": 800}),
        ("move", "moved", {"x": 1600, "y": 0.25}),
        ("edit", "edited", {"text": ""}),
        ("edit", "edited", {"text": "<b>" + "я" * 497}),
        ("recolour", "recoloured", {"colour": "green"}),
    ],
)
def test_a_change_is_told_as_the_whole_note(gateway: Gateway, does: str, told: str, parts: Json) -> None:
    note = gateway.create()

    heard = gateway.ask(f"note:{does}", {"id": note["id"], **parts}, userId="user_bob", timestamp=7)

    changed = note | parts | {"by": "user_bob", "at": 7}
    assert heard["type"] == f"stickyNotes:note:{told}"
    assert heard["payload"] == {"roomId": "kitchen", "userId": "user_bob", "note": changed}
    assert gateway.board() == [changed]


def test_a_change_sets_its_own_parts_only(gateway: Gateway) -> None:
    note = gateway.create()

    heard = gateway.ask("note:move", {"id": note["id"], "x": 1, "y": 2, "text": "slipped in", "by": "user_eve"})

    assert heard["payload"]["note"] == note | {"x": 1, "y": 2}


def test_a_deleted_note_is_gone(gateway: Gateway) -> None:
    note, other = gateway.create(), gateway.create()

    heard = gateway.ask("note:delete", {"id": note["id"]})

    assert heard["type"] == "stickyNotes:note:deleted"
    assert heard["payload"] == {"roomId": "kitchen", "userId": "user_ann", "note": note}
    assert gateway.board() == [other]


def test_the_board_is_told_to_who_asks(gateway: Gateway) -> None:
    note = gateway.create()

    told = gateway.ask("board:open", {}, socketId="g1.bob")

    assert told == {
        "channel": "events:broadcast",
        "type": "stickyNotes:board:opened",
        "recipients": ["g1.bob"],
        "payload": {"roomId": "kitchen", "notes": [note]},
    }


def test_answers_go_to_the_one_gateway_that_asks_for_it(gateway: Gateway) -> None:
    assert gateway.ask("board:open", {}, replyTo="gateway:g1")["channel"] == "gateway:g1"
    assert gateway.ask("note:create", {}, replyTo="gateway:g1")["channel"] == "gateway:g1"
    assert gateway.ask("note:create", NOTE, replyTo="gateway:g1")["channel"] == "events:broadcast"


def test_rooms_are_apart(gateway: Gateway) -> None:
    note = gateway.create()

    assert gateway.board("garden") == []
    heard = gateway.ask("note:delete", {"id": note["id"]}, roomId="garden")
    assert heard["type"] == "stickyNotes:note:refused"
    assert gateway.board("kitchen") == [note]


def test_of_two_who_move_a_note_the_later_wins(gateway: Gateway) -> None:
    note = gateway.create()

    for x, who in ((1, "ann"), (2, "bob"), (3, "ann"), (4, "bob")):
        gateway.say("note:move", {"id": note["id"], "x": x, "y": x}, userId=f"user_{who}")

    assert [gateway.hear()["payload"]["note"]["x"] for _ in range(4)] == [1, 2, 3, 4]
    assert gateway.board() == [note | {"x": 4, "y": 4, "by": "user_bob"}]


@pytest.mark.parametrize(
    ("name", "payload", "says"),
    [
        ("note:create", None, "Expected `object`, got `null`"),
        ("note:create", [], "Expected `object`, got `array`"),
        ("note:create", "a note", "Expected `object`, got `str`"),
        ("note:create", {}, "missing required field `x`"),
        ("note:create", NOTE | {"x": "1"}, "`$.x`"),
        ("note:create", NOTE | {"x": True}, "`$.x`"),
        ("note:create", NOTE | {"x": -1}, "Expected `float` >= 0.0 - at `$.x`"),
        ("note:create", NOTE | {"x": 1600.5}, "Expected `float` <= 1600.0 - at `$.x`"),
        ("note:create", NOTE | {"x": 10**400}, "`$.x`"),
        ("note:create", NOTE | {"y": 801}, "`$.y`"),
        ("note:create", NOTE | {"text": None}, "`$.text`"),
        ("note:create", NOTE | {"text": ["a"]}, "`$.text`"),
        ("note:create", NOTE | {"text": "a" * 501}, "`$.text`"),
        ("note:create", NOTE | {"colour": "beige"}, "`$.colour`"),
        ("note:create", NOTE | {"colour": ["pink"]}, "`$.colour`"),
        ("note:move", {"x": 1, "y": 1}, "`id`"),
        ("note:move", {"id": {"a": 1}, "x": 1, "y": 1}, "`$.id`"),
        ("note:recolour", {"id": 7, "colour": "pink"}, "`$.id`"),
        ("board:open", None, "Expected `object`, got `null`"),
    ],
)
def test_a_mistake_is_told_to_its_sender(gateway: Gateway, name: str, payload: object, says: str) -> None:
    note = gateway.create()

    told = gateway.ask(name, payload)

    assert (told["type"], told["recipients"]) == ("error", ["g1.ann"])
    assert (told["payload"]["code"], told["payload"]["eventType"]) == ("INVALID_PAYLOAD", f"stickyNotes:{name}")
    assert says in told["payload"]["message"]
    assert gateway.board() == [note]


@pytest.mark.parametrize(
    ("name", "parts"),
    [("move", {"x": 1, "y": 1}), ("edit", {"text": "a"}), ("recolour", {"colour": "pink"}), ("delete", {})],
)
def test_what_is_no_note_any_more_is_refused(gateway: Gateway, name: str, parts: Json) -> None:
    told = gateway.ask(f"note:{name}", {"id": "nope", **parts})

    assert (told["type"], told["recipients"]) == ("stickyNotes:note:refused", ["g1.ann"])
    refused = {"eventType": f"stickyNotes:note:{name}", "message": "there is no such note any more"}
    assert told["payload"] == refused


def test_an_unknown_event_is_refused(gateway: Gateway) -> None:
    told = gateway.ask("note:eat", {})

    assert (told["type"], told["payload"]["code"]) == ("error", "NO_HANDLER")


@pytest.mark.parametrize("parts", [{"x": 1}, {"y": 1}, {"x": 1, "y": "2"}, {"text": "a"}])
def test_half_a_move_moves_nothing(gateway: Gateway, parts: Json) -> None:
    note = gateway.create()

    assert gateway.ask("note:move", {"id": note["id"], **parts})["type"] == "error"
    assert gateway.board() == [note]


@pytest.mark.parametrize("name", ["board:open", "note:create"])
def test_who_is_in_no_room_has_no_board(gateway: Gateway, name: str) -> None:
    told = gateway.ask(name, NOTE, roomId=None)

    assert (told["type"], told["recipients"]) == ("error", ["g1.ann"])
    assert told["payload"]["code"] == "NOT_IN_A_ROOM"
    assert gateway.redis.keys() == []


def test_a_board_is_full_at_last(gateway: Gateway) -> None:
    for number in range(notes.NOTES_LIMIT):
        gateway.redis.hset("notes:kitchen", str(number), json.dumps(NOTE | {"id": str(number)}))

    told = gateway.ask("note:create", NOTE)

    assert told["type"] == "stickyNotes:note:refused"
    assert "full" in told["payload"]["message"]
    assert gateway.ask("note:delete", {"id": "7"})["type"] == "stickyNotes:note:deleted"
    gateway.create()
    assert len(gateway.board()) == notes.NOTES_LIMIT


def test_a_room_is_forgotten_in_the_end(gateway: Gateway) -> None:
    gateway.create()

    assert 0 < int(gateway.redis.ttl("notes:kitchen")) <= notes.LIFETIME


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"eventType": "stickyNotes:board:open"}',
        b"[" * 100_000,
        b'{"eventType": "stickyNotes:board:open", "userId": "a", "roomId": "a", "payload": {}, "timestamp": 1}',
        b'{"eventType": "stickyNotes:board:open", "userId": "a", "socketId": "a", "roomId": "\\ud800", "payload": {}}',
    ],
)
def test_what_is_no_event_is_left_out(gateway: Gateway, message: bytes) -> None:
    gateway.redis.publish(CHANNEL, message)

    note = gateway.create()

    assert gateway.board() == [note]


def test_what_is_left_out_is_logged(redis_server: PrivateRedis) -> None:
    with Process(redis_server) as service, Gateway(redis_server) as gateway:
        gateway.wait_service()
        assert [service.log_line() for _ in BEGUN] == BEGUN
        gateway.redis.publish(CHANNEL, b'{"eventType": 7}')
        assert (
            service.log_line() == "Ignored a message that is not an event: Expected `str`, got `int` - at `$.eventType`"
        )
        assert service.end_of_input() == (0, [])


def test_it_serves_again_when_redis_does(redis_server: PrivateRedis) -> None:
    with Process(redis_server) as service:
        with Gateway(redis_server) as gateway:
            gateway.wait_service()
            gateway.create()
        assert [service.log_line() for _ in BEGUN] == BEGUN
        redis_server.kill()
        assert AWAY in service.log_line()
        redis_server.start()

        with Gateway(redis_server) as gateway:
            gateway.wait_service()
            assert gateway.board() == []
            note = gateway.create()
            assert gateway.board() == [note]


def test_it_waits_for_redis(redis_server: PrivateRedis) -> None:
    redis_server.kill()
    with Process(redis_server) as service:
        assert AWAY in service.log_line()
        redis_server.start()

        with Gateway(redis_server) as gateway:
            gateway.wait_service()
            gateway.create()


def test_everything_can_have_a_prefix(redis_server: PrivateRedis) -> None:
    with Process(redis_server, "paper:") as service, Gateway(redis_server) as gateway:
        gateway.wait_service("paper:events:stickyNotes")
        assert "paper:" in [service.log_line() for _ in BEGUN][-1]
        event = {"eventType": "stickyNotes:note:create", "roomId": "kitchen", "payload": NOTE}
        with gateway.redis.pubsub(ignore_subscribe_messages=True) as told:
            told.subscribe("paper:events:broadcast")
            gateway.redis.publish("paper:events:stickyNotes", json.dumps(event))
            assert wait_until(lambda: told.get_message(timeout=1), "a word of the service")
        assert gateway.redis.keys() == ["paper:notes:kitchen"]


def test_it_ends_with_its_input(redis_server: PrivateRedis) -> None:
    with Process(redis_server) as service, Gateway(redis_server) as gateway:
        gateway.wait_service()

        assert service.end_of_input() == (0, BEGUN)


def test_it_ends_with_its_input_while_redis_is_away(redis_server: PrivateRedis) -> None:
    redis_server.kill()
    with Process(redis_server) as service:
        assert AWAY in service.log_line()

        code, _ = service.end_of_input()

        assert code == 0


def test_it_needs_nothing_that_the_gateway_does_not_bring(redis_server: PrivateRedis) -> None:
    without = f"import runpy, sys; sys.modules['redis'] = None; runpy.run_path({str(NOTES)!r}, run_name='__main__')"
    with Process(redis_server, "", "-c", without) as service, Gateway(redis_server) as gateway:
        gateway.wait_service()
        note = gateway.create()
        assert gateway.board() == [note]

        code, lines = service.end_of_input()

        assert code == 0
        assert SERVES in "\n".join(lines)


def test_it_reads_as_an_example() -> None:
    source = Path(NOTES).read_text("utf-8")
    assert len(source.splitlines()) < 152

    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported - sys.stdlib_module_names == {"kraftek", "msgspec"}

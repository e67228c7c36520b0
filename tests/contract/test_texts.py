"""Texts that services tell rooms in pieces, and what is kept of them: the scripts in a real Redis."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from twisted.trial.unittest import SynchronousTestCase

from kraftek.contract.history import APPEND, APPEND_FUNCTION, LIBRARY, TELL
from kraftek.contract.names import (
    HISTORY_FOLLOWING,
    HISTORY_RULES,
    history_ids_key,
    history_log_key,
    history_position_key,
    history_texts_key,
    room_topic,
    topic_channel,
)
from kraftek.core.history.log import ORDER, PAGE, READ, RECOVER
from tests.support.redis_server import oldest_redis_server, private_redis

TOPIC = room_topic("board-1")
LOG, POSITION, TEXTS = history_log_key(TOPIC), history_position_key(TOPIC), history_texts_key(TOPIC)
LOST = "too_many"


class TextsTest(SynchronousTestCase):
    binary: str | None = None

    def setUp(self) -> None:
        self.redis = private_redis(self, self.binary)
        self.client: Any = self.redis.client(decode_responses=True)
        self.addCleanup(self.client.close)
        self.keep(100, 100_000)
        self.client.zadd("gateways", {"gw": 2**40})
        self.client.zadd(HISTORY_FOLLOWING, {"gw": 2**40})
        self.heard = self.client.pubsub()
        self.addCleanup(self.heard.close)
        self.heard.subscribe(topic_channel(TOPIC), "events:broadcast")
        for _ in range(2):
            self.heard.get_message(timeout=5)

    def keep(self, count: int, most: int, *patterns: list[str]) -> None:
        rules = [["room:board-", "", count, 60_000, most, *([list(patterns)] if patterns else [])]]
        self.client.hset(HISTORY_RULES, mapping={"rules": json.dumps(rules), "generation": f"g{count}"})

    def tell(self, text: str, room: str = "board-1", id: str = "") -> Any:
        body = json.dumps({"type": "x:y:z", "payload": text})
        return self.client.eval(TELL.source, 0, room, body, id, "", "events:broadcast")

    def append(self, key: str, text: str, flags: str = "", *, room: str = "board-1", id: str = "") -> Any:
        """The receivers, the offset, and the epoch; or what was expected."""
        return self.client.eval(APPEND.source, 0, room, "x:y:t", key, text, flags, id, "", "events:broadcast")

    def read(self, since: int, epoch: str = "", most: int = 100_000) -> Any:
        """Why not, or what was told after that, by offset."""
        epoch = epoch or self.client.hget(POSITION, "epoch") or ""
        _, _, reason, *found = self.client.eval(READ.source, 2, HISTORY_RULES, POSITION, epoch, since, most)
        return reason or {int(offset): json.loads(body) for offset, body in zip(found[::2], found[1::2], strict=True)}

    def page(self, before: int = 0, limit: int = 50, most: int = 100_000) -> Any:
        """The first offset, whether there is more, and the offsets of the messages."""
        epoch = self.client.hget(POSITION, "epoch") if before else ""
        answer = self.client.eval(PAGE.source, 2, HISTORY_RULES, POSITION, epoch, before, limit, most)
        _, first, more, *found = answer
        return first, more, [int(offset) for offset in found[::2]]

    def recover(self, number: int, entered: int = 0) -> Any:
        """Why not, or the offsets and texts of what was told later in the order."""
        epoch = self.client.eval(ORDER.source, 1, HISTORY_RULES).partition(".")[0]
        its = self.client.hget(POSITION, "epoch")
        answer = self.client.eval(RECOVER.source, 2, HISTORY_RULES, POSITION, epoch, number, 100_000, its, entered)
        if answer[1] is not None:
            return answer[1]
        return {offset: json.loads(body)["payload"] for _, offset, _, body in reversed(answer[-1])}

    def told(self) -> dict[str, Any]:
        """The last message that gateways got."""
        last = None
        self.client.publish("events:broadcast", "the end")
        while (message := self.heard.get_message(timeout=5))["data"] != "the end":
            last = message["data"]
        assert last is not None
        found: dict[str, Any] = json.loads(last[last.index("{") :])
        return found

    def test_members_hear_pieces_and_the_log_has_one_entry(self) -> None:
        assert self.append("a", "He")[:2] == [1, 1]
        assert self.told() == {"type": "x:y:t", "append": {"key": "a", "from": 1}, "payload": "He"}
        self.tell("between")
        assert self.append("a", 'll"ö/\n')[:2] == [1, 3]
        assert self.told() == {"type": "x:y:t", "append": {"key": "a"}, "payload": 'll"ö/\n'}
        assert self.append("a", "!", "last")[:2] == [1, 4]
        assert self.told() == {"type": "x:y:t", "append": {"key": "a", "last": True}, "payload": "!"}
        whole = {"type": "x:y:t", "append": {"key": "a", "from": 1, "last": True}, "payload": 'Hell"ö/\n!'}
        assert self.client.xlen(LOG) == 2
        assert self.read(0) == {2: {"type": "x:y:z", "payload": "between"}, 4: whole}
        # Who has seen half of it gets a replacement.
        assert self.read(2) == self.read(3) == {4: whole}
        assert self.read(4) == {}
        assert self.page() == (2, 0, [2, 4])
        assert self.page(4) == (2, 0, [2])
        assert self.page(limit=1) == (4, 1, [4])
        assert self.recover(0) == {2: "between", 4: 'Hell"ö/\n!'}
        assert self.recover(1) == {2: "between", 4: 'Hell"ö/\n!'}
        assert self.recover(3) == self.recover(2, entered=2) == {4: 'Hell"ö/\n!'}
        assert self.recover(4) == {}

    def test_a_key_is_free_when_its_text_has_ended(self) -> None:
        self.append("a", "one", "last")
        self.append("a", "two")
        assert self.told()["append"] == {"key": "a", "from": 2}
        assert [message["payload"] for message in self.read(0).values()] == ["one", "two"]
        assert self.client.hkeys(TEXTS) == ["c1.1", "c2.1", "ka"]

    def test_a_text_can_begin_anew(self) -> None:
        self.append("a", "an attempt", "first")
        self.append("a", " that fails")
        self.append("a", "again", "first")
        assert self.told()["append"] == {"key": "a", "from": 3}
        self.append("a", " and whole", "last")
        assert [message["payload"] for message in self.read(0).values()] == ["again and whole"]
        assert self.read(1) == self.read(0)
        assert self.client.hkeys(TEXTS) == ["c3.1"]
        self.append("b", "at once", "first last")
        assert self.told()["append"] == {"key": "b", "from": 5, "last": True}

    def test_an_empty_piece_may_end_it(self) -> None:
        self.append("a", "text")
        self.append("a", "", "last")
        assert self.read(0)[2] == {"type": "x:y:t", "append": {"key": "a", "from": 1, "last": True}, "payload": "text"}
        self.append("a", "")
        self.append("a", "more")
        assert self.told()["append"] == {"key": "a"}
        assert self.read(3)[4]["payload"] == "more"

    def test_long_texts_are_in_chunks(self) -> None:
        pieces = [f"piece {number} " + "x" * (number % 90) for number in range(300)]
        for piece in pieces:
            self.append("a", piece)
        assert self.read(0)[300]["payload"] == "".join(pieces)
        assert self.client.xlen(LOG) == 1
        assert 10 < self.client.hlen(TEXTS) < 25
        for name in self.client.hkeys(TEXTS)[:-2]:
            assert self.client.hstrlen(TEXTS, name) < 1200, name
        self.append("b", "y" * 50_000)
        assert self.read(300)[301]["payload"] == "y" * 50_000

    def test_a_text_is_bounded(self) -> None:
        self.keep(5, 1000)
        self.tell("before")
        self.append("a", "x" * 700)
        before = self.client.xrange(LOG), self.client.hgetall(TEXTS), self.client.hgetall(POSITION)
        head = len('{"type":"x:y:t","append":{"key":"a","from":2},"payload":"')
        expected = f"a text of at most 1000 bytes in all, which is what is kept, not {head + 1100}"
        assert self.append("a", "x" * 400) == expected
        assert (self.client.xrange(LOG), self.client.hgetall(TEXTS), self.client.hgetall(POSITION)) == before
        assert self.append("a", "x" * (1000 - 700 - head - len(',"last":true')), "last")[1] == 3
        self.keep(6, 1_000_000)
        assert self.append("b", "x" * 262_144).startswith("a text of at most 262144 bytes")
        assert self.append("b", "x" * 262_000)[1] == 1

    def test_what_is_no_text_is_refused(self) -> None:
        for room, kind, key in (("", "x", "a"), ("r", "", "a"), ("r", "x", ""), ("r", "x", "a" * 257)):
            assert "a key" in self.client.eval(APPEND.source, 0, room, kind, key, "x", "", "", "", "c"), (
                room,
                kind,
                key,
            )
        for kind in ("disconnect", "gateway:room:put"):
            answer = self.client.eval(APPEND.source, 0, "board-1", kind, "a", "x", "", "", "", "events:broadcast")
            assert answer == "a type that is no command to gateways"
        assert self.client.exists(LOG, TEXTS) == 0

    def test_a_retry_is_told_once(self) -> None:
        told = self.append("a", "one", "first", id="1")
        assert self.append("a", "one", "first", id="1") == [0, *told[1:]]
        self.append("a", " two", id="2")
        assert self.append("a", " two", id="2")[:2] == [0, 2]
        assert self.read(0)[2]["payload"] == "one two"

    def test_ids_are_known_while_pieces_come_that_have_none(self) -> None:
        self.keep(3, 100_000)
        self.tell("m", id="m")
        for number in range(20):
            self.append("a", str(number), id="" if number % 2 else str(number))
        assert self.client.zrange(history_ids_key(TOPIC), 0, -1) == ["14", "16", "18"]
        assert self.append("a", "18", id="18")[0] == 0

    def test_a_room_without_history_hears_pieces(self) -> None:
        assert self.append("a", "He", "first", room="lobby") == [1, 0, ""]
        expected = {"roomId": "lobby", "type": "x:y:t", "append": {"key": "a", "from": 0}, "payload": "He"}
        assert self.told() == expected
        self.append("a", "llo", "last", room="lobby")
        assert self.told()["append"] == {"key": "a", "last": True}
        assert not self.client.keys("*lobby*")
        self.keep(3, 1000, ["x", "y", "other"])
        assert self.append("a", "He")[1] == 0
        self.keep(4, 1000, ["x", "*", "t"])
        assert self.append("a", "He")[1] == 1

    def test_gateways_that_do_not_follow_hear_pieces_with_their_offsets(self) -> None:
        self.client.zadd("gateways", {"old": 2**40})
        self.append("a", "x")
        assert self.told() == {
            "offset": 1,
            "roomId": "board-1",
            "type": "x:y:t",
            "append": {"key": "a", "from": 1},
            "payload": "x",
        }

    def test_what_was_told_before_the_first_text_is_lost_when_it_is_trimmed(self) -> None:
        self.keep(3, 100_000)
        for text in "bcde":
            self.tell(text)
        self.append("a", "x")
        assert self.read(1) == LOST
        assert [*self.read(2)] == [3, 4, 5]
        for _ in range(5):
            self.append("a", "x")
        assert [*self.read(2)] == [3, 4, 10]
        assert self.recover(1, entered=1) == LOST
        assert self.recover(2) == self.recover(1, entered=2) == {3: "d", 4: "e", 10: "x" * 6}
        assert self.client.hget(POSITION, "lost") == "2 2"

    def test_a_text_that_was_trimmed_begins_anew(self) -> None:
        self.keep(2, 100_000)
        self.append("a", "old")
        for text in "bc":
            self.tell(text)
        self.append("a", "new")
        assert self.told()["append"] == {"key": "a", "from": 4}
        assert [*self.read(2)] == [3, 4]
        assert self.read(1) == LOST
        assert self.client.hkeys(TEXTS) == ["c4.1", "ka"]

    def test_what_has_expired_is_lost_and_comes_back_nowhere(self) -> None:
        self.append("a", "x")
        self.client.delete(LOG)
        assert self.read(0) == "expired"
        self.append("a", "y")
        assert self.told()["append"] == {"key": "a", "from": 2}
        assert self.read(0) == LOST
        assert self.read(1)[2]["payload"] == "y"
        self.client.delete(LOG)
        self.tell("m")
        assert (self.read(1), [*self.read(2)]) == (LOST, [3])
        assert self.client.exists(TEXTS) == 0
        self.append("a", "z")
        for key in (LOG, TEXTS):
            assert 59_000 < self.client.pttl(key) <= 60_000
            self.client.pexpire(key, 1000)
        self.tell("m")
        for key in (LOG, TEXTS):
            assert 59_000 < self.client.pttl(key) <= 60_000
        self.client.delete(POSITION)
        self.append("a", "x")
        assert (self.client.xlen(LOG), self.client.hkeys(TEXTS)) == (1, ["c1.1", "ka"])

    def test_keys_of_another_type_count_as_absent(self) -> None:
        self.append("a", "x")
        self.client.delete(TEXTS)
        self.client.set(TEXTS, "x")
        assert self.append("a", "y")[1] == 2
        self.client.delete(LOG)
        self.client.set(LOG, "x")
        assert self.append("a", "z")[1] == 3
        self.client.delete(LOG)
        self.client.set(LOG, "x")
        self.client.hdel(POSITION, "lost")
        assert self.append("a", "z")[1] == 4
        assert [*self.read(3)] == [4]

    def test_any_program_of_texts_and_messages(self) -> None:
        for seed in range(8):
            self.client.flushdb()
            self.client.zadd("gateways", {"gw": 2**40})
            self.client.zadd(HISTORY_FOLLOWING, {"gw": 2**40})
            self._play(Random(seed))

    def _play(self, random: Random) -> None:
        """Whoever heard all, and whoever comes back from wherever, has the same; and so much is kept."""
        count, most = random.choice([(3, 10_000), (5, 700), (100, 100_000), (2, 300)])
        self.keep(count, most)
        states: list[tuple[list[str], dict[str, str]]] = [([], {})]
        for step in range(40):
            plain, texts = states[-1][0].copy(), states[-1][1].copy()
            if random.random() < 0.4:
                assert self.tell(f"m{step}")[1] == len(states)
                plain.append(f"m{step}")
            else:
                key, piece = random.choice("abc"), random.choice(["x", "é\n/", '"q\\', "y" * random.randint(0, 60)])
                flags = random.choice(["", "", "", "", "first", "last", "first last"])
                told = self.append(key, piece, flags)
                if isinstance(told, str):
                    continue
                message = self.told()
                assert (told[1], message["payload"]) == (len(states), piece)
                assert "from" in message["append"] or (key in texts and "first" not in flags)
                texts[key] = piece if "from" in message["append"] else texts[key] + piece
            states.append((plain, texts))
            self._check_bounds(count, most)
        for since in range(len(states)):
            found = self.read(since)
            if found == LOST:
                continue
            plain, texts = states[since][0].copy(), states[since][1].copy()
            for message in found.values():
                if "append" in message:
                    texts[message["append"]["key"]] = message["payload"]
                else:
                    plain.append(message["payload"])
            assert (plain, texts) == states[-1], since
        assert len(self.page()[2]) == self.client.xlen(LOG)

    def _check_bounds(self, count: int, most: int) -> None:
        entries = [fields for _, fields in self.client.xrange(LOG)]
        size = sum(len(fields["m"]) + int(fields.get("s", 0)) for fields in entries)
        assert len(entries) <= count
        assert size <= most or len(entries) == 1
        total, floor, lost = self.client.hmget(POSITION, "bytes", "floor", "lost")
        assert lost is None or int(total) - int(floor) == size
        chunks = {name[1:].partition(".")[0] for name in self.client.hkeys(TEXTS) if name.startswith("c")}
        assert chunks <= {fields.get("t") for fields in entries}


class TextsInTheOldestRedisTest(TextsTest):
    def setUp(self) -> None:
        self.binary = oldest_redis_server()
        super().setUp()


class FunctionTest(TextsTest):
    """As services in any language call it."""

    def setUp(self) -> None:
        super().setUp()
        self.client.execute_command("FUNCTION", "LOAD", LIBRARY)

    def append(self, key: str, text: str, flags: str = "", *, room: str = "board-1", id: str = "") -> Any:
        return self.client.execute_command("FCALL", APPEND_FUNCTION, 0, room, "x:y:t", key, text, flags, id)

    def test_a_text_is_bounded(self) -> None:
        self.keep(5, 1000)
        with pytest.raises(Exception, match="kraftek_append_v1: expected a text of at most 1000 bytes"):
            self.append("a", "x" * 1000)
        with pytest.raises(Exception, match="kraftek_append_v1: expected a room, a type, a key and a text"):
            self.client.execute_command("FCALL", APPEND_FUNCTION, 0, "board-1", "x:y:t", "a")
        with pytest.raises(Exception, match="expected a key of at most 256 bytes"):
            self.append("a" * 257, "x")
        assert self.client.execute_command("FCALL", APPEND_FUNCTION, 0, "board-1", "x:y:t", "a", "x")[1] == 1

    def test_any_program_of_texts_and_messages(self) -> None:
        """The same script."""

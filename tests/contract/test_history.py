"""What services tell rooms, and what of it is kept: the script in a real Redis, sent and as a Function."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import redis
from twisted.trial.unittest import SynchronousTestCase

from kraftek.contract.history import FUNCTION, LIBRARY, TELL, TELL_USERS, USERS_FUNCTION
from kraftek.contract.names import (
    HISTORY_FOLLOWING,
    HISTORY_RULES,
    history_ids_key,
    history_log_key,
    history_position_key,
    room_topic,
    topic_channel,
    user_topic,
)
from tests.support.redis_server import oldest_redis_server, private_redis


def message(text: str) -> str:
    return json.dumps({"type": "board:note:added", "payload": text})


class TellTest(SynchronousTestCase):
    """Sent with EVAL, as the SDK sends it; under Redis 7 or newer."""

    binary: str | None = None
    prefix = ""

    def setUp(self) -> None:
        self.redis = private_redis(self, self.binary)
        self.client: Any = self.redis.client(decode_responses=True)
        self.addCleanup(self.client.close)
        self.keep(["room:board-", "", 3, 60_000, 1000])

    def key(self, name: str) -> str:
        return self.prefix + name

    def keep(self, *rules: list[Any], generation: str = "g1") -> None:
        """These are the rules."""
        self.client.hset(self.key(HISTORY_RULES), mapping={"rules": json.dumps(rules), "generation": generation})

    def tell(self, room: str, text: str, id: str = "") -> list[Any]:
        """The receivers, the offset, and the epoch."""
        return self.tell_text(room, message(text), id)

    def tell_text(self, room: str, text: str, id: str = "") -> list[Any]:
        return list(self.client.eval(TELL.source, 0, room, text, id, self.prefix, "events:broadcast"))

    def tell_users(self, users: Any, text: str, id: str = "") -> list[Any]:
        """The receivers, and of each user the offset and the epoch."""
        sent = self.prefix, "events:broadcast"
        return list(self.client.eval(TELL_USERS.source, 0, json.dumps(users), message(text), id, *sent))

    def listen(self, *channels: str) -> redis.client.PubSub:
        subscriber: redis.client.PubSub = self.client.pubsub(ignore_subscribe_messages=True)
        self.addCleanup(subscriber.close)
        subscriber.subscribe(*(self.key(channel) for channel in channels))
        for _ in channels:
            subscriber.get_message(timeout=5)
        return subscriber

    def heard(self, subscriber: redis.client.PubSub) -> list[tuple[str, str]]:
        """All that was published until now: Redis may answer who publishes before it writes to who listens."""
        (channel, *_) = subscriber.channels
        self.client.publish(channel, "the end")
        found: list[tuple[str, str]] = []
        while True:
            told = subscriber.get_message(timeout=10)
            assert told is not None, f"nothing more after {found}"
            if told["data"] == "the end":
                return found
            found.append((told["channel"].removeprefix(self.prefix), told["data"]))

    def order(self) -> str:
        """The epoch of the order."""
        return str(self.client.hget(self.key(HISTORY_RULES), "epoch"))

    def kept(self, room: str) -> list[tuple[str, str]]:
        entries: Sequence[Any] = self.client.xrange(self.key(history_log_key(room_topic(room))))
        return [(entry_id, json.loads(entry["m"])["payload"]) for entry_id, entry in entries]

    def everybody_follows(self) -> None:
        self.client.zadd(self.key("gateways"), {"gw": 2**40})
        self.client.zadd(self.key(HISTORY_FOLLOWING), {"gw": 2**40})

    def test_offsets_count_up_by_one_and_only_the_last_are_kept(self) -> None:
        told = [self.tell("board-1", text) for text in "abcd"]
        assert [offset for _, offset, _ in told] == [1, 2, 3, 4]
        assert len({epoch for _, _, epoch in told}) == 1
        size = len(message("a"))
        assert self.kept("board-1") == [(f"{i + 1}-{i * size}", "abcd"[i]) for i in (1, 2, 3)]
        assert self.tell("board-2", "a")[1] == 1

    def test_members_hear_it_and_nobody_else(self) -> None:
        self.everybody_follows()
        subscriber = self.listen(
            topic_channel(room_topic("board-1")), topic_channel(room_topic("board-2")), "events:broadcast"
        )
        receivers, offset, epoch = self.tell("board-1", "a")
        assert (receivers, offset) == (1, 1)
        assert self.heard(subscriber) == [
            (topic_channel(room_topic("board-1")), f"{epoch} 1 {self.order()}.1 {message('a')}")
        ]

    def test_gateways_that_do_not_follow_hear_it_as_ever(self) -> None:
        self.client.zadd(self.key("gateways"), {"gw": 2**40, "old": 2**40})
        self.client.zadd(self.key(HISTORY_FOLLOWING), {"gw": 2**40})
        subscriber = self.listen("events:broadcast")
        assert self.tell('board-"é', "a")[1] == 1
        ((_, body),) = self.heard(subscriber)
        assert json.loads(body) == {"roomId": 'board-"é', "offset": 1, "type": "board:note:added", "payload": "a"}

    def test_a_room_without_history_is_told_as_ever_and_leaves_nothing(self) -> None:
        self.everybody_follows()
        subscriber = self.listen("events:broadcast", topic_channel(room_topic("lobby")))
        before = set(self.client.keys())
        assert self.tell("lobby", "a") == [1, 0, ""]
        ((channel, body),) = self.heard(subscriber)
        assert (channel, json.loads(body)["roomId"], json.loads(body)["payload"]) == ("events:broadcast", "lobby", "a")
        assert "offset" not in json.loads(body)
        self.client.delete(self.key(HISTORY_RULES))
        assert self.tell("board-1", "a")[1] == 0
        assert set(self.client.keys()) == before - {self.key(HISTORY_RULES)}

    def test_the_first_rule_that_covers_a_room_counts(self) -> None:
        rules = (["room:a", False], ["room:a-", ""], ["room:b-", "-z"], ["room:", "y"])
        self.keep(["room:a-none", False, 0, 1000, 1], *([*rule, 5, 1000, 1] for rule in rules))
        for room, kept in {
            "a": 1, "aa": 0, "a-": 1, "a-x": 1, "a-none": 0, "b-z": 0, "b--z": 1, "b-x-z": 1, "by": 1, "b": 0,
        }.items():  # fmt: skip
            assert self.tell(room, "x")[1] == kept, room

    def test_an_id_is_told_once_as_long_as_its_message_is_kept(self) -> None:
        subscriber = self.listen(topic_channel(room_topic("board-1")))
        _, offset, epoch = self.tell("board-1", "a", "m1")
        self.tell("board-1", "b", "m2")
        assert self.tell("board-1", "a", "m1") == [0, offset, epoch]
        assert len(self.heard(subscriber)) == 2
        for text in "cd":
            self.tell("board-1", text)
        self.tell("board-1", "e", "m5")
        assert self.client.zrange(self.key(history_ids_key(room_topic("board-1"))), 0, -1) == ["m5"]
        assert self.tell("board-1", "a", "m1")[1] == 6

    def test_bytes_are_bounded_and_one_larger_message_is_kept(self) -> None:
        size = len(message("aa"))
        self.keep(["room:board-", "", 100, 60_000, 3 * size])
        for text in ("aa", "bb", "cc", "dd"):
            self.tell("board-1", text)
        assert [text for _, text in self.kept("board-1")] == ["bb", "cc", "dd"]
        self.tell("board-1", "x" * size)
        assert [text for _, text in self.kept("board-1")] == ["dd", "x" * size]
        self.tell("board-1", "y" * 1000)
        assert [text for _, text in self.kept("board-1")] == ["y" * 1000]
        assert self.tell("board-1", "z")[1] == 7

    def test_the_position_outlives_what_is_kept(self) -> None:
        self.tell("board-1", "a", "m1")
        assert 0 < self.client.pttl(self.key(history_log_key(room_topic("board-1")))) <= 60_000
        assert 0 < self.client.pttl(self.key(history_ids_key(room_topic("board-1")))) <= 60_000
        assert 60_000 < self.client.pttl(self.key(history_position_key(room_topic("board-1")))) <= 180_000
        self.client.delete(self.key(history_log_key(room_topic("board-1"))))
        assert self.tell("board-1", "b")[1] == 2

    def test_a_loss_of_the_position_begins_an_epoch_of_its_own(self) -> None:
        _, _, before = self.tell("board-1", "a", "m1")
        self.client.delete(self.key(history_position_key(room_topic("board-1"))))
        _, offset, epoch = self.tell("board-1", "a", "m1")
        assert offset == 1
        assert epoch != before
        assert len(self.kept("board-1")) == 1

    def test_another_servers_process_begins_an_epoch_and_goes_on_counting(self) -> None:
        _, _, before = self.tell("board-1", "a")
        self.client.hset(self.key(history_position_key(room_topic("board-1"))), "life", "g1:another")
        _, offset, epoch = self.tell("board-1", "b")
        assert offset == 2
        assert epoch != before
        assert self.client.hget(self.key(history_position_key(room_topic("board-1"))), "ancestors") == f"{before} 1"
        assert [text for _, text in self.kept("board-1")] == ["a", "b"]
        for _ in range(9):
            self.client.hset(self.key(history_position_key(room_topic("board-1"))), "life", "g1:another")
            self.tell("board-1", "c")
        assert self.client.hget(self.key(history_position_key(room_topic("board-1"))), "ancestors").count(" ") == 15

    def test_other_rules_begin_an_epoch_without_the_one_before(self) -> None:
        _, _, before = self.tell("board-1", "a")
        self.keep(["room:board-", "", 4, 60_000, 1000], generation="g2")
        _, offset, epoch = self.tell("board-1", "b")
        assert (offset, epoch == before) == (1, False)
        assert self.client.hget(self.key(history_position_key(room_topic("board-1"))), "ancestors") is None

    def test_keys_of_another_type_do_not_stand_in_the_way(self) -> None:
        for name in (
            history_position_key(room_topic("board-1")),
            history_log_key(room_topic("board-1")),
            history_ids_key(room_topic("board-1")),
        ):
            self.client.delete(self.key(name))
            self.client.lpush(self.key(name), "x")
            assert self.tell("board-1", "a", "m1")[1] > 0
        assert [text for _, text in self.kept("board-1")][-1] == "a"

    def test_what_is_no_message_is_refused_and_nothing_is_written(self) -> None:
        before = set(self.client.keys())
        for text in ("", "x", "[]", "{}", " {} ", "{1: 2}", "null"):
            with pytest.raises(redis.ResponseError, match="expected a JSON object"):
                self.client.eval(TELL.source, 0, "board-1", text, "", self.prefix, "events:broadcast")
        assert set(self.client.keys()) == before

    def test_only_messages_of_its_patterns_are_kept(self) -> None:
        self.everybody_follows()
        self.keep(["room:board-", "", 3, 60_000, 1000, [["board", "note", "*"], ["news"], ['a"b']]])
        subscriber = self.listen(topic_channel(room_topic("board-1")), "events:broadcast")
        offsets = [
            self.tell_text("board-1", json.dumps({"type": name, "payload": name}))[1]
            for name in ("board:note:added", "board:cursor:moved", "news", "news:1", "board:note", "board:note:a:b")
        ]
        assert offsets == [1, 0, 2, 0, 0, 0]
        channels = [channel.partition(":room:")[0] for channel, _ in self.heard(subscriber)]
        assert channels == ["gateways:history" if offset else "events:broadcast" for offset in offsets]
        assert [text for _, text in self.kept("board-1")] == ["board:note:added", "news"]

    def test_the_type_may_stand_anywhere_in_a_message(self) -> None:
        self.keep(["room:board-", "", 9, 60_000, 10_000_000, [["a", "b", "c"]]])
        for text in (
            ' { "type" : "a:b:c"}',
            '{"payload": {"type": "x"}, "type": "a:b:c"}',
            '{"type": "\\u0061:b:c"}',
            '{"payload": "' + "x" * 262_000 + '", "type": "a:b:c"}',
            '{"type": "a:b:c", "payload": "' + "x" * 300_000 + '"}',
        ):
            assert self.tell_text("board-1", text)[1] > 0, text[:60]
        assert self.tell_text("board-1", '{"payload": {"type": "a:b:c"}, "type": "x"}')[1] == 0

    def test_what_has_no_type_is_refused_where_that_matters(self) -> None:
        self.keep(["room:board-", "", 3, 60_000, 1000, [["a", "b", "c"]]])
        before = set(self.client.keys())
        nested = "[" * 2000 + "]" * 2000
        deep = f'{{"a": {nested}, "type": "a:b:c"}}'
        for text in ('{"payload": 1}', '{"type": 1}', '{"a": 1, "type": "a:b:c"', deep):
            with pytest.raises(redis.ResponseError, match="expected a JSON object with a type"):
                self.tell_text("board-1", text)
        with pytest.raises(redis.ResponseError, match="expected the type as the first key of a message of more"):
            self.tell_text("board-1", '{"payload": "' + "x" * 262_144 + '", "type": "a:b:c"}')
        assert set(self.client.keys()) == before

    def test_what_redis_refuses_is_told_to_nobody(self) -> None:
        subscriber = self.listen(topic_channel(room_topic("board-1")), "events:broadcast")
        self.tell("board-1", "a")
        self.client.config_set("min-replicas-to-write", 1)
        with pytest.raises(redis.ResponseError, match=r"NOREPLICAS|good replicas"):
            self.tell("board-1", "b")
        self.client.config_set("min-replicas-to-write", 0)
        assert self.tell("board-1", "c")[1] == 2
        told = [body for channel, body in self.heard(subscriber) if channel == topic_channel(room_topic("board-1"))]
        assert [json.loads(body.split(" ", 3)[3])["payload"] for body in told] == ["a", "c"]

    # Users

    def test_each_user_has_a_history_and_all_are_told_in_one(self) -> None:
        self.keep(["user:", "", 3, 60_000, 1000], ["room:", "", 3, 60_000, 1000])
        self.everybody_follows()
        ann, bob = user_topic("ann"), user_topic('bob"é')
        subscriber = self.listen(
            topic_channel(ann), topic_channel(bob), topic_channel(room_topic("ann")), "events:broadcast"
        )
        self.tell_users(["ann"], "a")
        receivers, *found = self.tell_users(["ann", 'bob"é', "ann", "eve"], "b")
        assert (receivers, [offset for offset, _ in found]) == (2, [2, 1, 2, 1])
        (_, at_ann), (_, at_bob), *_ = found
        heard = [(channel, *body.split(" ", 3)) for channel, body in self.heard(subscriber)]
        assert [(channel, epoch, offset, body) for channel, epoch, offset, _, body in heard] == [
            (topic_channel(ann), at_ann, "1", message("a")),
            (topic_channel(ann), at_ann, "2", message("b")),
            (topic_channel(bob), at_bob, "1", message("b")),
        ]
        assert [order.partition(".")[2] for _, _, _, order, _ in heard] == ["1", "2", "3"]
        assert self.client.xlen(self.key(history_log_key(ann))) == 2
        assert self.client.xlen(self.key(history_log_key(user_topic("eve")))) == 1
        assert not self.client.exists(self.key(history_log_key(room_topic("ann"))))
        assert self.tell("ann", "c")[1] == 1

    def test_a_rule_for_rooms_is_none_for_users(self) -> None:
        self.keep(["room:", "", 3, 60_000, 1000])
        subscriber = self.listen("events:broadcast")
        assert self.tell_users(["ann", "bob"], "a") == [1, [0, ""], [0, ""]]
        ((_, body),) = self.heard(subscriber)
        assert json.loads(body) == {"userIds": ["ann", "bob"], "type": "board:note:added", "payload": "a"}

    def test_an_id_is_told_to_each_user_once(self) -> None:
        self.keep(["user:", "", 3, 60_000, 1000])
        subscriber = self.listen("events:broadcast", *(topic_channel(user_topic(user)) for user in ("ann", "bob")))
        self.client.zadd(self.key("gateways"), {"old": 2**40})
        _, first = self.tell_users(["ann"], "a", "m1")
        self.heard(subscriber)
        receivers, again, other = self.tell_users(["ann", "bob"], "a", "m1")
        assert (receivers, again, other[0]) == (2, first, 1)
        (channel, _), (_, body) = self.heard(subscriber)
        assert channel == topic_channel(user_topic("bob"))
        assert json.loads(body) == {"userIds": ["bob"], "offset": 1, "type": "board:note:added", "payload": "a"}
        assert self.tell_users(["ann", "bob"], "a", "m1")[0] == 0
        assert self.heard(subscriber) == []

    def test_of_users_only_some_messages_are_kept_too(self) -> None:
        self.keep(["user:", "", 3, 60_000, 1000, [["news"]]])
        assert self.tell_users(["ann"], "a") == [0, [0, ""]]
        assert not self.client.exists(self.key(history_position_key(user_topic("ann"))))

    def test_what_is_no_list_of_users_is_refused_and_nothing_is_written(self) -> None:
        self.keep(["user:", "", 3, 60_000, 1000])
        before = set(self.client.keys())
        for users in ([], {}, {"a": 1}, "ann", None, [1], ["ann", ""], ["ann", ["bob"]], [None], ["u"] * 1001):
            with pytest.raises(redis.ResponseError, match="expected a JSON list of 1 to 1000 user ids"):
                self.tell_users(users, "a")
        with pytest.raises(redis.ResponseError, match="expected a JSON object"):
            self.client.eval(TELL_USERS.source, 0, '["ann"]', "[]", "", self.prefix, "events:broadcast")
        assert set(self.client.keys()) == before
        many = [f"u{number}" for number in range(1000)]
        assert self.tell_users(many, "a")[1000][0] == 1

    def test_what_redis_refuses_is_told_to_no_user(self) -> None:
        self.keep(["user:", "", 3, 60_000, 1000])
        subscriber = self.listen(topic_channel(user_topic("ann")), "events:broadcast")
        self.client.config_set("min-replicas-to-write", 1)
        with pytest.raises(redis.ResponseError, match=r"NOREPLICAS|good replicas"):
            self.tell_users(["ann", "bob"], "b")
        self.client.config_set("min-replicas-to-write", 0)
        assert self.heard(subscriber) == []
        assert self.tell_users(["ann"], "c")[1][0] == 1


class PrefixedTellTest(TellTest):
    """With a prefix before all keys and channels."""

    prefix = "k:"


class FunctionTest(PrefixedTellTest):
    """As a Function."""

    def setUp(self) -> None:
        super().setUp()
        self.client.execute_command("FUNCTION", "LOAD", LIBRARY)

    def tell_text(self, room: str, text: str, id: str = "") -> list[Any]:
        return list(self.client.execute_command("FCALL", FUNCTION, 0, room, text, id, self.prefix))

    def tell_users(self, users: Any, text: str, id: str = "") -> list[Any]:
        words = json.dumps(users), message(text), id, self.prefix
        return list(self.client.execute_command("FCALL", USERS_FUNCTION, 0, *words))

    def test_without_a_message_it_says_what_it_expects(self) -> None:
        with pytest.raises(redis.ResponseError, match="expected a room and a message"):
            self.client.execute_command("FCALL", FUNCTION, 0, "board-1")
        with pytest.raises(redis.ResponseError, match="expected users and a message"):
            self.client.execute_command("FCALL", USERS_FUNCTION, 0, '["ann"]')

    def test_the_rest_has_defaults(self) -> None:
        self.client.execute_command("FCALL", FUNCTION, 0, "board-1", message("a"))
        assert not self.client.exists(history_position_key(room_topic("board-1")))


if oldest := oldest_redis_server():

    class OldestTellTest(TellTest):
        """Under Redis 6.2."""

        binary = oldest

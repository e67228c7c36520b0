"""The links against a wire that the test holds in its hands: what is written when, and what becomes of replies.

``>`` is what the gateway writes, ``<`` what Redis answers.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import hiredis
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from txredisapi import ResponseError

from kraftek.bus.connections import CommandConnection, RedisConnection
from kraftek.bus.resp import command
from kraftek.bus.server import Server
from kraftek.bus.subscriber import SubscriberConnection, SubscriberState
from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import Undelivered
from kraftek.contract.iteration import Iteration
from kraftek.contract.lua import ForEach, Script
from kraftek.contract.redis_url import redis_address
from kraftek.contract.settings import Redis
from tests.support.iterations import Iterations
from tests.support.redis_server import info_reply

PASSWORD = "correct horse"
ADDRESS = redis_address("redis://ann:correct%20horse@redis.example/3")
CONFIG = Redis(ping_interval=2.0, ping_timeout=1.5)
INFO = info_reply().removesuffix(b"\r\n")


class Wire(StringTransport):
    """Remembers each write by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)


class Story:
    """One link on a wire, and what it told its owner."""

    def __init__(self, make: type[RedisConnection], url: str = "redis://redis.example/3") -> None:
        self.clock = Iterations()
        self.wire = Wire()
        self.accounts = Accounts()
        self.told: list[str] = []
        self.heard: list[object] = []
        address = redis_address(url)
        self.link: RedisConnection
        if make is CommandConnection:
            self.link = CommandConnection(self.clock, address, CONFIG, self, Iteration(self.clock), self.accounts)
        else:
            self.iteration = Iteration(self.clock)
            self.link = SubscriberConnection(
                self.clock, address, CONFIG, self, self.iteration, self.accounts, {b"news": [self.heard.append]}
            )
        self.link.makeConnection(self.wire)

    def connection_ready(self, link: RedisConnection) -> None:
        assert link is self.link
        self.told.append("ready")

    def connection_lost(self, link: RedisConnection, reason: str) -> None:
        assert link is self.link
        self.told.append(f"lost: {reason}")

    def written(self) -> list[str]:
        """What was written since the last look, a command a line, in as few writes as it took."""
        self.clock.advance(0)
        lines = []
        for data in self.wire.writes:
            reader = hiredis.Reader(encoding="utf-8", errors="replace")
            reader.feed(data)
            commands = []
            while (command := reader.gets()) is not False:
                commands.append(" ".join(command))
            lines.append(" | ".join(commands))
        self.wire.writes.clear()
        return lines

    def reads(self, *replies: bytes) -> None:
        for reply in replies:
            self.link.dataReceived(reply + b"\r\n")

    def lose(self) -> None:
        self.link.connectionLost(Failure(ConnectionLost()))


def command_story() -> tuple[Story, CommandConnection]:
    """A link for commands that has been greeted."""
    story = Story(CommandConnection)
    assert story.written() == ["INFO | SELECT 3 | PING"]
    story.reads(INFO, b"+OK", b"+PONG")
    assert story.told == ["ready"]
    assert isinstance(story.link, CommandConnection)
    return story, story.link


def subscriber_story() -> tuple[Story, SubscriberConnection]:
    """A link for subscriptions that has been greeted."""
    story = Story(SubscriberConnection)
    assert story.written() == ["INFO", "CLIENT ID", "PING"]
    story.reads(INFO, b":17", b"+PONG")
    assert story.told == ["ready"]
    assert isinstance(story.link, SubscriberConnection)
    return story, story.link


def logged(events: Sequence[dict[str, Any]]) -> str:
    return "\n".join(formatEvent(event) for event in events)


# Greeting


def test_a_password_comes_first() -> None:
    story = Story(CommandConnection, "redis://:correct%20horse@redis.example/3")
    assert story.written() == ["AUTH correct horse | INFO | SELECT 3 | PING"]
    story.reads(b"+OK", INFO, b"+OK")
    assert story.told == []
    story.reads(b"+PONG")
    assert story.told == ["ready"]


def test_a_user_is_named_with_the_password() -> None:
    story = Story(SubscriberConnection, "redis://ann:correct%20horse@redis.example/3")
    assert story.written() == ["AUTH ann correct horse", "INFO", "CLIENT ID", "PING"]


def test_a_subscriber_knows_its_number() -> None:
    _, link = subscriber_story()
    assert link.id == 17


@pytest.mark.parametrize(
    "replies",
    [
        # What Redis 7 says to a wrong password, and what follows from it.
        [b"-WRONGPASS invalid username-password pair or user is disabled.", *[b"-NOAUTH required"] * 3],
        # One whose AUTH was renamed away quotes what it was sent.
        [b"-ERR unknown command 'AUTH', with args beginning with: 'correct horse' ", INFO, b"+OK", b"+PONG"],
    ],
)  # fmt: skip
def test_a_refused_password_closes_and_is_told_to_nobody(replies: list[bytes]) -> None:
    story = Story(CommandConnection, "redis://:correct%20horse@redis.example/3")
    story.written()
    story.reads(*replies)
    assert story.wire.disconnected
    assert story.link.refused
    assert story.told == []
    story.lose()
    (lost,) = story.told
    assert replies[0][1:10].decode() in lost
    assert PASSWORD not in lost


def test_redis_that_loads_its_data_is_not_ready() -> None:
    story = Story(CommandConnection)
    story.reads(INFO, b"+OK", b"-LOADING Redis is loading the dataset in memory")
    assert story.wire.disconnected
    assert story.told == []


def test_what_does_not_speak_resp_is_left() -> None:
    story = Story(CommandConnection)
    story.link.dataReceived(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert story.wire.disconnected
    story.lose()
    assert story.told == ['lost: it does not speak Redis\'s protocol: Protocol error, got "H" as reply type byte']


# Replies


@pytest.mark.parametrize(
    "replies",
    [
        b"+OK\r\n:1\r\n",
        b"+OK\r\n-ERR nobody asked\r\n",
        b"+OK\r\n*0\r\n",
        b"+OK\r\n*1\r\n$7\r\nmessage\r\n",
        b"+OK\r\n*3\r\n$7\r\nmessage\r\n*0\r\n$2\r\nhi\r\n",
    ],
)
def test_what_nobody_asked_for_ends_the_connection(replies: bytes) -> None:
    for story, link in (command_story(), subscriber_story()):
        heard: list[Any] = []
        link.ask("PING").addBoth(heard.append)
        story.written()
        link.dataReceived(replies)
        assert heard == [b"OK"]
        assert story.wire.disconnected
        story.lose()
        assert story.told[1].startswith("lost: it does not speak Redis's protocol: ")


def test_a_false_of_another_protocol_is_a_reply() -> None:
    story, link = command_story()
    heard: list[Any] = []
    for _ in range(2):
        link.ask("PING").addBoth(heard.append)
    story.written()
    link.dataReceived(b"#f\r\n:1\r\n")
    assert heard == [False, 1]


def test_what_is_sent_in_one_turn_leaves_in_one_write() -> None:
    story, link = command_story()
    receipts: list[int] = []
    for number in range(100):
        link.send(b"*3\r\n$7\r\nPUBLISH\r\n$1\r\nc\r\n$2\r\n%02d\r\n" % number, receipts.append)
    answer = link.ask("INCR", "n")
    assert story.wire.writes == []
    (line,) = story.written()
    assert line == " | ".join([*(f"PUBLISH c {number:02d}" for number in range(100)), "INCR n"])
    assert story.written() == []

    answers: list[int] = []
    answer.addCallback(answers.append)
    story.reads(*(b":%d" % number for number in range(100)))
    assert receipts == list(range(100))
    assert answers == []
    story.reads(b":7")
    assert answers == [7]


@given(st.lists(st.integers(1, 40), max_size=60))
def test_replies_are_counted_however_they_are_cut(cuts: list[int]) -> None:
    story, link = command_story()
    got: list[object] = []
    link.send(b"", got.append)
    link.ask("HGETALL", "h").addCallback(got.append)
    link.send(b"", got.append)
    link.ask("GET", "nothing").addCallback(got.append)
    link.ask("NOSUCH").addErrback(Failure.getErrorMessage).addCallback(got.append)
    link.send(b"", got.append)
    data = b":3\r\n*3\r\n$2\r\n\r\n\r\n$0\r\n\r\n:-1\r\n:0\r\n$-1\r\n-ERR unknown\r\n:12\r\n"
    for cut in cuts:
        link.dataReceived(data[:cut])
        data = data[cut:]
    link.dataReceived(data)
    assert got == [3, [b"\r\n", b"", -1], 0, None, "ERR unknown", 12]
    assert not link.waiting
    assert not story.wire.disconnected


def slowly_handled(story: Story, link: CommandConnection, count: int, seconds: float) -> list[int]:
    """So many commands are sent, and each of their receipts takes so long. Returns those that were handled so far."""
    got: list[int] = []

    def slow(receipt: int) -> None:
        story.clock.take(seconds)
        got.append(receipt)

    for _ in range(count):
        link.send(command("GET", "x"), slow)
    return got


def test_what_nobody_asked_for_waits_when_the_connection_is_lost() -> None:
    story, link = command_story()
    got = slowly_handled(story, link, 5, 0.0009)
    story.written()
    link.dataReceived(b"".join(b":%d\r\n" % number for number in range(7)))
    assert got == [0, 1, 2]
    story.lose()
    assert got == [*range(5)]
    assert story.told[-1].startswith("lost: it does not speak Redis's protocol: ")


@pytest.mark.parametrize("ending", ["read on", "lost", "odd"])
def test_what_comes_together_is_handed_out_in_time(ending: str) -> None:
    """After a stall of Redis a read had 10,000 receipts, which took 100 ms."""
    story, link = command_story()
    got = slowly_handled(story, link, 11, 0.0009)
    link.ask("GET", "x").addBoth(lambda answer: got.append(12 if answer == b"y" else -1))
    story.written()
    link.dataReceived(b"".join(b":%d\r\n" % number for number in range(5)))
    assert (got, story.wire.producerState) == ([0, 1, 2], "paused")
    link.dataReceived(b"".join(b":%d\r\n" % number for number in range(5, 11)))  # as TLS has it
    assert got == [0, 1, 2]
    if ending == "lost":
        story.lose()
        assert got == [*range(11), -1]
        story.clock.iterate()
        assert got == [*range(11), -1]
        return
    if ending == "odd":
        story.reads(b"$1\r\ny", b":7")
    for number in (6, 9, 11):
        story.clock.iterate()
        assert len(got) == number + (number == 11 and ending == "odd")
    assert story.wire.disconnected is (ending == "odd")
    if ending == "read on":
        assert (got, story.wire.producerState) == ([*range(11)], "producing")
        story.reads(b"$1\r\ny")
        assert link.unanswered == story.accounts.in_flight == 0
    assert got == [*range(11), 12]


def test_a_few_replies_are_handed_out_at_once() -> None:
    story, link = command_story()
    got = slowly_handled(story, link, 4, 1.0)
    link.dataReceived(b":0\r\n:1\r\n:2\r\n:3\r\n")
    assert got == [0, 1, 2, 3]


def test_messages_that_come_together_are_handed_out_in_time_and_an_upgrade_takes_all() -> None:
    story, link = subscriber_story()
    ending: list[bool] = []

    def slow(message: object) -> None:
        story.clock.take(0.001)
        story.heard.append(message)
        ending.append(story.iteration.ending)

    link._listeners = {b"news": [slow]}
    link.dataReceived(b"".join(b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1\r\n%d\r\n" % number for number in range(7)))
    assert story.heard == [b"0", b"1"]
    story.clock.iterate()
    assert story.heard == [b"0", b"1", b"2", b"3"]
    with socket.socket(socket.AF_UNIX) as nothing:
        story.wire.getHandle = lambda: nothing  # type: ignore[attr-defined]
        assert not link.freeze()
    assert story.heard == [b"%d" % number for number in range(7)]
    assert ending == [False] * 6 + [True]
    story.clock.iterate()
    assert story.wire.producerState == "paused"


def test_an_error_reply_fails_a_call() -> None:
    story, link = command_story()
    failures: list[Failure] = []
    link.ask("INCR", "text").addErrback(failures.append)
    story.reads(b"-ERR value is not an integer or out of range")
    assert failures[0].check(ResponseError)


def test_a_refused_publish_was_received_by_nobody_and_is_logged_once() -> None:
    story, link = command_story()
    receipts: list[int] = []
    with capturedLogs() as events:
        for _ in range(3):
            link.send(b"", receipts.append)
            story.reads(b"-NOPERM no permissions to access one of the channels")
    assert receipts == [Undelivered.REFUSED] * 3
    assert len(events) == 1
    assert "NOPERM" in logged(events)


def test_who_fails_on_a_reply_is_logged_and_the_next_is_served() -> None:
    story, link = command_story()
    receipts: list[int] = []

    def fails(_: int) -> None:
        raise ZeroDivisionError

    link.send(b"", fails)
    link.send(b"", receipts.append)
    with capturedLogs() as events:
        story.link.dataReceived(b":1\r\n:2\r\n")
    assert receipts == [2]
    (event,) = events
    assert event["log_failure"].check(ZeroDivisionError)


def test_a_cancelled_call_keeps_its_place() -> None:
    story, link = command_story()
    receipts: list[int] = []
    cancelled = link.ask("GET", "a")
    cancelled.addErrback(lambda _: None)
    link.send(b"", receipts.append)
    cancelled.cancel()
    story.reads(b"$1\r\nx", b":5")
    assert receipts == [5]


# Being lost


def test_who_waits_is_told_when_the_link_is_lost() -> None:
    story, link = command_story()
    order: list[object] = []
    link.send(b"", order.append)
    link.ask("GET", "a").addErrback(lambda failure: order.append(failure.type))
    story.written()
    link.send(b"", order.append)  # not even written yet
    story.lose()
    assert order == [-1, NotPublished, -1]
    assert story.told == ["ready", "lost: Connection to the other side was lost in a non-clean fashion."]
    assert story.written() == []
    assert story.clock.getDelayedCalls() == []


def test_a_lost_link_tells_its_owner_before_those_who_wait() -> None:
    story, link = command_story()
    seen: list[int] = []
    link.send(b"", lambda _: seen.append(len(story.told)))
    story.lose()
    assert seen == [2]


# Watching


def test_a_link_that_is_not_greeted_in_time_is_left() -> None:
    story = Story(CommandConnection)
    story.clock.advance(CONFIG.ping_timeout)
    assert story.wire.disconnected
    story.lose()
    assert story.told == ["lost: no answer for 1.5 s"]
    assert story.clock.getDelayedCalls() == []


def test_a_ping_that_is_not_answered_in_time_closes() -> None:
    story, _ = command_story()
    story.clock.advance(CONFIG.ping_interval)
    assert story.written() == ["INFO replication"]
    story.clock.advance(CONFIG.ping_timeout)
    assert story.wire.disconnected
    assert not story.link.refused
    story.lose()
    assert story.told == ["ready", "lost: no answer for 1.5 s"]
    assert story.clock.getDelayedCalls() == []


def test_a_ping_shows_a_replica() -> None:
    story, link = command_story()
    story.clock.advance(CONFIG.ping_interval)
    story.written()
    story.reads(b"$10\r\nrole:slave")
    assert story.wire.disconnected
    assert link.demoted
    story.lose()
    assert story.told == ["ready", "lost: it is no primary any more"]


@pytest.mark.parametrize("answer", [b"$11\r\nrole:master", b"-BUSY Redis is busy running a script"])
def test_an_answered_ping_is_followed_by_the_next(answer: bytes) -> None:
    story, _ = command_story()
    for _ in range(3):
        story.clock.advance(CONFIG.ping_interval)
        assert story.written() == ["INFO replication"]
        story.clock.advance(CONFIG.ping_timeout * 0.9)
        story.reads(answer)
    assert not story.wire.disconnected
    assert len(story.clock.getDelayedCalls()) == 1


def test_a_subscriber_is_watched_in_its_own_tongue() -> None:
    story, _ = subscriber_story()
    for _ in range(3):
        story.clock.advance(CONFIG.ping_interval)
        assert story.written() == ["PING"]
        story.reads(b"*2\r\n$4\r\npong\r\n$0\r\n")
    assert not story.wire.disconnected


# Bytes


def test_bytes_are_given_back_when_all_that_was_sent_together_is_answered() -> None:
    story, link = command_story()
    assert (link.unanswered, story.accounts.in_flight) == (0, 0)
    got: list[object] = []
    for size in (100, 1000):
        link.send(command("ECHO", "x" * size), got.append)
    assert (link.unanswered > 1100, story.accounts.in_flight) == (True, 0)
    story.written()
    first = link.unanswered
    assert story.accounts.in_flight == first
    story.reads(b":1")
    for _ in range(20):
        link.send(command("ECHO", "x" * 500), got.append)
        story.written()
        assert 500 < link.unanswered == story.accounts.in_flight < first + 2000
        story.reads(b":1")
    assert link.unanswered < 2000
    story.reads(b":1")
    assert (link.unanswered, story.accounts.in_flight) == (0, 0)
    assert got == [1] * 22


def test_bytes_are_given_back_when_the_connection_is_lost() -> None:
    story, link = command_story()
    for _ in range(2):
        link.send(command("ECHO", "x" * 500), lambda _: None)
        story.written()
    link.send(command("ECHO", "never written"), lambda _: None)
    assert story.accounts.in_flight > 1000
    story.lose()
    assert story.accounts.in_flight == 0


def test_a_message_that_has_not_arrived_whole_counts() -> None:
    story, _ = subscriber_story()
    told = b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1000\r\n" + b"x" * 1000
    story.link.dataReceived(told[:500])
    story.link.dataReceived(told[500:900])
    assert (story.heard, story.accounts.arriving) == ([], 900)
    story.link.dataReceived(told[900:] + b"\r\n")
    assert (story.heard, story.accounts.arriving) == ([b"x" * 1000], 0)
    story.link.dataReceived(told[:500])
    story.lose()
    assert story.accounts.arriving == 0


# Scripts


def test_a_script_goes_whole_once() -> None:
    story, link = command_story()
    script = Script("return ARGV[1]")
    for _ in range(2):
        link.run(script, ["k"], ["a", 1])
    other = Script("return 2")
    link.run(other, [], [])
    assert story.written() == [f"EVAL return ARGV[1] 1 k a 1 | EVALSHA {script.digest} 1 k a 1 | EVAL return 2 0"]


def test_a_forgotten_script_goes_whole_again() -> None:
    story, link = command_story()
    script = Script("return ARGV[1]")
    link.run(script, [], ["a"])
    got: list[object] = []
    link.run(script, [], ["b"]).addCallback(got.append)
    story.written()
    story.reads(b"$1\r\na", b"-NOSCRIPT No matching script. Please use EVAL.")
    assert story.written() == ["EVAL return ARGV[1] 0 b"]
    story.reads(b"$1\r\nb")
    assert got == [b"b"]


def test_a_script_that_fails_is_not_sent_again() -> None:
    story, link = command_story()
    script = Script("return redis.call('GET', KEYS[1])")
    link.run(script, ["k"], [])
    got: list[str] = []
    link.run(script, ["k"], []).addErrback(lambda failure: got.append(failure.getErrorMessage()))
    story.written()
    story.reads(b"$-1", b"-WRONGTYPE Operation against a key holding the wrong kind of value")
    assert story.written() == []
    assert got[0].startswith("WRONGTYPE")


# Scripts for many messages


def apart(messages: list[tuple[Any, ...]]) -> tuple[list[list[Any]], list[bytes]]:
    """Of messages the key, the body and the receipt."""
    return [[key for key, _, _ in messages]], [body for _, body, _ in messages]


EACH = ForEach("each message", apart, 1)


def run(link: CommandConnection, script: ForEach, got: list[Any], texts: str) -> None:
    """Messages in a row, one for each letter."""
    link.open_batch(script).messages += [(f"k{text}", text.encode(), got.append) for text in texts]


def batch_story() -> tuple[Story, CommandConnection, list[Any]]:
    """A link on which Redis knows the script, and what the receipts of its messages say."""
    story, link = command_story()
    got: list[Any] = []
    run(link, EACH, got, "a")
    assert scripts(story) == ['EVAL each message [["ka"]] a']
    story.reads(b"*0")
    assert (got, link.batched) == ([], 0)
    return story, link, got


def scripts(story: Story) -> list[str]:
    """The commands written, with what they carry for scripts as text."""
    story.clock.advance(0)
    reader = hiredis.Reader()
    for write in story.wire.writes:
        reader.feed(write)
    story.wire.writes.clear()
    commands = []
    while (command := reader.gets()) is not False:
        name, *rest = command
        if name in (b"EVAL", b"EVALSHA"):
            script, keys, values, *bodies = rest
            assert keys == b"0"
            rest = [script, msgspec.json.encode(msgspec.msgpack.decode(values)), *bodies]
        commands.append(b" ".join([name, *rest]).decode())
    return commands


def test_messages_in_a_row_are_one_command() -> None:
    story, link, got = batch_story()
    run(link, EACH, got, "ab")
    link.send(b"*1\r\n$4\r\nPING\r\n", got.append)
    run(link, EACH, got, "c")
    run(link, ForEach("another", apart, 1), got, "d")
    told = f"EVALSHA {EACH.digest}"
    assert scripts(story) == [
        f'{told} [["ka","kb"]] a b',
        "PING",
        f'{told} [["kc"]] c',
        'EVAL another [["kd"]] d',
    ]
    assert len(link.waiting) + link.batched == 5
    story.reads(b"*4\r\n:0\r\n:1\r\n:1\r\n$3\r\nyes", b":7", b"*2\r\n:0\r\n-ERR no", b"-OOM for all")
    assert got == [1, b"yes", 7, Undelivered.REFUSED, Undelivered.REFUSED]
    assert len(link.waiting) + link.batched == 0


def test_a_batch_has_room_until_it_is_closed() -> None:
    story, link, got = batch_story()
    batch = link.open_batch(EACH)
    assert batch.room == 100
    batch.messages += [("ka", b"a", got.append)] * 3
    link.close_batch()
    assert batch.room == 0
    assert len(link.waiting) + link.batched == 3
    assert link.open_batch(EACH).room == min(100, CONFIG.in_flight - 3)
    story.reads(b"*0")


def test_messages_that_cannot_be_told_to_redis_keep_nothing_from_the_others() -> None:
    def fails(messages: list[Any]) -> Any:
        raise ZeroDivisionError

    story, link, got = batch_story()
    run(link, EACH, got, "a")
    run(link, ForEach("fails", fails, 1), got, "bc")
    with capturedLogs() as events:
        run(link, EACH, got, "d")
        assert got == []
        told = f"EVALSHA {EACH.digest}"
        assert scripts(story) == [f'{told} [["ka"]] a', f'{told} [["kd"]] d']
    assert "Sending a batch of messages to Redis failed" in logged(events)
    assert got == [Undelivered.REFUSED, Undelivered.REFUSED]
    story.reads(b"*2\r\n:0\r\n:1", b"*2\r\n:0\r\n:2")
    assert (got[2:], len(link.waiting) + link.batched) == ([1, 2], 0)


def test_of_a_message_that_came_to_nothing_there_is_no_receipt() -> None:
    story, link, got = batch_story()
    run(link, EACH, got, "abc")
    scripts(story)
    story.reads(b"*2\r\n:1\r\n:0")
    assert got == [0]
    assert len(link.waiting) + link.batched == 0


def test_a_forgotten_script_goes_whole_again_for_all_messages() -> None:
    story, link, got = batch_story()
    batch = link.open_batch(EACH)
    batch.messages += [(f"k{text}", text.encode(), got.append) for text in "ab"]
    scripts(story)
    story.reads(b"-NOSCRIPT No matching script. Please use EVAL.")
    assert scripts(story) == ['EVAL each message [["ka","kb"]] a b']
    assert (got, len(link.waiting) + link.batched) == ([], 2)
    story.reads(b"*4\r\n:0\r\n:1\r\n:1\r\n:2")
    assert (got, len(link.waiting) + link.batched) == ([1, 2], 0)
    assert batch.messages == []


def test_who_waits_for_many_messages_is_told_when_the_link_is_lost() -> None:
    story, link, got = batch_story()
    run(link, EACH, got, "ab")
    story.written()
    run(link, EACH, got, "c")
    story.lose()
    assert (got, len(link.waiting) + link.batched) == ([Undelivered.LOST] * 3, 0)
    story.wire.writes.clear()
    story.clock.advance(1)
    assert story.written() == []


def test_a_receipt_that_fails_keeps_nothing_from_the_others_of_its_command() -> None:
    def fails(_: object) -> None:
        raise ZeroDivisionError

    story, link, got = batch_story()
    link.open_batch(EACH).messages += [("a", b"", fails), ("b", b"", got.append)]
    story.written()
    with capturedLogs() as events:
        story.reads(b"*4\r\n:0\r\n:1\r\n:1\r\n:2")
    assert got == [2]
    assert "Handling a reply of Redis failed: a bug, please report it" in logged(events)
    assert link.batched == 0


# Subscribing


def confirmation(channel: bytes, count: int) -> bytes:
    return b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:%d" % (len(channel), channel, count)


def test_messages_go_to_listeners_and_answers_to_who_asked() -> None:
    story, link = subscriber_story()
    subscribed: Deferred[object] = link.listen([b"news", b"other"])
    settled = link.ask("PING")
    assert story.written() == ["SUBSCRIBE news", "SUBSCRIBE other", "PING"]
    story.reads(confirmation(b"news", 1), b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$3\r\na\r\n")
    assert not subscribed.called
    story.reads(confirmation(b"other", 2))
    assert subscribed.called
    assert not settled.called
    story.reads(b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1\r\nb", b"*2\r\n$4\r\npong\r\n$0\r\n")
    assert settled.called
    assert story.heard == [b"a\r\n", b"b"]


def test_a_refused_subscription_closes() -> None:
    story, link = subscriber_story()
    results: list[object] = []
    link.listen([b"news"]).addBoth(results.append)
    story.reads(b"-NOPERM No permissions to access a channel")
    assert story.wire.disconnected
    assert story.link.refused
    story.lose()
    assert story.told == ["ready", "lost: NOPERM No permissions to access a channel"]
    assert isinstance(results[0], Failure)


def test_with_the_last_message_of_a_read_the_turn_is_ending() -> None:
    iteration = Iteration(Clock())
    heard: list[tuple[bytes, bool]] = []

    def hears(body: bytes) -> None:
        heard.append((body, iteration.ending))
        if body == b"c":
            raise ZeroDivisionError

    link = SubscriberConnection(
        Clock(), ADDRESS, CONFIG, Story(SubscriberConnection), iteration, Accounts(), {b"news": [hears]}
    )
    link.makeConnection(Wire())
    said = [b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1\r\n%b\r\n" % body for body in (b"a", b"b", b"c", b"d")]
    with capturedLogs():
        link.dataReceived(b"".join(said[:3]) + said[3][:9])
        assert not iteration.ending
        link.dataReceived(said[3][9:])
    assert heard == [(b"a", False), (b"b", False), (b"c", True), (b"d", True)]
    assert not iteration.ending


def test_a_listener_that_fails_is_logged_and_the_next_message_is_heard() -> None:
    def fails(_: object) -> None:
        raise ZeroDivisionError

    clock = Clock()
    heard: list[object] = []
    story = Story(SubscriberConnection)
    link = SubscriberConnection(
        clock, ADDRESS, CONFIG, story, Iteration(clock), Accounts(), {b"news": [fails, heard.append]}
    )
    link.makeConnection(Wire())
    with capturedLogs() as events:
        link.dataReceived(b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1\r\na\r\n" * 2)
    assert heard == [b"a", b"a"]
    assert [event["log_failure"].type for event in events] == [ZeroDivisionError] * 2


MESSAGE = b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n"
PONG = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"


@pytest.mark.parametrize("cut", range(len(MESSAGE)))
def test_a_frozen_subscriber_reads_up_to_the_end_of_a_reply(cut: int) -> None:
    """What was read of one before is not lost, and what comes behind it stays in the socket for who reads on."""
    story, link = subscriber_story()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        story.wire.getHandle = lambda: ours  # type: ignore[attr-defined]
        link.dataReceived(MESSAGE + MESSAGE[:cut])
        assert not link.freeze()
        assert story.wire.producerState == "paused"
        assert story.written() == ["PING"]
        theirs.sendall(MESSAGE[cut:] + MESSAGE[:9])
        assert not link.freeze()
        theirs.sendall(MESSAGE[9:] + PONG[:7])
        assert not link.freeze()
        assert story.heard == [b"hello"] * 3
        theirs.sendall(PONG[7:] + MESSAGE)
        assert link.freeze()
        assert story.heard == [b"hello"] * 3
        assert ours.recv(1000) == MESSAGE
        link.ask("PING")
        assert not link.freeze()
        theirs.sendall(PONG)
        assert link.freeze()
        link.thaw()
        assert story.wire.producerState == "producing"
        link.dataReceived(MESSAGE)
        assert story.heard == [b"hello"] * 4


def test_what_another_version_subscribed_is_heard_at_once() -> None:
    clock = Clock()
    heard: list[bytes] = []
    told: list[str] = []

    class Owner:
        def connection_ready(self, connection: RedisConnection) -> None:
            told.append("ready")

        def connection_lost(self, connection: RedisConnection, reason: str) -> None:
            told.append(reason)

    link = SubscriberConnection(
        clock, ADDRESS, CONFIG, Owner(), Iteration(clock), Accounts(), {b"news": [heard.append]}
    )
    link.factory = SimpleNamespace(inherited=SubscriberState(id=17, server=Server(run="abc")))
    wire = Wire()
    link.makeConnection(wire)
    assert wire.writes == []
    assert (told, link.id, link.server.run) == (["ready"], 17, "abc")
    link.dataReceived(MESSAGE)
    assert heard == [b"hello"]
    clock.advance(CONFIG.ping_interval)
    assert len(wire.writes) == 1

"""The simulated Redis and a real one answer alike, as far as the gateway asks."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from random import Random
from typing import Any, Protocol

import hiredis
import pytest

from kraftek.contract.history import FUNCTION, LIBRARY, TELL
from kraftek.contract.names import BROADCAST, history_ids_key, history_log_key, history_position_key, room_topic
from kraftek.core.history.log import COMPARE, FOLLOW, READ
from tests.simulation.keyspace import COMMANDS
from tests.simulation.redis import REFUSALS, Server
from tests.simulation.virtual_time import VirtualTime
from tests.support.redis_server import PrivateRedis, oldest_redis_server
from tests.support.waiting import wait_until

DATA = """
SET s three | GETRANGE s 0 1 | GETRANGE s -2 -1 | GETRANGE s 1 99 | GETRANGE s 3 1 | GETRANGE none 0 1 | DEL s
SET s one | SET s two NX | SET s three XX GET | SET s four NX PX 1000 | GET s | STRLEN s | TYPE s | PTTL s | PTTL none
SET s five XX GET KEEPTTL | SET none x XX | SET none x XX GET | SETNX s six | SETNX new six | EXISTS s new none s
GETDEL new | GETDEL new | MGET s none h | GET none | INCR n | INCRBY n 5 | INCR s | SET s a PXAT 1 | EXISTS s
SET s one | SET s one BOGUS | SET s | PEXPIRE n 100000 | PERSIST n | PERSIST n | EXPIRE n 100 | EXPIRE none 1
PEXPIRE s -1 | EXISTS s | DEL n s none | UNLINK s | HSET h a 1 b 2 | HSET h a 2 c 3 | HGET h a | HGET h z
HGET none a | HMGET h a z b | HLEN h | HEXISTS h a | HEXISTS h z | HSETNX h a 9 | HSETNX h d 4 | HDEL h d z
HDEL none d | HKEYS h | HVALS h | HGETALL h | HGETALL none | TYPE h | GET h | HINCRBY h a 3 | HSET h x
HRANDFIELD none | HRANDFIELD none 3 | HRANDFIELD one 2 WITHVALUES | SADD h x | HDEL h a b c | EXISTS h | MGET h
SADD t a b a | SADD t c | SCARD t | SISMEMBER t a | SISMEMBER t z | SMISMEMBER t a z | SREM t c z | SREM none c
TYPE t | SADD u z | SUNIONSTORE v t u none | SCARD v | SUNIONSTORE v none | EXISTS v | SUNIONSTORE u u t | SCARD u
SRANDMEMBER none | SRANDMEMBER none 2 | SRANDMEMBER one 5 | SPOP none | SPOP none 2 | SADD one x | SRANDMEMBER one 5
SRANDMEMBER one | SPOP one | EXISTS one | SREM t a b | EXISTS t | HGET u a | ZADD z 1 a 2 b 3.5 c | ZADD z 5 a
ZADD z CH 6 a 2 b | ZADD z NX 7 a 8 d | ZADD z XX 9 d 9 e | ZADD z GT 1 d | ZADD z GT 11 d | ZADD z x a
ZADD none XX 1 a | EXISTS none | ZSCORE z c | ZSCORE z none | ZSCORE none a | ZMSCORE z a none c | ZCARD z
ZRANGE z 0 -1 | ZRANGE z 0 -1 WITHSCORES | ZRANGE z 1 1 | ZRANGE z 0 0 REV | ZREVRANGE z 0 1
ZREVRANGE z 0 0 WITHSCORES | ZRANGEBYSCORE z -inf 6 | ZRANGEBYSCORE z (2 +inf WITHSCORES
ZRANGEBYSCORE z 0 9 LIMIT 1 1 | ZREVRANGEBYSCORE z +inf -inf | ZREVRANGEBYSCORE z 6 (2 LIMIT 0 1 | ZCOUNT z 2 6
ZRANGEBYSCORE z x 1 | ZADD z 1700000000.123456 t | ZSCORE z t | ZREMRANGEBYSCORE z 2 3 | ZREM z a none | ZPOPMIN z
ZREMRANGEBYRANK z 0 0 | ZRANGE z 0 -1 | TYPE z | ZADD z 0.1 f | ZSCORE z f | XLEN x | XLEN z | TYPE x | EXISTS x
XADD q 5-0 a b | XADD q 5-0 a b | XADD q 4-9 a b | XADD q 5-70 c d e f | XADD q 6 a b | XLEN q | XADD z 7-0 a b
XREADGROUP GROUP g c COUNT 1 NOACK STREAMS q > | XGROUP CREATE none g 0 | XGROUP CREATE q g 0 | XGROUP CREATE q g 0
XREADGROUP GROUP g c COUNT 2 NOACK STREAMS q > | XTRIM q MINID 5-70 | XLEN q | XTRIM q MINID 5-0 | XTRIM none MINID 1-0
XREADGROUP GROUP g c COUNT 2 NOACK STREAMS q > | XREADGROUP GROUP g c COUNT 2 NOACK STREAMS q > | XTRIM q MINID 6-1
XADD r 5-0 a b | XADD r 5-9 c d | XADD r 7-0 e f | XRANGE r - + | XRANGE r 5-9 + | XRANGE r 6 + COUNT 5
XRANGE r - + COUNT 1 | XRANGE r 8 + | XRANGE none 1 + | XRANGE z - + | XDEL r 5-9 6-0 | XDEL none 1-0 | XLEN r
XADD r MAXLEN 1 8-0 g h | XRANGE r - + | XDEL r 8-0 | XLEN r | EXISTS r | XADD r 8-0 a b
XLEN q | EXISTS q | TYPE q | XADD q 6-0 a b | XADD q MAXLEN ~ 10 6-1 a b | XGROUP CREATE p g 0 MKSTREAM | XLEN p
XINFO GROUPS none | XINFO STREAM none | XINFO GROUPS z | MEMORY USAGE none
FCALL none 0 | FUNCTION LOAD nothing
PING | PING hello | SELECT 0 | PUBLISH nobody hello | EVALSHA 0000000000000000000000000000000000000000 0
SCRIPT EXISTS 0000000000000000000000000000000000000000 | FLUSHALL | EXISTS z | CLIENT TRACKING ON REDIRECT 9999 BCAST
CLIENT TRACKING OFF
"""

SCRIPTS = [
    "return {1, 2.7, 'a', false, true, {ok = 'fine'}, {err = 'ODD one'}, {1, nil, 2}}",
    "return redis.call('SET', KEYS[1], ARGV[1])",
    "return redis.call('GET', 'none') == false",
    "return redis.call('TYPE', KEYS[1])",
    "return redis.call('TYPE', KEYS[1]).ok",
    "return redis.call('HGET', KEYS[1], 'a')",
    "return redis.pcall('HGET', KEYS[1], 'a')",
    "return {pcall(redis.call, 'HGET', KEYS[1], 'a')}",
    "local done, why = pcall(redis.call, 'HGET', KEYS[1], 'a') return {type(why), type(why) == 'table' and why.err}",
    "error({err = 'KIND said'})",
    "return redis.error_reply('KIND said')",
    "return redis.call('SET', 'number', 12345678901234)",
    "redis.call('SET', 'number', 1.5) return redis.call('GET', 'number')",
    "redis.call('SET', 'number', 1700000000123456) return redis.call('GET', 'number')",
    "redis.call('ZADD', 'scores', 1700000000123456 / 1000000, 'a') return redis.call('ZSCORE', 'scores', 'a')",
    "return tostring(1700000000123456)",
    "return string.format('%.0f', 1700000000123456)",
    'return cjson.encode(cjson.decode(\'{"a":[1,2.5,null,"x"]}\').a[4])',
    "return cjson.decode('[null]')[1] == cjson.null",
    "return (pcall(cjson.decode, '{')) == false",
    "return cmsgpack.unpack(cmsgpack.pack({'a', 1, {'b'}}))",
    "return redis.sha1hex('x')",
    "return #redis.call('INFO', 'server'):match('run_id:(%x+)')",
    "return redis.call('NOSUCHCOMMAND')",
    "return nosuchfunction()",
    "return {KEYS[1], ARGV[1], #KEYS, #ARGV}",
    "return redis.call('HMGET', 'none', 'a', 'b')",
    "return (redis.call('HMGET', 'none', 'a', 'b'))[1] == false",
    "return redis.call('PUBLISH', 'nobody', 'x')",
    "return struct.pack('<dd', 1.5, 1700000000123456)",
    "local a, b = struct.unpack('<dd', struct.pack('<dd', 1.5, 1700000000123456)) return {a * 2, b}",
    """
    redis.call('XADD', KEYS[1], '5-7', 'a', 'b')
    redis.call('XGROUP', 'CREATE', KEYS[1], 'g', '0')
    local found = {}
    for _, list in ipairs({redis.call('XINFO', 'STREAM', KEYS[1]), redis.call('XINFO', 'GROUPS', KEYS[1])[1]}) do
        for i = 1, #list, 2 do found[list[i]] = list[i + 1] end
    end
    return {found.length, found['last-generated-id'], found.name, found.pending, found['last-delivered-id']}
    """,
    "this is no Lua",
]

WRITES_AND_READS = [
    ["SET", "a", "1"],
    ["DEL", "h"],
    ["GET", "a"],
    ["HDEL", "h", "a"],
    ["PEXPIRE", "h", "1000"],
    ["PUBLISH", "c", "x"],
    ["TIME"],
    ["PING"],
    ["EVAL", "return redis.call('SET', 'a', '1')", "0"],
    ["EVAL", "return redis.call('GET', 'a')", "0"],
    ["EVAL", "redis.call('DEL', 'none') return redis.call('SET', 'a', '1')", "0"],
    ["EVAL", "return redis.pcall('SET', 'a', '1').err ~= nil", "0"],
    ["EVAL", "redis.call('PUBLISH', 'c', 'x') return redis.call('HSET', 'h', 'a', '1')", "0"],
    ["EVAL", "redis.pcall('SET', 'a', '1') return redis.call('DEL', 'a')", "0"],
    ["EVAL", "#!lua flags=allow-oom\nreturn redis.call('SET', 'a', '1')", "0"],
    ["EVAL", "#!lua flags=no-writes\nreturn redis.call('GET', 'a')", "0"],
    ["EVAL", "#!lua\nreturn redis.call('GET', 'a')", "0"],
    ["EVAL", "return (pcall(redis.call, 'SET', 'a', '1')) and 1 or 0", "0"],
    ["CLIENT", "TRACKING", "OFF"],
]


class Speaker(Protocol):
    """A connection: its answers, and what it is sent without having asked."""

    def ask(self, *words: str) -> Any: ...
    def told(self) -> list[Any]: ...


def _command(*words: str) -> bytes:
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub knows one word alone
    return packed


class RealSpeaker:
    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(path)
        self._reader = hiredis.Reader()

    def ask(self, *words: str) -> Any:
        self._socket.sendall(_command(*words))
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65536))
        return reply

    def told(self) -> list[Any]:
        """Everything up to the answer to a PING."""
        self._socket.sendall(_command("PING", "end"))
        found: list[Any] = []
        while True:
            while (reply := self._reader.gets()) is not False:
                if reply in ([b"pong", b"end"], b"end"):
                    return found
                found.append(reply)
            self._reader.feed(self._socket.recv(65536))

    def close(self) -> None:
        self._socket.close()


class SimulatedSpeaker:
    def __init__(self, server: Server) -> None:
        self._reader = hiredis.Reader()
        self._server = server
        self._peer = server.connect(self._reader.feed)

    def ask(self, *words: str) -> Any:
        self._server.feed(self._peer, _command(*words))
        return self._reader.gets()

    def told(self) -> list[Any]:
        found = []
        while (reply := self._reader.gets()) is not False:
            found.append(reply)
        return found


OLDEST = oldest_redis_server()


@pytest.fixture(scope="module", params=["", *([OLDEST] if OLDEST else [])], ids=lambda binary: "6.2" if binary else "")
def redis(request: pytest.FixtureRequest) -> Iterator[PrivateRedis]:
    server = PrivateRedis(request.param)
    server.start()
    yield server
    server.close()


@pytest.fixture
def simulated(redis: PrivateRedis) -> Server:
    return Server(VirtualTime(), Random(0), oldest=redis.binary == OLDEST)


@pytest.fixture
def real(redis: PrivateRedis) -> Iterator[RealSpeaker]:
    redis.call("FLUSHALL")
    speaker = RealSpeaker(redis.path)
    yield speaker
    speaker.close()


def alike(reply: Any) -> Any:
    """What has to be the same of a reply: of an error its kind and its beginning, without where it happened."""
    if isinstance(reply, list):
        return [alike(inner) for inner in reply]
    if isinstance(reply, Exception):
        text = re.sub(r" script: .*| \(call to.*", "", str(reply))
        text = re.sub(r"(user_script|\[string [^]]*\]):\d+: ", "", text)
        return ("error", text.split(",")[0][:60])
    return reply


def test_the_commands_on_data(real: RealSpeaker, simulated: Server) -> None:
    speaker = SimulatedSpeaker(simulated)
    for line in DATA.strip().replace("\n", " | ").split(" | "):
        words = line.split()
        assert alike(speaker.ask(*words)) == alike(real.ask(*words)), line


def test_every_command_is_compared() -> None:
    here = {line.split()[0] for line in DATA.replace("\n", " | ").split(" | ") if line.strip()}
    unordered = {"SMEMBERS", "SCAN", "HSCAN", "SSCAN"}
    assert {name.decode() for name in COMMANDS} - here - unordered == set()


@pytest.mark.parametrize("source", SCRIPTS)
def test_scripts(real: RealSpeaker, simulated: Server, source: str) -> None:
    speaker = SimulatedSpeaker(simulated)
    answers = [alike(one.ask("EVAL", source, "1", "key", "argument")) for one in (real, speaker)]
    if "nosuchfunction" in source or "no Lua" in source or "NOSUCH" in source:
        answers = [answer[0] for answer in answers]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", REFUSALS)
def test_what_is_refused(real: RealSpeaker, redis: PrivateRedis, simulated: Server, kind: str) -> None:
    speaker = SimulatedSpeaker(simulated)
    simulated.refuses = kind
    begin, end = _troubles(redis, kind)
    begin()
    try:
        answers = [alike(real.ask(*words)) for words in WRITES_AND_READS]
    finally:
        end()
    for words, answer in zip(WRITES_AND_READS, answers, strict=True):
        expected = alike(speaker.ask(*words))
        if words == ["TIME"]:
            continue
        assert expected == answer, words


TOPIC = room_topic("room")
KEYS = history_position_key(TOPIC), history_log_key(TOPIC), history_ids_key(TOPIC)
RULES = json.dumps(
    [["room:room", False, 3, 60_000, 40], ["room:none", "", 0, 1, 1], ["room:", "", 100, 60_000, 1000, [["a", "*"]]]]
)
HISTORY = [
    ("tell", "room", '{"type":"a"}'),
    ("HSET", "gateways:history:rules", "rules", RULES, "generation", "one"),
    *(("tell", "room", f'{{"type":"{number}"}}', number) for number in ("1", "2", "2", "3")),
    ("read", "room", "1", "0", "1000"),
    ("read", "room", "1", "1", "1000"),
    ("read", "room", "1", "1", "20"),
    ("read", "room", "1", "3", "1000"),
    ("read", "room", "1", "4", "1000"),
    ("compare", "room", "1", "3"),
    ("compare", "room", "1", "2"),
    ("tell", "room", '{"type":"4 is longer"}'),
    ("read", "room", "1", "2", "1000"),
    ("tell", "none", '{"type":"a"}'),
    ("tell", "some", '{"type":"a:b"}'),
    ("tell", "some", '{"type":"b:a"}'),
    ("tell", "room", '"no object"'),
    ("ZADD", "gateways", "1", "g1"),
    ("tell", "room", ' { "type":"5"}', "5"),
    ("follow", RULES, "two", "g1", "5", "60", "1"),
    ("follow", "[]", "two", "g2", "5", "60", ""),
    ("tell", "room", '{"type":"6"}', "6"),
    ("DEL", KEYS[1]),
    ("read", "room", "1", "5", "1000"),
    ("SET", KEYS[1], "something else"),
    ("tell", "room", '{"type":"7"}', "7"),
    ("HSET", KEYS[0], "life", "one:another server's"),
    ("tell", "room", '{"type":"7"}', "7"),
    ("read", "room", "1", "7", "1000"),
    ("read", "room", "2", "7", "1000"),
    ("read", "room", "unknown", "7", "1000"),
    ("HSET", "gateways:history:rules", "generation", "two"),
    ("compare", "room", "2", "7"),
    ("tell", "room", '{"type":"8"}', "7"),
    ("read", "room", "2", "7", "1000"),
]
"""What happens to rooms with history; an epoch is given by which of those it was, from 1, that there have been."""


@pytest.mark.parametrize("by", ["function", "script"])
def test_histories(real: RealSpeaker, simulated: Server, by: str) -> None:
    speakers = real, SimulatedSpeaker(simulated)
    if by == "function" and simulated.oldest:
        assert [alike(speaker.ask("FUNCTION", "LOAD", LIBRARY))[1][:30] for speaker in speakers] == [
            "ERR unknown command `FUNCTION`"
        ] * 2
        return
    if by == "function":
        for _ in range(2):
            loaded = [alike(speaker.ask("FUNCTION", "LOAD", LIBRARY)) for speaker in speakers]
            assert loaded[0] == loaded[1]
    stories = [_story(speaker, by, simulated.time) for speaker in speakers]
    for step, expected, found in zip(HISTORY, *stories, strict=True):
        assert found == expected, step


def _story(speaker: Speaker, by: str, time: VirtualTime) -> list[Any]:
    epochs: dict[bytes, bytes] = {}
    found = []
    for step in HISTORY:
        time.now += 0.001  # no two epochs begin at once
        found.append(_happens(speaker, step, by, epochs))
    return found


def _happens(speaker: Speaker, step: tuple[str, ...], by: str, epochs: dict[bytes, bytes]) -> Any:
    """The answer, and what the room has then, with epochs by number."""
    what, *words = step
    named = {number: epoch for epoch, number in epochs.items()}
    position = history_position_key(room_topic(words[0]))
    if what == "tell":
        words = [*[*words, ""][:3], "", BROADCAST]
        command = ["FCALL", FUNCTION, "0"] if by == "function" else ["EVAL", TELL.source, "0"]
    elif what in {"read", "compare"}:
        words[1] = named.get(words[1].encode(), words[1].encode()).decode()
        command = ["EVAL", {"read": READ, "compare": COMPARE}[what].source, "2", "gateways:history:rules", position]
        words.pop(0)
    elif what == "follow":
        command = ["EVAL", FOLLOW.source, "2", "gateways:history:rules", "gateways:history:following"]
    else:
        command = [what]
    answer = alike(speaker.ask(*command, *words))
    for key in (KEYS[0], position):
        epoch = speaker.ask("HGET", key, "epoch")
        if isinstance(epoch, bytes):
            epochs.setdefault(epoch, b"%d" % (len(epochs) + 1))
    there = [speaker.ask("HMGET", KEYS[0], "epoch", "offset", "ancestors", "bytes", "floor")]
    there += [speaker.ask("XRANGE", KEYS[1], "-", "+"), speaker.ask("ZRANGE", KEYS[2], "0", "-1", "WITHSCORES")]
    there += [speaker.ask("EXISTS", key) and speaker.ask("PTTL", key) > 59_000 for key in KEYS]
    return _by_number([answer, [alike(each) for each in there]], epochs)


def _by_number(reply: Any, epochs: dict[bytes, bytes]) -> Any:
    if isinstance(reply, list):
        return [_by_number(inner, epochs) for inner in reply]
    if isinstance(reply, bytes):
        for epoch, number in epochs.items():
            reply = reply.replace(epoch, number)
    return reply


def _troubles(redis: PrivateRedis, kind: str) -> tuple[Any, Any]:
    call = redis.call

    def without_disk() -> None:
        call("CONFIG", "SET", "save", "1 1")
        (redis.directory / "dump.rdb").mkdir()
        call("BGSAVE")
        wait_until(lambda: b"rdb_last_bgsave_status:err" in _info(redis), "a failed BGSAVE")

    def with_disk() -> None:
        call("CONFIG", "SET", "save", "")
        call("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")

    match kind:
        case "READONLY":
            return (lambda: call("REPLICAOF", "127.0.0.1", "1")), (lambda: call("REPLICAOF", "NO", "ONE"))
        case "MISCONF":
            return without_disk, with_disk
        case "NOREPLICAS":
            return (
                lambda: call("CONFIG", "SET", "min-replicas-to-write", "1"),
                lambda: call("CONFIG", "SET", "min-replicas-to-write", "0"),
            )
    return lambda: call("CONFIG", "SET", "maxmemory", "1"), lambda: call("CONFIG", "SET", "maxmemory", "0")


def _info(redis: PrivateRedis) -> bytes:
    with redis.client() as client:
        info = client.execute_command("INFO", "persistence")
    return f"rdb_last_bgsave_status:{info['rdb_last_bgsave_status']}".encode()


TRACKED = [
    ("other", ["SET", "access:b", "1"]),
    ("me", ["SET", "access:a", "1"]),
    ("me", ["GET", "access:a"]),
    ("other", ["SET", "access:a", "2"]),
    ("other", ["SET", "access:a", "3"]),
    ("me", ["GET", "access:a"]),
    ("me", ["SET", "access:a", "4"]),
    ("other", ["DEL", "access:a"]),
    ("me", ["GET", "access:a"]),
    ("other", ["SET", "access:a", "5"]),
    ("me", ["EVAL", "redis.call('GET', 'access:hidden') return redis.call('GET', KEYS[1])", "1", "access:a"]),
    ("other", ["SET", "access:hidden", "1"]),
    ("other", ["DEL", "access:a"]),
    ("me", ["EVAL", "return redis.call('SET', KEYS[1], 'x')", "1", "access:a"]),
    ("other", ["DEL", "access:a"]),
    ("me", ["EVAL", "redis.call('SET', KEYS[1], 'x') return redis.call('GET', KEYS[1])", "1", "access:a"]),
    ("other", ["DEL", "access:a"]),
    ("me", ["EVAL", "redis.call('GET', KEYS[1]) return redis.call('SET', KEYS[1], 'x')", "1", "access:a"]),
    ("other", ["DEL", "access:a"]),
    ("me", ["HGET", "access:h", "x"]),
    ("other", ["HSET", "access:h", "x", "1"]),
    ("me", ["EVAL", "return redis.call('HGET', KEYS[1], 'x')", "1", "access:h"]),
    ("other", ["EVAL", "redis.call('HDEL', KEYS[1], 'x') return redis.call('SET', 'other', 'x')", "1", "access:h"]),
    ("other", ["DEL", "access:none"]),
    ("me", ["GET", "access:none"]),
    ("other", ["SET", "access:none", "x"]),
    ("other", ["SET", "elsewhere", "x"]),
    ("me", ["MGET", "access:none", "access:a", "access:b"]),
    ("other", ["DEL", "access:none", "access:a", "access:b"]),
    ("me", ["GET", "access:none"]),
    ("other", ["FLUSHALL"]),
]


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("mode", ["BCAST PREFIX access: NOLOOP", "BCAST PREFIX access:", "NOLOOP", "OPTIN NOLOOP", ""])
def test_tracking(redis: PrivateRedis, simulated: Server, mode: str, caching: bool) -> None:
    redis.call("FLUSHALL")
    stories = []
    for speakers in (
        [RealSpeaker(redis.path) for _ in range(3)],
        [SimulatedSpeaker(simulated) for _ in range(3)],
    ):
        me, other, subscriber = speakers
        number = subscriber.ask("CLIENT", "ID")
        subscriber.ask("SUBSCRIBE", "__redis__:invalidate")
        me.ask("CLIENT", "TRACKING", "ON", "REDIRECT", str(number), *mode.split())
        story = []
        for who, words in TRACKED:
            if who == "me" and caching:
                me.ask("CLIENT", "CACHING", "YES")  # refused unless it has to be said
            (me if who == "me" else other).ask(*words)
            me.told(), other.told()
            told = [[channel, sorted(keys or ())] for _, channel, keys in subscriber.told()]
            story.append((who, words, told))
        stories.append(story)
        for speaker in speakers:
            if isinstance(speaker, RealSpeaker):
                speaker.close()
    for real, ours in zip(*stories, strict=True):
        assert ours == real

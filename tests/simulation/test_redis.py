"""The simulated Redis and a real one answer alike, as far as the gateway asks."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from random import Random
from typing import Any, Protocol

import hiredis
import pytest

from tests.simulation.keyspace import COMMANDS
from tests.simulation.redis import REFUSALS, Server
from tests.simulation.virtual_time import VirtualTime
from tests.support.redis_server import PrivateRedis, oldest_redis_server
from tests.support.waiting import wait_until

DATA = """
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
XLEN q | EXISTS q | TYPE q | XADD q 6-0 a b | XADD q MAXLEN ~ 10 6-1 a b | XGROUP CREATE p g 0 MKSTREAM | XLEN p
XINFO GROUPS none | XINFO STREAM none | XINFO GROUPS z | MEMORY USAGE none
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
    unordered = {"SMEMBERS", "SCAN", "HSCAN", "SSCAN", "XADD", "XRANGE"}
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

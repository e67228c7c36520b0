"""The asyncio backend and where Redis is: through three real sentinels, and at a server that is no master."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import BusyLoadingError, MasterDownError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from kraftek.service import asyncio as over_asyncio
from kraftek.service import redis_client
from kraftek.service.backend import Away, Refusing
from kraftek.service.redis_client import QUIET, came_from_replica, end
from tests.support.ports import free_port
from tests.support.redis_server import PrivateRedis
from tests.support.sentinels import Sentinels

# redis-py leaves sockets to the garbage collector when they are disconnected while somebody reads.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    started = Sentinels(password="hunter2")
    try:
        started.start()
        yield started
    finally:
        started.close()


async def until(seen: Callable[[], object], what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not seen():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        await asyncio.sleep(0.005)


async def port_of(backend: over_asyncio._Backend) -> int:
    """Of the server that answers, as soon as one does."""
    for _ in range(100):
        try:
            return int((await backend.call("CONFIG", "GET", "port"))[1])
        except Away:
            await asyncio.sleep(0.1)
    raise AssertionError("no server answers")


async def why_away(url: str) -> str:
    backend = over_asyncio._Backend(url)
    with pytest.raises(Away) as away:
        await backend.call("PING")
    await backend.close()
    return str(away.value)


def refused(url: str) -> str:
    reason = asyncio.run(asyncio.wait_for(why_away(url), 20.0))
    assert "hunter2" not in reason
    return reason


def test_no_sentinel_there() -> None:
    ports = free_port(), free_port()
    reason = refused(f"redis+sentinel://:hunter2@127.0.0.1:{ports[0]},[::1]:{ports[1]}/mymaster")
    assert f"the sentinel at 127.0.0.1:{ports[0]}: " in reason
    assert f"; the sentinel at ::1:{ports[1]}: " in reason


def test_it_is_closed_while_silent_sentinels_are_asked() -> None:
    """One after the other, each for some seconds."""

    async def play() -> None:
        asked = asyncio.Event()
        writers: list[asyncio.StreamWriter] = []

        def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            asked.set()

        servers = [await asyncio.start_server(accept, "127.0.0.1", 0) for _ in range(3)]
        places = [f"127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
        backend = over_asyncio._Backend(f"redis+sentinel://{','.join(places)}/mymaster")
        calling = asyncio.create_task(backend.call("PING"))
        await asked.wait()
        await asyncio.wait_for(backend.close(), 2.5 * QUIET)
        with pytest.raises(Away):
            await calling
        for server in servers:
            server.close()
        for writer in writers:
            writer.close()

    asyncio.run(asyncio.wait_for(play(), 30.0))


def test_an_unknown_name(sentinels: Sentinels) -> None:
    reason = refused(sentinels.url.replace("mymaster", "other"))
    assert f"the sentinel at 127.0.0.1:{sentinels.ports[2]}: it knows no master named other" in reason


def test_no_password_for_the_sentinels(sentinels: Sentinels) -> None:
    assert "uthentication required" in refused(sentinels.url.partition("?")[0])


def test_a_wrong_password_for_the_sentinels(sentinels: Sentinels) -> None:
    assert "invalid username-password pair" in refused(sentinels.url + "2")


def test_a_server_that_is_no_sentinel(sentinels: Sentinels) -> None:
    place = f"127.0.0.1:{sentinels.server_ports[0]}"
    assert f"the sentinel at {place}: unknown command" in refused(f"redis+sentinel://{place}/mymaster")


def test_a_url_that_is_none() -> None:
    with pytest.raises(ValueError, match="as in /mymaster/0"):
        over_asyncio.EventService(None, "redis+sentinel://:hunter2@h/0/mymaster")  # type: ignore[arg-type]


def test_a_replica_is_refused(sentinels: Sentinels) -> None:
    port = sentinels.server_ports[1]
    assert refused(f"redis://127.0.0.1:{port}") == f"127.0.0.1:{port} is a replica; expected the master"


def test_a_replica_at_a_unix_socket_is_refused() -> None:
    server = PrivateRedis()
    try:
        server.start("--replicaof", "127.0.0.1 1")
        assert refused(server.url) == f"{server.path} is a replica; expected the master"
    finally:
        server.close()


def test_a_user_that_may_not_ask_for_the_role() -> None:
    async def play() -> None:
        server.start()
        server.call("ACL", "SETUSER", "ann", "on", ">hunter2", "~*", "&*", "+@all", "-@dangerous")
        backend = over_asyncio._Backend(server.url.replace("unix://", "unix://ann:hunter2@"))
        assert await backend.call("ECHO", "x") == b"x"
        await backend.close()

    server = PrivateRedis()
    try:
        asyncio.run(asyncio.wait_for(play(), 30.0))
    finally:
        server.close()


def test_a_server_without_the_command_for_its_role() -> None:
    async def play() -> None:
        server.start("--rename-command", "ROLE", "")
        backend = over_asyncio._Backend(server.url)
        backend.start()
        heard: list[bytes] = []
        await backend.subscribe("channel", heard.append)
        assert await backend.call("ECHO", "x") == b"x"
        await backend.close()

    server = PrivateRedis()
    try:
        asyncio.run(asyncio.wait_for(play(), 20.0))
    finally:
        server.close()


def test_a_connection_that_fails_to_close_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> None:
        raise RedisConnectionError("it was lost already")

    async def play() -> None:
        server.start()
        backend = over_asyncio._Backend(server.url)
        await backend.call("PING")
        server.call("REPLICAOF", "127.0.0.1", "1")
        monkeypatch.setattr(backend._redis.connection_pool, "disconnect", fails)
        for _ in range(2):
            with pytest.raises(Refusing, match="read only replica"):
                await backend.call("SET", "a", "1")
        monkeypatch.undo()
        await backend.close()

    server = PrivateRedis()
    try:
        asyncio.run(asyncio.wait_for(play(), 20.0))
    finally:
        server.close()


@pytest.mark.parametrize("lost", [1, 3])
def test_who_swallows_a_cancellation_is_cancelled_again(lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stubborn() -> None:
        for _ in range(lost):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def play() -> list[bool]:
        tasks = [asyncio.create_task(stubborn()) for _ in range(2)]
        await asyncio.sleep(0)
        await end(tasks)
        await end([])
        return [task.cancelled() for task in tasks]

    monkeypatch.setattr(redis_client, "_AGAIN", 0.01)
    assert asyncio.run(asyncio.wait_for(play(), 20.0)) == [True, True]


@pytest.mark.parametrize(
    ("answer", "replica"),
    [
        (ReadOnlyError("You can't write against a read only replica."), True),
        (MasterDownError("Link with MASTER is down and replica-serve-stale-data is set to 'no'."), True),
        (BusyLoadingError("Redis is loading the dataset in memory"), True),
        (ResponseError("Error running script (call to f_0): @user_script:1: -READONLY You can't write"), True),
        (ResponseError("Error running script (call to f_0): @user_script:1: -MASTERDOWN Link with"), True),
        (ResponseError("unknown command 'READONLY'"), False),
        (RedisConnectionError("Connection lost"), False),
        (b"READONLY ", False),
        (None, False),
    ],
)
def test_answers_that_show_a_replica(answer: object, replica: bool) -> None:
    assert came_from_replica(answer) is replica


@pytest.mark.parametrize("writes", [True, False])
def test_a_server_that_becomes_a_replica_is_given_up(writes: bool) -> None:
    """At the first write that it refuses, by all connections; also by a service that writes nothing."""

    async def play() -> None:
        server.start("--port", str(port))
        backend = over_asyncio._Backend(f"redis://127.0.0.1:{port}")
        heard: list[bytes] = []
        await backend.subscribe("channel", heard.append)
        await backend.call("PING")
        server.call("REPLICAOF", "127.0.0.1", "1")
        if writes:
            with pytest.raises(Refusing, match="read only replica"):
                await backend.call("SET", "a", "1")
        else:
            backend.start()
        await until(lambda: server.call("PUBSUB", "NUMSUB", "channel") == [b"channel", 0], "the subscriber gone")
        server.call("REPLICAOF", "NO", "ONE")
        await until(lambda: server.call("PUBLISH", "channel", "x"), "the subscriber back")
        await until(lambda: heard == [b"x"], "the message")
        await backend.close()

    server, port = PrivateRedis(), free_port()
    try:
        asyncio.run(asyncio.wait_for(play(), 30.0))
    finally:
        server.close()


def test_a_fail_over() -> None:
    """By command: at once, while the old master goes on as one. Past a sentinel that knows less."""

    async def works(backend: over_asyncio._Backend, master: int) -> None:
        while await port_of(backend) != sentinels.server_ports[master]:
            await asyncio.sleep(0.01)
        with sentinels.servers[master].client() as client:
            await until(lambda: client.publish("channel", f"{master}") == 1, "the subscriber")
        await until(lambda: f"{master}".encode() in heard, "the message")

    async def read(reader: over_asyncio._Reader) -> None:
        while True:
            assert await reader.read("BLPOP", "list", 2) is None

    async def play() -> None:
        backend = over_asyncio._Backend(sentinels.url.replace("//", f"//127.0.0.1:{behind.ports[0]},"))
        backend.start()
        await backend.subscribe("channel", heard.append)
        waiting = asyncio.create_task(read(backend.reader()))
        sentinels.ask(sentinels.ports[0], "SENTINEL", "FAILOVER", "mymaster")
        with pytest.raises(Away):
            await waiting
        await works(backend, 1)
        with sentinels.servers[0].client() as old:
            assert old.info("replication")["role"] == "master"
            assert old.pubsub_numsub("channel") == [(b"channel", 0)]

        asking = backend._client._sentinels
        for port in sentinels.ports:
            sentinels.kill_sentinel(port)
        assert asking is not None
        with pytest.raises(MasterNotFoundError, match="what the others know is older than what was known before"):
            await asking.discover_master("mymaster")
        await backend.close()

    heard: list[bytes] = []
    sentinels, behind = Sentinels(), Sentinels()
    try:
        sentinels.start()
        behind.start()
        asyncio.run(asyncio.wait_for(play(), 100.0))
    finally:
        sentinels.close()
        behind.close()

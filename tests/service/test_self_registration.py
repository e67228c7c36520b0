"""A service that registers itself: what an instance does in a real Redis, and what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from kraftek.contract.registrations import LEASE, MOST
from kraftek.service import asyncio as over_asyncio
from kraftek.service.backend import Away, Rejected
from kraftek.service.processor import EventProcessor
from kraftek.service.self_registration import SelfRegistration
from tests.support.redis_server import PrivateRedis

OWN = b'{"channel":"events:chat-1","transport":"pubsub","partitions":0,"reply":true,"timeout":10}'


@pytest.fixture
def redis(server: PrivateRedis) -> Iterator[Any]:
    with server.client() as client:
        client.flushall()
        yield client


class Instance:
    """An instance that has a Redis, and no loop. ``fault`` is raised in place of an answer."""

    def __init__(self, redis: Any, name: str = "chat-1", **settings: Any) -> None:
        self._redis = redis
        self.fault: Exception | None = None
        self.said: list[tuple[str, str]] = []
        processor = EventProcessor(name, prefix="k:", register=True, **settings)
        self.registration = SelfRegistration(processor, self)  # type: ignore[arg-type]  # as much as it uses

    async def run(self, script: Any, keys: Any, args: Any) -> Any:
        if self.fault is not None:
            raise self.fault
        return self._redis.eval(script.source, len(keys), *keys, *args)

    def info(self, text: str) -> None:
        self.said.append(("info", text))

    def warn(self, text: str) -> None:
        self.said.append(("warn", text))

    def registers(self, times: int = 1) -> list[tuple[str, str]]:
        """What it says meanwhile."""
        self.said = []
        for _ in range(times):
            asyncio.run(self.registration.register())
        return self.said


def left(redis: Any, name: str = "chat-1") -> float:
    """Seconds until it has ended."""
    seconds, microseconds = redis.time()
    until = float(redis.zscore("k:gateways:registered:leases", name))
    return until / 1000 - float(seconds) - float(microseconds) / 1e6


def test_it_stands_for_a_while_and_gateways_are_told_once(redis: Any) -> None:
    with redis.pubsub() as gateway:
        gateway.subscribe("k:gateways:registered")
        assert gateway.get_message(timeout=10)["type"] == "subscribe"
        instance = Instance(redis, reply=True)
        assert instance.registration.beat() is None
        assert instance.registers(2) == []
        assert redis.hgetall("k:gateways:registered") == {b"chat-1": OWN}
        assert LEASE - 2 < left(redis) <= LEASE
        assert 0 < redis.pttl("k:gateways:registered") <= 1000 * LEASE
        redis.publish("k:gateways:registered", "the end")
        assert [gateway.get_message(timeout=10)["data"] for _ in range(2)] == [b"", b"the end"]


def test_the_pulse_goes_on_with_it(redis: Any) -> None:
    instance = Instance(redis, reply=True)
    instance.registers()
    redis.zincrby("k:gateways:registered:leases", -1000 * LEASE / 2, "chat-1")
    beat = instance.registration.beat()
    assert beat is not None
    assert redis.execute_command(*beat) == OWN
    assert left(redis) > LEASE - 2
    instance.registration.stop()
    assert instance.registration.beat() is None


def test_another_registration_counts_when_the_first_has_ended(redis: Any) -> None:
    first, same, other = Instance(redis), Instance(redis), Instance(redis, channel="x", timeout=2.5)
    assert first.registers() == same.registers() == []
    ((level, line),) = other.registers(3)
    assert level == "warn"
    theirs = '{"channel":"events:chat-1","transport":"pubsub","partitions":0,"reply":false,"timeout":10}'
    ours = '{"channel":"x","transport":"pubsub","partitions":0,"reply":false,"timeout":2.5}'
    assert line == (
        f"Service chat-1 is registered by other instances as {theirs}, and by this one as {ours}. Give all the same; "
        "this one counts when the others have ended"
    )
    assert other.registration.beat() is None
    redis.zadd("k:gateways:registered:leases", {"chat-1": 1})
    assert [level for level, _ in other.registers(2)] == ["info"]
    assert redis.hget("k:gateways:registered", "chat-1").startswith(b'{"channel":"x"')


def test_what_has_ended_is_removed(redis: Any) -> None:
    Instance(redis, "wiki").registers()
    redis.zadd("k:gateways:registered:leases", {"wiki": 1})
    redis.hset("k:gateways:registered", "chat-1", "without a lease")
    Instance(redis, reply=True).registers()
    assert redis.hgetall("k:gateways:registered") == {b"chat-1": OWN}


def test_they_are_not_without_end(redis: Any) -> None:
    redis.zadd("k:gateways:registered:leases", {str(number): 4e12 for number in range(MOST)})
    ((level, line),) = Instance(redis).registers(2)
    assert (level, line) == ("warn", f"Service chat-1 cannot register itself: {MOST} services have done so")


def test_what_redis_refuses_stops_nothing(redis: Any) -> None:
    instance = Instance(redis)
    instance.fault = Away("gone")
    assert instance.registers() == []
    instance.fault = Rejected("NOPERM x")
    refused = "Service chat-1 cannot register itself: Redis refuses that: NOPERM x"
    assert instance.registers(2) == [("warn", refused)]
    instance.fault = None
    assert [level for level, _ in instance.registers(2)] == ["info"]


@pytest.mark.parametrize(
    ("name", "settings", "why"),
    [
        ("gateway", {}, "name: expected another name"),
        ("chät", {}, "name: expected a name of 1 to 128"),
        ("chat", {"channel": "auth:invalidate"}, "channel: expected a channel that is none of the gateway's own"),
        ("chat", {"channel": "x", "broadcast": "x"}, "channel: expected another channel than that of redis.broadcast"),
    ],
)
def test_what_cannot_be_registered_is_an_error_at_once(name: str, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Instance(None, name, **settings)


def test_it_goes_on_until_it_is_stopped_and_a_fault_of_its_own_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[str] = []

    async def play(fault: Exception | None) -> None:
        backend = over_asyncio._Backend("redis://127.0.0.1:1")
        backend.start()
        asked = asyncio.Event()

        async def run(*_: Any) -> bytes:
            asked.set()
            if fault is not None:
                raise fault
            return b""

        monkeypatch.setattr(backend, "run", run)
        monkeypatch.setattr(backend, "failed", lambda text, error: failed.append(text))
        registration = SelfRegistration(EventProcessor("chat"), backend)
        registration.start()
        await asked.wait()
        await asyncio.sleep(0)
        registration.stop()
        await backend.close()

    asyncio.run(asyncio.wait_for(play(None), 20))
    assert failed == []
    asyncio.run(asyncio.wait_for(play(KeyError("a bug")), 20))
    assert failed == ["The service is not registered any more"]

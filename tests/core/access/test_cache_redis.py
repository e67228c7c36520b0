"""The access cache on the real bus and real redis-servers: two gateway processes' worth of it, and whoever else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from kraftek.bus import RedisBus
from kraftek.contract.errors import Code
from kraftek.contract.interfaces import IAccessChecker, IAccessListener
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Grant, Token
from kraftek.contract.metrics import Counters
from kraftek.contract.names import ledger_key, token_key, user_key
from kraftek.contract.settings import Auth, Redis
from kraftek.core.access import cache as cache_module
from kraftek.core.access.cache import AccessCache
from tests.core.access.world import Outcome
from tests.support.fakes import Question
from tests.support.redis_server import PrivateRedis, oldest_redis_server, private_redis
from tests.support.waiting import until

T = Token("t")


@implementer(IAccessChecker, IAccessListener)
class Process:
    """An access cache on a bus of its own."""

    def __init__(self, redis: PrivateRedis, auth: Auth, **config: Any) -> None:
        self.counters = Counters()
        self.questions: list[Question] = []
        self.stale: list[tuple[str | None, str | None, str | None, bool]] = []
        self.source = ""
        self.bus = RedisBus(reactor, Redis(url=redis.url, **config), Iteration(reactor), self.counters)
        self.cache = AccessCache(self, self.bus, auth, reactor, self.counters)
        self.cache.add_listener(self)

    def vouches(self, source: str) -> bool:
        return source == self.source

    def on_change(self, listener: Callable[[], None]) -> None:
        """It changes in test_cache.py."""

    def ask(self, token: str = "t", room: str | None = "r") -> Outcome:
        return Outcome(self.cache.check(Token(token), room))

    async def told(self, *stale: str | bool | None) -> None:
        """Returns once listeners were told this."""
        await until(lambda: stale in self.stale, lambda: f"{stale} in {self.stale}")

    async def let_in(self, token: str = "t", room: str | None = "r", user: str = "ada", **grant: Any) -> None:
        """Ask, have the auth service say yes, and wait until nothing is going on any more."""
        outcome = self.ask(token, room)
        await until(lambda: self.questions, "a question to the auth service")
        self.questions.pop().yes(user, **grant)
        await until(lambda: not outcome.waits, "an outcome of the check")
        assert outcome.user == user
        await self.rest()

    async def deny(self, outcome: Outcome) -> None:
        """Have the auth service say no."""
        await until(lambda: self.questions, "a question to the auth service")
        self.questions.pop().no()
        await until(lambda: not outcome.waits, "an outcome of the check")
        assert outcome.code is Code.AUTH_FAILED

    async def rest(self) -> None:
        """What Redis was told is done, and what it had to say about that has been heard and looked at."""
        await self.bus.call("PING")
        await self.bus.settled()
        await until(lambda: not self.cache._comparison.running, "the end of comparing")

    async def answered(self, token: str = "t", room: str | None = "r") -> str:
        """Whose yes it is, without the auth service."""
        outcome = self.ask(token, room)
        await until(lambda: not outcome.waits, "an outcome of the check")
        return outcome.user

    def check(self, token: Token, room_id: str | None, turn: str = "") -> Deferred[Grant]:
        question = Question(token.value, room_id, Deferred())
        self.questions.append(question)
        return question.answer

    def access_stale(self, digest: str | None, user_id: str | None, room_id: str | None, revoked: bool) -> None:
        self.stale.append((digest, user_id, room_id, revoked))


class AccessOnRedisTest(TestCase):
    """With the redis-server that the gateway itself would choose."""

    timeout = 30
    binary: str | None = None

    def setUp(self) -> None:
        self.redis = private_redis(self, self.binary)

    async def process(self, auth: Auth | None = None, **config: Any) -> Process:
        process = Process(self.redis, auth or Auth(), **config)
        process.bus.startService()
        self.addCleanup(process.bus.stopService)
        await until(lambda: process.bus.available, "a connection to Redis")
        sweeping = LoopingCall(process.cache.sweep)
        sweeping.start(0.05)
        self.addCleanup(sweeping.stop)
        await until(lambda: process.cache.settled, "what is believed")
        process.stale.clear()
        return process

    async def test_a_yes_is_kept_for_every_process(self) -> None:
        one, two = await self.process(), await self.process()
        await one.let_in(permissions=["notes:*:*"])
        assert await two.answered() == "ada"
        assert await one.answered() == "ada"
        assert two.questions == []
        assert self.redis.call("SMEMBERS", user_key("ada")) == {T.digest.encode()}
        assert one.counters.access_asked == 1

    async def test_our_own_writing_disturbs_nobody(self) -> None:
        """Redis reports what a script writes to the connection that ran it, NOLOOP or not."""
        one, two = await self.process(), await self.process()
        await one.let_in()
        await two.answered()
        for process in (one, two):
            await process.rest()
            process.stale.clear()
        for room in ("a", "b", "c"):
            await one.let_in(room=room)
        await two.rest()
        assert (one.stale, two.stale) == ([], [])
        assert one.ask().user == "ada"
        assert two.ask().user == "ada"

    async def test_deletions_take_effect_everywhere(self) -> None:
        one, two = await self.process(), await self.process()
        for key, told in (
            (token_key(T.digest), (T.digest, None, None, True)),
            (user_key("ada"), (None, "ada", None, True)),
        ):
            await one.let_in()
            await two.answered()
            await two.rest()
            for process in (one, two):
                process.stale.clear()
            self.redis.call("DEL", key)
            for process in (one, two):
                await process.told(*told)
            outcome = two.ask()
            await until(lambda: two.questions, "a question to the auth service")
            assert outcome.waits
            two.questions.pop().away()

    async def test_what_redis_refuses_to_forget_is_not_believed_and_cleared_later(self) -> None:
        one, two = await self.process(), await self.process()
        await one.let_in()
        await one.let_in(room="other")
        await two.answered()
        self.redis.call("CONFIG", "SET", "min-replicas-to-write", "1")
        self.redis.call("PUBLISH", "auth:invalidate", b'{"userId": "ada", "roomId": "r"}')
        for process in (one, two):
            await process.told(None, "ada", "r", True)
            for _ in range(2):
                await process.deny(process.ask())
                process.cache._denials.clear()
            assert await process.answered(room="other") == "ada"
        self.redis.call("CONFIG", "SET", "min-replicas-to-write", "0")
        assert self.redis.call("HEXISTS", token_key(T.digest), "r")

        def cleared() -> bool:
            two.cache.sweep()
            return not two.cache._revocations

        await until(cleared, "the end of clearing")
        assert not self.redis.call("HEXISTS", token_key(T.digest), "r")

    async def test_what_cannot_be_read_counts_as_absent(self) -> None:
        one, two = await self.process(), await self.process()
        odd = [b"\xff", b'{"userId":"ada","freshUntil":9999999999,"roomId":"\xff"}', b"[" * 100_000, b"{}", b"no json",
               b'{"userId":"ada","freshUntil":' + b"[" * 5_000, b'{"userId":"ada"}']  # fmt: skip
        with capturedLogs() as logged:
            for value in odd:
                await one.let_in()
                self.redis.call("HSET", token_key(T.digest), "r", value)
                await two.rest()
                await two.let_in()
                self.redis.call("FLUSHALL")
                await one.rest()
        assert len([event for event in logged if "cannot be read" in event["log_format"]]) == 2  # once by each

    async def test_what_cannot_be_read_does_not_hide_a_deletion(self) -> None:
        one = await self.process()
        await one.let_in()
        await one.let_in("b", user="bob")
        with self.redis.client() as client, client.pipeline() as pipeline:  # one MULTI, which is told at once
            pipeline.hset(token_key(T.digest), "r", b'{"userId":"ada","freshUntil":9999999999,"roomId":"\xff"}')
            pipeline.delete(user_key("bob"))
            pipeline.execute()
        await one.told(None, "bob", None, True)

    async def test_keys_of_another_type_are_cleared_as_well(self) -> None:
        one = await self.process()
        for key in (user_key("ada"), token_key(T.digest), ledger_key("ada")):
            for room in ("", ', "roomId": "r"'):
                await one.let_in()
                self.redis.call("DEL", key)
                self.redis.call("SET", key, "text")
                self.redis.call("PUBLISH", "auth:invalidate", f'{{"userId": "ada"{room}}}'.encode())
                await one.told(None, "ada", "r" if room else None, True)
                await until(lambda: not one.cache._revocations._uncleared, "the end of clearing")
                one.stale.clear()
                self.redis.call("FLUSHALL")
                await one.rest()

    async def test_invalidation(self) -> None:
        one, two = await self.process(), await self.process()
        await one.let_in()
        await one.let_in(room="other")
        await two.answered()
        self.redis.call("PUBLISH", "auth:invalidate", b'{"userId": "ada", "roomId": "r"}')
        for process in (one, two):
            await process.told(None, "ada", "r", True)
            await process.rest()
        assert await two.answered(room="other") == "ada"
        self.redis.call("PUBLISH", "auth:invalidate", b'{"userId": "ada"}')
        for process in (one, two):
            await process.told(None, "ada", None, True)
            await process.rest()
        assert self.redis.call("KEYS", "access:*") == []

    async def test_expiry_is_told_as_such(self) -> None:
        for seconds in ("DELAY", "LATENESS"):
            self.patch(cache_module, seconds, 0.0)
        one = await self.process(Auth(timeout=0.5))
        await one.let_in(ttl=0.05)
        one.stale.clear()
        await until(lambda: one.stale and not self.redis.call("KEYS", "access:*"), "the end of two keys")
        await one.rest()
        assert {revoked for *_, revoked in one.stale} == {False}

    async def test_flushall(self) -> None:
        one = await self.process()
        await one.let_in()
        one.stale.clear()
        self.redis.call("FLUSHALL")
        await one.told(None, None, None, False)
        await one.let_in()

    async def test_a_prefix_is_put_before_everything(self) -> None:
        one, other = await self.process(prefix="one:"), await self.process(prefix="other:")
        await one.let_in()
        assert all(key.startswith(b"one:") for key in self.redis.call("KEYS", "*access*"))
        await other.let_in(user="bob")
        self.redis.call("DEL", "one:" + user_key("ada"))
        await one.told(None, "ada", None, True)
        await other.rest()
        assert await other.answered() == "bob"
        self.redis.call("PUBLISH", "other:auth:invalidate", b'{"userId": "bob"}')
        await other.told(None, "bob", None, True)
        await other.rest()
        assert self.redis.call("KEYS", "other:access:*") == []

    async def test_a_deletion_and_an_older_answer_in_one_turn_of_redis(self) -> None:
        """Redis reports both in one: the messages cannot tell which came first, or that there were two."""
        one = await self.process()
        await one.let_in("u")
        for _ in range(10):
            outcome = one.ask()
            await until(lambda: one.questions, "a question to the auth service")
            with self.redis.client() as client:
                connection = client.connection_pool.get_connection()
                connection.connect()
                self.redis.freeze()
                connection.send_command("DEL", user_key("ada"))
                one.questions.pop().yes("ada")
                await deferLater(reactor, 0)
                await deferLater(reactor, 0)
                self.redis.thaw()
                assert connection.read_response() == 1
                client.connection_pool.release(connection)
            await one.rest()
            # Refused, and asked again; or, had Redis taken the answer first, let in and told at once.
            if outcome.waits:
                await until(lambda: one.questions, "a question to the auth service")
                one.questions.pop().away()
            else:
                assert (None, "ada", None, True) in one.stale
            assert b"userId" not in (self.redis.call("HGET", token_key(T.digest), "r") or b"")
            await one.let_in("u")

    async def test_redis_killed_and_started_again(self) -> None:
        one = await self.process()
        await one.let_in()
        self.redis.kill()
        await until(lambda: not one.bus.available, "the loss of Redis")
        outcome = one.ask()
        await until(lambda: one.questions, "a question to the auth service")
        one.questions.pop().yes("ada")
        assert outcome.user == "ada"
        one.stale.clear()
        self.redis.start()
        await one.told(None, None, None, False)
        await one.let_in()
        assert await one.answered() == "ada"

    async def test_a_redis_that_refuses_keeps_nobody_out(self) -> None:
        one = await self.process()
        self.redis.call("SET", user_key("ada"), "not a set")
        await one.rest()
        with capturedLogs() as logs:
            for _ in range(2):
                await one.let_in()
        (refusal,) = [event for event in logs if "Redis refuses" in event["log_format"]]
        assert "WRONGTYPE" in refusal["error"]

    async def test_scripts_survive_being_forgotten(self) -> None:
        one = await self.process()
        await one.let_in()
        self.redis.call("SCRIPT", "FLUSH")
        await one.let_in(room="other")
        assert await one.answered(room="other") == "ada"

    async def test_no_token_in_redis(self) -> None:
        secret = "s3cr3t-t0k3n"
        one = await self.process()
        with self.redis.client() as client, client.monitor() as monitor:
            await one.let_in(secret)
            one.ask(f"{secret}-no")
            await until(lambda: one.questions, "a question to the auth service")
            one.questions.pop().no()
            await one.rest()
            client.publish("the end", "")
            said = []
            while "the end" not in (command := monitor.next_command()["command"]):
                said.append(command)
        assert any("access:token:" in command for command in said)
        assert not [command for command in said if secret in command]
        for key in self.redis.call("KEYS", "*"):
            assert secret.encode() not in key + self.redis.call("DUMP", key)


@pytest.mark.skipif(oldest_redis_server() is None, reason="no Redis 6.2 for this platform")
class AccessOnRedis62Test(AccessOnRedisTest):
    """With Redis 6.2, the oldest one supported."""

    binary = oldest_redis_server()

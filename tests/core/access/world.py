"""Gateway processes around one Redis, all in memory, where everything happens when the test says so.

:class:`MemoryRedis` does what the three scripts of :mod:`kraftek.core.access.redis` do; ``test_shared.py`` holds it and
real servers to the same. A :class:`Process` is an access cache on a bus; what it asks of Redis is executed, answered
and heard of one step at a time, or all at once by :func:`settle`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IAccessChecker, IAccessListener
from kraftek.contract.lua import Script
from kraftek.contract.messages import Grant, Token
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Auth
from kraftek.core.access.cache import AccessCache
from kraftek.core.access.redis import CLEAR, LOOK_UP, STORE
from tests.support.fakes import FakeBus, Question

__all__ = ["EPOCH", "MemoryRedis", "Outcome", "Process", "settle"]

EPOCH = 1_700_000_000.0
"""Unix seconds at which the clocks of these tests start."""

Argument = bytes | str | int | float


class MemoryRedis:
    """Hashes, sets and expiry. ``changes`` is called with each key that was changed, deleted or expired."""

    def __init__(self, clock: Clock) -> None:
        self.hashes: dict[str, dict[str, str]] = {}
        self.sets: dict[str, set[str]] = {}
        self.changes: list[Callable[[str], object]] = []
        self._clock = clock
        self._ends: dict[str, float] = {}
        self._scripts: dict[Script, Callable[..., Any]] = {LOOK_UP: self._look, STORE: self._store, CLEAR: self._clear}
        self._ticks = 0

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """What Redis answers."""
        self.expire()
        self._ticks += 1
        texts = [arg.decode() if isinstance(arg, bytes) else str(arg) for arg in args]
        return self._scripts[script](*keys, *texts)

    def all_keys(self) -> set[str]:
        self.expire()
        return {*self.hashes, *self.sets}

    def delete(self, *keys: str) -> None:
        """``DEL``."""
        for key in keys:
            if self.hashes.pop(key, None) or self.sets.pop(key, None):
                self._ends.pop(key, None)
                self._changed(key)

    def remove(self, key: str, member: str) -> None:
        """``SREM``."""
        if member in self.sets.get(key, ()):
            self.sets[key].remove(member)
            self._changed(key)
            if not self.sets[key]:
                del self.sets[key]

    def write(self, key: str, field: str, value: str) -> None:
        """``HSET``."""
        self.hashes.setdefault(key, {})[field] = value
        self._changed(key)

    def lives(self, key: str) -> float:
        """``PTTL``."""
        return self._ends[key] - self._milliseconds() if key in self._ends else -1

    def expire(self) -> None:
        """What the time has come for."""
        now = self._milliseconds()
        self.delete(*[key for key, end in self._ends.items() if end <= now])

    def _look(self, tokens: str, users: str, ledgers: str, digest: str, room: str, user: str, memory: str) -> Any:
        answer = self.hashes.get(f"{tokens}{digest}", {}).get(room)
        try:
            user = msgspec.json.decode(answer, type=dict[str, Any])["userId"] if answer else user
        except (msgspec.DecodeError, KeyError):
            answer = None
        if answer and digest in self.sets.get(f"{users}{user}", ()):
            return [str(self._now()).encode(), answer.encode()]
        if user:
            self._taken(f"{ledgers}{user}", f"{users}{user}", tokens, digest, self._now(), memory)
        return [str(self._now()).encode(), None]

    def _store(
        self,
        tokens: str,
        user: str,
        ledger: str,
        digest: str,
        room: str,
        answer: str,
        keep: str,
        asked: str,
        memory: str,
    ) -> int:
        token = f"{tokens}{digest}"
        if self._taken(ledger, user, tokens, digest, int(asked), memory) > int(asked):
            return 0
        if not int(keep):
            return 1
        if digest not in self.sets.get(user, ()):
            self.delete(token)
        self.write(token, room, answer)
        new = digest not in self.sets.get(user, ())
        if new:
            self.sets.setdefault(user, set()).add(digest)
            self._changed(user)
        should = self.hashes.setdefault(ledger, {})
        for field, key in (("user", user), (digest, token)):
            self._extend(key, int(keep) + 1000)
            should[field] = str(self._now() + int(self.lives(key) + 1) * 1000)
        self._extend(ledger, int(keep) + 1000 + int(memory))
        past = self._now() - int(memory) * 1000
        for old in [field for field, end in should.items() if len(field) == len(digest) and int(end) < past]:
            if new:
                del should[old]
                self.remove(user, old)
        return 1

    def _clear(self, user: str, tokens: str, ledger: str, one_room: str, room: str, memory: str) -> int:
        should = self.hashes.get(ledger, {})
        for digest in self.sets.get(user, ()):
            token = f"{tokens}{digest}"
            if one_room == "0":
                self.delete(token)
            elif self.hashes.get(token, {}).pop(room, None):
                self._changed(token)
                if not self.hashes[token]:
                    del self.hashes[token], self._ends[token]
                    should.pop(digest, None)
        if one_room == "0":
            self.delete(user, ledger)
        self.hashes.setdefault(ledger, {})["taken"] = str(self._now())
        self._extend(ledger, int(memory))
        return 1

    def _taken(self, ledger: str, user: str, tokens: str, digest: str, asked: int, memory: str) -> int:
        should = self.hashes.get(ledger, {})
        if int(should.get("user", 0)) > asked and user not in self.sets:
            self.delete(*[f"{tokens}{field}" for field in should if len(field) == len(digest)])
            self.delete(ledger)
        elif int(should.get(digest, 0)) > asked and (
            f"{tokens}{digest}" not in self.hashes or digest not in self.sets.get(user, ())
        ):
            self.delete(f"{tokens}{digest}")
            del should[digest]
        else:
            return int(should.get("taken", 0))
        self.hashes.setdefault(ledger, {})["taken"] = str(self._now())
        self._extend(ledger, int(memory))
        return self._now()

    def _extend(self, key: str, milliseconds: float) -> None:
        if self.lives(key) < milliseconds:
            self._ends[key] = self._milliseconds() + milliseconds
            self._changed(key)

    def _changed(self, key: str) -> None:
        for told in self.changes:
            told(key)

    def _milliseconds(self) -> float:
        return self._clock.seconds() * 1000

    def _now(self) -> int:
        return int((EPOCH + self._clock.seconds()) * 1_000_000) + self._ticks


class Outcome:
    """What a check came to: ``grant``, or ``error``; neither as long as it waits."""

    def __init__(self, check: Deferred[Grant]) -> None:
        self.deferred = check
        self.grant: Grant | None = None
        self.error: Exception | None = None
        check.addCallbacks(self._yes, self._no)

    @property
    def waits(self) -> bool:
        return self.grant is None and self.error is None

    @property
    def user(self) -> str:
        """Whose yes it is."""
        assert self.grant is not None, self.error or "no answer yet"
        return self.grant.user_id

    @property
    def code(self) -> Code:
        """Why it is none."""
        assert isinstance(self.error, PeerError), self.error or self.grant
        return self.error.code

    def _yes(self, grant: Grant) -> None:
        self.grant = grant

    def _no(self, failure: Any) -> None:
        self.error = failure.value


@implementer(IAccessChecker, IAccessListener)
class Process:
    """One gateway process. ``questions`` wait for the auth service, ``stale`` is what listeners were told,
    ``ahead`` what its wall clock shows too much.
    """

    def __init__(self, redis: MemoryRedis, clock: Clock, auth: Auth | None = None, *, available: bool = True) -> None:
        self.redis = redis
        self.clock = clock
        self.bus = FakeBus({}, available=available)
        self.counters = Counters()
        self.ahead = 0.0
        self.questions: list[Question] = []
        self.stale: list[tuple[str | None, str | None, str | None, bool]] = []
        self._executed: list[Any] = []
        self._unheard: dict[str, None] = {}
        redis.changes.append(self._unheard.setdefault)
        self.cache = AccessCache(self, self.bus, auth or Auth(), clock, self.counters, self.now, lambda: 1.0)
        self.cache.add_listener(self)

    def now(self) -> float:
        return EPOCH + self.clock.seconds() + self.ahead

    def ask(self, token: str | Token, room: str | None = "r") -> Outcome:
        """As the gateway asks."""
        return Outcome(self.cache.check(token if isinstance(token, Token) else Token(token), room))

    # The auth service

    def check(self, token: Token, room_id: str | None) -> Deferred[Grant]:
        question = Question(token.value, room_id, Deferred())
        self.questions.append(question)
        return question.answer

    # The gateway

    def access_stale(self, digest: str | None, user_id: str | None, room_id: str | None, revoked: bool) -> None:
        self.stale.append((digest, user_id, room_id, revoked))

    # Redis, a step at a time

    def execute(self) -> None:
        """Redis does the oldest of what it has not done yet; nobody has heard of it."""
        call = self.bus.calls[len(self._executed)]
        self._executed.append(self.redis.run(call.command, call.keys, call.args))

    def reply(self) -> None:
        """The oldest answer arrives."""
        self.bus.calls.pop(0).reply.callback(self._executed.pop(0))

    def hear(self) -> None:
        """Word of what changed arrives, in one message as Redis sends it."""
        changed = [key for key in self._unheard if key.startswith("access:")]
        self._unheard.clear()
        if changed and self.bus.available:
            self.bus.tracked["access:"](changed)

    def publish(self, body: bytes) -> None:
        """A message on ``auth:invalidate`` arrives."""
        for listener in self.bus._channels["auth:invalidate"]:
            listener(body)

    def down(self) -> None:
        """Redis is lost; what it has done already is done, and what it says meanwhile is missed."""
        self._executed.clear()
        self.bus.down()

    def up(self) -> None:
        """Redis is back."""
        self._unheard.clear()
        self.bus.up()

    @property
    def busy(self) -> bool:
        return bool(self.bus.calls) or any(key.startswith("access:") for key in self._unheard)


def settle(*processes: Process) -> None:
    """Until everything is done, answered and heard."""
    for _ in range(1000):
        if not any(process.busy for process in processes):
            return
        for process in processes:
            while process.bus.calls:
                if not process._executed:
                    process.execute()
                process.reply()
            process.hear()
    raise AssertionError("it does not settle")

"""Gateway processes around one Redis, all in memory, where everything happens when the test says so.

:class:`MemoryRedis` does what the scripts of :mod:`kraftek.core.access.redis` do; ``test_redis.py`` holds it and
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
from kraftek.contract.interfaces import IAccessChecker, IAccessListener, IAsker
from kraftek.contract.lua import Script
from kraftek.contract.messages import Grant, Token
from kraftek.contract.metrics import Counters
from kraftek.contract.names import LISTENED
from kraftek.contract.settings import Auth
from kraftek.core.access.cache import AccessCache
from kraftek.core.access.listening import AT_ONCE, LISTEN
from kraftek.core.access.redis import CLEAR, COMPARE, HOLD, LOOK_UP, STORE
from tests.support.fakes import FakeBus, Question

__all__ = ["EPOCH", "MemoryRedis", "Outcome", "Process", "settle"]

EPOCH = 1_700_000_000.0
"""Unix seconds at which the clocks of these tests start."""

Argument = bytes | str | int | float

Client = Callable[[str], object]


class MemoryRedis:
    """Hashes, sets and expiry, and tracking: a client is told once of a change by others to a key that it has read.

    Only keys that a script declares and reads after its last write are tracked: less than any version of Redis tracks.
    """

    def __init__(self, clock: Clock) -> None:
        self.hashes: dict[str, dict[str, str]] = {}
        self.sets: dict[str, set[str]] = {}
        self._clock = clock
        self._ends: dict[str, float] = {}
        self._tracking: dict[str, dict[Client, None]] = {}
        self._client: Client | None = None
        self._declared: frozenset[str] = frozenset()
        self._scripts: dict[Script, Callable[..., Any]] = {
            LOOK_UP: self._look,
            STORE: self._store,
            COMPARE: self._compare,
            HOLD: self._hold,
            CLEAR: self._clear,
            LISTEN: self._listen,
        }
        self._ticks = 0
        self.ahead = 0.0
        self.processes: list[Process] = []

    def run(
        self, script: Script | str, keys: Sequence[str], args: Sequence[Argument], client: Client | None = None
    ) -> Any:
        """What Redis answers. ``client`` is told of changes: called with a key."""
        self.expire()
        self._ticks += 1
        if script == "PING":
            return b"PONG"
        if script == "HGET":
            answer = self.hashes.get(keys[0], {}).get(str(args[0]))
            return None if answer is None else answer.encode()
        if script == "TIME":
            return [str(part).encode() for part in divmod(self._now(), 1_000_000)]
        assert isinstance(script, Script)
        texts = [arg.decode() if isinstance(arg, bytes) else str(arg) for arg in args]
        self._client, self._declared = client, frozenset(keys if script.tracks else ())
        try:
            return self._scripts[script](list(keys), texts)
        finally:
            self._client, self._declared = None, frozenset()

    def forget(self, client: Client) -> None:
        """The client is gone."""
        for clients in self._tracking.values():
            clients.pop(client, None)

    def all_keys(self) -> set[str]:
        """Those of the access cache."""
        self.expire()
        return {*self.hashes, *self.sets} - {LISTENED}

    def answers(self) -> list[str]:
        """All that are kept, valid or not."""
        self.expire()
        values = (value for fields in self.hashes.values() for value in fields.values())
        return [value for value in values if "userId" in value]

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

    def _look(self, keys: list[str], args: list[str]) -> Any:
        tokens, users, ledgers, token, *own = keys
        digest, room, user, epoch, memory, wait = args
        self._read(token)
        answer = self.hashes.get(token, {}).get(room)
        known = _decoded(answer)
        has_user = isinstance(known.get("userId"), str)
        user = known["userId"] if has_user else user
        self._read(f"{users}{user}")
        valid = has_user and digest in self.sets.get(f"{users}{user}", ())
        standing = known.get("epoch") == epoch and 0 < known.get("askedAt", 0) <= self._now()
        if valid and standing and known.get("freshUntil", 0) * 1_000_000 > self._now():
            assert answer is not None
            return [str(self._now()).encode(), answer.encode()]
        if user and not valid:
            self._taken(f"{ledgers}{user}", f"{users}{user}", tokens, digest, self._now(), memory)
        if not standing or room not in self.hashes.get(token, {}):
            replaced = ',"replaced":true' if valid or known.get("replaced") else ""
            self.write(token, room, f'{{"epoch":"{epoch}","askedAt":{self._now()}{replaced}}}')
            for field, value in list(self.hashes[token].items()):
                known = _decoded(value)
                over = known.get("freshUntil", 9e9) * 1_000_000 if "userId" in known else known.get("askedAt", 9e15)
                if field != room and over + int(memory) * 1000 < self._now():
                    self._remove_field(token, field)
        self._extend(token, int(wait))
        self._read(token, *own)
        return [str(self._now()).encode(), answer.encode() if answer and valid else None]

    def _store(self, keys: list[str], args: list[str]) -> int:
        token, user, _ = keys
        done = self._stored(*keys, *args)
        self._read(token, user)
        return done

    def _stored(
        self,
        token: str,
        user: str,
        ledger: str,
        digest: str,
        room: str,
        answer: str,
        keep: str,
        asked: str,
        memory: str,
        most: str,
    ) -> int:
        tokens = token.removesuffix(digest)
        if self._taken(ledger, user, tokens, digest, int(asked), memory) > int(asked):
            return 0
        standing = self.hashes.get(token, {}).get(room)
        if standing is None or _decoded(standing).get("askedAt", 0) > int(asked):
            return 0
        many = len(self.hashes[token]) > int(most)
        if many or not int(keep):
            self._remove_field(token, room)
            return 2 if many else 1
        if digest not in self.sets.get(user, ()):
            for field, value in list(self.hashes[token].items()):
                if "askedAt" not in _decoded(value) or "userId" in _decoded(value):
                    self._remove_field(token, field)
        self.write(token, room, answer)
        new = digest not in self.sets.get(user, ())
        if new:
            self.sets.setdefault(user, set()).add(digest)
            self._changed(user)
        should = self.hashes.setdefault(ledger, {})
        for field, key in (("user", user), (digest, token)):
            self._extend(key, int(keep) + int(memory))
            should[field] = str(self._now() + int(self.lives(key) + 1) * 1000)
        self._extend(ledger, int(keep) + 2 * int(memory))
        past = self._now() - int(memory) * 1000
        for old in [field for field, end in should.items() if len(field) == len(digest) and int(end) < past]:
            if new:
                del should[old]
                self.remove(user, old)
        return 1

    def _compare(self, keys: list[str], args: list[str]) -> Any:
        user, ledger, *tokens = keys
        self._read(*keys)
        should = self.hashes.get(ledger, {})

        def expected(field: str) -> int:
            return int(int(should.get(field, 0)) - 10_000 > self._now())

        missing = int(user not in self.sets and expected("user"))
        result: list[Any] = [str(self._now()).encode(), missing, should.get("taken", "0").encode()]
        for token in tokens:
            digest, count, *args = args
            rooms, args = args[: int(count)], args[int(count) :]
            fields = self.hashes.get(token, {}) if digest in self.sets.get(user, ()) else None
            values = [] if not fields else [fields[room].encode() if room in fields else None for room in rooms]
            answered = int(any('"userId"' in value or '"replaced"' in value for value in (fields or {}).values()))
            result.append([expected(digest), values, answered])
        return result

    def _hold(self, keys: list[str], args: list[str]) -> int:
        self._read(*keys)
        return len(keys)

    def _clear(self, keys: list[str], args: list[str]) -> list[bytes]:
        (user, tokens, ledger), (one_room, room, memory) = keys, args
        changed = []
        should = self.hashes.get(ledger, {})
        for digest in self.sets.get(user, ()):
            token = f"{tokens}{digest}"
            if one_room == "0":
                self.delete(token)
            elif room in self.hashes.get(token, {}):
                changed.append(digest.encode())
                self._remove_field(token, room)
                if token not in self.hashes:
                    should.pop(digest, None)
        if one_room == "0":
            self.delete(user, ledger)
        self.hashes.setdefault(ledger, {})["taken" if one_room == "0" else "cleared"] = str(self._now())
        self._extend(ledger, int(memory))
        return changed

    def _listen(self, keys: list[str], args: list[str]) -> Any:
        (heard,), (me, epoch, since, until, patience) = keys, args
        rows = {who: row.split() for who, row in self.hashes.get(heard, {}).items() if who != me}
        rows = {
            who: row for who, row in rows.items() if len(row) == 4 and row[3] == epoch and "".join(row[:3]).isdigit()
        }
        now = max([self._now(), *(int(row[2]) + 1 for row in rows.values())])
        first = int(since) or now
        ending = int(until) or first
        rows = {who: row for who, row in rows.items() if int(row[2]) + int(patience) >= now}
        while earlier := [int(a) for a, b, *_ in rows.values() if int(a) < first <= int(b)]:
            first = min(earlier)
        self.hashes[heard] = {who: " ".join(row) for who, row in rows.items()}
        self.hashes[heard][me] = f"{first} {ending} {now} {epoch}"
        began = int(since) or now
        behind = sum(int(a) < began and int(b) < began for a, b, *_ in rows.values())
        if rows and not int(since):
            for process in self.processes:
                process.nudged = True
        return [str(first).encode(), len(rows) + 1, behind]

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
            return max(int(should.get("taken", 0)), int(should.get("cleared", 0)))
        self.hashes.setdefault(ledger, {})["taken"] = str(self._now())
        self._extend(ledger, int(memory))
        return self._now()

    def _remove_field(self, key: str, field: str) -> None:
        if self.hashes.get(key, {}).pop(field, None) is not None:
            self._changed(key)
            if not self.hashes[key]:
                del self.hashes[key]
                self._ends.pop(key, None)

    def _extend(self, key: str, milliseconds: float) -> None:
        if self.lives(key) < milliseconds:
            self._ends[key] = self._milliseconds() + milliseconds
            self._changed(key)

    def _read(self, *keys: str) -> None:
        if self._client is not None:
            for key in self._declared.intersection(keys):
                self._tracking.setdefault(key, {})[self._client] = None

    def _changed(self, key: str) -> None:
        for client in self._tracking.pop(key, ()):
            if client is not self._client:
                client(key)

    def _milliseconds(self) -> float:
        return self._clock.seconds() * 1000

    def _now(self) -> int:
        return int((EPOCH + self._clock.seconds() + self.ahead) * 1_000_000) + self._ticks


def _decoded(answer: str | None) -> dict[str, Any]:
    """As JSON, or nothing when it cannot be read."""
    try:
        known = msgspec.json.decode(answer or "", type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
    readable = isinstance(known.get("userId"), str) or isinstance(known.get("askedAt"), int | float)
    return known if readable else {}


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
    ``source`` what the checker vouches for, ``ahead`` what its wall clock shows too much.
    """

    def __init__(self, redis: MemoryRedis, clock: Clock, auth: Auth | None = None, *, available: bool = True) -> None:
        self.redis = redis
        self.clock = clock
        self.bus = FakeBus({}, available=available)
        self.counters = Counters()
        self.ahead = 0.0
        self.source = ""
        self.checker_changed: Callable[[], None]
        self.questions: list[Question] = []
        self.stale: list[tuple[str | None, str | None, str | None, bool]] = []
        self._executed: list[Any] = []
        self._unheard: dict[str, None] = {}
        self._client = self._unheard.setdefault
        self._settling: list[Deferred[None]] = []
        self.nudged = False
        redis.processes.append(self)
        self.bus.settled = self._settled  # type: ignore[method-assign]
        self.cache = AccessCache(self, self.bus, auth or Auth(), clock, self.counters, self.now, lambda: 1.0)
        self.cache.add_listener(self)
        self._begin()

    def now(self) -> float:
        return EPOCH + self.clock.seconds() + self.ahead

    def ask(self, token: str | Token, room: str | None = "r", asker: IAsker | None = None) -> Outcome:
        """As the gateway asks."""
        return Outcome(self.cache.check(token if isinstance(token, Token) else Token(token), room, asker))

    # The auth service

    def check(self, token: Token, room_id: str | None, turn: str = "") -> Deferred[Grant]:
        question = Question(token.value, room_id, Deferred())
        self.questions.append(question)
        return question.answer

    def vouches(self, source: str) -> bool:
        return source == self.source

    def on_change(self, listener: Callable[[], None]) -> None:
        self.checker_changed = listener

    # The gateway

    def access_stale(self, digest: str | None, user_id: str | None, room_id: str | None, revoked: bool) -> None:
        self.stale.append((digest, user_id, room_id, revoked))

    # Redis, a step at a time

    def execute(self) -> None:
        """Redis does the oldest of what it has not done yet; nobody has heard of it."""
        call = self.bus.calls[len(self._executed)]
        self._executed.append(self.redis.run(call.command, call.keys, call.args, self._client))

    def reply(self) -> None:
        """The oldest answer arrives."""
        self.bus.calls.pop(0).reply.callback(self._executed.pop(0))

    def hear(self) -> None:
        """Word of what changed arrives, in one message as Redis sends it."""
        changed = [key for key in self._unheard if key.startswith("access:")]
        self._unheard.clear()
        if changed and self.bus.available:
            self.bus.tracked["access:"](changed)
        if self.nudged and self.bus.available:
            self.nudged = False
            for listener in self.bus._channels[LISTENED]:
                listener(b"")
        settling, self._settling = self._settling, []
        for each in settling:
            each.callback(None)

    def publish(self, body: bytes) -> None:
        """A message on ``auth:invalidate`` arrives."""
        for listener in self.bus._channels["auth:invalidate"]:
            listener(body)

    def down(self) -> None:
        """Redis is lost; what it has done already is done, and what it says meanwhile is missed."""
        self._executed.clear()
        self._settling.clear()
        self.nudged = False
        self.redis.forget(self._client)
        self.bus.down()

    def up(self) -> None:
        """Redis is back."""
        self._unheard.clear()
        self.bus.up()
        self._begin()

    @property
    def busy(self) -> bool:
        told = any(key.startswith("access:") for key in self._unheard)
        return bool(self.bus.calls) or told or bool(self._settling) or (self.nudged and self.bus.available)

    def _begin(self) -> None:
        """Until it is known who has listened."""
        while self.bus.available and not (self.cache.settled and self.cache._listening.believes(2**60)):
            settle(*self.redis.processes)
            self.clock.advance(AT_ONCE)
            for process in self.redis.processes:
                process.cache._listening.sweep()
        settle(*self.redis.processes)

    def _settled(self) -> Deferred[None]:
        settled: Deferred[None] = Deferred()
        self._settling.append(settled)
        return settled


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

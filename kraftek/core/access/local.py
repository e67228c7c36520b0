"""The access cache in memory, and which of it may have changed in Redis. Used by :mod:`kraftek.core.access.cache`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from msgspec import Struct

from kraftek.contract.errors import PeerError
from kraftek.contract.names import INVALIDATION, token_key, user_key
from kraftek.core.access.redis import CachedGrant

__all__ = ["Answers", "Changes", "Denials", "Key", "Recent", "names"]

Key = tuple[str, str | None]
"""What a check is about: a token's digest, and a room or none."""

V = TypeVar("V")

CHANGES_KEPT = 10_000
"""Changes remembered. An answer older than all of them counts as changed."""


def names(key: Key, user_id: str) -> tuple[Hashable, ...]:
    """The names under which a change concerns an answer: its two keys in Redis, and the user in that room."""
    digest, room_id = key
    return token_key(digest), user_key(user_id), (user_id, room_id)


def _keys_in_redis(key: Key, cached: CachedGrant) -> tuple[str, str]:
    return token_key(key[0]), user_key(cached.user_id)


class Changes:
    """Changes in order. ``position`` is the number of the latest; positions are only compared."""

    def __init__(self) -> None:
        self.position = 0
        self._forgotten = 0
        self._last: OrderedDict[Hashable, int] = OrderedDict()

    def record(self, *names: Hashable) -> None:
        """Something with these names changed."""
        self.position += 1
        for name in names:
            self._last[name] = self.position
            self._last.move_to_end(name)
            if len(self._last) > CHANGES_KEPT:
                _, self._forgotten = self._last.popitem(last=False)

    def record_all(self) -> None:
        """Anything may have changed."""
        self.position += 1
        self._forgotten = self.position
        self._last.clear()

    def since(self, position: int, names: Iterable[Hashable]) -> bool:
        """Whether something with one of these names may have changed after ``position``."""
        return self._forgotten > position or any(self._last.get(name, 0) > position for name in names)


class Answers:
    """The grants used most recently, each with the position in :class:`Changes` at which it was valid.

    ``size``: how many are cached; beyond that the oldest is dropped.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._answers: OrderedDict[Key, tuple[CachedGrant, int]] = OrderedDict()
        self._named: dict[str, dict[Key, None]] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def __getitem__(self, key: Key) -> tuple[CachedGrant, int]:
        return self._answers[key]

    def get(self, key: Key) -> tuple[CachedGrant, int] | None:
        """The answer, and the position at which it was valid."""
        return self._answers.get(key)

    def put(self, key: Key, cached: CachedGrant, position: int) -> None:
        """Cache an answer in place of an older one."""
        self.drop(key)
        self._answers[key] = cached, position
        for name in _keys_in_redis(key, cached):
            self._named.setdefault(name, {})[key] = None
        if len(self._answers) > self.size:
            self.drop(next(iter(self._answers)))

    def drop(self, key: Key) -> None:
        """Drop an answer, if it is cached."""
        known = self._answers.pop(key, None)
        if known is None:
            return
        for name in _keys_in_redis(key, known[0]):
            keys = self._named[name]
            del keys[key]
            if not keys:
                del self._named[name]

    def named(self, name: str) -> tuple[Key, ...]:
        """The answers that depend on this key in Redis."""
        return tuple(self._named.get(name, ()))

    def clear(self) -> None:
        """Drop all answers."""
        self._answers.clear()
        self._named.clear()


class Recent(Generic[V]):
    """A value for each name, of the ``size`` names that were used most recently. ``complete``: there were no more."""

    def __init__(self, size: int) -> None:
        self.complete = True
        self._size = size
        self._values: OrderedDict[str, V] = OrderedDict()

    def get(self, name: str) -> V | None:
        """The value, if it is remembered."""
        return self._values.get(name)

    def put(self, name: str, value: V) -> None:
        """Remember a value in place of an older one."""
        self._values[name] = value
        self._values.move_to_end(name)
        if len(self._values) > self._size:
            self._values.popitem(last=False)
            self.complete = False


class _Denial(Struct, frozen=True):
    """``until``: seconds, by the clock. ``position``: changes after it make the denial invalid."""

    error: PeerError
    until: float
    position: int


class Denials:
    """What the auth service denied last: ``size`` denials, each for ``ttl`` seconds of a clock that does not jump."""

    def __init__(self, size: int, ttl: float) -> None:
        self._size = size
        self._ttl = ttl
        self._denials: OrderedDict[Key, _Denial] = OrderedDict()

    def get(self, key: Key, now: float, changes: Changes) -> PeerError | None:
        """The denial, unless it is too old, or the token's cached access or anybody's has changed since."""
        denial = self._denials.get(key)
        if denial is None or denial.until <= now:
            return None
        changed = changes.since(denial.position, (token_key(key[0]), INVALIDATION))
        return None if changed else denial.error

    def put(self, key: Key, error: PeerError, now: float, position: int) -> None:
        """Remember a denial in place of an older one. ``position``: of the changes before the question was asked."""
        # A copy: with its traceback an error keeps the HTTP response and 34 frames, some 17 kB.
        self._denials[key] = _Denial(error.copy(), now + self._ttl, position)
        self._denials.move_to_end(key)
        if len(self._denials) > self._size:
            self._denials.popitem(last=False)

    def clear(self) -> None:
        """Drop all denials."""
        self._denials.clear()

"""What this process knows of access, and what of it may have changed. Used by :mod:`kraftek.core.access.cache`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable

from kraftek.contract.names import token_key, user_key
from kraftek.core.access.redis import Kept

__all__ = ["Answers", "Changes", "Key", "names"]

Key = tuple[str, str | None]
"""What is asked about: a token's digest, and a room or none."""

CHANGES_KEPT = 10_000
"""Changes remembered. Who wants to know about older ones is told that there may have been one."""


def names(key: Key, user_id: str) -> tuple[Hashable, ...]:
    """Under what a change concerns an answer: its two keys in Redis, and the user in that room."""
    digest, room_id = key
    return token_key(digest), user_key(user_id), (user_id, room_id)


def _keys_in_redis(key: Key, kept: Kept) -> tuple[str, str]:
    return token_key(key[0]), user_key(kept.user_id)


class Changes:
    """What changed, in order. ``position`` is where we are now; positions are compared, nothing else."""

    def __init__(self) -> None:
        self.position = 0
        self._forgotten = 0
        self._last: OrderedDict[Hashable, int] = OrderedDict()

    def record(self, name: Hashable) -> None:
        """Something with this name changed."""
        self.position += 1
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
    """The yeses that were used last, each with the position in :class:`Changes` at which it held.

    ``size``: more are not kept; the oldest goes first.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: OrderedDict[Key, tuple[Kept, int]] = OrderedDict()
        self._named: dict[str, dict[Key, None]] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def __getitem__(self, key: Key) -> tuple[Kept, int]:
        return self._answers[key]

    def get(self, key: Key) -> tuple[Kept, int] | None:
        """The answer, and when it held."""
        return self._answers.get(key)

    def put(self, key: Key, kept: Kept, position: int) -> None:
        """Remember an answer instead of the one before."""
        self.drop(key)
        self._answers[key] = kept, position
        for name in _keys_in_redis(key, kept):
            self._named.setdefault(name, {})[key] = None
        if len(self._answers) > self._size:
            self.drop(next(iter(self._answers)))

    def drop(self, key: Key) -> None:
        """Forget an answer, if it is there."""
        known = self._answers.pop(key, None)
        if known is None:
            return
        for name in _keys_in_redis(key, known[0]):
            keys = self._named[name]
            del keys[key]
            if not keys:
                del self._named[name]

    def named(self, name: str) -> tuple[Key, ...]:
        """Which answers depend on this key in Redis."""
        return tuple(self._named.get(name, ()))

    def clear(self) -> None:
        """Forget them all."""
        self._answers.clear()
        self._named.clear()

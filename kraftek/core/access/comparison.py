"""What became of cached answers whose keys in Redis were announced as changed. Used by :mod:`.cache`.

Redis does not say who changed what, nor whether a key was written, deleted or has expired, and it announces one change
of a key that was read, and then no more. So the answers that depend on the key are compared with Redis, which reads the
key again.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from itertools import islice

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from kraftek.contract.metrics import Counters
from kraftek.contract.names import token_key, user_key
from kraftek.core.access.local import Answers, Changes, Key, Recent
from kraftek.core.access.redis import CachedGrant, Compared, SharedAnswers

__all__ = ["Comparison"]

COMPARED = 100
"""Cached answers that are compared with Redis when a key changed. A deletion removes all that depend on the key, so a
part of them shows it."""

REMEMBERED = 30.0
"""Seconds that an answer stays in Redis at least when it can no longer be used: a minute, less what clocks differ."""

LATELY = 10_000_000
"""Microseconds within which Redis's announcement of a deletion arrives, of a key that nobody knows when it was read."""

Stale = Callable[[str | None, str | None, str | None, bool], None]
"""As :meth:`kraftek.contract.interfaces.IAccessListener.access_stale`."""


class Fate(Enum):
    """What became of an answer. An old one has expired, or a later one has taken its place."""

    VALID = "valid"
    OLD = "old"
    REVOKED = "revoked"


class Comparison:
    """Compares the ``answers`` in memory with Redis, drops those that are gone, and notifies ``stale``.

    ``users``: by digest. ``counts``: whether an answer in Redis, about that room, may be used.
    """

    _log = Logger()

    def __init__(
        self,
        shared: SharedAnswers,
        answers: Answers,
        users: Recent[str],
        changes: Changes,
        counts: Callable[[CachedGrant, str | None], bool],
        stale: Stale,
        counters: Counters,
    ) -> None:
        self._shared = shared
        self._answers = answers
        self._users = users
        # Until when the deletions of a key were acted on. An answer is under two keys.
        self._acted_on: Recent[int] = Recent(2 * answers.size)
        self._changes = changes
        self._counts = counts
        self._stale = stale
        self._counters = counters
        self._changed: set[str] = set()
        self.running = False

    def read(self, time: int, *names: str) -> None:
        """These keys were read at this time, microseconds by Redis's clock: nothing from before it is news."""
        for name in names:
            if self._acted_on.get(name) is None:
                self._acted_on.put(name, time)

    def changed(self, *names: str) -> None:
        """Something may have changed these keys."""
        self._changed.update(name for name in names if name.startswith((token_key(""), user_key(""))))
        if self._changed and not self.running:
            self.running = True
            Deferred.fromCoroutine(self._run())

    async def _run(self) -> None:
        """Keys that change meanwhile are next."""
        try:
            while self._changed:
                changed, self._changed = self._changed, set()
                await self._look_at(changed)
        finally:
            self.running = False

    async def _look_at(self, changed: set[str]) -> None:
        position = self._changes.position
        depending = {name: tuple(islice(self._answers.named(name), COMPARED)) for name in changed}
        owners = {name: self._owner(name) for name in changed}
        known = {key: self._answers[key] for keys in depending.values() for key in keys}
        try:
            found = await self._compare(owners, depending, known)
        except Exception:  # noqa: BLE001  # the keys are not tracked any more: it counts as revoked
            self._log.failure("Comparing cached access with Redis failed: a bug, please report it")
            found = {}
        fates = {
            key: self._fate(key, answer[0], found.get(answer[0].user_id), position)
            for key, answer in known.items()
            if self._answers.get(key) is answer  # one that was replaced meanwhile is newer than what was found
        }
        for name, keys in depending.items():
            if keys:
                self._tell(name, {fates[key] for key in keys if key in fates})
            elif self._is_revoked(name, owners[name], found):
                # There may be sockets by answers that had to make room for others, or from before a gap.
                self._tell(name, {Fate.REVOKED})
            compared = found.get(owners[name] or "")
            if compared is not None:
                self._acted_on.put(name, compared.time)

    async def _compare(
        self,
        owners: dict[str, str | None],
        depending: dict[str, tuple[Key, ...]],
        known: dict[Key, tuple[CachedGrant, int]],
    ) -> dict[str, Compared | None]:
        """What Redis has, by user: one look at each."""
        asked: dict[str, dict[str, dict[str | None, None]]] = {}
        for name, owner in owners.items():
            if owner is not None:
                tokens = asked.setdefault(owner, {})
                if name.startswith(token_key("")):
                    tokens.setdefault(name.removeprefix(token_key("")), {})
            for digest, room_id in depending[name]:
                tokens = asked.setdefault(known[digest, room_id][0].user_id, {})
                tokens.setdefault(digest, {})[room_id] = None
        looks = [
            Deferred.fromCoroutine(
                self._shared.compare(user_id, {digest: tuple(rooms) for digest, rooms in tokens.items()})
            )
            for user_id, tokens in asked.items()
        ]
        return dict(zip(asked, await gatherResults(looks, consumeErrors=True), strict=True))

    def _fate(self, key: Key, cached: CachedGrant, found: Compared | None, position: int) -> Fate:
        now = None if found is None else found.answers.get(key)
        if now is not None and now.asked_at == cached.asked_at and now.epoch == cached.epoch:
            self._answers.put(key, cached, position)
            return Fate.VALID
        if now is not None and self._counts(now, key[1]):
            self._answers.put(key, now, position)
            return Fate.OLD
        self._answers.drop(key)
        if found is None or _is_deleted(found, key[0], cached.asked_at):
            return Fate.REVOKED
        # One that is old may have made room for others in the hash of its token.
        deleted = key[0] in found.expected and cached.fresh_until > self._shared.now() - REMEMBERED
        return Fate.REVOKED if deleted else Fate.OLD

    def _is_revoked(self, name: str, owner: str | None, found: dict[str, Compared | None]) -> bool:
        """Whether something was deleted, since it was looked at, under a key of which no answer is remembered."""
        if owner is None:
            return not self._users.complete  # nobody was let in by this token, or that is forgotten
        compared = found.get(owner)
        if compared is None:
            return True
        digest = name.removeprefix(token_key("")) if name.startswith(token_key("")) else ""
        return _is_deleted(compared, digest, self._acted_on.get(name) or compared.time - LATELY)

    def _owner(self, name: str) -> str | None:
        """The user that a key is about, if known."""
        if name.startswith(user_key("")):
            return name.removeprefix(user_key(""))
        return self._users.get(name.removeprefix(token_key("")))

    def _tell(self, name: str, fates: set[Fate]) -> None:
        if fates <= {Fate.VALID}:
            return
        revoked = Fate.REVOKED in fates
        self._counters.access_invalidations += revoked
        if name.startswith(token_key("")):
            self._stale(name.removeprefix(token_key("")), None, None, revoked)
        else:
            self._stale(None, name.removeprefix(user_key("")), None, revoked)


def _is_deleted(found: Compared, digest: str, asked_at: int) -> bool:
    """Whether what is gone was deleted, and has not merely expired."""
    return found.missing or digest in found.gone or found.taken > asked_at

"""What a client has missed of a topic, read in its history. Used by :mod:`kraftek.core.resuming`."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred

from kraftek.contract.errors import NotPublished, Refusal
from kraftek.contract.interfaces import ITopicLogs, Missed
from kraftek.contract.messages import Since
from kraftek.contract.turns import Turns
from kraftek.core.catch_up import CatchUp
from kraftek.core.followed import Followed
from kraftek.core.following import Following
from kraftek.core.history_turns import HistoryTurns
from kraftek.core.session import Session

__all__ = ["MissedMessages"]

T = TypeVar("T")

_ATTEMPTS = 3
"""Times that a history is read for a client, if its topic gets another epoch meanwhile, or too much is delivered."""


class MissedMessages:
    """Reads for clients when ``reading`` lets them. Who asked for what another one did gets it in ``turns``."""

    def __init__(self, following: Following, logs: ITopicLogs, reading: HistoryTurns, turns: Turns) -> None:
        self._following = following
        self._logs = logs
        self._reading = reading
        self._turns = turns
        self._asked: dict[Hashable, list[Deferred[Any]]] = {}

    async def find(
        self, session: Session, topic: Followed, since: Since | None, last: int, catch_up: CatchUp
    ) -> Missed | None:
        """What the client gets, up to somewhere in the topic's own epoch; ``None`` when it cannot be read."""
        user_id = session.user_id
        assert user_id is not None
        for _ in range(_ATTEMPTS):
            if not topic.epoch:
                await self._following.position(topic)
            if not topic.epoch:
                return None
            if since is None and not last:
                return Missed(topic.epoch, topic.offset)
            if not await self._reading.come(session, user_id):
                return None
            missed: Missed | None = None
            try:
                catch_up.clear()
                delivered = topic.offset
                missed = await self._read(topic.topic, since, last)
            except (NotPublished, Refusal):
                return None
            finally:
                self._reading.end(session, user_id, () if missed is None else missed.messages)
            if missed is None:
                return None
            if missed.epoch != topic.epoch:
                await self._following.position(topic)
            elif missed.offset >= delivered and not catch_up.overrun:
                return missed
        return None

    async def _read(self, topic: str, since: Since | None, last: int) -> Missed | None:
        """What was missed since then, or the last messages, and in that case why not."""
        missed, most = None, self._following.most
        if since is not None:
            read = partial(self._logs.read, topic, since.epoch, since.offset, most)
            missed = await self._read_for_all((topic, since.epoch, since.offset), read)
            if missed is None or missed.reason is None or not last:
                return missed
        page = await self._read_for_all((topic, last), partial(self._logs.page, topic, "", 0, last, most))
        if page is None or page.first is None:
            return None
        end = page.messages[-1][0] if page.messages else page.first - 1
        return Missed(page.epoch, end, None if missed is None else missed.reason, page.messages)

    async def _read_for_all(self, asked: Hashable, read: Callable[[], Deferred[T | None]]) -> T | None:
        """As clients that were on one gateway ask for the same, it is read once for all who ask meanwhile."""
        answer: Deferred[Any] = Deferred()
        waiting = self._asked.setdefault(asked, [])
        waiting.append(answer)
        if len(waiting) == 1:
            read().addBoth(self._was_read_for_all, asked)
        return await answer  # type: ignore[no-any-return]  # of what is asked so

    def _was_read_for_all(self, result: object, asked: Hashable) -> None:
        first, *others = self._asked.pop(asked)
        first.callback(result)
        for waiting in others:
            self._turns.next_turn().addCallback(_give, waiting, result)


def _give(_: None, waiting: Deferred[Any], result: object) -> None:
    waiting.callback(result)

"""The history of topics in Redis, as a gateway reads it. Called by :mod:`kraftek.core.following`.

The keys, and how messages come there, are in :mod:`kraftek.contract.history`.
"""

from __future__ import annotations

from collections.abc import Sequence
from secrets import token_hex
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import NotPublished
from kraftek.contract.history import LIBRARY
from kraftek.contract.interfaces import IBus, ITopicLogs, Missed, Numbered, Page, Recovered, TopicPosition
from kraftek.contract.log_once import OnceUntilItWorks
from kraftek.contract.lua import Argument, Script, lua
from kraftek.contract.names import GATEWAY_LEASES, HISTORY_FOLLOWING, HISTORY_RULES, history_position_key
from kraftek.core.history.rules import Rules

__all__ = ["FOLLOWED", "TopicLogs"]

FOLLOWED = 2.5
"""Seconds after which a gateway that has not said so again does not follow the rules. The others see that within a
second, while it still has its lease (:mod:`kraftek.core.rooms.leases`)."""

_STANDING = 60
"""Seconds for which the rules stand after the last gateway that has them."""

_HISTORY = "history"
_TEXTS = "texts"

READ = Script(lua(__package__, _HISTORY, _TEXTS, "read"))
PAGE = Script(lua(__package__, _HISTORY, _TEXTS, "page"))
COMPARE = Script(lua(__package__, _HISTORY, "compare"))
ORDER = Script(lua(__package__, _HISTORY, "order"))
RECOVER = Script(lua(__package__, _HISTORY, _TEXTS, "recover"))
FOLLOW = Script(lua(__package__, _HISTORY, "time", "follow"))

_AT_START = "1"


@implementer(ITopicLogs)
class TopicLogs:
    """Those of this Redis. ``rules``: those that this gateway was configured with."""

    _log = Logger()

    def __init__(self, bus: IBus, rules: Rules, gateway_id: str) -> None:
        self._bus = bus
        self._rules = rules
        self._gateway_id = gateway_id
        self._started = False
        self._once = OnceUntilItWorks()

    def follow(self) -> Deferred[bool]:
        starts = "" if self._started else _AT_START
        args: list[Argument] = [self._rules.text, token_hex(8), self._gateway_id, FOLLOWED, _STANDING, starts]
        following = self._bus.call(FOLLOW, [HISTORY_RULES, HISTORY_FOLLOWING, GATEWAY_LEASES], args)
        return following.addCallback(self._stand)

    def unfollow(self) -> Deferred[None]:
        return self._bus.call("ZREM", [HISTORY_FOLLOWING], [self._gateway_id]).addCallback(lambda _: None)

    def offer(self) -> Deferred[None]:
        loading = self._bus.call("FUNCTION", [], ["LOAD", LIBRARY])
        return loading.addCallbacks(lambda _: None, self._not_loaded)

    def read(self, topic: str, epoch: str, offset: int, most: int) -> Deferred[Missed | None]:
        reading = self._bus.call(READ, [HISTORY_RULES, history_position_key(topic)], [epoch, offset, most])
        return reading.addCallback(_missed)

    def page(self, topic: str, epoch: str, before: int, limit: int, most: int) -> Deferred[Page | None]:
        args: list[Argument] = [epoch, before, limit, most]
        reading = self._bus.call(PAGE, [HISTORY_RULES, history_position_key(topic)], args)
        return reading.addCallback(_page)

    def compare(self, positions: Sequence[TopicPosition]) -> Deferred[list[TopicPosition]]:
        keys = [history_position_key(topic) for topic, _, _ in positions]
        args = [word for _, epoch, offset in positions for word in (epoch, offset)]
        comparing = self._bus.call(COMPARE, [HISTORY_RULES, *keys], args)
        return comparing.addCallback(lambda elsewhere: [positions[number] for number in elsewhere])

    def order(self) -> Deferred[str | None]:
        return self._bus.call(ORDER, [HISTORY_RULES]).addCallback(lambda word: None if word is None else word.decode())

    def recover(self, word: str, entered: Sequence[TopicPosition], most: int) -> Deferred[Recovered]:
        epoch, _, number = word.partition(".")
        keys = [history_position_key(topic) for topic, _, _ in entered]
        args: list[Argument] = [epoch, number, most]
        for _, its_epoch, offset in entered:
            args += (its_epoch, offset)
        return self._bus.call(RECOVER, [HISTORY_RULES, *keys], args).addCallback(_recovered)

    def _stand(self, rules: bytes) -> bool:
        self._started = True
        same = rules.decode() == self._rules.text
        if same:
            self._once.works(HISTORY_RULES)
        else:
            line = "[rooms] is another one than that of a gateway that started later: what is kept goes by that one"
            self._once.failed(self._log.warn, line, about=HISTORY_RULES)
        return same

    def _not_loaded(self, failure: Failure) -> None:
        text = failure.getErrorMessage()
        if failure.check(NotPublished) or "already exists" in text or "unknown command" in text:
            return
        line = "Redis does not take the Function for services: {reason}"
        self._once.failed(self._log.error, line, about=LIBRARY, reason=text)


def _missed(answer: Any) -> Missed | None:
    if answer is None:
        return None
    epoch, offset, reason, *messages = answer
    return Missed(epoch.decode(), offset, None if reason is None else reason.decode(), _numbered(messages))


def _page(answer: Any) -> Page | None:
    if answer is None:
        return None
    if len(answer) == 1:
        return Page(answer[0].decode(), None)
    epoch, first, more, *messages = answer
    return Page(epoch.decode(), first, more == 1, _numbered(messages))


def _numbered(answer: Sequence[Any]) -> list[Numbered]:
    """Offsets and messages in turn."""
    return list(zip(map(int, answer[::2]), answer[1::2], strict=True))


def _recovered(answer: Any) -> Recovered:
    order, reason, *rooms = answer
    if reason is not None:
        return Recovered(order.decode(), reason.decode())
    *positions, messages = rooms
    return Recovered(
        order.decode(), None, [(epoch.decode(), offset) for epoch, offset in positions], list(map(tuple, messages))
    )

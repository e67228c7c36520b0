"""Which topics have a history, by their names. Made by :mod:`kraftek.daemon.assembly` of the configuration."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kraftek.contract.names import room_topic, user_topic
from kraftek.contract.settings import HistoryPolicy, RoomPolicy, Users
from kraftek.contract.wildcard import Wildcard

__all__ = ["Rules"]

_NOBODY = Users()


class Rules:
    """``text``: the rules as Redis has them, in order; empty if nothing has a history. For each pattern of topics
    ``[head, tail or false, messages, milliseconds, bytes]``, and where only some messages are kept their patterns, each
    as a list of its parts.
    """

    def __init__(self, policies: Sequence[RoomPolicy], users: Users = _NOBODY) -> None:
        topics: list[tuple[Wildcard, HistoryPolicy]] = [
            (Wildcard.of(room_topic(policy.pattern)), policy) for policy in policies
        ]
        if users.history:
            topics.append((Wildcard.of(user_topic("*")), users))
        self._patterns = [(pattern, policy.history > 0) for pattern, policy in topics]
        rules = [_rule(pattern, policy) for pattern, policy in topics]
        self.text = msgspec.json.encode(rules).decode() if any(policy.history for _, policy in topics) else ""

    def __bool__(self) -> bool:
        return bool(self.text)

    def keep(self, topic: str) -> bool:
        """Whether the topic has one: the first pattern that covers it says so."""
        return next((kept for pattern, kept in self._patterns if pattern.covers(topic)), False)


def _rule(pattern: Wildcard, policy: HistoryPolicy) -> tuple[object, ...]:
    bounds = policy.history, round(policy.history_ttl * 1000), policy.history_bytes
    some = ([each.split(":") for each in policy.events],) if policy.events else ()
    return (pattern.head, False if pattern.tail is None else pattern.tail, *bounds, *some)

"""Which topics have a history, by their names. Made by :mod:`kraftek.daemon.assembly` of the configuration."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kraftek.contract.names import room_topic
from kraftek.contract.settings import RoomPolicy

__all__ = ["Rules"]


class Rules:
    """``text``: the rules as Redis has them, in order; empty if nothing has a history. For each pattern of topics
    ``[head, tail or false, messages, milliseconds, bytes]``, and where only some messages are kept their patterns, each
    as a list of its parts.
    """

    def __init__(self, policies: Sequence[RoomPolicy]) -> None:
        self._patterns = [(*_parts(policy.pattern), policy.history > 0) for policy in policies]
        rules = [_rule(policy) for policy in policies]
        self.text = msgspec.json.encode(rules).decode() if any(policy.history for policy in policies) else ""

    def __bool__(self) -> bool:
        return bool(self.text)

    def keep(self, topic: str) -> bool:
        """Whether the topic has one: the first pattern that covers it says so."""
        return next((kept for head, tail, kept in self._patterns if _covers(head, tail, topic)), False)


def _rule(policy: RoomPolicy) -> tuple[object, ...]:
    bounds = policy.history, round(policy.history_ttl * 1000), policy.history_bytes
    some = ([pattern.split(":") for pattern in policy.events],) if policy.events else ()
    return (*_parts(policy.pattern), *bounds, *some)


def _parts(pattern: str) -> tuple[str, str | bool]:
    head, star, tail = pattern.partition("*")
    return room_topic(head), tail if star else False


def _covers(head: str, tail: str | bool, topic: str) -> bool:
    if isinstance(tail, bool):
        return topic == head
    return len(topic) >= len(head) + len(tail) and topic.startswith(head) and topic.endswith(tail)

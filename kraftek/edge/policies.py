"""What happens to messages of services while a client does not read, by their types: ``[events]`` in the configuration.

Asked by :mod:`kraftek.edge.backlogs` alone: as long as clients read nobody looks here.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from kraftek.contract.messages import Delivery
from kraftek.contract.settings import EventPolicy

__all__ = ["Policies"]

_KNOWN = 4096
"""Types that are remembered. There are as many as services make up."""

_NONE = Raw(b"")


class Policies:
    """The policies, of which the first whose pattern covers a type counts."""

    def __init__(self, policies: Sequence[EventPolicy] = ()) -> None:
        self._policies = [(policy, policy.pattern.split(":")) for policy in policies]
        self._keys = {policy.pattern: _decoder(policy.key) for policy in policies if policy.key}
        self._known: dict[str, EventPolicy | None] = {}

    def of(self, type: str) -> EventPolicy | None:
        """The policy of messages of this type; ``None`` when it has none, and they wait in order."""
        try:
            return self._known[type]
        except KeyError:
            parts = type.split(":")
            found = next((policy for policy, pattern in self._policies if _covers(pattern, parts)), None)
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[type] = found
            return found

    def place(self, policy: EventPolicy, delivery: Delivery) -> Hashable:
        """What messages have in common of which the latest counts; ``None`` when this is not one of them.

        One whose payload has no such key is kept in order: nobody can say which one it would replace.
        """
        if policy.policy != "latest":
            return None
        if not policy.key:
            return delivery.room_id, delivery.type
        try:
            value = self._keys[policy.pattern].decode(delivery.payload).value
        except (msgspec.DecodeError, RecursionError):
            return None
        return (delivery.room_id, delivery.type, bytes(value)) if value else None


def _covers(pattern: list[str], parts: list[str]) -> bool:
    return len(pattern) == len(parts) and all(p in ("*", part) for p, part in zip(pattern, parts, strict=True))


def _decoder(key: str) -> msgspec.json.Decoder[Any]:
    """Reads that key of an object, and skips the others."""
    return msgspec.json.Decoder(msgspec.defstruct("Keyed", [("value", Raw, _NONE)], rename={"value": key}))

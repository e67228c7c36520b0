"""Who has got a message: collects what all gateways say of it. No I/O: :mod:`kraftek.service.requests` calls it.

Which gateways have to say something, and who is in a room, is read from Redis before the message is sent
(``addressed.lua``). So what a gateway owes that has died is known, too.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from msgspec import Raw, Struct
from msgspec.structs import replace

from kraftek.contract.lua import Script, lua
from kraftek.contract.messages import RECEIPT_LONGEST, RECEIPT_USERS, ReceiptName, ReceiptPart
from kraftek.contract.names import GATEWAY_OWN, RECEIPT, gateway_of
from kraftek.contract.surrogates import encode
from kraftek.service.messages import Message

__all__ = ["ADDRESSED", "GRACE", "Collector", "Receipt", "check_receipt", "with_receipt"]

GRACE = 1.0
"""Seconds that gateways have to say how it ended."""

ADDRESSED = Script(lua(__package__, "addressed"))

_NOBODY_KNOWN = ""
"""In place of the gateways, where none has a lease: after a loss of Redis's data they have it back one by one."""


class Receipt(Struct, frozen=True):
    """What became of a message to a room or to users: everybody to whom it was addressed is in one of the four.

    ``acknowledged``: a client of theirs has handled it. ``slow``: connected, and no client of theirs has acknowledged
    it in time; they may have got it all the same, or not know how to say so. ``offline``: not connected at all; only
    of users that were named. ``owed``: a gateway did not say in time whether they have, because it died, was paused, or
    had too many others to wait for. ``complete``: no gateway owes anything.
    """

    acknowledged: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    offline: tuple[str, ...] = ()
    owed: tuple[str, ...] = ()
    complete: bool = True


def check_receipt(message: Message, seconds: Any) -> None:
    """Raise :class:`ValueError` unless a receipt can be had for this message, within so many seconds."""
    if not (isinstance(seconds, int | float) and isfinite(seconds) and 0 < seconds <= RECEIPT_LONGEST):
        raise ValueError(f"{message.type}: expected a receipt within more than 0 and at most {RECEIPT_LONGEST:g} s")
    command = message.type == "disconnect" or message.type.startswith(GATEWAY_OWN)
    if command or bool(message.room_id) == bool(message.user_ids) or message.recipients or message.everybody:
        raise ValueError(f"{message.type}: expected a message to a room or users: there is no receipt for others")
    if len(set(message.user_ids or ())) > RECEIPT_USERS:
        raise ValueError(f"{message.type}: expected at most {RECEIPT_USERS} users for a receipt")


def with_receipt(message: Message, name: ReceiptName, seconds: float) -> tuple[Message, Message]:
    """What is sent: the command to wait for its acknowledgements, and the message."""
    payload = Raw(encode({"seconds": seconds}))
    return replace(message, type=RECEIPT, payload=payload, receipt=name), replace(message, receipt=name)


class Collector:
    """What gateways say of one message. ``gateways``: those that there are. ``users``: to whom it is, or ``None`` if to
    a room; ``here``: who was there before it was sent, each with a socket; ``but_for``: sockets that do not get it.
    """

    def __init__(
        self,
        gateways: Iterable[str],
        users: Sequence[str] | None,
        here: Mapping[str, str],
        but_for: Container[str] = (),
    ) -> None:
        self._users = None if users is None else tuple(dict.fromkeys(users))
        self._here = {user: gateway_of(socket_id) for user, socket_id in here.items() if socket_id not in but_for}
        self._silent = {*gateways, *self._here.values()} or {_NOBODY_KNOWN}
        self._refused: set[str] = set()
        self._owing: dict[str, tuple[str, ...]] = {}
        self._reached: dict[str, None] = {}
        self._acknowledged: set[str] = set()

    def heard(self, part: ReceiptPart) -> None:
        """A gateway has said something."""
        self._silent -= {part.gateway_id, _NOBODY_KNOWN}
        self._reached |= dict.fromkeys((*part.acknowledged, *part.waiting))
        self._acknowledged.update(part.acknowledged)
        if part.refused:
            self._refused.add(part.gateway_id)
        elif part.done:
            self._owing.pop(part.gateway_id, None)
        else:
            self._owing[part.gateway_id] = part.waiting

    @property
    def done(self) -> bool:
        """Whether nothing that is still to come would change the receipt."""
        return self._all_have or not (self._silent or self._owed())

    def receipt(self) -> Receipt:
        """What is known by now."""
        found: dict[str, list[str]] = {"acknowledged": [], "slow": [], "offline": [], "owed": []}
        owing, unknown = self._owed(), self._silent | self._refused
        for user in self._addressed(unknown):
            if user in self._acknowledged:
                fate = "acknowledged"
            elif user in self._reached and user not in owing:
                fate = "slow"
            else:
                fate = "owed" if unknown or user in owing else "offline"
            found[fate].append(user)
        complete = self._all_have or (self.done and not self._refused)
        return Receipt(**{fate: tuple(users) for fate, users in found.items()}, complete=complete)

    @property
    def _all_have(self) -> bool:
        return self._users is not None and self._acknowledged.issuperset(self._users)

    def _owed(self) -> set[str]:
        return {user for users in self._owing.values() for user in users} - self._acknowledged

    def _addressed(self, unknown: Container[str]) -> Iterable[str]:
        if self._users is not None:
            return self._users
        return self._reached | {user: None for user, gateway in self._here.items() if gateway in unknown}

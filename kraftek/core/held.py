"""What a client has sent while its access is checked. Made by :mod:`kraftek.core.session` when there is something."""

from __future__ import annotations

from collections import deque

from kraftek.contract.accounts import Accounts
from kraftek.contract.messages import Inbound
from kraftek.contract.settings import Limits

__all__ = ["Held"]


class Held:
    """Messages, in order. ``full``: the client is not to be read while there are so many, or so many bytes of them.
    They are in the account ``held``.
    """

    __slots__ = ("_accounts", "_limits", "_messages", "_size")

    def __init__(self, limits: Limits, accounts: Accounts) -> None:
        self._limits = limits
        self._accounts = accounts
        self._messages: deque[tuple[Inbound, int]] = deque()
        self._size = 0

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def full(self) -> bool:
        return len(self._messages) >= self._limits.held_messages or self._size >= self._limits.held_bytes

    def put(self, message: Inbound, size: int) -> None:
        """One more, of so many bytes."""
        self._messages.append((message, size))
        self._size += size
        self._accounts.held += size

    def take(self) -> Inbound:
        """The oldest. There is one."""
        message, size = self._messages.popleft()
        self._size -= size
        self._accounts.held -= size
        return message

    def follow(self, before: Held) -> None:
        """Those come first."""
        self._messages.extendleft(reversed(before._messages))
        self._size += before._size

    def give_up(self) -> None:
        """Nobody takes the rest."""
        self._accounts.held -= self._size
        self._messages.clear()
        self._size = 0

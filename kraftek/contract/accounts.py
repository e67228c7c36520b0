"""How many bytes this process holds for others, as plain integers that cost nothing to keep; and who can give some up.

Made by :mod:`kraftek.daemon.lifecycle`, kept by whoever holds the bytes, read by the operator and by the ceiling of
``limits.memory``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, get_args, get_type_hints

from msgspec import Meta, Struct, field

__all__ = ["Accounts", "Shed", "described"]

Shed = Callable[[int], int]
"""Gives up so many bytes, or all there are: of whoever holds most first. Returns how many; those that are free only
soon, as those of a connection that is being aborted, count."""


class Accounts(Struct):
    """One per process. Who holds bytes adds them to its account, and subtracts exactly as many once they are gone,
    whatever happened to their owner: nothing else corrects a number.

    ``sheds``: for each account who can give something up, by the name of the account.
    """

    answers: Annotated[int, Meta(description="answers to requests that Redis has not stored yet")] = 0
    arriving: Annotated[int, Meta(description="a message of Redis that has not arrived whole")] = 0
    heard: Annotated[int, Meta(description="what rooms are told while their history is read")] = 0
    held: Annotated[int, Meta(description="messages of clients that wait for an access check")] = 0
    in_flight: Annotated[int, Meta(description="messages and commands sent to Redis and not answered yet")] = 0
    intake: Annotated[int, Meta(description="events between services that were read and are not delivered yet")] = 0
    unhandled: Annotated[int, Meta(description="what was read from clients and not handled yet")] = 0
    unsent: Annotated[
        int, Meta(description="messages for clients that their kernel buffers have not taken, also in transports")
    ] = 0
    sheds: dict[str, list[Shed]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All of them together."""
        waits = self.answers + self.arriving + self.heard + self.held + self.in_flight
        return waits + self.intake + self.unhandled + self.unsent

    def by_kind(self) -> dict[str, int]:
        """Each account under its name."""
        return {name: getattr(self, name) for name, _ in described()}

    def shed_by(self, name: str, shed: Shed) -> None:
        """``shed`` can give up bytes of this account. Raises ``KeyError`` when there is none of that name."""
        if name not in dict(described()):
            raise KeyError(name)
        self.sheds.setdefault(name, []).append(shed)

    def shed(self, size: int) -> int:
        """Give up so many bytes, or as many as anybody can: of the largest account first. Returns how many."""
        freed = 0
        for name, _ in sorted(self.by_kind().items(), key=lambda account: -account[1]):
            for shed in self.sheds.get(name, ()):
                if freed < size:
                    freed += shed(size - freed)
        return freed


def described() -> Iterator[tuple[str, str]]:
    """The names of the accounts, and what is in each."""
    for name, hint in get_type_hints(Accounts, include_extras=True).items():
        if name != "sheds":
            yield name, get_args(hint)[1].description

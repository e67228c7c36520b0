"""The topics with history that somebody of this process hears: where each is, and who hears it.

Made by :mod:`kraftek.core.following`, which says what is delivered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable

from twisted.internet.defer import Deferred

from kraftek.contract.accounts import Accounts
from kraftek.contract.interfaces import IOutlet, TopicPosition
from kraftek.core.catch_up import CatchUp
from kraftek.core.roster import Audience, Roster
from kraftek.core.session import Session

__all__ = ["Followed", "FollowedRoom"]

_HEARD = 262_144
"""Bytes that are kept of what a topic is told while its history is read. What is beyond is read once more."""


class Followed(ABC):
    """One topic. All up to ``epoch`` and ``offset`` was delivered to those of this process who hear it; the epoch is
    empty until that is known. ``busy``: it is subscribed to, or its history is read; ``heard`` is what is told
    meanwhile, and ``stale`` that something may be missed all the same. ``catching``: the clients that catch up with it.
    ``waiting``: who waits for the end of what it is busy with. ``owed``: somebody was not told where it is.
    ``room_id``: of a room.
    """

    __slots__ = (
        "_accounts",
        "_heard_bytes",
        "_roster",
        "busy",
        "catching",
        "epoch",
        "heard",
        "offset",
        "owed",
        "room_id",
        "stale",
        "topic",
        "waiting",
    )

    def __init__(self, topic: str, roster: Roster, accounts: Accounts, room_id: str | None) -> None:
        self._accounts = accounts
        self.topic = topic
        self.room_id = room_id
        self._roster = roster
        self.epoch = ""
        self.offset = 0
        self.busy = self.stale = self.owed = False
        self.heard: list[bytes] = []
        self._heard_bytes = 0
        self.catching: dict[Session, CatchUp] = {}
        self.waiting: list[Deferred[None]] = []

    @property
    def position(self) -> TopicPosition:
        return self.topic, self.epoch, self.offset

    def keep(self, told: bytes) -> None:
        """Something was told while it is busy."""
        self._heard_bytes += len(told)
        if self._heard_bytes <= _HEARD:
            self.heard.append(told)
            self._accounts.heard += len(told)
        else:
            self.stale = True

    def rest(self) -> list[bytes]:
        """It is not busy any more. Returns what was heard meanwhile."""
        self.busy = False
        return self._take()

    def give_up(self) -> int:
        """Read once more instead what was heard. Returns of how many bytes."""
        self.stale = self.stale or bool(self.heard)
        return sum(map(len, self._take()))

    def _take(self) -> list[bytes]:
        heard, self.heard, self._heard_bytes = self.heard, [], 0
        self._accounts.heard -= sum(map(len, heard))
        return heard

    @property
    @abstractmethod
    def sessions(self) -> Collection[Session]:
        """Those that hear it."""

    @abstractmethod
    def hears(self, session: Session) -> bool:
        """Whether the session is one of them."""

    @abstractmethod
    def audience(self, without: Iterable[str]) -> Audience:
        """The same for a message, but for these sockets."""

    @abstractmethod
    def outlet(self, session: Session) -> IOutlet:
        """What takes the messages for the session, once nothing holds them back."""

    def hold_back(self, session: Session, catch_up: CatchUp) -> None:
        """The session catches up: this gets its messages first."""
        self.catching[session] = catch_up

    def let_go(self, session: Session) -> None:
        """Nothing holds back its messages any more."""
        self.catching.pop(session, None)


class FollowedRoom(Followed):
    """A room: those hear it who are in it."""

    __slots__ = ("_room",)

    def __init__(self, topic: str, roster: Roster, accounts: Accounts, room_id: str) -> None:
        super().__init__(topic, roster, accounts, room_id)
        self._room = room_id

    @property
    def sessions(self) -> Collection[Session]:
        return self._roster.room(self._room)

    def hears(self, session: Session) -> bool:
        return self._room in session.rooms

    def audience(self, without: Iterable[str]) -> Audience:
        if without:
            return self._roster.audience_without(self._room, without)
        return self._roster.audience(self._room)

    def outlet(self, session: Session) -> IOutlet:
        return self._roster.outlet(session, self._room)

    def hold_back(self, session: Session, catch_up: CatchUp) -> None:
        super().hold_back(session, catch_up)
        self._roster.hold_back(session, self._room, catch_up)

    def let_go(self, session: Session) -> None:
        super().let_go(session)
        self._roster.hold_back(session, self._room, None)

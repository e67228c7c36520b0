"""The topics with history that somebody of this process hears: where each is, and who hears it.

Made by :mod:`kraftek.core.following`, which says what is delivered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable

from twisted.internet.defer import Deferred

from kraftek.contract.accounts import Accounts
from kraftek.contract.interfaces import IOutlet, TopicPosition
from kraftek.contract.messages import Delivery, Positioned, Standing
from kraftek.contract.turns import Turns
from kraftek.core.catch_up import CatchUp
from kraftek.core.roster import Audience, Roster, audience_of
from kraftek.core.session import Session

__all__ = ["STEP", "Followed", "FollowedRoom", "FollowedUser"]

STEP = 100
"""Messages of those that were missed which are delivered in one turn, to a client or to all who hear the topic: they
take half a millisecond."""

_DELIVERIES = 1000
"""And in how many copies at most, unless it is one message."""

_HEARD = 262_144
"""Bytes that are kept of what a topic is told while its history is read. What is beyond is read once more."""


class Followed(ABC):
    """One topic. All up to ``epoch`` and ``offset`` was delivered to those of this process who hear it; the epoch is
    empty until that is known. ``busy``: it is subscribed to, or its history is read; ``heard`` is what is told
    meanwhile, and ``stale`` that something may be missed all the same. ``catching``: the clients that catch up with it.
    ``waiting``: who waits for the end of what it is busy with. ``owed``: somebody was not told where it is.
    ``ruled_out``: by the rules that stood when it was read it has no history: another gateway has written them.
    ``name``: of the room, or the user; ``room_id``: of a room.
    """

    __slots__ = (
        "_accounts",
        "_heard_bytes",
        "_roster",
        "busy",
        "catching",
        "epoch",
        "heard",
        "name",
        "offset",
        "owed",
        "room_id",
        "ruled_out",
        "stale",
        "topic",
        "waiting",
    )

    def __init__(self, topic: str, roster: Roster, accounts: Accounts, name: str, room_id: str | None) -> None:
        self._accounts = accounts
        self.topic = topic
        self.name = name
        self.room_id = room_id
        self._roster = roster
        self.epoch = ""
        self.offset = 0
        self.busy = self.stale = self.owed = self.ruled_out = False
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

    def rest(self) -> None:
        """It is not busy any more."""
        self.busy = False
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.callback(None)

    def take(self) -> list[bytes]:
        """What was heard meanwhile, which is to be delivered now."""
        heard, self.heard, self._heard_bytes = self.heard, [], 0
        self._accounts.heard -= sum(map(len, heard))
        return heard

    async def turn(self, turns: Turns, number: int) -> None:
        """Return when the message of this number, of some that wait from 0 on, may be delivered."""
        if number and not number % max(1, min(STEP, _DELIVERIES // max(1, len(self.sessions)))):
            await turns.next_turn()

    def give_up(self) -> int:
        """Read once more instead what was heard. Returns of how many bytes."""
        self.stale = self.stale or bool(self.heard)
        return sum(map(len, self.take()))

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

    def tell_standing(self, session: Session, standing: Standing) -> None:
        """Tell the session where it is now, after all that it was sent there."""
        outgoing = session.dialect.encode(Positioned(self.room_id, standing))
        if outgoing is not None:
            outgoing.about = Delivery("", room_id=self.room_id)
            self.outlet(session).write(outgoing)

    def hold_back(self, session: Session, catch_up: CatchUp) -> None:
        """The session catches up: this gets its messages first."""
        self.catching[session] = catch_up

    def let_go(self, session: Session) -> None:
        """Nothing holds back its messages any more."""
        self.catching.pop(session, None)

    def let_go_who_are_there(self) -> None:
        """The same for all who have got no more than was delivered here."""
        for session, catch_up in tuple(self.catching.items()):
            if catch_up.until is not None and catch_up.until <= self.offset:
                self.let_go(session)


class FollowedRoom(Followed):
    """A room: those hear it who are in it."""

    __slots__ = ()

    def __init__(self, topic: str, roster: Roster, accounts: Accounts, room_id: str) -> None:
        super().__init__(topic, roster, accounts, room_id, room_id)

    @property
    def sessions(self) -> Collection[Session]:
        return self._roster.room(self.name)

    def hears(self, session: Session) -> bool:
        return self.name in session.rooms

    def audience(self, without: Iterable[str]) -> Audience:
        if without:
            return self._roster.audience_without(self.name, without)
        return self._roster.audience(self.name)

    def outlet(self, session: Session) -> IOutlet:
        return self._roster.outlet(session, self.name)

    def hold_back(self, session: Session, catch_up: CatchUp) -> None:
        super().hold_back(session, catch_up)
        self._roster.hold_back(session, self.name, catch_up)

    def let_go(self, session: Session) -> None:
        super().let_go(session)
        self._roster.hold_back(session, self.name, None)


class FollowedUser(Followed):
    """A user: all its sessions hear it. ``doubt`` is called with one whose access has just expired, before it is sent
    something, so that this waits for the answer.
    """

    __slots__ = ("_doubt",)

    def __init__(
        self, topic: str, roster: Roster, accounts: Accounts, user_id: str, doubt: Callable[[Session], None]
    ) -> None:
        super().__init__(topic, roster, accounts, user_id, None)
        self._doubt = doubt

    @property
    def sessions(self) -> Collection[Session]:
        return self._roster.user(self.name)

    def hears(self, session: Session) -> bool:
        return session.user_id == self.name

    def audience(self, without: Iterable[str]) -> Audience:
        for session in tuple(self.sessions):
            self._doubt(session)
        absent, catching = frozenset(without), self.catching
        sessions = [session for session in self.sessions if session.socket_id not in absent]
        return audience_of(sessions, [catching.get(session) or session.outlet for session in sessions])

    def outlet(self, session: Session) -> IOutlet:
        return session.outlet

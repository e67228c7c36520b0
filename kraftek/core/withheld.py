"""What clients are sent in a room while their access to it is in question: it waits, and is delivered after a yes.

Called by :mod:`kraftek.core.access_watch`. What delivers messages notices nothing: a stand-in takes the place of the
client's link, in the audience of the room, and for what is sent to the user or the socket when nothing of the session's
access is certain.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from operator import itemgetter

from msgspec import Struct
from twisted.internet.defer import Deferred
from zope.interface import implementer

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IOutlet
from kraftek.contract.messages import Outgoing, Since
from kraftek.core.roster import Roster
from kraftek.core.session import Session

__all__ = ["Withheld", "WithheldState", "Withholding"]


class WithheldMessage(Struct, kw_only=True):
    """A message that waits: in a room, or with ``outlet`` for the session's user."""

    text: bytes
    attachments: tuple[bytes, ...] = ()
    room_id: str | None = None
    outlet: bool = False


class WithheldState(Struct, kw_only=True):
    """What waits for a session, in order. ``rooms``: those to which its access is in question; ``overrun``: those of
    them where messages were dropped; ``since``: where it was in those of them that have a history.
    ``outlet_overrun``, ``outlet_since``: the same for what was sent to its user.
    """

    rooms: list[str | None]
    messages: list[WithheldMessage]
    overrun: list[str | None] = []
    since: dict[str, Since] = {}
    outlet_overrun: bool = False
    outlet_since: Since | None = None


@implementer(IOutlet)
class Withheld:
    """The stand-in for the link of a session, in a room or for its user. It keeps messages up to so many bytes; with
    more than that it drops them, and the client is told, once. ``since``: up to where the client has got what the room,
    or its user, was told, if that has a history: what comes after it can be read there.
    """

    __slots__ = ("_bytes", "_most", "_room_id", "_session", "_waiting", "messages", "overrun", "since")

    _numbers = count()

    def __init__(self, session: Session, room_id: str | None, most: int, since: Since | None = None) -> None:
        self._session = session
        self.since = since
        self._room_id = room_id
        self._most = most
        self.messages: list[tuple[int, Outgoing]] = []
        self._bytes = 0
        self.overrun = False
        self._waiting: list[Deferred[None]] = []

    def until_over(self) -> Deferred[None]:
        """Fires when the session's access is not in question any more, one way or the other."""
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def over(self) -> None:
        """It is not."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)

    def write(self, outgoing: Outgoing) -> None:
        """As that of a link."""
        if self.overrun:
            return
        self.messages.append((next(self._numbers), outgoing))
        self._bytes += len(outgoing.text) + sum(map(len, outgoing.attachments))
        if self._bytes > self._most:
            self.overrun = True
            self.messages.clear()
            where = "" if self._room_id is None else f" to room {self._room_id}"
            what = "messages" if self.since is None else "messages that are not part of its history"
            text = f"access{where} cannot be checked at present: {what} are lost until it is"
            self._session.refuse(PeerError(Code.AUTH_UNAVAILABLE, text, retry_after=1.0, room_id=self._room_id))


class Withholding:
    """The sessions whose access is in question. ``most``: bytes that wait for each room of each. ``place``: where a
    session is in a room, or without one in what its user is told. ``interrupted`` is called with this, without a room,
    when something was dropped of that.
    """

    def __init__(
        self,
        roster: Roster,
        most: int,
        place: Callable[[Session, str | None], Since | None],
        interrupted: Callable[[Session, str | None, Since | None], None],
    ) -> None:
        self._roster = roster
        self._place = place
        self._interrupted = interrupted
        self._most = most
        self._withheld: dict[Session, dict[str | None, Withheld]] = {}

    def __len__(self) -> int:
        return len(self._withheld)

    def begin(self, session: Session, room_id: str | None) -> None:
        """The session's access to the room is in question; with ``None``, its grant without one, or all it has."""
        rooms = self._withheld.setdefault(session, {})
        if room_id not in rooms:
            since = None if room_id is None else self._place(session, room_id)
            rooms[room_id] = withheld = Withheld(session, room_id, self._most, since)
            if room_id is not None:
                self._roster.divert(session, room_id, withheld)
        self.judge(session)

    def end(self, session: Session, room_id: str | None) -> Withheld | None:
        """The session has access to the room. Returns what has dropped messages, if it has missed something there."""
        withheld = self._withheld.get(session, {}).pop(room_id, None)
        if withheld is None:
            return None
        if room_id is not None:
            self._roster.divert(session, room_id, None)
        self.judge(session, withheld)
        withheld.over()
        return withheld if withheld.overrun else None

    def withholds_all(self, session: Session) -> bool:
        """Whether nothing of the session's access is certain, because of its rooms."""
        return isinstance(session.outlet, Withheld) and None not in self._withheld.get(session, {})

    def judge(self, session: Session, *ended: Withheld) -> None:
        """Rooms were entered or left, or came into question. What ``ended`` has kept is delivered."""
        rooms = self._withheld.get(session)
        if rooms is None:
            return
        for room_id in rooms.keys() - session.rooms.keys():
            if room_id is not None or session.asked:
                rooms.pop(room_id).over()
        if not rooms:
            del self._withheld[session]
        if rooms and rooms.keys() >= session.asked:
            if session.outlet is session.link:
                session.outlet = Withheld(session, None, self._most, self._place(session, None))
        elif isinstance(outlet := session.outlet, Withheld):
            ended = (*ended, outlet)
            session.outlet = session.link
            if outlet.overrun:
                self._interrupted(session, None, outlet.since)
        for _, outgoing in sorted((each for withheld in ended for each in withheld.messages), key=itemgetter(0)):
            session.link.write(outgoing)
        for withheld in ended:
            withheld.over()

    def give(self, session: Session) -> WithheldState | None:
        """For another version of the gateway. Nothing changes."""
        rooms = self._withheld.get(session)
        if rooms is None:
            return None
        waiting = [(*each, room_id, False) for room_id, withheld in rooms.items() for each in withheld.messages]
        if isinstance(session.outlet, Withheld):
            waiting += [(*each, None, True) for each in session.outlet.messages]
        messages = [
            WithheldMessage(text=outgoing.text, attachments=outgoing.attachments, room_id=room_id, outlet=outlet)
            for _, outgoing, room_id, outlet in sorted(waiting, key=itemgetter(0))
        ]
        overrun = [room_id for room_id, withheld in rooms.items() if withheld.overrun]
        since = {room_id: its.since for room_id, its in rooms.items() if room_id is not None and its.since is not None}
        state = WithheldState(rooms=list(rooms), messages=messages, overrun=overrun, since=since)
        if isinstance(session.outlet, Withheld):
            state.outlet_overrun, state.outlet_since = session.outlet.overrun, session.outlet.since
        return state

    def restore(self, session: Session, state: WithheldState) -> None:
        """Go on with what another version has given."""
        for room_id in state.rooms:
            self.begin(session, room_id)
        rooms = self._withheld.get(session, {})
        for room_id, since in state.since.items():
            rooms[room_id].since = since
        if isinstance(session.outlet, Withheld):
            session.outlet.since = state.outlet_since
        for each in state.messages:
            outlet = session.outlet if each.outlet else rooms[each.room_id]
            outlet.write(Outgoing(each.text, each.attachments))
        for room_id in state.overrun:
            rooms[room_id].overrun = True
        if isinstance(session.outlet, Withheld):
            session.outlet.overrun = state.outlet_overrun

    def forget(self, session: Session) -> None:
        """The session has ended."""
        for withheld in self._withheld.pop(session, {}).values():
            withheld.over()
        if isinstance(session.outlet, Withheld):
            session.outlet.over()

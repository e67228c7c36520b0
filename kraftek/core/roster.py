"""The live sessions of this process by socket, user, room and token. Used by the modules of the core."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

from kraftek.contract.interfaces import IDialect, IOutlet

if TYPE_CHECKING:
    from kraftek.core.session import Session

__all__ = ["Audience", "Roster", "audience_of"]

Audience = Collection[tuple[IDialect, Sequence[IOutlet]]]
"""For each kind of client in a room: a dialect that encodes for it, and what takes it for all clients of that kind."""


_dialect, _link, _outlet = attrgetter("dialect"), attrgetter("link"), attrgetter("outlet")


def audience_of(sessions: Collection[Session], outlets: Iterable[IOutlet] | None = None) -> Audience:
    """These sessions as a message to them needs them; ``outlets``: what takes it for each, in place of its own."""
    return _audience(map(_dialect, sessions), map(_outlet, sessions) if outlets is None else outlets)


def _audience(dialects: Iterable[IDialect], outlets: Iterable[IOutlet]) -> Audience:
    # All native clients share a dialect: of 10,000 this takes 1.6 ms, and 5 when each is looked up.
    groups: dict[Hashable, tuple[IDialect, list[IOutlet]]] = {}
    last: IDialect | None = None
    append: Callable[[IOutlet], None]
    for dialect, outlet in zip(dialects, outlets, strict=True):
        if dialect is not last:
            last = dialect
            append = groups.setdefault(dialect.codec, (dialect, []))[1].append
        append(outlet)
    return tuple(groups.values())


class _Index:
    """Sessions by a key that several may share, in the order in which they came. One alone, as usual, costs no more."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: dict[str, Session | dict[Session, None]] = {}

    def add(self, key: str, session: Session) -> None:
        entry = self._entries.get(key)
        if entry is None:
            self._entries[key] = session
        elif isinstance(entry, dict):
            entry[session] = None
        elif entry is not session:
            self._entries[key] = {entry: None, session: None}

    def discard(self, key: str, session: Session) -> None:
        entry = self._entries.get(key)
        if isinstance(entry, dict):
            entry.pop(session, None)
            if not entry:
                del self._entries[key]
        elif entry is session:
            del self._entries[key]

    def get(self, key: str) -> Collection[Session]:
        entry = self._entries.get(key)
        if entry is None:
            return ()
        return entry.keys() if isinstance(entry, dict) else (entry,)

    def __len__(self) -> int:
        return len(self._entries)


class Roster:
    """The live sessions. What a look-up returns must not be kept or iterated while the roster changes."""

    def __init__(self) -> None:
        self._by_socket: dict[str, Session] = {}
        self._by_user = _Index()
        self._by_room = _Index()
        self._by_digest = _Index()
        self._audiences: dict[str, Audience] = {}
        self._diverted: dict[str, dict[Session, IOutlet]] = {}
        self._held_back: dict[str, dict[Session, IOutlet]] = {}

    def __len__(self) -> int:
        return len(self._by_socket)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._by_socket.values())

    @property
    def rooms(self) -> int:
        """How many rooms have members on this process."""
        return len(self._by_room)

    def add(self, session: Session) -> None:
        """A client connected."""
        self._by_socket[session.socket_id] = session

    def identify(self, session: Session, user_id: str, digest: str) -> None:
        """A client authenticated with the token of that digest, and is this user from now on."""
        self._by_user.add(user_id, session)
        self._by_digest.add(digest, session)

    def hold(self, session: Session, digest: str) -> None:
        """The session has something by the token of that digest."""
        self._by_digest.add(digest, session)

    def release(self, session: Session, digest: str) -> None:
        """The session has something less by the token of that digest."""
        if not session.holds(digest):
            self._by_digest.discard(digest, session)

    def enter(self, session: Session, room_id: str) -> None:
        """The session gets the room's messages."""
        self._by_room.add(room_id, session)
        self._audiences.pop(room_id, None)
        if session.kept is not None:
            session.kept.changed()

    def leave(self, session: Session, room_id: str) -> None:
        """The session no longer gets the room's messages."""
        self._by_room.discard(room_id, session)
        self.divert(session, room_id, None)
        self.hold_back(session, room_id, None)

    def divert(self, session: Session, room_id: str, outlet: IOutlet | None) -> None:
        """The outlet gets the room's messages in place of the session's link; ``None`` ends that."""
        self._replace(self._diverted, session, room_id, outlet)

    def hold_back(self, session: Session, room_id: str, outlet: IOutlet | None) -> None:
        """The outlet gets the room's messages first, and passes them to :meth:`outlet`; ``None`` ends that."""
        self._replace(self._held_back, session, room_id, outlet)

    def outlet(self, session: Session, room_id: str) -> IOutlet:
        """What takes the room's messages for the session, once nothing holds them back."""
        diverted = self._diverted.get(room_id)
        return session.link if diverted is None else diverted.get(session, session.link)

    def is_direct(self, session: Session, room_id: str) -> bool:
        """Whether the session gets the room's messages as they are told."""
        return session not in self._diverted.get(room_id, ()) and session not in self._held_back.get(room_id, ())

    def _replace(
        self, by_room: dict[str, dict[Session, IOutlet]], session: Session, room_id: str, outlet: IOutlet | None
    ) -> None:
        self._audiences.pop(room_id, None)
        outlets = by_room.setdefault(room_id, {})
        outlets.pop(session, None)
        if outlet is not None:
            outlets[session] = outlet
        if not outlets:
            del by_room[room_id]
        if session.kept is not None:
            session.kept.changed()

    def remove(self, session: Session) -> None:
        """A client disconnected: remove its session from every index."""
        if self._by_socket.pop(session.socket_id, None) is None:
            return
        if session.user_id is not None:
            self._by_user.discard(session.user_id, session)
        if session.token is not None:
            self._by_digest.discard(session.token.digest, session)
        for room_id, held in session.rooms.items():
            self._by_digest.discard(held.token.digest, session)
            if room_id is not None:
                self.leave(session, room_id)

    def socket(self, socket_id: str) -> Session | None:
        """The session of that socket id, when it is on this process."""
        return self._by_socket.get(socket_id)

    def users(self) -> Iterator[Session]:
        """The sessions that have authenticated."""
        return (session for session in self._by_socket.values() if session.user_id is not None)

    def user(self, user_id: str) -> Collection[Session]:
        """The user's sessions."""
        return self._by_user.get(user_id)

    def user_in(self, user_id: str, room_id: str) -> Sequence[Session]:
        """The user's sessions that are in the room by a token of theirs."""
        of_user, in_room = self._by_user.get(user_id), self._by_room.get(room_id)
        return [
            session
            for session in (in_room if len(in_room) < len(of_user) else of_user)
            if session.user_id == user_id and (held := session.rooms.get(room_id)) is not None and not held.given
        ]

    def room(self, room_id: str) -> Collection[Session]:
        """The sessions that get the room's messages."""
        return self._by_room.get(room_id)

    def audience(self, room_id: str) -> Audience:
        """The sessions of :meth:`room` as a broadcast needs them, which may be kept and iterated at any time.

        Remembered until somebody enters or leaves: to look into each session costs as much as to queue the message.
        """
        known = self._audiences.get(room_id)
        if known is None:
            sessions, usual = self._by_room.get(room_id), self._has_links(room_id)
            outlets = map(_link, sessions) if usual else [self._first(each, room_id) for each in sessions]
            known = _audience(map(_dialect, sessions), outlets)
            if known:
                self._audiences[room_id] = known
        return known

    def audience_without(self, room_id: str, socket_ids: Iterable[str]) -> Audience:
        """As :meth:`audience`, but for these sockets."""
        absent = {self._first(session, room_id) for each in socket_ids if (session := self._by_socket.get(each))}
        return tuple(
            (dialect, others)
            for dialect, outlets in self.audience(room_id)
            if (others := [outlet for outlet in outlets if outlet not in absent])
        )

    def audience_among(self, room_id: str, sessions: Sequence[Session]) -> Audience:
        """These sessions of the room as a message to them needs them that does not wait until they have caught up."""
        return _audience(map(_dialect, sessions), [self.outlet(session, room_id) for session in sessions])

    def _has_links(self, room_id: str) -> bool:
        return room_id not in self._diverted and room_id not in self._held_back

    def _first(self, session: Session, room_id: str) -> IOutlet:
        held_back = self._held_back.get(room_id, {}).get(session)
        return self.outlet(session, room_id) if held_back is None else held_back

    def digest(self, digest: str) -> Collection[Session]:
        """The sessions that authenticated with the token of that digest."""
        return self._by_digest.get(digest)

"""What is kept of sockets whose clients may come back after they have lost them: Socket.IO's connection state recovery.

Made by :mod:`kraftek.daemon.assembly`. Sessions have their part of it as ``kept``; the roster says when anything
changes in how they get the messages of their rooms. What becomes of it is in :mod:`kraftek.core.recovering`.

A record is in Redis while a socket gets all that is told to its rooms, as it is told: only then what it has got last
says what it has got. It is written when its rooms change, and renewed now and then; never for a message.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from msgspec import Struct
from twisted.python.failure import Failure

from kraftek.contract.interfaces import ISocketRecords, SocketRecord, TopicPosition
from kraftek.contract.iteration import Iteration
from kraftek.contract.order import UNCERTAIN, Order
from kraftek.core.following import Following
from kraftek.core.kept import Kept
from kraftek.core.roster import Roster
from kraftek.core.session import Session, SessionState

__all__ = ["KeptState", "Recoverable"]

_SWEEPS = 120
"""Sweeps in which every record is renewed once: thirty seconds."""

_AT_ONCE = 200
"""Records that one call of a script renews."""


class KeptState(Struct, kw_only=True):
    """For another version of the gateway. ``entered``: the rooms with where they were entered."""

    pid: str
    sid: str
    sockets: tuple[str, ...]
    entered: list[TopicPosition]
    floor: str
    written: bool
    spoiled: bool


class Recoverable:
    """The sessions whose clients may come back. ``order``: ``None`` where none may."""

    def __init__(
        self,
        records: ISocketRecords,
        following: Following,
        roster: Roster,
        iteration: Iteration,
    ) -> None:
        self.records = records
        self._following = following
        self._ordering = following.ordering
        self._roster = roster
        self._iteration = iteration
        self._all: dict[Session, Kept] = {}
        self._pending: dict[Session, None] = {}
        self._unsure: dict[tuple[str, str], None] = {}
        self._round: Iterator[Session] = iter(())
        self._flushing = False
        self._sweeps = 0
        following.lost = self.spoil

    @property
    def order(self) -> Order | None:
        """What clients are told."""
        return self._ordering.order

    def __len__(self) -> int:
        return len(self._all)

    def begin(self, session: Session) -> None:
        """A client connected."""
        if self.order is not None and session.dialect.recovers:
            session.kept = self._all[session] = Kept(session.socket_id, lambda: self._changed(session))

    def give(self, session: Session) -> KeptState | None:
        """For another version of the gateway."""
        kept = session.kept
        return None if kept is None else KeptState(
            pid=kept.pid,
            sid=kept.sid,
            sockets=kept.sockets,
            entered=[(room_id, *where) for room_id, where in kept.entered.items()],
            floor=kept.floor,
            written=kept.written,
            spoiled=kept.spoiled,
        )  # fmt: skip

    def restore(self, session: Session, state: KeptState | None) -> None:
        """Go on with what another version gave."""
        if state is None:
            return
        self.begin(session)
        kept = session.kept
        if kept is not None:
            kept.pid, kept.sid, kept.sockets = state.pid, state.sid, state.sockets
            kept.entered = {room_id: (epoch, offset) for room_id, epoch, offset in state.entered}
            kept.floor, kept.written, kept.spoiled = state.floor, state.written, state.spoiled

    def recovered(self, session: Session, pid: str, record: SocketRecord) -> None:
        """The session goes on as what this record says."""
        kept = session.kept
        assert kept is not None
        kept.pid, kept.sid, kept.sockets = pid, record.sid, record.sockets
        kept.entered = {room_id: (epoch, offset) for room_id, epoch, offset in record.rooms}
        kept.floor, kept.written = record.floor, True
        self._pending.pop(session, None)

    def spoil(self, session: Session) -> None:
        """The session has missed something, and goes on."""
        if session.kept is not None:
            session.kept.spoiled = True
            self._changed(session)

    def departed(self, session: Session) -> None:
        """The session has ended."""
        kept = self._all.pop(session, None)
        self._pending.pop(session, None)
        if kept is not None and kept.written and not kept.taken:
            returns = session.dialect.recovers and not kept.spoiled
            self.records.end(kept.pid, session.socket_id, returns=returns).addErrback(_forgive)

    def sweep(self) -> None:
        """Called several times a second: write what could not be written, and renew some."""
        for pid, socket_id in tuple(self._unsure):
            self._withdraw(pid, socket_id)
        self._write()
        if not self._all:
            return
        if self._sweeps % _SWEEPS == 0:
            self._round = iter(tuple(self._all))
        self._sweeps += 1
        some = [each for each in islice(self._round, -(-len(self._all) // _SWEEPS)) if each in self._all]
        for session in some:
            if not self._all[session].written:
                self._changed(session)
        standing = [session for session in some if self._all[session].written]
        for start in range(0, len(standing), _AT_ONCE):
            self._renew(standing[start : start + _AT_ONCE])

    def flush(self) -> None:
        """Called at the end of an iteration in which something changed."""
        self._flushing = False
        self._write()

    def _changed(self, session: Session) -> None:
        kept, order = session.kept, self.order
        if kept is None or order is None or session not in self._all:
            return
        before, kept.entered = kept.entered, self._entered(session, kept.entered)
        added = kept.entered.keys() - before.keys()
        if added or not kept.written:
            kept.floor = order.now
        if added or before.keys() - kept.entered.keys() or not kept.written or not self._is_whole(session, kept):
            self._pending[session] = None
            if not self._flushing:
                self._flushing = True
                self._iteration.at_end(self)

    def _entered(self, session: Session, before: dict[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
        entered = {}
        for room_id in session.rooms:
            room = self._following.find(room_id)
            if room_id is None:
                continue
            if room_id in before:
                entered[room_id] = before[room_id]
            elif room is not None and room.epoch:
                entered[room_id] = (room.epoch, room.offset)
        return entered

    def _is_whole(self, session: Session, kept: Kept) -> bool:
        """Whether it is in rooms, gets all that they are told, as it is told, and would be let in again."""
        rooms = session.rooms.keys() - {None}
        return (
            session.state is not SessionState.CLOSED
            and not kept.spoiled
            and bool(rooms)
            and rooms == kept.entered.keys()
            and not any(session.rooms[each].given or session.rooms[each].suspended for each in rooms)
            and all(self._roster.is_direct(session, each) for each in kept.entered)
        )

    def _write(self) -> None:
        order = self.order
        for session in tuple(self._pending):
            kept, whole = self._all[session], False
            if not kept.taken:
                whole = self._is_whole(session, kept)
                if kept.written and not (whole and order is not None and order.certain):
                    kept.written = False
                    self._withdraw(kept.pid, session.socket_id)
            if not whole:
                del self._pending[session]
            elif order is not None and order.certain:
                del self._pending[session]
                if kept.floor is UNCERTAIN:
                    kept.floor = order.now
                kept.written = True
                self._keep(session, kept)

    def _keep(self, session: Session, kept: Kept) -> None:
        assert session.user_id is not None
        record = SocketRecord(
            user_id=session.user_id,
            sid=kept.sid,
            sockets=kept.sockets,
            rooms=tuple((room_id, *where) for room_id, where in kept.entered.items()),
            room_id=session.room_id,
            floor=kept.floor,
        )

        def is_kept(done: bool) -> None:
            kept.taken = kept.taken or not done

        keeping = self.records.keep(kept.pid, session.socket_id, session.socket_id, record).addCallback(is_kept)
        keeping.addErrback(self._not_sure, session, kept)

    def _not_sure(self, _: Failure, session: Session, kept: Kept) -> None:
        """Nobody knows what Redis keeps of it: nothing, before anybody is recovered again."""
        self._unsure[kept.pid, session.socket_id] = None
        self._ordering.owed = len(self._unsure)
        self._ordering.doubt()
        kept.written = False
        if session in self._all:
            self._pending[session] = None

    def _withdraw(self, pid: str, socket_id: str) -> None:
        self._unsure[pid, socket_id] = None
        self._ordering.owed = len(self._unsure)

        def withdrawn(_: None) -> None:
            self._unsure.pop((pid, socket_id), None)
            self._ordering.owed = len(self._unsure)

        def not_withdrawn(_: Failure) -> None:
            self._ordering.doubt()

        self.records.end(pid, socket_id, returns=False).addCallbacks(withdrawn, not_withdrawn)

    def _renew(self, sessions: list[Session]) -> None:
        asked = [(self._all[session].pid, session.socket_id) for session in sessions]

        def renewed(answer: tuple[list[int], list[int]]) -> None:
            missing, others = answer
            for number in others:
                self._found(sessions[number], taken=True)
            for number in missing:
                self._found(sessions[number], taken=False)

        self.records.renew(asked).addCallback(renewed).addErrback(_forgive)

    def _found(self, session: Session, *, taken: bool) -> None:
        """What was to be renewed is not there, or belongs to another socket."""
        kept = self._all.get(session)
        if kept is None or not kept.written:
            return
        if taken:
            kept.taken = True
        else:
            kept.written = False  # and is written again
            self._pending[session] = None


def _forgive(_: Failure) -> None:
    """It ends by itself, or is renewed the next time."""

"""What the core knows, for another version of the gateway that goes on with it in the same process.

Made by :mod:`kraftek.daemon.assembly`, called by :mod:`kraftek.daemon.upgrade`. Times are those of the machine's
monotonic clock, which goes on, and Unix time in ``expires_at`` and ``due``. Fields are added with defaults, and never
change what they mean.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from kraftek.contract.interfaces import IClientLink, IDialect, TopicPosition
from kraftek.contract.messages import Grant, Token
from kraftek.core.access_watch import AccessWatch
from kraftek.core.admission import Admission
from kraftek.core.budgets import BudgetState, Refusals
from kraftek.core.gateway import Gateway
from kraftek.core.membership import Membership
from kraftek.core.receipts import ReceiptState
from kraftek.core.recoverable import KeptState
from kraftek.core.request_moving import RequestsState
from kraftek.core.requests import Requests
from kraftek.core.rooms.reconciliation import StandingState
from kraftek.core.roster import Roster
from kraftek.core.self_registrations import SelfRegistered, SelfRegistrations
from kraftek.core.session import HeldGrant, Session, SessionState
from kraftek.core.withheld import WithheldState

__all__ = ["CoreMove"]


class GrantState(Struct, kw_only=True):
    """What a session holds for a room, as :class:`kraftek.core.session.HeldGrant`. ``token``: the token itself."""

    room_id: str | None
    token: str
    due: float
    permissions: tuple[str, ...] | None = None
    expires_at: float | None = None
    suspended: bool = False
    expired: bool = False
    given: bool = False


class ClientState(Struct, kw_only=True):
    """A session. ``authenticate_by``: when it has to have authenticated, if it has not. ``refused``: since when it goes
    on above its budgets, when that was last refused, and when it was last told. ``full_at``: when its own budget is
    full again, of events and of bytes. ``refresh_by``: when it has to have shown another token, if its own has expired.
    ``watched``: rooms of which it is told who is there; ``shown``: what it shows of itself in each room.
    ``kept``: what is kept of it if its client may come back.
    """

    socket_id: str
    user_id: str | None = None
    token: str | None = None
    expires_at: float | None = None
    room_id: str | None = None
    rooms: list[GrantState] = []
    outages: int = 0
    superseded: bool = False
    events: int = 0
    size: int = 0
    authenticate_by: float | None = None
    refused: tuple[float, float, float] | None = None
    full_at: tuple[float, float] = (0.0, 0.0)
    withheld: WithheldState | None = None
    refresh_by: float | None = None
    watched: list[str] = []
    shown: list[tuple[str, bytes]] = []
    kept: KeptState | None = None


class CoreState(Struct, kw_only=True):
    """What belongs to no session. ``positions``: where the rooms with history are; ``user_positions``: the users;
    ``presence``: what was told last of rooms that are watched. ``receipts``: what acknowledgements are waited for.
    """

    requests: RequestsState
    standing: StandingState
    budgets: BudgetState
    positions: list[TopicPosition] = []
    user_positions: list[TopicPosition] = []
    presence: list[tuple[str, str]] = []
    self_registered: dict[str, SelfRegistered] = {}
    receipts: list[ReceiptState] = []


_decode_client = msgspec.msgpack.Decoder(ClientState).decode
_decode_core = msgspec.msgpack.Decoder(CoreState).decode


class CoreMove:
    """Gives and takes. The sessions are taken first."""

    def __init__(
        self,
        self_registrations: SelfRegistrations,
        gateway: Gateway,
        roster: Roster,
        admission: Admission,
        access_watch: AccessWatch,
        membership: Membership,
        requests: Requests,
    ) -> None:
        self._self_registrations = self_registrations
        self._gateway = gateway
        self._roster = roster
        self._admission = admission
        self._access_watch = access_watch
        self._membership = membership
        self._requests = requests

    def is_movable(self, session: Session) -> bool:
        """Whether nothing is under way for it that another version could not go on with: a check of its access."""
        return session.state in (SessionState.NEW, SessionState.READY) and not session.refreshes

    def give_session(self, session: Session) -> bytes:
        """A session of which nothing is under way."""
        refusals = session.refusals
        state = ClientState(
            socket_id=session.socket_id,
            user_id=session.user_id,
            token=None if session.token is None else session.token.value,
            expires_at=session.expires_at,
            room_id=session.room_id,
            rooms=[_grant_state(room_id, held) for room_id, held in session.rooms.items()],
            outages=session.outages,
            superseded=session.superseded,
            events=session.events,
            size=session.size,
            authenticate_by=self._admission.deadline(session),
            refused=None if refusals is None else (refusals.since, refusals.last, refusals.told),
            full_at=self._admission.budgets.full_at(session),
            withheld=self._access_watch.withheld(session),
            refresh_by=self._access_watch.refresh_by(session),
            watched=self._membership.presence.watched(session),
            shown=self._membership.shown(session),
            kept=self._admission.recoverable.give(session),
        )
        return msgspec.msgpack.encode(state)

    def take_session(self, given: bytes, link: IClientLink, dialect: IDialect) -> Session:
        """Go on with a session on this link. It sends nothing."""
        state = _decode_client(given)
        session = self._gateway.make(state.socket_id, link, dialect)
        session.outages, session.superseded = state.outages, state.superseded
        session.events, session.size = state.events, state.size
        session.user_id, session.room_id, session.expires_at = state.user_id, state.room_id, state.expires_at
        if state.refused is not None:
            session.refusals = Refusals(*state.refused)
        self._admission.budgets.restore(session, state.full_at)
        self._admission.restore(session, state.authenticate_by)
        if state.token is not None and state.user_id is not None:
            session.token = Token(state.token)
            session.state = SessionState.READY
            self._roster.identify(session, state.user_id, session.token.digest)
        for each in state.rooms:
            grant = Grant(state.user_id or "", each.room_id, each.permissions)
            held = HeldGrant(Token(each.token), grant, given=each.given)
            held.expires_at, held.due = each.expires_at, each.due
            held.suspended, held.expired = each.suspended, each.expired
            session.rooms[each.room_id] = held
            if not held.given:
                self._roster.hold(session, held.token.digest)
            if each.room_id is not None:
                self._roster.enter(session, each.room_id)
        self._admission.recoverable.restore(session, state.kept)
        self._access_watch.restore(session, state.withheld, state.refresh_by)
        self._membership.show(session, state.shown)
        self._membership.presence.restore(session, state.watched)
        return session

    def give(self) -> bytes:
        """Everything else."""
        topics = [topic for topic in self._membership.following.topics if topic.epoch]
        state = CoreState(
            requests=self._requests.moving.give(),
            standing=self._membership.reconciliation.give(),
            budgets=self._admission.budgets.give(),
            positions=[(each.name, *each.position[1:]) for each in topics if each.room_id is not None],
            user_positions=[(each.name, *each.position[1:]) for each in topics if each.room_id is None],
            presence=self._membership.presence.give(),
            self_registered=self._self_registrations.give(),
            receipts=self._gateway.receipts.give(),
        )
        return msgspec.msgpack.encode(state)

    def take(self, given: bytes) -> None:
        """Go on with it. All sessions are there."""
        state = _decode_core(given)
        self._self_registrations.take(state.self_registered)
        self._requests.moving.take(
            state.requests, self._self_registrations.registry, self._roster.socket, self._gateway.make
        )
        self._membership.reconciliation.take(state.standing)
        self._admission.budgets.take(state.budgets)
        self._take_positions(state)
        self._membership.presence.take(state.presence)
        self._gateway.receipts.take(state.receipts)

    def _take_positions(self, state: CoreState) -> None:
        """Who hears something that has had no history, or of which it was not known where it is, is told that."""
        following = self._membership.following
        for room_id, epoch, offset in state.positions:
            following.enter(room_id, epoch, offset)
        for user_id, epoch, offset in state.user_positions:
            following.enter_user(user_id, epoch, offset)
        for session in self._roster.users():
            assert session.user_id is not None
            following.enter_user(session.user_id, owed=True)
            for its_room in session.rooms:
                if its_room is not None:
                    following.enter(its_room, owed=True)


def _grant_state(room_id: str | None, held: HeldGrant) -> GrantState:
    return GrantState(
        room_id=room_id,
        token=held.token.value,
        due=held.due,
        permissions=held.permissions,
        expires_at=held.expires_at,
        suspended=held.suspended,
        expired=held.expired,
        given=held.given,
    )

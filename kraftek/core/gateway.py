"""The core: hands what clients send to admission or to their service's channel. It knows neither sockets nor Redis.

Made by :mod:`kraftek.daemon.assembly`; links call :meth:`Gateway.open`, sessions call the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, NotPublished, PeerError
from kraftek.contract.interfaces import IClientLink, IDialect, IEventRouter
from kraftek.contract.messages import (
    Acknowledge,
    AskPresence,
    Authenticate,
    Cancel,
    Connected,
    Envelope,
    Event,
    History,
    Inbound,
    Join,
    Leave,
    Ping,
    Pong,
)
from kraftek.contract.metrics import Counters
from kraftek.contract.names import new_socket_id
from kraftek.contract.settings import Limits, Registration
from kraftek.contract.turns import Turns
from kraftek.core.access.permissions import permits
from kraftek.core.admission import Admission
from kraftek.core.dispatch import Dispatch
from kraftek.core.pages import Pages
from kraftek.core.receipts import Receipts
from kraftek.core.request_records import record_key
from kraftek.core.requests import Requests, undelivered_error, unreachable_error
from kraftek.core.roster import Roster
from kraftek.core.session import HeldGrant, Session

__all__ = ["Gateway"]

_LIMITED = frozenset({AskPresence, Authenticate, History, Join})
"""What else is refused to a user or an address that is over its budget."""


class Gateway:
    """Opens sessions and routes their events.

    ``reply_to``: the reply channel of this process, as services must name it. ``now`` returns Unix seconds.
    """

    def __init__(
        self,
        gateway_id: str,
        *,
        reply_to: str,
        router: IEventRouter,
        dispatch: Dispatch,
        requests: Requests,
        receipts: Receipts,
        admission: Admission,
        roster: Roster,
        turns: Turns,
        limits: Limits,
        counters: Counters,
        now: Callable[[], float] = time.time,
    ) -> None:
        verifyObject(IEventRouter, router)
        self.gateway_id = gateway_id
        self._router = router
        self._dispatch = dispatch
        self._requests = requests
        self.receipts = receipts
        self._reply_to = reply_to
        self._admission = admission
        self._pages = Pages(admission.resuming, roster, admission.budgets)
        self._presence = admission.presence
        self._roster = roster
        self._budgets = admission.budgets
        self.turns = turns
        self.accounts = turns.accounts
        self._limits = limits
        self._counters = counters
        self._now = now

    def open(self, link: IClientLink, dialect: IDialect, credentials: Authenticate | None = None) -> Session:
        """A client connected; ``credentials`` came with its handshake. The caller passes what the client sends to
        ``receive`` of the returned session, and calls its ``lost`` when the client has disconnected.
        """
        session = self.make(new_socket_id(self.gateway_id), link, dialect)
        session.outages = self._requests.look_ups.outages
        self._counters.connections += 1
        self._admission.arrived(session)
        session.send(Connected(session.socket_id, "" if session.kept is None else session.kept.pid))
        if credentials is not None:
            session.handle(credentials)
        return session

    def make(self, socket_id: str, link: IClientLink, dialect: IDialect) -> Session:
        """A session of which nobody knows yet."""
        return Session(socket_id, self, link, dialect, self._limits, self._counters, budgets=self._budgets)

    def handle(self, session: Session, message: Inbound) -> None:
        """Do what the client asks. Raises ``PeerError``."""
        if isinstance(message, Event):
            try:
                self._send(session, message)
            except PeerError as error:
                error.id = message.id
                raise
        elif type(message) is Authenticate:
            self._admission.authenticate(session, message)
        elif type(message) is Ping:
            session.send(Pong(message.id))
        elif type(message) is Acknowledge:
            self.receipts.acknowledged(session, message.id)
        elif session.user_id is None:
            raise PeerError(Code.NOT_AUTHENTICATED, "authenticate first", id=message.id)
        elif type(message) is Cancel:
            self._cancel(session, message)
        elif type(message) is Join:
            self._admission.join(session, message)
        elif type(message) is Leave:
            self._admission.leave(session, message)
        elif type(message) is History or type(message) is AskPresence:
            try:
                self._look(session, message)
            except PeerError as error:
                error.id = message.id
                raise

    def limit(self, session: Session, message: Inbound, error: PeerError) -> bool:
        """The user or the address is over its budget: refuse what the client asks with this error. ``False`` for what
        is not refused: a ``ping``, by which clients see that they are connected; a ``leave``, which is possible once
        for each ``join``; a ``cancel``, which is possible once for each request; a ``receipt``, for which it is asked;
        and what an unknown user may not do anyway. Raises ``PeerError``.
        """
        error.id = message.id
        if isinstance(message, Event) and session.user_id is not None:
            error.event_type = message.name
            if message.id is None or not message.resent:
                raise error
            room_id = message.room_id if message.room_id is not None else session.room_id
            self._deny(session, message, self._router.route(message.name), room_id, error)
            return True
        if type(message) in _LIMITED:
            raise error
        return type(message) is Cancel and not self._requests.cancels.find(session, message)

    def release(self, session: Session) -> None:
        """A session can go on with what it holds."""
        self.turns.begin(session)

    def closed(self, session: Session) -> None:
        """A session has ended."""
        self._admission.departed(session)
        self._requests.departed(session)

    def _send(self, session: Session, event: Event) -> None:
        user_id = session.user_id
        if user_id is None:
            raise _about(event, Code.NOT_AUTHENTICATED, "authenticate first")
        service: Registration = self._router.route(event.name)
        room_id = event.room_id if event.room_id is not None else session.room_id
        try:
            grant = session.rooms[room_id]
        except KeyError:
            where = "in no room" if room_id is None else "not in this room"
            self._deny(session, event, service, room_id, _about(event, Code.ACCESS_DENIED, where))
            return
        now = self._now()
        if grant.expires_at is not None and grant.expires_at <= now and not grant.suspended:
            self._admission.expired(session, room_id)
            session.handle(event)
            return
        permissions = () if service.explicit and grant.permissions is None else grant.permissions
        if permissions is not None and not permits(permissions, event.name, service.explicit):
            denial = _unpermitted(grant)
            denial.id, denial.event_type = event.id, event.name
            self._deny(session, event, service, room_id, denial)
            return
        if service.rate and (error := self._budgets.event(user_id, service, event.name)) is not None:
            error.id, error.event_type = event.id, event.name
            self._deny(session, event, service, room_id, error)
            return
        envelope = Envelope(
            event_type=event.name,
            user_id=user_id,
            socket_id=session.socket_id,
            timestamp=int(now * 1000),
            gateway_id=self.gateway_id,
            reply_to=self._reply_to,
            payload=event.payload,
            room_id=room_id,
            id=event.id,
            traceparent=event.traceparent,
            progress=event.progress is not False,
        )
        try:
            if event.id is None:
                self._dispatch.send_fairly(service, envelope, partial(self._sent, session, event))
            else:
                self._requests.send(session, event.id, service, envelope, event.resent)
                if event.progress:
                    self._requests.progress.begin(session, event.id, event.progress)
        except NotPublished:
            raise unreachable_error(event.name, event.id) from None
        self._counters.published += 1

    def _look(self, session: Session, message: History | AskPresence) -> None:
        try:
            grant = session.rooms[message.room_id]
        except KeyError:
            raise PeerError(Code.ACCESS_DENIED, "not in this room") from None
        if grant.is_expired(self._now()) and not grant.suspended:
            self._admission.expired(session, message.room_id)
            session.handle(message)
        elif grant.suspended:
            raise _unpermitted(grant)
        elif type(message) is History:
            self._pages.answer(session, message)
        elif type(message) is AskPresence:
            self._presence.ask(session, message)

    def _cancel(self, session: Session, message: Cancel) -> None:
        """Cancel requests of this connection, or one that its user has sent on another."""
        at = int(self._now() * 1000)
        cancels = self._requests.cancels
        if cancels.cancel(session, message, at) or message.id is None or message.event_type is None:
            return
        if session.dialect.lasting_ids:
            service = self._router.route(message.event_type)
            assert session.user_id is not None
            with suppress(PeerError):  # all instances of a service hear it: a flood would keep them from all else
                self._budgets.joins(session.user_id)
                cancels.tell(session, service, message.event_type, message.id, at)

    def _deny(
        self, session: Session, event: Event, service: Registration, room_id: str | None, error: PeerError
    ) -> None:
        """Refuse the event with this error. A request that was sent before, when it was allowed, keeps its answer."""
        if event.id is None or not event.resent:
            raise error
        assert session.user_id is not None
        key = record_key(session.user_id, event.name, room_id, event.payload, event.id)
        self._requests.find(session, event.id, service, key, error)
        if event.progress:
            self._requests.progress.begin(session, event.id, event.progress)

    def _sent(self, session: Session, event: Event, receipt: int) -> None:
        if receipt <= 0:
            session.refuse(undelivered_error(event.name, event.id, receipt, self._counters))


def _about(event: Event, code: Code, message: str) -> PeerError:
    return PeerError(code, message, id=event.id, event_type=event.name)


def _unpermitted(grant: HeldGrant) -> PeerError:
    if grant.expired:
        return PeerError(Code.TOKEN_EXPIRED, "the token has expired: authenticate with another one")
    if grant.suspended:
        return PeerError(Code.AUTH_UNAVAILABLE, "access cannot be checked at present", retry_after=1.0)
    return PeerError(Code.ACCESS_DENIED, "this event is not permitted")

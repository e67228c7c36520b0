"""Service → clients: what arrives on the broadcast channel and on this process's reply channel.

Decodes the envelope only, finds the addressed sockets of this process, and encodes once for each of their dialects.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from typing import Final, Protocol

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from kraftek.contract.errors import Code, is_code
from kraftek.contract.interfaces import IOutlet, Numbered
from kraftek.contract.iteration import Iteration
from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.messages import Broadcast, Delivery, Outgoing
from kraftek.contract.metrics import Counters
from kraftek.contract.names import GATEWAY_OWN, RECEIPT, REQUEST_PROGRESS, room_topic, user_topic
from kraftek.contract.order import UNCERTAIN
from kraftek.contract.surrogates import HALF, is_whole, reread
from kraftek.core.receipts import Receipts
from kraftek.core.requests import Requests
from kraftek.core.roster import Audience, Roster, audience_of
from kraftek.core.session import Session

__all__ = ["Deliveries"]

_MANY = 256
"""Clients after which a broadcast looks at the time."""

_STEP = 0.002
"""Seconds for which a broadcast is sent at once. What is left is done in steps: :mod:`kraftek.contract.iteration`. To
look 10,000 clients up, and have those wait, takes 5 ms more."""

_SAMPLE = 200
"""Bytes of a malformed message that its log line shows."""


class _Room(Struct):
    roomId: str | None = None


_DISCONNECTED: Final = "disconnected by a service"


class _Command(Struct):
    # Of any type: the command is carried out even if a service gets these wrong.
    code: object = Code.ACCESS_REVOKED
    message: object = _DISCONNECTED


_decode = msgspec.json.Decoder(Broadcast).decode
_decode_room = msgspec.json.Decoder(_Room).decode
_decode_command = msgspec.json.Decoder(_Command | None).decode


class Topic(Protocol):
    """What has a history: :class:`kraftek.core.followed.Followed`."""

    @property
    def room_id(self) -> str | None: ...

    def audience(self, without: Iterable[str]) -> Audience: ...

    def outlet(self, session: Session) -> IOutlet: ...


Obey = Callable[[str, str | None, Collection[Session], Raw], None]
"""Carries out a command to gateways: its type, its room, whom it is about, and its payload."""


class Deliveries:
    """Carries services' messages to the sockets on this process. ``followed``: topics of which it gets what is part
    of their history by :meth:`told` alone. ``obey``: to be set before anything is received.
    """

    _log = Logger()

    def __init__(
        self,
        roster: Roster,
        requests: Requests,
        receipts: Receipts,
        counters: Counters,
        clock: IReactorTime,
        iteration: Iteration,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.followed: Container[str] = ()
        self.obey: Obey | None = None
        self._roster = roster
        self._requests = requests
        self._receipts = receipts
        self._counters = counters
        self._clock = clock
        self._iteration = iteration
        self._now = now
        self._once_a_minute = OnceAMinute(clock.seconds)

    def received(self, body: bytes) -> None:
        """Deliver one message of a service, as it was published. Malformed ones are counted and logged."""
        try:
            # The payload is not decoded, and clients have to disconnect when they get text that is not UTF-8.
            if not body.isascii():
                body.decode()
            try:
                message = _decode(body)
            except msgspec.DecodeError as error:
                message, body = _reread(body, error)
            if message.type == "disconnect":
                self._disconnect(message, body)
            elif message.type.startswith(GATEWAY_OWN):
                if message.type == REQUEST_PROGRESS:
                    self._requests.progress.heard(message)
                elif message.type == RECEIPT:
                    self._begin_receipt(message)
                else:
                    assert self.obey is not None
                    self.obey(message.type, message.room_id, self._addressed(message), message.payload)
            elif message.in_reply_to is not None and (message.recipients or message.user_ids):
                self._requests.answered(message, body)
            else:
                self._deliver(message, body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._malformed(body, error)

    def told(self, topic: Topic, offset: int, body: bytes, order: str) -> None:
        """Deliver what is part of a topic's history to everybody of this process who hears it. ``order``: where it is
        in the order (:mod:`kraftek.contract.order`).
        """
        message = self._read(body)
        if message is not None:
            self._counters.broadcasts += 1
            delivery = Delivery(
                message.type, message.payload, topic.room_id, offset=offset, order=order, append=message.append
            )
            if message.receipt is not None:
                delivery = self._to_acknowledge(message, delivery)
            self.send(delivery, topic.audience(message.exclude_socket_ids or ()))

    def tell_again(self, session: Session, topic: Topic, delivery: Delivery) -> None:
        """Deliver what the topic was told to one who has missed it."""
        self.send(delivery, ((session.dialect, (topic.outlet(session),)),))

    def past(self, room_id: str | None, messages: Iterable[Numbered], *, but_for: Collection[str]) -> list[Delivery]:
        """What a topic was told, without what was not for one of these sockets. ``room_id``: of a room. Where they are
        in the order is not said: other topics are not read with it.
        """
        found = []
        for offset, body in messages:
            message = self._read(body)
            if message is not None and frozenset(message.exclude_socket_ids or ()).isdisjoint(but_for):
                append = message.append
                found.append(
                    Delivery(message.type, message.payload, room_id, offset=offset, order=UNCERTAIN, append=append)
                )
        return found

    def _read(self, body: bytes) -> Broadcast | None:
        """A message to a room, whatever else it says of whom it is for."""
        try:
            if not body.isascii():
                body.decode()
            try:
                message = _decode(body)
            except msgspec.DecodeError as error:
                message, _ = reread(_decode, body, error)
            if message.type == "disconnect" or message.type.startswith(GATEWAY_OWN):
                raise msgspec.ValidationError("a command is not told to a room")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self._malformed(body, error)
            return None
        return message

    def _malformed(self, body: bytes, error: Exception) -> None:
        self._counters.broadcasts_malformed += 1
        self._complain("Ignored a malformed broadcast: {error}: {sample}", body, error=str(error))

    def _deliver(self, message: Broadcast, body: bytes) -> None:
        self._counters.broadcasts += 1
        room_id = None
        audience: Audience
        if message.recipients and len(message.recipients) == 1 and not (message.user_ids or message.exclude_socket_ids):
            # The usual case: an answer to one client, here or on another process.
            self._answer(message.recipients[0], message)
            return
        if message.offset is not None and message.user_ids:
            user_ids = tuple(user_id for user_id in message.user_ids if user_topic(user_id) not in self.followed)
            audience = audience_of(self._but_for(message, self._addressed(replace(message, user_ids=user_ids))))
        elif message.recipients or message.user_ids:
            audience = audience_of(self._but_for(message, self._addressed(message)))
        elif message.everybody:
            now = self._now()
            users = [session for session in self._roster.users() if not session.is_expired(now)]
            audience = audience_of(self._but_for(message, users))
        else:
            room_id = message.room_id or _room_in(message.payload)
            if room_id is None:
                self._counters.broadcasts_without_target += 1
                self._complain("Ignored a broadcast without recipients and room: {sample}", body)
                return
            if message.offset is not None and room_topic(room_id) in self.followed:
                return
            if message.exclude_socket_ids:
                audience = self._roster.audience_without(room_id, message.exclude_socket_ids)
            else:
                audience = self._roster.audience(room_id)
        delivery = Delivery(message.type, message.payload, room_id, append=message.append)
        if message.receipt is not None:
            delivery = self._to_acknowledge(message, delivery)
        self.send(delivery, audience)

    def send(self, delivery: Delivery, audience: Audience) -> None:
        """Send it to these, encoded once for all of a kind."""
        for dialect, links in audience:
            outgoing = dialect.encode(delivery)
            if outgoing is not None:
                outgoing.about = delivery
                if len(links) > _MANY:
                    self._write_to_many(links, outgoing)
                else:
                    for link in links:
                        link.write(outgoing)
                self._counters.delivered += len(links)

    def _write_to_many(self, links: Sequence[IOutlet], outgoing: Outgoing) -> None:
        """As long as there is time they send it at once; then they do so at the end of the iteration, which takes no
        more time than it may.
        """
        iteration, seconds = self._iteration, self._clock.seconds
        until = seconds() + _STEP
        for start in range(0, len(links), _MANY):
            if iteration.ending and seconds() > until:
                iteration.ending = False
            for link in links[start : start + _MANY]:
                link.write(outgoing)

    def _answer(self, socket_id: str, message: Broadcast) -> None:
        session = self._roster.socket(socket_id)
        if session is not None:
            delivery = Delivery(message.type, message.payload)
            outgoing = session.dialect.encode(delivery)
            if outgoing is not None:
                outgoing.about = delivery
                session.outlet.write(outgoing)
                self._counters.delivered += 1

    def _but_for(self, message: Broadcast, sessions: Collection[Session]) -> Collection[Session]:
        excluded = frozenset(message.exclude_socket_ids or ())
        return [session for session in sessions if session.socket_id not in excluded] if excluded else sessions

    def _addressed(self, message: Broadcast) -> Collection[Session]:
        sessions: dict[Session, None] = {}
        for socket_id in message.recipients or ():
            session = self._roster.socket(socket_id)
            if session is not None:
                sessions[session] = None
        for user_id in message.user_ids or ():
            now = self._now()
            sessions.update({session: None for session in self._roster.user(user_id) if not session.is_expired(now)})
        return sessions

    def _begin_receipt(self, message: Broadcast) -> None:
        """Those whom the message will be for are those whom it would be for now: it comes next."""
        if message.room_id and not (message.recipients or message.user_ids):
            sessions = self._roster.room(message.room_id)
        elif message.user_ids and not (message.recipients or message.room_id):
            sessions = self._addressed(message)
        else:
            raise msgspec.ValidationError("expected a room, or users")
        self._receipts.begin(message, self._but_for(message, sessions))

    def _to_acknowledge(self, message: Broadcast, delivery: Delivery) -> Delivery:
        return replace(delivery, receipt=self._receipts.number(message.receipt))

    def _disconnect(self, message: Broadcast, body: bytes) -> None:
        try:
            command = _decode_command(message.payload) or _Command()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            command = _Command(code=None)
        code, text = command.code, command.message
        if not isinstance(code, str) or not is_code(code) or not isinstance(text, str):
            self._counters.broadcasts_malformed += 1
            self._complain("A disconnect whose code or message is malformed is done as ACCESS_REVOKED: {sample}", body)
            code = Code.ACCESS_REVOKED
            text = text if isinstance(text, str) else _DISCONNECTED
        for session in self._addressed(message):
            if code == Code.DUPLICATE_CONNECTION:
                # Another gateway's word about a login. What a service gave is none.
                if message.room_id is None or message.room_id in session.asked:
                    session.supersede()
            elif message.room_id is None or message.room_id in session.rooms:
                session.evict(code, text)

    def _complain(self, format: str, body: bytes, **details: str) -> None:
        sample = body[:_SAMPLE].decode("utf-8", "replace")
        self._once_a_minute(self._log.warn, format, sample=sample, **details)


def _reread(body: bytes, error: msgspec.DecodeError) -> tuple[Broadcast, bytes]:
    """The message and its body, with whole characters. A room that the payload names is a name all the same."""
    message, whole = reread(_decode, body, error)
    addressed = message.recipients or message.user_ids or message.everybody or message.room_id
    if not addressed and not is_whole(_room_in(message.payload)):
        raise msgspec.ValidationError(HALF)
    return message, whole


def _room_in(payload: Raw) -> str | None:
    try:
        return _decode_room(payload).roomId
    except msgspec.ValidationError:
        return None

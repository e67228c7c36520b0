"""The core with nothing real around it, and conversations with it as transcripts.

:class:`House` is the core that :class:`kraftek.daemon.assembly.Core`, on the stand-ins of
``tests/support/fakes.py``. A :class:`Client` of the native dialect plays transcripts against
it, a line a step:

======================  ===============================================================================================
``> {"type": …}``       the client sends this text
``< {"type": …}``       the client is told this next
``x CODE message {…}``  the client is told this error next; the words are its ``id``, ``roomId``, ``eventType`` and
                        ``retryAfter``
``= 4401 AUTH_FAILED``  the client's socket is closed so
``? token room``        the oldest question about access that has no answer is this one; ``-`` is no room
``! yes user``          it is answered: ``yes`` with the user and further words of the grant as JSON, ``no`` with a
                        message, ``away``
``* channel {…}``       Redis has been sent this event next; of the envelope only these words are compared
``+ 2``                 Redis says how many got the oldest of those
``@ 10``                so many seconds pass
======================  ===============================================================================================

``$me`` stands for the client's socket id. What was said, asked or sent and is not in the transcript, fails it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace
from twisted.internet.task import Clock

from kraftek.contract.accounts import Accounts
from kraftek.contract.interfaces import IDialect
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Authenticate
from kraftek.contract.metrics import Counters
from kraftek.contract.names import shown_key
from kraftek.contract.settings import Config, Limits, Registration, RoomPolicy, SocketIO, Users
from kraftek.core.client_drain import ClientDrain
from kraftek.core.dispatch import Dispatch
from kraftek.core.registry import ServiceRegistry
from kraftek.core.rooms.shown import Shown
from kraftek.core.session import SessionState
from kraftek.daemon.assembly import Core, Surroundings
from kraftek.daemon.gauges import gauges_of
from kraftek.edge.dialects.native import NativeDialect
from tests.support.backlogs import make_backlogs
from tests.support.fakes import FakeAccess, FakeBus, FakeLink, FakeLogs, FakeRecords, FakeRooms, Published

__all__ = ["CHAT", "NOTES", "Client", "House", "works"]

NOTES = Registration(name="notes", channel="events:notes")
CHAT = Registration(name="chat", channel="events:chat", reply=True)

BROADCAST = "events:broadcast"


class House:
    """One gateway process. Those that are given the same ``channels`` and ``sockets`` share a Redis. ``dispatch``
    makes what is used in place of the usual one. ``history``: what is kept of rooms, in ``logs``, and of which clients
    see who is there; ``users``: what is kept of users. What users show is in ``data``, also with a shared Redis.
    ``records``: Socket.IO clients are recovered, by these.
    """

    def __init__(
        self,
        gateway_id: str = "gw",
        *,
        single: bool = True,
        services: Sequence[Registration] = (NOTES, CHAT),
        channels: dict[str, list[Callable[[bytes], None]]] | None = None,
        sockets: dict[tuple[str, str], dict[str, int]] | None = None,
        prefix: str = "",
        limits: Limits | None = None,
        auto_register: tuple[str, ...] = (),
        dispatch: Callable[[House], Dispatch] | None = None,
        history: Sequence[RoomPolicy] = (),
        users: Users = Users(),  # noqa: B008  # it is frozen
        logs: FakeLogs | None = None,
        data: dict[tuple[str, str], bytes] | None = None,
        records: FakeRecords | None = None,
    ) -> None:
        self.clock = Clock()
        self.wall_is_ahead = 0.0
        # Keeping answers is a script's work: tests/core/test_requests.py has it with a real Redis.
        self.limits = replace(limits or Limits(), request_window=0 if dispatch is None else 120)
        self.auto_register = auto_register
        self.counters = Counters()
        self.iteration = Iteration(self.clock)
        self.accounts = Accounts()
        self.access = FakeAccess()
        self.rooms = FakeRooms(sockets)
        self.rooms.shown, self.rooms.changed = Shown(history), self._changed
        if data is not None:
            self.rooms.data = data
        self.logs = logs or FakeLogs()
        self.records = records or FakeRecords()
        self.bus = FakeBus(channels, prefix=prefix)
        self.registry = ServiceRegistry(services)
        self.given = given = Surroundings(
            config=Config(
                limits=self.limits,
                sessions="single" if single else "many",
                rooms=tuple(history),
                socketio=SocketIO(recovery=records is not None),
                users=users,
                auto_register=auto_register,
            ),
            gateway_id=gateway_id,
            registry=self.registry,
            bus=self.bus,
            access=self.access,
            counters=self.counters,
            accounts=self.accounts,
            clock=self.clock,
            iteration=self.iteration,
            now=lambda: self.clock.seconds() + self.wall_is_ahead,
        )
        instead = None if dispatch is None else dispatch(self)
        core = Core(given, rooms=self.rooms, dispatch=instead, logs=self.logs, records=self.records)
        self.core = core
        self.roster = core.roster
        self.admission = core.admission
        self.access_watch = core.access_watch
        self.membership = core.membership
        self.following = core.following
        self.reading = core.resuming.reading
        self.presence = core.presence
        self.requests = core.requests
        self.gateway = core.gateway
        self.deliveries = core.deliveries
        self.receipts = core.receipts
        self.move = core.move
        self.drain = ClientDrain(core.roster, core.requests, self.clock)
        self.gauges = gauges_of(core, self.bus, (), make_backlogs(self.clock, self.counters, self.limits), ())

    def connect(self, credentials: Authenticate | None = None, dialect: IDialect | None = None) -> Client:
        """A client connects; ``credentials`` came with its handshake."""
        return Client(self, credentials, dialect)

    def admit(self, user_id: str = "user", room_id: str | None = "room", token: str = "token") -> Client:
        """A client connects and is let in; what it was told is not looked at again."""
        client = self.connect()
        client.send({"type": "authenticate", "payload": {"token": token, "roomId": room_id}})
        self.access.next().yes(user_id)
        client.link.read()
        return client

    def pass_time(self, seconds: float) -> None:
        """Time passes, with a sweep every quarter of a second as the daemon does it."""
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)
            self.admission.sweep()
            self.access_watch.sweep()
            self.membership.reconciliation.sweep()
            self.following.sweep()
            self.presence.sweep()
            self.admission.recoverable.sweep()
            self.requests.sweep()
            self.receipts.sweep()

    def _changed(self, room_id: str) -> None:
        """Redis says to all gateways that listen that somebody came or went."""
        for listener in tuple(self.bus._channels.get(self.bus.channel_name(shown_key(room_id)), ())):
            listener(b"")

    def broadcast(self, **message: Any) -> None:
        """A service publishes on the broadcast channel."""
        self.deliveries.received(json.dumps(message).encode())

    def next_published(self) -> Published:
        """The oldest message that Redis has not answered."""
        return self.bus.published[0]


class Client:
    """A client: its link, its session, and what it says and is told."""

    def __init__(self, house: House, credentials: Authenticate | None, dialect: IDialect | None) -> None:
        self.house = house
        self.link = FakeLink()
        self.session = house.gateway.open(self.link, dialect or NativeDialect(), credentials)
        if dialect is None:
            self.greeting = self.link.read()

    @property
    def id(self) -> str:
        return self.session.socket_id

    def send(self, message: Any) -> None:
        """Send text, or a value as JSON."""
        text = message if isinstance(message, str) else json.dumps(message)
        self.session.receive(text.encode())

    def leave(self) -> None:
        """The client's link is gone."""
        self.session.lost()

    def play(self, transcript: str) -> None:
        """Play the lines, and fail at the first that does not come out."""
        house, link = self.house, self.link
        told: list[Any] = []
        sent = list(house.bus.published)
        for line in transcript.replace("$me", self.id).strip().splitlines():
            told += link.read()
            mark, _, rest = line.strip().partition(" ")
            match mark:
                case ">":
                    assert not told, f"before {line.strip()!r} the client was told {told}"
                    self.send(rest)
                case "<" | "x":
                    assert told, f"expected {rest}, the client was told nothing"
                    said = told.pop(0)
                    assert said == (_error(rest) if mark == "x" else msgspec.json.decode(rest))
                case "=":
                    code, _, reason = rest.partition(" ")
                    assert link.closed == (int(code), reason)
                    assert self.session.state is SessionState.CLOSED
                case "?":
                    token, _, room = rest.partition(" ")
                    question = house.access.questions[0]
                    assert (question.token, question.room_id) == (token, None if room == "-" else room)
                case "!":
                    self._answer(rest)
                case "*":
                    channel, _, words = rest.partition(" ")
                    published = house.bus.published[len(sent)]
                    sent.append(published)
                    expected = msgspec.json.decode(words)
                    event = {word: published.event.get(word) for word in expected}
                    assert (published.channel, event) == (channel, expected)
                case "+":
                    house.bus.answer(int(rest))
                    sent.pop(0)
                case "@":
                    house.pass_time(float(rest))
                case _:
                    raise AssertionError(f"no such step: {line!r}")
        told += link.read()
        assert not told, f"at the end the client was told {told}"
        assert len(house.bus.published) == len(sent), f"at the end Redis was sent {house.bus.published[len(sent) :]}"
        if "=" not in {line.strip()[:1] for line in transcript.splitlines()}:
            assert link.closed is None

    def _answer(self, words: str) -> None:
        question = self.house.access.next()
        kind, _, rest = words.partition(" ")
        if kind == "yes":
            user_id, _, grant = rest.partition(" ")
            question.yes(user_id, **(msgspec.json.decode(grant) if grant else {}))
        elif kind == "no":
            question.no(rest)
        else:
            question.away()
        self.house.clock.advance(0)  # what was held has its turn


def works(client: Client) -> None:
    """The next good event on this socket works."""
    client.play("""
        > {"type": "notes:note:create", "id": "good"}
        * events:notes {"id": "good"}
        + 1
        < {"type": "ack", "id": "good", "payload": {"receivers": 1}}
    """)
    assert client.house.counters.errors_internal == 0


def _error(words: str) -> Any:
    text, brace, more = words.partition(" {")
    code, _, message = text.partition(" ")
    details = msgspec.json.decode(brace + more) if brace else {}
    answered = {key: details.pop(key) for key in ("id", "roomId") if key in details}
    return {"type": "error", "payload": {"code": code, "message": message, **details}, **answered}

"""One client's session: every cell of its table, the order of what is held, and the guard of its edge."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface.verify import verifyObject

from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IReceiver
from kraftek.contract.messages import Authenticate, Connected, Event, Inbound, Join, Leave, Outbound, Outgoing, Ping
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Limits
from kraftek.contract.turns import STEP
from kraftek.core.budgets import Budgets
from kraftek.core.session import Session, SessionState
from kraftek.edge.dialects.native import NativeDialect
from tests.support.fakes import FakeLink
from tests.support.world import House

NEW, CHECKING, READY, CLOSED = SessionState
AUTHENTICATE = {"type": "authenticate", "payload": {"token": "t"}}
JOIN = {"type": "join", "payload": {"roomId": "r"}}
LEAVE = {"type": "leave", "payload": {"roomId": "r"}}
EVENT = {"type": "a:b:c"}


class FakeCore:
    """Records what a session hands on. ``error`` is raised once; ``asks``: these kinds begin a check.
    ``waiting``: sessions that wait for their turn; ``None``, and they have all of them at once.
    """

    def __init__(self, *asks: type) -> None:
        self.handled: list[Inbound] = []
        self.ended: list[Session] = []
        self.error: Exception | None = None
        self.asks = asks
        self.accounts = Accounts()
        self.waiting: list[Session] | None = None

    def handle(self, session: Session, message: Inbound) -> None:
        self.handled.append(message)
        error, self.error = self.error, None
        if error is not None:
            raise error
        if isinstance(message, self.asks):
            session.check_begins()

    def limit(self, session: Session, message: Inbound, error: PeerError) -> bool:
        if isinstance(message, Ping):
            return False
        error.id = message.id
        error.event_type = message.name if isinstance(message, Event) else None
        raise error

    def release(self, session: Session) -> None:
        if self.waiting is not None:
            self.waiting.append(session)
            return
        while session.step():
            pass

    def closed(self, session: Session) -> None:
        self.ended.append(session)

    @property
    def names(self) -> list[str]:
        """The handled events by name, other messages by kind."""
        return [m.name if isinstance(m, Event) else type(m).__name__ for m in self.handled]


class Subject:
    """A session with nothing behind it."""

    def __init__(self, *asks: type, **limits: int) -> None:
        self.core = FakeCore(*asks)
        self.link = FakeLink()
        self.counters = Counters()
        self.clock = Clock()
        settings = Limits(**limits)
        budgets = Budgets(settings, self.counters, self.clock)
        self.session = Session("g.1", self.core, self.link, NativeDialect(), settings, self.counters, budgets=budgets)

    def send(self, *messages: Any) -> None:
        for message in messages:
            self.session.receive(json.dumps(message).encode())

    def told(self) -> list[tuple[str, str]]:
        return [(m["payload"]["code"], m["payload"]["message"]) for m in self.link.read()]


def in_state(state: SessionState, *asks: type) -> Subject:
    """A session that has come to be in this state."""
    subject = Subject(*asks)
    session = subject.session
    if state is READY:
        session.user_id = "user"
        session.check_begins()
        session.check_ends()
    elif state is CHECKING:
        session.check_begins()
    elif state is CLOSED:
        session.lost()
        subject.core.ended.clear()
    assert session.state is state
    return subject


def test_it_receives_what_its_link_hands_it() -> None:
    assert verifyObject(IReceiver, Subject().session)


# The table. What NEW and READY do with each message is the core's to say: they hand it on.


@pytest.mark.parametrize("state", [NEW, READY])
@pytest.mark.parametrize(
    ("message", "kind"), [(AUTHENTICATE, Authenticate), (JOIN, Join), (LEAVE, Leave), (EVENT, Event)]
)
def test_new_and_ready_hand_messages_on_at_once(state: SessionState, message: Any, kind: type) -> None:
    subject = in_state(state)
    subject.send(message)
    (handled,) = subject.core.handled
    assert isinstance(handled, kind)
    assert subject.session.state is state


@pytest.mark.parametrize("state", [NEW, READY])
@pytest.mark.parametrize("message", [AUTHENTICATE, JOIN])
def test_a_question_about_access_makes_it_checking(state: SessionState, message: Any) -> None:
    subject = in_state(state, Authenticate, Join)
    subject.send(message)
    assert subject.session.state is CHECKING


@pytest.mark.parametrize("message", [AUTHENTICATE, JOIN, LEAVE, EVENT])
def test_checking_holds_everything(message: Any) -> None:
    subject = in_state(CHECKING)
    subject.send(message)
    assert subject.core.handled == []
    assert subject.link.read() == []
    subject.session.check_ends()
    assert len(subject.core.handled) == 1


@pytest.mark.parametrize("message", [AUTHENTICATE, JOIN, LEAVE, EVENT, {"type": 5}])
def test_closed_ignores_everything(message: Any) -> None:
    subject = in_state(CLOSED)
    subject.send(message)
    subject.session.handle(Event("a:b:c"))
    assert (subject.core.handled, subject.link.written) == ([], [])
    assert subject.counters.received == 0


@pytest.mark.parametrize(("user_id", "state"), [(None, NEW), ("user", READY)])
def test_the_last_check_to_end_decides_by_the_identity(user_id: str | None, state: SessionState) -> None:
    subject = in_state(CHECKING)
    session = subject.session
    session.check_begins()
    session.check_begins()
    session.user_id = user_id
    for _ in range(2):
        session.check_ends()
        assert session.state is CHECKING
    session.check_ends()
    assert session.state is state


@pytest.mark.parametrize("state", [NEW, CHECKING, READY])
def test_a_lost_client_is_closed_and_its_core_told_once(state: SessionState) -> None:
    subject = in_state(state)
    subject.session.lost()
    assert subject.session.state is CLOSED
    subject.session.lost()
    subject.session.close(1001, "later")
    assert subject.core.ended == [subject.session]
    assert subject.link.closed is None


@pytest.mark.parametrize("state", [NEW, CHECKING, READY])
def test_a_closed_client_is_closed_and_its_core_told_once(state: SessionState) -> None:
    subject = in_state(state)
    subject.session.close(1001, "the gateway stops")
    assert subject.session.state is CLOSED
    assert subject.link.closed == (1001, "the gateway stops")
    subject.session.close(4401, "again")
    subject.session.lost()
    assert subject.core.ended == [subject.session]
    assert subject.link.closed == (1001, "the gateway stops")


def test_closed_stays_closed_when_its_check_ends() -> None:
    subject = in_state(CHECKING)
    subject.send(EVENT)
    assert subject.core.accounts.held > 0
    subject.session.lost()
    subject.session.check_ends()
    assert subject.session.state is CLOSED
    assert (subject.core.handled, subject.core.accounts.held) == ([], 0)


# What is held.


def event(name: str) -> dict[str, str]:
    return {"type": f"{name}::"}


def test_what_was_held_is_done_in_order() -> None:
    subject = in_state(CHECKING)
    subject.send(event("one"), JOIN, event("two"), LEAVE, event("three"))
    subject.session.check_ends()
    assert subject.core.names == ["one::", "Join", "two::", "Leave", "three::"]
    assert subject.core.accounts.held == 0


def test_who_is_closed_by_what_was_held_holds_nothing_any_more() -> None:
    subject = in_state(CHECKING)
    subject.send(event("one"), event("two"))
    subject.core.error = RuntimeError("a fault of ours")
    with capturedLogs():
        subject.session.check_ends()
    assert (subject.session.state, subject.core.accounts.held) == (CLOSED, 0)


def test_a_held_question_holds_the_rest() -> None:
    subject = in_state(CHECKING, Join)
    subject.send(event("one"), JOIN, event("two"))
    subject.session.user_id = "user"
    subject.session.check_ends()
    assert subject.core.names == ["one::", "Join"]
    assert subject.session.state is CHECKING
    subject.send(event("three"))
    subject.session.check_ends()
    assert subject.core.names == ["one::", "Join", "two::", "three::"]
    assert subject.session.state is READY


def test_a_held_question_that_is_answered_at_once_changes_no_order() -> None:
    subject = in_state(CHECKING)

    class Knowing(FakeCore):
        def handle(self, session: Session, message: Inbound) -> None:
            super().handle(session, message)
            if isinstance(message, Join):
                session.check_begins()
                session.check_ends()

    core = Knowing()
    subject.session._core = core
    subject.send(event("one"), JOIN, event("two"), JOIN, event("three"))
    subject.session.check_ends()
    assert core.names == ["one::", "Join", "two::", "Join", "three::"]


def test_any_number_of_held_questions_may_be_answered_at_once() -> None:
    subject = Subject(held_messages=5000)

    class Knowing(FakeCore):
        def handle(self, session: Session, message: Inbound) -> None:
            super().handle(session, message)
            session.check_begins()
            session.check_ends()

    core = Knowing()
    subject.session._core = core
    subject.session.check_begins()
    subject.send(*[JOIN] * 3000)
    subject.session.check_ends()
    assert len(core.handled) == 3000
    assert subject.session.state is NEW
    assert subject.link.read() == []


def test_what_goes_wrong_with_one_held_message_leaves_the_others() -> None:
    subject = in_state(CHECKING)
    subject.send(event("one"), event("two"))
    subject.core.error = PeerError(Code.ACCESS_DENIED, "no")
    subject.session.check_ends()
    assert subject.core.names == ["one::", "two::"]
    assert subject.told() == [("ACCESS_DENIED", "no")]


def test_a_held_message_that_closes_ends_it() -> None:
    subject = in_state(CHECKING)
    subject.send(event("one"), event("two"))
    subject.core.error = PeerError(Code.AUTH_FAILED, "no", closes=True)
    subject.session.check_ends()
    assert subject.core.names == ["one::"]
    assert subject.link.closed == (4401, "AUTH_FAILED")


def test_credentials_of_the_handshake_are_taken_like_messages() -> None:
    subject = in_state(CHECKING)
    subject.session.handle(Join("r"))
    assert subject.core.handled == []
    subject.session.check_ends()
    subject.session.handle(Leave("r"))
    assert subject.core.names == ["Join", "Leave"]
    assert subject.counters.received == 0


# Turns.


def taking_turns(*asks: type, held: int = 40) -> Subject:
    """A session that holds so many messages, and whose last check has just ended."""
    subject = in_state(CHECKING, *asks)
    subject.core.waiting = []
    subject.session.user_id = "user"
    subject.send(*[event(str(number)) for number in range(held)])
    subject.session.check_ends()
    return subject


def test_what_was_held_is_handled_a_little_at_a_time() -> None:
    subject = taking_turns()
    session, core = subject.session, subject.core
    assert (core.waiting, core.names, session.state) == ([session], [], CHECKING)
    assert [session.step(), len(core.handled), session.step(), len(core.handled)] == [True, STEP, True, 2 * STEP]
    assert session.state is CHECKING
    assert (session.step(), session.state) == (False, READY)
    assert core.names == [f"{number}::" for number in range(40)]
    assert core.waiting == [session]


def test_who_holds_nothing_waits_for_no_turn() -> None:
    subject = taking_turns(held=0)
    assert (subject.core.waiting, subject.session.state) == ([], READY)


def test_what_arrives_before_its_turn_comes_after_what_is_held() -> None:
    subject = taking_turns(held=20)
    subject.session.step()
    subject.send(event("last"))
    assert len(subject.core.handled) == STEP
    subject.session.step()
    assert subject.core.names == [*(f"{number}::" for number in range(20)), "last::"]


def test_a_check_that_begins_before_its_turn_ends_it() -> None:
    subject = taking_turns()
    subject.session.check_begins()
    assert not subject.session.step()
    assert subject.core.handled == []
    subject.session.check_ends()
    assert subject.core.waiting == [subject.session] * 2
    assert subject.session.step()
    assert len(subject.core.handled) == STEP


def test_a_held_question_ends_its_turn() -> None:
    subject = in_state(CHECKING, Join)
    subject.core.waiting = []
    subject.send(event("one"), JOIN, event("two"))
    subject.session.check_ends()
    assert not subject.session.step()
    assert (subject.core.names, subject.session.state) == (["one::", "Join"], CHECKING)
    assert not subject.session.step()
    subject.session.check_ends()
    assert not subject.session.step()
    assert (subject.core.names, subject.session.state) == (["one::", "Join", "two::"], NEW)


def test_a_client_that_leaves_before_its_turn_is_handled_first() -> None:
    subject = taking_turns()
    subject.session.step()
    subject.session.lost()
    assert len(subject.core.handled) == 40
    assert (subject.session.state, subject.core.ended) == (CLOSED, [subject.session])
    assert not subject.session.step()


def test_a_client_that_leaves_before_its_turn_is_not_asked_about() -> None:
    subject = in_state(CHECKING, Join)
    subject.core.waiting = []
    subject.send(event("one"), JOIN, event("two"))
    subject.session.check_ends()
    subject.session.lost()
    assert subject.core.names == ["one::", "Join"]
    assert (subject.session.state, subject.core.ended) == (CLOSED, [subject.session])


@pytest.mark.parametrize("ended", ["closed", "failed"])
def test_a_client_that_is_closed_before_its_turn_loses_what_it_has_sent(ended: str) -> None:
    subject = taking_turns()
    if ended == "closed":
        subject.session.close(1012, "restart")
    else:
        subject.session.failed()
        assert subject.link.closed == (1011, "INTERNAL")
    assert not subject.session.step()
    assert (subject.core.handled, subject.session.state) == ([], CLOSED)


def test_reading_goes_on_as_soon_as_a_turn_has_made_room() -> None:
    subject = Subject(held_messages=STEP + 4)
    subject.core.waiting = []
    subject.session.check_begins()
    subject.send(*[EVENT] * (2 * STEP + 4))
    subject.session.check_ends()
    assert subject.link.paused
    subject.session.step()
    assert subject.link.paused
    subject.session.step()
    assert not subject.link.paused
    assert subject.session.state is CHECKING


# How much is held.


def test_past_the_bound_of_messages_the_client_is_not_read() -> None:
    subject = Subject(held_messages=3)
    subject.session.check_begins()
    subject.send(EVENT, EVENT)
    assert not subject.link.paused
    subject.send(EVENT)
    assert subject.link.paused
    subject.session.check_ends()
    assert not subject.link.paused
    assert len(subject.core.handled) == 3


def test_past_the_bound_of_bytes_the_client_is_not_read() -> None:
    size = len(json.dumps(EVENT))
    subject = Subject(held_bytes=2 * size + 1)
    subject.session.check_begins()
    subject.send(EVENT, EVENT)
    assert not subject.link.paused
    subject.send(EVENT)
    assert subject.link.paused
    subject.session.check_ends()
    assert not subject.link.paused


def test_what_had_been_read_before_the_pause_is_held_all_the_same() -> None:
    subject = Subject(held_messages=2)
    subject.session.check_begins()
    subject.send(*[event(str(n)) for n in range(5)])
    subject.session.check_ends()
    assert subject.core.names == ["0::", "1::", "2::", "3::", "4::"]


def test_reading_goes_on_once_little_enough_is_held() -> None:
    subject = Subject(Join, held_messages=3)
    subject.session.check_begins()
    subject.send(JOIN, JOIN, JOIN, JOIN)
    subject.session.check_ends()
    assert subject.link.paused  # three are held
    subject.session.check_ends()
    assert not subject.link.paused  # two are
    subject.session.check_ends()
    subject.session.check_ends()
    assert len(subject.core.handled) == 4


def test_bytes_are_counted_anew_for_every_check() -> None:
    size = len(json.dumps(EVENT))
    subject = Subject(held_bytes=2 * size)
    for _ in range(3):
        subject.session.check_begins()
        subject.send(EVENT)
        assert not subject.link.paused
        subject.send(EVENT)
        assert subject.link.paused
        subject.session.check_ends()
        assert not subject.link.paused


def test_nothing_is_kept_of_a_client_that_left() -> None:
    subject = in_state(CHECKING)
    subject.send(EVENT)
    subject.session.lost()
    assert subject.session._held is None


# The guard.


def test_the_clients_fault_is_told_and_counted() -> None:
    subject = in_state(READY)
    subject.core.error = PeerError(Code.SERVICE_UNAVAILABLE, "nobody", retry_after=2.0, id="q", event_type="a:b:c")
    subject.send(EVENT)
    assert subject.link.read() == [
        {
            "type": "error",
            "payload": {
                "code": "SERVICE_UNAVAILABLE",
                "message": "nobody",
                "eventType": "a:b:c",
                "retryAfter": 2.0,
            },
            "id": "q",
        }
    ]
    assert subject.link.closed is None
    assert subject.counters.errors_peer == 1
    subject.send(EVENT)
    assert len(subject.core.handled) == 2


@pytest.mark.parametrize("take", [False, True])
def test_our_fault_is_logged_and_the_client_told_no_more_than_that(take: bool) -> None:
    subject = in_state(READY)
    subject.core.error = RuntimeError("the cause")
    with capturedLogs() as logged:
        if take:
            subject.session.handle(Event("a:b:c"))
        else:
            subject.send(EVENT)
    assert subject.told() == [("INTERNAL", "Internal error")]
    assert subject.link.closed == (1011, "INTERNAL")
    assert [str(event["log_failure"].value) for event in logged] == ["the cause"]
    assert logged[0]["socket_id"] == "g.1"
    assert subject.counters.errors_internal == 1
    assert subject.core.ended == [subject.session]


def test_our_fault_after_the_client_left_is_logged_all_the_same() -> None:
    subject = in_state(READY)

    class Leaving(FakeCore):
        def handle(self, session: Session, message: Inbound) -> None:
            session.lost()
            raise RuntimeError("the cause")

    subject.session._core = Leaving()
    with capturedLogs() as logged:
        subject.send(EVENT)
    assert len(logged) == 1
    assert subject.link.written == []


def test_the_clients_fault_after_it_left_is_nobodys() -> None:
    subject = in_state(CLOSED)
    subject.session.refuse(PeerError(Code.ACCESS_DENIED, "no"))
    assert subject.link.written == []
    assert subject.counters.errors_peer == 0


def test_malformed_messages_in_a_row_close() -> None:
    subject = Subject(invalid_messages=3)
    for _ in range(2):
        subject.session.receive(b"{")
        assert subject.link.closed is None
    subject.session.receive(b"{")
    assert [code for code, _ in subject.told()] == ["INVALID_MESSAGE"] * 3
    assert subject.link.closed == (4400, "INVALID_MESSAGE")
    assert subject.core.handled == []


def test_a_good_message_begins_the_count_anew() -> None:
    subject = Subject(invalid_messages=2)
    for _ in range(5):
        subject.session.receive(b"{")
        subject.send(EVENT)
    assert subject.link.closed is None
    assert len(subject.core.handled) == 5


def test_a_malformed_message_is_answered_while_a_check_is_in_flight() -> None:
    subject = in_state(CHECKING)
    subject.session.receive(b"{")
    assert [code for code, _ in subject.told()] == ["INVALID_MESSAGE"]


def test_a_binary_message_is_the_dialects_to_refuse() -> None:
    subject = Subject()
    subject.session.receive(b"{}", True)
    assert [code for code, _ in subject.told()] == ["INVALID_MESSAGE"]


def test_a_message_may_be_complete_in_itself() -> None:
    class Quiet(NativeDialect):
        def received(self, data: bytes, binary: bool) -> Inbound | None:
            return None

        def encode(self, message: Outbound) -> Outgoing | None:
            return None

    subject = Subject()
    subject.session.dialect = Quiet()
    subject.send(EVENT)
    subject.session.send(Connected("g.1"))
    assert subject.core.handled == []
    assert subject.link.written == []
    assert subject.counters.received == 1


def test_its_last_word_to_who_does_not_read() -> None:
    last = Subject().session.overrun()
    assert last is not None
    assert json.loads(last.text) == {
        "type": "error",
        "payload": {
            "code": "SLOW_CONSUMER",
            "message": "send buffer full: the client reads too slowly",
            "retryAfter": 1.0,
        },
    }


@pytest.mark.parametrize(
    ("code", "closed"),
    [
        (Code.ACCESS_REVOKED, 4403),
        (Code.DUPLICATE_CONNECTION, 4409),
        (Code.RATE_LIMITED, 4429),
        (Code.INVALID_MESSAGE, 4400),
        (Code.TIMEOUT, 4403),  # has no close code of its own
    ],
)
def test_evicting(code: Code, closed: int) -> None:
    house = House()
    client = house.admit("alice", "one")
    client.session.evict(code, "because")
    client.play(f"""
        x {code} because
        = {closed} {code}
    """)
    assert house.rooms.entries == {}
    assert len(house.roster) == 0

"""Who is here: what is added is found by every key, and what is removed by none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from twisted.internet.task import Clock

from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import PeerError
from kraftek.contract.messages import Grant, Token
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Limits
from kraftek.core.budgets import Budgets
from kraftek.core.roster import Roster
from kraftek.core.session import HeldGrant, Session
from kraftek.edge.dialects.native import NativeDialect
from tests.support.fakes import FakeLink


class NoCore:
    """A core that nothing is asked of."""

    accounts = Accounts()

    def handle(self, session: Session, message: Any) -> None:
        raise AssertionError("nobody sends")

    def limit(self, session: Session, message: Any, error: PeerError) -> bool:
        raise AssertionError("nobody sends")

    def release(self, session: Session) -> None:
        raise AssertionError("nothing is held")

    def closed(self, session: Session) -> None:
        raise AssertionError("nobody closes")


def session(socket_id: str) -> Session:
    counters = Counters()
    budgets = Budgets(Limits(), counters, Clock())
    return Session(socket_id, NoCore(), FakeLink(), NativeDialect(), Limits(), counters, budgets=budgets)


def identify(roster: Roster, who: Session, user_id: str, token: str) -> None:
    """As membership does it."""
    shown = Token(token)
    roster.identify(who, user_id, shown.digest)
    before, who.user_id, who.token = who.token, user_id, shown
    if before is not None:
        roster.release(who, before.digest)


def enter(roster: Roster, who: Session, room_id: str) -> None:
    who.rooms[room_id] = HeldGrant(Token("room"), Grant("user"))
    roster.enter(who, room_id)


@pytest.fixture
def roster() -> Roster:
    return Roster()


def test_nobody_is_here_at_first(roster: Roster) -> None:
    assert len(roster) == roster.rooms == 0
    assert list(roster) == []
    assert roster.socket("g.1") is None
    assert not any((roster.user("u"), roster.room("r"), roster.digest("d")))


def test_a_session_is_found_by_everything_it_is_known_by(roster: Roster) -> None:
    one = session("g.1")
    roster.add(one)
    assert roster.socket("g.1") is one
    identify(roster, one, "u", "t")
    enter(roster, one, "r")
    assert list(roster.user("u")) == list(roster.room("r")) == list(roster.digest(Token("t").digest)) == [one]
    assert list(roster) == [one]
    assert roster.rooms == 1


def test_a_session_that_is_removed_is_found_by_nothing(roster: Roster) -> None:
    one, other = session("g.1"), session("g.2")
    for each in (one, other):
        roster.add(each)
        identify(roster, each, "u", "t")
        enter(roster, each, "r")
    roster.remove(one)
    assert roster.socket("g.1") is None
    assert list(roster.user("u")) == list(roster.room("r")) == list(roster.digest(Token("t").digest)) == [other]
    roster.remove(other)
    assert len(roster) == roster.rooms == 0
    assert not any((roster.user("u"), roster.room("r"), roster.digest(Token("t").digest)))


def test_removing_twice_removes_once(roster: Roster) -> None:
    one = session("g.1")
    roster.add(one)
    roster.remove(one)
    roster.remove(one)
    assert len(roster) == 0


def test_a_session_that_never_said_who_it_is_is_removed_too(roster: Roster) -> None:
    one = session("g.1")
    roster.add(one)
    roster.remove(one)
    assert roster.socket("g.1") is None


def test_a_new_token_replaces_the_old_one(roster: Roster) -> None:
    one = session("g.1")
    roster.add(one)
    identify(roster, one, "u", "old")
    identify(roster, one, "u", "new")
    assert not roster.digest(Token("old").digest)
    assert list(roster.digest(Token("new").digest)) == list(roster.user("u")) == [one]


def test_a_token_that_gave_a_room_is_known_as_long_as_the_room(roster: Roster) -> None:
    one = session("g.1")
    roster.add(one)
    identify(roster, one, "u", "old")
    one.rooms["r"] = HeldGrant(Token("old"), Grant("u"))
    roster.hold(one, Token("old").digest)
    identify(roster, one, "u", "new")
    assert list(roster.digest(Token("old").digest)) == list(roster.digest(Token("new").digest)) == [one]
    roster.release(one, one.rooms.pop("r").token.digest)
    assert not roster.digest(Token("old").digest)
    one.rooms["r"] = HeldGrant(Token("other"), Grant("u"))
    roster.hold(one, Token("other").digest)
    roster.remove(one)
    assert not roster.digest(Token("other").digest)
    assert len(roster._by_digest) == 0


def test_the_same_token_again_changes_nothing(roster: Roster) -> None:
    one = session("g.1")
    roster.add(one)
    identify(roster, one, "u", "t")
    identify(roster, one, "u", "t")
    assert list(roster.digest(Token("t").digest)) == [one]
    roster.remove(one)
    assert not roster.digest(Token("t").digest)


def test_entering_twice_is_being_there_once(roster: Roster) -> None:
    one = session("g.1")
    roster.enter(one, "r")
    roster.enter(one, "r")
    assert list(roster.room("r")) == [one]
    roster.leave(one, "r")
    assert not roster.room("r")
    roster.leave(one, "r")
    assert roster.rooms == 0


def test_who_leaves_a_room_leaves_the_others_in_it(roster: Roster) -> None:
    several = [session(f"g.{n}") for n in range(3)]
    for each in several:
        roster.enter(each, "r")
    roster.leave(several[1], "r")
    assert set(roster.room("r")) == {several[0], several[2]}
    roster.leave(session("g.9"), "r")
    assert len(roster.room("r")) == 2


def test_being_in_no_room_is_no_room(roster: Roster) -> None:
    one = session("g.1")
    roster.add(one)
    one.rooms[None] = HeldGrant(Token("room"), Grant("u"))
    roster.remove(one)
    assert len(roster) == 0


class RosterAgainstDictionaries(RuleBasedStateMachine):
    """Whatever happens, the roster says what plain dictionaries say."""

    here = Bundle("here")

    def __init__(self) -> None:
        super().__init__()
        self.roster = Roster()
        self.model: dict[str, Session] = {}
        self.count = 0

    @rule(target=here)
    def connect(self) -> Session:
        self.count += 1
        made = session(f"g.{self.count}")
        self.roster.add(made)
        self.model[made.socket_id] = made
        return made

    @rule(who=here, user=st.sampled_from("ab"), token=st.sampled_from("tuv"))
    def identify(self, who: Session, user: str, token: str) -> None:
        if who.user_id in {None, user}:
            identify(self.roster, who, user, token)

    @rule(who=here, room=st.sampled_from("rst"))
    def enter(self, who: Session, room: str) -> None:
        if who.user_id is not None:
            enter(self.roster, who, room)

    @rule(who=here, room=st.sampled_from("rst"))
    def leave(self, who: Session, room: str) -> None:
        if room in who.rooms:
            del who.rooms[room]
            self.roster.leave(who, room)

    @rule(who=consumes(here))
    def disconnect(self, who: Session) -> None:
        self.roster.remove(who)
        del self.model[who.socket_id]

    def matching(self, **known: str) -> Iterator[Session]:
        for who in self.model.values():
            values = {"user": who.user_id, "digest": who.token and who.token.digest}
            if all(values[key] == value for key, value in known.items()):
                yield who

    @invariant()
    def agrees(self) -> None:
        assert len(self.roster) == len(self.model)
        assert set(self.roster) == set(self.model.values())
        for user in "ab":
            assert set(self.roster.user(user)) == set(self.matching(user=user))
        for token in "tuv":
            digest = Token(token).digest
            assert set(self.roster.digest(digest)) == set(self.matching(digest=digest))
        rooms = {room: {who for who in self.model.values() if room in who.rooms} for room in "rst"}
        for room, members in rooms.items():
            assert set(self.roster.room(room)) == members
        assert self.roster.rooms == sum(map(bool, rooms.values()))


TestRosterAgainstDictionaries = RosterAgainstDictionaries.TestCase
TestRosterAgainstDictionaries.settings = settings(max_examples=50, deadline=None)


@pytest.mark.parametrize("others", ["ann", "bob"])
def test_who_of_a_user_is_in_a_room_by_a_token(others: str) -> None:
    """Whether the user has more sockets or the room: of the smaller number each is looked at."""
    roster = Roster()
    in_room, elsewhere, given, stranger, *more = (session(f"s{number}") for number in range(8))
    for who in (in_room, elsewhere, given):
        identify(roster, who, "ann", "t")
    identify(roster, stranger, "bob", "t")
    for who in (in_room, given, stranger):
        enter(roster, who, "r")
    given.rooms["r"].given = True
    for who in more:
        identify(roster, who, others, "t")
        enter(roster, who, "r" if others == "bob" else "other")
    recovering = session("s9")
    roster.enter(recovering, "r")
    assert roster.user_in("ann", "r") == [in_room]
    assert roster.user_in("ann", "nowhere") == roster.user_in("nobody", "r") == []

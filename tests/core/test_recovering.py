"""Socket.IO clients that lose their connection and come back: as what they were, or as others."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred

from kraftek.contract.errors import NotPublished
from kraftek.contract.metrics import RecoveryFailure
from kraftek.contract.names import room_topic, topic_channel
from kraftek.contract.settings import Limits, RoomPolicy
from kraftek.core.followed import STEP
from kraftek.core.session import SessionState
from kraftek.edge.dialects.socketio_client import SocketIOClient
from kraftek.edge.dialects.socketio_packets import SocketSettings
from tests.support.backlogs import make_backlogs
from tests.support.fakes import FakeLink, FakeLogs, FakeRecords
from tests.support.world import House

ROOMS = (RoomPolicy(pattern="board-*", history=100),)
A, B = "board-a", "board-b"


class Fleet:
    """Gateways that share a Redis."""

    def __init__(self) -> None:
        self.logs, self.records = FakeLogs(), FakeRecords()
        self.channels: dict[str, Any] = {}
        self.sockets: dict[Any, Any] = {}
        self.gateways: list[Board] = []

    def gateway(self, **more: Any) -> Board:
        board = Board(self, f"gw{len(self.gateways) + 1}", **more)
        self.gateways.append(board)
        return board

    def tell(self, room_id: str, text: str, *, heard: bool = True, **more: Any) -> None:
        """A service tells a room something; ``heard``: it gets to the gateways."""
        told = self.logs.tell(room_topic(room_id), type="notes:note:said", payload=text, **more)
        for gateway in self.gateways if heard else ():
            gateway.hear(room_id, told)


class Board(House):
    def __init__(self, fleet: Fleet, gateway_id: str, **more: Any) -> None:
        self.fleet = fleet
        super().__init__(gateway_id, history=ROOMS, logs=fleet.logs, records=fleet.records, single=False, **more)

    def hear(self, room_id: str, told: bytes) -> None:
        for listener in tuple(self.bus._channels.get(topic_channel(room_topic(room_id)), ())):
            listener(told)

    def turn(self) -> None:
        """The reactor goes round."""
        self.clock.advance(0)
        self.clock.advance(0)

    def comes(self, user: str = "ann", *rooms: str, was: Page | None = None, token: str | None = None) -> Page:
        """A page connects with a token for the first of these rooms, and joins the others."""
        page = Page(self)
        auth = {"token": token or user, "roomId": rooms[0] if rooms else None}
        if was is not None:
            auth = {"pid": was.pid, "offset": was.last, **auth}
        page.say("0" + json.dumps(auth))
        self.let_in(user)
        page.read()
        for room_id in rooms[1:]:
            page.emit("join", {"roomId": room_id})
            self.let_in(user)
        return page

    def let_in(self, user: str) -> None:
        self.turn()
        while self.access.questions:
            self.access.next().yes(user)
            self.turn()


class Page:
    """A Socket.IO client: what it does with what it gets is what the library does."""

    def __init__(self, gateway: Board) -> None:
        self.gateway = gateway
        self.link = FakeLink()
        order = gateway.admission.recoverable.order
        self.client = SocketIOClient(self.link, SocketSettings(), gateway.gateway.open, order=order)
        self.sid = self.pid = self.last = ""
        self.events: list[tuple[str, Any]] = []

    @property
    def session(self) -> Any:
        return self.client._session

    def say(self, text: str) -> None:
        self.client.receive(text.encode())

    def emit(self, name: str, payload: Any) -> None:
        self.say("2" + json.dumps([name, payload]))

    def read(self) -> list[tuple[str, Any]]:
        """What it got since the last look."""
        written, self.link.written = self.link.written, []
        got: list[tuple[str, Any]] = []
        for outgoing in written:
            text = outgoing.text.decode()
            if text.startswith("40"):
                said = json.loads(text[2:])
                self.sid, self.pid = said["sid"], said.get("pid", "")
                got.append(("connect", None))
            elif text.startswith("42"):
                name, payload, self.last = json.loads(text[2:])
                got.append((name, payload))
        self.events += got
        return got

    def heard(self) -> list[Any]:
        """The notes it got since the last look."""
        return [payload for name, payload in self.read() if name == "notes:note:said"]

    def lose(self) -> None:
        """Its connection is gone."""
        self.read()
        self.client.lost()
        self.gateway.turn()


def back(page: Page, gateway: Board, user: str = "ann", **more: Any) -> Page:
    """It comes back, there."""
    return gateway.comes(user, was=page, **more)


def is_recovered(page: Page, was: Page) -> bool:
    page.read()
    assert page.pid
    return page.pid == was.pid


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_who_comes_back_is_what_it_was_and_gets_what_it_missed(fleet: Fleet) -> None:
    here, there = fleet.gateway(), fleet.gateway()
    page = here.comes("ann", A, B)
    fleet.tell(A, "1")
    assert page.heard() == ["1"]
    page.lose()
    for room_id, text in ((B, "2"), (A, "3"), ("board-c", "4"), (B, "5")):
        fleet.tell(room_id, text)
    again = back(page, there)
    names = [name for name, _ in again.events]
    assert names == ["connect", "authenticated", *["notes:note:said"] * 3]
    assert (again.sid, again.pid) == (page.sid, page.pid)
    authenticated = again.events[1][1]
    assert authenticated == {
        "success": True, "userId": "ann", "roomId": A, "recovered": True, "socketId": again.session.socket_id,
    }  # fmt: skip
    assert authenticated["socketId"].startswith("gw2.")
    assert [payload for name, payload in again.events if name == "notes:note:said"] == ["2", "3", "5"]
    fleet.tell(A, "6")
    fleet.tell(B, "7")
    assert again.heard() == ["6", "7"]
    assert (there.counters.recovered, there.counters.resumed_messages) == (1, 3)
    again.emit("notes:note:say", 1)
    assert json.loads(there.bus.published[-1].body)["roomId"] == A


def test_to_come_back_counts_as_to_join_its_rooms(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A, B)
    page.lose()
    gateway.clock.advance(10)
    now = gateway.clock.seconds()
    again = back(page, gateway)
    assert is_recovered(again, page)
    [(user_id, full_at)] = gateway.admission.budgets.give().joins
    assert user_id == "ann"
    assert full_at - now == pytest.approx(2 / gateway.limits.joins_per_user)


def test_it_comes_back_again_and_again(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A, B)
    for number in range(12):
        page.lose()
        fleet.tell((A, B)[number % 2], str(number))
        was, page = page, back(page, gateway)
        assert is_recovered(page, was)
        assert [payload for name, payload in page.events if name == "notes:note:said"] == [str(number)]
    ((_, record),) = fleet.records.kept.values()
    assert len(record.sockets) == 9


def test_who_breaks_off_in_what_it_missed_gets_the_rest_once(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A, B)
    page.lose()
    for number in range(6):
        fleet.tell((A, B)[number % 2], str(number))
    again = back(page, gateway)
    half = Page(gateway)
    half.pid = page.pid
    seen = [(name, payload) for name, payload in again.events if name == "notes:note:said"]
    assert [payload for _, payload in seen] == list("012345")
    half.last = f"{fleet.logs.life}.3"  # it has read so far
    again.lose()
    third = back(half, gateway)
    assert is_recovered(third, half)
    assert [payload for name, payload in third.events if name == "notes:note:said"] == list("345")


def test_a_gateway_that_dies_without_a_word_takes_nothing_with_it(fleet: Fleet) -> None:
    here, there = fleet.gateway(), fleet.gateway()
    page = here.comes("ann", A)
    page.read()
    fleet.gateways.remove(here)
    fleet.tell(A, "1")
    again = back(page, there)
    assert [name for name, _ in again.events] == ["connect", "authenticated", "notes:note:said"]
    # The old one is not dead at all: nothing that it writes counts any more.
    here.pass_time(60)
    page.client.lost()
    assert fleet.records.kept[page.pid][0] == again.session.socket_id
    assert not fleet.records.left


def test_a_message_with_excluded_sockets_is_not_for_them_under_any_of_their_names(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    first = page.session.socket_id
    page.lose()
    second = back(page, gateway)
    second_id = second.session.socket_id
    second.lose()
    fleet.tell(A, "x", excludeSocketIds=[first])
    fleet.tell(A, "y", excludeSocketIds=[second_id])
    fleet.tell(A, "z")
    third = back(second, gateway)
    assert [payload for name, payload in third.events if name == "notes:note:said"] == ["z"]


def not_recovered(fleet: Fleet, gateway: Board, reason: RecoveryFailure) -> bool:
    return gateway.counters.not_recovered[reason] == 1 and gateway.counters.recovered == 0


def test_what_is_not_all_there_is_not_recovered(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A, B)
    page.lose()
    fleet.logs.kept = 2
    for number in range(3):
        fleet.tell(A, str(number))
    again = gateway.comes("ann", A, was=page)
    assert [name for name, _ in again.events] == ["connect", "authenticated"]
    assert not is_recovered(again, page)
    assert again.sid == again.session.socket_id
    assert not_recovered(fleet, gateway, RecoveryFailure.HISTORY)
    assert again.session.rooms.keys() == {A}
    fleet.tell(B, "x")
    fleet.tell(A, "y")
    assert again.heard() == ["y"]


def test_a_redis_that_is_another_one_recovers_nobody(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    page.lose()
    fleet.logs.life = "ba9876543210"
    assert not is_recovered(gateway.comes("ann", A, was=page), page)
    assert not_recovered(fleet, gateway, RecoveryFailure.HISTORY)


@pytest.mark.parametrize("last", ["", "-", "x", "0123456789ab.", "0123456789ab.1x", "0123456789ab.9999999"])
def test_what_the_client_says_it_has_got_last_is_not_believed(fleet: Fleet, last: str) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    page.lose()
    page.last = last
    assert not is_recovered(gateway.comes("ann", A, was=page), page)
    assert gateway.counters.recovered == 0


def test_a_pid_lets_nobody_in(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    page.lose()
    fleet.tell(A, "secret")
    other = gateway.comes("bob", A, was=page)
    assert not is_recovered(other, page)
    assert [name for name, _ in other.events] == ["connect", "authenticated"]
    assert not_recovered(fleet, gateway, RecoveryFailure.UNKNOWN)
    assert is_recovered(back(page, gateway), page)  # and nobody takes it away by it


def test_it_is_not_recovered_twice(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    page.lose()
    one, two = Page(gateway), Page(gateway)
    for each in (one, two):
        each.say("0" + json.dumps({"pid": page.pid, "offset": page.last, "token": "ann", "roomId": A}))
    gateway.let_in("ann")
    assert [is_recovered(one, page), is_recovered(two, page)] == [True, False]


def test_another_token_of_the_same_user_will_do(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A, B)
    page.lose()
    again = back(page, gateway, token="fresh")
    assert is_recovered(again, page)
    assert {held.token.value for held in again.session.rooms.values()} == {"fresh"}


def test_who_has_lost_access_to_a_room_is_told_nothing(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A, B)
    page.lose()
    fleet.tell(A, "1")
    fleet.tell(B, "2")
    again = Page(gateway)
    again.say("0" + json.dumps({"pid": page.pid, "offset": page.last, "token": "ann", "roomId": A}))
    gateway.turn()
    assert again.read() == []
    assert {question.room_id for question in gateway.access.questions} == {A, B}
    for question in tuple(gateway.access.questions):
        gateway.access.questions.remove(question)
        if question.room_id == A:
            question.yes("ann")
        else:
            question.no("not any more")
    gateway.turn()
    assert [name for name, _ in again.read()] == ["connect"]
    gateway.let_in("ann")
    assert [name for name, _ in again.read()] == ["authenticated"]
    assert again.session.rooms.keys() == {A}
    assert not_recovered(fleet, gateway, RecoveryFailure.ACCESS)


def test_access_that_is_lost_while_it_is_let_in_counts(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A, B)
    page.lose()
    fleet.tell(B, "2")
    again = Page(gateway)
    again.say("0" + json.dumps({"pid": page.pid, "offset": page.last, "token": "ann", "roomId": A}))
    for _ in range(2):
        gateway.access.next().yes("ann")
    gateway.access.next().yes("ann")  # the first room, once more
    gateway.access.next().no("just now")
    gateway.let_in("ann")
    assert "notes:note:said" not in [name for name, _ in again.read()]
    assert again.session.rooms.keys() == {A}
    assert not_recovered(fleet, gateway, RecoveryFailure.ACCESS)


def test_who_leaves_or_is_put_out_does_not_come_back_as_what_it_was(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    page.say("1")
    gateway.turn()
    assert not fleet.records.kept
    page = gateway.comes("ann", A)
    assert fleet.records.kept
    page.session.evict("BANNED", "go")
    gateway.turn()
    assert not fleet.records.kept
    page = gateway.comes("ann", A)
    page.session.close(1012, "restart")
    gateway.turn()
    assert fleet.records.left == {page.pid}


@pytest.mark.parametrize("rooms", [(), ("lobby",), (A, "lobby")])
def test_only_rooms_with_history_are_recovered(fleet: Fleet, rooms: tuple[str, ...]) -> None:
    gateway = fleet.gateway()
    gateway.comes("ann", *rooms)
    assert not fleet.records.kept


def test_a_room_that_is_left_is_not_recovered(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A, "lobby")
    page.emit("leave", {"roomId": "lobby"})
    gateway.turn()
    page.lose()
    fleet.tell(A, "1")
    again = back(page, gateway)
    assert is_recovered(again, page)
    assert again.session.rooms.keys() == {A}


def test_a_room_that_a_service_gave_is_not_recovered(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    gateway.broadcast(type="gateway:room:put", roomId=B, userIds=["ann"])
    gateway.turn()
    assert not fleet.records.kept
    gateway.broadcast(type="gateway:room:remove", roomId=B, userIds=["ann"])
    gateway.turn()
    assert list(fleet.records.kept) == [page.pid]


def test_every_event_says_where_the_order_is(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    fleet.tell(A, "1")
    page.read()
    assert page.last == f"{fleet.logs.life}.1"
    gateway.broadcast(type="notes:note:hi", payload="a string", userIds=["ann"])
    assert page.read() == [("notes:note:hi", "a string")]
    assert page.last == f"{fleet.logs.life}.1"
    gateway.broadcast(type="notes:note:hi", payload="a string", roomId=A)
    page.emit("nothing", 1)
    assert [name for name, _ in page.read()] == ["notes:note:hi", "error"]
    assert page.last == f"{fleet.logs.life}.1"


def test_nothing_is_written_for_a_message(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    gateway.comes("ann", A)
    written = fleet.records.written
    for number in range(100):
        fleet.tell(A, str(number))
    gateway.turn()
    gateway.pass_time(90)
    assert fleet.records.written == written
    assert fleet.records.renewed == 3


def test_while_redis_is_away_nobody_knows(fleet: Fleet) -> None:
    gateway, other = fleet.gateway(), fleet.gateway()
    page = gateway.comes("ann", A)
    gateway.bus.down()
    page.emit("nothing", 1)
    page.read()
    assert page.last == "-"
    fleet.tell(A, "1", heard=False)
    gateway.bus.up()
    gateway.pass_time(1)
    page.read()
    assert page.events[-1] == ("notes:note:said", "1")
    assert page.last == "-"
    assert not is_recovered(other.comes("ann", A, was=page), page)
    fleet.tell(A, "2")
    page.read()
    assert is_recovered(back(page, other), page)


def test_a_hole_in_one_room_is_doubt_in_all(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A, B)
    fleet.tell(A, "lost", heard=False)
    fleet.logs.held = []
    fleet.tell(A, "1")  # by which it is noticed
    fleet.tell(B, "2")
    assert page.heard() == ["2"]
    assert page.last == "-"
    while fleet.logs.held:
        fleet.logs.answer()
    fleet.logs.held = None
    assert page.heard() == ["lost", "1"]
    assert page.last == "-"
    gateway.pass_time(1)
    fleet.tell(B, "3")
    assert page.heard() == ["3"]
    assert page.last == f"{fleet.logs.life}.4"
    page.lose()
    fleet.tell(A, "4")
    again = back(page, gateway)
    assert [payload for name, payload in again.events if name == "notes:note:said"] == ["4"]


def test_who_has_missed_something_and_stayed_is_not_recovered(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    fleet.logs.kept = 0
    fleet.tell(A, "lost", heard=False)
    fleet.tell(A, "too")
    gateway.turn()
    assert page.heard() == []
    assert not fleet.records.kept
    gateway.pass_time(1)
    fleet.tell(A, "1")
    page.lose()
    assert not is_recovered(gateway.comes("ann", A, was=page), page)


def test_while_access_is_in_question_nothing_is_kept(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A, B)
    gateway.access_watch.access_stale(None, "ann", A, True)
    gateway.turn()
    assert not fleet.records.kept
    fleet.tell(A, "withheld")
    fleet.tell(B, "1")
    assert page.heard() == ["1"]
    gateway.let_in("ann")
    assert page.heard() == ["withheld"]
    floor = fleet.records.kept[page.pid][1].floor
    assert floor == f"{fleet.logs.life}.2"
    assert not is_recovered(gateway.comes("ann", A, was=page), page)  # it may have missed the other one
    fleet.tell(A, "2")
    page.lose()
    assert is_recovered(back(page, gateway), page)


def test_what_cannot_be_written_is_doubt_until_it_can_be(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    fleet.records.failure = NotPublished("away")
    page.emit("join", {"roomId": B})
    gateway.let_in("ann")
    fleet.tell(B, "1")
    page.read()
    assert page.last == "-"
    gateway.pass_time(1)
    fleet.records.failure = None
    gateway.pass_time(1)
    assert {room_id for room_id, _, _ in fleet.records.kept[page.pid][1].rooms} == {A, B}
    fleet.tell(A, "2")
    page.lose()
    assert is_recovered(back(page, gateway), page)


def test_a_record_that_redis_has_lost_is_written_again(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    kept = dict(fleet.records.kept)
    fleet.records.kept.clear()
    gateway.pass_time(61)
    assert fleet.records.kept == kept
    page.lose()
    assert is_recovered(back(page, gateway), page)


def test_redis_that_fails_meanwhile_recovers_nobody(fleet: Fleet) -> None:
    gateway, other = fleet.gateway(), fleet.gateway()
    page = gateway.comes("ann", A)
    page.lose()
    fleet.records.failure = NotPublished("away")
    assert not is_recovered(gateway.comes("ann", A, was=page), page)
    assert gateway.counters.not_recovered[RecoveryFailure.UNAVAILABLE] == 1
    fleet.records.failure = None
    other.bus.down()
    assert not is_recovered(other.comes("ann", A, was=page), page)
    assert other.counters.not_recovered[RecoveryFailure.UNAVAILABLE] == 1


def test_what_is_told_while_it_is_let_in_comes_once_and_behind(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    gateway.comes("bob", A)
    page = gateway.comes("ann", A, B)
    page.lose()
    fleet.tell(A, "1")
    again = Page(gateway)
    again.say("0" + json.dumps({"pid": page.pid, "offset": page.last, "token": "ann", "roomId": A}))
    fleet.tell(B, "2")
    fleet.tell(A, "3")
    gateway.broadcast(type="notes:note:hi", payload=0, roomId=A)
    assert again.read() == []
    gateway.let_in("ann")
    fleet.tell(B, "4")
    names = [payload for name, payload in again.read() if name.startswith("notes")]
    assert names == ["1", "2", "3", 0, "4"]
    assert again.last == f"{fleet.logs.life}.4"


def test_what_is_much_is_got_ready_in_turns_and_what_comes_meanwhile_comes_behind(fleet: Fleet) -> None:
    """Of 5,000 messages it took 39 ms at once."""
    gateway = fleet.gateway()
    gateway.comes("bob", A)
    page = gateway.comes("ann", A)
    page.lose()
    for number in range(2 * STEP + 1):
        fleet.tell(A, str(number))
    again = Page(gateway)
    again.say("0" + json.dumps({"pid": page.pid, "offset": page.last, "token": "ann", "roomId": A}))
    assert len(gateway.gateway.turns) == 1
    fleet.tell(A, "meanwhile")
    assert again.read() == []
    gateway.clock.advance(0)
    gateway.let_in("ann")
    assert again.heard() == [*map(str, range(2 * STEP + 1)), "meanwhile"]
    assert is_recovered(again, page)


def test_too_much_that_is_told_meanwhile_is_too_much(fleet: Fleet) -> None:
    gateway = fleet.gateway(limits=Limits(unsent_bytes=2000))
    page = gateway.comes("ann", A)
    page.lose()
    again = Page(gateway)
    again.say("0" + json.dumps({"pid": page.pid, "offset": page.last, "token": "ann", "roomId": A}))
    for _ in range(20):
        fleet.tell(A, "x" * 100)
    gateway.let_in("ann")
    assert not is_recovered(again, page)
    assert not_recovered(fleet, gateway, RecoveryFailure.UNAVAILABLE)


def test_what_other_rules_or_no_redis_keep_from_it(fleet: Fleet) -> None:
    gateway, other = fleet.gateway(), fleet.gateway()
    page = gateway.comes("ann", A)
    page.lose()
    owner, record = fleet.records.kept[page.pid]
    fleet.records.kept[page.pid] = owner, replace(record, rooms=(*record.rooms, ("lobby", "e1", 0)))
    assert not is_recovered(gateway.comes("ann", A, was=page), page)
    assert gateway.counters.not_recovered[RecoveryFailure.HISTORY] == 1
    fleet.records.kept[page.pid] = owner, record
    fleet.logs.failure = NotPublished("away")
    assert not is_recovered(other.comes("ann", A, was=page), page)
    assert other.counters.not_recovered[RecoveryFailure.UNAVAILABLE] == 1


def test_a_token_that_is_another_users_by_then(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    page.lose()
    again = Page(gateway)
    again.say("0" + json.dumps({"pid": page.pid, "offset": page.last, "token": "ann", "roomId": A}))
    gateway.access.next().yes("ann")
    gateway.access.next().yes("bob")
    gateway.let_in("bob")
    assert not is_recovered(again, page)


def test_who_goes_before_it_is_let_in_is_in_no_room(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    page.lose()
    again = Page(gateway)
    again.say("0" + json.dumps({"pid": page.pid, "offset": page.last, "token": "ann", "roomId": A}))
    gateway.access.next().yes("ann")
    again.client.lost()
    gateway.access.next().yes("ann")
    gateway.turn()
    assert not gateway.roster.room(A)
    assert gateway.counters.recovered == 0


def test_who_goes_again_while_it_is_let_in_leaves_nothing_behind(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    page.lose()
    again = Page(gateway)
    again.say("0" + json.dumps({"pid": page.pid, "offset": page.last, "token": "ann", "roomId": A}))
    session = again.session
    again.client.lost()
    gateway.let_in("ann")
    assert session.state is SessionState.CLOSED
    assert not gateway.roster.room(A)
    assert again.read() == []
    assert is_recovered(back(page, gateway), page)


def test_a_second_connect_before_the_answer_to_the_first_is_refused(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    page.lose()
    again = Page(gateway)
    for _ in range(2):
        again.say("0" + json.dumps({"pid": page.pid, "offset": page.last, "token": "ann", "roomId": A}))
    assert again.link.closed is not None


@pytest.mark.parametrize(
    "auth", [{"pid": 7, "offset": "x"}, {"pid": "x" * 65, "offset": "y"}, {"pid": "x", "offset": {}}]
)
def test_other_fields_of_these_names_are_the_pages_own(fleet: Fleet, auth: dict[str, Any]) -> None:
    gateway = fleet.gateway()
    page = Page(gateway)
    page.say("0" + json.dumps({"token": "ann", "roomId": A, **auth}))
    gateway.let_in("ann")
    assert [name for name, _ in page.read()] == ["connect", "authenticated"]
    assert not any(gateway.counters.not_recovered.values())


def test_without_a_token_nothing_is_recovered(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    page.lose()
    again = Page(gateway)
    again.say("0" + json.dumps({"pid": page.pid, "offset": page.last}))
    assert again.read() == [("connect", None)]
    assert again.pid not in ("", page.pid)


def test_another_version_of_the_gateway_goes_on_with_it(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    session = page.session
    given, dialect = gateway.move.give_session(session), page.client.give()
    fleet.gateways.remove(gateway)
    new = fleet.gateway()
    order = new.admission.recoverable.order
    moved = Page(new)
    moved.client = SocketIOClient(
        moved.link, SocketSettings(), new.gateway.open,
        (dialect, lambda link, its: new.move.take_session(given, link, its)), order=order,
    )  # fmt: skip
    moved.pid, moved.last = page.pid, page.last
    new.bus.down()  # Redis is not there yet when it begins
    new.move.take(gateway.move.give())
    assert moved.session.kept.pid == page.pid
    assert order is not None
    assert not order.certain
    new.bus.up()
    new.pass_time(1)
    assert order.certain
    moved.lose()
    assert fleet.records.left == {page.pid}
    fleet.tell(A, "1")
    assert is_recovered(back(moved, new), page)


def test_what_is_read_for_it_is_read_for_its_user_in_turn_and_counts(fleet: Fleet) -> None:
    gateway = fleet.gateway(limits=Limits(bytes_per_user=100, burst=2.0))
    page, again = gateway.comes("ann", A), gateway.comes("ann", A)
    fleet.tell(A, "first")
    page.read()
    again.read()
    page.session.lost()
    again.session.lost()
    for _ in range(5):
        fleet.tell(A, "x" * 100)
    assert is_recovered(back(page, gateway), page)
    assert gateway.admission.budgets.overdrawn("ann", "") > 2
    late = back(again, gateway)
    assert not late.events
    for _ in range(50):
        gateway.clock.advance(0.1)
        gateway.let_in("ann")
    assert is_recovered(late, again)


def begins(page: Page, gateway: Board) -> Page:
    """It comes back there, and is not let in yet."""
    again = Page(gateway)
    again.say("0" + json.dumps({"pid": page.pid, "offset": page.last, "token": "ann", "roomId": A}))
    return again


def test_what_waits_for_a_slow_client_is_not_lost_for_who_comes_back(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = fleet.gateway()
    slow, page = gateway.comes("eve", A), gateway.comes("ann", A)
    page.lose()
    backlogs = make_backlogs(gateway.clock, gateway.counters)
    monkeypatch.setattr(slow.link, "write", backlogs.wait)
    settled: Deferred[None] = Deferred()
    monkeypatch.setattr(gateway.bus, "settled", lambda: settled)
    again = begins(page, gateway)
    gateway.turn()
    fleet.tell(A, "1")  # was not read any more
    gateway.broadcast(type="notes:note:hi", payload="no part of a history", roomId=A)
    settled.callback(None)
    gateway.let_in("ann")
    assert is_recovered(again, page)
    assert [name for name, _ in again.events] == ["connect", "authenticated", "notes:note:said"]


def test_what_is_lost_while_access_is_checked_counts(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A)
    page.lose()
    fleet.tell(A, "1")
    again = begins(page, gateway)
    gateway.turn()
    # Another server, where that was not told: it is certain where that one is, before access is.
    fleet.logs.told.clear()
    fleet.logs.epoch = "e2"
    gateway.membership.following._compare_all()
    gateway.turn()
    assert again.read() == []
    gateway.let_in("ann")
    again.read()
    assert [name for name, _ in again.events] == ["connect", "authenticated"]
    assert not is_recovered(again, page)
    assert not_recovered(fleet, gateway, RecoveryFailure.UNAVAILABLE)
    gateway.pass_time(1)
    assert again.pid in fleet.records.kept  # it comes back from here


def test_what_is_told_while_access_is_in_question_again_is_not_for_it_yet(fleet: Fleet) -> None:
    gateway = fleet.gateway()
    page = gateway.comes("ann", A, B)
    page.lose()
    again = begins(page, gateway)
    for _ in range(2):
        gateway.access.next().yes("ann")
    gateway.access.next().yes("ann")  # the first room, once more
    room_id = next(iter(again.session.rooms))
    gateway.access_watch.access_stale(None, "ann", room_id, revoked=True)
    fleet.tell(room_id, "secret")
    other = next(each for each in gateway.access.questions if each.room_id != room_id)
    gateway.access.questions.remove(other)
    other.yes("ann")
    gateway.turn()
    assert "notes:note:said" not in [name for name, _ in again.read()]
    assert not_recovered(fleet, gateway, RecoveryFailure.ACCESS)

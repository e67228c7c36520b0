"""Another version of the gateway goes on with what the core knows: nobody notices."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from kraftek.contract.errors import Code, Limit, PeerError
from kraftek.contract.messages import Token
from kraftek.contract.settings import Limits, Registration, RoomPolicy, SelfRegistration
from kraftek.core.request_queue import Request
from kraftek.core.self_registrations import SelfRegistered
from kraftek.core.session import SessionState
from kraftek.edge.dialects.native import NativeDialect
from tests.support.fakes import FakeLink
from tests.support.world import CHAT, NOTES, Client, House

BOARDS = (RoomPolicy(pattern="*", presence=True),)


def admitted(house: House, user_id: str = "ann", room_id: str = "room", **grant: Any) -> Client:
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": f"t{user_id}", "roomId": room_id}})
    house.access.next().yes(user_id, **grant)
    client.link.read()
    return client


def taken_over(
    house: House, *, services: tuple[Registration, ...] = (NOTES, CHAT), limits: Limits | None = None
) -> House:
    """A house that goes on with all that there is in this one, by the same clock and with the same Redis."""
    sessions = [*house.roster]
    assert all(house.move.is_movable(session) for session in sessions)
    given = [house.move.give_session(session) for session in sessions]
    core = house.move.give()
    new = House(
        services=services,
        limits=limits or house.limits,
        sockets=house.rooms.sockets,
        auto_register=house.auto_register,
        history=BOARDS,
        data=house.rooms.data,
    )
    new.clock.advance(house.clock.seconds())
    new.wall_is_ahead = house.wall_is_ahead
    for session in given:
        new.move.take_session(session, FakeLink(), NativeDialect())
    new.move.take(core)
    new.rooms.named = house.rooms.named
    return new


def link(house: House, client: Client) -> FakeLink:
    session = house.roster.socket(client.id)
    assert session is not None
    assert isinstance(session.link, FakeLink)
    return session.link


def again(house: House, client: Client) -> Client:
    """The client, in the new house."""
    found = Client.__new__(Client)
    session = house.roster.socket(client.id)
    assert session is not None
    found.house, found.session, found.link = house, session, link(house, client)
    return found


def test_a_member_of_a_room_is_told_what_is_said_there_and_may_send() -> None:
    old = House()
    ann = admitted(old, permissions=["notes:*:*"])
    new = taken_over(old)
    new.broadcast(type="a:b:c", roomId="room", payload=1)
    new.broadcast(type="a:b:c", userIds=["ann"], payload=2)
    assert [message["payload"] for message in link(new, ann).read()] == [1, 2]
    again(new, ann).play("""
        > {"type": "notes:a:b", "id": 1}
        * events:notes {"id": 1, "roomId": "room", "userId": "ann", "socketId": "$me"}
        + 1
        < {"type": "ack", "id": 1, "payload": {"receivers": 1}}
        > {"type": "chat:a:b", "id": 2}
        x ACCESS_DENIED this event is not permitted {"id": 2, "eventType": "chat:a:b"}
        > {"type": "join", "payload": {"roomId": "other"}, "id": 3}
        ? tann other
        ! yes ann
        < {"type": "joined", "payload": {"roomId": "other"}, "id": 3}
    """)


def test_its_entry_stands_and_goes_when_it_leaves() -> None:
    old = House()
    ann = admitted(old)
    new = taken_over(old)
    assert new.membership.reconciliation.standing == old.membership.reconciliation.standing != {}
    again(new, ann).leave()
    assert new.membership.reconciliation.standing == {}
    assert len(new.roster) == 0


def test_who_has_not_authenticated_has_as_long_as_before() -> None:
    old = House(limits=Limits(authenticate_timeout=10.0))
    ann = old.connect()
    old.pass_time(6.0)
    new = taken_over(old)
    its_link = link(new, ann)
    new.pass_time(3.0)
    assert its_link.closed is None
    new.pass_time(2.0)
    assert its_link.closed == (4408, "AUTH_TIMEOUT")


def test_access_expires_when_it_would_have() -> None:
    old = House()
    ann = admitted(old, expiresAt=30.0)
    new = taken_over(old)
    new.pass_time(29.0)
    assert new.access.questions == []
    new.pass_time(2.0)
    assert new.access.next().token == "tann"
    assert link(new, ann).closed is None


def test_an_expired_token_has_as_long_as_before_to_be_followed_by_another() -> None:
    old = House()
    ann = admitted(old, expiresAt=20.0)
    old.pass_time(20.25)
    old.access.next().answer.errback(PeerError(Code.AUTH_FAILED, "no", closes=True))
    old.pass_time(6.0)
    new = taken_over(old)
    ann = again(new, ann)
    ann.send({"type": "notes:n:1"})
    new.pass_time(3.5)
    assert [message["payload"]["code"] for message in ann.link.read()] == ["TOKEN_EXPIRED"]
    assert ann.link.closed is None
    new.pass_time(0.5)
    assert ann.link.closed == (4401, "TOKEN_EXPIRED")


def test_who_shows_another_token_waits_for_the_answer() -> None:
    house = House()
    ann = admitted(house)
    ann.send({"type": "authenticate", "payload": {"token": "new"}})
    session = house.roster.socket(ann.id)
    assert session is not None
    assert not house.move.is_movable(session)
    house.access.next().yes("ann")
    assert house.move.is_movable(session)


def test_a_request_in_flight_is_answered_once() -> None:
    old = House()
    ann = admitted(old)
    ann.send({"type": "chat:a:b", "id": 7})
    old.bus.answer(1)
    new = taken_over(old)
    assert len(new.requests) == 1
    for _ in range(2):
        new.broadcast(type="chat:a:b", recipients=[ann.id], inReplyTo=7, payload=1)
    assert link(new, ann).read() == [{"type": "chat:a:b", "id": 7, "payload": 1}]
    assert new.counters.replies_late == 1


@pytest.mark.parametrize("services", [(NOTES, CHAT), (NOTES,)])
def test_one_without_an_answer_times_out_when_it_would_have(services: tuple[Registration, ...]) -> None:
    old = House()
    ann = admitted(old)
    ann.send({"type": "chat:a:b", "id": 7})
    old.pass_time(6.0)
    new = taken_over(old, services=services)
    new.pass_time(3.0)
    assert link(new, ann).read() == []
    new.pass_time(2.0)
    assert [message["payload"]["code"] for message in link(new, ann).read()] == ["TIMEOUT"]


def test_the_answer_for_a_client_that_is_gone_finds_its_request() -> None:
    old = House()
    ann = admitted(old)
    ann.send({"type": "chat:a:b", "id": 7})
    ann.leave()
    new = taken_over(old)
    assert len(new.requests) == 1
    new.broadcast(type="chat:a:b", recipients=[ann.id], inReplyTo=7, payload=1)
    assert new.counters.delivered == 1
    new.pass_time(1.0)
    assert len(new.requests) == 0


def test_what_waits_for_an_answer_about_access_goes_on_waiting_and_is_asked_again() -> None:
    old = House()
    ann = admitted(old)
    old.access.stale(user_id="ann")
    old.broadcast(type="a:b:c", roomId="room", payload=1)
    old.broadcast(type="a:b:c", userIds=["ann"], payload=2)
    session = next(iter(old.roster))
    assert not old.move.is_movable(session)
    old.access.next().away()
    assert session.rooms["room"].suspended
    new = taken_over(old)
    new.broadcast(type="a:b:c", roomId="room", payload=3)
    assert link(new, ann).read() == []
    new.pass_time(1.5)
    new.access.next().yes("ann")
    assert [message["payload"] for message in link(new, ann).read()] == [1, 2, 3]


def test_budgets_are_used_up_as_they_were() -> None:
    limits = Limits(events_per_user=10, events_per_socket=100, joins_per_user=1, questions_per_user=1, burst=1.0)
    services = (replace(NOTES, rate={"notes:*:*": 1.0}),)
    old = House(limits=limits, services=services)
    ann = admitted(old)
    for _ in range(40):
        ann.send({"type": "notes:a:b"})
    ann.link.read()
    new = taken_over(old, services=services, limits=limits)
    state = old.admission.budgets.give()
    assert new.admission.budgets.give() == state
    assert state.users[0]
    assert state.joins
    assert state.rates
    session = next(iter(new.roster))
    assert new.admission.budgets.full_at(session) == old.admission.budgets.full_at(next(iter(old.roster)))
    assert session.refusals is not None
    ann.send({"type": "notes:a:b", "id": 1})
    again(new, ann).send({"type": "notes:a:b", "id": 1})
    assert link(new, ann).read() == ann.link.read() != []


ERROR = PeerError(Code.RATE_LIMITED, "later", retry_after=2.0, id=7, event_type="chat:a:b", limit=Limit.SHARE)


def test_look_ups_go_on() -> None:
    old = House()
    ann = admitted(old)
    session = next(iter(old.roster))
    for number in range(3):
        ann.send({"type": "chat:a:b", "id": number})
    requests: list[Request] = [*old.requests.look_ups.requests()]
    look_ups = old.requests.look_ups
    look_ups.not_sent(_lasting(requests[0]), True, ERROR)
    look_ups.uncertain(requests[1], -1)
    look_ups.epoch_changed()
    look_ups.uncertain(requests[2], -2)
    requests[0].queue.refused[requests[0]] = requests[0].queue.requests.pop(requests[0])
    new = taken_over(old)
    states = [new.requests.look_ups.give(request) for request in new.requests.look_ups.requests()]
    assert sorted(map(repr, states)) == sorted(repr(look_ups.give(request)) for request in requests)
    assert [each.id for each in new.requests.look_ups.requests()] == [1, 2, 0]
    assert session.state is SessionState.READY


def _lasting(request: Request) -> Request:
    request.lasts = True
    return request


def test_answers_that_redis_has_not_stored_are_stored_later() -> None:
    old = House()
    old.requests.look_ups.store.keep("record", b"answer")
    old.requests.budget.kept(b"x" * 1000, "chat", "ann")
    new = taken_over(old)
    assert new.requests.look_ups.store.find("record") == b"answer"
    assert new.requests.budget.used == 1250


def test_a_service_that_has_registered_itself_is_there() -> None:
    house = House(auto_register=("wiki",))
    house.core.self_registrations.take({"wiki": SelfRegistered(b'{"channel": "x"}', house.clock.seconds() + 5)})
    assert taken_over(house).registry.find("wiki") == SelfRegistration(name="wiki", channel="x")


def watching(house: House) -> Client:
    """A client that shows something of itself, and knows who is in its room."""
    client = house.connect()
    shown = {"token": "tann", "roomId": "room", "data": [1]}
    client.send({"type": "authenticate", "payload": shown})
    house.access.next().yes("ann")
    client.send({"type": "presence", "payload": {"roomId": "room"}})
    client.link.read()
    return client


def test_who_is_told_of_a_room_goes_on_to_be_told() -> None:
    old = House(history=BOARDS)
    ann = watching(old)
    new = taken_over(old)
    new.pass_time(2)
    assert link(new, ann).read() == []  # it is as it was told
    admitted(new, "bob")
    new.pass_time(2)
    (change,) = link(new, ann).read()
    assert change["payload"]["joined"] == [{"userId": "bob"}]
    assert new.core.membership.shown(new.roster.socket(ann.id) or ann.session) == [("room", b"[1]")]


def test_what_changed_during_the_upgrade_is_told_as_a_whole() -> None:
    old = House(history=BOARDS)
    ann = watching(old)
    old.rooms.changed = lambda _: None
    old.rooms.sockets["room", "bob"] = {"other.1": 1}
    new = taken_over(old)
    new.pass_time(2)
    (said,) = link(new, ann).read()
    assert said["payload"]["users"] == [{"userId": "ann", "data": [1]}, {"userId": "bob"}]


def test_acknowledgements_are_waited_for_as_long_as_before() -> None:
    old = House()
    ann, bob = admitted(old), admitted(old, "bob")
    name = {"receipt": {"replyTo": "events:reply:chat", "id": "q"}}
    old.broadcast(type="gateway:receipt", payload={"seconds": 5}, roomId="room", **name)
    old.broadcast(type="t", roomId="room", **name)
    number = ann.link.read()[-1]["receipt"]
    bob.link.read()
    old.pass_time(2)
    new = taken_over(old)
    session = new.roster.socket(ann.id)
    assert session is not None
    session.receive(b'{"type":"receipt","id":%d}' % number)
    new.pass_time(2.75)
    assert new.bus.published == []
    new.pass_time(0.25)
    (answer,) = new.bus.published
    assert answer.event["inReplyTo"] == "q"
    assert answer.event["payload"] == {"gatewayId": "gw", "acknowledged": ["ann"], "waiting": ["bob"], "done": True}
    assert len(new.receipts) == 0


def test_another_version_may_know_more_or_less() -> None:
    """Fields are added with defaults."""
    old = House()
    ann = admitted(old)
    given = msgspec.msgpack.decode(old.move.give_session(next(iter(old.roster))))
    given["mood"] = "new"
    del given["outages"], given["rooms"][0]["suspended"]
    new = House()
    session = new.move.take_session(msgspec.msgpack.encode(given), FakeLink(), NativeDialect())
    assert (session.socket_id, session.user_id, session.state) == (ann.id, "ann", SessionState.READY)
    assert session.token is not None
    assert session.token.digest == Token("tann").digest

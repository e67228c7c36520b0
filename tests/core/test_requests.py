"""Every request gets exactly one answer, and what is sent again runs once."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import capturedLogs

from kraftek.contract.errors import PeerError
from kraftek.contract.interfaces import Undelivered
from kraftek.contract.messages import Broadcast, Event
from kraftek.contract.names import late_answer_key
from kraftek.contract.settings import Limits, Registration
from kraftek.core import request_records
from kraftek.core.request_records import record_key
from tests.support.request_gateways import SEND, RequestGateway, RequestsTestCase, ask, told
from tests.support.waiting import until
from tests.support.world import CHAT, Client, House


def reply(client: Client, id: int | str, payload: Any = "done", **words: Any) -> None:
    """The service answers."""
    client.house.broadcast(**{"type": "r", "recipients": [client.id], "inReplyTo": id, "payload": payload, **words})


def test_a_reply_is_the_one_answer() -> None:
    house = House()
    client = house.admit()
    client.send({"type": SEND, "id": "q"})
    reply(client, "q", 1)  # before Redis says that the event was heard, which comes by another connection
    house.bus.answer(1)
    reply(client, "q", 2)
    house.pass_time(60)
    assert client.link.read() == [{"type": "r", "id": "q", "payload": 1}]
    assert house.counters.replies_late == 1
    assert len(house.requests) == 0


def test_where_the_gateway_answers_the_service_does_not() -> None:
    """Not even if what it says comes before Redis says that it was heard."""
    house = House(services=[Registration(name="chat", channel="events:chat")])
    client = house.admit()
    client.send({"type": SEND, "id": "q"})
    reply(client, "q", None)
    assert client.link.read() == []
    house.bus.answer(1)
    reply(client, "q", None)
    assert client.link.read() == [{"type": "ack", "id": "q", "payload": {"receivers": 1}}]
    assert house.counters.replies_late == 2
    assert len(house.requests) == 0


def test_a_service_that_is_silent() -> None:
    house = House(services=[Registration(name="chat", channel="events:chat", reply=True, timeout=2.0)])
    client = house.admit()
    client.play(f"""
        > {{"type": "{SEND}", "id": 1}}
        * events:chat {{"id": 1}}
        + 1
        @ 1.75
        @ 0.5
        x TIMEOUT no answer within 2 s {{"id": 1, "eventType": "{SEND}"}}
    """)
    reply(client, 1)
    assert client.link.read() == []
    assert (house.counters.requests_timed_out, house.counters.replies_late) == (1, 1)


def test_each_is_overdue_at_its_own_time() -> None:
    slow = Registration(name="slow", channel="events:slow", reply=True, timeout=5.0)
    fast = Registration(name="fast", channel="events:fast", reply=True, timeout=1.0)
    house = House(services=[slow, fast])
    client = house.admit()
    client.play("""
        > {"type": "slow:a:b", "id": 1}
        * events:slow {"id": 1}
        @ 0.5
        > {"type": "fast:a:b", "id": 2}
        * events:fast {"id": 2}
        @ 0.5
        > {"type": "slow:a:b", "id": 3}
        * events:slow {"id": 3}
        @ 0.5
        x TIMEOUT no answer within 1 s {"id": 2, "eventType": "fast:a:b"}
        @ 3.25
        @ 0.25
        x TIMEOUT no answer within 5 s {"id": 1, "eventType": "slow:a:b"}
        @ 1.0
        x TIMEOUT no answer within 5 s {"id": 3, "eventType": "slow:a:b"}
    """)


@pytest.mark.parametrize("receivers", [0, -1, Undelivered.FULL])
def test_an_event_that_nobody_took(receivers: int) -> None:
    house = House()
    client = house.admit()
    client.send({"type": SEND, "id": 1})
    house.bus.answer(receivers)
    (told,) = client.link.read()
    assert (told["id"], told["payload"]["code"]) == (1, "SERVICE_UNAVAILABLE")
    assert told["payload"].get("retryAfter") == (1.0 if receivers == Undelivered.FULL else None)
    house.pass_time(60)
    assert client.link.read() == []
    assert len(house.requests) == 0


def test_redis_is_away() -> None:
    house = House()
    client = house.admit()
    house.bus.down()
    client.send({"type": SEND, "id": 1})
    (told,) = client.link.read()
    assert (told["id"], told["payload"]["code"]) == (1, "SERVICE_UNAVAILABLE")
    assert len(house.requests) == 0


def test_the_same_id_while_its_answer_is_on_the_way() -> None:
    house = House()
    client = house.admit()
    client.send({"type": SEND, "id": 1})
    client.send({"type": SEND, "id": 1})
    assert len(house.bus.published) == 1
    reply(client, 1)
    assert len(client.link.read()) == 1
    assert house.counters.requests_repeated == 1
    client.send({"type": SEND, "id": 1})
    assert len(house.bus.published) == 2


def test_an_id_in_use_again_before_its_first_receipt() -> None:
    house = House()
    client = house.admit()
    client.send({"type": SEND, "id": 1})
    reply(client, 1)
    client.send({"type": SEND, "id": 1})
    house.bus.answer(0)
    assert [message["type"] for message in client.link.read()] == ["r"]
    reply(client, 1)
    assert [message["type"] for message in client.link.read()] == ["r"]
    house.bus.answer(1)
    assert len(house.requests) == 0


def test_what_a_closed_socket_asked_is_forgotten_when_it_is_answered() -> None:
    house = House()
    idle, asks, slow = house.admit("a"), house.admit("b"), house.admit("c")
    for client in (idle, asks, slow):
        client.send({"type": SEND, "id": 1})
    reply(idle, 1)
    for client in (idle, asks, slow):
        client.session.lost()
    assert len(house.requests) == 2
    reply(asks, 1)
    house.bus.answer(1)  # after the answer to it, whose socket is forgotten
    house.pass_time(0.25)
    assert (len(house.requests), [*house.requests._waiting]) == (1, [slow.id])
    house.pass_time(10)
    assert (len(house.requests), [*house.requests._waiting], house.requests._queues) == (0, [], {})
    house.bus.answer(0)
    house.bus.answer(0)
    assert house.counters.replies_late == 0


def test_a_number_and_its_text_are_two_ids() -> None:
    house = House()
    client = house.admit()
    client.send({"type": SEND, "id": 1})
    client.send({"type": SEND, "id": "1"})
    reply(client, "1")
    assert [message["id"] for message in client.link.read()] == ["1"]
    reply(client, 1)
    assert [message["id"] for message in client.link.read()] == [1]


def test_the_bound_of_a_socket() -> None:
    house = House(limits=Limits(requests=2))
    client, other = house.admit("a"), house.admit("b")
    for number in range(3):
        client.send({"type": SEND, "id": number})
    (told,) = client.link.read()
    assert told["id"] == 2
    assert told["payload"]["code"] == "RATE_LIMITED"
    assert told["payload"]["retryAfter"] == 1.0
    other.send({"type": SEND, "id": 0})
    reply(client, 0)
    client.send({"type": SEND, "id": 2})
    assert [message["id"] for message in client.link.read()] == [0]
    assert len(house.bus.published) == 4


def test_the_bound_of_a_service() -> None:
    tight = Registration(name="chat", channel="events:chat", reply=True, requests=1)
    house = House(services=[tight, Registration(name="notes", channel="events:notes")])
    client, other = house.admit("a"), house.admit("b")
    client.send({"type": SEND, "id": 1})
    other.send({"type": SEND, "id": 2})
    (told,) = other.link.read()
    assert (told["id"], told["payload"]["code"]) == (2, "SERVICE_UNAVAILABLE")
    assert told["payload"]["retryAfter"] == 1.0
    other.send({"type": "notes:note:create", "id": 3})
    house.pass_time(10.25)
    other.send({"type": SEND, "id": 4})
    assert [published.event["id"] for published in house.bus.published] == [1, 3, 4]


def test_a_user_alone_may_fill_half_of_what_waits_at_a_service() -> None:
    tight = Registration(name="chat", channel="events:chat", reply=True, requests=8)
    house = House(services=[tight], single=False)
    flooders, other, late = [house.admit("a") for _ in range(3)], house.admit("b"), house.admit("c")
    for number in range(3):
        for client in flooders:
            client.send({"type": SEND, "id": number})
    assert len(house.requests) == 4
    (told, *_) = flooders[2].link.read()
    assert told["payload"] == {
        "code": "RATE_LIMITED",
        "message": "too many requests of this user wait for answers of service chat",
        "eventType": SEND,
        "retryAfter": 1.0,
        "limit": "share",
    }
    for number in range(3):
        other.send({"type": SEND, "id": number})
    # Two users, and three places are left: the share of each is one, which it has.
    assert [message["id"] for message in other.link.read()] == [1, 2]
    late.send({"type": SEND, "id": 1})
    assert late.link.read() == []
    for client in flooders:
        for number in range(3):
            reply(client, number)
    assert len(house.requests) == 2
    house.pass_time(10.25)
    late.link.read()
    for number in range(4):
        late.send({"type": SEND, "id": number})
    assert late.link.read() == []


def test_others_are_let_in_while_one_user_asks_without_end() -> None:
    tight = Registration(name="chat", channel="events:chat", reply=True, requests=100)
    house = House(services=[tight], single=False, limits=Limits(requests=1000))
    flooder = house.admit("flooder")
    for number in range(200):
        flooder.send({"type": SEND, "id": number})
    others = [house.admit(f"user {number}") for number in range(40)]
    for other in others:
        other.send({"type": SEND, "id": 1})
        flooder.send({"type": SEND, "id": f"for {other.id}"})
    assert [other.link.read() for other in others] == [[]] * 40
    assert len(house.requests) == 90
    assert house.counters.rate_limited["share"] == 190


def test_an_answer_for_a_client_that_left() -> None:
    house = House()
    client = house.admit()
    client.send({"type": SEND, "id": 1})
    client.leave()
    reply(client, 1)
    assert len(house.requests) == 0
    reply(client, 1)
    assert house.counters.replies_late == 1


def test_answers_to_others_are_no_business_of_this_process() -> None:
    house = House()
    client = house.admit()
    client.send({"type": SEND, "id": 1})
    house.broadcast(type="r", recipients=["elsewhere.1"], inReplyTo=1)
    assert house.counters.replies_late == 0
    assert client.link.read() == []


def test_an_answer_is_for_one_socket_whatever_user_is_named() -> None:
    house = House(single=False)
    asks, same_user, other = house.admit("a"), house.admit("a"), house.admit("b")
    for client in (asks, same_user, other):
        client.send({"type": SEND, "id": 1})
    reply(asks, 1, 5, userIds=["a"])
    assert asks.link.read() == [{"type": "r", "id": 1, "payload": 5}]
    assert same_user.link.read() == other.link.read() == []


def test_something_else_under_an_id_that_waits() -> None:
    house = House()
    client = house.admit()
    client.send({"type": SEND, "id": 1, "payload": 1})
    client.send({"type": SEND, "id": 1, "payload": 2})
    (told,) = client.link.read()
    assert (told["id"], told["payload"]["code"]) == (1, "INVALID_MESSAGE")
    reply(client, 1)
    assert len(client.link.read()) == 1


def test_a_service_that_was_registered_anew() -> None:
    house = House()
    client = house.admit()
    client.send({"type": SEND, "id": 1})
    house.registry.unregister("chat")
    reply(client, 1)
    assert [message["id"] for message in client.link.read()] == [1]
    house.registry.register(CHAT)
    client.send({"type": SEND, "id": 2})
    house.pass_time(10.25)
    assert [message["payload"]["code"] for message in client.link.read()] == ["TIMEOUT"]


TEXTS = st.text("a:#1", max_size=4)
IDS = TEXTS | st.integers(-2, 2)
NAMES = st.sampled_from(["a:b:c", "a:b:c1", "a:b:c11"])
PLACES = st.sampled_from([None, "", "1", "a"])
PAYLOADS = st.sampled_from(["1", "11", "111"])
ASKED = st.tuples(TEXTS, IDS, NAMES, PLACES, PAYLOADS)


def record_of(user_id: str, request_id: int | str, name: str, room_id: str | None, payload: str) -> str:
    return record_key(user_id, name, room_id, msgspec.Raw(payload.encode()), request_id)


@given(ASKED, ASKED)
def test_no_two_requests_have_the_same_claim(one: Any, other: Any) -> None:
    assert (record_of(*one) == record_of(*other)) == ((one, type(one[1])) == (other, type(other[1])))


SOCKETS = st.text("a1", max_size=4)  # the end of a socket id, which is made of letters and digits


@given(SOCKETS, IDS, SOCKETS, IDS)
def test_no_two_late_answers_have_the_same_key(one: str, id: int | str, other: str, other_id: int | str) -> None:
    same = (one, type(id), id) == (other, type(other_id), other_id)
    assert (late_answer_key(f"g.{one}", id) == late_answer_key(f"g.{other}", other_id)) == same


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_the_wall_clock_is_set(seconds: float) -> None:
    """It stamps events, and nothing waits by it."""
    house = House(services=[Registration(name="chat", channel="events:chat", reply=True, timeout=2.0)])
    client = house.admit()
    client.send({"type": SEND, "id": "before"})
    house.wall_is_ahead = seconds
    house.pass_time(1.0)
    client.send({"type": SEND, "id": "after"})
    assert client.link.read() == []
    house.pass_time(1.0)
    assert [(message["id"], message["payload"]["code"]) for message in client.link.read()] == [("before", "TIMEOUT")]
    house.pass_time(1.0)
    assert [(message["id"], message["payload"]["code"]) for message in client.link.read()] == [("after", "TIMEOUT")]
    before, after = (json.loads(sent.body)["timestamp"] for sent in house.bus.published)
    assert after - before == 1000 * (1 + seconds)


DONE = {
    "type": "error",
    "id": "q",
    "payload": {"code": "TIMEOUT", "message": "it was done, and its answer is not kept"},
}


class RecordsTest(RequestsTestCase):
    """Of how many requests there may be records."""

    async def fill(self, gateway: RequestGateway) -> int:
        """A client sends requests, of which the last are refused. Returns how many were not."""
        session = gateway.connect("1")
        for number in range(60):
            ask(session, id=f"n{number}")
        await gateway.bus.call("PING")
        assert told(session) == [], "each may be one that was sent before"
        await self.sweep(gateway)
        refused = told(session)
        message = "too many requests of this user are remembered"
        payload = {"code": "RATE_LIMITED", "message": message, "eventType": SEND, "retryAfter": 1.0, "limit": "share"}
        assert [error["payload"] for error in refused] == [payload] * len(refused)
        done = 60 - len(refused)
        assert [error["id"] for error in refused] == [f"n{number}" for number in range(done, 60)]
        return done

    async def test_who_has_its_share_is_refused_and_nothing_is_done(self) -> None:
        tight = await self.gateway("tight", answer_bytes=20_000)
        done = await self.fill(tight)
        assert 15 < done < 25, "half of it"
        assert self.handled() == done
        bob = tight.connect("2", "bob")
        await self.send(bob, id="q")
        assert told(bob) == []
        assert self.handled() == done + 1
        assert len(self.client.keys("k:request:*")) == done + 1
        assert tight.requests.budget.used == pytest.approx(20_000 * (done + 1) / (2 * done), rel=0.05)

    async def test_one_that_is_sent_again_is_looked_up(self) -> None:
        tight = await self.gateway("tight", answer_bytes=20_000)
        done = await self.fill(tight)
        self.answer(tight, "tight.1", id="n0")
        again = tight.connect("3")
        await self.send(again, id="n0", resent=True)
        await self.sweep(tight)
        assert [message["payload"] for message in told(again)] == ["done"]
        await self.send(again, id="new", resent=True)
        await self.sweep(tight)
        assert [message["payload"]["code"] for message in told(again)] == ["RATE_LIMITED"]
        assert self.handled() == done

    async def test_it_is_free_again_when_the_records_are_gone(self) -> None:
        tight = await self.gateway("tight", answer_bytes=20_000)
        done = await self.fill(tight)
        tight.clock.advance(2 * 130.1)
        other = tight.connect("4")
        await self.send(other, id="again")
        assert self.handled() == done + 1

    async def test_what_is_not_remembered_takes_nothing(self) -> None:
        forgets = await self.gateway("forgets", window=0, answer_bytes=1000)
        session = forgets.connect("1")
        for number in range(20):
            await self.send(session, id=number)
        assert told(session) == []
        assert forgets.requests.budget.used == 0

    async def test_late_answers_take_their_share(self) -> None:
        tight = await self.gateway("tight", answer_bytes=20_000)
        for number in range(100):
            self.say(tight, {"recipients": [f"gone.{number}"], "userIds": ["ann"], "inReplyTo": "q"})
        await tight.bus.call("PING")
        kept = len(self.client.keys("k:request:adopted:*"))
        assert 15 < kept < 25
        assert tight.counters.answers_not_kept == 100 - kept


class LargeAnswersTest(RequestsTestCase):
    async def test_only_that_it_was_given_is_kept(self) -> None:
        tight = await self.gateway("tight", answer_bytes=80 * 1000)
        for name, size, told_again in (("small", 800, True), ("large", 1500, False)):
            first = tight.connect(f"{name}1")
            await self.send(first, id=name)
            self.answer(tight, f"tight.{name}1", "x" * size, name)
            answer = {"type": "r", "id": name, "payload": "x" * size}
            assert told(first) == [answer]
            for again in (tight.connect(f"{name}2"), self.two.connect(f"{name}2")):
                await self.send(again, id=name)
                assert told(again) == [answer if told_again else {**DONE, "id": name}]
        assert self.handled() == 2
        assert tight.counters.answers_too_large == 1
        assert tight.accounts.answers == 0

    async def test_whoever_waits_on_another_gateway_hears_so(self) -> None:
        tight = await self.gateway("tight", answer_bytes=64 * 1000)
        first, waits = tight.connect("1"), self.two.connect("1")
        await self.send(first)
        first.lost()
        await self.send(waits)
        self.answer(tight, "tight.1", "x" * 2000)
        await tight.bus.call("PING")
        await self.sweep(self.two)
        assert told(waits) == [DONE]
        assert self.handled() == 1

    async def test_one_that_another_gateway_stores(self) -> None:
        tight = await self.gateway("tight", answer_bytes=64 * 1000)
        await self.send(self.one.connect("1"))
        await self.one.bus.stopService()
        words = {"recipients": ["one.1"], "userIds": ["ann"], "inReplyTo": "q"}
        self.say(tight, {**words, "payload": "x" * 2000})
        self.say(tight, {**words, "payload": "later"})
        back, late = tight.connect("1"), tight.connect("2")
        await self.send(back)
        await self.sweep(tight)
        await self.send(late)
        assert told(back) == told(late) == [DONE]
        assert self.handled() == 1

    async def test_an_answer_to_many_sockets_is_stored_for_none_that_is_elsewhere(self) -> None:
        session = self.two.connect("1")
        await self.send(session)
        recipients = [*(f"gone.{number}" for number in range(2000)), "two.1"]
        for users in (["ann"], [f"user{number}" for number in range(2000)]):
            words = {"recipients": recipients, "userIds": users, "inReplyTo": "q", "payload": "x" * 1000}
            self.say(self.two, words)
        self.say(self.two, {"recipients": ["gone.1"], "userIds": ["ann", "bob"], "inReplyTo": "q"})
        await self.two.bus.call("PING")
        assert [message["payload"] for message in told(session)] == ["x" * 1000]
        assert self.client.keys("k:request:adopted:*") == []

    async def test_what_redis_gets_at_once_is_bounded(self) -> None:
        self.patch(request_records, "_STORED_BYTES", 5000)
        session = self.one.connect("1")
        for number in range(8):
            await self.send(session, id=number)
        sizes = []
        store = self.one.requests._store.store

        def measured(answers: Any) -> None:
            sizes.append(sum(len(body) for _, body, _ in answers))
            store(answers)

        self.patch(self.one.requests._store, "store", measured)
        for number, size in enumerate((2000, 100, 2000, 2000, 100, 9000, 100, 100)):
            words = {"recipients": ["one.1"], "inReplyTo": number, "type": "r", "payload": "x" * size}
            body = json.dumps(words).encode()
            self.one.requests.answered(msgspec.json.decode(body, type=Broadcast), body)
        self.one.requests.store_answers()
        assert [round(size, -3) for size in sizes] == [4000, 2000, 9000]
        await self.one.bus.call("PING")
        again = self.two.connect("1")
        for number in range(8):
            await self.send(again, id=number)
        assert len(told(again)) == 8
        assert self.handled() == 8
        assert self.one.accounts.answers == 0


class RepeatedTest(RequestsTestCase):
    async def test_after_its_answer_it_gets_that_again(self) -> None:
        first = self.one.connect("1")
        await self.send(first)
        self.answer(self.one, "one.1")
        again, elsewhere = self.one.connect("2"), self.two.connect("1")
        for session in (again, elsewhere):
            await self.send(session)
        for session in (first, again, elsewhere):
            assert told(session) == [{"type": "r", "id": "q", "payload": "done"}]
        assert self.handled() == 1
        assert self.two.counters.requests_repeated == 1
        assert len(self.two.requests) == 0

    async def test_before_its_answer_is_stored(self) -> None:
        session = self.one.connect("1")
        await self.send(session)
        body = b'{"type": "r", "recipients": ["one.1"], "inReplyTo": "q", "payload": "done"}'
        self.one.requests.answered(msgspec.json.decode(body, type=Broadcast), body)
        await self.send(session)
        await self.sweep(self.one)
        await self.sweep(self.one)
        assert told(session) == [{"type": "r", "id": "q", "payload": "done"}] * 2
        assert self.handled() == 1

    async def test_before_its_answer_it_waits(self) -> None:
        first, elsewhere = self.one.connect("1"), self.two.connect("1")
        await self.send(first)
        first.lost()
        await self.send(elsewhere)
        await self.sweep(self.two)
        assert told(elsewhere) == []
        self.answer(self.one, "one.1")
        await self.one.bus.call("PING")
        await self.sweep(self.two)
        assert told(elsewhere) == [{"type": "r", "id": "q", "payload": "done"}]
        assert self.handled() == 1
        await self.sweep(self.two, 60)
        assert told(elsewhere) == []

    async def test_its_first_gateway_is_gone(self) -> None:
        await self.send(self.one.connect("1"))
        await self.one.bus.stopService()
        elsewhere, late = self.two.connect("1"), self.two.connect("2")
        await self.send(elsewhere)
        self.say(self.two, {"recipients": ["one.1"], "userIds": ["ann"], "inReplyTo": "q", "payload": 5})
        await self.sweep(self.two)
        await self.send(late)
        for session in (elsewhere, late):
            assert told(session) == [{"type": "r", "id": "q", "payload": 5}]
        assert self.handled() == 1

    async def test_its_answer_comes_before_the_client_is_back(self) -> None:
        await self.send(self.one.connect("1"))
        await self.one.bus.stopService()
        self.say(self.two, {"recipients": ["one.1"], "userIds": ["ann"], "inReplyTo": "q", "payload": 5})
        back = self.two.connect("1")
        await self.send(back)
        assert told(back) == [{"type": "r", "id": "q", "payload": 5}]
        assert self.handled() == 1

    async def test_it_is_not_the_answer_to_what_else_has_the_id(self) -> None:
        await self.send(self.one.connect("1"))
        await self.one.bus.stopService()
        other = self.two.connect("1")
        await self.send(other, payload=2)
        self.say(self.two, {"recipients": ["one.1"], "userIds": ["ann"], "inReplyTo": "q", "payload": 5})
        await self.two.bus.call("PING")
        await self.sweep(self.two)
        assert told(other) == []
        self.say(self.two, {"recipients": ["two.1"], "inReplyTo": "q", "payload": 6})
        assert told(other) == [{"type": "r", "id": "q", "payload": 6}]

    async def test_who_waits_does_not_get_the_answer_to_what_else_has_the_id(self) -> None:
        await self.send(self.one.connect("1"))
        waits = self.two.connect("1")
        await self.send(waits)
        await self.send(self.one.connect("2"), payload=2)
        self.answer(self.one, "one.2")
        await self.one.bus.call("PING")
        await self.sweep(self.two)
        assert told(waits) == []
        await self.sweep(self.two, 10)
        (message,) = told(waits)
        assert message["payload"]["code"] == "TIMEOUT"

    async def test_what_many_wait_for_is_not_asked_about_for_each_answer(self) -> None:
        lost = [self.one.connect(str(number), f"user{number}") for number in range(20)]
        back = [self.two.connect(str(number), f"user{number}") for number in range(20)]
        for sent_to in lost, back:
            for session in sent_to:
                await self.send(session)
        await self.one.bus.stopService()
        before = int(self.client.info("commandstats")["cmdstat_getrange"]["calls"])
        for number in range(20):
            words = {"recipients": [f"one.{number}"], "userIds": [f"user{number}"], "inReplyTo": "q"}
            self.say(self.two, words)
        await self.sweep(self.two)
        assert int(self.client.info("commandstats")["cmdstat_getrange"]["calls"]) == before + 2 * 20
        assert [len(told(session)) for session in back] == [1] * 20

    async def test_an_answer_that_cannot_be_kept_is_counted(self) -> None:
        session = self.one.connect("1")
        await self.send(session)
        [record] = self.client.keys("k:request:*")
        self.client.delete(record)
        self.client.lpush(record, "somebody else's")
        self.answer(self.one, "one.1")
        await self.one.bus.call("PING")
        assert len(told(session)) == 1
        await self.sweep(self.one)
        assert self.one.counters.answers_not_kept == 0
        await self.sweep(self.one, self.one.limits.request_window)
        assert self.one.counters.answers_not_kept == 1

    async def test_nobody_ever_answers(self) -> None:
        first, elsewhere = self.one.connect("1"), self.two.connect("1")
        await self.send(first)
        await self.send(elsewhere)
        await self.sweep(self.two, 10)
        await self.sweep(self.one, 10)
        again = self.one.connect("2")
        await self.send(again)
        for session in (first, elsewhere, again):
            (message,) = told(session)
            assert (message["type"], message["payload"]["code"]) == ("error", "TIMEOUT")
        assert self.handled() == 1

    async def test_what_times_out_together_is_kept_together(self) -> None:
        session = self.one.connect("1")
        for number in range(100):
            await self.send(session, id=number)
        before = self.scripts()
        await self.sweep(self.one, 10)
        assert len(told(session)) == 100
        assert self.scripts() == before + 1
        assert self.one.clock.getDelayedCalls() == []

    def scripts(self) -> int:
        stats: Any = self.client.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))

    async def test_an_acknowledgement_is_given_again(self) -> None:
        first, again = self.one.connect("1"), self.two.connect("1")
        for session in (first, again):
            await self.send(session, "log:line:add")
            assert told(session) == [{"type": "ack", "id": "q", "payload": {"receivers": 1}}]
        assert self.handled("log") == 1

    async def test_what_nobody_heard_is_tried_again(self) -> None:
        session = self.one.connect("1")
        await self.send(session, "radio:song:play")
        (message,) = told(session)
        assert message["payload"]["code"] == "SERVICE_UNAVAILABLE"
        with self.client.pubsub() as listener:
            listener.subscribe("k:events:radio")
            assert listener.get_message(timeout=10) is not None, "Redis did not confirm the subscription"
            await self.send(session, "radio:song:play")
        assert told(session) == [{"type": "ack", "id": "q", "payload": {"receivers": 1}}]

    async def test_what_else_is_sent_under_the_same_id_is_another_request(self) -> None:
        session = self.one.connect("1")
        for words in ({}, {"payload": 2}, {"room": "other"}, {"name": "chat:message:edit"}, {"id": 1}, {"id": "1"}):
            await self.send(session, **words)
            request = words.get("id", "q")
            self.say(self.one, {"recipients": ["one.1"], "inReplyTo": request})
        await self.send(self.one.connect("2", "bob"))
        assert self.handled() == 7
        assert len(told(session)) == 6

    async def test_who_asks_something_else_under_the_id_gets_its_own_answer(self) -> None:
        first, second, again = (self.one.connect(str(number)) for number in (1, 2, 3))
        await self.send(first, payload=1)
        await self.send(second, payload=2)
        self.answer(self.one, "one.1", "first")
        await self.send(again, payload=2)
        assert self.handled() == 2
        self.answer(self.one, "one.2", "second")
        await self.sweep(self.one)
        await self.sweep(self.one)
        assert [[message["payload"] for message in told(each)] for each in (first, second, again)] == [
            ["first"],
            ["second"],
            ["second"],
        ]

    async def test_the_first_answer_stands(self) -> None:
        await self.send(self.one.connect("1"))
        [record] = self.client.keys("k:request:*")
        before = int(self.client.pttl(record))
        elsewhere = self.two.connect("1")
        await self.send(elsewhere)
        self.answer(self.one, "one.1", "first")
        await self.one.bus.call("PING")
        self.answer(self.two, "two.1", "second")
        await self.two.bus.call("PING")
        again = self.two.connect("2")
        await self.send(again)
        assert [told(each)[0]["payload"] for each in (elsewhere, again)] == ["second", "first"]
        assert 0 < int(self.client.pttl(record)) <= before

    async def test_an_answer_to_a_lost_gateway_is_known_as_long_as_any_other(self) -> None:
        brief, other = await self.gateway("brief", 1.0, 10.0), await self.gateway("other", 1.0, 10.0)
        await self.send(brief.connect("1"))
        [record] = self.client.keys("k:request:*")
        self.say(other, {"recipients": ["brief.1"], "userIds": ["ann"], "inReplyTo": "q", "payload": 5})
        self.say(other, {"recipients": ["brief.1"], "userIds": ["ann"], "inReplyTo": "q", "payload": 6})
        back, late = other.connect("1"), other.connect("2")
        await self.send(back)
        [adopted] = self.client.keys("k:request:adopted:*")
        assert int(self.client.pttl(adopted)) >= int(self.client.pttl(record)) > 10_000
        await self.sweep(other)
        self.client.delete(adopted)
        await self.send(late)
        for session in (back, late):
            assert told(session) == [{"type": "r", "id": "q", "payload": 5}]

    async def test_an_answer_in_the_claim_comes_before_one_that_was_adopted(self) -> None:
        await self.send(self.one.connect("1"))
        waits = self.two.connect("1")
        await self.send(waits)
        self.answer(self.one, "one.1", "kept")
        await self.one.bus.call("PING")
        self.say(self.two, {"recipients": ["one.1"], "userIds": ["ann"], "inReplyTo": "q", "payload": "adopted"})
        await self.sweep(self.two)
        assert [message["payload"] for message in told(waits)] == ["kept"]

    async def test_only_what_is_said_to_all_gateways_is_adopted(self) -> None:
        forgetful = await self.gateway("forgetful", 0.0)
        self.answer(self.two, "one.1")
        words = {"recipients": ["one.1"], "userIds": ["ann"], "inReplyTo": "q"}
        self.say(forgetful, words)
        for gateway in (self.two, forgetful):
            await gateway.bus.call("PING")
        assert self.client.keys("k:request:*") == []
        self.say(self.two, words)
        await self.two.bus.call("PING")
        assert self.client.keys("k:request:*") == ["k:request:adopted:one.1:q"]

    async def test_an_answer_that_cannot_be_read_keeps_nobody_from_another(self) -> None:
        for user in ("ann", "bob"):
            await self.send(self.one.connect(user, user))
        waiting = [self.two.connect(user, user) for user in ("ann", "bob")]
        for session in waiting:
            await self.send(session)
        [record] = self.client.keys("k:request:3:ann:*")
        values: list[str | bytes] = ["no answer", b'{"type":"\xff"}', b"\xff", "[" * 100_000, '{"payload":1}']
        with capturedLogs() as events:
            for value in values:
                self.client.set(record, value)
                await self.sweep(self.two)
                await self.sweep(self.two)
                assert not self.client.exists(record)
            self.answer(self.one, "one.bob")
            await self.one.bus.call("PING")
            self.client.set(record, b"\xff")
            await self.sweep(self.two)
            await self.sweep(self.two)
        assert [len(told(session)) for session in waiting] == [0, 1]
        assert len([event for event in events if "cannot be read" in event["log_format"]]) == 1
        await self.sweep(self.two, 10)
        assert [message["payload"]["code"] for message in told(waiting[0])] == ["TIMEOUT"]

    async def test_an_adopted_answer_that_cannot_be_read_is_removed(self) -> None:
        await self.send(self.one.connect("1"))
        waits = self.two.connect("1")
        await self.send(waits)
        self.client.set("k:request:adopted:one.1:q", b"\xff")
        await self.sweep(self.two)
        await self.sweep(self.two)
        assert not self.client.exists("k:request:adopted:one.1:q")
        self.answer(self.one, "one.1", "kept")
        await self.one.bus.call("PING")
        await self.sweep(self.two)
        assert [message["payload"] for message in told(waits)] == ["kept"]

    async def test_a_record_that_cannot_be_read_is_removed(self) -> None:
        session = self.one.connect("1")
        for number, value in enumerate((b"?\xff", b"\xff", b"no answer")):
            self.client.flushall()
            await self.send(self.one.connect("0"))
            handled = self.handled()
            [record] = self.client.keys("k:request:*")
            self.client.set(record, value)
            await self.send(session)
            await self.one.bus.call("PING")
            assert not self.client.exists(record)
            await self.send(self.two.connect(f"{number}"))
            assert self.handled() == handled + 1
            await self.sweep(self.one, 10)
            assert [message["payload"]["code"] for message in told(session)] == ["TIMEOUT"]

    async def test_requests_to_services_that_are_alike_are_one_command(self) -> None:
        self.one.registry.register(Registration(name="talk", channel="events:talk", transport="stream", reply=True))
        session = self.one.connect("1")
        before = self.scripts()
        for number in range(10):
            name = "talk:message:send" if number % 2 else SEND
            session.handle(Event(name, msgspec.Raw(b"1"), number, "board"))
        await self.one.bus.call("PING")
        assert (self.handled(), self.handled("talk"), self.scripts()) == (5, 5, before + 1)

    async def test_the_window_passes(self) -> None:
        brief = await self.gateway("brief", 1.0, 1.0)
        session = brief.connect("1")
        await self.send(session)
        [record] = self.client.keys("k:request:*")
        assert int(self.client.pttl(record)) > 1_000  # it is waited for, too
        self.answer(brief, "brief.1")
        await self.send(brief.connect("2"))
        assert self.handled() == 1
        await until(lambda: not self.client.keys("k:request:*"), "the end of the window")
        await self.send(session)
        assert self.handled() == 2

    async def test_too_many_are_not_sent(self) -> None:
        session = self.one.connect("1")
        for number in range(self.one.limits.requests):
            self.one.handle(session, Event(SEND, id=number, room_id="board"))
        with pytest.raises(PeerError):
            self.one.handle(session, Event(SEND, id="more", room_id="board"))
        await self.one.bus.call("PING")
        assert self.handled() == self.one.limits.requests

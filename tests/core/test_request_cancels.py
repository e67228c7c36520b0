"""Requests that their clients cancel: what they are told, and what services are."""

from __future__ import annotations

import json
from typing import Any

from kraftek.contract.errors import NotPublished
from kraftek.contract.messages import Event
from kraftek.contract.settings import Limits
from tests.core.test_requests import reply
from tests.edge.dialects.test_socketio_client import admitted
from tests.support.request_gateways import RequestsTestCase, ask, told
from tests.support.waiting import until
from tests.support.world import House, works

CANCELLED = {"code": "CANCELLED", "message": "cancelled by the client", "eventType": "chat:bot:ask"}


def test_a_request_is_cancelled_here_and_at_its_service() -> None:
    house = House()
    house.clock.advance(1700000000.25)
    client = house.admit()
    client.play("""
        > {"type": "chat:bot:ask", "id": 1}
        * events:chat {"eventType": "chat:bot:ask", "id": 1}
        > {"type": "chat:bot:ask", "id": 2}
        * events:chat {"eventType": "chat:bot:ask", "id": 2}
        > {"type": "cancel", "id": 1}
        x CANCELLED cancelled by the client {"id": 1, "eventType": "chat:bot:ask"}
        * events:cancel:chat {"eventType": "chat:bot:ask", "userId": "user", "id": 1, "timestamp": 1700000000250}
    """)
    assert "socketId" not in house.bus.published[-1].event
    assert house.counters.requests_cancelled == 1
    assert house.counters.errors_peer == 0
    reply(client, 1)
    reply(client, 2)
    assert client.link.read() == [{"type": "r", "id": 2, "payload": "done"}]
    assert house.counters.replies_late == 1
    assert len(house.requests) == 0


def test_that_a_service_has_heard_of_it_is_no_late_answer() -> None:
    house = House()
    client = house.admit()
    client.send({"type": "chat:bot:ask", "id": 1})
    client.send({"type": "cancel", "id": 1})
    client.link.read()
    reply(client, 1, CANCELLED, type="error")
    assert house.counters.replies_late == 0
    reply(client, 1, {**CANCELLED, "code": "SOLD_OUT"}, type="error")
    assert house.counters.replies_late == 1
    assert client.link.read() == []


def test_where_the_gateway_answers_it_may_be_cancelled_until_then() -> None:
    client = House().admit()
    client.play("""
        > {"type": "notes:note:create", "id": "q"}
        * events:notes {"id": "q"}
        > {"type": "cancel", "id": "q"}
        x CANCELLED cancelled by the client {"id": "q", "eventType": "notes:note:create"}
        * events:cancel:notes {"id": "q"}
        + 1
        > {"type": "cancel", "id": "q"}
    """)


def test_what_does_not_wait_is_not_cancelled() -> None:
    """A request of somebody else's socket least of all."""
    house = House()
    ada, bob = house.admit("ada"), house.admit("bob")
    ada.send({"type": "chat:bot:ask", "id": 1})
    bob.play("""
        > {"type": "cancel", "id": 1}
        > {"type": "cancel", "payload": {"eventType": "chat:bot:ask"}}
        > {"type": "cancel"}
        x INVALID_MESSAGE cancel: expected the id of a request
        > {"type": "cancel", "id": 2, "payload": {"eventType": 3}}
        x INVALID_MESSAGE payload of cancel: Expected `str | null`, got `int` - at `$.eventType`
        > {"type": "cancel", "id": 2, "payload": {"eventType": "wiki:page:read"}}
        x INVALID_EVENT Event type is not valid or service is not registered {"eventType": "wiki:page:read"}
    """)
    assert len(house.bus.published) == 1
    assert len(house.requests) == 1
    assert house.counters.requests_cancelled == 0


def test_one_of_an_earlier_connection_is_cancelled_at_its_service_alone() -> None:
    client = House().admit("ada")
    client.play("""
        > {"type": "cancel", "id": "old", "payload": {"eventType": "chat:bot:ask"}}
        * events:cancel:chat {"eventType": "chat:bot:ask", "userId": "ada", "id": "old"}
        + 0
    """)
    works(client)


def test_nobody_cancels_anything_before_authenticating() -> None:
    House().connect().play("""
        > {"type": "cancel", "id": 1}
        x NOT_AUTHENTICATED authenticate first {"id": 1}
    """)


def test_while_redis_is_away_it_is_answered_all_the_same() -> None:
    house = House()
    client = house.admit()
    client.send({"type": "chat:bot:ask", "id": 1})

    def away(*_: object) -> None:
        raise NotPublished

    house.bus.publish = away  # type: ignore[method-assign, assignment]
    client.send({"type": "cancel", "id": 1})
    assert [each["payload"]["code"] for each in client.link.read()] == ["CANCELLED"]


def test_of_those_of_other_connections_a_service_hears_as_many_as_its_user_may_join_rooms() -> None:
    """Three clients that sent nothing else had others wait ten seconds for the answers of a service."""
    house = House(limits=Limits(joins_per_user=2, burst=2.0))
    client = house.admit()
    for number in range(10):
        client.send({"type": "cancel", "id": number, "payload": {"eventType": "chat:bot:ask"}})
    assert [each.event["id"] for each in house.bus.published] == [0, 1, 2, 3], "its own join was one"
    assert client.link.read() == []
    client.send({"type": "chat:bot:ask", "id": "own"})
    client.send({"type": "cancel", "id": "own"})
    assert house.bus.published[-1].event["id"] == "own", "one of its own is told all the same"


def test_who_is_over_the_budget_cancels_what_waits_and_nothing_else() -> None:
    house = House(limits=Limits(events_per_user=1, burst=1.0))
    client = house.admit("ada")
    client.send({"type": "chat:bot:ask", "id": 1})
    while not client.link.read():
        client.send({"type": "chat:bot:tell"})
    published = len(house.bus.published)
    client.send({"type": "cancel", "id": 7, "payload": {"eventType": "chat:bot:ask"}})
    assert client.link.read() == []
    assert len(house.bus.published) == published
    client.send({"type": "cancel", "id": 1})
    assert [(each["id"], each["payload"]["code"]) for each in client.link.read()] == [(1, "CANCELLED")]


def test_pages_of_socketio_name_the_event() -> None:
    """They do not know the ids of their acknowledgements, and those of another socket are the same; they may name a
    request of which they want parts.
    """
    house = House()
    page = admitted(house)
    for text in ('21["chat:bot:ask"]', '22["chat:bot:ask"]', '23["chat:bot:who",null,{"progress":"who"}]'):
        page.says(text)
    acknowledged = page.says('2["cancel",{"eventType":"chat:bot:ask"}]')
    assert page.says('2["cancel",{"id":3}]') == []
    acknowledged += page.says('2["cancel",{"id":"who"}]')
    assert page.says('2["cancel",{"id":9,"eventType":"chat:bot:ask"}]') == []
    assert [text[:3] for text in acknowledged] == ["431", "432", "433"]
    assert all('"code":"CANCELLED"' in text for text in acknowledged)
    about = [each.event for each in house.bus.published if each.channel == "events:cancel:chat"]
    assert [each["id"] for each in about] == [1, 2, 3]
    assert {each["socketId"] for each in about} == {page.session.socket_id}


class CancelledRequests(RequestsTestCase):
    """With records of requests, in Redis."""

    async def cancels(self) -> Any:
        """What is heard of by services. The client has no thread: it is asked again and again."""
        heard = self.client.pubsub(ignore_subscribe_messages=True)
        self.addCleanup(heard.close)
        heard.subscribe("k:events:cancel:chat")
        heard.get_message(timeout=1.0)
        return heard

    async def test_who_sends_it_again_finds_it_cancelled(self) -> None:
        first, second = self.one.connect("1"), self.two.connect("2")
        ask(first)
        await until(lambda: self.client.xlen("k:events:chat") == 1, "the event")
        self.one.requests.cancels.cancel(first, first.dialect.received(b'{"type":"cancel","id":"q"}', False), 5)  # type: ignore[arg-type]
        assert [each["payload"]["code"] for each in told(first)] == ["CANCELLED"]
        self.one.requests.store_answers()
        ask(second, resent=True)
        await until(lambda: told(second), "the answer")
        assert self.client.xlen("k:events:chat") == 1

    async def test_one_that_waits_for_another_sockets_answer_is_cancelled_for_both(self) -> None:
        """Through whichever gateway it was handed over: the word names the user."""
        first, second = self.one.connect("1"), self.two.connect("2")
        heard = await self.cancels()
        ask(first)
        await until(lambda: self.client.xlen("k:events:chat") == 1, "the event")
        ask(second, resent=True)
        await until(lambda: len(self.two.requests.look_ups.waiting) == 1, "the duplicate")
        self.two.requests.cancels.cancel(second, second.dialect.received(b'{"type":"cancel","id":"q"}', False), 5)  # type: ignore[arg-type]
        assert [each["payload"]["code"] for each in told(second)] == ["CANCELLED"]
        said: Any = None

        def hears() -> bool:
            nonlocal said
            said = said or heard.get_message()
            return said is not None

        await until(hears, "the word to the service")
        assert json.loads(said["data"]) == {
            "eventType": "chat:message:send",
            "userId": "ann",
            "id": "q",
            "timestamp": 5,
        }
        assert len(self.two.requests) == 0
        assert len(self.one.requests) == 1  # until the service answers, too


def test_a_held_one_is_no_event() -> None:
    """While access is checked all that a client says waits."""
    house = House()
    client = house.admit()
    client.send({"type": "chat:bot:ask", "id": 1})
    client.send({"type": "join", "payload": {"roomId": "other"}, "id": 2})
    client.send({"type": "cancel", "id": 1})
    assert client.link.read() == []
    house.access.next().yes("user")
    house.clock.advance(0)
    assert [each["type"] for each in client.link.read()] == ["joined", "error"]
    assert not isinstance(client.session.dialect.received(b'{"type":"cancel","id":1}', False), Event)

"""No request that its service has is refused, and none of which that is known waits for its time-out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from redis import ResponseError
from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.logger import capturedLogs

from kraftek.contract.errors import Code, NotPublished, PeerError
from kraftek.contract.interfaces import Undelivered
from kraftek.contract.names import EPOCH
from kraftek.contract.settings import Limits
from kraftek.core import request_look_ups
from kraftek.core.answer_budget import LARGE
from kraftek.core.budgets import Budgets
from kraftek.core.dispatch import Dispatch, once
from kraftek.core.local_dispatch import _claim
from kraftek.core.request_look_ups import LookUps
from kraftek.core.request_queue import Request, RequestQueue
from kraftek.core.request_records import AnswerStore
from kraftek.core.session import Session
from tests.support.redis_server import PrivateRedis
from tests.support.request_gateways import SEND, RequestGateway, RequestsTestCase, ask, told
from tests.support.waiting import until
from tests.support.world import CHAT, House

PINGS: dict[str, Any] = {"ping_interval": 0.1, "ping_timeout": 0.1}
ANSWER = {"type": "r", "id": "q", "payload": "done"}


def codes(session: Any) -> list[str]:
    """The codes of the errors that the client was told, which was told nothing else."""
    return [message["payload"]["code"] for message in told(session)]


class UncertainTest(RequestsTestCase):
    async def freeze(self, *gateways: RequestGateway) -> None:
        """Redis hangs until its gateways give it up. What they had sent it reads later."""
        self.redis.freeze()
        for gateway in gateways:
            await until(lambda gateway=gateway: not gateway.bus.available, "the loss")  # type: ignore[misc]

    async def thaw(self, *gateways: RequestGateway) -> None:
        """Redis goes on, with its data."""
        self.redis.thaw()
        for gateway in gateways:
            await until(lambda gateway=gateway: gateway.bus.available, "the connection")  # type: ignore[misc]

    async def cut(self, gateway: RequestGateway) -> None:
        """Its connections are lost, and it connects again."""
        connects = gateway.counters.redis_connects
        self.client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: gateway.counters.redis_connects > connects, "the connection")

    async def test_lost_before_its_receipt_and_handed_to_the_service(self) -> None:
        gateway = await self.gateway("three", **PINGS)
        session = gateway.connect("1")
        self.redis.freeze()
        ask(session)
        await until(lambda: not gateway.bus.available, "the loss")
        await self.sweep_in_outage(gateway)
        assert told(session) == []
        await self.thaw(gateway)
        await self.sweep(gateway)
        await self.sweep(gateway)
        assert told(session) == []
        assert self.handled() == 1
        self.answer(gateway, "three.1")
        assert told(session) == [ANSWER]

    async def sweep_in_outage(self, gateway: RequestGateway, seconds: float = 0.25) -> None:
        gateway.clock.advance(seconds)
        gateway.requests.sweep()

    async def test_lost_before_its_receipt_and_never_sent(self) -> None:
        session = self.one.connect("1")
        self.client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        ask(session)  # on a connection whose other end is closed
        await until(lambda: not self.one.bus.available, "the loss")
        await until(lambda: self.one.bus.available, "the connection")
        assert told(session) == []
        await self.sweep(self.one)
        (message,) = told(session)
        assert message["payload"] == {
            "code": "SERVICE_UNAVAILABLE",
            "message": "the connection was lost: the event did not arrive",
            "eventType": SEND,
        }
        assert self.one.counters.publishes_lost == 1
        await self.send(session)
        assert self.handled() == 1

    async def test_lost_with_the_data(self) -> None:
        """The service may have it: nobody knows, and nobody says that it was not delivered."""
        session = self.one.connect("1")
        self.client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        ask(session)
        self.redis.kill()
        await until(lambda: not self.one.bus.available, "the loss")
        self.redis.start()
        await until(lambda: self.one.bus.available, "the connection")
        await self.sweep(self.one)
        assert told(session) == []
        await self.sweep(self.one, 10)
        assert codes(session) == ["TIMEOUT"]

    async def test_its_answer_comes_before_it_is_looked_up(self) -> None:
        gateway = await self.gateway("three", **PINGS)
        session = gateway.connect("1")
        self.redis.freeze()
        ask(session)
        await until(lambda: not gateway.bus.available, "the loss")
        await self.thaw(gateway)
        gateway.requests.sweep()
        self.answer(gateway, "three.1")
        await self.sweep(gateway)
        assert told(session) == [ANSWER]
        assert len(gateway.requests) == 0

    async def test_looked_up_twice_at_once(self) -> None:
        gateway = await self.gateway("three", **PINGS)
        session = gateway.connect("1")
        self.redis.freeze()
        ask(session)
        await until(lambda: not gateway.bus.available, "the loss")
        await self.thaw(gateway)
        with capturedLogs() as logged:
            gateway.requests.sweep()
            # The first finds out that it was handed over, and by which socket; this one was asked before that.
            await self.sweep(gateway)
            await self.sweep(gateway)
        assert [event for event in logged if event["log_level"].name == "error"] == []
        self.answer(gateway, "three.1")
        assert told(session) == [ANSWER]

    async def test_an_acknowledgement_whose_receipt_was_lost(self) -> None:
        gateway = await self.gateway("three", **PINGS)
        session = gateway.connect("1")
        self.redis.freeze()
        ask(session, "log:line:add")
        await until(lambda: not gateway.bus.available, "the loss")
        await self.thaw(gateway)
        await self.sweep(gateway)
        assert told(session) == [{"type": "ack", "id": "q", "payload": {"receivers": 1}}]
        assert self.handled("log") == 1

    async def test_a_new_connection_sends_again_while_redis_is_away(self) -> None:
        """Whether it was sent before is not known: it waits for Redis."""
        gateway = await self.gateway("three", **PINGS)
        first = gateway.connect("1")
        await self.send(first)
        await self.freeze(gateway)
        first.lost()
        again = gateway.connect("2")
        ask(again)
        await self.sweep_in_outage(gateway)
        assert told(again) == []
        await self.thaw(gateway)
        await self.sweep(gateway)
        await self.sweep(gateway)
        self.answer(gateway, "three.1")
        await gateway.bus.call("PING")
        await self.sweep(gateway)
        assert told(again) == [ANSWER]
        assert self.handled() == 1

    async def test_a_new_connection_asks_something_new_while_redis_is_away(self) -> None:
        gateway = await self.gateway("three", **PINGS)
        await self.freeze(gateway)
        session = gateway.connect("1")
        ask(session)
        assert told(session) == []
        await self.thaw(gateway)
        await self.sweep(gateway)
        (message,) = told(session)
        assert message["payload"]["message"] == "the service cannot be reached at present"
        assert self.handled() == 0
        await self.send(session)
        assert self.handled() == 1

    async def test_a_connection_from_before_asks_something_new_while_redis_is_away(self) -> None:
        session = self.one.connect("1")
        self.redis.kill()
        await until(lambda: not self.one.bus.available, "the loss")
        ask(session)
        assert codes(session) == ["SERVICE_UNAVAILABLE"]
        self.redis.start()

    async def test_a_connection_from_before_sends_again_while_redis_is_away(self) -> None:
        """What waits on this gateway, and what the client says to have sent before."""
        gateway = await self.gateway("three", **PINGS)
        first, other = gateway.connect("1"), gateway.connect("2")
        await self.send(first)
        await self.send(self.two.connect("1"), id="elsewhere")
        await self.freeze(gateway)
        ask(other)
        ask(other, id="elsewhere", resent=True)
        ask(other, id="new")
        assert [message["id"] for message in told(other)] == ["new"]
        await self.thaw(gateway, self.two)
        await self.sweep(gateway)
        await self.sweep(gateway)
        assert told(other) == []
        self.answer(gateway, "three.1")
        self.answer(self.two, "two.1", id="elsewhere")
        for bus in (gateway.bus, self.two.bus):
            await bus.call("PING")
        await self.sweep(gateway)
        assert told(other) == [ANSWER, {**ANSWER, "id": "elsewhere"}]
        assert self.handled() == 2

    async def test_what_was_sent_again_waits_in_vain(self) -> None:
        await self.send(self.one.connect("1"))
        self.redis.kill()
        for gateway in (self.one, self.two):
            await until(lambda gateway=gateway: not gateway.bus.available, "the loss")  # type: ignore[misc]
        again, other = self.two.connect("1"), self.two.connect("2")
        ask(again, resent=True)
        ask(other, id="other")
        await self.sweep_in_outage(self.two, 9)
        assert told(again) == told(other) == []
        self.redis.start()
        await until(lambda: self.two.bus.available, "the connection")
        await self.sweep(self.two, 0.5)
        assert told(again) == []  # the data are other ones, and prove nothing about it
        assert codes(other) == ["SERVICE_UNAVAILABLE"]
        await self.sweep(self.two, 0.5)
        assert codes(again) == ["TIMEOUT"]

    async def test_too_much_waits_for_redis(self) -> None:
        tight = await self.gateway("tight", in_flight=3)
        await self.send(self.one.connect("1"))
        self.redis.freeze()
        pings = [tight.bus.call("PING") for _ in range(3)]
        again, other = tight.connect("1"), tight.connect("2")
        ask(again)
        ask(other, id="other")
        await self.sweep_in_outage(tight)
        assert told(again) == told(other) == []
        self.redis.thaw()
        await gatherResults(pings)
        await self.sweep(tight)
        assert codes(other) == ["SERVICE_UNAVAILABLE"]
        assert told(again) == []
        self.answer(self.one, "one.1")
        await self.one.bus.call("PING")
        await self.sweep(tight)
        assert told(again) == [ANSWER]

    async def test_too_many_wait_for_the_service(self) -> None:
        tight = await self.gateway("tight", requests=1)
        await self.send(tight.connect("1"))
        again, other = tight.connect("2"), tight.connect("3", "bob")
        await self.send(again)
        await self.send(other)
        await self.sweep(tight)
        assert told(again) == []
        (message,) = told(other)
        assert (message["payload"]["code"], message["payload"]["retryAfter"]) == ("SERVICE_UNAVAILABLE", 1.0)
        self.answer(tight, "tight.1")
        await tight.bus.call("PING")
        await self.sweep(tight)
        assert told(again) == [ANSWER]
        assert self.handled() == 1

    async def test_only_so_many_are_looked_up_that_may_be_new(self) -> None:
        self.patch(request_look_ups, "_MOST", 2)
        tight = await self.gateway("tight", requests=1)
        await self.send(tight.connect("1"))
        session = tight.connect("2", "bob")
        for number in range(3):
            ask(session, id=number)
        ask(session, id=3, resent=True)
        assert [message["id"] for message in told(session)] == [2]
        await self.sweep(tight)
        assert [message["id"] for message in told(session)] == [0, 1, 3]

    async def test_a_connection_with_too_many_sends_some_again(self) -> None:
        tight = await self.gateway("tight")
        tight.requests._limits = Limits(requests=2)
        await self.send(self.one.connect("1"), id="done")
        self.answer(self.one, "one.1", id="done")
        await self.one.bus.call("PING")
        session = tight.connect("1")
        for key in ("one", "two"):
            await self.send(session, id=key)
        await self.send(session, id="new")
        assert [(message["id"], message["payload"]["code"]) for message in told(session)] == [("new", "RATE_LIMITED")]
        for key in ("done", "lost", "too many"):
            await self.send(session, id=key, resent=True)
        assert [(message["id"], message["payload"]["code"]) for message in told(session)] == [("too many", "TIMEOUT")]
        await self.sweep(tight)
        answer, refusal = sorted(told(session), key=lambda message: str(message["id"]))
        assert answer == {**ANSWER, "id": "done"}
        assert (refusal["id"], refusal["payload"]["limit"]) == ("lost", "requests")
        assert tight.counters.rate_limited["requests"] == 2
        assert self.handled() == 3

    async def test_a_user_with_its_share_sends_again(self) -> None:
        tight = await self.gateway("tight", requests=4)
        first = tight.connect("1")
        for key in ("one", "two"):
            await self.send(first, id=key)
        again, other = tight.connect("2"), tight.connect("3", "bob")
        await self.send(again, id="one", resent=True)
        await self.send(again, id="new")
        await self.send(other, id="one")
        await self.sweep(tight)
        (refusal,) = told(again)
        assert (refusal["id"], refusal["payload"]["code"], refusal["payload"]["limit"]) == (
            "new",
            "RATE_LIMITED",
            "share",
        )
        assert told(other) == []
        self.answer(tight, "tight.1", id="one")
        await tight.bus.call("PING")
        await self.sweep(tight)
        assert told(again) == [{**ANSWER, "id": "one"}]
        assert self.handled() == 3

    async def deafen(self, *gateways: RequestGateway) -> None:
        """Redis closes the connections on which these listen, and lets nobody connect."""
        self.client.config_set("maxclients", 1)
        for gateway in gateways:
            assert gateway.bus.subscriber is not None
            self.client.execute_command("CLIENT", "KILL", "ID", gateway.bus.subscriber.id)
            await until(lambda gateway=gateway: not gateway.bus.available, "the loss")  # type: ignore[misc]

    async def hear(self, *gateways: RequestGateway) -> None:
        """They listen again."""
        self.client.config_set("maxclients", 1000)
        for gateway in gateways:
            await until(lambda gateway=gateway: gateway.bus.available, "the connection")  # type: ignore[misc]

    async def test_who_does_not_hear_sends_no_request_for_an_answer(self) -> None:
        session = self.one.connect("1")
        await self.deafen(self.one)
        ask(session)
        ask(session, "log:line:add", id="log")
        await until(lambda: self.handled("log") == 1, "the other event")
        await until(lambda: len(session.link.written) > 1, "the receipt")  # type: ignore[attr-defined]
        refused, accepted = told(session)
        assert refused["payload"] == {
            "code": "SERVICE_UNAVAILABLE",
            "message": "the service cannot be reached at present",
            "eventType": SEND,
        }
        assert accepted == {"type": "ack", "id": "log", "payload": {"receivers": 1}}
        assert self.handled() == 0
        await self.hear(self.one)
        await self.send(session)
        assert self.handled() == 1

    async def test_an_answer_that_was_not_heard_is_found_if_another_gateway_heard_it(self) -> None:
        self.patch(request_look_ups, "_MOST", 2)
        sessions = [self.one.connect(str(number), f"user{number}") for number in range(5)]
        for session in sessions:
            await self.send(session)
        await self.deafen(self.one)
        for number in (0, 1, 3, 4):
            words = {"recipients": [f"one.{number}"], "userIds": [f"user{number}"], "inReplyTo": "q"}
            self.say(self.two, {**words, "payload": "done"})
        await self.two.bus.call("PING")
        self.client.set("k:request:adopted:one.4:q", b"\xff")
        await self.hear(self.one)
        self.answer(self.one, "one.0")  # the last word counts
        await self.sweep(self.one)
        assert [len(told(session)) for session in sessions] == [1, 0, 0, 0, 0]
        for _ in range(8):
            await self.sweep(self.one)
        assert [told(session) for session in sessions] == [[], [ANSWER], [], [ANSWER], []]
        assert not self.client.exists("k:request:adopted:one.4:q")
        again = self.two.connect("again", "user3")
        await self.send(again)
        assert told(again) == [ANSWER]
        await self.sweep(self.one, 10)
        assert [codes(session) for session in sessions] == [[], [], ["TIMEOUT"], [], ["TIMEOUT"]]
        assert self.handled() == 5

    async def test_more_names_than_are_remembered(self) -> None:
        """Then any request may have been sent before, and waits."""
        self.patch(request_look_ups, "_LOST_BYTES", 100)
        session, other = self.one.connect("1"), self.one.connect("2")
        self.redis.kill()
        await until(lambda: not self.one.bus.available, "the loss")
        ask(other, id="new")
        assert codes(other) == ["SERVICE_UNAVAILABLE"]
        for number in range(5):
            ask(session, id=number, resent=True)
        ask(other, id="new")
        assert told(session) == told(other) == []
        self.redis.start()
        await until(lambda: self.one.bus.available, "the connection")

    async def test_redis_refuses_writes(self) -> None:
        session = self.one.connect("1")
        self.client.config_set("min-replicas-to-write", "1")
        await self.send(session)
        await self.sweep(self.one)
        (message,) = told(session)
        assert message["payload"] == {
            "code": "SERVICE_UNAVAILABLE",
            "message": "Redis refused the event",
            "eventType": SEND,
            "retryAfter": 1.0,
        }
        assert self.one.counters.publishes_refused == 1
        self.client.config_set("min-replicas-to-write", "0")
        await self.send(session)
        assert self.handled() == 1
        assert told(session) == []

    async def test_redis_refuses_writes_when_it_is_sent_again(self) -> None:
        first, again = self.one.connect("1"), self.two.connect("1")
        await self.send(first)
        self.client.config_set("min-replicas-to-write", "1")
        await self.send(again)
        await self.sweep(self.two)
        await self.sweep(self.two)
        assert told(again) == []
        self.answer(self.one, "one.1")
        await self.one.bus.call("PING")
        await self.sweep(self.one)
        here = self.one.connect("2")
        await self.send(here)
        await self.sweep(self.one)
        assert told(here) == [ANSWER]  # though it is not in Redis yet
        self.client.config_set("min-replicas-to-write", "0")
        await self.sweep(self.one)
        await self.sweep(self.two)
        assert told(again) == [ANSWER]
        assert self.handled() == 1
        assert self.one.counters.answers_not_kept == 0

    async def test_redis_refuses_to_be_asked(self) -> None:
        session = self.one.connect("1")
        self.client.acl_setuser("default", enabled=True, nopass=True, commands=["-mget", "-eval", "-evalsha"])
        with capturedLogs() as events:
            await self.send(session)
            for _ in range(3):
                await self.sweep(self.one)
        assert told(session) == []
        assert len([event for event in events if "Sharing answers" in event["log_format"]]) == 1
        await self.sweep(self.one, 10)
        assert codes(session) == ["TIMEOUT"]

    async def test_an_answer_that_comes_while_redis_is_away(self) -> None:
        gateway = await self.gateway("three", **PINGS)
        first = gateway.connect("1")
        await self.send(first)
        await self.freeze(gateway)
        first.lost()
        self.answer(gateway, "three.1")
        again = gateway.connect("2")
        ask(again)
        await self.sweep_in_outage(gateway)
        assert told(again) == [ANSWER]
        await self.thaw(gateway, self.two)
        await self.sweep(gateway)
        elsewhere = self.two.connect("1")
        await self.send(elsewhere)
        assert told(elsewhere) == [ANSWER]
        assert self.handled() == 1

    async def test_a_room_that_was_left_meanwhile(self) -> None:
        first, again = self.one.connect("1"), self.two.connect("1")
        await self.send(first)
        del again.rooms["board"]
        for key in ("q", "new"):
            await self.send(again, id=key, resent=True)
        await self.send(again, id="q", resent=True)  # the first one's answer answers this one, too
        await self.send(again, id="q", payload=2, resent=True)
        assert [message["payload"]["code"] for message in told(again)] == ["ACCESS_DENIED"]
        await self.sweep(self.two)
        (message,) = told(again)
        assert (message["id"], message["payload"]["code"]) == ("new", "ACCESS_DENIED")
        self.answer(self.one, "one.1")
        await self.one.bus.call("PING")
        await self.sweep(self.two)
        assert told(again) == [ANSWER]
        assert self.handled() == 1

    async def test_a_large_answer_is_charged_and_nobody_over_budget_gets_one(self) -> None:
        limits = Limits(bytes_per_user=50_000, burst=1.0)
        self.two.budgets = Budgets(limits, self.two.counters, self.two.clock)
        first = self.one.connect("1")
        large = "x" * 50_000
        for key in "abc":
            await self.send(first, id=key)
            self.answer(self.one, "one.1", large, id=key)
        await self.one.bus.call("PING")
        again, other = self.two.connect("1"), self.two.connect("2")
        for session, key in ((again, "a"), (again, "b"), (other, "c")):
            ask(session, id=key)
        for seconds, answered in ((0.0, "a"), (0.02, ""), (0.5, "b"), (0.25, ""), (0.5, "c")):
            await self.sweep(self.two, seconds)
            messages = [*told(again), *told(other)]
            assert "".join(message["id"] for message in messages) == answered
            assert [message["payload"] for message in messages] == [large] * len(answered)
            assert self.two.budgets.overdrawn("ann", "") > 0
        assert self.handled() == 3
        assert len(self.two.requests) == 0

    async def test_what_redis_says_of_requests_sent_again_is_small(self) -> None:
        first, again = self.one.connect("1"), self.two.connect("1")
        for key in range(50):
            await self.send(first, id=key)
            self.answer(self.one, "one.1", "x" * (1000 if key else 900), id=key)  # type: ignore[arg-type]
        await self.one.bus.call("PING")
        replies: list[int] = []
        known = self.two.requests.look_ups.known

        def heard(request: Request, record: bytes) -> None:
            replies.append(len(record))
            known(request, record)

        self.patch(self.two.requests.look_ups, "known", heard)
        for key in range(50):
            ask(again, id=key)
        await self.two.bus.call("PING")
        assert replies[0] in range(900, LARGE + 1)
        assert replies[1:] == [len("=1070")] * 49
        await until(lambda: len(self.two.requests) == 0, "the answers")
        assert len(told(again)) == 50

    async def test_a_large_answer_that_was_not_heard(self) -> None:
        session = self.one.connect("1")
        await self.send(session)
        await self.deafen(self.one)
        self.answer(self.two, "one.1", "x" * 5000)
        words = {"recipients": ["one.1"], "userIds": ["ann"], "inReplyTo": "q", "payload": "x" * 5000}
        self.say(self.two, words)
        await self.two.bus.call("PING")
        await self.hear(self.one)
        for _ in range(8):
            await self.sweep(self.one)
        assert told(session) == [{**ANSWER, "payload": "x" * 5000}]
        again = self.two.connect("again")
        await self.send(again)
        await self.sweep(self.two)
        assert told(again) == [{**ANSWER, "payload": "x" * 5000}]

    async def test_who_has_gone_looks_nothing_up(self) -> None:
        tight = await self.gateway("tight", requests=1)
        await self.send(self.one.connect("1"))
        again, refused = tight.connect("1"), tight.connect("2")
        await self.send(again)
        ask(refused, id="other", resent=True)
        late = tight.connect("3")
        ask(late)
        assert len(tight.requests) == 3
        for session in (again, refused, late):
            session.lost()
        await tight.bus.call("PING")
        await self.sweep(tight)
        assert len(tight.requests) == 0
        assert tight.requests.look_ups.waiting == {}
        assert [len(queue.requests) for queue in tight.requests._queues.values()] in ([], [0])
        back = tight.connect("4")
        await self.send(back)
        self.answer(self.one, "one.1")
        await self.one.bus.call("PING")
        await self.sweep(tight)
        assert told(back) == [ANSWER]
        assert self.handled() == 1

    async def test_who_has_gone_before_it_is_known_that_it_has_sent_something_again(self) -> None:
        await self.send(self.one.connect("1"))
        again = self.two.connect("1")
        ask(again)
        again.lost()
        assert len(self.two.requests) == 1
        await self.two.bus.call("PING")
        assert len(self.two.requests) == 0
        assert self.two.requests.look_ups.waiting == {}
        assert self.two.counters.requests_repeated == 1

    async def test_who_has_gone_has_its_own_request_looked_up(self) -> None:
        gateway = await self.gateway("three", **PINGS)
        early, late = gateway.connect("1"), gateway.connect("2", "bob")
        self.redis.freeze()
        for session in (early, late):
            ask(session)
        await until(lambda: not gateway.bus.available, "the loss")
        early.lost()
        await self.thaw(gateway)
        await self.sweep(gateway)
        late.lost()
        assert len(gateway.requests) == 2
        for number, user_id in ((1, "ann"), (2, "bob")):
            self.answer(gateway, f"three.{number}")
            await gateway.bus.call("PING")
            again = gateway.connect(f"again {number}", user_id)
            await self.send(again)
            assert told(again) == [ANSWER]

    async def test_a_user_has_a_share_of_what_is_looked_up(self) -> None:
        self.patch(request_look_ups, "_SHARED", 4)
        tight = await self.gateway("tight", requests=1)
        await self.send(tight.connect("1", "carl"))
        sessions = [tight.connect(str(number), user) for number, user in enumerate(("ann", "ann", "bob", "ann"), 2)]
        for session in sessions:
            ask(session, id=session.socket_id, resent=True)
        assert [codes(session) for session in sessions] == [[], [], [], ["TIMEOUT"]]
        await self.sweep(tight)
        assert [codes(session) for session in sessions] == [["SERVICE_UNAVAILABLE"]] * 3 + [[]]
        ask(sessions[3], id="again", resent=True)
        await self.sweep(tight)
        assert codes(sessions[3]) == ["SERVICE_UNAVAILABLE"]

    async def test_acknowledgements_that_do_not_last(self) -> None:
        forgetful = await self.gateway("forgetful", 0.0, **PINGS)
        await self.freeze(forgetful)
        session = forgetful.connect("1")
        ask(session, resent=True)
        assert codes(session) == ["SERVICE_UNAVAILABLE"]
        await self.thaw(forgetful)


def test_what_is_not_allowed_is_refused_at_once_unless_it_was_sent_before() -> None:
    house = House()
    client = house.admit()
    client.send({"type": SEND, "id": 1, "roomId": "elsewhere"})
    client.send({"type": SEND, "id": 2, "roomId": "elsewhere", "resent": True})  # answers do not last here
    client.send({"type": SEND, "roomId": "elsewhere", "resent": True})
    told = client.link.read()
    assert [(message.get("id"), message["payload"]["code"]) for message in told] == [
        (1, "ACCESS_DENIED"),
        (2, "ACCESS_DENIED"),
        (None, "ACCESS_DENIED"),
    ]


def test_a_client_connects_before_redis_was_lost_or_after() -> None:
    house = House(limits=Limits())
    before = house.connect()
    house.bus.down()
    after = house.connect()
    house.bus.up()
    assert [client.session.outages for client in (before, after)] == [0, 1]


class Looking:
    """Look-ups on a Redis that answers when it is told to, of sessions that share budgets."""

    def __init__(self, **limits: Any) -> None:
        self.house = house = House(limits=Limits(**limits))
        self.refused: list[Any] = []
        self.settled: list[Request] = []
        store = AnswerStore(house.bus, house.clock, house.counters, house.accounts, 120.0)
        self.look_ups = LookUps(house.bus, house.clock, store, settle=self.settle, refuse=self.refuse, requests=list)
        self.queue = RequestQueue(CHAT, once("stream", True, 1, 1, 1), lambda *_: None)
        house.bus.calls.clear()

    def settle(self, request: Request, answer: object, body: object) -> None:
        self.settled.append(request)
        self.look_ups.forget(request)
        self.queue.remove(request)

    def refuse(self, request: Request, why: object) -> None:
        self.refused.append(why)

    def request(self, record: str, session: Session | None = None) -> Request:
        session = session or self.house.admit("ann").session
        made = Request(session, SEND, record, True, self.queue, record, 0.0)
        self.queue.requests[made] = None
        return made

    def missed(self, number: int) -> tuple[str, ...]:
        """So many requests waited through an outage. Returns what is asked about for them."""
        waiting = [self.request(str(each)) for each in range(number)]
        self.look_ups.requests = lambda: waiting
        self.look_ups.bus_up()
        self.house.clock.advance(5)
        self.look_ups.sweep()
        return self.asked[0]

    def answer(self, *found: bytes | int | None) -> None:
        self.house.bus.calls.pop(0).reply.callback([*found])

    @property
    def asked(self) -> list[tuple[str, ...]]:
        """The keys that are asked about."""
        return [tuple(key for key in call.keys if key != EPOCH) for call in self.house.bus.calls]


def denied(request: Request) -> PeerError:
    return PeerError(Code.RATE_LIMITED, "too much", id=request.id)


def test_some_are_looked_up_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_look_ups, "_AT_ONCE", 2)
    looking = Looking()
    for number in range(5):
        request = looking.request(str(number))
        looking.look_ups.not_sent(request, True, denied(request))
    looking.look_ups.sweep()
    looking.look_ups.sweep()
    assert looking.asked == [("0", "1")]
    looking.answer(None, b"?gw.other")
    assert looking.asked == [("2", "3")]
    looking.answer(None, None)
    assert looking.asked == [("4", "1", "request:adopted:gw.other:1")]
    looking.answer(None, b"?gw.other", None)
    assert looking.asked == []
    assert [why.id for why in looking.refused] == ["0", "2", "3", "4"]
    looking.look_ups.sweep()
    looking.house.bus.calls.pop(0).reply.errback(NotPublished("lost"))
    assert looking.asked == []
    looking.look_ups.sweep()
    assert looking.asked == [("1", "request:adopted:gw.other:1")]


def test_who_is_over_budget_is_looked_up_later_and_pays_for_it() -> None:
    looking = Looking(events_per_user=10, bytes_per_user=0, events_per_socket=0, bytes_per_socket=0, burst=1.0)
    budgets = looking.house.admission.budgets
    session = looking.house.admit("ann").session
    for number in range(5):
        request = looking.request(str(number), session)
        looking.look_ups.not_sent(request, True, denied(request))
    other = looking.request("bob", looking.house.admit("bob").session)
    looking.look_ups.not_sent(other, True, denied(other))
    looking.house.clock.advance(10)
    budgets.spend("ann", "", 15, 0)
    looking.look_ups.sweep()
    assert looking.asked == [("bob",)]
    looking.answer(None)
    looking.house.clock.advance(0.25)
    looking.look_ups.sweep()
    assert looking.asked == []
    looking.house.clock.advance(0.26)
    looking.look_ups.sweep()
    assert looking.asked == [("0", "1", "2", "3", "4")]
    assert budgets.overdrawn("ann", "") == pytest.approx(0.49)
    assert len(looking.refused) == 1


def test_to_be_looked_up_again_costs_less() -> None:
    looking = Looking(events_per_user=10, bytes_per_user=0, events_per_socket=0, bytes_per_socket=0, burst=2.0)
    budgets = looking.house.admission.budgets
    session = looking.house.admit("ann").session
    looking.house.clock.advance(10)
    for number in range(17):
        looking.look_ups.known(looking.request(str(number), session), b"?gw.other")
    assert [len(keys) for keys in looking.asked] == [2]
    looking.answer(b"?gw.other", None)
    looking.answer(*[b"?gw.other", None] * 16)
    now = looking.house.clock.seconds()
    [(user_id, full_at)] = budgets.give().users[0]
    assert user_id == "ann"
    assert full_at - now == pytest.approx(0.2)
    looking.look_ups.sweep()
    assert [len(keys) for keys in looking.asked] == [34]
    [(_, full_at)] = budgets.give().users[0]
    assert full_at - now == pytest.approx(0.4)


def test_large_answers_come_one_after_the_other() -> None:
    looking = Looking()
    answer = msgspec.json.encode({"type": "r", "payload": "x" * 100_000})
    waiting = [looking.request(str(number)) for number in range(5)]
    for request in waiting:
        looking.look_ups.known(request, b"=%d" % len(answer))
    assert looking.asked == [("0",), ("1",)]
    looking.look_ups.sweep()
    assert looking.asked[2:] == [("0", "1", "2", "3", "4")]
    looking.house.bus.calls.pop().reply.callback([len(answer)] * 5)
    looking.queue.remove(waiting[2])
    for left in ([("1",), ("3",)], [("3",), ("4",)], [("4",)], []):
        looking.house.bus.calls.pop(0).reply.callback(answer)
        assert looking.asked == left
    assert [request.record for request in looking.settled] == ["0", "1", "3", "4"]


def test_a_large_answer_that_cannot_be_read_now_is_read_later() -> None:
    looking = Looking()
    for number in range(3):
        looking.look_ups.known(looking.request(str(number)), b"=200000")
    looking.house.bus.calls.pop().reply.errback(NotPublished("lost"))
    assert looking.asked == []
    looking.look_ups.sweep()
    looking.answer(200_000, None, b"\xff" * 2000)
    assert looking.asked[0] == ("0",)
    assert [request.record for request in looking.settled] == []


def test_the_data_are_lost_under_the_connections() -> None:
    house, refused = House(), []
    store = AnswerStore(house.bus, house.clock, house.counters, house.accounts, 120.0)
    look_ups = LookUps(
        house.bus, house.clock, store, settle=lambda *_: None, refuse=lambda _, why: refused.append(why), requests=list
    )
    queue = RequestQueue(CHAT, once("stream", True, 1, 1, 1), lambda *_: None)
    old, new = (Request(house.connect().session, SEND, "record", True, queue, 1, 0.0) for _ in range(2))
    look_ups.uncertain(old, Undelivered.REFUSED)
    house.bus.begin_epoch("e2")
    look_ups.uncertain(new, Undelivered.LOST)
    look_ups.sweep()
    house.bus.calls.pop().reply.callback([None] * 2)
    assert refused == [Undelivered.LOST]
    assert look_ups.waiting == {}


def test_what_is_missing_in_data_that_nobody_knows_yet_proves_nothing() -> None:
    looking = Looking()
    request = looking.request("0")
    looking.look_ups.uncertain(request, Undelivered.LOST)
    looking.look_ups.sweep()
    looking.house.bus.calls.pop(0).reply.callback(None)
    assert (looking.refused, request in looking.look_ups.waiting) == ([], True)
    looking.house.bus.begin_epoch("e2")
    looking.look_ups.sweep()
    looking.answer(None)
    assert (looking.refused, request in looking.look_ups.waiting) == ([], False)


@pytest.mark.parametrize("early", [False, True])
def test_what_repeats_another_request_ends_with_its_connection(early: bool) -> None:
    house = House(dispatch=lambda house: Dispatch(house.registry, house.bus))
    client = house.admit("ann")
    client.send({"type": SEND, "id": "q", "resent": True})
    sent = house.bus.calls.pop()
    if early:
        client.leave()
        assert len(house.requests) == 1
    sent.reply.callback(b"?gw.other")
    if not early:
        assert (len(house.requests), len(house.requests.look_ups.waiting)) == (1, 1)
        client.leave()
    assert (len(house.requests), len(house.requests.look_ups.waiting)) == (0, 0)
    assert house.counters.errors_internal == 0


def test_who_is_over_the_rate_and_sends_again_waits_for_an_answer() -> None:
    limits = Limits(events_per_user=10, events_per_socket=0, bytes_per_user=0, bytes_per_socket=0, burst=1.0)
    house = House(limits=limits, dispatch=lambda house: Dispatch(house.registry, house.bus))
    client = house.admit("ann")
    house.clock.advance(10)
    house.admission.budgets.spend("ann", "", 15, 0)
    client.session.events = 0
    house.bus.calls.clear()
    for key in "ab":
        client.send({"type": SEND, "id": key, "resent": True})
    house.requests.sweep()
    assert (house.bus.calls, client.link.read()) == ([], [])
    house.clock.advance(0.51)
    house.requests.sweep()
    [asked] = house.bus.calls
    assert len(asked.keys) == 2 + 1
    answer = msgspec.json.encode({"type": "r", "payload": "done"})
    asked.reply.callback([answer, None])
    answered, refused = client.link.read()
    assert answered == {**ANSWER, "id": "a"}
    assert (refused["id"], refused["payload"]["code"], refused["payload"]["limit"]) == ("b", "RATE_LIMITED", "user")
    assert len(house.requests) == 0


def test_who_waits_is_looked_up_beside_those_who_come() -> None:
    looking = Looking()
    looking.look_ups.known(looking.request("0"), b"?gw.other")
    looking.answer(b"?gw.other", None)
    for number in (1, 2):
        looking.look_ups.known(looking.request(str(number)), b"?gw.other")
    looking.look_ups.sweep()
    looking.answer(b"?gw.other", None)
    assert {"0", "2"} <= {*looking.asked[0]}


def test_nobody_is_charged_while_redis_cannot_be_asked() -> None:
    looking = Looking(events_per_user=10, bytes_per_user=0, events_per_socket=0, bytes_per_socket=0, burst=1.0)
    session = looking.house.admit("ann").session
    looking.house.clock.advance(10)
    looking.house.bus.down()
    for number in range(5):
        request = looking.request(str(number), session)
        looking.look_ups.not_sent(request, True, denied(request))
    for _ in range(20):
        looking.look_ups.sweep()
        looking.house.clock.advance(0.01)
    assert looking.house.admission.budgets.overdrawn("ann", "") == 0


def test_what_was_missed_is_looked_up_once_when_redis_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looking = Looking()
    asked = looking.missed(5)
    looking.answer(*[200_000] * 5)
    refused: list[Any] = []

    def refuse(*words: Any) -> Deferred[Any]:
        refused.append(words)
        return fail(NotPublished("full"))

    with monkeypatch.context() as full:
        full.setattr(looking.house.bus, "call", refuse)
        looking.house.bus.calls.pop(0).reply.callback(msgspec.json.encode({"type": "r", "payload": "x" * 200_000}))
    looking.look_ups.sweep()
    assert (len(refused), looking.asked) == (1, [asked[1:]])


@pytest.mark.parametrize("refused", ["look-up", "answer"])
def test_what_was_missed_is_looked_up_again_when_that_has_failed(refused: str) -> None:
    looking = Looking()
    asked = looking.missed(2)
    if refused == "answer":
        looking.answer(200_000, 200_000)
    looking.house.bus.calls.pop(0).reply.errback(NotPublished("full"))
    looking.house.bus.calls.clear()
    looking.look_ups.sweep()
    assert {*looking.asked[0]} == {*asked}


def test_a_claim_says_of_a_large_answer_how_large_it_is(server: PrivateRedis) -> None:
    with server.client() as client:
        client.set("small", "x" * LARGE)
        client.set("large", "x" * 100_000)
        script = _claim(1000)
        for key, told in (("small", b"x" * LARGE), ("large", b"=100000")):
            given = script.arguments([(key, "socket", None)], "")
            assert client.eval(script.source, 0, *given) == [0, told]


def test_what_redis_does_not_let_a_look_up_read_proves_nothing(server: PrivateRedis) -> None:
    source = request_look_ups._READ.source
    with server.client() as client:
        client.rpush("list", "x")
        client.set("text", "x")
        client.hset("epoch", "epoch", "e1")
        keys = "list", "text", "none", "epoch"
        for epoch in ("e1", ""):
            assert client.eval(source, 4, *keys, LARGE, epoch) == [None, b"x", None]
        assert client.eval(source, 4, *keys, LARGE, "e0") is None
        client.acl_setuser("gateway", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-getrange"])
    with server.client(username="gateway", password="x") as client, pytest.raises(ResponseError):
        client.eval(source, 2, "text", "epoch", LARGE, "")

"""Services that register themselves: which of them a gateway lets, and for how long."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import force_setattr
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from zope.interface.verify import verifyObject

from kraftek.contract.interfaces import IBusListener
from kraftek.contract.registrations import LEASE
from kraftek.contract.settings import Config, Redis, Registration
from kraftek.core.registry import ServiceRegistry
from kraftek.core.self_registrations import POLL, READ, SelfRegistrations
from tests.support.fakes import FakeBus

CHAT = Registration(name="chat", channel="events:chat")


class Place:
    """A gateway's part of it, with the services of its configuration. ``redis``: what it finds when it looks."""

    def __init__(self, *auto_register: str, services: tuple[Registration, ...] = (CHAT,)) -> None:
        self.config = Config(auto_register=auto_register, services=services, redis=Redis(broadcast="all"))
        self.clock, self.bus, self.registry = Clock(), FakeBus(), ServiceRegistry(services)
        self.redis: dict[str, dict[str, Any] | bytes] = {}
        self.themselves = SelfRegistrations(self.bus, self.registry, self.config, self.clock)
        self.left = LEASE

    def looks(self, seconds: float = POLL) -> list[str]:
        """So much later it has looked. What it logs."""
        with capturedLogs() as events:
            self.clock.advance(seconds)
            self.themselves.sweep()
            self.answer()
        return [formatEvent(event) or "" for event in events]

    def answer(self) -> None:
        calls, self.bus.calls = self.bus.calls, []
        for call in calls:
            assert (call.command, call.keys) == (READ, ("gateways:registered", "gateways:registered:leases"))
            found = []
            for name, it in self.redis.items():
                body = it if isinstance(it, bytes) else msgspec.json.encode(it)
                found.append([name.encode(), body, int(self.left * 1000)])
            call.reply.callback(found)

    def channel(self, name: str) -> str:
        service: Any = self.registry.find(name)
        return str(service.channel)

    @property
    def names(self) -> list[str]:
        return [service.name for service in self.registry.services()]


def test_a_service_is_there_while_it_stands() -> None:
    place = Place("chat-*")
    assert verifyObject(IBusListener, place.themselves)
    place.redis = {"chat-a": {"channel": "x", "transport": "stream", "partitions": 2, "reply": True, "timeout": 3}}
    (line,) = place.looks()
    assert line.startswith('Service chat-a has registered itself: {"channel":"x",')
    assert line.endswith("Clients need a permission that names it")
    service: Any = place.registry.find("chat-a")
    assert (service.channel, service.transport, service.partitions, service.reply) == ("x", "stream", 2, True)
    assert (service.timeout, service.explicit, service.presence, len(place.themselves)) == (3.0, True, False, 1)
    assert place.looks() == []
    assert place.registry.find("chat-a") is service
    place.redis = {}
    for _ in range(int(LEASE / POLL)):
        assert place.looks() == []
    assert place.names == ["chat", "chat-a"]
    assert place.looks() == ["Service chat-a, which had registered itself, is gone"]
    assert (place.names, len(place.themselves)) == (["chat"], 0)


def test_a_new_one_is_looked_for_at_once() -> None:
    place = Place("*")
    place.looks()
    place.redis = {"wiki": {"channel": "x"}}
    place.looks(0.0)
    assert place.names == ["chat"]
    place.bus.publish("gateways:registered", b"", lambda _: None)
    place.bus.deliver()
    place.looks(0.0)
    assert place.names == ["chat", "wiki"]


def test_nobody_is_asked_for_where_nobody_may() -> None:
    place = Place()
    place.clock.advance(POLL)
    place.themselves.sweep()
    assert place.bus.calls == []


@pytest.mark.parametrize(
    ("name", "registration", "why"),
    [
        ("chat-a", {"channel": "auth:invalidate"}, "channel: expected a channel that is none of the gateway's own"),
        ("chat-a", {"channel": "all"}, "channel: expected another channel than that of redis.broadcast"),
        ("chat-a", {"channel": "events:chat", "transport": "stream"}, "the transport and partitions of services.chat"),
        ("chat-a", {"channel": "x", "partitions": 2}, "partitions: expected nothing unless the transport is"),
        ("chat-a", {"channel": "x", "partitions": -1}, "its registration: Expected `int` >= 0"),
        ("chat-a", {"channel": "a b"}, "its registration: "),
        ("chat-a", b"{", "its registration: "),
        ("chat-a", b"\xff", "its registration: "),
        ("chat-:", {"channel": "x"}, "name: expected a name of 1 to 128 letters"),
    ],
)
def test_what_could_not_be_configured_is_refused(name: str, registration: Any, why: str) -> None:
    place = Place("chat-*")
    place.redis = {name: registration}
    (line,) = place.looks()
    assert f"Service {name} may not register itself: " in line
    assert why in line
    assert why in place.themselves.refused[name]
    assert (place.names, place.looks()) == (["chat"], [])


def test_the_gateway_s_own_name_is_no_service_s() -> None:
    place = Place("*")
    place.redis = {"gateway": {"channel": "x"}}
    place.looks()
    assert (place.names, [*place.themselves.refused]) == (["chat"], ["gateway"])


def test_of_two_that_contradict_each_other_the_first_stays() -> None:
    place = Place("*")
    place.redis = {"b": {"channel": "x"}}
    place.looks()
    place.redis = {"a": {"channel": "x", "transport": "stream"}, "b": {"channel": "x"}, "other": {"channel": "x"}}
    place.looks()
    assert (place.names, [*place.themselves.refused]) == (["chat", "b", "other"], ["a"])


def test_the_configuration_wins() -> None:
    place = Place("*")
    place.redis = {"chat": {"channel": "x"}, "wiki": {"channel": "y"}}
    place.looks()
    assert place.registry.find("chat") is CHAT
    wiki = Registration(name="wiki", channel="z")
    place.registry.register(wiki)
    place.themselves.reconcile()
    assert (place.registry.find("wiki"), len(place.themselves)) == (wiki, 0)
    place.registry.unregister("wiki")
    place.looks()
    assert place.channel("wiki") == "y"


def test_a_name_that_is_not_permitted_any_more_is_gone() -> None:
    place = Place("chat-*")
    place.redis = {"chat-a": {"channel": "x"}, "wiki": {"channel": "y"}}
    place.looks()
    assert place.names == ["chat", "chat-a"]
    force_setattr(place.config, "auto_register", ("wiki",))
    place.themselves.reconcile()
    assert place.names == ["chat", "wiki"]


def test_another_registration_takes_effect() -> None:
    place = Place("*")
    place.redis = {"wiki": {"channel": "x"}}
    place.looks()
    place.redis = {"wiki": {"channel": "y"}}
    assert len(place.looks()) == 2
    assert place.channel("wiki") == "y"


def test_nobody_is_gone_because_redis_was() -> None:
    place = Place("*")
    place.redis = {"wiki": {"channel": "x"}}
    place.looks()
    place.bus.down()
    place.clock.advance(10 * LEASE)
    place.themselves.sweep()
    assert place.names == ["chat", "wiki"]
    place.redis = {}
    place.bus.up()
    place.answer()
    place.themselves.epoch_changed()
    place.looks(LEASE - 1)
    assert place.names == ["chat", "wiki"]
    place.looks(1)
    assert place.names == ["chat"]


def test_what_redis_refuses_is_logged_once() -> None:
    place = Place("*")
    with capturedLogs() as events:
        for _ in range(3):
            place.clock.advance(POLL)
            place.themselves.sweep()
            for call in place.bus.calls:
                call.reply.errback(ValueError("NOPERM"))
            place.bus.calls.clear()
    (line,) = [formatEvent(event) or "" for event in events]
    assert line.startswith("Services that register themselves are not found")


def test_another_version_goes_on_with_them() -> None:
    place, next_one = Place("*"), Place("*")
    place.redis = {"wiki": {"channel": "x"}}
    place.looks()
    next_one.clock.advance(place.clock.seconds())
    next_one.themselves.take(place.themselves.give())
    assert next_one.names == ["chat", "wiki"]
    next_one.looks(LEASE)
    assert next_one.names == ["chat"]

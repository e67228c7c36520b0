"""What a changed configuration does to a gateway that runs: every key takes effect, or is named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import ConfigError
from kraftek.contract.metrics import Counters, Gauges
from kraftek.contract.names import REGISTRATIONS
from kraftek.contract.readiness import Readiness
from kraftek.contract.registrations import published
from kraftek.contract.settings import (
    Auth,
    Config,
    Drain,
    EventPolicy,
    Jwt,
    Limits,
    Operator,
    Redis,
    Registration,
    SelfRegistration,
    SocketIO,
)
from kraftek.core.registry import ServiceRegistry
from kraftek.core.self_registrations import SelfRegistered
from kraftek.daemon.assembly import Core, Edge, Surroundings, operator_of
from kraftek.daemon.checkers import Checkers
from kraftek.daemon.listening import Certificates
from kraftek.daemon.reload import LIVE, Reload, keys
from kraftek.edge.dialects.native import NativeDialect
from kraftek.edge.origins import Verdict
from tests.support.fakes import FakeAccess, FakeBus, FakeLink, FakeRooms
from tests.support.fastpath import make_iteration

CHAT = Registration(name="chat", channel="events:chat", reply=True)
NOTES = Registration(name="notes", channel="events:notes")
POLLS = Registration(name="polls", channel="events:polls")


class Running:
    """A gateway that runs, with a client; it checks tokens itself, and asks. It is what the daemon makes."""

    def __init__(self, **settings: Any) -> None:
        # Of its own: they are changed in place, and the defaults are everybody's.
        tables: dict[str, Any] = {"redis": Redis(), "jwt": Jwt(), "limits": Limits(), "socketio": SocketIO()}
        tables |= {"auth": Auth(check="jwt+http://127.0.0.1:3002")}
        tables |= {"operator": Operator(), "drain": Drain(), "services": (CHAT, NOTES)}
        self.config = config = Config(**{**tables, **settings})
        clock, counters, self.bus = Clock(), Counters(), FakeBus()
        bus = self.bus
        iteration = make_iteration(clock, False)
        self.registry = ServiceRegistry(config.services)
        given = Surroundings(
            config=config,
            gateway_id="gw",
            registry=self.registry,
            bus=bus,
            access=FakeAccess(),
            counters=counters,
            accounts=Accounts(),
            clock=clock,
            iteration=iteration,
        )
        self.core = Core(given, rooms=FakeRooms())
        self.core.self_registrations.take({"chat-a": SelfRegistered(b'{"channel": "x"}', 100.0)})
        self.edge = Edge(given, self.core, clock, fastpath=False)
        self.operator = operator_of(given, Gauges(), Readiness(bus), clock)
        self.checkers: Any = Checkers(clock, config, bus, counters)
        self.session: Any = self.core.gateway.open(FakeLink(), NativeDialect())
        self.reload = Reload(config, self.registry, Certificates(), self.core, self.edge, self.operator, self.checkers)

    def take(self, new: Config) -> list[str]:
        """Its lines of the log."""
        with capturedLogs() as events:
            self.reload.take(new)
        ours = (event for event in events if event["log_namespace"].startswith("kraftek.daemon.reload"))
        return [event["log_format"].format(**event) for event in ours]


def changed(value: Any) -> Any:
    """Another value of this kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case "open" | "single" | "many":
            return "other"
        case str():
            return f"{value}x"
        case tuple():
            return (*value, POLLS if CHAT in value else "other.example.org")
    raise AssertionError(value)


def with_key(config: Config, key: str, value: Any) -> Config:
    table, _, name = key.rpartition(".")
    if not table:
        return replace(config, **{name: value})
    return replace(config, **{table: replace(getattr(config, table), **{name: value})})


def at(config: Struct, key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def rates(budgets: Any) -> dict[str, Any]:
    """What each bucket fills up by, by its key."""
    found = {"joins_per_user": budgets._joins, "questions_per_user": budgets._questions}
    found["questions_per_address"] = budgets._address_questions
    for who in ("socket", "user", "address"):
        flow = getattr(budgets, f"_{who}s" if who != "address" else "_addresses")
        found |= {f"events_per_{who}": flow._events, f"bytes_per_{who}": flow._size}
    return {name: buckets._interval for name, buckets in found.items()}


JWT = Jwt.__struct_fields__

SEEN: dict[str, Callable[[Running], Any]] = {
    "origins": lambda it: it.edge.site.origins.judge("https://other.example.org", "h", None) is Verdict.NAMED,
    "hosts": lambda it: (it.edge.site.hosts.allow("other.example.org"), it.operator.hosts.allow("elsewhere")),
    "auth.check": lambda it: it.checkers._auth_service._agent._url,
    "auth.ca": lambda it: id(it.checkers._auth_service._connections),
    "auth.timeout": lambda it: it.checkers._auth_service._timeout,
    "auth.concurrency": lambda it: it.checkers._auth_service._questions.at_a_time,
    "auth.waiting": lambda it: it.checkers._auth_service._questions.most_waiting,
    "auth.cache_ttl": lambda it: it.config.auth.cache_ttl,
    **{f"jwt.{name}": partial(lambda name, it: getattr(it.checkers._jwt._jwt, name), name) for name in JWT},
    "jwt.key_files": lambda it: id(it.checkers._jwt._files),
    "jwt.key_set": lambda it: it.checkers._jwt._key_set,
    "limits.message_bytes": lambda it: it.edge.clients.limits.message_bytes,
    "limits.handshake_timeout": lambda it: it.edge.site.head_timeout,
    "limits.request_timeout": lambda it: it.edge.site.request_timeout,
    "limits.authenticate_timeout": lambda it: it.core.admission._limits.authenticate_timeout,
    "limits.rooms": lambda it: it.core.admission._limits.rooms,
    "limits.rooms_per_user": lambda it: it.core.admission._limits.rooms_per_user,
    "limits.presence_bytes": lambda it: it.core.admission._limits.presence_bytes,
    "limits.receipts": lambda it: it.core.receipts._limits.receipts,
    "limits.held_messages": lambda it: it.session._limits.held_messages,
    "limits.held_bytes": lambda it: it.session._limits.held_bytes,
    "limits.invalid_messages": lambda it: it.session._limits.invalid_messages,
    "limits.requests": lambda it: it.core.requests._limits.requests,
    "limits.connections": lambda it: it.edge.connections.limit,
    "limits.memory": lambda it: it.config.limits.memory,
    "limits.burst": lambda it: it.core.budgets._joins.over("", 0.0),
    **{
        f"limits.{name}": partial(lambda of, it: rates(it.core.budgets)[of], name)
        for name in (
            *("events_per_socket", "events_per_user", "events_per_address"),
            *("bytes_per_socket", "bytes_per_user", "bytes_per_address"),
            *("joins_per_user", "questions_per_user", "questions_per_address"),
        )
    },
    "limits.connects_per_address": lambda it: getattr(it.edge.site.arrivals._buckets, "_interval", None),
    "operator.publish_token_file": lambda it: it.operator.publish.token,
    "drain.lead": lambda it: it.config.drain.lead,
    "drain.seconds": lambda it: it.config.drain.seconds,
    "services": lambda it: it.registry.find("polls"),
    "auto_register": lambda it: it.registry.find("chat-a"),
    "events": lambda it: it.edge.backlogs.policies.of("a:b:c"),
}
"""Where each key is used that takes effect at once."""

VALUES = {
    "auto_register": ("chat-*",),
    "origins": ("same-host", "https://other.example.org"),
    "auth.ca": "",
    "limits.connections": 7,
    "events": (EventPolicy(pattern="a:*:*"),),
    "jwt.algorithm": "ES256",
    "jwt.key_files": (),
    "jwt.key_set": "https://id.example.org/keys",
}
"""Values that mean something, where any other one does not do."""


def token_file(directory: Path, token: str = "0123456789abcdef") -> str:
    file = directory / "token"
    file.write_text(token, "utf-8")
    file.chmod(0o600)
    return str(file)


@pytest.mark.parametrize("key", [key for key, _, _ in keys(Config())])
def test_every_key_takes_effect_or_is_named(key: str, tmp_path: Path) -> None:
    running = Running()
    before = at(running.config, key)
    if key in LIVE:
        seen = SEEN[key](running)
        new = token_file(tmp_path) if key == "operator.publish_token_file" else VALUES.get(key, changed(before))
        lines = running.take(with_key(running.config, key, new))
        assert at(running.config, key) == new
        assert SEEN[key](running) != seen
        assert lines == ([] if new == before else [f"{key} has changed"])
    else:
        lines = running.take(with_key(running.config, key, changed(before)))
        assert at(running.config, key) == before
        assert lines == [f"{key} has changed: that needs a restart"]


def test_those_that_take_effect_are_keys() -> None:
    assert {key for key, _, _ in keys(Config())} >= LIVE == SEEN.keys()


def test_the_token_for_publishing_is_read_again(tmp_path: Path) -> None:
    name = token_file(tmp_path)
    running = Running(operator=Operator(publish_token_file=name))
    assert running.take(replace(running.config)) == []
    assert running.operator.publish.token == b"0123456789abcdef"
    token_file(tmp_path, "another-0123456789")
    assert running.take(replace(running.config)) == []
    assert running.operator.publish.token == b"another-0123456789"
    Path(name).chmod(0o644)
    with pytest.raises(ConfigError, match="publish_token_file: expected a file with the rights 600"):
        running.reload.take(with_key(running.config, "limits.rooms", 7))
    assert (running.operator.publish.token, running.config.limits.rooms) == (b"another-0123456789", 64)
    running.take(with_key(running.config, "operator.publish_token_file", ""))
    assert running.operator.publish.token is None


def test_nothing_is_said_when_nothing_has_changed() -> None:
    running = Running()
    assert running.take(replace(running.config)) == []


def test_services_come_and_go_and_change() -> None:
    running = Running()
    slow = replace(NOTES, timeout=60.0)
    assert running.take(replace(running.config, services=(slow, POLLS))) == ["services has changed"]
    assert list(running.registry.services()) == [slow, POLLS]
    assert running.take(replace(running.config, services=(slow, POLLS))) == []


def test_the_configuration_wins_over_what_a_service_says_itself() -> None:
    running = Running(auto_register=("chat-*",))
    own = SelfRegistration(name="chat-a", channel="x")
    assert running.registry.find("chat-a") == own
    ours = replace(POLLS, name="chat-a")
    running.take(replace(running.config, services=(CHAT, NOTES, ours)))
    assert running.registry.find("chat-a") is ours
    running.take(replace(running.config, services=(CHAT, NOTES)))
    assert running.registry.find("chat-a") == own


def test_others_are_asked_after_a_restart_only() -> None:
    own = "python:tests.daemon.test_checkers:Everybody"
    checks = ["open", "http://auth", "jwt", "jwt+http://auth", own, f"{own}+http://auth"]
    for before, after in [(before, after) for before in checks for after in checks if before != after]:
        running = Running(auth=Auth(check=before))
        lines = running.take(with_key(running.config, "auth.check", after))
        assert lines == ["auth.check has changed: that needs a restart"]
        assert running.config.auth.check == before
        both = with_key(with_key(running.config, "auth.check", after), "jwt.issuer", "x")
        assert running.take(both)[1:] == ["jwt.issuer has changed: that needs a restart"]


@pytest.mark.parametrize("place", ["listen", "operator.listen", "auth.ca"])
def test_what_cannot_be_read_changes_nothing(place: str, tmp_path: Path) -> None:
    missing = f"ssl:1:privateKey={tmp_path}/missing"
    settings: dict[str, Any] = (
        {"listen": (missing,)} if place == "listen" else {"operator": Operator(listen=(missing,))}
    )
    running = Running(**({} if place == "auth.ca" else settings))
    new = with_key(running.config, "limits.rooms", 7)
    if place == "auth.ca":
        new = with_key(new, "auth.ca", str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="No such file"):
        running.reload.take(new)
    assert running.config.limits.rooms == 64


def test_whoever_had_no_limit_has_one_at_once() -> None:
    limits = {name: 0 for name in Limits.__struct_fields__ if name.startswith(("events_per_", "bytes_per_"))}
    running = Running(limits=Limits(**limits))
    running.core.budgets.draw(running.session)
    assert running.session.events > 1_000_000
    running.take(with_key(running.config, "limits.events_per_socket", 100))
    assert running.session.events == 0
    running.core.budgets.draw(running.session)
    assert running.session.events == 5


def test_other_limits_leave_budgets_as_they_are() -> None:
    running = Running()
    running.core.budgets.joins("ada")
    running.take(with_key(running.config, "limits.rooms", 7))
    assert len(running.core.budgets) == 1
    running.take(with_key(running.config, "limits.joins_per_user", 7))
    assert len(running.core.budgets) == 0


def test_more_questions_than_open_files_change_nothing() -> None:
    running = Running()
    with pytest.raises(ConfigError, match="open files"):
        running.reload.take(with_key(running.config, "auth.concurrency", 2**31 - 1))
    assert running.config.auth.concurrency == 100


def test_policies_come_and_go() -> None:
    running = Running()
    assert running.take(replace(running.config, events=(EventPolicy(pattern="a:*:*"),))) == ["events has changed"]
    assert running.edge.backlogs.policies.of("a:b:c") is not None
    running.take(replace(running.config, events=()))
    assert running.edge.backlogs.policies.of("a:b:c") is None


def test_what_it_publishes_about_services_changes_with_them() -> None:
    running = Running()
    running.bus.calls.clear()
    running.take(replace(running.config, services=(CHAT, POLLS)))
    (renewal,) = [call for call in running.bus.calls if REGISTRATIONS in call.keys]
    assert renewal.args[-1] == published(running.config, [CHAT, POLLS])
    running.take(replace(running.config, hosts=("example.org",)))
    assert [call for call in running.bus.calls if REGISTRATIONS in call.keys] == [renewal]

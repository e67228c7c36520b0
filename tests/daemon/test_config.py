import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import fields, replace
from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactor

from kraftek.contract.errors import ConfigError
from kraftek.contract.redis_url import RedisAddress, masked, redis_address
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
    RoomPolicy,
    SocketIO,
    Users,
)
from kraftek.daemon.config import load

SHIPPED = Path(__file__).resolve().parents[2] / "etc/kraftek-gateway.toml"
TABLES: dict[str, type[Struct]] = {
    "redis": Redis,
    "auth": Auth,
    "jwt": Jwt,
    "limits": Limits,
    "socketio": SocketIO,
    "operator": Operator,
    "drain": Drain,
    "users": Users,
}


def load_toml(
    text: str | bytes, options: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """The configuration with ``gateway.toml`` as its file."""
    content = text.encode() if isinstance(text, str) else text
    files = {"gateway.toml": content, "ca.pem": b"-----BEGIN CERTIFICATE-----\n"}

    def read_file(name: str) -> bytes:
        if name not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[name]

    return load({"config": "gateway.toml", **(options or {})}, environ or {}, read_file)


def mistakes(
    text: str | bytes = "", options: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_toml(text, options, environ)
    return caught.value.mistakes


def loaded(content: bytes, options: Mapping[str, Any], environ: Mapping[str, str]) -> Config | list[str]:
    try:
        return load_toml(content, options, environ)
    except ConfigError as error:
        return error.mistakes


def leaves() -> Iterator[tuple[str, Any]]:
    """The dotted key and the type of every value but those of services."""
    structs: list[tuple[str, type[Struct]]] = [("", Config), *TABLES.items()]
    for path, struct in structs:
        for field in fields(struct):
            if field.name not in {*TABLES, "services", "events"} and (path, field.name) != ("", "rooms"):
                yield f"{path}.{field.name}".lstrip("."), field.type


def at(config: Config, dotted: str) -> Any:
    value: Any = config
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


# Where values come from.


def test_nothing_given_gives_the_defaults() -> None:
    assert load({}, {}) == Config()


def test_a_real_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('sessions = "many"')
    assert load({"config": str(file)}, {}).sessions == "many"


@pytest.mark.parametrize(
    ("key", "toml", "environ", "options", "expected"),
    [
        ("listen", "", {"PORT": "8080"}, {}, ("tcp:8080",)),
        ("listen", 'listen = ["tcp:1"]', {"PORT": "8080"}, {}, ("tcp:1",)),
        ("listen", 'listen = ["tcp:1"]', {"PORT": "8080", "KRAFTEK_LISTEN": "tcp:2"}, {}, ("tcp:2",)),
        ("listen", "", {"KRAFTEK_LISTEN": "tcp:2"}, {"listen": ["tcp:3", "tcp:4"]}, ("tcp:3", "tcp:4")),
        ("listen", "", {"KRAFTEK_LISTEN": " tcp:2\n unix:/a,b\ttcp:3 "}, {}, ("tcp:2", "unix:/a,b", "tcp:3")),
        ("operator.listen", "", {}, {}, ()),
        ("operator.listen", "operator.listen = []", {"KRAFTEK_OPERATOR": "tcp:1 tcp:2"}, {}, ("tcp:1", "tcp:2")),
        ("operator.listen", 'operator.listen = ["tcp:3"]', {"KRAFTEK_OPERATOR": ""}, {}, ("tcp:3",)),
        ("redis.url", "", {"REDIS_HOST": "cache"}, {}, "redis://cache:6379/0"),
        ("redis.url", "", {"REDIS_PORT": "7000"}, {}, "redis://127.0.0.1:7000/0"),
        ("redis.url", "", {"REDIS_HOST": "cache", "REDIS_PORT": "7000"}, {}, "redis://cache:7000/0"),
        ("redis.url", "", {"REDIS_HOST": "::1"}, {}, "redis://[::1]:6379/0"),
        ("redis.url", '[redis]\nurl = "redis://file"', {"REDIS_HOST": "cache"}, {}, "redis://file"),
        ("redis.url", '[redis]\nurl = "redis://file"', {"KRAFTEK_REDIS": "redis://env"}, {}, "redis://env"),
        ("redis.url", "", {"KRAFTEK_REDIS": "redis://env"}, {"redis": "redis://option"}, "redis://option"),
        ("redis.broadcast", "", {"REDIS_OUTGOING_CHANNEL": "out"}, {}, "out"),
        ("redis.broadcast", '[redis]\nbroadcast = "file"', {"REDIS_OUTGOING_CHANNEL": "out"}, {}, "file"),
        ("auth.check", "", {"AUTH_SERVICE_URL": "http://auth"}, {}, "http://auth"),
        ("auth.check", '[auth]\ncheck = "http://file"', {"AUTH_SERVICE_URL": "http://auth"}, {}, "http://file"),
        ("auth.check", '[auth]\ncheck = "http://file"', {"KRAFTEK_AUTH": "http://env"}, {}, "http://env"),
        ("auth.check", "", {"KRAFTEK_AUTH": "http://env"}, {"auth": "open"}, "open"),
        ("origins", 'origins = ["*"]', {}, {"origin": ["https://a.org", "same-host"]}, ("https://a.org", "same-host")),
        ("origins", "origins = []", {}, {}, ()),
        ("demo", "demo = true", {}, {}, True),
        ("demo", "demo = false", {}, {"demo": True}, True),
        ("limits.rooms", "[limits]\nrooms = 1", {}, {}, 1),
        ("auth.timeout", "[auth]\ntimeout = 1", {}, {}, 1.0),
        ("redis.ca", '[redis]\nca = "ca.pem"', {}, {}, "ca.pem"),
        ("jwt.key_files", '[jwt]\nkey_files = ["ca.pem"]', {}, {}, ("ca.pem",)),
    ],
)
def test_options_win_over_environment_over_file_over_the_original_variables(
    key: str, toml: str, environ: dict[str, str], options: dict[str, Any], expected: object
) -> None:
    assert at(load_toml(toml, options, environ), key) == expected


@pytest.mark.parametrize(
    "name",
    [
        "KRAFTEK_REDIS",
        "KRAFTEK_LISTEN",
        "KRAFTEK_AUTH",
        "PORT",
        "REDIS_HOST",
        "REDIS_PORT",
        "REDIS_OUTGOING_CHANNEL",
        "AUTH_SERVICE_URL",
    ],
)
def test_an_empty_variable_is_one_not_given(name: str) -> None:
    assert load({}, {name: ""}) == Config()


def test_original_variables_do_not_matter_where_something_else_is_given() -> None:
    """Kubernetes sets such a REDIS_PORT for a service that is called redis, and PORT is anybody's."""
    environ = {
        "PORT": "tcp://10.0.0.7:3001",
        "REDIS_PORT": "tcp://10.0.0.7:6379",
        "REDIS_OUTGOING_CHANNEL": "a b",
        "AUTH_SERVICE_URL": "nonsense",
        "KRAFTEK_REDIS": "redis://cache",
        "KRAFTEK_AUTH": "open",
    }
    config = load({"listen": ["tcp:1"], "config": "f"}, environ, lambda _: b'redis.broadcast = "out"')
    assert config == Config(
        listen=("tcp:1",), redis=Redis(url="redis://cache", broadcast="out"), auth=Auth(check="open")
    )


def test_services_are_channels_or_tables() -> None:
    config = load_toml(
        """
        [services]
        notes = "events:notes"
        [services.chat]
        channel = "events:chat"
        reply = true
        [services."a.b"]
        channel = "x"
        """
    )
    assert config.services == (
        Registration(name="notes", channel="events:notes"),
        Registration(name="chat", channel="events:chat", reply=True),
        Registration(name="a.b", channel="x"),
    )


def test_a_service_option_adds_to_the_file_and_changes_channels_in_it() -> None:
    toml = '[services]\nnotes = "events:notes"\n[services.chat]\nchannel = "events:chat"\nreply = true'
    config = load_toml(toml, {"service": ["chat=elsewhere", "new=a=b"]})
    assert {service.name: service for service in config.services} == {
        "notes": Registration(name="notes", channel="events:notes"),
        "chat": Registration(name="chat", channel="elsewhere", reply=True),
        "new": Registration(name="new", channel="a=b"),
    }


NOTES = Registration(name="stickyNotes", channel="events:stickyNotes")


@pytest.mark.parametrize(
    ("toml", "environ", "options", "expected"),
    [
        ("", {}, {"demo": True}, ("embedded:", "open", NOTES)),
        ("demo = true", {}, {}, ("embedded:", "open", NOTES)),
        ("", {"REDIS_HOST": "h"}, {"demo": True}, ("redis://h:6379/0", "open", NOTES)),
        ("", {"KRAFTEK_AUTH": "http://a"}, {"demo": True}, ("embedded:", "http://a", NOTES)),
        ('redis.url = "redis://h"', {}, {"demo": True}, ("redis://h", "open", NOTES)),
        ("", {}, {"demo": True, "service": ["stickyNotes=x"]}, ("embedded:", "open", replace(NOTES, channel="x"))),
    ],
)
def test_the_demo_brings_what_is_not_given(
    toml: str, environ: dict[str, str], options: dict[str, Any], expected: tuple[str, str, Registration]
) -> None:
    config = load_toml(toml, options, environ)
    assert config.demo
    assert (config.redis.url, config.auth.check, *config.services) == expected
    assert config.rooms == (RoomPolicy(pattern="*", history=1000, presence=True),)


def test_the_demo_keeps_of_other_rooms_what_the_file_says() -> None:
    config = load_toml("[rooms.quiet]\nhistory = 0", {"demo": True})
    assert [(rooms.pattern, rooms.history) for rooms in config.rooms] == [("quiet", 0), ("*", 1000)]


# Mistakes.


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("listen = 1", "listen: expected a list of one or more Twisted endpoints, found 1"),
        ('listen = "tcp:1"', "listen: expected a list of one or more Twisted endpoints, found 'tcp:1'"),
        ("listen = []", "listen: expected a list of one or more Twisted endpoints, found a list"),
        ('listen = ["tcp:1", 2]', "listen[1]: expected a string, found 2"),
        ('sessions = "singel"', 'sessions: expected "single" or "many", found \'singel\''),
        ("sessions = 1979-05-27", 'sessions: expected "single" or "many", found a date'),
        ("demo = 1", "demo: expected true or false, found 1"),
        ('demo = "yes"', "demo: expected true or false, found 'yes'"),
        ("forwarded_for = -1", "forwarded_for: expected a whole number from 0 to 2147483647, found -1"),
        ("forwarded_for = true", "forwarded_for: expected a whole number from 0 to 2147483647, found true"),
        (
            f"limits.rooms = 0x{'f' * 5000}",
            "limits.rooms: expected a whole number from 1 to 2147483647, found a huge number",
        ),
        ("limits.rooms = 1.5", "limits.rooms: expected a whole number from 1 to 2147483647, found 1.5"),
        ("limits.ping_timeout = inf", "ping_timeout: expected seconds, more than 0 and at most a year, found inf"),
        ("limits.ping_timeout = 25", "limits.ping_timeout: expected less than limits.ping_interval, 25 s, found 25.0"),
        ("limits.ping_interval = 15", "limits.ping_interval: expected more than limits.ping_timeout, 20 s, found 15.0"),
        (
            "limits = {ping_interval = 0.5, ping_timeout = 1}",
            "limits.ping_timeout: expected less than limits.ping_interval, 0.5 s, found 1.0",
        ),
        ("auth.timeout = nan", "auth.timeout: expected seconds, more than 0 and at most a year, found nan"),
        ('auth.timeout = "3"', "auth.timeout: expected seconds, more than 0 and at most a year, found '3'"),
        ("auth.cache_ttl = -0.5", "auth.cache_ttl: expected seconds, from 0 to a year, found -0.5"),
        ("auth.cache_ttl = {}", "auth.cache_ttl: expected seconds, from 0 to a year, found a table"),
        ('redis.broadcast = ""', "redis.broadcast: expected a Redis channel, without white space, found ''"),
        ('redis.broadcast = "a b"', "redis.broadcast: expected a Redis channel, without white space, found 'a b'"),
        ('redis.broadcast = "a\\n"', "redis.broadcast: expected a Redis channel, without white space, found 'a\\n'"),
        ('redis.prefix = "a "', "redis.prefix: expected a prefix without white space, or nothing, found 'a '"),
        ('redis.ca = "no"', "redis.ca: expected a readable file (No such file or directory), found 'no'"),
        ('auth.ca = "gateway.toml"', "auth.ca: expected a file of certificates in PEM, found 'gateway.toml'"),
        (f'redis.ca = "{"x" * 200}"', "found '" + "x" * 100 + "…'"),
        ("redis = 1", "redis: expected a table, found something else"),
        ('redis = "redis://:hunter2@h"', "redis: expected a table, found something else"),
        ("[[services]]", "services: expected a table, found something else"),
        ("services.a = 1", "services.a.channel: expected a Redis channel, without white space, found 1"),
        ('services.a = ""', "services.a.channel: expected a Redis channel, without white space, found ''"),
        ("[services.a]", "services.a.channel: expected a Redis channel, found nothing"),
        ("services.a.reply = true", "services.a.channel: expected a Redis channel, found nothing"),
        ('services.a = {channel = "b", reply = 1}', "services.a.reply: expected true or false, found 1"),
        ('services."a:b" = "c"', "services: expected a name of 1 to 128 letters, digits, and _ . -, found 'a:b'"),
        ('services."" = "c"', "services: expected a name of 1 to 128 letters, digits, and _ . -, found ''"),
        (
            'services."a.b" = "events:broadcast"',
            "services.'a.b'.channel: expected another channel than that of redis.broadcast, found 'events:broadcast'",
        ),
        (
            'services.gateway = "g"',
            "services: expected another name: such events are the gateway's own, found 'gateway'",
        ),
        (
            'services.a = "events:gateway"',
            "services.a.channel: expected a channel that is none of the gateway's own, found 'events:gateway'",
        ),
        (
            'services.a = {channel = "b", partitions = 4}',
            'services.a.partitions: expected nothing unless the transport is "stream", found 4',
        ),
        (
            'services.a = "x"\nservices.b = {channel = "x", transport = "stream"}',
            "services.b.channel: expected the transport and partitions of services.a, or another, found 'x'",
        ),
        (
            (
                'services.a = {channel = "x", transport = "stream", partitions = 2}\n'
                'services.b = {channel = "x", transport = "stream"}'
            ),
            "services.b.channel: expected the transport and partitions of services.a, or another, found 'x'",
        ),
        (
            'redis.broadcast = "x"\nservices.a = "x"',
            "services.a.channel: expected another channel than that of redis.broadcast, found 'x'",
        ),
        # Keys that do not exist.
        ('listn = ["tcp:1"]', "listn: unknown key; did you mean listen?"),
        ("xyzzy = 1", "xyzzy: unknown key"),
        ("[rediss]\nx = 1", "rediss: unknown key; did you mean redis?"),
        ("redis.ulr = 1", "redis.ulr: unknown key; did you mean redis.url?"),
        ('url = "redis://:hunter2@h"', "url: unknown key; did you mean redis.url?"),
        ("[redis]\nlisten = []", "redis.listen: unknown key; did you mean listen or operator.listen?"),
        ("timeout = 1", "timeout: unknown key; did you mean auth.timeout or services.NAME.timeout?"),
        ("ca = 1", "ca: unknown key; did you mean redis.ca or auth.ca?"),
        ("limits.pingTimeout = 1", "limits.pingTimeout: unknown key; did you mean limits.ping_timeout?"),
        ('services.a = {channel = "b", repyl = true}', "services.a.repyl: unknown key; did you mean services.a.reply?"),
        ('services.a = {channel = "b", name = "c"}', "services.a.name: unknown key"),
        ('"a\\nb".c = 1', "'a\\nb': unknown key"),
        # No TOML at all.
        ("a = [1,", "expected TOML, found a mistake: "),
        ("demo = true\ndemo = \n", "(at line 2, column 8)"),
        ("demo = true\ndemo = true\n", "expected TOML, found a mistake: Cannot overwrite a value (at line 2"),
        (b"a = \xff", "expected TOML, found a mistake: 'utf-8' codec can't decode byte 0xff in position 4"),
        ("a = " + "[" * 100_000, "expected TOML, found "),
        ("a = " + "9" * 5000, "expected TOML, found a mistake: "),
    ],
)
def test_a_mistake_in_the_file_names_key_expectation_and_finding(toml: str | bytes, expected: str) -> None:
    (mistake,) = mistakes(toml)
    assert mistake.startswith("gateway.toml: ")
    assert expected in mistake
    assert "hunter2" not in mistake


@pytest.mark.parametrize(
    ("environ", "options", "expected"),
    [
        ({"PORT": "http"}, {}, "PORT: listen: expected a port from 0 to 65535, found 'http'"),
        ({"PORT": "70000"}, {}, "PORT: listen: expected a port from 0 to 65535, found '70000'"),
        ({"REDIS_PORT": "tcp://h:1"}, {}, "REDIS_PORT: redis.url: expected a port from 1 to 65535, found 'tcp://h:1'"),
        ({"REDIS_PORT": "0"}, {}, "REDIS_PORT: redis.url: expected a port from 1 to 65535, found '0'"),
        ({"REDIS_HOST": "redis://h"}, {}, "REDIS_HOST: redis.url: expected "),
        ({"REDIS_HOST": "h:7000"}, {}, "REDIS_HOST: redis.url: expected HOST or HOST:PORT"),
        ({"REDIS_OUTGOING_CHANNEL": "a b"}, {}, "REDIS_OUTGOING_CHANNEL: redis.broadcast: expected a Redis channel"),
        ({"REDIS_OUTGOING_CHANNEL": "\udcff"}, {}, "found '\\udcff'"),
        ({"AUTH_SERVICE_URL": "auth:3002"}, {}, 'AUTH_SERVICE_URL: auth.check: expected "open", or http://'),
        ({"KRAFTEK_REDIS": "cache:6379"}, {}, "KRAFTEK_REDIS: redis.url: expected a URL that begins with redis://"),
        ({"KRAFTEK_AUTH": "opne"}, {}, 'KRAFTEK_AUTH: auth.check: expected "open"'),
        ({"KRAFTEK_LISTEN": "tcp:1 tcp:x"}, {}, "KRAFTEK_LISTEN: listen[1]: expected tcp:PORT"),
        ({}, {"listen": ["tcp:1", "3001"]}, "--listen: listen[1]: expected an endpoint that begins with tcp:,"),
        ({}, {"redis": ""}, "--redis: redis.url: expected a URL that begins with redis://"),
        ({}, {"auth": ""}, "--auth: auth.check: expected"),
        ({}, {"origin": ["https://a.org/"]}, "--origin: origins[0]: expected same-host, SCHEME://HOST[:PORT]"),
        ({}, {"service": ["notes"]}, "--service: services: expected NAME=CHANNEL, found 'notes'"),
        ({}, {"service": ["a=b", "a=c"]}, "--service: services: expected each name once, found 'a=c'"),
        ({}, {"service": ["=b"]}, "--service: services: expected a name of 1 to 128 letters, digits, and _ . -, found"),
        ({}, {"service": ["a="]}, "--service: services.a.channel: expected a Redis channel"),
        ({}, {"config": "no"}, "--config: expected a readable file, found no: No such file or directory"),
        ({}, {"config": "n\to"}, "--config: expected a readable file, found 'n\\to': No such file or directory"),
    ],
)
def test_a_mistake_elsewhere_names_the_option_or_variable(
    environ: dict[str, str], options: dict[str, Any], expected: str
) -> None:
    (mistake,) = mistakes("", options, environ)
    assert expected in mistake


def test_policies_of_events_are_read_in_order() -> None:
    toml = """
        [events."cursors:*:moved"]
        policy = "latest"
        key = "userId"
        [events."*:*:shown"]
        ttl = 10
        [events.typing]
        policy = "drop"
    """
    assert load_toml(toml).events == (
        EventPolicy(pattern="cursors:*:moved", policy="latest", key="userId"),
        EventPolicy(pattern="*:*:shown", ttl=10.0),
        EventPolicy(pattern="typing", policy="drop"),
    )


def test_only_rooms_with_history_are_recovered() -> None:
    toml = "[socketio]\nrecovery = true\nmax_disconnection = 60\n"
    (mistake,) = mistakes(toml + "[rooms.lobby]")
    assert "socketio.recovery: expected false as long as no room has a history ([rooms]), found true" in mistake
    config = load_toml(toml + "[rooms.lobby]\nhistory = 1")
    assert config.socketio == SocketIO(recovery=True, max_disconnection=60.0)


def test_policies_of_rooms_are_read_in_order() -> None:
    toml = """
        [rooms.lobby]
        [rooms."board-*"]
        history = 200
        history_ttl = 60
        history_bytes = 1000
        events = ["board:*:*", "news"]
        [rooms."*"]
    """
    assert load_toml(toml).rooms == (
        RoomPolicy(pattern="lobby"),
        RoomPolicy(pattern="board-*", history=200, history_ttl=60.0, history_bytes=1000, events=("board:*:*", "news")),
        RoomPolicy(pattern="*"),
    )


@pytest.mark.parametrize(
    ("toml", "mistake"),
    [
        ('"a*b*" = {}', "rooms: expected a room's name, with at most one * for any text, found 'a*b*'"),
        ('"" = {}', "rooms: expected a room's name, with at most one * for any text, found ''"),
        ('"a\\n" = {}', "rooms: expected a room's name, with at most one * for any text, found 'a\\n'"),
        ('"a" = 200', "rooms.a: expected a table, found 200"),
        ('"a".history = -1', "rooms.a.history: expected a whole number from 0 to 100000, found -1"),
        ('"a".history_ttl = 0', "rooms.a.history_ttl: expected seconds, more than 0 and at most a year, found 0"),
        ('"a".events = ["a:b*"]', "rooms.a.events[0]: expected patterns like \"board:*:*\", found 'a:b*'"),
        ('"a".events = "a:b"', "rooms.a.events: expected a list of up to 64 patterns of messages, found 'a:b'"),
        ('"a".histroy = 1', "rooms.a.histroy: unknown key; did you mean rooms.a.history?"),
    ],
)
def test_a_mistake_about_rooms_is_named(toml: str, mistake: str) -> None:
    assert mistakes(f"[rooms]\n{toml}") == [f"gateway.toml: {mistake}"]


@pytest.mark.parametrize(
    ("toml", "mistake"),
    [
        ('"a b" = {}', "events: expected a pattern like cursors:*:moved, with * for a whole part, found 'a b'"),
        ('"a:b*:c" = {}', "events: expected a pattern like cursors:*:moved, with * for a whole part, found 'a:b*:c'"),
        ('"a::c" = {}', "events: expected a pattern like cursors:*:moved, with * for a whole part, found 'a::c'"),
        ('"a:b:c" = "drop"', "events.'a:b:c': expected a table, found 'drop'"),
        ('"a:b:c".policy = "dorp"', 'events.\'a:b:c\'.policy: expected "queue", "latest" or "drop", found \'dorp\''),
        ('"a:b:c".key = "id"', "events.'a:b:c'.key: expected nothing unless the policy is \"latest\", found 'id'"),
        ('"a:b:c".keys = "id"', "events.'a:b:c'.keys: unknown key; did you mean events.'a:b:c'.key?"),
        ('"a:b:c".ttl = -1', "events.'a:b:c'.ttl: expected seconds, from 0 to a year, found -1"),
    ],
)
def test_a_mistake_in_a_policy_is_named(toml: str, mistake: str) -> None:
    assert mistakes(f"[events]\n{toml}") == [f"gateway.toml: {mistake}"]


def test_all_mistakes_are_named_at_once_also_where_something_else_wins() -> None:
    toml = 'redis.url = "http://x"\nlimits = {rooms = 0, roms = 1}\nservices.a = 1'
    found = mistakes(toml, {"redis": "redis://h", "listen": ["x"]}, {"KRAFTEK_AUTH": "y", "PORT": "z"})
    assert [mistake.split(": ")[:2] for mistake in found] == [
        ["--listen", "listen[0]"],
        ["KRAFTEK_AUTH", "auth.check"],
        ["gateway.toml", "redis.url"],
        ["gateway.toml", "limits.rooms"],
        ["gateway.toml", "limits.roms"],
        ["gateway.toml", "services.a.channel"],
    ]


@pytest.mark.parametrize(("key", "kind"), [*leaves()])
def test_every_value_says_what_it_expected_when_its_type_is_wrong(key: str, kind: Any) -> None:
    _, meta = get_args(kind)
    assert mistakes(f"{key} = 00:00:00") == [f"gateway.toml: {key}: expected {meta.description}, found a time"]


@pytest.mark.parametrize("key", [key for key, kind in leaves() if get_args(kind)[0] in {int, float}])
def test_nothing_is_negative_and_zero_only_where_that_has_a_meaning(key: str) -> None:
    assert len(mistakes(f"{key} = -1")) == 1
    if key in {
        "forwarded_for",
        "auth.waiting",
        "auth.cache_ttl",
        "auth.denied_ttl",
        "limits.request_window",
        "limits.connections",
        "limits.connections_per_address",
        "limits.events_per_socket",
        "limits.events_per_user",
        "limits.events_per_address",
        "limits.bytes_per_socket",
        "limits.bytes_per_user",
        "limits.bytes_per_address",
        "limits.joins_per_user",
        "limits.rooms_per_user",
        "limits.questions_per_user",
        "limits.questions_per_address",
        "limits.connects_per_address",
        "drain.lead",
        "drain.seconds",
        "limits.memory",
        "jwt.leeway",
        "users.history",
    }:
        assert at(load_toml(f"{key} = 0"), key) == 0
    else:
        assert len(mistakes(f"{key} = 0")) == 1


def test_rates_of_a_services_events() -> None:
    toml = '[services.chat]\nchannel = "c"\n[services.chat.rate]\n"chat:message:*" = 5\n"chat:*:typing" = 0.5'
    (chat,) = load_toml(toml).services
    assert chat.rate == {"chat:message:*": 5.0, "chat:*:typing": 0.5}
    assert [*chat.rate] == ["chat:message:*", "chat:*:typing"]
    (quiet,) = load_toml('services.quiet = "c"').services
    assert quiet.rate == {}


@pytest.mark.parametrize(
    ("rate", "mistake"),
    [
        ("3", "expected a table of event patterns with their rates, found 3"),
        ("[1]", "expected a table of event patterns with their rates, found a list"),
        ('{"chat:message" = 1}', "expected patterns like \"chat:message:*\", found 'chat:message'"),
        ('{"chat:a*:b" = 1}', "expected patterns like \"chat:message:*\", found 'chat:a*:b'"),
        ('{"notes:a:b" = 1}', "expected patterns of its own events, \"chat:…\", found 'notes:a:b'"),
    ],
)
def test_not_rates(rate: str, mistake: str) -> None:
    toml = f'[services.chat]\nchannel = "c"\nrate = {rate}'
    assert mistakes(toml) == [f"gateway.toml: services.chat.rate: {mistake}"]


@pytest.mark.parametrize("rate", ["0", "-1", '"1"', "true", "inf", "nan"])
def test_a_rate_is_a_number_above_0(rate: str) -> None:
    (mistake,) = mistakes(f'[services.chat]\nchannel = "c"\nrate = {{"chat:a:b" = {rate}}}')
    assert mistake.startswith("gateway.toml: services.chat.rate.'chat:a:b': expected events a second, more than 0")


# What values look like.


@pytest.mark.parametrize(
    "origin",
    [
        "same-host",
        "*",
        "*.example.org",
        "*.localhost",
        "https://app.example.org",
        "http://localhost:5173",
        "http://[::1]:8080",
        "https://App.Example.org",
        "capacitor://localhost",
        "chrome-extension://abcdef",
    ],
)
def test_origins(origin: str) -> None:
    assert load({"origin": [origin]}, {}).origins == (origin,)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "example.org",
        "https://",
        "https://a.org/",
        "https://a.org/x",
        "https://a.org:0",
        "https://a.org:65536",
        "https://*.example.org",
        "https://bücher.example",
        "*.bücher.example",
        "*.*.org",
        "*.",
        "*example.org",
        "*.example.org:443",
        "*.[::1]",
        "https://[::g]",
        "https://u:hunter2@a.org",
        "https://a.org?x",
        "https://a b",
        "https://a.org\n",
        "samehost",
        "**",
    ],
)
def test_not_origins(origin: str) -> None:
    (mistake,) = mistakes("", {"origin": [origin]})
    assert mistake.startswith("--origin: origins[0]: expected ")
    assert "hunter2" not in mistake


@pytest.mark.parametrize(
    "url",
    [
        "open",
        "http://127.0.0.1:3002",
        "https://auth.example.org",
        "http://[::1]:3002/",
        "http://a/b/c%20d",
        "https://a/jwt",
        "python:access:make",
        "python:our.own_access:Checker.make",
        "python:access:make+http://a/b+c",
        "python:a:b+python:c:d",
    ],
)
def test_auth_urls(url: str) -> None:
    assert load({"auth": url}, {}).auth.check == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "Open",
        "auth",
        "ftp://a",
        "http:/a",
        "http://",
        "http://:3002",
        "http://a:0",
        "http://a:99999",
        "http://a:b",
        "http://a?x=hunter2",
        "http://a/#hunter2",
        "http://u:hunter2@a",
        "http://hunter2@a",
        "http://a/b c",
        "http://ä",
        "http://a/b\n",
        "http://[::1",
        "http://[1.2.3.4]",
        "python:",
        "python:access",
        "python:access:",
        "python:a-b:c",
        "python:a:b:c",
        "python:a:b+",
        "python:a:b+jwt",
        "python:a:b+open",
        "http://a+python:a:b",
    ],
)
def test_not_auth_urls(url: str) -> None:
    (mistake,) = mistakes("", {"auth": url})
    assert mistake.startswith("--auth: auth.check: expected ")
    assert "hunter2" not in mistake


GOOD_JWT = {"issuer": "https://id", "audience": "gateway", "key_files": ["ca.pem"]}


def jwt_toml(**settings: Any) -> str:
    lines = [f"{name} = {json.dumps(value)}" for name, value in {**GOOD_JWT, **settings}.items() if value is not None]
    return "\n".join(["[jwt]", *lines])


@pytest.mark.parametrize("check", ["jwt", "jwt+http://auth", "jwt+python:our.access:make"])
@pytest.mark.parametrize(
    "settings", [{}, {"algorithm": "HS256"}, {"key_files": None, "key_set": "https://id/keys?a=b"}]
)
def test_tokens_that_are_checked_here(check: str, settings: dict[str, Any]) -> None:
    config = load_toml(jwt_toml(**settings), {"auth": check})
    assert (config.auth.check, config.jwt.issuer) == (check, "https://id")


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"issuer": None}, "--auth: jwt.issuer: expected the iss of tokens, found nothing"),
        ({"audience": ""}, "--auth: jwt.audience: expected an aud of tokens, found nothing"),
        ({"key_files": None}, "--auth: jwt: expected either key_files or key_set"),
        ({"key_set": "https://id/"}, "--auth: jwt: expected either key_files or key_set"),
        (
            {"key_files": None, "key_set": "https://id/", "algorithm": "HS256"},
            'gateway.toml: jwt.algorithm: expected "RS256" or "ES256" with a key_set, found \'HS256\'',
        ),
        (
            {"key_files": ["missing"]},
            "gateway.toml: jwt.key_files[0]: expected a readable file (No such file or directory), found 'missing'",
        ),
        ({"algorithm": "none"}, 'gateway.toml: jwt.algorithm: expected "HS256", "RS256" or "ES256", found \'none\''),
    ],
)
def test_not_tokens_that_are_checked_here(settings: dict[str, Any], mistake: str) -> None:
    assert mistake in mistakes(jwt_toml(**settings), {"auth": "jwt"})


@pytest.mark.parametrize(
    "url", ["http://id/", "https://", "https://u:hunter2@id/", "https://id/#x", "https://id:0/", "id"]
)
def test_not_key_sets(url: str) -> None:
    (mistake,) = mistakes(f'jwt.key_set = "{url}"')
    assert mistake.startswith("gateway.toml: jwt.key_set: expected ")
    assert "hunter2" not in mistake


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp:3001",
        "tcp:0",
        "tcp:port=3001",
        "tcp:3001:127.0.0.1:10",
        "tcp:3001:interface=\\:\\:1",
        "tcp6:3001:backlog=5",
        "ssl:443:privateKey=a.pem:certKey=b.pem:dhParameters=c:extraCertChain=d",
        "ssl:port=443",
        "unix:/run/a,b.sock",
        "unix:/a:mode=660:lockfile=0",
        "unix:a\\=b",
        "systemd:domain=INET:index=0",
        "systemd:INET6:name=web",
        "reuseport:3001",
        "reuseport:3001:interface=127.0.0.1",
        "haproxy:tcp:3001",
        "tls:/etc/certificates:443",
    ],
)
def test_endpoints(endpoint: str) -> None:
    assert load({"listen": [endpoint]}, {}).listen == (endpoint,)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        ":",
        "3001",
        "tcp",
        "tcp:",
        "tcp:x",
        "tcp:-1",
        "tcp:65536",
        "tcp:１",
        "tcp:1:port=2",
        "tcp:1:interfac=a",
        "TCP:1",
        "tcp:1:interface=",
        "tcp:1:interface=::1",
        "tcp:1:::1",
        "tcp:1:a:5:6",
        "tcp:1:backlog=many",
        "tcp:1\\",
        "htp:1",
        "unix",
        "unix:",
        "unix:/a:mode=999",
        "unix:/a:lockfile=yes",
        "ssl",
        "ssl:x",
        "ssl:1:privatekey=a",
        "systemd",
        "systemd:domain=INET",
        "systemd:domain=INET:index=0:name=a",
        "systemd:domain=IPX:index=0",
        "systemd:index=0",
        "reuseport",
        "reuseport:x",
        "reuseport:1:backlog=5",
        "http://localhost:3001",
    ],
)
def test_not_endpoints(endpoint: str) -> None:
    (mistake,) = mistakes("", {"listen": [endpoint]})
    assert mistake.startswith("--listen: listen[0]: expected ")


WORDS = [
    "1",
    "70000",
    "/a",
    "\\",
    "",
    "port=1",
    "interface=127.0.0.1",
    "interface=",
    "backlog=5",
    "mode=660",
    "address=/a",
]


def test_what_is_taken_for_an_endpoint_is_one_to_twisted() -> None:
    taken, refused = set(), set()

    @given(st.sampled_from(["tcp", "tcp6", "unix"]), st.lists(st.sampled_from(WORDS), max_size=4))
    def look(kind: str, words: list[str]) -> None:
        endpoint = ":".join([kind, *words])
        try:
            load({"listen": [endpoint]}, {})
        except ConfigError:
            refused.add(endpoint)
            return
        taken.add(endpoint)
        serverFromString(MemoryReactor(), endpoint)

    look()
    assert len(taken) >= 3
    assert len(refused) >= 3


# Redis URLs.


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("embedded:", RedisAddress(kind="embedded")),
        ("redis://h", RedisAddress(kind="tcp", host="h", port=6379)),
        ("redis://h/", RedisAddress(kind="tcp", host="h", port=6379)),
        ("redis://h:/1", RedisAddress(kind="tcp", host="h", port=6379, database=1)),
        ("redis://h_1.example.org:7000/2", RedisAddress(kind="tcp", host="h_1.example.org", port=7000, database=2)),
        ("rediss://[::1]:7000/15", RedisAddress(kind="tls", host="::1", port=7000, database=15)),
        ("redis://:p%40%2F%3a@h", RedisAddress(kind="tcp", host="h", port=6379, password="p@/:")),
        ("redis://u%20:p@h", RedisAddress(kind="tcp", host="h", port=6379, username="u ", password="p")),
        ("redis://u:a:@[b@h", RedisAddress(kind="tcp", host="h", port=6379, username="u", password="a:@[b")),
        ("redis://u:@h", RedisAddress(kind="tcp", host="h", port=6379, username="u", password="")),
        ("redis://:@h", RedisAddress(kind="tcp", host="h", port=6379)),
        ("redis://@h", RedisAddress(kind="tcp", host="h", port=6379)),
        ("unix:///run/redis.sock", RedisAddress(kind="unix", path="/run/redis.sock")),
        ("unix:/run/redis.sock", RedisAddress(kind="unix", path="/run/redis.sock")),
        ("unix:///a%20b%ff?db=3", RedisAddress(kind="unix", path="/a b\udcff", database=3)),
        ("unix://u:p%25@/a", RedisAddress(kind="unix", path="/a", username="u", password="p%")),
        ("redis+sentinel://h/m", RedisAddress(kind="tcp", sentinels=(("h", 26379),), master="m")),
        ("redis+sentinel://h/m/", RedisAddress(kind="tcp", sentinels=(("h", 26379),), master="m")),
        (
            "redis+sentinel://u:p%2C%40@h1:26380,h2,[::1],[2001:db8::1]:7/my-master.0_a/3",
            RedisAddress(
                kind="tcp",
                username="u",
                password="p,@",
                sentinels=(("h1", 26380), ("h2", 26379), ("::1", 26379), ("2001:db8::1", 7)),
                master="my-master.0_a",
                database=3,
            ),
        ),
        (
            "rediss+sentinel://:p@h/m/1?sentinel_username=s%26&sentinel_password=a%3Db@/?",
            RedisAddress(
                kind="tls",
                password="p",
                sentinels=(("h", 26379),),
                master="m",
                database=1,
                sentinel_username="s&",
                sentinel_password="a=b@/?",
            ),
        ),
    ],
)
def test_redis_urls(url: str, expected: RedisAddress) -> None:
    assert redis_address(url) == expected
    assert load({"redis": url}, {}).redis.url == url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("", "a URL that begins with redis://"),
        ("h:6379", "a URL that begins with redis://"),
        ("http://h", "a URL that begins with redis://"),
        ("embedded:x", "a URL that begins with redis://"),
        ("sentinel://:hunter2@a:1,b:2/name/0", "rediss://, redis+sentinel:// or unix://"),
        ("redis+sentinel:a/m", "HOST or HOST:PORT"),
        ("redis+sentinel://:hunter2@/m", "HOST or HOST:PORT"),
        ("redis+sentinel://a,/m", "HOST or HOST:PORT"),
        ("redis+sentinel://a:1;b:2/m", "HOST or HOST:PORT"),
        ("redis+sentinel://a,::1/m", "HOST or HOST:PORT"),
        ("redis+sentinel://a,b:0/m", "a port from 1 to 65535"),
        ("redis+sentinel://a,b", "as in /mymaster/0"),
        ("redis+sentinel://a/", "as in /mymaster/0"),
        ("redis+sentinel://a/0", "as in /mymaster/0"),
        ("redis+sentinel://a/0/m", "as in /mymaster/0"),
        ("redis+sentinel://a/m/x", "as in /mymaster/0"),
        ("redis+sentinel://a/m/0/1", "as in /mymaster/0"),
        ("redis+sentinel://a/m%20/0", "as in /mymaster/0"),
        ("redis+sentinel://a/m?db=1", "after the ? only sentinel_username and sentinel_password, each once"),
        ("redis+sentinel://a/m?sentinel_password=hunter2&sentinel_password=x", "each once"),
        ("redis+sentinel://a/m?sentinel_username=u", "sentinel_password with sentinel_username"),
        ("redis+sentinel://a/m?sentinel_password=hunter2%ff", "UTF-8"),
        ("redis://a/1?sentinel_password=hunter2", "a database's number at the end"),
        ("redis:h", "HOST or HOST:PORT"),
        ("redis://", "HOST or HOST:PORT"),
        ("redis://:6379", "HOST or HOST:PORT"),
        ("redis://a,b", "HOST or HOST:PORT"),
        ("redis://ä", "HOST or HOST:PORT"),
        ("redis://h:port", "HOST or HOST:PORT"),
        ("redis://h:0", "a port from 1 to 65535"),
        ("redis://h:65536", "a port from 1 to 65535"),
        ("redis://[::1", "HOST or HOST:PORT"),
        ("redis://[1.2.3]", "IPv6"),
        ("redis://h/x", "a database's number at the end"),
        ("redis://h/1/2", "a database's number at the end"),
        ("redis://h/-1", "a database's number at the end"),
        ("redis://h?db=1", "a database's number at the end"),
        ("redis://h/1?", "a database's number at the end"),
        ("unix:///a?db=x", "a database's number at the end"),
        ("unix:///a?password=hunter2", "a database's number at the end"),
        ("redis://hunter2@h", "USER:PASSWORD@ or :PASSWORD@"),
        ("redis://:hunter2%ff@h", "UTF-8"),
        ("redis://:hunter2 @h", "percent-encoded"),
        ("redis://:hunter2\n@h", "percent-encoded"),
        ("redis://:#hunter2@h", "percent-encoded"),
        ("redis://:hunter2/@h", "HOST or HOST:PORT"),
        ("unix://a/b", "an absolute path after unix://"),
        ("unix:a", "an absolute path after unix://"),
        ("unix://", "an absolute path after unix://"),
        ("unix:///a%00", "an absolute path after unix://"),
        ("unix://:hunter2@h/a", "an absolute path after unix://"),
    ],
)
def test_not_redis_urls(url: str, expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        redis_address(url)
    (mistake,) = mistakes("", {"redis": url})
    assert mistake.startswith("--redis: redis.url: expected ")
    assert expected in mistake
    assert "hunter2" not in mistake


@given(
    st.sampled_from(["redis", "rediss"]),
    st.text(min_size=1),
    st.text(),
    st.sampled_from(["h", "127.0.0.1", "::1", "a-b.example.org"]),
    st.integers(1, 65535),
    st.integers(0, 10**9 - 1),
)
def test_any_user_and_password_fit_into_a_redis_url(
    scheme: str, username: str, password: str, host: str, port: int, database: int
) -> None:
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    url = f"{scheme}://{quote(username, safe='')}:{quote(password, safe='')}@{authority}/{database}"
    assert redis_address(url) == RedisAddress(
        kind="tls" if scheme == "rediss" else "tcp",
        host=host,
        port=port,
        username=username,
        password=password,
        database=database,
    )


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h:1/2", "redis://h:1/2"),
        ("redis://u:hunter2@h:1/2", "redis://u:***@h:1/2"),
        ("rediss://:hunter2@[::1]:1", "rediss://:***@[::1]:1"),
        ("redis://hunter2@h", "redis://***@h"),
        ("redis://h:hunter2", "redis://h:***"),
        ("redis://:12345", "redis://:***"),
        ("redis://h/hunter2", "redis://h/***"),
        ("unix://u:hunter2@/a/b?db=1", "unix://u:***@/a/b?db=1"),
        ("unix:/a/b?db=1", "unix:/a/b?db=1"),
        ("unix:///a?db=1&password=hunter2", "unix:///a?***"),
        ("http://h/a/b?token=hunter2", "http://h/a/b?***"),
        ("http://h/a#hunter2", "http://h/a#***"),
        ("redis://:hunter/2@h", "redis://***"),
        ("redis://h,hunter2:1", "redis://h,hunter2:1"),
        ("redis+sentinel://a:1,[::1]:2,c/m/0", "redis+sentinel://a:1,[::1]:2,c/m/0"),
        ("rediss+sentinel://u:hunter2@a,b/m", "rediss+sentinel://u:***@a,b/m"),
        ("redis+sentinel://a/m/0?sentinel_password=hunter2", "redis+sentinel://a/m/0?***"),
        ("redis+sentinel://a/m?sentinel_password=@hunter2", "redis+sentinel://***"),
        ("redis+sentinel://u:hunter2,b/m", "redis+sentinel://u:***"),
        ("redis://h/?password=@hunter2", "redis://***"),
        ("h:hunter2", "h:***"),
        ("hunter2@h", "***@h"),
        ("embedded:", "embedded:"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, expected: str) -> None:
    assert masked(url) == expected


@given(
    st.sampled_from(
        [
            "redis://:{}@h:1/2",
            "rediss://u:{}@h",
            "unix://u:{}@/p",
            "unix://:{}@",
            "redis+sentinel://:{}@a:1,b:2/x/0",
            "redis+sentinel://a:1,b:2/x/0?sentinel_password={}",
            "rediss+sentinel://u:p@a/x?sentinel_password={}&sentinel_username=u",
            "redis://u:{}@h:port",
            "redis://u:{}@h/x",
            "redis://u:{}@[::1",
            "redis://h/?password={}",
            ":{}@h",
            "h:{}@",
            "http://u:{}@h",
            "redis:/u:{}@h",
        ]
    ),
    st.text(st.characters(codec="utf-8"), max_size=5),
    st.text(st.characters(codec="utf-8"), max_size=5),
    st.booleans(),
)
@example("redis://:{}@h:1/2", "1/", "", False)
@example("redis://:{}@h:1/2", "1?", "@", False)
@example("redis://u:{}@h/x", "℀", "", False)
@example("redis://h/?password={}", "@", "", False)
@example("redis://:{}@h:1/2", "@", "=", False)
@example("redis:/u:{}@h", "", "://", False)
@example("http://u:{}@h", "/", "", False)
def test_no_password_comes_out_again(url: str, before: str, after: str, encoded: bool) -> None:
    password = f"{before}hunter2{after}"
    url = url.format(quote(password, safe="") if encoded else password)
    assert "hunter2" not in masked(url)
    taken = loaded(b"", {"redis": url}, {})
    found = [taken, loaded(b"", {"auth": url}, {}), loaded(b"", {}, {"KRAFTEK_REDIS": url})]
    if "://" in url:  # it is a URL wherever it stands
        found.append(loaded(b"", {"listen": [url], "origin": [url], "service": [url]}, {}))
    assert "hunter2" not in repr(found)
    if isinstance(taken, Config):
        assert "hunter2" not in repr(redis_address(taken.redis.url))


# The shipped file.


def test_the_shipped_file_is_the_defaults() -> None:
    assert load({"config": str(SHIPPED)}, {}) == Config()


def test_the_shipped_file_has_every_key() -> None:
    document = tomllib.loads(SHIPPED.read_text("utf-8"))
    assert set(document) == {field.name for field in fields(Config)}
    for name, struct in TABLES.items():
        assert set(document[name]) == {field.name for field in fields(struct)}


def test_the_shipped_file_explains_every_key() -> None:
    """A comment stands above it, or above the run of keys that it belongs to."""
    blocks = re.split(r"\n{2,}", SHIPPED.read_text("utf-8"))
    for block in blocks:
        assert block.startswith(("#", "[")), block
        if block.startswith("["):
            assert "\n" not in block, block


def test_the_examples_in_the_shipped_file_are_right() -> None:
    examples = re.findall(r'^#     (?:(".*?")|(.*))', SHIPPED.read_text("utf-8"), re.MULTILINE)
    strings = [json.loads(string) for string, _ in examples if string]
    urls = [string for string in strings if "://" in string]
    assert load({"listen": [string for string in strings if string not in urls]}, {}).listen
    assert [redis_address(url).database for url in urls] == [1, 1, 0]
    services = [line for _, line in examples if line and "twistd" not in line]
    config = load_toml("\n".join(["[services]", *services]))
    assert [service.name for service in config.services] == ["stickyNotes", "chat"]
    text = "\n".join(services)
    assert all(f"{field.name} = " in text for field in fields(Registration) if field.name != "name")
    assert config.events == (EventPolicy(pattern="cursors:user:moved", policy="latest", key="userId"),)
    assert config.rooms == (RoomPolicy(pattern="board-*", history=200, events=("board:*:*",)),)
    for policy in (EventPolicy, RoomPolicy):
        assert all(f"{field.name} = " in text for field in fields(policy) if field.name != "pattern")


def test_every_field_is_read() -> None:
    """What is not annotated is passed over when the file is read."""
    structs: list[type[Struct]] = [Config, Registration, EventPolicy, RoomPolicy, *TABLES.values()]
    for struct in structs:
        for field in fields(struct):
            named = field.name in {*TABLES, "services", "name", "pattern"}
            if not named and (struct, field.name) not in {(Config, "events"), (Config, "rooms")}:
                assert get_origin(field.type) is Annotated, field.name
    for name, struct in TABLES.items():
        assert type(getattr(Config(), name)) is struct
    assert {field.name for field in fields(Config) if isinstance(getattr(Config(), field.name), Struct)} == set(TABLES)


# Anything at all.


def outcome(content: bytes, options: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """A configuration, or mistakes of one line each that any terminal can show."""
    found = loaded(content, options, environ)
    if isinstance(found, Config):
        assert all(service.channel != found.redis.broadcast for service in found.services)
        found.redis.broadcast.encode()
        redis_address(found.redis.url)
    else:
        assert found
        for mistake in found:
            assert mistake.isprintable()
            mistake.encode()


@given(st.binary() | st.text(st.sampled_from("[]{}=.,#\"'\\\n 0179eT:-_abxlisten")).map(str.encode))
def test_any_bytes_are_a_configuration_or_mistakes(content: bytes) -> None:
    outcome(content, {}, {})


def written(value: object) -> str:
    """The value in TOML, as far as inline tables go."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list():
            return f"[{', '.join(map(written, value))}]"
        case dict():
            return f"{{{', '.join(f'{written(key)} = {written(one)}' for key, one in value.items())}}}"
        case date() | datetime() | time():
            return value.isoformat()
    return repr(value)


SERVICE_KEYS = ["channel", "reply", "name"]
KEYS = st.sampled_from([*{part for key, _ in leaves() for part in key.split(".")}, *TABLES, "services", *SERVICE_KEYS])
SENSIBLE = st.sampled_from(
    ["tcp:1", "same-host", "*", "open", "redis://h", "http://h", "events:broadcast", "single", "ca.pem"]
)
PLAIN = SENSIBLE | st.text() | st.integers() | st.floats() | st.booleans() | st.dates() | st.times() | st.datetimes()
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(), inner, max_size=4),
    max_leaves=10,
)
DOCUMENTS = st.dictionaries(KEYS | st.text(), VALUES | st.dictionaries(KEYS, PLAIN, max_size=8), max_size=8)


@given(DOCUMENTS)
def test_any_document_is_a_configuration_or_mistakes(document: dict[str, object]) -> None:
    content = "\n".join(f"{written(key)} = {written(value)}" for key, value in document.items())
    assert tomllib.loads(content).keys() == document.keys()
    outcome(content.encode(), {}, {})


ANY = SENSIBLE | st.text(st.characters())
LISTS = st.lists(ANY | st.tuples(ANY, ANY).map("=".join), min_size=1, max_size=3)
OPTIONS = st.fixed_dictionaries(
    {}, optional={"redis": ANY, "auth": ANY, "demo": st.just(True), "listen": LISTS, "service": LISTS, "origin": LISTS}
)
VARIABLES = ["KRAFTEK_REDIS", "KRAFTEK_LISTEN", "KRAFTEK_AUTH", "PORT", "REDIS_HOST", "REDIS_PORT"]
ENVIRONMENTS = st.dictionaries(st.sampled_from([*VARIABLES, "REDIS_OUTGOING_CHANNEL", "AUTH_SERVICE_URL"]), ANY)


@given(OPTIONS, ENVIRONMENTS)
def test_any_options_and_environment_are_a_configuration_or_mistakes(
    options: dict[str, Any], environ: dict[str, str]
) -> None:
    outcome(b"", options, environ)

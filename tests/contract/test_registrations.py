"""What may be registered, and what gateways publish; what an SDK says of it is in tests/service/comparisons.json."""

from __future__ import annotations

import msgspec
import pytest

from kraftek.contract.registrations import (
    Mistake,
    PublishedService,
    mistakes_of,
    name_mistake,
    published,
    read_published,
    table_of,
)
from kraftek.contract.settings import Config, Redis, Registration

CHAT = Registration(name="chat", channel="events:chat", reply=True)
NOTES = Registration(name="notes", channel="events:notes", transport="stream", partitions=4)


@pytest.mark.parametrize("name", ["chat", "a.b-c_d", "x" * 128])
def test_names_of_services(name: str) -> None:
    assert name_mistake(name) is None


@pytest.mark.parametrize("name", ["", "a:b", "a b", "x" * 129, "gateway"])
def test_names_that_no_service_can_have(name: str) -> None:
    assert name_mistake(name) is not None


@pytest.mark.parametrize(
    ("service", "mistake"),
    [
        (Registration(name="a", channel="events:a"), None),
        (Registration(name="a", channel="events:chat"), None),
        (
            Registration(name="a", channel="events:chat", transport="stream"),
            Mistake("channel", "the transport and partitions of services.chat, or another", "events:chat"),
        ),
        (
            Registration(name="a", channel="events:notes", transport="stream", partitions=2),
            Mistake("channel", "the transport and partitions of services.notes, or another", "events:notes"),
        ),
        (
            Registration(name="a", channel="x", partitions=2),
            Mistake("partitions", 'nothing unless the transport is "stream"', 2),
        ),
        (
            Registration(name="a", channel="all"),
            Mistake("channel", "another channel than that of redis.broadcast", "all"),
        ),
        (
            Registration(name="a", channel="auth:invalidate"),
            Mistake("channel", "a channel that is none of the gateway's own", "auth:invalidate"),
        ),
    ],
)
def test_what_cannot_be_registered(service: Registration, mistake: Mistake | None) -> None:
    assert [*mistakes_of(service, "all", (CHAT, NOTES))] == ([] if mistake is None else [mistake])


def test_a_table_is_named_as_toml_has_it() -> None:
    assert (table_of("chat"), table_of("a.b")) == ("services.chat", "services.'a.b'")


def test_the_document() -> None:
    config = Config(redis=Redis(url="redis://:hunter2@x", prefix="k:", broadcast="all"), auto_register=("x-*",))
    assert msgspec.json.decode(published(config, [CHAT, NOTES], {"x-1": "why"})) == {
        "version": 1,
        "prefix": "k:",
        "broadcast": "all",
        "autoRegister": ["x-*"],
        "refused": {"x-1": "why"},
        "services": {
            "chat": {"channel": "events:chat", "transport": "pubsub", "partitions": 0, "reply": True, "timeout": 10.0},
            "notes": {
                "channel": "events:notes",
                "transport": "stream",
                "partitions": 4,
                "reply": False,
                "timeout": 10.0,
            },
        },
        "commands": ["gateway:room:put", "gateway:room:remove", "gateway:receipt"],
    }


def test_what_is_newer_or_no_document_is_left_out() -> None:
    good = published(Config(), [CHAT])
    newer = msgspec.json.encode({"version": 2, "services": ["of another shape"]})
    longer = msgspec.json.encode({**msgspec.json.decode(good), "more": 1})
    read = read_published([b"", b"{", b"\xff", b"1", b'{"version": 1}', b"[" * 5000, newer, longer, good])
    assert [each.services for each in read] == [{"chat": PublishedService(channel="events:chat", reply=True)}] * 2

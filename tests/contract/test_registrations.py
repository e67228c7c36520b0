"""What may be registered, what gateways publish, and what an SDK says about a difference."""

from __future__ import annotations

import msgspec
import pytest

from kraftek.contract.registrations import (
    Given,
    Mistake,
    Published,
    PublishedService,
    differences,
    mistakes_of,
    name_mistake,
    published,
    read_published,
    table_of,
)
from kraftek.contract.settings import Config, Redis, Registration

CHAT = Registration(name="chat", channel="events:chat", reply=True)
NOTES = Registration(name="notes", channel="events:notes", transport="stream", partitions=4)
GIVEN = Given(name="chat", channel="events:chat", transport="pubsub", partitions=0, prefix="", broadcast="all")
STREAM = Given(name="notes", channel="events:notes", transport="stream", partitions=4, prefix="", broadcast="all")


def gateway(*services: Registration) -> Published:
    return read_published([published(Config(redis=Redis(broadcast="all")), services)])[0]


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
    config = Config(redis=Redis(url="redis://:hunter2@x", prefix="k:", broadcast="all"))
    assert msgspec.json.decode(published(config, [CHAT, NOTES])) == {
        "version": 1,
        "prefix": "k:",
        "broadcast": "all",
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
    }


def test_what_is_newer_or_no_document_is_left_out() -> None:
    good = published(Config(), [CHAT])
    newer = msgspec.json.encode({"version": 2, "services": ["of another shape"]})
    longer = msgspec.json.encode({**msgspec.json.decode(good), "more": 1})
    read = read_published([b"", b"{", b"\xff", b"1", b'{"version": 1}', b"[" * 5000, newer, longer, good])
    assert [each.services for each in read] == [{"chat": PublishedService(channel="events:chat", reply=True)}] * 2


def test_what_is_the_same_is_not_mentioned() -> None:
    fleet = [gateway(CHAT, NOTES)] * 2
    for given in (GIVEN, STREAM, msgspec.structs.replace(GIVEN, reply=True, answered="chat:room:who")):
        assert differences(given, fleet) == ([], True)


@pytest.mark.parametrize(
    ("given", "changes", "line"),
    [
        (
            GIVEN,
            {"channel": "events:{}"},
            (
                'Service chat: channel is "events:{}" here, and "events:chat" at the gateways. Either give the service '
                'channel = "events:chat", or write channel = "events:{}" under [services.chat] of the gateways, and '
                "reload them"
            ),
        ),
        (
            GIVEN,
            {"transport": "stream"},
            (
                'Service chat: transport is "stream" here, and "pubsub" at the gateways. Either give the service '
                'transport = "pubsub", or write transport = "stream" under [services.chat] of the gateways, and '
                "reload them"
            ),
        ),
        (
            STREAM,
            {"partitions": 2},
            (
                "Service notes: partitions is 2 here, and 4 at the gateways. Either give the service partitions = 4, "
                "or write partitions = 2 under [services.notes] of the gateways, and reload them"
            ),
        ),
        (
            GIVEN,
            {"reply": False},
            (
                "Service chat: reply is false here, and true at the gateways. Either give the service reply = true, or "
                "write reply = false under [services.chat] of the gateways, and reload them"
            ),
        ),
        (
            STREAM,
            {"answered": "notes:note:add"},
            (
                "Service notes: it has answered notes:note:add, and clients got an ack in place of that: reply is "
                "false at the gateways. Either write reply = true under [services.notes] of the gateways, and reload "
                "them; or return nothing there"
            ),
        ),
        (
            GIVEN,
            {"broadcast": "none"},
            (
                'Service chat: broadcast is "none" here, and "all" at the gateways. Either give the service broadcast '
                '= "all", or write broadcast = "none" under [redis] of the gateways, and restart them'
            ),
        ),
        (
            GIVEN,
            {"name": "chats"},
            (
                "Service chats: it is not registered (its channel is that of chat) at the gateways. Either give the "
                'service the name chat, or write [services.chats] with channel = "events:chat" into the '
                "gateways' configuration, and reload them"
            ),
        ),
        (
            STREAM,
            {"name": "n.o", "channel": "x", "reply": True},
            (
                "Service n.o: it is not registered (those that are: chat, notes) at the gateways. Write "
                "[services.'n.o'] with "
                'channel = "x", transport = "stream", partitions = 4, reply = true into the '
                "gateways' configuration, and reload them"
            ),
        ),
    ],
)
def test_each_difference_says_how_to_mend_it_on_either_side(
    given: Given, changes: dict[str, object], line: str
) -> None:
    changed = msgspec.structs.replace(given, **changes)
    assert differences(changed, [gateway(CHAT, NOTES)]) == ([line], True)


def test_services_that_are_there_are_named_as_far_as_they_fit() -> None:
    many = (Registration(name=f"s{number:02}", channel="x") for number in range(12))
    ((line,), _) = differences(GIVEN, [gateway(*many)])
    assert "(those that are: s00, s01, s02, s03, s04, s05, s06, s07, s08, s09 and others)" in line
    assert "(nothing is)" in differences(GIVEN, [gateway()])[0][0]


def test_a_fleet_that_is_not_of_one_mind() -> None:
    other = Registration(name="chat", channel="events:chat", transport="stream", partitions=2)
    (line,), agree = differences(GIVEN, [gateway(CHAT), gateway(other), gateway(CHAT)])
    assert line.startswith('Service chat: transport is "pubsub" here, and "stream" at 1 of 3 gateways. ')
    assert not agree

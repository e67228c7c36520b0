"""From an event's name to its service."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zope.interface import Invalid
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IEventRouter
from kraftek.contract.names import NAME_LENGTH
from kraftek.contract.settings import Registration
from kraftek.core import registry as registry_module
from kraftek.core.registry import EventRouter, ServiceRegistry

NOTES = Registration(name="notes", channel="events:notes")


def test_it_is_a_router() -> None:
    assert verifyObject(IEventRouter, EventRouter(ServiceRegistry()))


def test_it_is_made_from_a_registry_alone() -> None:
    with pytest.raises(Invalid):
        EventRouter({})  # type: ignore[arg-type]


def test_the_first_part_names_the_service() -> None:
    router = EventRouter(ServiceRegistry([NOTES, Registration(name="note", channel="events:note")]))
    assert router.route("notes:note:create") is NOTES
    assert router.route("notes:note:create") is NOTES  # remembered by now
    assert router.route("note:a:b").channel == "events:note"


MALFORMED = [
    "",
    "notes",
    "notes:note",
    "notes:note:create:now",
    ":note:create",
    "notes::create",
    "notes:note:",
    "::",
    "notes:no te:create",
    "notes:note:create\n",
    "\nnotes:note:create",
    " notes:note:create",
    "notes:note:\x00",
    "notes:note:\x7f",
    "notes:note:\x9f",
    "notes:note:\u2003",
    "notes:note:" + "x" * (NAME_LENGTH - 10),
    "chat:message:send",  # well formed, and not registered
    "Notes:note:create",
]


@pytest.mark.parametrize("name", MALFORMED)
def test_any_other_name_is_an_invalid_event(name: str) -> None:
    router = EventRouter(ServiceRegistry([NOTES]))
    for _ in range(2):
        with pytest.raises(PeerError) as caught:
            router.route(name)
        assert caught.value.code is Code.INVALID_EVENT
        assert caught.value.message == "Event type is not valid or service is not registered"
        assert caught.value.event_type == name[:NAME_LENGTH]
        assert not caught.value.closes
    assert router.route("notes:note:create") is NOTES


def test_a_name_may_have_128_characters() -> None:
    name = "notes:note:" + "ж" * (NAME_LENGTH - 11)
    assert len(name) == 128
    assert EventRouter(ServiceRegistry([NOTES])).route(name) is NOTES


def outcome(name: str) -> Registration | PeerError:
    try:
        return EventRouter(ServiceRegistry([NOTES])).route(name)
    except PeerError as error:
        return error


@given(
    st.text(max_size=200)
    | st.text(":notes \n", max_size=20).map("notes:{}".format)
    | st.tuples(st.just("notes"), st.text(max_size=5), st.text(max_size=5)).map(":".join)
)
def test_any_text_is_routed_or_an_invalid_event(name: str) -> None:
    found = outcome(name)
    if isinstance(found, PeerError):
        assert found.code is Code.INVALID_EVENT
    else:
        assert found is NOTES
        service, module, event = name.split(":")
        assert service == "notes"
        assert all((module, event))


@given(
    st.lists(
        st.text(st.characters(exclude_categories=("Z", "C"), exclude_characters=":"), min_size=1, max_size=40),
        min_size=2,
        max_size=2,
    )
)
def test_every_well_formed_name_is_routed(parts: list[str]) -> None:
    assert EventRouter(ServiceRegistry([NOTES])).route("notes:" + ":".join(parts)) is NOTES


def test_a_change_of_the_registry_takes_effect_on_the_next_event() -> None:
    registry = ServiceRegistry([NOTES])
    router = EventRouter(registry)
    assert router.route("notes:note:create") is NOTES
    registry.unregister("notes")
    with pytest.raises(PeerError):
        router.route("notes:note:create")
    moved = Registration(name="notes", channel="events:elsewhere")
    registry.register(moved)
    assert router.route("notes:note:create") is moved


def test_what_is_remembered_of_clients_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_KNOWN_NAMES", 3)
    router = EventRouter(ServiceRegistry([NOTES]))
    for number in range(10):
        assert router.route(f"notes:note:{number}") is NOTES
        assert len(router._known) <= 3

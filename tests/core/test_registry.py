"""Which services there are."""

from __future__ import annotations

import pytest
from zope.interface.verify import verifyObject

from kraftek.contract.interfaces import IServiceRegistry
from kraftek.contract.settings import Registration, SelfRegistration
from kraftek.core.registry import ServiceRegistry

NOTES = Registration(name="stickyNotes", channel="events:stickyNotes")
CHAT = Registration(name="chat", channel="events:chat", reply=True)


def test_it_is_a_registry() -> None:
    assert verifyObject(IServiceRegistry, ServiceRegistry())


def test_a_service_is_found_by_its_name() -> None:
    registry = ServiceRegistry([NOTES, CHAT])
    assert registry.find("chat") is CHAT
    assert registry.find("Chat") is None
    assert registry.find("") is None


def test_services_are_listed_in_the_order_of_registration() -> None:
    registry = ServiceRegistry([CHAT])
    registry.register(NOTES)
    assert list(registry.services()) == [CHAT, NOTES]


def test_a_list_once_taken_stays_as_it_was() -> None:
    registry = ServiceRegistry([CHAT])
    before = registry.services()
    registry.register(NOTES)
    assert list(before) == [CHAT]


def test_a_name_is_registered_once() -> None:
    registry = ServiceRegistry([NOTES])
    with pytest.raises(ValueError, match="'stickyNotes' is registered already"):
        registry.register(Registration(name="stickyNotes", channel="elsewhere"))
    assert registry.find("stickyNotes") is NOTES


def test_one_that_has_registered_itself_makes_room() -> None:
    registry = ServiceRegistry([NOTES, SelfRegistration(name="chat", channel="theirs")])
    registry.register(CHAT)
    assert list(registry.services()) == [NOTES, CHAT]
    with pytest.raises(ValueError, match="'chat' is registered already"):
        registry.register(SelfRegistration(name="chat", channel="theirs"))


def test_two_services_may_share_a_channel() -> None:
    registry = ServiceRegistry([NOTES, Registration(name="other", channel=NOTES.channel)])
    assert len(registry.services()) == 2


@pytest.mark.parametrize(
    "name", ["", "a:b", ":", "a b", "a\tb", "a\n", "\x00", "a\x7f", "a\x85b", "a\u00a0b", "a\u2028b", "x" * 129]
)
def test_a_malformed_name_is_refused(name: str) -> None:
    registry = ServiceRegistry()
    with pytest.raises(ValueError, match="expected 1 to 128 characters"):
        registry.register(Registration(name=name, channel="events"))
    assert not registry.services()


@pytest.mark.parametrize("name", ["a", "x" * 128, "заметки", "📝", "a.b-c_d/e"])
def test_any_other_name_is_not(name: str) -> None:
    assert ServiceRegistry([Registration(name=name, channel="events")]).find(name) is not None


def test_a_service_needs_a_channel() -> None:
    with pytest.raises(ValueError, match="'a': expected a Redis channel"):
        ServiceRegistry([Registration(name="a", channel="")])


def test_a_service_is_taken_away() -> None:
    registry = ServiceRegistry([NOTES, CHAT])
    registry.unregister("stickyNotes")
    assert registry.find("stickyNotes") is None
    assert list(registry.services()) == [CHAT]
    registry.register(NOTES)


def test_what_is_not_there_cannot_be_taken_away() -> None:
    with pytest.raises(KeyError):
        ServiceRegistry().unregister("stickyNotes")


def test_every_change_is_told_after_it_happened() -> None:
    registry = ServiceRegistry()
    told: list[list[str]] = []
    registry.on_change(lambda: told.append([service.name for service in registry.services()]))
    registry.register(NOTES)
    registry.register(CHAT)
    registry.unregister("stickyNotes")
    assert told == [["stickyNotes"], ["stickyNotes", "chat"], ["chat"]]


def test_a_refused_change_is_not_told() -> None:
    registry = ServiceRegistry([NOTES])
    told: list[None] = []
    registry.on_change(lambda: told.append(None))
    with pytest.raises(ValueError, match="registered already"):
        registry.register(NOTES)
    with pytest.raises(KeyError):
        registry.unregister("chat")
    assert not told

"""Who reads the first half of the tutorial sees what its pages say: clients, the auth service, requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.docs.pages import code
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.docs.reader import Read

pytestmark = pytest.mark.redis  # the shell starts one


def test_a_page_and_a_service(read: Read) -> None:
    reader = read(1)
    reader.expect_like("tutorial-1-log", reader.wait_ready())
    ada, bob = reader.open("ada"), reader.open("bob")
    for window in (ada, bob):
        reader.sees(window.state, "ready")
    ada.press()
    for window in (ada, bob):
        reader.sees(window.number, "1, by user_ada")

    reader.paste("break")
    for window in (ada, bob):
        reader.sees(window.state, "waiting")
    ada.press(3)
    reader.paste("mend")

    reader.sees(ada.number, "4, by user_ada")
    for window in (ada, bob):
        reader.sees(window.state, "ready")
    ada.press()
    for window in (ada, bob):
        reader.sees(window.number, "5, by user_ada")


def test_who_are_you(read: Read) -> None:
    reader = read(2)
    reader.wait_ready()
    ada, bob = reader.open("ada"), reader.open("bob")
    for window in (ada, bob):
        reader.sees(window.state, "ready")
    ada.press()
    for window in (ada, bob):
        reader.sees(window.number, "1, by ada")

    reader.paste("ban")
    reader.sees(bob.state, "bob is banned")
    ada.press()
    reader.sees(ada.number, "2, by ada")
    expect(bob.number).to_have_text("1, by ada")
    reader.paste("lift")
    reader.sees(bob.state, "ready")

    reader.paste("break")
    eve = reader.open("eve")
    reader.sees(eve.state, "Failed to fetch")
    bob.press()
    for window in (ada, bob):
        expect(window.number).to_have_text("3, by bob")
    reader.paste("mend")
    reader.sees(eve.state, "ready")


def test_a_request_is_answered_once(read: Read) -> None:
    reader = read(3)
    reader.wait_ready()
    ada = reader.open("ada")
    reader.sees(ada.number, "0, by nobody")
    ada.press()
    reader.sees(ada.lines.nth(0), "no answer yet")
    reader.sees(ada.lines.nth(0), "you made it 1")

    begun = reader.requests()
    ada.press()
    reader.sees(ada.lines.nth(1), "no answer yet")
    wait_until(lambda: reader.requests() > begun, "the press at the gateway", 30.0)
    reader.paste("break")
    reader.sees(ada.state, "waiting")
    work = code("tutorial-3-log").splitlines()
    wait_until(lambda: reader.paste("look") == work, f"{work} in the service's log", 30.0)
    reader.sees(ada.lines.nth(1), "no answer yet")
    reader.paste("mend")

    reader.sees(ada.lines.nth(1), "you made it 2")
    reader.sees(ada.state, "ready")
    expect(ada.number).to_have_text("2, by ada")
    assert reader.paste("look") == work

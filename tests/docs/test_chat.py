"""The chat of docs/examples/chat/, started as its readers start it, in a browser where nobody ever reloads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.docs.pages import CHECKOUT
from tests.support.ports import free_port
from tests.support.waiting import Lines, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.redis  # it starts its own

EXAMPLE = CHECKOUT / "docs/examples/chat"
# What would lead it to another Redis or gateway.
LEADING = re.compile(r"PYTHONPATH|PORT|(KRAFTEK|REDIS)_\w+")
LIFE = 2
WORD = 0.4  # seconds from word to word of an answer: it is in the middle for some seconds
NOTE_CLOSES = """
    window.closes = [];
    window.WebSocket = class extends WebSocket {
        constructor(...given) {
            super(...given);
            window.socket = this;
            this.addEventListener("close", ({ code }) => closes.push(code));
        }
    };
"""


class Chat:
    """The example, with tokens that live for two seconds. ``pids``: of each program, the process that runs."""

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/"
        options = [f"--port={port}", f"--gateway-port={free_port()}", f"--token-seconds={LIFE}"]
        self.process = subprocess.Popen(
            [sys.executable, EXAMPLE, *options],
            env={name: value for name, value in os.environ.items() if not LEADING.fullmatch(name)}
            | {"WORD_SECONDS": str(WORD)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self._lines = Lines(self.process.stdout)
        self.pids: dict[str, int] = {}
        self.wait_for("The page is at", "Ctrl-C ends all of them")

    def wait_for(self, *said: str) -> None:
        """Read what it says until all of these were in it."""
        awaited = set(said)
        while awaited:
            line = self._lines.next(f"{awaited}", 30)
            awaited = {each for each in awaited if each not in line}
            if found := re.fullmatch(r"(\S+) is process (\d+)", line):
                self.pids[found[1]] = int(found[2])

    def check(self) -> None:
        """It runs; otherwise it says why not."""
        assert self.process.poll() is None, "\n".join(self._lines.rest())

    def signal(self, program: str, number: signal.Signals) -> None:
        os.kill(self.pids[program], number)

    def interrupt(self) -> int:
        """Ctrl-C; its exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


class Tab:
    """A window of the browser, in which somebody has signed in."""

    def __init__(self, browser: Browser, url: str, name: str) -> None:
        self.name = name
        self.page: Page = browser.new_context().new_page()
        self.page.set_default_timeout(30_000)
        self.mistakes: list[str] = []
        self.page.on("pageerror", lambda error: self.mistakes.append(str(error)))
        self.page.add_init_script(NOTE_CLOSES)
        self.page.goto(url)
        self.page.evaluate("window.sameSince = 'the beginning'")
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_role("button", name="Sign in").click()
        self.state: Locator = self.page.get_by_role("status")
        self.token: Locator = self.page.locator("#note")
        self.messages: Locator = self.page.locator("#messages li")
        self.unsent: Locator = self.page.locator("#unsent li")
        self.answer: Locator = self.page.locator("#messages .asked").last
        self.expect(self.state, "Connected")

    def expect(self, part: Locator, text: str | re.Pattern[str]) -> None:
        expect(part).to_have_text(text, timeout=30_000)

    def write(self, *texts: str, button: str = "Send") -> None:
        for text in texts:
            self.page.get_by_label("Message", exact=True).fill(text)
            self.press(button)

    def expect_last(self, *lines: str) -> None:
        """These are the last messages, in this order, and there is no other one among them."""
        seen: Callable[[], list[str]] = lambda: self.messages.all_text_contents()[-len(lines) :]
        wait_until(lambda: seen() == [*lines], lambda: f"{lines} in {seen()}", 30.0)

    def closed_with(self) -> list[int]:
        """The codes that its connections were closed with, all until now."""
        codes: list[int] = self.page.evaluate("closes")
        return codes

    def mark(self) -> None:
        """Make out what it shows now from what it shows when it has begun anew."""
        self.page.evaluate("for (const line of document.querySelectorAll('#messages li')) line.marked = true")

    def marked(self) -> int:
        """How much of that is still there."""
        marked: int = self.page.evaluate(
            "[...document.querySelectorAll('#messages li')].filter(li => li.marked).length"
        )
        return marked

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()


class Sign(Protocol):
    """Opens a tab for somebody, and waits until they are in."""

    def __call__(self, name: str) -> Tab: ...


@pytest.fixture(scope="module")
def chat() -> Iterator[Chat]:
    chat = Chat()
    yield chat
    if chat.process.poll() is None:
        chat.interrupt()


@pytest.fixture
def sign_in(chat: Chat, browser: Browser) -> Iterator[Sign]:
    """In the end nobody has had to load the page again."""
    tabs: list[Tab] = []

    def sign_in(name: str) -> Tab:
        chat.check()
        tabs.append(Tab(browser, chat.url, name))
        return tabs[-1]

    yield sign_in
    for tab in tabs:
        assert tab.mistakes == []
        assert tab.page.evaluate("window.sameSince") == "the beginning"
        tab.page.context.close()


def test_it_is_short() -> None:
    most = {"page.html": 182, "auth.py": 100, "service.py": 40, "helper.py": 60, "gateway.toml": 28, "__main__.py": 125}
    sizes = {file.name: len(file.read_text("utf-8").splitlines()) for file in EXAMPLE.iterdir() if file.is_file()}
    assert sizes.keys() == most.keys()
    assert {name: lines for name, lines in sizes.items() if lines > most[name]} == {}


def test_two_talk_while_their_tokens_expire(sign_in: Sign) -> None:
    ada, bob = sign_in("ada"), sign_in("bob")
    ada.write("Hello")
    bob.expect_last("ada: Hello")

    # One when signing in, one when connecting, and two that replace others.
    for tab in (ada, bob):
        tab.expect(tab.token, re.compile(r"Token ([4-9]|\d\d)"))

    bob.write("Still here?")
    ada.expect_last("ada: Hello", "bob: Still here?")
    ada.write("Yes")
    ada.expect_last("ada: Hello", "bob: Still here?", "ada: Yes")
    assert [tab.closed_with() for tab in (ada, bob)] == [[], []]


def test_what_is_written_without_a_token_waits_for_one(chat: Chat, sign_in: Sign) -> None:
    ada, bob = sign_in("ada"), sign_in("bob")
    chat.signal("auth.py", signal.SIGSTOP)
    try:
        ada.expect(ada.token, re.compile("expired"))
        ada.write("Is anybody there?")
        ada.expect(ada.unsent, "ada: Is anybody there?")
    finally:
        chat.signal("auth.py", signal.SIGCONT)

    for tab in (ada, bob):
        tab.expect_last("ada: Is anybody there?")
    expect(ada.unsent).to_have_count(0)


def test_what_is_said_while_a_page_has_no_network_comes_when_it_has(sign_in: Sign) -> None:
    ada, bob = sign_in("ada"), sign_in("bob")
    ada.write("Bye")
    for tab in (ada, bob):
        tab.expect_last("ada: Bye")
    ada.mark()
    marked = ada.marked()
    ada.page.context.set_offline(True)
    ada.page.evaluate("socket.close()")
    ada.expect(ada.state, re.compile("The connection is lost"))
    bob.write("Where is ada?", "There is cake")
    bob.expect_last("ada: Bye", "bob: Where is ada?", "bob: There is cake")

    ada.page.context.set_offline(False)

    ada.expect(ada.state, "Connected")
    ada.expect_last("ada: Bye", "bob: Where is ada?", "bob: There is cake")
    assert ada.marked() == marked > 0, "the page has begun anew, although nothing was missed"


def test_a_ban_is_seen_at_once_and_so_is_its_end(sign_in: Sign) -> None:
    admin, bob = sign_in("admin"), sign_in("bob")
    assert bob.page.get_by_role("button", name="Ban").count() == 0

    admin.press("Ban bob")

    bob.expect(bob.state, "bob is banned")
    assert bob.closed_with()[0] == 4403, "it was not the token's end that put bob out"
    bob.write("Let me in")
    bob.expect(bob.unsent, "bob: Let me in")
    admin.press("Let in bob")
    bob.expect(bob.state, "Connected")
    admin.expect_last("bob: Let me in")


def test_only_the_admin_can_ban(sign_in: Sign) -> None:
    bob = sign_in("bob")
    ban = """async (name) => {
        const { token } = await (await fetch("/token", { method: "POST", body: name })).json();
        const headers = { Authorization: `Bearer ${token}` };
        return (await fetch("/ban", { method: "POST", body: "eve", headers })).status;
    }"""
    assert [bob.page.evaluate(ban, name) for name in ("bob", "admin")] == [403, 200]


def test_what_is_written_while_the_gateway_is_gone_arrives_once_and_in_order(chat: Chat, sign_in: Sign) -> None:
    ada, bob = sign_in("ada"), sign_in("bob")
    ada.write("one")
    for tab in (ada, bob):
        tab.expect_last("ada: one")
        tab.mark()
    marked = [tab.marked() for tab in (bob, ada)]
    chat.process.send_signal(signal.SIGSTOP)  # for as long as this takes nobody starts it again
    try:
        chat.signal("gateway", signal.SIGKILL)
        ada.write("two", "three")
        for tab in (ada, bob):
            tab.expect(tab.state, re.compile("The connection is lost"))
        ada.write("four")
        expect(ada.unsent.last).to_have_text("ada: four")
    finally:
        chat.process.send_signal(signal.SIGCONT)
    chat.wait_for("gateway is process")

    for tab in (bob, ada):
        tab.expect(tab.state, "Connected")
        tab.expect_last("ada: one", "ada: two", "ada: three", "ada: four")
    assert [tab.marked() for tab in (bob, ada)] == marked
    expect(ada.unsent).to_have_count(0)


ANSWER = "helper: {}, I have read that backwards, and it says: {}. That is all that I can do. "


def test_an_answer_is_read_while_it_is_written_and_is_one_message_for_who_comes_late(chat: Chat, sign_in: Sign) -> None:
    ada, bob = sign_in("ada"), sign_in("bob")
    ada.write("What is the time?", button="Ask the helper")
    bob.expect(bob.answer, re.compile("helper: ada, I have"))
    chat.signal("helper.py", signal.SIGSTOP)
    try:
        dan = sign_in("dan")
        dan.expect(dan.answer, re.compile("helper: ada, I have"))
        texts = lambda: {tab.answer.text_content() for tab in (bob, dan)}
        (text,) = wait_until(lambda: found if len(found := texts()) == 1 else set(), lambda: f"one text, not {texts()}")
        assert text is not None
        assert len(text) < len(ANSWER), "in the middle"
    finally:
        chat.signal("helper.py", signal.SIGCONT)

    for tab in (ada, bob, dan):
        tab.expect(tab.answer, ANSWER.format("ada", "time the is What"))
        tab.expect_last("ada: What is the time?", ANSWER.format("ada", "time the is What"))
    expect(ada.page.get_by_role("button", name="Stop")).to_have_count(0)


def test_who_has_asked_can_stop_the_answer(sign_in: Sign) -> None:
    ada, bob = sign_in("ada"), sign_in("bob")
    ada.write("Never mind", button="Ask the helper")
    bob.expect(bob.answer, re.compile("helper: ada, I have"))
    assert bob.page.get_by_role("button", name="Stop").count() == 0

    # Words come while the button is down.
    ada.page.get_by_role("button", name="Stop", exact=True).click(delay=1_000)

    for tab in (ada, bob):
        tab.expect(tab.answer, re.compile(r"helper: ada, I have.* … \(stopped\)"))
    ada.expect(ada.token, re.compile("Token"))  # and no word of an error
    ada.write("Thanks")
    bob.expect_last("ada: Thanks")


def test_ctrl_c_leaves_nothing(chat: Chat) -> None:
    """The last of all, because it ends what they share."""
    chat.check()
    children = Path(f"/proc/{chat.process.pid}/task/{chat.process.pid}/children").read_text().split()
    assert len(children) == 5, "Redis, the gateway, the web server and two services"
    (directory,) = {Path(f"/proc/{pid}/cwd").readlink() for pid in chat.pids.values()}

    assert chat.interrupt() == 0

    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
    assert not directory.exists()

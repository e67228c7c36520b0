"""The board of the demo in a real browser, on a gateway that was started as a newcomer starts it."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Gateway, RedisServer, Shared, StartGateway

pytestmark = pytest.mark.redis  # the demo starts its own

# What the browser itself says about a gateway that is gone; nothing of ours.
GONE = re.compile(r"WebSocket connection to '[^']+' failed")
# Keeps, of every message that the page sends: when, and what.
LISTEN_IN = """
    window.said = [];
    const send = WebSocket.prototype.send;
    WebSocket.prototype.send = function (text) {
        window.socket = this;
        window.said.push({ at: performance.now(), ...JSON.parse(text) });
        return send.call(this, text);
    };
"""


class Person:
    """Somebody with a browser window."""

    def __init__(self, context: BrowserContext, name: str) -> None:
        self.name = name
        self.context = context
        context.add_init_script(f"sessionStorage.getItem('name') ?? sessionStorage.setItem('name', {json.dumps(name)})")
        context.add_init_script(LISTEN_IN)
        self.page: Page = context.new_page()
        # A violation of the Content-Security-Policy is an error of the console, too.
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console", lambda said: self.errors.append(said.text) if said.type in {"error", "warning"} else None
        )
        self.notes: Locator = self.page.locator(".note")
        self.notice: Locator = self.page.locator("#notice")
        self.people: Locator = self.page.locator("#people")

    def enter(self, gateway: Gateway, room: str = "kitchen") -> None:
        self.page.goto(f"{gateway.http_url}?room={room}")
        self.expect_board()

    def expect_state(self, state: str, timeout: float = 15_000) -> None:
        expect(self.page.locator("body")).to_have_attribute("data-state", state, timeout=timeout)

    def expect_board(self) -> None:
        """The connection is ready, and the board is as the service keeps it."""
        self.expect_state("ready", timeout=40_000)
        expect(self.page.locator("#board")).to_have_attribute("aria-busy", "false", timeout=15_000)

    def expect_texts(self, *texts: str) -> None:
        expect(self.page.locator(".note .text")).to_have_text(list(texts), timeout=10_000)

    def create(self, text: str, colour: str = "yellow") -> Locator:
        """Take a note from a pad and write on it."""
        self.page.get_by_role("button", name=f"New {colour} note").click()
        # It has the focus when it comes, ready to be written on.
        self.page.locator(".note textarea:focus").fill(text)
        self.page.keyboard.press("Escape")
        expect(self.page.locator(".note:focus .text")).to_have_text(text)
        name = self.page.locator(".note:focus").get_attribute("data-id")
        return self.page.locator(f".note[data-id='{name}']")

    def place(self, note: Locator) -> tuple[float, float]:
        """Where a note is, in the board's units."""
        x, y = note.evaluate("note => ['--x', '--y'].map(name => Number(note.style.getPropertyValue(name)))")
        return x, y

    def drag(self, note: Locator, right: float, down: float, steps: int = 12) -> None:
        box = note.bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + right, y + down, steps=steps)
        self.page.mouse.up()

    def expect_place(self, note: Locator, place: tuple[float, float]) -> None:
        for name, value in zip(("--x", "--y"), place, strict=True):
            expect(note).to_have_attribute("style", re.compile(rf"{name}: {value:g};"))

    def said(self, name: str) -> list[dict[str, Any]]:
        """What the page has sent under this name, with the time."""
        said: list[dict[str, Any]] = self.page.evaluate("said")
        return [message for message in said if message["type"] == f"stickyNotes:{name}"]


Invite = Callable[..., Person]


@pytest.fixture
def invite(browser: Browser) -> Iterator[Invite]:
    yield from invitations(browser.new_context)


def invitations(new_context: Callable[..., BrowserContext]) -> Iterator[Invite]:
    """Gives people a window; nobody's console may have complained in the end."""
    people: list[Person] = []

    def invited(name: str, **options: Any) -> Person:
        # What moves for beauty alone costs a tenth of a processor in every window.
        still: Any = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"}
        context = new_context(**{**still, **options})
        people.append(Person(context, name))
        return people[-1]

    yield invited
    complaints = {person.name: [error for error in person.errors if not GONE.match(error)] for person in people}
    for person in people:
        person.context.close()
    assert complaints == {person.name: [] for person in people}


@pytest.fixture
def demo(shared: Shared) -> Gateway:
    """One for all tests that do not end it; each finds its boards empty."""
    clear_boards(shared)
    return shared.gateway(args=["--demo"])


def clear_boards(shared: Shared) -> None:
    """Nobody has written anything yet."""
    redis: Any = shared.redis_server.client()
    for key in redis.keys("notes:*"):
        redis.delete(key)


def lives(pid: int) -> bool:
    """Whether this process runs; one that is dead but not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_what_one_does_the_other_sees(demo: Gateway, invite: Invite) -> None:
    ann, bob = invite("Ann Lee"), invite("Bob")
    ann.enter(demo)
    bob.enter(demo)
    expect(bob.page.locator("#empty")).to_be_visible()

    theirs = bob.notes.first
    mine = ann.create("Buy milk", "pink")
    bob.expect_texts("Buy milk")
    expect(theirs).to_have_attribute("data-colour", "pink")
    expect(theirs.locator(".by-name")).to_have_text("Ann Lee")
    expect(bob.page.locator("#last")).to_have_text(re.compile("Ann Lee wrote a note"))
    expect(bob.page.locator("#empty")).to_be_hidden()

    before = ann.place(mine)
    ann.drag(mine, 200, -120)
    after = ann.place(mine)
    assert after[0] > before[0]
    assert after[1] < before[1]
    bob.expect_place(theirs, after)

    bob.drag(theirs, -150, 60)
    ann.expect_place(mine, bob.place(theirs))
    expect(mine.locator(".by-name")).to_have_text("Bob")

    # A click on a note that has the focus writes on it, and what is written is seen while it is.
    theirs.click()
    bob.page.locator(".note textarea").press_sequentially(" and bread")
    ann.expect_texts("Buy milk and bread")
    bob.page.keyboard.press("Escape")

    mine.get_by_role("button", name="green").click()
    expect(theirs).to_have_attribute("data-colour", "green")

    mine.get_by_role("button", name="Delete").click()
    expect(theirs).to_have_count(0)
    expect(ann.page.locator("#empty")).to_be_visible()


def test_who_comes_later_sees_what_is_there(demo: Gateway, invite: Invite) -> None:
    ann, bob, eve = invite("Ann"), invite("Bob"), invite("Eve")
    ann.enter(demo)
    ann.create("First", "blue")
    ann.create("Second", "orange")

    bob.enter(demo)
    eve.enter(demo, "garden")

    bob.expect_texts("First", "Second")
    assert [bob.place(bob.notes.nth(n)) for n in (0, 1)] == [ann.place(ann.notes.nth(n)) for n in (0, 1)]
    expect(eve.page.locator("#empty")).to_be_visible()


def test_other_peoples_words_are_words(demo: Gateway, invite: Invite) -> None:
    ann, bob = invite("Ann"), invite("<b>Bob</b>")
    ann.enter(demo)
    bob.enter(demo)
    markup = '<img src=x onerror="document.title=1"><script>alert(1)</script> 🥛 привет'

    bob.create(markup)

    ann.expect_texts(markup)
    expect(ann.notes.first.locator(".by-name")).to_have_text("<b>Bob</b>")
    assert ann.page.locator(".note img, .note script, .note b").count() == 0
    ann.page.get_by_role("button", name="Events").click()
    expect(ann.page.locator("#events-list")).to_contain_text("<img src=x")
    assert ann.page.locator("#events-list img").count() == 0


def test_a_drag_is_smooth_and_sparing(demo: Gateway, invite: Invite) -> None:
    ann, bob = invite("Ann"), invite("Bob")
    ann.enter(demo)
    bob.enter(demo)
    note = ann.create("Follow me")
    ann.drag(note, -400, 0)
    ann.page.evaluate(
        """() => {
            window.seen = [];
            const note = document.querySelector(".note");
            new MutationObserver(() => seen.push(Number(note.style.getPropertyValue("--x"))))
                .observe(note, { attributes: true, attributeFilter: ["style"] });
        }"""
    )
    already = len(ann.said("note:move"))

    ann.drag(note, 600, 0, steps=120)

    # All of our own echoes are back before somebody else's change is.
    bob.expect_place(bob.notes.first, ann.place(note))
    bob.notes.first.click()
    bob.page.keyboard.press("3")
    expect(note).to_have_attribute("data-colour", "pink")
    seen: list[float] = ann.page.evaluate("seen")
    assert seen == sorted(seen), "an echo moved the note back"
    times = [message["at"] for message in ann.said("note:move")[already:]]
    assert len(times) >= 2
    # Timers of a browser are exact to a millisecond; the last move is sent at once.
    gaps = [later - sooner for sooner, later in pairwise(times[:-1])]
    assert min(gaps) >= 49, gaps
    assert ann.said("note:move")[-1]["payload"]["x"] == ann.place(note)[0]


def test_a_keyboard_is_enough(demo: Gateway, invite: Invite) -> None:
    ann, bob = invite("Ann"), invite("Bob")
    ann.enter(demo)
    bob.enter(demo)
    note, press = ann.create("Keys"), ann.page.keyboard.press
    expect(note).to_be_focused()
    x, y = ann.place(note)

    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Shift+ArrowLeft"):
        press(key)
    bob.expect_place(bob.notes.first, (x - 30, y + 10))
    press("5")
    expect(bob.notes.first).to_have_attribute("data-colour", "blue")
    press("Enter")
    ann.page.keyboard.type(" and more")
    press("Control+Enter")
    bob.expect_texts("Keys and more")
    expect(note).to_be_focused()
    press("Delete")
    expect(bob.notes).to_have_count(0)
    expect(ann.page.locator("#pads button").first).to_be_focused()


def test_toolbars_have_one_stop_and_arrow_keys(demo: Gateway, invite: Invite) -> None:
    ann = invite("Ann")
    ann.enter(demo)
    pads, press = ann.page.locator("#pads button"), ann.page.keyboard.press
    pads.first.focus()
    for key, number in {"ArrowRight": 1, "End": 5, "Home": 0, "ArrowLeft": 5}.items():
        press(key)
        expect(pads.nth(number)).to_be_focused()
    press("ArrowRight")
    expect(pads.first).to_be_focused()
    press("ArrowRight")
    press("Tab")
    assert ann.page.locator("#pads :focus").count() == 0
    press("Shift+Tab")
    expect(pads.nth(1)).to_be_focused()

    note = ann.create("Tools")
    press("Tab")
    tools = ann.page.locator(".tools button")
    expect(tools.first).to_be_focused()
    for _ in range(4):
        press("ArrowRight")
    press("Enter")
    expect(note).to_have_attribute("data-colour", "blue")
    press("3")  # as the tooltip says
    expect(note).to_have_attribute("data-colour", "pink")
    press("Escape")
    expect(note).to_be_focused()


def test_a_key_shows_the_events(demo: Gateway, invite: Invite) -> None:
    ann = invite("Ann")
    ann.enter(demo)
    button, events = ann.page.get_by_role("button", name="Events", exact=True), ann.page.locator("#events")
    expect(button).to_have_attribute("title", "Events (E)")
    note = ann.create("eEe")  # of a text it is a letter
    note.click()
    note.click()
    ann.page.keyboard.type("e")
    expect(events).to_be_hidden()
    ann.page.keyboard.press("Escape")
    expect(note.locator(".text")).to_have_text("eEee")
    for key in ("e", "E"):
        ann.page.keyboard.press(key)
        expect(events).to_be_visible()
        expect(button).to_have_attribute("aria-expanded", "true")
        ann.page.keyboard.press(key)
        expect(events).to_be_hidden()
    ann.page.keyboard.press("Control+e")
    expect(events).to_be_hidden()


def test_says_what_it_shows(demo: Gateway, invite: Invite) -> None:
    people = invite("Ann"), invite("Bob", viewport={"width": 390, "height": 844})
    for person in people:
        person.enter(demo)
        about = person.page.locator("#about")
        person.page.get_by_role("button", name="What this shows").click()
        expect(about).to_contain_text("A demo of the Kraftek Socket Gateway")
        expect(about).to_contain_text("Stop the gateway with Ctrl-C and start it again")
        box = about.bounding_box()
        assert box is not None
        size = person.page.viewport_size
        assert size is not None
        assert 0 <= box["x"] < box["x"] + box["width"] <= size["width"]
        assert 0 <= box["y"] < box["y"] + box["height"] <= size["height"]
        person.page.keyboard.press("Escape")
        expect(about).to_be_hidden()
        person.page.get_by_role("button", name="About this page").click()
        expect(about).to_be_visible()
    links = people[0].page.locator("#about .documents a")
    assert links.count() == 5
    for link in links.all():
        page = people[0].context.request.get(f"{demo.http_url}{link.get_attribute('href')}")
        assert (page.status, page.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert "====" in page.text()


def test_comes_back_when_the_gateway_does(gateway: StartGateway, redis_server: RedisServer, invite: Invite) -> None:
    first = gateway(redis_server, args=["--demo"])
    ann, bob = invite("Ann"), invite("Bob")
    ann.enter(first)
    bob.enter(first)
    note = ann.create("Still here")
    bob.expect_texts("Still here")
    note.click()
    ann.page.locator(".note textarea").press_sequentially(" and")
    bob.expect_texts("Still here and")
    opened = bob.said("board:open")

    first.terminate()
    for person in (ann, bob):
        expect(person.notice).to_contain_text("The connection was lost", timeout=15_000)
    # What is being written stays; what would be moved does not move.
    ann.page.locator(".note textarea").press_sequentially(" now this")
    ann.page.keyboard.press("Escape")
    expect(note).to_have_class(re.compile("unsent"))
    place = bob.place(bob.notes.first)
    bob.drag(bob.notes.first, 100, 100)
    expect(bob.page.locator("#toast")).to_contain_text("Not connected")
    assert bob.place(bob.notes.first) == place
    gateway(redis_server, args=["--demo", "--listen", f"tcp:{first.port}:interface=127.0.0.1"])

    for person in (ann, bob):
        person.expect_board()
        person.expect_texts("Still here and now this")
        expect(person.notice).to_be_hidden()
    expect(note).not_to_have_class(re.compile("unsent"))
    assert bob.said("board:open") == opened, "the page has fetched what the gateway tells it anyway"
    ann.drag(note, 120, 40)
    bob.expect_place(bob.notes.first, ann.place(note))


def test_what_is_done_while_a_window_has_no_network_comes_when_it_has(demo: Gateway, invite: Invite) -> None:
    ann, bob = invite("Ann"), invite("Bob")
    ann.enter(demo)
    bob.enter(demo)
    mine = ann.create("Here")
    bob.expect_texts("Here")
    opened = ann.said("board:open")
    ann.context.set_offline(True)
    ann.page.evaluate("socket.close()")
    expect(ann.notice).to_contain_text("The connection was lost")
    bob.create("There", "green")
    bob.drag(bob.notes.first, 150, 80)
    place = bob.place(bob.notes.first)

    ann.context.set_offline(False)

    ann.expect_board()
    ann.expect_texts("Here", "There")
    ann.expect_place(mine, place)
    assert ann.said("board:open") == opened, "the page has fetched what the gateway tells it anyway"


def test_words_that_got_lost_on_the_way_are_said_again(
    gateway: StartGateway, redis_server: RedisServer, invite: Invite
) -> None:
    first = gateway(redis_server, args=["--demo"])
    ann, bob = invite("Ann"), invite("Bob")
    ann.enter(first)
    note = ann.create("Hear")
    os.kill(first.pid, signal.SIGSTOP)
    note.click()
    ann.page.locator(".note textarea").press_sequentially(" me")
    ann.page.keyboard.press("Escape")
    ann.expect_texts("Hear me")

    first.kill()
    second = gateway(redis_server, args=["--demo", "--listen", f"tcp:{first.port}:interface=127.0.0.1"])

    bob.enter(second)
    ann.expect_board()
    bob.expect_texts("Hear me")


def test_lives_through_an_outage_of_redis(gateway: StartGateway, redis_server: RedisServer, invite: Invite) -> None:
    ann = invite("Ann")
    ann.enter(gateway(redis_server, args=["--demo"]))
    ann.create("Written on water")
    redis_server.kill()

    ann.page.get_by_role("button", name="New green note").click()
    expect(ann.notice).to_contain_text("The notes service does not answer", timeout=15_000)
    ann.expect_state("ready")
    redis_server.start()

    # Redis kept nothing, so there is nothing, and the page says so.
    expect(ann.notice).to_be_hidden(timeout=30_000)
    expect(ann.page.locator("#empty")).to_be_visible()
    ann.create("Written anew")


def test_shows_what_is_kept_and_not_what_was_hoped(demo: Gateway, shared: Shared, invite: Invite) -> None:
    ann = invite("Ann")
    ann.enter(demo)
    ann.create("Stays")
    note = ann.create("Goes")
    name = str(note.get_attribute("data-id"))
    with shared.redis_server.client() as client:
        wait_until(lambda: "Goes" in str(client.hget("notes:kitchen", name)), "the text at the service")
        client.hdel("notes:kitchen", name)

    ann.drag(note, 100, 100)

    expect(ann.page.locator("#toast")).to_contain_text("there is no such note any more")
    ann.expect_texts("Stays")


def test_one_window_for_one_name(demo: Gateway, invite: Invite) -> None:
    here, there = invite("Ann"), invite("Ann")
    here.enter(demo)
    here.create("Mine")
    there.enter(demo)

    here.expect_state("closed")
    expect(here.notice).to_contain_text("Ann is on this board in another window")
    there.expect_state("ready")
    here.page.get_by_role("button", name="Use this window").click()

    here.expect_board()
    here.expect_texts("Mine")
    there.expect_state("closed")
    assert len([message for message in there.page.evaluate("said") if message["type"] == "authenticate"]) == 1


def test_a_name_and_a_room_can_be_chosen(demo: Gateway, invite: Invite) -> None:
    ann = invite("Ann")
    ann.enter(demo)
    ann.create("In the kitchen")

    ann.page.locator("#me").click()
    ann.page.get_by_label("Your name").fill("Zoë")
    ann.page.get_by_label("Room").fill("cellar & attic")
    ann.page.get_by_role("button", name="Enter").click()

    expect(ann.page.locator("#room-name")).to_have_text("cellar & attic")
    expect(ann.page.locator("#empty")).to_be_visible()
    ann.expect_board()
    note = ann.create("Under the roof")
    expect(note.locator(".by-name")).to_have_text("Zoë")
    ann.page.reload()
    ann.expect_texts("Under the roof")
    expect(ann.page.locator("#my-name")).to_have_text("Zoë")


def test_shows_who_is_in_the_room(gateway: StartGateway, redis_server: RedisServer, invite: Invite) -> None:
    process = gateway(redis_server, args=["--demo"])
    ann, bob = invite("Ann Lee"), invite("Bob", viewport={"width": 390, "height": 844})
    ann.enter(process)
    bob.enter(process)

    def meet(*names: str) -> None:
        with redis_server.client() as redis:
            redis.hset("room:kitchen", mapping={f"user_{name}": "elsewhere" for name in names})
            redis.publish("gateways:presence:kitchen", "")

    meet("Zoë")
    for person, names in ((ann, ["Ann Lee", "Bob", "Zoë"]), (bob, ["Bob", "Ann Lee", "Zoë"])):
        expect(person.people).to_be_visible()
        expect(person.people.locator("#people-text")).to_have_text("3 people here")
        expect(person.people.locator(".face")).to_have_text(["AL", "B", "Z"] if person is ann else ["B", "AL", "Z"])
        expect(person.people.locator(".face[data-me]")).to_have_text("AL" if person is ann else "B")
        person.people.click()
        expect(person.page.locator("#people-names .name")).to_have_text(names)
        expect(person.page.locator("#people-names li").first).to_have_text(re.compile("you$"))
        box = person.page.locator("#people-list").bounding_box()
        assert box is not None
        assert 0 <= box["x"] < box["x"] + box["width"] <= (1280 if person is ann else 390)
        person.page.keyboard.press("Escape")
        expect(person.page.locator("#people-list")).to_be_hidden()

    meet("<b>Eve</b>", *(f"A name of some length {number}" for number in range(19)))
    for person in (ann, bob):
        expect(person.people.locator(".face")).to_have_count(4)
        expect(person.people.locator(".more")).to_have_text("+20")
        expect(person.page.locator("#people-names .name").filter(has_text="<b>Eve</b>")).to_have_count(1)
    assert bob.page.evaluate("document.documentElement.scrollWidth") == 390
    for button in ("#room", "#people", "#me", "#events-toggle"):
        box = bob.page.locator(button).bounding_box()
        assert box is not None
        assert box["width"] >= 40, button
        assert 0 <= box["x"] < box["x"] + box["width"] <= 390, button


def test_shows_who_comes_and_goes(demo: Gateway, invite: Invite) -> None:
    ann, bob, eve = invite("Ann"), invite("Bob"), invite("Eve")
    ann.enter(demo)
    expect(ann.people.locator("#people-text")).to_have_text("1 person here")
    bob.enter(demo)
    eve.enter(demo, "garden")
    expect(ann.people.locator(".face")).to_have_text(["A", "B"])
    expect(bob.people.locator(".face")).to_have_text(["B", "A"])
    expect(eve.people.locator(".face")).to_have_text(["E"])

    bob.page.close()
    expect(ann.people.locator(".face")).to_have_text(["A"])


def test_shows_the_last_events(demo: Gateway, invite: Invite) -> None:
    ann = invite("Name of Ann")
    ann.enter(demo)
    rows = ann.page.locator("#events-list li")
    ann.page.get_by_role("button", name="Events").click()
    expect(rows.filter(has_text="stickyNotes:board:opened")).to_have_attribute("data-way", "in")
    expect(rows.filter(has=ann.page.get_by_text("authenticate", exact=True))).to_have_attribute("data-way", "out")
    # What was sent to authenticate is named, and not shown.
    assert "Name of Ann" not in rows.last.inner_text()

    for number in range(12):
        ann.create(f"Note {number}")

    expect(rows).to_have_count(50)
    ann.page.keyboard.press("Escape")
    ann.page.locator("#events-close").click()
    expect(ann.page.locator("#events")).to_be_hidden()


def test_fits_a_phone(demo: Gateway, invite: Invite, browser: Browser) -> None:
    phone = {"device_scale_factor": 2, "has_touch": True, "is_mobile": True, "reduced_motion": "no-preference"}
    ann = invite("Ann", viewport={"width": 390, "height": 844}, **phone)
    bob = invite("Bob", color_scheme="dark", reduced_motion="reduce")
    ann.enter(demo)
    bob.enter(demo)
    assert ann.page.evaluate("document.documentElement.scrollWidth") == 390

    ann.page.get_by_role("button", name="New violet note").tap()
    ann.page.locator(".note textarea:focus").fill("By thumb")
    ann.page.locator("#map").tap(position={"x": 56, "y": 28})
    bob.expect_texts("By thumb")
    note, tools = ann.notes.first, ann.page.locator(".tools")
    note.tap()
    box = tools.bounding_box()
    assert box is not None
    assert 0 <= box["x"] < box["x"] + box["width"] <= 390
    tools.get_by_role("button", name="blue").tap()
    expect(bob.notes.first).to_have_attribute("data-colour", "blue")

    # To tap a colour, Playwright may scroll the board until the note is out of sight.
    note.scroll_into_view_if_needed()

    # A finger on the note drags it; at the edge of the window the board moves along.
    before, scrolled = ann.place(note), ann.page.evaluate("document.getElementById('viewport').scrollLeft")
    box = note.bounding_box()
    assert box is not None
    finger = ann.context.new_cdp_session(ann.page)
    x, y = box["x"] + 40, box["y"] + 60

    def touch(kind: str, *points: tuple[float, float]) -> None:
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    touch("touchStart", (x, y))
    for part in range(1, 11):
        touch("touchMove", (x + (385 - x) * part / 10, y))
    ann.page.wait_for_function("before => document.getElementById('viewport').scrollLeft > before + 100", arg=scrolled)
    touch("touchEnd")

    assert ann.place(note)[0] > before[0] + 100
    bob.expect_place(bob.notes.first, ann.place(note))

    # A finger beside the notes moves the board, and no note.
    place = ann.place(note)
    scrolled = ann.page.evaluate("document.getElementById('viewport').scrollLeft")
    touch("touchStart", (60, 640))
    for part in range(1, 11):
        touch("touchMove", (60 + 25 * part, 640))
    touch("touchEnd")
    ann.page.wait_for_function("before => document.getElementById('viewport').scrollLeft < before - 50", arg=scrolled)
    assert ann.place(note) == place


def test_the_tools_of_a_note_being_written_stay_on_the_screen(demo: Gateway, invite: Invite) -> None:
    phone = {"device_scale_factor": 2, "has_touch": True, "is_mobile": True, "reduced_motion": "no-preference"}
    ann = invite("Ann", viewport={"width": 390, "height": 844}, **phone)
    ann.enter(demo)

    def expect_tools() -> None:
        ann.page.wait_for_function(
            "() => document.querySelector('.note:focus-within').getAnimations({ subtree: true }).length === 0"
        )
        expect(ann.page.locator(".note textarea")).to_be_focused()
        box = ann.page.locator(".tools").bounding_box()
        assert box is not None
        assert 0 <= box["x"] < box["x"] + box["width"] <= 390

    def scroll(by: int) -> None:
        ann.page.evaluate("by => document.getElementById('viewport').scrollBy({ left: by, behavior: 'instant' })", by)
        ann.page.evaluate("new Promise(requestAnimationFrame)")  # which comes after the event

    for edge, x in ((-10_000, 14), (10_000, 376)):
        scroll(edge)
        ann.page.mouse.dblclick(x, 400)  # a note as far out as there is room
        expect(ann.page.locator(".note textarea")).to_be_focused()
        expect_tools()
        scroll(-edge // 200)
        expect_tools()
        ann.page.keyboard.press("Escape")


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_nothing_is_left_behind(gateway: StartGateway, end: str) -> None:
    with TemporaryDirectory() as place:
        demo = gateway(args=["--demo"], env={"TMPDIR": place})

        def both_run() -> bool:  # a child bears its parent's name until it becomes its own program
            names = [Path(f"/proc/{pid}/cmdline").read_text() for pid in children(demo.pid)]
            return any("notes.py" in name for name in names) and any("-server" in name for name in names)

        wait_until(both_run, "the service and the server")
        started = children(demo.pid)

        getattr(demo, end)()

        wait_until(lambda: not any(map(lives, started)), lambda: f"the end of {[pid for pid in started if lives(pid)]}")
        if end == "terminate":
            assert [*Path(place).iterdir()] == []

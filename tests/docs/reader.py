"""Somebody who goes through the tutorial: the commands of its pages go into a shell, and what they say is seen in a
browser. The fixture ``read`` begins a part.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from urllib.request import urlopen

import playwright.sync_api
import pytest
import redis
from docutils import nodes
from playwright.sync_api import Browser, Locator, expect

from tests.docs.pages import CHECKOUT, PARTS, code, page
from tests.support.ports import free_port
from tests.support.waiting import Lines, wait_until

__all__ = ["PATIENCE", "Read", "Reader", "Window"]

# Those of the pages, in place of which each test takes free ones.
PORTS = re.compile(r"\b(3000|3001|6379|8000|8001|9101|9102)\b")
# What would lead the programs to another Redis or gateway.
LEADING = re.compile(r"PYTHONPATH|PORT|CLONE|(KRAFTEK|REDIS)_\w+")
PATIENCE = 30_000  # milliseconds
# What a shell that is no terminal says of programs that were killed.
NEWS = re.compile(r"bash: line \d+: +\d+ (Killed|Terminated) ")

# What part 6 has a program print beside the commands.
WATCH = ("ALARM: ", "over:  ")


class Window:
    """A window of the browser with the counter in it, in which somebody is who the address says."""

    def __init__(self, browser: Browser, url: str, name: str) -> None:
        self.page = browser.new_context().new_page()
        self.mistakes: list[str] = []
        self.page.on("pageerror", lambda error: self.mistakes.append(str(error)))
        wait_until(lambda: self._opens(f"{url}#{name}"), f"the web server at {url}", 30.0)
        self.page.evaluate("window.sameSince = 'the beginning'")
        self.number: Locator = self.page.locator("h1")
        self.state: Locator = self.page.locator("p")
        self.lines: Locator = self.page.locator("div div")

    def _opens(self, url: str) -> bool:
        with suppress(playwright.sync_api.Error):
            return self.page.goto(url) is not None
        return False

    def reload(self) -> None:
        self.page.reload()
        self.page.evaluate("window.sameSince = 'the beginning'")

    def gateway(self) -> str:
        """The id of the gateway that the page says it is connected to."""
        text = self.state.text_content() or ""
        return text.removeprefix("ready at gateway ") if text.startswith("ready at gateway ") else ""

    def moved(self, away_from: str) -> bool:
        """Whether it is connected to another gateway than that; if it is not, load the page once more."""
        expect(self.state).to_contain_text("ready at gateway", timeout=PATIENCE)
        if self.gateway() == away_from:
            self.reload()
            return False
        return True

    def press(self, times: int = 1) -> None:
        for _ in range(times):
            self.page.get_by_role("button").click()


class Reader:
    """Somebody who pastes the blocks of a page into a terminal, one after the other, and looks whether it is right."""

    def __init__(self, part: int, directory: Path, browser: Browser) -> None:
        self._part = part
        self._browser = browser
        self._text = page(PARTS[part - 1])[0].astext()
        self._said = {" ".join(literal.astext().split()) for literal in page(PARTS[part - 1])[0].findall(nodes.literal)}
        self._ports: dict[str, str] = {}
        clone, self.directory = directory / "clone", directory / "counter"
        shutil.copytree(CHECKOUT / "docs/tutorial", clone / "docs/tutorial")
        for file in clone.rglob("*"):
            if file.is_file():
                file.write_text(self.here(file.read_text("utf-8")), "utf-8")
        self.directory.mkdir()
        (self.directory / ".venv").symlink_to(sys.prefix)  # in place of the block that installs
        self._redis = self.here("redis://127.0.0.1:6379/0")
        self._windows: list[Window] = []
        self._shell = subprocess.Popen(
            ["bash"],
            cwd=self.directory,
            env={name: value for name, value in os.environ.items() if not LEADING.fullmatch(name)}
            | {"CLONE": str(clone), "KRAFTEK_REDIS": self._redis, "REDIS_URL": self._redis},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # with all that it starts, of which nothing may be left in the end
        )
        assert self._shell.stdout is not None
        self._lines = Lines(self._shell.stdout)
        self.screen: list[str] = []

    def here(self, text: str) -> str:
        """The text with the ports of this test."""
        for port in {*PORTS.findall(text)} - self._ports.keys():
            self._ports[port] = str(free_port())
        return PORTS.sub(lambda found: self._ports[found[0]], text)

    def paste(self, block: str, **replaced: str) -> list[str]:
        """Have a block of the page run, with other words for some; returns what it has printed."""
        text = code(f"tutorial-{self._part}-{block}")
        return self.run(re.sub(r"\w+", lambda word: replaced.get(word[0], word[0]), text))

    def run(self, commands: str) -> list[str]:
        """The same for commands of the test's own."""
        commands = self.here(commands)
        begin, end = len(self.screen), f"this was block {len(self.screen)}"
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{commands}\necho '{end}'\n")
        self._shell.stdin.flush()
        while (line := self._lines.next(end, 30)) != end:
            self._show(line)
        return [line for line in self.screen[begin:] if not line.startswith(WATCH)]

    def _show(self, line: str) -> None:
        if not NEWS.match(line):
            self.screen.append(line)

    def wait_ready(self, block: str = "ready") -> list[str]:
        """Paste the block that looks into the logs, until each of them has what it looks for."""
        expected = len(re.findall(r"\.log", code(f"tutorial-{self._part}-{block}")))
        return wait_until(
            lambda: lines if len(lines := self.paste(block)) == expected else [],
            lambda: f"{expected} lines in {self.screen}",
            30.0,
        )

    def wait_shown(self, line: str) -> None:
        """Wait until a program has printed this line to the terminal."""
        while self.here(line) not in self.screen:
            self._show(self._lines.next(line, 30))

    def browse(self, url: str, says: str) -> int:
        """Open an address in the browser: what the page says is in there. Returns the status."""
        assert url in self._text
        assert says in self._said
        with closing(self._browser.new_page()) as window:
            answer = window.goto(self.here(url))
            assert answer is not None
            assert says in answer.text()
            return answer.status

    def metric(self, port: int, name: str) -> float:
        """A number of the metrics of the gateway with this operator's port."""
        with urlopen(self.here(f"http://127.0.0.1:{port}/metrics"), timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        return float(line.split()[-1])

    def requests(self) -> int:
        """How many requests the gateways know."""
        with redis.Redis.from_url(self._redis) as client:
            return len(client.keys("request:*"))

    def events_handled_now(self) -> int:
        """How many events the service has in hand."""
        with redis.Redis.from_url(self._redis) as client:
            (group,) = client.xinfo_groups("events:counter")
        return int(group["pending"])

    def expect_like(self, name: str, lines: list[str]) -> None:
        """These lines are those of a block, which has ``…`` for what is another text each time."""
        shown = self.here(code(name)).splitlines()
        for expected, line in zip(shown, lines, strict=True):
            assert re.fullmatch(".*".join(map(re.escape, expected.split("…"))), line)

    def open(self, name: str) -> Window:
        self._windows.append(Window(self._browser, self.here("http://localhost:8000/"), name))
        return self._windows[-1]

    def sees(self, where: Locator, text: str, more: str = "") -> None:
        """The page says that this is seen here, and so it is; ``more`` is behind it."""
        assert text in self._said, f"the page does not say {text!r}"
        expect(where).to_have_text(text + more, timeout=PATIENCE)

    def leave(self) -> None:
        """Stop all programs as the page says. Nobody has had to load a page again."""
        for window in self._windows:
            assert window.mistakes == []
            assert window.page.evaluate("window.sameSince") == "the beginning"
            window.page.context.close()
        assert self.paste("stop") == []
        self.run("wait")
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        assert self._shell.wait(30) == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(self._shell.pid, 0)

    def close(self) -> None:
        """Leave nothing behind, whatever has failed."""
        for log in sorted(self.directory.glob("*.log")):
            print(f"{log.name}:\n{log.read_text('utf-8')}")  # pytest shows it if the test has failed
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        self._shell.wait(30)


Read = Callable[[int], Reader]
"""Begins to read this part."""

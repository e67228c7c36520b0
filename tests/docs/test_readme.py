"""The README is short, its example runs as it stands there, and both languages show the same code."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from functools import partial
from typing import TYPE_CHECKING

from docutils import nodes

from tests.docs.pages import CHECKOUT, code, page
from tests.docs.test_examples import listeners, served
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from playwright.sync_api import Page

    from tests.integration.conftest import RedisServer, StartGateway

README, RUSSIAN = CHECKOUT / "README.rst", CHECKOUT / "README.ru.rst"


def test_the_readme_is_short() -> None:
    for path in (README, RUSSIAN):
        assert len(path.read_text("utf-8").splitlines()) <= 120


def test_both_languages_show_the_same_code() -> None:
    english, russian = (
        [
            block.astext()
            for block in page(path)[0].findall(nodes.literal_block)
            if {"python", "html"} & {*block["classes"]}
        ]
        for path in (README, RUSSIAN)
    )
    assert len(english) == 2
    assert english == russian


def test_the_example_runs(
    stage: ExitStack, redis_server: RedisServer, gateway: StartGateway, tmp_path: Path, browser_page: Page
) -> None:
    config = tomllib.loads(code("readme-config"))
    origin = served(stage, tmp_path)
    assert config.pop("origins") == ["http://localhost:8000"]
    process = gateway(redis_server, services=config.pop("services"), config=config | {"origins": [origin]})
    service = subprocess.Popen(
        [sys.executable, "-c", code("readme-service")], env={**os.environ, "REDIS_URL": redis_server.url}
    )
    stage.callback(service.wait, 30)
    stage.callback(service.terminate)
    wait_until(lambda: listeners(redis_server, "events:chat") == 1, "the service", 30.0)
    script = code("readme-page")
    assert "localhost:3001" in script
    (tmp_path / "page.html").write_text(script.replace("localhost:3001", f"127.0.0.1:{process.port}"), "utf-8")
    bob_page = browser_page.context.new_page()
    redis = redis_server.client()
    for window, name in ((browser_page, "ada"), (bob_page, "bob")):
        window.goto(f"{origin}/page.html#{name}")
        wait_until(partial(redis.hexists, "room:kitchen", f"user_{name}"), f"{name} in the room", 30.0)

    browser_page.locator("input").fill("Hello")
    browser_page.locator("input").press("Enter")

    for window in (browser_page, bob_page):
        window.wait_for_function("document.querySelector('pre').textContent === 'user_ada: Hello\\n'")

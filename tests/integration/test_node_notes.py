"""The example docs/examples/notes-node, driven by the board of the demo in a real browser."""

from __future__ import annotations

import mimetypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Route

from kraftek.daemon.demo import BOARD
from tests.docs.pages import CHECKOUT
from tests.integration import test_board
from tests.service.js.kit import HERE, unpack
from tests.support.node_project import run
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Gateway, Shared

EXAMPLE = CHECKOUT / "docs/examples/notes-node"


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service as its author compiles it, where the kit is installed."""
    place = unpack(tmp_path_factory.mktemp("notes"))
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, place)
    run("node", str(HERE / "node_modules/typescript/bin/tsc"), cwd=place)
    return place / "notes.js"


@pytest.fixture
def demo(shared: Shared, notes: Path) -> Iterator[Gateway]:
    """A gateway that is not in charge of the service, and the service."""
    process = shared.gateway(config={"rooms": {"*": {"presence": True}}})
    test_board.clear_boards(shared)
    redis: Any = shared.redis_server.client()
    environment = {"REDIS_URL": shared.redis_server.url, "PATH": str(Path(shutil.which("node") or "").parent)}
    service = subprocess.Popen(["node", str(notes)], env=environment)

    def wait_for(listening: int) -> None:
        wait_until(lambda: redis.pubsub_numsub("events:stickyNotes")[0][1] == listening, f"{listening} that listen", 20)

    wait_for(1)
    yield process
    service.terminate()
    assert service.wait(20) == 0
    wait_for(0)


@pytest.fixture
def invite(browser: Browser) -> Iterator[test_board.Invite]:
    """Gives people a window, with the files of the board: this gateway does not serve them."""

    def serve(route: Route) -> None:
        path = urlsplit(route.request.url).path
        file = BOARD / ("index.html" if path == "/" else path[1:])
        if file.is_file():
            route.fulfill(path=file, content_type=mimetypes.guess_type(file)[0])
        else:
            route.continue_()

    def prepared(**options: Any) -> Any:
        # To the browser a page that a test makes up is from somewhere else than this machine.
        context = browser.new_context(**options, permissions=["local-network-access"])
        context.route("**/*", serve)
        return context

    yield from test_board.invitations(prepared)


test_what_one_does_the_other_sees = test_board.test_what_one_does_the_other_sees
test_who_comes_later_sees_what_is_there = test_board.test_who_comes_later_sees_what_is_there
test_shows_who_comes_and_goes = test_board.test_shows_who_comes_and_goes

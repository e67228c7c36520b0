"""The integration tests' real parts, for the examples of the documentation as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.docs.reader import Read, Reader
from tests.integration.conftest import (
    auth_service,
    browser,
    chromium_path,
    connect,
    gateway,
    redis_server,
    redis_servers,
    service,
    stage,
    starter,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from pathlib import Path

    from playwright.sync_api import Browser, Page

__all__ = [
    "auth_service",
    "browser",
    "browser_page",
    "chromium_path",
    "connect",
    "gateway",
    "read",
    "redis_server",
    "redis_servers",
    "service",
    "stage",
    "starter",
]


@pytest.fixture
def browser_page(browser: Browser, stage: ExitStack) -> Page:
    """An empty page, in a browser's window of its own."""
    context = browser.new_context()
    stage.callback(context.close)
    context.set_default_timeout(30_000)
    return context.new_page()


@pytest.fixture
def read(tmp_path: Path, browser: Browser) -> Iterator[Read]:
    """Somebody who goes through the tutorial, and in the end leaves nothing behind."""
    readers: list[Reader] = []

    def begin(part: int) -> Reader:
        reader = Reader(part, tmp_path, browser)
        readers.append(reader)
        for block in ("files", "start"):
            assert reader.paste(block) == []
        return reader

    try:
        yield begin
        for reader in readers:
            reader.leave()
    finally:
        for reader in readers:
            reader.close()

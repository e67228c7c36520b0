"""The integration tests' real parts, for the examples of the documentation as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

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
    from contextlib import ExitStack

    from playwright.sync_api import Browser, Page

__all__ = [
    "auth_service",
    "browser",
    "browser_page",
    "chromium_path",
    "connect",
    "gateway",
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

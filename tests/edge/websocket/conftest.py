"""What the tests of the WebSocket edge share."""

from __future__ import annotations

import pytest
import txaio.tx


@pytest.fixture(autouse=True)
def _autobahns_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autobahn's timers follow ``txaio.config.loop``: whatever a test sets it to, it is as before afterwards."""
    monkeypatch.setattr(txaio.tx.config, "loop", None)

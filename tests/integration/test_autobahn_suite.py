"""The cases of the Autobahn test suite against the production WebSocket edge, with the fast path on or off.

They are run by kosoku, which drives the suite's own case files. Its verdicts other than OK are: NON-STRICT, which
breaks a recommendation, and INFORMATIONAL, where RFC 6455 leaves it open.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.fastpath import FASTPATH
from tests.support.waiting import Lines

ECHO = Path(__file__).resolve().parent / "websocket_echo.py"
CASES = ECHO.with_name("autobahn_cases.py")

INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}
"""A close in the middle of a large message, and close codes that nobody may use: the RFC does not say what follows."""


LEFT_OUT = ("12.", "13.") if FASTPATH else ("9.", "12.", "13.")
"""Those of compression have a test of their own; large messages (9), which take long, are for the fast path alone."""

TIMEOUT = 280.0 if os.environ.get("AUTOBAHN_SUITE") != "all" else None
"""Seconds for all cases of a test; all sizes of compressed messages take what they take."""


@contextmanager
def echo_server(*arguments: str) -> Iterator[str]:
    """The URL of an echo server of its own."""
    command = [sys.executable, "-P", str(ECHO), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = Lines(process.stdout)
        yield f"ws://127.0.0.1:{int(lines.next('its port', 30.0))}"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0
        lines.rest()


def run_cases(url: str, *patterns: str) -> tuple[list[str], dict[str, str]]:
    """The names of all cases there are, and the verdicts on those that the patterns choose."""
    command = [sys.executable, "-P", str(CASES), url, *patterns]
    run = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=TIMEOUT).stdout)
    return run["cases"], run["verdicts"]


def test_every_case() -> None:
    with echo_server() as url:
        cases, verdicts = run_cases(url, "*", *(f"!{group}*" for group in LEFT_OUT))
    expected = {case: "OK OK" for case in cases if not case.startswith(LEFT_OUT)}
    expected.update(dict.fromkeys(INFORMATIONAL, "INFORMATIONAL INFORMATIONAL"))
    assert len(expected) >= (301 if FASTPATH else 247)
    assert verdicts == expected


GROUPS = [*(f"12.{kind}" for kind in range(1, 6)), *(f"13.{kind}" for kind in range(1, 8))]


def test_cases_of_compression() -> None:
    """A thousand messages each: of five kinds of data (12), and with seven sets of parameters (13).

    All eighteen sizes of a group take a minute or more, and the suite gives each its own time-out, which a loaded
    machine does not keep: unless ``AUTOBAHN_SUITE=all`` asks for them the smallest is run, 16 bytes. The other ones
    differ in numbers alone.
    """
    sizes = range(1, 19 if os.environ.get("AUTOBAHN_SUITE") == "all" else 2)
    chosen = [f"{group}.{size}" for group in GROUPS for size in sizes]
    with echo_server("--compression") as url:
        _, verdicts = run_cases(url, *chosen)
    assert verdicts == dict.fromkeys(chosen, "OK OK")

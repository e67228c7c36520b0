"""The cases of the Autobahn test suite against the production WebSocket edge, with the fast path on.

They are run by kosoku, which drives the suite's own case files. Its verdicts other than OK are: NON-STRICT, which
breaks a recommendation, and INFORMATIONAL, where RFC 6455 leaves it open.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kosoku import FailureError, run_fuzzingclient
from kosoku.cases import CASES

ECHO = Path(__file__).resolve().parent / "websocket_echo.py"

COMPRESSED = ["12.*", "13.*"]

INFORMATIONAL = {"7.1.6", "7.13.1", "7.13.2"}
"""A close in the middle of a large message, and close codes that nobody may use: the RFC does not say what follows."""


@contextmanager
def echo_server(*arguments: str) -> Iterator[str]:
    """The URL of an echo server of its own."""
    command = [sys.executable, "-P", str(ECHO), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"ws://127.0.0.1:{int(process.stdout.readline())}"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


def verdicts(url: str, cases: Sequence[str] | None = None, without: Sequence[str] | None = None) -> dict[str, str]:
    """The verdict on the messages and on the close, by case."""
    try:
        results = asyncio.run(run_fuzzingclient(url, cases, without))
    except FailureError as failure:
        results = failure.results
    return {result.case_id: f"{result.behavior.value} {result.behavior_close.value}" for result in results}


def test_every_case() -> None:
    expected = {case: "OK OK" for case in CASES if not case.startswith(("12.", "13."))}
    expected.update(dict.fromkeys(INFORMATIONAL, "INFORMATIONAL INFORMATIONAL"))
    assert len(expected) >= 301
    with echo_server() as url:
        assert verdicts(url, without=COMPRESSED) == expected

"""The cases of the Autobahn test suite against the production WebSocket edge, with the fast path on.

They are run by kosoku, which drives the suite's own case files. Its verdicts other than OK are: NON-STRICT, which
breaks a recommendation, and INFORMATIONAL, where RFC 6455 leaves it open.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ECHO = Path(__file__).resolve().parent / "websocket_echo.py"
CASES = ECHO.with_name("autobahn_cases.py")

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


def test_every_case() -> None:
    with echo_server() as url:
        command = [sys.executable, "-P", str(CASES), url, *COMPRESSED]
        run = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    expected = {case: "OK OK" for case in run["cases"] if not case.startswith(("12.", "13."))}
    expected.update(dict.fromkeys(INFORMATIONAL, "INFORMATIONAL INFORMATIONAL"))
    assert len(expected) >= 301
    assert run["verdicts"] == expected

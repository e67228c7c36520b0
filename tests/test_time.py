"""What waits goes by a clock that nobody sets. The wall clock is read only where somebody else is told the time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent / "kraftek"

WALL_CLOCK = {
    "core/access/cache.py": "compares with expiresAt, and tells other gateways until when an answer holds",
    "core/access/not_before.py": "says when tokens were revoked, as they say when they were issued",
    "core/access_watch.py": "compares with expiresAt, and notices that the clock was set",
    "core/deliveries.py": "compares with expiresAt",
    "core/gateway.py": "stamps the events that services get",
    "core/rooms/room_cache.py": "stamps what services are told of who enters and leaves",
    "core/service_events.py": "stamps the events that services send each other",
    "daemon/assembly/surroundings.py": "hands it to these",
    "edge/auth_service.py": "compares with expiresAt, which the auth service says",
    "edge/own_checker.py": "compares with expiresAt, which the checker says",
    "edge/jwt_checker.py": "compares with exp and iat, which tokens say",
    "service/testing.py": "stamps the events that a test sends, as the gateway does",
}
"""Why each of them needs Unix time."""

READS = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow", "date.today"}


def uses(source: str) -> Iterator[tuple[int, str]]:
    """Where a module reads the wall clock, or the clock of a reactor that may go by it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            *_, owner, attribute = name.split(".")
            if f"{owner}.{attribute}" in READS or (attribute == "seconds" and owner.endswith("reactor")):
                yield node.lineno, name
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from ((node.lineno, f"time.{alias.name}") for alias in node.names if f"time.{alias.name}" in READS)


MODULES = sorted(str(path.relative_to(CHECKOUT)) for path in CHECKOUT.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_the_wall_clock_is_read_where_somebody_is_told_the_time(module: str) -> None:
    found = list(uses((CHECKOUT / module).read_text("utf-8")))
    if module in WALL_CLOCK:
        assert found, "it is on the list for nothing"
        assert not [name for _, name in found if "seconds" in name]
    else:
        assert not found, f"kraftek/{module} reads the wall clock; see {__name__}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time\ntime.time()", ["time.time"]),
        ("def f(now=time.time): ...", ["time.time"]),
        ("from time import monotonic, time", ["time.time"]),
        ("datetime.datetime.now(UTC)", ["datetime.datetime.now"]),
        ("self._reactor.seconds()", ["self._reactor.seconds"]),
        ("now = reactor.seconds", ["reactor.seconds"]),
        ("self._clock.seconds()\ntime.monotonic()\nMonotonicClock(reactor).seconds()\nreactor.callLater(1, f)", []),
    ],
)
def test_what_counts_as_reading_it(source: str, found: list[str]) -> None:
    assert [name for _, name in uses(source)] == found

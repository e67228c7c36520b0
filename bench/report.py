"""Medians, the table, the bars and the JSON. `bench.__main__` prints and writes what this makes of all rows."""

import importlib.metadata
import itertools
import os
import platform
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench.spread import Spread
from bench.workloads import Effort, Row

LIBRARIES = ("kraftek-gateway", "twisted", "autobahn", "txredisapi", "hiredis", "msgspec", "uvloop", "picows", "orjson")

WIDTHS = (8, 15, 9, 8, 8, 9, 7, 10)
"""Characters of each column of numbers."""

IDLE_HELD, IDLE_PING = 8000, 25.0
"""The idle bar's connections, and the gateway's default seconds between two pings of one."""

CORES_FOR_TWO = 6
"""Two gateways, two loads, Redis and the service: on fewer cores two processes cannot show twice the rate."""


class Line(msgspec.Struct):
    """One contender's line of the table: a case over all rounds."""

    workload: str
    case: str
    contender: str
    per: str
    rounds: int
    cpu_us: Spread | None
    rate: Spread | None
    p50_ms: Spread | None
    p99_ms: Spread | None
    kib: Spread | None
    cores: dict[str, float]
    """Medians, by role."""
    gateway_cores: Spread | None
    failure: str | None


class Bar(msgspec.Struct):
    """A promise, and what came of it."""

    promise: str
    limit: float
    value: float | None
    """``None``: not measured."""
    at_least: bool = False
    note: str = ""

    @property
    def verdict(self) -> str:
        """Say it in a word."""
        if self.value is None:
            return "not measured"
        holds = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "pass" if holds else "falls short"


def summarize(rows: list[Row]) -> list[Line]:
    """Give a line for each case and contender, in the order of their first row; failed rounds do not count."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.workload, row.case, row.contender), []).append(row)
    order = list(dict.fromkeys((workload, case) for workload, case, _ in groups))
    return [_line(group) for key, group in sorted(groups.items(), key=lambda item: order.index(item[0][:2]))]


def _line(group: list[Row]) -> Line:
    good = [row for row in group if row.failure is None]
    roles = dict.fromkeys(role for row in good for role in row.cores)
    return Line(
        workload=group[0].workload,
        case=group[0].case,
        contender=group[0].contender,
        per=group[0].per,
        rounds=len(good),
        cpu_us=Spread.of(row.cpu_us for row in good),
        rate=Spread.of(row.rate for row in good),
        p50_ms=Spread.of(row.p50_ms for row in good),
        p99_ms=Spread.of(row.p99_ms for row in good),
        kib=Spread.of(row.kib for row in good),
        cores={role: statistics.median(row.cores.get(role, 0.0) for row in good) for role in roles},
        gateway_cores=Spread.of(row.gateway_cores for row in good),
        failure=next((row.failure for row in group if row.failure), None),
    )


def table(lines: list[Line]) -> str:
    """Give the table as text."""
    head = ("contender", "CPU µs", "least–most", "/s", "p50 ms", "p99 ms", "KiB/conn", "core %", "× kraftek")
    text: list[str] = []
    for (workload, case), group in itertools.groupby(lines, lambda line: (line.workload, line.case)):
        panel = list(group)
        title = f"{workload}: {case}   (per {panel[0].per})" if case else workload
        text += ["", title, _columns(head)]
        ours = next((line.cpu_us for line in panel if line.contender == "kraftek"), None)
        for line in panel:
            if line.rounds and case:
                text.append(_columns(_cells(line, ours)))
            if line.failure:
                text.append(f"{line.contender:18}FAILED  {line.failure}")
    return "\n".join(text[1:])


def _cells(line: Line, ours: Spread | None) -> tuple[str, ...]:
    cpu = line.cpu_us
    return (
        line.contender,
        _number(cpu, 1),
        f"{cpu.least:.1f}–{cpu.most:.1f}" if cpu else "",
        f"{line.rate.median:,.0f}" if line.rate else "",
        _number(line.p50_ms, 2),
        _number(line.p99_ms, 2),
        _number(line.kib, 1),
        f"{100 * line.gateway_cores.median:.1f}" if line.gateway_cores else "",
        f"{cpu.median / ours.median:.2f}" if cpu and ours else "",
    )


def _columns(cells: tuple[str, ...]) -> str:
    return f"{cells[0]:18}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], WIDTHS, strict=True))


def _number(spread: Spread | None, digits: int) -> str:
    return f"{spread.median:.{digits}f}" if spread else ""


def bars(lines: list[Line], effort: Effort) -> list[Bar]:
    """Give the promises, held against the medians."""
    by_key = {(line.workload, line.case, line.contender): line for line in lines}
    cases = list(dict.fromkeys((line.workload, line.case) for line in lines))

    def cpu(workload: str, case: str, contender: str) -> float | None:
        line = by_key.get((workload, case, contender))
        return line.cpu_us.median if line and line.cpu_us else None

    found: list[Bar] = []
    for contender, limit in (("kraftek", 0.45), ("kraftek-socketio", 0.55)):
        for workload, case in cases:
            if workload == "roundtrip" and case:
                value = _ratio(cpu(workload, case, contender), cpu(workload, case, "node"))
                found.append(Bar(f"round trip, {case}: {contender} / node, CPU per message", limit, value))
    for in_flight in (1, 8):
        asked, told = (cpu("requests", f"{case}, {in_flight} in flight", "kraftek") for case in ("request", "event"))
        promise = f"round trip, {in_flight} in flight: request / event, CPU per message"
        found.append(Bar(promise, 1.35, _ratio(asked, told)))
    found.append(
        Bar(
            "fan-out to 1,000: kraftek / C loop of send(), CPU per delivered message",
            1.25,
            _ratio(cpu("fanout", "room of 1,000", "kraftek"), cpu("fanout", "room of 1,000", "cloop")),
        )
    )

    def growth(contender: str) -> float | None:
        return _ratio(cpu("fanout", "room of 8,000", contender), cpu("fanout", "room of 100", contender))

    floor = growth("cloop")
    found.append(
        Bar(
            "fan-out: 8,000 / 100, CPU per delivered message",
            1.3,
            growth("kraftek"),
            note=f"the C loop itself: {floor:.2f}" if floor else "",
        )
    )
    found += _connections(lines, effort, cpu)
    found.append(_two_processes(by_key))
    return found


def _connections(lines: list[Line], effort: Effort, cpu: Callable[[str, str, str], float | None]) -> list[Bar]:
    idle = next((line for line in lines if line.workload == "idle" and line.contender == "kraftek"), None)
    storm = next((line.case for line in lines if line.workload == "storm"), "")
    used = idle.gateway_cores.median if idle and idle.gateway_cores else None
    held, seconds = effort.idle, effort.ping_seconds
    note = ""
    if used is not None and (held, seconds) != (IDLE_HELD, IDLE_PING):
        used *= IDLE_HELD / held * seconds / IDLE_PING
        note = f"estimated from {held:,} pinged every {seconds:g} s; --full measures it"
    return [
        Bar("idle connection, KiB resident", 12.0, idle.kib.median if idle and idle.kib else None),
        Bar(
            f"{IDLE_HELD:,} idle connections pinged every {IDLE_PING:g} s, % of a core",
            5.0,
            None if used is None else 100 * used,
            note=note,
        ),
        Bar(
            "storm: kraftek / plain Autobahn, CPU per connection",
            0.5,
            _ratio(cpu("storm", storm, "kraftek"), cpu("storm", storm, "autobahn")),
        ),
    ]


def _two_processes(by_key: dict[tuple[str, str, str], Line]) -> Bar:
    one = by_key.get(("processes", "1 on one port", "kraftek"))
    two = by_key.get(("processes", "2 on one port", "kraftek"))
    bar = Bar("two processes on one port / one, messages a second", 1.8, None, at_least=True)
    if one and two and one.rate and two.rate and one.cpu_us and two.cpu_us:
        cores = os.cpu_count() or 1
        measured = two.rate.median / one.rate.median
        by_cost = 2 * one.cpu_us.median / two.cpu_us.median
        if cores >= CORES_FOR_TWO:
            bar.value = measured
        else:
            bar.value = by_cost
            bar.note = (
                f"by cost per message, 2 × {one.cpu_us.median:.1f} / {two.cpu_us.median:.1f} µs: what they carry with "
                f"a core each; measured on {cores} cores, all shared with the load: {measured:.2f}"
            )
    return bar


def _ratio(upper: float | None, lower: float | None) -> float | None:
    return upper / lower if upper is not None and lower else None


def bars_text(found: list[Bar]) -> str:
    """Give the bars as text."""
    text = []
    for bar in found:
        value = "–" if bar.value is None else f"{bar.value:.2f}"
        sign = "≥" if bar.at_least else "≤"
        note = f"  ({bar.note})" if bar.note else ""
        text.append(f"{bar.verdict:12}  {value:>6} {sign} {bar.limit:<5g} {bar.promise}{note}")
    return "\n".join(text)


def sharing(lines: list[Line]) -> str:
    """Say who used the machine in the runs through several processes."""
    text = []
    for line in lines:
        if line.workload == "processes" and line.rounds:
            used = ", ".join(f"{role} {100 * cores:.0f} %" for role, cores in line.cores.items())
            text.append(f"processes, {line.case}, of a core: {used}")
    return "\n".join(text)


def machine() -> dict[str, str]:
    """Say what this was measured on."""
    models = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    about = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": ", ".join(sorted(models)) or platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    for library in LIBRARIES:
        try:
            about[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return about

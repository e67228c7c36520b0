"""The command line: ``python -m bench``. README.rst says how to use it and how to read what it prints."""

import argparse
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench import chart, report
from bench.contenders import CONTENDERS, Contender, UnavailableError
from bench.measure import allow_many_files
from bench.stage import NotStartedError, Stage, open_stage
from bench.workloads import FULL, QUICK, WORKLOADS, Effort, FailedError, Row

UNAVAILABLE = "cannot run here: "
"""How the failure begins that is the machine's: it leaves the exit status alone."""


def main() -> int:
    """Run what was asked for; 1 when a run failed."""
    asked = _arguments()
    effort = FULL if asked.full else QUICK
    rounds = asked.rounds or effort.rounds
    asked.out.mkdir(parents=True, exist_ok=True)
    logs = asked.out / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    allow_many_files(max(effort.idle, *effort.crowds) + 1000)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped

    rows: list[Row] = []
    with open_stage(logs) as stage:
        for number in range(1, rounds + 1):
            for workload, contender in _pairs(effort, asked.only, asked.contender):
                most = (effort.most_rounds.get(name, rounds) for name in (workload, contender.name))
                if not asked.rounds and number > min(most):
                    continue
                began = time.monotonic()
                rows += _run(stage, workload, contender, effort)
                took = time.monotonic() - began
                print(f"round {number}/{rounds} {workload} {contender.name} {took:.1f} s", file=sys.stderr, flush=True)

    lines = report.summarize(rows)
    bars = report.bars(lines, effort)
    about = report.machine()
    text = "\n\n".join(
        part
        for part in (
            " · ".join(f"{name} {value}" for name, value in about.items()),
            report.table(lines),
            report.sharing(lines),
            report.bars_text(bars),
        )
        if part
    )
    print(text)
    (asked.out / "bench.txt").write_text(text + "\n")
    (asked.out / "bench.svg").write_text(chart.svg(lines))
    written = {"machine": about, "effort": effort, "lines": lines, "bars": bars, "rows": rows}
    (asked.out / "bench.json").write_bytes(msgspec.json.format(msgspec.json.encode(written)))
    print(f"\nWritten to {asked.out}: bench.txt, bench.json, bench.svg")
    return int(any(row.failure and not row.failure.startswith(UNAVAILABLE) for row in rows))


def _run(stage: Stage, workload: str, contender: Contender, effort: Effort) -> Iterator[Row]:
    try:
        yield from WORKLOADS[workload](stage, contender, effort)
    except UnavailableError as error:
        yield Row(workload=workload, contender=contender.name, failure=f"{UNAVAILABLE}{error}")
    except (NotStartedError, FailedError, RuntimeError) as error:
        yield Row(workload=workload, contender=contender.name, failure=f"{type(error).__name__}: {error}")


def _pairs(effort: Effort, only: list[str], names: list[str]) -> list[tuple[str, Contender]]:
    """Give who does what in one round, the contenders of a workload one after another."""
    return [
        (workload, contender)
        for workload in only or WORKLOADS
        for contender in CONTENDERS
        if workload in contender.workloads
        and contender.name in (names or effort.contenders.get(workload, (contender.name,)))
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure this gateway beside others.")
    parser.add_argument("--full", action="store_true", help="all contenders and sizes; takes a quarter of an hour")
    parser.add_argument("--only", action="append", default=[], metavar="WORKLOAD", choices=WORKLOADS)
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--contender", action="append", default=[], metavar="NAME", choices=names)
    parser.add_argument("--rounds", type=int, metavar="N")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

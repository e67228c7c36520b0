"""Runs the simulation for many seeds, or one seed in detail: ``make simulate SEEDS=10000``, ``make simulate SEED=7``.

Of a seed that fails the shortest program that fails in the same way is printed, and the story of that run.
"""

from __future__ import annotations

import argparse
import gc
import sys
from time import perf_counter

from twisted.logger import globalLogBeginner

from tests.simulation.programs import program_of
from tests.simulation.shrinking import failure_of, shortened
from tests.simulation.steps import Program, run

_SHOWN = 10
"""Failures of which the seed is tried again for a shorter program; of more only the first line is printed."""


def show(seed: int, program: Program, error: Exception) -> None:
    """How it comes to this failure."""
    program = shortened(program, error)
    print(f"seed {seed}: {program.setup}")
    for step in program.steps:
        print(f"    {step}")
    story: list[str] = []
    try:
        run(program, story)
    except Exception as again:  # noqa: BLE001  # that is what it is about
        error = again
    print("\n".join(story))
    print(f"{type(error).__name__}: {error}\nagain: make simulate SEED={seed}", flush=True)


def main() -> int:
    """Run; the exit status is 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--without", default="", help="kinds of steps to leave out, such as Flush,FailOver")
    options = parser.parse_args()
    without = frozenset(options.without.split(","))
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    gc.disable()  # each run collects by itself
    began, said, steps, failures = perf_counter(), perf_counter(), 0, 0
    for done, seed in enumerate(seeds, 1):
        program = program_of(seed, without)
        if done % 20 == 1:
            gc.unfreeze()
            gc.collect()
            gc.freeze()
        steps += len(program.steps)
        error = failure_of(program)
        if error is not None:
            failures += 1
            print(f"seed {seed}: {str(error).splitlines()[0][:300]}", flush=True)
            if failures <= _SHOWN:
                show(seed, program, error)
        if perf_counter() - said > 10:
            said = perf_counter()
            print(
                f"{done} of {len(seeds)} seeds, {steps} steps, {said - began:.0f} s, {failures} failed", file=sys.stderr
            )
    print(f"{len(seeds)} seeds, {steps} steps, {perf_counter() - began:.1f} s, {failures} failed")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())

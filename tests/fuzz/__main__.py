"""Fuzzing with coverage as the guide: ``make fuzz``, ``make fuzz TARGET=native SECONDS=600``.

For each target atheris (libFuzzer for Python) makes inputs of those in ``tests/fuzz/corpus/``, and keeps those that
reach something new in a folder of the environment, to go on from there the next time. An input for which something does
not hold is a finding: it is shortened, saved and printed. ``make fuzz TARGET=native INPUT=file`` runs one by itself.
``--keep 40`` makes the corpus anew of all that was found by then.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stderr, suppress
from hashlib import sha256
from io import StringIO
from itertools import count
from pathlib import Path
from subprocess import run
from traceback import print_exception
from typing import Any

from tests.fuzz.targets import INSTRUMENTED, TARGETS, target

WORK = Path(sys.prefix) / "fuzzing"
"""Where the inputs go that were found, and the findings."""

_MEASURED = 50
"""Of so many inputs one is measured, which takes ten times as long."""


def fuzz(name: str, flags: list[str]) -> None:
    """Fuzz one target, in this process, which libFuzzer ends."""
    import atheris

    # It prints a line for each module.
    with redirect_stderr(StringIO()), atheris.instrument_imports(include=["kraftek", *INSTRUMENTED.get(name, [])]):
        it = target(name)
    from tests.fuzz.watch import try_out

    quiet()

    numbers = count()

    def once(data: bytes) -> None:
        try_out(it, data, measured=next(numbers) % _MEASURED == 0)

    atheris.Setup([sys.argv[0], *flags], once)
    atheris.Fuzz()


def quiet() -> None:
    """The log of the code under test is not printed."""
    from twisted.logger import globalLogBeginner

    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)


def show(name: str, path: Path) -> bool:
    """Whether what is in the file is a finding; then it is printed."""
    from tests.fuzz.corpora import failure_of

    data = path.read_bytes()
    error = failure_of(target(name), data)
    if error is None:
        print(f"{name}: nothing wrong with {data!r}")
        return False
    print_exception(error)
    print(f"{name}: {data!r}\nagain: make fuzz TARGET={name} INPUT={path}", flush=True)
    return True


def found(name: str, folder: Path) -> None:
    """Shorten and print what libFuzzer has saved. What was mended meanwhile is forgotten."""
    from tests.fuzz.corpora import shortened

    for path in folder.glob("*"):
        if path.name.startswith("crash-"):
            path.write_bytes(shortened(target(name), path.read_bytes()))
        if not show(name, path):
            path.unlink()


def main() -> int:
    """Run; the exit status is 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", nargs="*", help="the targets: all of them unless given")
    parser.add_argument("--seconds", type=int, default=60, help="for each")
    parser.add_argument("--input", type=Path, help="run this file alone")
    parser.add_argument("--keep", type=int, help="so many inputs of those found are the corpus from now on")
    options = parser.parse_args()
    from tests.fuzz.corpora import CORPUS, corpus_of, keep

    quiet()
    names = options.target or list(TARGETS)
    if options.input is not None:
        return int(show(names[0], options.input))
    failed = []
    for name in names:
        it, grown, findings = target(name), WORK / name / "corpus", WORK / name / "findings"
        if options.keep is not None:
            inputs = [*it.seeds, *corpus_of(name).values(), *corpus_of("corpus", WORK / name).values()]
            print(f"{name}: {keep(it, inputs, options.keep)} inputs kept", flush=True)
            continue
        for folder in (grown, findings, CORPUS / name):
            folder.mkdir(parents=True, exist_ok=True)
        for seed in it.seeds:
            (grown / sha256(seed).hexdigest()).write_bytes(seed)
        flags = [
            f"-max_total_time={options.seconds}",
            f"-max_len={it.longest}",
            f"-artifact_prefix={findings}/",
            "-timeout=20",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            str(grown),
            str(CORPUS / name),
        ]
        print(f"{name}: {options.seconds} s", flush=True)
        with suppress(KeyboardInterrupt):
            done = run([sys.executable, "-m", "tests.fuzz", "fuzz", name, *flags], check=False)
            if done.returncode:
                failed.append(name)
                found(name, findings)
    print(f"{len(names)} targets, findings in {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    arguments: Any = sys.argv[1:]
    if arguments[:1] == ["fuzz"]:
        fuzz(arguments[1], arguments[2:])
    else:
        sys.exit(main())

"""The inputs that are kept for each target: few and small, each of which reaches something that no other one does."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

import kraftek
from tests.fuzz.watch import Target, try_out

__all__ = ["CORPUS", "FINDING", "corpus_of", "failure_of", "keep", "shortened"]

CORPUS = Path(__file__).parent / "corpus"

_PACKAGE = str(Path(kraftek.__file__).parent)
FINDING = "found-"
"""What the names of files begin with that once were findings."""

_MANY = 3
"""Binary digits of the number of times beyond which they are all the same."""

_TRIES = 3_000
"""Runs after which a finding is short enough."""


def corpus_of(name: str, folder: Path = CORPUS) -> dict[str, bytes]:
    """The inputs of a target by the names of their files."""
    return {path.name: path.read_bytes() for path in sorted((folder / name).glob("*"))}


def failure_of(target: Target, data: bytes) -> Exception | None:
    """What does not hold for this input."""
    try:
        try_out(target, data)
    except Exception as error:  # noqa: BLE001  # whatever it is
        return error
    return None


def shortened(target: Target, data: bytes) -> bytes:
    """A shorter input that fails in the same way, if one is found by leaving bytes out."""
    kind, tries = type(failure_of(target, data)), 0
    size = len(data) // 2
    while size:
        at = 0
        while at < len(data) and tries < _TRIES:
            tries += 1
            shorter = data[:at] + data[at + size :]
            if type(failure_of(target, shorter)) is kind:
                data = shorter
            else:
                at += size
        size //= 2
    return data


def keep(it: Target, inputs: Iterable[bytes], most: int) -> int:
    """Make a target's corpus of these inputs, beside its findings, which stay; returns how many were taken.

    Those that reach most of what no other one does, and of two that reach the same the smaller one.
    """
    folder = CORPUS / it.name
    folder.mkdir(parents=True, exist_ok=True)
    seen = {data: _reached(it, data) for data in set(inputs) if len(data) <= it.longest}
    found = {data: reached for data, reached in seen.items() if reached is not None}
    covered: set[Any] = set()
    for name, data in corpus_of(it.name, CORPUS).items():
        if name.startswith(FINDING):
            covered |= _reached(it, data) or set()
        else:
            (folder / name).unlink()
    kept = 0
    while found and kept < most:
        best = max(found, key=lambda data: (len(found[data] - covered), -len(data), data))
        reached = found.pop(best)
        if reached <= covered:
            break
        covered |= reached
        (folder / sha256(best).hexdigest()[:12]).write_bytes(best)
        kept += 1
    return kept


def _reached(it: Target, data: bytes) -> set[Any] | None:
    """Each step from one line to another, with how often it was taken, roughly; ``None`` when something fails."""
    steps: Counter[Any] = Counter()

    def local(last: int) -> Any:
        def step(frame: FrameType, event: str, _: object) -> Any:
            nonlocal last
            if event == "line":
                steps[frame.f_code.co_filename, last, frame.f_lineno] += 1
                last = frame.f_lineno
            return step

        return step

    def called(frame: FrameType, event: str, _: object) -> Any:
        return local(0) if frame.f_code.co_filename.startswith(_PACKAGE) else None

    before = sys.gettrace()  # of coverage
    sys.settrace(called)
    try:
        it.run(data)
    except Exception:  # noqa: BLE001  # whatever it is, it is no input to keep
        return None
    finally:
        sys.settrace(before)
    return {(step, min(number.bit_length(), _MANY)) for step, number in steps.items()}

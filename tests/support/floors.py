"""The floor of each module's coverage: ``make coverage`` gives this the report of what ``make check`` runs.

``[tool.kraftek.coverage]`` in pyproject.toml says how many percent of a module's lines and branches those tests reach
at least: ``floor``, or less for the modules of the table ``lower``. What only a process or a Redis reaches counts as
not reached, so that a low floor is no disgrace: it says that others watch over the module.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

__all__ = ["complaints"]


def complaints(floor: float, lower: Mapping[str, float], reached: Mapping[str, float]) -> list[str]:
    """What is wrong with the coverage ``reached``, in percent by module."""
    found = [f"{module}: {percent:.2f} %, below its floor of {own}" for module, percent in reached.items()
             if percent < (own := lower.get(module, floor))]  # fmt: skip
    found += [f"{module}: {reached[module]:.2f} %, so that it needs no floor below {floor}" for module in lower
              if reached.get(module, 0) >= floor]  # fmt: skip
    found += [f"{module}: has a lower floor, and there is no such module" for module in lower.keys() - reached]
    return sorted(found)


def main(report: str) -> int:
    """Read a report of ``coverage json``; say what is wrong, and return the exit status."""
    settings = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["tool"]["kraftek"]["coverage"]
    files = json.loads(Path(report).read_text("utf-8"))["files"]
    reached = {path: file["summary"]["percent_covered"] for path, file in files.items()}
    wrong = complaints(settings["floor"], settings["lower"], reached)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

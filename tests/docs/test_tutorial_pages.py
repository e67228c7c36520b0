"""The pages of the tutorial show the files beside them, and name what there is."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from docutils import nodes

from tests.docs.pages import CHECKOUT, PARTS, code, page


def files_of(part: Path) -> dict[str, list[str]]:
    """The lines of the files beside a page, by their path there."""
    folder = part.with_suffix("")
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_text("utf-8").splitlines() for file in files}


def test_each_part_has_a_page_and_a_folder() -> None:
    assert [path.name[:2] for path in PARTS] == ["1-", "2-", "3-", "4-", "5-", "6-"]
    there = {path.name for path in PARTS[0].parent.iterdir()}
    assert there == {name for path in PARTS for name in (path.name, path.stem)}


def test_the_pages_show_the_files_or_what_changes_in_them() -> None:
    before: dict[str, list[str]] = {}
    for number, path in enumerate(PARTS, 1):
        files = files_of(path)
        for name, lines in files.items():
            changes = [*difflib.unified_diff(before[name], lines, n=1, lineterm="")][2:] if name in before else lines
            expected = "\n".join(line.rstrip() for line in changes).rstrip()
            assert code(f"tutorial-{number}-{Path(name).name}") == expected, f"{path.name} does not show {name}"
        before |= files


def test_the_first_part_is_30_lines() -> None:
    files = files_of(PARTS[0])
    assert sorted(files) == ["counter.py", "gateway.toml", "public/index.html"]
    assert len([line for name in files if name != "gateway.toml" for line in files[name] if line]) <= 30


def test_the_metrics_are_those_of_the_gateway() -> None:
    listed = {literal.astext() for literal in page(CHECKOUT / "docs/metrics.rst")[0].findall(nodes.literal)}
    text = "".join(file.read_text("utf-8") for file in (PARTS[5], PARTS[5].with_suffix("") / "watch.py"))
    named = set(re.findall(r"kraftek_[a-z_]+", text))
    assert len(named) > 10
    assert named <= listed

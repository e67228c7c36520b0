"""What falls below its floor is said, and so is a floor that is not needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.floors import complaints, main


def test_enough_is_enough() -> None:
    assert complaints(95, {"b.py": 20}, {"a.py": 95.0, "b.py": 20.0, "c.py": 100.0}) == []


@pytest.mark.parametrize(
    ("lower", "reached", "complaint"),
    [
        ({}, {"a.py": 94.96}, "a.py: 94.96 %, below its floor of 95"),
        ({"a.py": 20}, {"a.py": 19.9}, "a.py: 19.90 %, below its floor of 20"),
        ({"a.py": 20}, {"a.py": 95.0}, "a.py: 95.00 %, so that it needs no floor below 95"),
        ({"a.py": 20}, {}, "a.py: has a lower floor, and there is no such module"),
    ],
)
def test_what_is_wrong_is_said(lower: dict[str, float], reached: dict[str, float], complaint: str) -> None:
    assert complaints(95, lower, reached) == [complaint]


def test_the_report_of_coverage_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text('[tool.kraftek.coverage]\nfloor = 95\nlower = { "a.py" = 90 }\n')
    for percent, status in ((90.0, 0), (89.0, 1)):
        report = {"files": {"a.py": {"summary": {"percent_covered": percent}}}}
        Path("report.json").write_text(json.dumps(report))
        assert main("report.json") == status
    assert capsys.readouterr().out == "a.py: 89.00 %, below its floor of 90\n"

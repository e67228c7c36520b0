"""`bench.report` and `bench.chart`: from rows to table, bars and picture."""

from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest

from bench import chart, report
from bench.spread import Spread
from bench.workloads import FULL, QUICK, Row


def row(contender: str, cpu_us: float, *, workload: str = "roundtrip", case: str = "1 in flight, 64 B") -> Row:
    return Row(workload=workload, contender=contender, case=case, per="message", cpu_us=cpu_us, rate=1e6 / cpu_us)


def idle(core: float) -> Row:
    made = row("kraftek", 1.0, workload="idle", case="connections")
    made.kib = 10.5
    made.cpu_us = None
    made.cores = {"gateway 1": core, "redis": 0.5}
    return made


def bar(rows: list[Row], promise: str) -> report.Bar:
    (found,) = [each for each in report.bars(report.summarize(rows), FULL) if promise in each.promise]
    return found


def test_a_line_is_the_median_of_its_rounds() -> None:
    (line,) = report.summarize([row("node", cpu) for cpu in (90.0, 130.0, 100.0)])
    assert line.rounds == 3
    assert line.cpu_us == Spread(median=100.0, least=90.0, most=130.0)


def test_a_failed_round_counts_for_nothing_but_is_told() -> None:
    failed = row("node", 1.0)
    failed.failure = "7 delivered of 8"
    (line,) = report.summarize([row("node", 100.0), failed])
    assert (line.rounds, line.failure) == (1, "7 delivered of 8")
    assert line.cpu_us == Spread(median=100.0, least=100.0, most=100.0)
    assert "FAILED  7 delivered of 8" in report.table([line])


def test_a_contender_that_did_not_start_has_a_line_without_numbers() -> None:
    (line,) = report.summarize([Row(workload="storm", contender="nchan", failure="not installed")])
    assert line.cpu_us is None
    assert report.table([line]).splitlines()[-1].split() == ["nchan", "FAILED", "not", "installed"]


def test_cases_stay_together_however_rounds_interleave() -> None:
    rows = [row(who, 10.0, case=case) for who in ("kraftek", "node") for case in ("1 in flight", "8 in flight")] * 2
    assert [(line.case, line.contender, line.rounds) for line in report.summarize(rows)] == [
        ("1 in flight", "kraftek", 2),
        ("1 in flight", "node", 2),
        ("8 in flight", "kraftek", 2),
        ("8 in flight", "node", 2),
    ]


def test_the_table_compares_each_with_this_gateway() -> None:
    text = report.table(report.summarize([row("kraftek", 20.0), row("node", 50.0)]))
    ours, node = text.splitlines()[-2:]
    assert ours.split()[:2] + ours.split()[-1:] == ["kraftek", "20.0", "1.00"]
    assert node.split()[:2] + node.split()[-1:] == ["node", "50.0", "2.50"]


@pytest.mark.parametrize(("ours", "verdict"), [(44.0, "pass"), (45.0, "pass"), (46.0, "falls short")])
def test_a_bar_is_held_against_the_ratio_of_medians(ours: float, verdict: str) -> None:
    rows = [row("kraftek", ours), row("node", 80.0), row("node", 100.0), row("node", 300.0)]
    found = bar(rows, "1 in flight, 64 B: kraftek /")
    assert found.value == pytest.approx(ours / 100)
    assert found.verdict == verdict


def test_a_bar_without_its_measurements_says_so() -> None:
    assert bar([row("kraftek", 40.0)], "1 in flight, 64 B: kraftek /").verdict == "not measured"
    assert bar([], "storm").verdict == "not measured"


def test_fan_out_bars() -> None:
    rows = [
        row(who, cpu, workload="fanout", case=f"room of {size:,}")
        for who, costs in (("kraftek", (8.0, 10.0, 12.0)), ("cloop", (5.0, 8.0, 10.0)))
        for size, cpu in zip((100, 1000, 8000), costs, strict=True)
    ]
    assert bar(rows, "C loop of send()").value == pytest.approx(1.25)
    growth = bar(rows, "8,000 / 100")
    assert growth.value == pytest.approx(1.5)
    assert (growth.verdict, growth.note) == ("falls short", "the C loop itself: 2.00")


def test_idle_counts_the_gateway_alone() -> None:
    assert bar([idle(0.03)], "% of a core").value == pytest.approx(3.0)
    assert bar([idle(0.03)], "KiB resident").value == 10.5


def test_idle_with_fewer_connections_and_more_pings_is_an_estimate() -> None:
    lines = report.summarize([idle(0.04)])
    found = report.bars(lines, replace(QUICK, idle=4000, ping_seconds=10.0))
    (core,) = [each for each in found if "% of a core" in each.promise]
    assert core.value == pytest.approx(4.0 * 2 * 10 / 25)
    assert core.note.startswith("estimated from 4,000 pinged every 10 s")


@pytest.mark.parametrize(("cores", "value"), [(8, 1.5), (2, 2 * 30 / 40)])
def test_two_processes_are_judged_by_rate_only_where_there_are_cores_for_it(
    cores: int, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    one = row("kraftek", 30.0, workload="processes", case="1 on one port")
    two = row("kraftek", 40.0, workload="processes", case="2 on one port")
    one.rate, two.rate = 1000.0, 1500.0
    found = bar([one, two], "two processes")
    assert found.value == pytest.approx(value)
    assert found.verdict == "falls short"
    assert ("measured on" in found.note) == (cores == 2)


def test_the_chart_is_well_formed_and_names_everybody() -> None:
    drawn = ET.fromstring(chart.svg(report.summarize([row("kraftek", 20.0), row("a < b & c", 50.0), idle(0.1)])))
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"kraftek", "a < b & c", "20.0", "50.0", "KiB per message"} <= set(texts)
    bars = [element for element in drawn.iter("{http://www.w3.org/2000/svg}rect") if element.get("fill") != "#fff"]
    widths = [float(element.attrib["width"]) for element in bars]
    assert widths[1] == pytest.approx(2.5 * widths[0], abs=0.2)


def test_the_chart_of_nothing_is_a_chart() -> None:
    drawn = ET.fromstring(chart.svg([]))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert [element.tag.rpartition("}")[2] for element in drawn] == ["style", "rect"]

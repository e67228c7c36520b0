"""The reference pages have everything that the code has, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from docutils import nodes

from kraftek.contract.errors import CLOSE_CODES, Code
from tests.daemon.test_operator import Operator
from tests.docs.pages import CHECKOUT, page
from tests.support.world import House

if TYPE_CHECKING:
    from collections.abc import Iterator


def rows(name: str, section: str) -> Iterator[list[str]]:
    """The rows of the tables in a section of a page in docs/, as text."""
    sections = page(CHECKOUT / f"docs/{name}.rst")[0].findall(nodes.section)
    (found,) = [each for each in sections if nodes.fully_normalize_name(section) in each["names"]]
    for row in found.findall(nodes.row):
        yield [entry.astext() for entry in row.findall(nodes.entry)]


def test_every_error_code_is_listed_with_what_it_closes() -> None:
    listed = {code: connection for code, _, connection in rows("errors", "Codes of the gateway") if code != "code"}
    assert set(listed) == {code.value for code in Code}
    for code, connection in listed.items():
        # A service may close with 4429; the gateway itself does not.
        closing = CLOSE_CODES.get(code) if code != Code.RATE_LIMITED else None
        assert ("closed" in connection) == (closing is not None), code
        assert closing is None or str(closing) in connection, code


def test_every_close_code_is_listed() -> None:
    listed = {code: reason for code, reason, _, _ in rows("errors", "Close codes")}
    for reason, code in CLOSE_CODES.items():
        assert listed[str(code)] == reason


def test_every_metric_is_listed() -> None:
    document, _ = page(CHECKOUT / "docs/metrics.rst")
    listed = [row[0].astext() for row in document.findall(nodes.row) if row[0].astext() != "name"]
    served = Operator().metrics().values()
    gauges = {f"kraftek_{gauge.name}" for gauge in House().gauges}
    counters = {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in served}
    assert sorted(listed) == sorted(counters | gauges)

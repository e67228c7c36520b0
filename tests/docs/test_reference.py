"""The reference pages have everything that the code has, and nothing else."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from docutils import nodes
from msgspec import NODEFAULT, Meta, Struct
from msgspec.structs import FieldInfo, fields

from kraftek.contract import settings
from kraftek.contract.errors import CLOSE_CODES, Code, Limit
from tests.daemon.test_operator import Operator
from tests.docs.pages import CHECKOUT, code, page
from tests.support.world import House

if TYPE_CHECKING:
    from collections.abc import Iterator


def rows(name: str, section: str) -> Iterator[list[str]]:
    """The rows of the tables in a section of a page in docs/, as text."""
    sections = page(CHECKOUT / f"docs/{name}.rst")[0].findall(nodes.section)
    (found,) = [each for each in sections if nodes.fully_normalize_name(section) in each["names"]]
    for row in found.findall(nodes.row):
        yield [entry.astext().replace("\n", " ") for entry in row.findall(nodes.entry)]


def test_every_error_code_is_listed_with_what_it_closes() -> None:
    listed = {name: connection for name, _, connection in rows("errors", "Codes of the gateway") if name != "code"}
    assert set(listed) == {each.value for each in Code}
    for name, connection in listed.items():
        closing = CLOSE_CODES.get(name)
        assert ("closed" in connection) == (closing is not None), name
        assert closing is None or str(closing) in connection, name


def test_every_limit_of_a_rate_limited_is_listed() -> None:
    assert [row[0] for row in rows("limits", "Rates and shares") if row[0] != "limit"] == [each.value for each in Limit]


def test_the_example_is_an_error_of_the_gateway() -> None:
    shown = json.loads(code("error-example"))
    payload = shown["payload"]
    about = json.dumps({"id": shown["id"], "eventType": payload["eventType"]})
    House().admit().play(f"""
        > {json.dumps({"type": payload["eventType"], "id": shown["id"]})}
        * events:chat {{}}
        + 0
        x {payload["code"]} {payload["message"]} {about}
    """)


def test_every_close_code_is_listed() -> None:
    listed = {number: reason for number, reason, _, _ in rows("errors", "Close codes")}
    for reason, number in CLOSE_CODES.items():
        assert str(reason) in listed[str(number)].split(", ")


def test_every_metric_is_listed() -> None:
    document, _ = page(CHECKOUT / "docs/metrics.rst")
    listed = [row[0].astext() for row in document.findall(nodes.row) if row[0].astext() != "name"]
    served = Operator().metrics().values()
    gauges = {f"kraftek_{gauge.name}" for gauge in House().gauges}
    counters = {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in served}
    assert sorted(listed) == sorted(counters | gauges)


SETTINGS: dict[str, type[Struct]] = {
    "The top of the file": settings.Config,
    "[redis]": settings.Redis,
    "[auth]": settings.Auth,
    "[jwt]": settings.Jwt,
    "[limits]": settings.Limits,
    "[socketio]": settings.SocketIO,
    "[operator]": settings.Operator,
    "[drain]": settings.Drain,
    "[services.NAME]": settings.Registration,
    "[events.PATTERN]": settings.EventPolicy,
    "[rooms.PATTERN]": settings.RoomPolicy,
    "[users]": settings.Users,
}
TABLES = {"redis", "auth", "jwt", "limits", "socketio", "operator", "drain", "users", "services", "name", "pattern"}
PATTERNS = {(settings.Config, "events"), (settings.Config, "rooms")}


def allowed(hint: Any) -> str:
    """What a setting may be, by its type, as the page says it."""
    kind, meta = (hint, Meta()) if hint in (bool, int, float, str) else get_args(hint)
    if get_origin(kind) is Literal:
        return ", ".join(get_args(kind))
    if kind is int:
        return f"{meta.ge} or more" if meta.le == 2**31 - 1 else f"{meta.ge} to {meta.le}"
    if kind is float:
        return "above 0" if meta.gt == 0 else f"{meta.ge:g} or more"
    if get_origin(kind) is dict:
        return "table"
    return {bool: "true, false", str: "text"}.get(kind, "list")


def default(field: FieldInfo) -> str:
    """The default of a setting, as the page says it."""
    if field.default_factory is not NODEFAULT:
        return json.dumps(field.default_factory())
    return "needed" if field.default is NODEFAULT else json.dumps(field.default)


@pytest.mark.parametrize("section", SETTINGS)
def test_every_setting_is_listed_with_its_default_and_range(section: str) -> None:
    table = SETTINGS[section]
    hints = get_type_hints(table, include_extras=True)
    assert [row[:3] for row in rows("configuration", section) if row[1] != "default"] == [
        [
            field.name,
            default(field),
            allowed(hints[field.name]),
        ]
        for field in fields(table)
        if field.name not in TABLES and (table, field.name) not in PATTERNS
    ]


def test_log_lines_are_written_so() -> None:
    sources = "".join(path.read_text("utf-8") for path in sorted(CHECKOUT.glob("kraftek/**/*.py")))
    document, _ = page(CHECKOUT / "docs/operations.rst")
    (section,) = [each for each in document.findall(nodes.section) if "what to watch" in each["names"]]
    lines = [literal.astext() for row in section.findall(nodes.row) for literal in row[0].findall(nodes.literal)]
    assert len(lines) > 10
    parts = {part for line in lines for part in re.split(r":? ?(?:…|<\w+>)[ :]*", line) if part}
    assert {part for part in parts if part not in sources} == set()

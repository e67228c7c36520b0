"""The house stands as drawn: the table of floors in ``kraftek/__init__.py`` is read, and every import held to it.

The rules are those of the drawing. A room imports from the floors below it, and from its own as long as no circle
closes; the rooms of floor 4 are strangers to each other. What stands beside the floors knows floor 0, and its
neighbours as far as they are named below; only the top knows it. Each library with a wire behind it belongs to one
room. No module imports the reactor when it is imported itself, because twistd has yet to choose one; below floor 4 none
imports it at all.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent / "kraftek"
EDGES = 4
TOP = 5

LIBRARIES = {
    "autobahn": "websocket",
    "txaio": "websocket",
    "txredisapi": "bus",
    "hiredis": "bus",
    "twisted.web": "http",
    "treq": "http",
}
NEIGHBOURS = {
    "demo": {"service"},  # it is written on the kit
    "service": {"bus", "interfaces", "turn"},  # a service on Twisted is on the gateway's own connections
}
REACTOR = re.compile(r"twisted\.internet\.\w*reactor\b")


class Drawing:
    """The table of floors and what is said to stand beside it, out of a docstring."""

    def __init__(self, text: str) -> None:
        self.floors: dict[int, list[str]] = {}
        floor = None
        for line in text.splitlines():
            number, rooms, *_ = [*re.split(r"\s{2,}", line), "", ""]
            if number.isdigit():
                floor = int(number)
                self.floors[floor] = []
            elif number:
                floor = None
            if floor is not None:
                self.floors[floor] += re.findall(r"``(\w+)(?:\.py|/)``", rooms)
        beside = re.search(r"^.* beside the floors", text, re.MULTILINE)
        self.beside = re.findall(r"``(\w+)/``", beside[0]) if beside else []
        self.floor_of = {room: floor for floor, rooms in self.floors.items() for room in rooms}


@dataclass(frozen=True)
class Import:
    """One name that a module imports: ``twisted.web.resource.Resource``."""

    name: str
    line: int
    on_import: bool
    """Whether importing the module imports it; otherwise a function does."""


def imports(source: str, module: str) -> Iterator[Import]:
    """What the source of ``module`` imports, wherever in it."""

    def visit(node: ast.AST, on_import: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, on_import)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(module.split(".")[: -node.level]) if node.level else ""
            origin = ".".join(part for part in (package, node.module) if part)
            for alias in node.names:
                yield Import(f"{origin}.{alias.name}", node.lineno, on_import)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, on_import and not inside)

    yield from visit(ast.parse(source), on_import=True)


def violations(drawing: Drawing, source: str, module: str) -> list[str]:
    """What ``module``, a dotted name with ``__init__`` for a package's own file, imports against the rules."""
    room = module.split(".")[1]
    if room == "__init__":
        found = [item for item in imports(source, module) if item.name.startswith("kraftek.")]
        return [f"{module}:{item.line} imports {item.name}: the drawing knows nobody" for item in found]
    floor = drawing.floor_of.get(room)
    if floor is None and room not in drawing.beside:
        missing = f"{module}: the room {room!r} is not in the drawing"
        return [f"{missing}. Put it on its floor in the table of kraftek/__init__.py, or beside the floors there"]
    complaints = []
    for item in imports(source, module):
        why = _imported_room(drawing, room, floor, item) or _imported_library(room, floor, item)
        if why:
            complaints.append(f"{module}:{item.line} imports {item.name}: {why}")
    return complaints


def _imported_room(drawing: Drawing, room: str, floor: int | None, item: Import) -> str | None:
    parts = item.name.split(".")
    if parts[0] != "kraftek" or len(parts) == 1:
        return None
    target = parts[1]
    target_floor = drawing.floor_of.get(target)
    if target in {room, "__version__", *NEIGHBOURS.get(room, ())}:
        return None
    if target in drawing.beside:
        return None if floor is not None and floor >= TOP else f"only floor {TOP} and above know {target}"
    if target_floor is None:
        return "no such room in the drawing"
    if floor is None:
        return None if target_floor == 0 else f"{room} stands beside the floors and knows floor 0 alone"
    if target_floor == floor == EDGES:
        return f"the rooms of floor {EDGES} are strangers to each other"
    return None if target_floor <= floor else f"floor {target_floor} is above floor {floor}"


def _imported_library(room: str, floor: int | None, item: Import) -> str | None:
    if REACTOR.match(item.name):
        if floor is not None and floor < EDGES:
            return "there is no reactor below the edges"
        return "too early: twistd chooses the reactor" if item.on_import and room != "tap" else None
    for library, owner in LIBRARIES.items():
        if floor is not None and room != owner and f"{item.name}.".startswith(f"{library}."):
            return f"{library} belongs to kraftek/{owner}"
    return None


def circle(sources: Mapping[str, str]) -> list[str]:
    """The rooms of a circle of imports, first and last the same; empty when there is none."""
    known: dict[str, set[str]] = {}
    for module, source in sources.items():
        room = module.split(".")[1]
        named = {item.name.split(".")[1] for item in imports(source, module) if item.name.startswith("kraftek.")}
        known.setdefault(room, set()).update(named - {room})
    try:
        TopologicalSorter(known).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def checkout() -> dict[str, str]:
    """Source by module of the checkout; ``kraftek.bus.__init__`` is the package's own file."""
    paths = sorted(CHECKOUT.rglob("*.py"))
    return {
        ".".join(("kraftek", *path.relative_to(CHECKOUT).with_suffix("").parts)): path.read_text("utf-8")
        for path in paths
    }


SOURCES = checkout()


@pytest.fixture(scope="module")
def drawing() -> Drawing:
    return Drawing(ast.get_docstring(ast.parse(SOURCES["kraftek.__init__"])) or "")


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(drawing: Drawing, module: str) -> None:
    assert violations(drawing, SOURCES[module], module) == []


def test_no_circle() -> None:
    assert circle(SOURCES) == []


def test_the_drawing_shows_no_room_that_is_gone(drawing: Drawing) -> None:
    rooms = {module.split(".")[1] for module in SOURCES} - {"__init__"}
    assert set(drawing.floor_of) | set(drawing.beside) <= rooms


# The checker itself, on a small house

SMALL = Drawing("""The house.

====== ======================================================== ====================
floor  rooms                                                    what they know
====== ======================================================== ====================
6      ``tap.py``                                               the start
5      ``daemon.py``                                            everything
4      ``websocket/``, ``bus/``, ``http/``                      ``not_a_room.py``
3      ``gateway.py``, ``session.py``,                          clients
       ``roster.py``
0      ``messages.py``                                          values
====== ======================================================== ====================

``demo/``, ``client/`` and ``service/`` stand beside the floors: they know ``other/`` nothing.
""")


def test_the_drawing_is_read() -> None:
    assert SMALL.floors == {
        6: ["tap"],
        5: ["daemon"],
        4: ["websocket", "bus", "http"],
        3: ["gateway", "session", "roster"],
        0: ["messages"],
    }
    assert SMALL.beside == ["demo", "client", "service"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gateway", "from kraftek.messages import Event\nfrom kraftek import __version__"),
        ("gateway", "from kraftek.session import Session\nfrom kraftek import roster"),
        ("gateway", "from twisted.internet.defer import Deferred\nfrom twisted.logger import Logger"),
        ("bus.links", "from ..messages import Event\nfrom .resp import command\nimport txredisapi, hiredis"),
        ("websocket.protocol", "from autobahn.twisted import websocket"),
        ("http.site", "from twisted.web.resource import Resource\nimport treq"),
        ("bus.links", "def connect():\n    from twisted.internet import reactor"),
        ("daemon", "from kraftek.demo import BOARD\nfrom kraftek.bus.links import Link"),
        ("tap", "from twisted.internet import reactor\nfrom kraftek import daemon"),
        ("client.asyncio", "from kraftek.messages import Event\nimport autobahn"),
        ("service.twisted", "from kraftek.bus import RedisBus\nfrom kraftek.turn import Turn"),
        ("demo.notes", "from kraftek.service import EventProcessor"),
    ],
)
def test_what_is_allowed(module: str, source: str) -> None:
    assert violations(SMALL, source, f"kraftek.{module}") == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("messages", "from kraftek.gateway import Gateway", "floor 3 is above floor 0"),
        ("messages", "from kraftek import gateway", "floor 3 is above floor 0"),
        ("messages", "from . import gateway", "floor 3 is above floor 0"),
        ("bus.__init__", "from ..daemon import main", "floor 5 is above floor 4"),
        ("messages", "def f():\n    import kraftek.gateway", "messages:2 imports kraftek.gateway"),
        ("messages", "if TYPE_CHECKING:\n    from kraftek.gateway import G", "floor 3 is above floor 0"),
        ("websocket.protocol", "from kraftek.bus import RedisBus", "strangers"),
        ("gateway", "from autobahn.twisted.websocket import X", "autobahn belongs to kraftek/websocket"),
        ("bus.links", "import autobahn", "autobahn belongs to kraftek/websocket"),
        ("daemon", "import txredisapi", "txredisapi belongs to kraftek/bus"),
        ("websocket.site", "from twisted.web.static import File", "twisted.web belongs to kraftek/http"),
        ("websocket.site", "from twisted import web", "twisted.web belongs to kraftek/http"),
        ("gateway", "import treq.client", "treq belongs to kraftek/http"),
        ("gateway", "def f():\n    from twisted.internet import reactor", "no reactor below the edges"),
        ("gateway", "import twisted.internet.epollreactor", "no reactor below the edges"),
        ("daemon", "from twisted.internet import reactor", "too early"),
        ("client.twisted", "try:\n    from twisted.internet import reactor\nfinally: pass", "too early"),
        ("demo.notes", "from kraftek.gateway import Gateway", "knows floor 0 alone"),
        ("demo.notes", "from kraftek.client import Client", "only floor 5 and above know client"),
        ("service.twisted", "from kraftek.roster import Roster", "knows floor 0 alone"),
        ("bus.links", "from kraftek.service import EventProcessor", "only floor 5 and above know service"),
        ("gateway", "from kraftek.demo import BOARD", "only floor 5 and above know demo"),
        ("gateway", "from kraftek.cellar import Wine", "no such room"),
        ("cellar", "", "Put it on its floor in the table of kraftek/__init__.py"),
        ("__init__", "from kraftek.gateway import Gateway", "the drawing knows nobody"),
    ],
)
def test_what_is_caught(module: str, source: str, complaint: str) -> None:
    (found,) = violations(SMALL, source, f"kraftek.{module}")
    assert complaint in found


def test_a_circle_is_caught() -> None:
    straight = {"kraftek.a": "from kraftek.b import B", "kraftek.b.x": "from . import y", "kraftek.b.y": ""}
    assert circle(straight) == []
    assert set(circle({**straight, "kraftek.b.y": "def f():\n    from kraftek.a import A"})) == {"a", "b"}

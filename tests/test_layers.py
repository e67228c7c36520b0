"""The rules of the house, which ``kraftek/__init__.py`` draws, held for every import of every module.

* ``edge``, ``core`` and ``bus`` never import each other, nor what stands above them; annotations count.
* ``contract`` imports nothing of ours, and Twisted only in the modules named in ``ON_TWISTED``.
* ``client`` and ``service``, which authors import, know ``contract`` and each what ``NAMED`` says.
* Only ``daemon`` knows everybody, and ``gateway`` makes one of it for others. No circle closes between files.
* A folder inside ``core`` never imports the files of ``core`` itself.
* A library with a wire behind it has one owner.
* No module imports the reactor when it is imported itself, because twistd has yet to choose one; ``core`` never does.
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

KNOWS: dict[str, set[str]] = {
    "contract": set(),
    "edge": {"contract"},
    "core": {"contract"},
    "bus": {"contract"},
    "fastpath": {"contract"},
    "gateway": {"contract", "daemon", "fastpath", "service"},
    "client": {"contract"},
    "service": {"contract"},
    "daemon": {"contract", "edge", "core", "bus", "fastpath", "client", "service"},
}
"""The folders of ``kraftek/``, and the modules beside them, with what each may import beside itself."""

NAMED = {
    "kraftek.service.twisted": {"kraftek.bus", "kraftek.fastpath"},  # it uses the gateway's own connections
    "kraftek.service.testing": {"kraftek.bus.embedded"},
}
"""Modules that may import something more, by name."""

ON_TWISTED = {
    "kraftek.contract.clock",
    "kraftek.contract.interfaces",
    "kraftek.contract.iteration",
    "kraftek.contract.tls",
    "kraftek.contract.turns",
}

OWNERS = {
    "autobahn": {"kraftek.edge.websocket", "kraftek.client.twisted"},
    "txaio": {"kraftek.edge.websocket"},
    "txredisapi": {"kraftek.bus"},
    "hiredis": {"kraftek.bus"},
    "twisted.web": {"kraftek.edge", "kraftek.daemon.operator"},
    "treq": {"kraftek.edge.auth_service", "kraftek.edge.key_set"},
    "jwt": {"kraftek.edge.jwt_checker", "kraftek.edge.key_set"},
}
"""Who may import a library."""

ALONE = {"fastpath", "gateway"}
"""The modules of ``kraftek/`` that stand beside the folders."""

BESIDE = {"__init__.py", "py.typed", *(f"{name}.py" for name in ALONE)}
"""What stands in ``kraftek/`` beside the folders."""

REACTOR = re.compile(r"twisted\.internet\.\w*reactor\b")


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


def within(name: str, package: str) -> bool:
    """Whether ``name`` is ``package`` or something in it."""
    return f"{name}.".startswith(f"{package}.")


def violations(source: str, module: str) -> list[str]:
    """What ``module``, a dotted name with ``__init__`` for a package's own file, imports against the rules."""
    room = module.split(".")[1]
    if room != "__init__" and room not in KNOWS:
        return [f"{module}: kraftek/ has no place {room!r}: choose one of {', '.join(KNOWS)}"]
    return [
        f"{module}:{item.line} imports {item.name}: {why}"
        for item in imports(source, module)
        if (why := _wrong_room(module, room, item.name) or _wrong_library(module, room, item))
    ]


def _wrong_room(module: str, room: str, name: str) -> str | None:
    parts = name.split(".")
    if parts[0] != "kraftek" or parts[1:] in ([], ["__version__"]):
        return None
    if room == "__init__":
        return "the drawing imports nobody"
    target = parts[1]
    if target not in KNOWS:
        return "there is no such place"
    if target == room:
        folder = module.split(".")[2:-1]
        if room == "core" and folder and not within(name, f"kraftek.core.{folder[0]}"):
            return f"core/{folder[0]} does not know the rest of core"
        return None
    if target in KNOWS[room] or any(within(name, named) for named in NAMED.get(module, ())):
        return None
    return f"{room} does not know {target}"


def _wrong_library(module: str, room: str, item: Import) -> str | None:
    if REACTOR.match(item.name):
        if room == "core":
            return "core has no reactor"
        return "too early: twistd chooses the reactor" if item.on_import else None
    if room == "contract" and within(item.name, "twisted") and module not in ON_TWISTED:
        return f"of contract only {', '.join(sorted(ON_TWISTED))} know Twisted"
    for library, owners in OWNERS.items():
        if within(item.name, library) and not any(within(module, owner) for owner in owners):
            return f"{library} belongs to {', '.join(sorted(owners))}"
    return None


def circle(sources: Mapping[str, str]) -> list[str]:
    """The modules of a circle of imports, first and last the same; empty when there is none.

    A package's own file stands for the package: importing a module of it imports that file, too, but what one wants of
    it is the module.
    """
    names = {module.removesuffix(".__init__") for module in sources}

    def origin(name: str) -> str | None:
        return name if name in names else (found if (found := name.rpartition(".")[0]) in names else None)

    known = {
        (name := module.removesuffix(".__init__")): {origin(item.name) for item in imports(source, module)}
        - {name, None}
        for module, source in sources.items()
    }
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


@pytest.mark.parametrize("module", SOURCES)
def test_imports_keep_the_rules(module: str) -> None:
    assert violations(SOURCES[module], module) == []


def test_no_circle() -> None:
    assert circle(SOURCES) == []


def test_the_listing_is_the_drawing() -> None:
    listed = {path.name for path in CHECKOUT.iterdir() if path.name != "__pycache__"}
    folders = KNOWS.keys() - ALONE
    assert listed == folders | BESIDE


def test_every_folder_is_a_package() -> None:
    folders = {path.parent for path in CHECKOUT.rglob("*.py")}
    assert {str(folder.relative_to(CHECKOUT)) for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_twistd_imports_no_more_than_the_plugin_needs() -> None:
    assert SOURCES["kraftek.daemon.__init__"].strip() == ""


def test_the_drawing_names_what_exists() -> None:
    drawing = ast.get_docstring(ast.parse(SOURCES["kraftek.__init__"])) or ""
    named = re.findall(r"``([a-z_]+/(?:[a-z_]+/)*(?:[a-z_]+\.py)?)``", drawing)
    assert [name for name in named if not (CHECKOUT / name).exists()] == []
    assert {name.rstrip("/") for name in named if name.count("/") == 1 and name.endswith("/")} == KNOWS.keys() - ALONE


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.gateway", "from kraftek.contract.messages import Event\nfrom kraftek import __version__"),
        ("core.gateway", "from kraftek.core.session import Session\nfrom kraftek.core.access import permissions"),
        ("core.gateway", "from twisted.internet.defer import Deferred\nfrom twisted.logger import Logger"),
        ("core.access.cache", "from .redis import Shared\nfrom kraftek.core.access.local import Local"),
        ("contract.interfaces", "from twisted.internet.defer import Deferred"),
        ("bus.links", "from ..contract.messages import Event\nfrom .resp import command\nimport txredisapi, hiredis"),
        ("bus.links", "def connect():\n    from twisted.internet import reactor"),
        ("service.twisted", "from kraftek.bus import RedisBus\nfrom kraftek.fastpath import write_at_once"),
        ("edge.websocket.protocol", "from autobahn.twisted import websocket"),
        ("edge.auth_service", "import treq"),
        ("edge.public_site", "from twisted.web.resource import Resource"),
        ("daemon.operator", "from twisted.web.resource import Resource"),
        (
            "daemon.assembly.core",
            "from kraftek.bus.connections import Link\nfrom kraftek.service import EventProcessor",
        ),
        ("client.twisted", "from kraftek.contract.messages import Event\nimport autobahn"),
        ("service.twisted", "from kraftek.bus import RedisBus"),
        ("service.testing", "from kraftek.bus.embedded import redis_server_path"),
    ],
)
def test_what_is_allowed(module: str, source: str) -> None:
    assert violations(source, f"kraftek.{module}") == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("contract.messages", "from kraftek.core.gateway import Gateway", "contract does not know core"),
        ("contract.messages", "from ..core import gateway", "contract does not know core"),
        ("contract.messages", "def f():\n    import kraftek.core.gateway", "messages:2 imports kraftek.core.gateway"),
        ("contract.messages", "if TYPE_CHECKING:\n    from kraftek.core.gateway import G", "does not know core"),
        ("contract.messages", "from twisted.internet.defer import Deferred", "know Twisted"),
        ("edge.websocket.protocol", "from kraftek.bus import RedisBus", "edge does not know bus"),
        ("edge.websocket.factory", "from kraftek.core.session import Session", "edge does not know core"),
        ("edge.websocket.outbox", "from kraftek.fastpath import write_now", "edge does not know fastpath"),
        ("core.gateway", "from kraftek.edge.origins import Origins", "core does not know edge"),
        ("core.rooms.leases", "from kraftek.core.session import Session", "does not know the rest of core"),
        ("core.access.cache", "from kraftek.core.rooms import leases", "does not know the rest of core"),
        ("core.access.cache", "from .. import session", "does not know the rest of core"),
        ("bus.__init__", "from ..daemon import tap", "bus does not know daemon"),
        ("fastpath", "from kraftek.edge.websocket import frames", "fastpath does not know edge"),
        ("service.asyncio", "from kraftek.bus import RedisBus", "service does not know bus"),
        ("service.testing", "from kraftek.bus import RedisBus", "service does not know bus"),
        ("client.asyncio", "from kraftek.service import EventProcessor", "client does not know service"),
        ("client.asyncio", "import autobahn", "autobahn belongs to"),
        ("core.gateway", "from autobahn.twisted.websocket import X", "autobahn belongs to kraftek.client.twisted"),
        ("daemon.assembly.core", "import txredisapi", "txredisapi belongs to kraftek.bus"),
        ("daemon.lifecycle", "from twisted import web", "twisted.web belongs to"),
        ("edge.origins", "import treq.client", "treq belongs to kraftek.edge.auth_service"),
        ("core.gateway", "def f():\n    from twisted.internet import reactor", "core has no reactor"),
        ("core.gateway", "import twisted.internet.epollreactor", "core has no reactor"),
        ("daemon.assembly.core", "from twisted.internet import reactor", "too early"),
        ("client.twisted", "try:\n    from twisted.internet import reactor\nfinally: pass", "too early"),
        ("service.twisted", "from kraftek.gateway import make_gateway", "service does not know gateway"),
        ("core.gateway", "from kraftek.cellar import Wine", "no such place"),
        ("cellar", "", "choose one of contract"),
        ("__init__", "from kraftek.core.gateway import Gateway", "the drawing imports nobody"),
    ],
)
def test_what_is_caught(module: str, source: str, complaint: str) -> None:
    (found,) = violations(source, f"kraftek.{module}")
    assert complaint in found


def test_a_circle_is_caught() -> None:
    straight = {"kraftek.a": "from kraftek.b.x import X", "kraftek.b.__init__": "", "kraftek.b.x": "from . import y"}
    straight["kraftek.b.y"] = ""
    assert circle(straight) == []
    assert set(circle({**straight, "kraftek.b.y": "def f():\n    from kraftek.a import A"})) == {
        "kraftek.a",
        "kraftek.b.x",
        "kraftek.b.y",
    }

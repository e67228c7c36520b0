"""A directory of Node's that has installed the client, as it is installed for Python, and what its own tests need."""

from __future__ import annotations

import shutil
from pathlib import Path

import kraftek

__all__ = ["CLIENT", "NODE_MODULES", "make_project"]

CLIENT = Path(kraftek.__file__).parent / "client/js"
NODE_MODULES = Path(__file__).resolve().parents[1] / "client/js/node_modules"


def make_project(directory: Path) -> Path:
    """Make one there."""
    assert NODE_MODULES.exists(), f"npm ci in {NODE_MODULES.parent}, or make test"
    (directory / "package.json").write_text('{"type": "module"}')
    modules = directory / "node_modules"
    modules.mkdir()
    for module in NODE_MODULES.iterdir():
        (modules / module.name).symlink_to(module)
    shutil.copytree(CLIENT, modules / "kraftek")
    return directory

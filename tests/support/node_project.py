"""A directory of Node's that has installed the client, as it is installed for Python, and what its own tests need; and
programs of Node's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import kraftek

__all__ = ["CLIENT", "NODE_MODULES", "make_project", "run"]

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


def run(*command: str, cwd: Path, **environment: str) -> str:
    """What a program says; it must end well."""
    ended = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout

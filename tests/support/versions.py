"""Versions of the gateway beside each other, each in a directory of its own, and the symbolic link that chooses one: as
an operator has a virtual environment for each.

Their libraries are those of this environment; the gateway is a copy, in which a version may differ.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import kraftek

__all__ = ["FAILS", "NEWER", "Versions"]

FAILS = {"daemon/succession.py": ("core.move.take(state.core)", 'raise OSError("it does not work")')}
"""A version that fails when it has taken over all sockets."""

NEWER = {
    "daemon/state.py": ("FORMATS = (1,)", "FORMATS = (2, 1)"),
    "core/moving.py": ("    superseded: bool = False\n", "    superseded: bool = False\n    mood: str = 'new'\n"),
}
"""A version with another format, that knows this one, too, and something more of a session."""

SCRIPT = """#!{python}
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "lib"))
sys.path = [path for path in sys.path if path]
from twisted.scripts.twistd import run

run()
"""


class Versions:
    """Those in one directory. ``twistd``: the program of the version that is chosen."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._current = directory / "current"
        self.twistd = self._current / "bin" / "twistd"

    def add(self, name: str, changes: Mapping[str, tuple[str, str]] = {}) -> None:
        """Install a version. ``changes``: by module, what is written there in place of what."""
        package = Path(kraftek.__file__).parent
        home = self._directory / name
        (home / "bin").mkdir(parents=True)
        shutil.copytree(package, home / "lib/kraftek", ignore=shutil.ignore_patterns("__pycache__"))
        plugins = home / "lib/twisted/plugins"
        plugins.mkdir(parents=True)
        found = next(path for each in sys.path if (path := Path(each, "twisted/plugins/kraftek_gateway.py")).is_file())
        shutil.copy(found, plugins)
        script = home / "bin/twistd"
        script.write_text(SCRIPT.format(python=sys.executable))
        script.chmod(0o755)
        init = home / "lib/kraftek/__init__.py"
        init.write_text(init.read_text().replace(kraftek.__version__, name))
        for module, (before, after) in changes.items():
            file = home / "lib/kraftek" / module
            text = file.read_text()
            assert before in text, f"{module} has no {before!r}"
            file.write_text(text.replace(before, after))

    def choose(self, name: str) -> None:
        """What is started from now on."""
        link = self._directory / "next"
        link.symlink_to(self._directory / name)
        link.replace(self._current)

"""The kit for Node as npm installs it, for programs that import it by its name."""

from __future__ import annotations

import shutil
from pathlib import Path

import kraftek

__all__ = ["HERE", "PACKAGE", "unpack"]

HERE = Path(__file__).resolve().parent
PACKAGE = Path(kraftek.__file__).parent / "service/js"


def unpack(place: Path) -> Path:
    """Put the kit where programs in this folder can import it, and its Redis scripts where they are in a checkout."""
    service = place / "kraftek/service"
    shutil.copytree(PACKAGE, service / "js", ignore=shutil.ignore_patterns("node_modules", "lua"))
    (place / "kraftek/contract").mkdir()
    for scripts in (PACKAGE.parent, PACKAGE.parents[1] / "contract"):
        for script in scripts.glob("*.lua"):
            shutil.copy(script, place / "kraftek" / scripts.name)
    (place / "node_modules").mkdir()
    (place / "node_modules/kraftek-service").symlink_to(service / "js")
    for needed in ("ioredis", "@types"):
        (place / "node_modules" / needed).symlink_to(HERE / "node_modules" / needed)
    (place / "package.json").write_text('{"type": "module"}')
    return place

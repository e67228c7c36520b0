"""The kit for Node as pip installed it: its own tests in Node, its types, and what npm would publish."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest

import kraftek
from tests.service.js.kit import HERE, PACKAGE, unpack
from tests.support.node_project import run

TSC = ("node", str(HERE / "node_modules/typescript/bin/tsc"))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return unpack(tmp_path)


@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("*.test.js")))
def test_in_node(name: str, place: Path) -> None:
    shutil.copy(HERE / name, place)
    options = ("--test", "--test-timeout=60000", "--test-reporter=tap")
    shared = {"COMPARISONS": str(HERE.parent / "comparisons.json"), "RECEIPTS": str(HERE.parent / "receipts.json")}
    said = run("node", *options, name, cwd=place, KIT=str(place / "node_modules/kraftek-service"), **shared)
    counts = re.findall(r"^# (pass|fail|skipped|todo) (\d+)$", said, re.MULTILINE)
    counted = {what: int(number) for what, number in counts}
    assert counted.pop("pass") >= 8, said
    assert counted == {"fail": 0, "skipped": 0, "todo": 0}, said


def test_the_kit_checks(place: Path) -> None:
    """Its modules by their JSDoc, against the declared types; without ``skipLibCheck``, so these are checked, too."""
    shutil.copy(HERE / "tsconfig.json", place / "kraftek/service/js")
    run(*TSC, "--project", ".", cwd=place / "kraftek/service/js")


def test_types(place: Path) -> None:
    shutil.copy(HERE / "types.ts", place)
    options = ("--strict", "--noEmit", "--target", "es2022", "--module", "nodenext", "--types", "node")
    run(*TSC, *options, "--exactOptionalPropertyTypes", "types.ts", cwd=place)


def test_types_name_what_the_module_has(place: Path) -> None:
    """No option or export is only declared, or only there."""
    declared = (PACKAGE / "index.d.ts").read_text("utf-8")
    script = 'console.log(JSON.stringify(Object.keys(await import("kraftek-service"))))'
    exports = json.loads(run("node", "--input-type=module", "--eval", script, cwd=place))
    assert sorted(exports) == sorted(re.findall(r"^export (?:class|function) (\w+)", declared, re.MULTILINE))
    source = (PACKAGE / "service.js").read_text("utf-8")
    checked = source[source.index("const EXPECTED = {") :].partition("\n};")[0]
    options = declared[declared.index("export interface ServiceOptions {") :].partition("\n}")[0]
    assert re.findall(r"^  (\w+):", checked, re.MULTILINE) == re.findall(r"^  (\w+)\?:", options, re.MULTILINE)


def test_what_npm_would_publish(place: Path) -> None:
    """The scripts in it are those that the Python kit and the gateways run."""
    source = place / "kraftek/service/js"
    (packed,) = json.loads(run("npm", "pack", "--json", "--silent", cwd=source))
    with tarfile.open(source / packed["filename"]) as archive:
        names = {member.name.removeprefix("package/") for member in archive}
        lua = {name for name in names if name.startswith("lua/")}
        assert names - lua == {path.name for path in PACKAGE.iterdir() if path.is_file()}
        for name in lua:
            original = next(
                path
                for folder in (PACKAGE.parent, PACKAGE.parents[1] / "contract")
                if (path := folder / Path(name).name).exists()
            )
            published = archive.extractfile(f"package/{name}")
            assert published is not None
            assert published.read() == original.read_bytes()
        archive.extractall(place / "published", filter="data")
    package = json.loads((PACKAGE / "package.json").read_text("utf-8"))
    assert (package["name"], package["version"]) == ("kraftek-service", kraftek.__version__)
    assert package["dependencies"].keys() == {"ioredis"}
    assert package["license"] == "MIT"
    # Nothing that it needs is missing.
    (place / "published/node_modules").symlink_to(HERE / "node_modules")
    script = (
        'import { Service } from "./package/index.js"; await new Service("chat").start("redis://127.0.0.1:1").stop()'
    )
    run("node", "--input-type=module", "--eval", script, cwd=place / "published")

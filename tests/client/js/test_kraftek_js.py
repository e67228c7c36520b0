"""kraftek.js as pip installed it: its own tests in Node, its types, and what npm would publish."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import kraftek
from tests.support.node_project import CLIENT as PACKAGE
from tests.support.node_project import make_project, run

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def node_options() -> list[str]:
    """Node 22 has a WebSocket; what it became can be tried with Node 20."""
    known = run("node", "--print", "typeof WebSocket", cwd=HERE).strip() == "function"
    return [] if known else ["--experimental-websocket", "--no-warnings"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has installed the client."""
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("*.test.js")))
def test_in_node(name: str, node_options: list[str], project: Path) -> None:
    said = run(
        "node", *node_options, "--test", "--test-timeout=60000", "--test-reporter=tap", name,
        cwd=HERE, KRAFTEK_JS=str(project / "node_modules/kraftek/kraftek.js"),
    )  # fmt: skip
    counts = re.findall(r"^# (pass|fail|skipped|todo) (\d+)$", said, re.MULTILINE)
    counted = {what: int(number) for what, number in counts}
    assert counted.pop("pass") >= 10, said
    assert counted == {"fail": 0, "skipped": 0, "todo": 0}, said


def test_types(project: Path) -> None:
    """Without ``skipLibCheck``, so that the declarations themselves are checked, too."""
    names = "types.ts", "react-types.tsx"
    for name in names:
        shutil.copy(HERE / name, project)
    run(
        "node", str(HERE / "node_modules/typescript/bin/tsc"), "--strict", "--noEmit", "--target", "es2022",
        "--lib", "es2022,dom", "--module", "nodenext", "--exactOptionalPropertyTypes", "--jsx", "react-jsx", *names,
        cwd=project,
    )  # fmt: skip


def test_types_name_what_the_module_has(node_options: list[str]) -> None:
    """No method, option or export is only declared, or only there."""
    declared = (PACKAGE / "kraftek.d.ts").read_text("utf-8")
    script = f"""
        const module = await import({json.dumps(str(PACKAGE / "kraftek.js"))});
        const names = Object.getOwnPropertyNames(module.Kraftek.prototype);
        console.log(JSON.stringify([Object.keys(module), names]));
    """
    exports, members = json.loads(run("node", *node_options, "--input-type=module", "--eval", script, cwd=HERE))
    assert sorted(exports) == sorted(re.findall(r"^export (?:class|function) (\w+)", declared, re.MULTILINE))
    body = declared[declared.index("export class Kraftek {") :].partition("\n}")[0]
    assert set(members) == set(re.findall(r"^  (?:readonly )?(\w+)[<(:]", body, re.MULTILINE))
    source = (PACKAGE / "kraftek.js").read_text("utf-8")
    defaults = source[source.index("const DEFAULTS = {") :].partition("\n};")[0]
    options = declared[declared.index("export interface Options {") :].partition("\n}")[0]
    assert {*re.findall(r"^  (\w+):", defaults, re.MULTILINE), "token", "roomId", "data"} == set(
        re.findall(r"^  (\w+)\??:", options, re.MULTILINE)
    )


def test_types_name_what_the_module_for_react_has(project: Path) -> None:
    script = "import('kraftek/react').then((module) => console.log(JSON.stringify(Object.keys(module))))"
    declared = (PACKAGE / "react.d.ts").read_text("utf-8")
    exports = json.loads(run("node", "--eval", script, cwd=project))
    assert sorted(exports) == sorted(re.findall(r"^export function (\w+)", declared, re.MULTILINE))


def test_what_npm_would_publish() -> None:
    (packed,) = json.loads(run("npm", "pack", "--dry-run", "--json", "--silent", cwd=PACKAGE))
    files = {file["path"] for file in packed["files"]}
    assert files == {"LICENSE", "README.md", "kraftek.d.ts", "kraftek.js", "package.json", "react.d.ts", "react.js"}
    package = json.loads((PACKAGE / "package.json").read_text("utf-8"))
    assert (package["name"], package["version"]) == ("kraftek", kraftek.__version__)
    assert not {"dependencies", "optionalDependencies"} & package.keys()
    assert list(package["peerDependencies"]) == ["react"]
    assert package["peerDependenciesMeta"] == {"react": {"optional": True}}
    assert package["license"] == "MIT"

"""What is published, built and tried as somebody would who has nothing else: ``make packages``.

The wheel is made from the source distribution, and that from a copy of the checkout without what is left over in it. It
is installed into an empty virtual environment, which runs the demo; the clients that it brings, and that of the npm
package, then talk to the demo's service.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.waiting import Lines

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
LICENCE = CHECKOUT / "LICENSE"
NODE_PACKAGES = HERE.parent / "client/js/node_modules"
TYPES = HERE.parent / "client/js/types.ts"
BOARD = re.compile(r"The board is at (http://localhost:\d+/)")
SERVES = re.compile(r"Notes service: .*receives events from")
# Of what is not ours to choose.
METADATA = re.compile(r"kraftek_gateway-[^/]+\.dist-info/(METADATA|RECORD|WHEEL|entry_points\.txt|top_level\.txt)")

QUIETLY = ("--quiet", "--disable-pip-version-check")


def main() -> None:
    """Build and try everything; says what is wrong, and ends with 1, at the first that is."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kraftek-packages-") as name:
        room = Path(name)
        source = copied(room / "source")
        wheel = built(source, room / "dist")
        check_wheel(wheel, source)
        tarballs = [checked_tarball(folder, room) for folder in npm_packages(source)]
        python = installed(room / "environment", wheel)
        with demo(python, room) as url:
            run(python, "-I", HERE / "round_trip.py", "twisted", url, cwd=room)
            run(python, "-I", "-m", "pip", "install", *QUIETLY, f"{wheel}[client,service]", cwd=room)
            run(python, "-I", HERE / "round_trip.py", "asyncio", url, cwd=room)
            try_npm(room / "project", tarballs, url)
    print(f"The packages are right; that took {time.monotonic() - began:.0f} s.")


# Building


def copied(source: Path) -> Path:
    """A copy of what git has, or would have with ``git add --all``."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=CHECKOUT)
    for name in listed.split("\0"):
        if (CHECKOUT / name).is_file() or (CHECKOUT / name).is_symlink():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, source / name, follow_symlinks=False)
    return source


def built(source: Path, dist: Path) -> Path:
    """The wheel, made from the source distribution."""
    run(sys.executable, "-m", "build", "--outdir", dist, source, cwd=source)
    (wheel,) = dist.glob("*.whl")
    return wheel


def npm_packages(source: Path) -> list[Path]:
    """The folders of the npm packages."""
    return sorted(manifest.parent for manifest in source.glob("kraftek/*/js/package.json"))


def packed(package: Path, room: Path) -> Path:
    """The tarball of an npm package."""
    run("npm", "pack", "--pack-destination", room, cwd=package)
    manifest = json.loads((package / "package.json").read_text("utf-8"))
    return room / f"{manifest['name']}-{manifest['version']}.tgz"


# What is in them


def check_wheel(wheel: Path, source: Path) -> None:
    """Every file of ``kraftek/``, the plugin of twistd and the licence, and nothing else."""
    wanted = {str(file.relative_to(source)) for file in (source / "kraftek").rglob("*") if file.is_file()}
    # The documents, which are linked there.
    wanted |= {f"kraftek/daemon/demo/board/{page.relative_to(source)}" for page in source.glob("docs/**/*.rst")}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not METADATA.fullmatch(name)}
        (licence,) = {name for name in names if name.endswith(".dist-info/licenses/LICENSE")} or {"LICENSE"}
        same(names, wanted | {"twisted/plugins/kraftek_gateway.py", licence}, wheel.name)
        same(archive.read(licence), LICENCE.read_bytes(), licence)


def checked_tarball(folder: Path, room: Path) -> Path:
    """The tarball of an npm package: it has every file of the folder, and what else it has is the checkout's."""
    beside = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    tarball = packed(folder, room)
    found = files_in(tarball)
    same(beside - {*found}, set(), tarball.name)
    originals = {file.name: file.read_bytes() for file in [LICENCE, *(CHECKOUT / "kraftek").rglob("*.lua")]}
    for name in {"LICENSE"} | (found.keys() - beside):
        same(found.get(name), originals.get(Path(name).name), f"{name} in {tarball.name} is that of the checkout")
    return tarball


def files_in(tarball: Path) -> dict[str, bytes]:
    with tarfile.open(tarball) as archive:
        contents = [(member.name, archive.extractfile(member)) for member in archive]
        return {name.removeprefix("package/"): content.read() for name, content in contents if content is not None}


def manifest_in(tarball: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(files_in(tarball)["package.json"])
    return manifest


# Trying


def installed(environment: Path, wheel: Path) -> Path:
    """The Python of an environment that has the wheel, without any extra."""
    venv.create(environment, with_pip=True)
    python = environment / "bin/python"
    run(python, "-I", "-m", "pip", "install", *QUIETLY, wheel, cwd=environment)
    return python


@contextmanager
def demo(python: Path, room: Path) -> Iterator[str]:
    """The URL of a board that runs meanwhile, as the documentation starts it."""
    process = subprocess.Popen(
        [python.with_name("twistd"), "--nodaemon", "--pidfile=", "kraftek-gateway", "--demo", "--listen",
         "tcp:0:interface=127.0.0.1"],
        cwd=room,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        lines = Lines(process.stdout)
        found: dict[re.Pattern[str], re.Match[str]] = {}
        while len(found) < 2:
            line = lines.next()
            print(line)
            found |= {pattern: match for pattern in (BOARD, SERVES) if (match := pattern.search(line))}
        yield found[BOARD][1].replace("http:", "ws:")
    finally:
        process.terminate()
        process.wait(30)


def try_npm(project: Path, tarballs: list[Path], url: str) -> None:
    """In an empty project: every export can be imported, the types are found, and the client talks to the demo."""
    project.mkdir()
    (project / "package.json").write_text('{"name": "project", "private": true, "type": "module"}')
    manifests = [manifest_in(tarball) for tarball in tarballs]
    peers = {peer for manifest in manifests for peer in manifest.get("peerDependencies", {})}
    run("npm", "install", "--no-audit", "--no-fund", *tarballs, *sorted(peers), cwd=project)
    exports = [manifest["name"] + path.removeprefix(".") for manifest in manifests for path in manifest["exports"]]
    imports = [f"console.log({name!r}, Object.keys(await import({name!r})));" for name in exports]
    (project / "exports.js").write_text("\n".join(imports))
    print(run("node", "exports.js", cwd=project))
    shutil.copy(HERE / "round_trip.js", project)
    run("node", "round_trip.js", url, NODE_PACKAGES / "ws/wrapper.mjs", cwd=project)
    shutil.copy(TYPES, project)
    options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom"]
    run(NODE_PACKAGES / ".bin/tsc", *options, TYPES.name, cwd=project)


# Programs


def run(*command: str | Path, cwd: Path) -> str:
    """What a program writes; it must succeed."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)}\nended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def clean_environment() -> dict[str, str]:
    """Without what would lead a Python to the checkout, or a gateway elsewhere."""
    led = re.compile(r"PYTHONPATH|KRAFTEK_\w+|REDIS_\w+|PORT")
    return {name: value for name, value in os.environ.items() if not led.fullmatch(name)}


def same(found: object, wanted: object, what: str) -> None:
    """End unless these are the same."""
    if found == wanted:
        return
    if isinstance(found, set) and isinstance(wanted, set):
        sys.exit(f"{what}: too much: {sorted(found - wanted)}; missing: {sorted(wanted - found)}")
    sys.exit(f"{what}: it is not so")


if __name__ == "__main__":
    main()

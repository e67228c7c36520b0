"""Who is measured, and how each is started. `bench.__main__` picks from `CONTENDERS`; `bench.stage` starts them.

What each contender is and what it does not do stands at the top of its own file. This gateway itself runs with its
defaults: access checks, limits and counters on, ``--auth open`` in place of an auth service, as all others have.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Template

_HERE = Path(__file__).parent
_NODE = _HERE / "node"
_NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")

_ASKED = """
[services]
ask = {channel = "events:ask", reply = true}
queue = {channel = "events:queue", reply = true, transport = "stream"}
"""
"""The services that answer requests; `bench.echo` is both."""

ALL = frozenset({"roundtrip", "fanout", "manyrooms", "idle", "storm"})


class UnavailableError(Exception):
    """This contender cannot run on this machine; the text says what is missing."""


@dataclass(frozen=True)
class Site:
    """Where one gateway process is to run."""

    port: int
    redis_port: int
    ping_seconds: float
    directory: Path
    """An empty directory of its own."""
    shared_port: bool
    """Whether other processes of the same contender listen on the port too."""


@dataclass(frozen=True)
class Contender:
    """One gateway to measure."""

    name: str
    dialect: str
    """What its clients speak: a key of `bench.dialects.DIALECTS`."""
    workloads: frozenset[str]
    """The workloads it can do."""
    command: Callable[[Site], list[str]]
    """Gives the command that starts it in the foreground, having built what it needs; raises `UnavailableError`."""


_KEEPING = """
[rooms]
"r*" = {history = 200}
"""


def _kraftek(site: Site, more: str = "") -> list[str]:
    twistd = Path(sys.executable).with_name("twistd")
    if not twistd.exists():
        raise UnavailableError(f"the gateway is not installed beside {sys.executable}")
    config = site.directory / "kraftek-gateway.toml"
    times = f"ping_interval = {site.ping_seconds}\nping_timeout = {site.ping_seconds * 0.9}\n"
    pings = [f"[{part}]\n{times}" for part in ("limits", "socketio")]
    config.write_text("".join(pings) + _ASKED + more)
    listen = "reuseport" if site.shared_port else "tcp"
    # twistd takes packages from the directory it is started in first; what is measured is the installed one.
    return [
        *("env", "-C", str(site.directory)),
        *(str(twistd), "--nodaemon", "--pidfile=", "kraftek-gateway", "--config", str(config)),
        *("--redis", f"redis://127.0.0.1:{site.redis_port}/0", "--auth", "open"),
        *("--service", "bench=events:bench"),
        *("--listen", f"{listen}:{site.port}:interface=127.0.0.1"),
    ]


def _keeping(site: Site) -> list[str]:
    return _kraftek(site, _KEEPING)


def _python(name: str) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        module = f"{__name__}.{name}"
        return [sys.executable, "-m", module, str(site.port), str(site.redis_port), str(site.ping_seconds)]

    return command


def _node(site: Site) -> list[str]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise UnavailableError("node and npm are not on PATH")
    if not (_NODE / "node_modules").exists():
        done = subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund"], cwd=_NODE, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise UnavailableError(f"npm ci failed: {done.stderr.strip()[-300:]}")
    return [node, str(_NODE / "gateway.js"), str(site.port), str(site.redis_port), str(site.ping_seconds)]


def _cloop(site: Site) -> list[str]:
    compiler = shutil.which("cc")
    if compiler is None:
        raise UnavailableError("no C compiler (cc) on PATH")
    program = site.directory / "cloop"
    subprocess.run([compiler, "-O2", "-o", str(program), str(_HERE / "cloop.c")], check=True)
    return [str(program), str(site.port), str(site.redis_port)]


def _nchan(site: Site) -> list[str]:
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if nginx is None or not _NCHAN_MODULE.exists():
        raise UnavailableError("nginx with Nchan is not installed (Debian: libnginx-mod-nchan)")
    config = site.directory / "nginx.conf"
    template = Template((_HERE / "nchan.conf").read_text())
    config.write_text(
        template.substitute(port=site.port, ping_seconds=int(site.ping_seconds), directory=site.directory)
    )
    return [nginx, "-c", str(config), "-p", str(site.directory)]


CONTENDERS = (
    Contender("kraftek", "native", ALL | {"requests", "processes"}, _kraftek),
    Contender("kraftek-socketio", "socketio", ALL, _kraftek),
    Contender("node", "socketio", ALL, _node),
    Contender("autobahn", "native", ALL, _python("autobahn")),
    Contender("picows", "native", ALL, _python("picows")),
    Contender("nchan", "nchan", frozenset({"fanout", "idle", "storm"}), _nchan),
    Contender("cloop", "cloop", frozenset({"fanout"}), _cloop),
)

KEEPING = Contender("kraftek-keeping", "native", ALL, _keeping)
"""This gateway, where every room has a history. `bench.histories` measures it beside the first of the others."""

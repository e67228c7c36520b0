"""What a normal pip install gives to twistd, and what systemd is told to start."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

import pytest

from kraftek.contract.errors import ConfigError
from kraftek.daemon.tap import Options

ETC = Path(__file__).resolve().parent.parent / "etc"


def run(*command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment that the tests run in, away from the checkout."""
    path = Path(sys.prefix) / "bin" / command[0]
    return subprocess.run(
        [str(path), *command[1:]], cwd=directory, capture_output=True, text=True, check=False, timeout=60
    )


def test_twistd_lists_the_command(tmp_path: Path) -> None:
    shown = run("twistd", "--help", directory=tmp_path)
    assert shown.returncode == 0
    assert shown.stderr == ""
    assert any(line.split()[:1] == ["kraftek-gateway"] for line in shown.stdout.splitlines()), shown.stdout


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    return run("twistd", "kraftek-gateway", "--help", directory=tmp_path_factory.mktemp("help"))


@pytest.mark.parametrize("option", ["--config", "--listen", "--redis", "--service", "--auth", "--origin", "--demo"])
def test_the_command_explains_its_options(shown: subprocess.CompletedProcess[str], option: str) -> None:
    assert shown.returncode == 0
    assert shown.stderr == ""
    assert option in shown.stdout


def test_listing_commands_does_not_load_the_gateway(tmp_path: Path) -> None:
    """twistd imports every plugin for each of its commands, also for those of other projects."""
    listing = (
        "import sys\n"
        "from twisted.application.service import IServiceMaker\n"
        "from twisted.plugin import getPlugins\n"
        "print([(maker.tapname, maker.module) for maker in getPlugins(IServiceMaker)])\n"
        "assert not [name for name in sys.modules if name.startswith('kraftek')], sys.modules\n"
    )
    listed = run("python", "-P", "-c", listing, directory=tmp_path)
    assert listed.stderr == ""
    assert "('kraftek-gateway', 'kraftek.daemon.tap')" in listed.stdout


def test_the_install_adds_one_file_to_twisted() -> None:
    """An __init__.py in there would hide everybody else's plugins."""
    # Not any metadata that a build left in the checkout.
    (install,) = distributions(name="kraftek-gateway", path=[sysconfig.get_path("purelib")])
    installed = [str(path) for path in install.files or ()]
    in_twisted = [path for path in installed if path.startswith("twisted/") and "__pycache__" not in path]
    assert in_twisted == ["twisted/plugins/kraftek_gateway.py"]
    assert "kraftek/py.typed" in installed
    assert "kraftek/daemon/demo/board/index.html" in installed
    assert not [path for path in installed if path.startswith(("tests", "bench"))]


@pytest.mark.process  # what is installed is new only in `make test`
def test_every_file_of_the_checkout_is_installed_and_no_other() -> None:
    """A new folder without __init__.py, or a new kind of file that setup.py does not name, would be left out. The pages
    of docs/ come along, by a link in the board's folder.
    """
    checkout = ETC.parent / "kraftek"
    docs = checkout / "daemon/demo/board/docs"
    (install,) = distributions(name="kraftek-gateway", path=[sysconfig.get_path("purelib")])
    installed = {str(path) for path in install.files or () if path.parts[0] == "kraftek"}
    assert {path for path in installed if "__pycache__" not in path} == {
        str(path.relative_to(ETC.parent))
        for folder, _, names in os.walk(checkout, followlinks=True)
        for path in (Path(folder, name) for name in names)
        if not {"__pycache__", "node_modules", "examples"} & set(path.parts)
        and not (path.is_relative_to(docs) and path.suffix != ".rst")
    }


@pytest.mark.parametrize("kit", ["kraftek.service.asyncio", "kraftek.client.asyncio"])
def test_what_runs_on_asyncio_loads_no_twisted(tmp_path: Path, kit: str) -> None:
    loading = (
        f"import sys, {kit}\n"
        "loaded = [name for name in sys.modules if name.split('.')[0] in ('twisted', 'autobahn', 'txredisapi')]\n"
        "assert not loaded, loaded\n"
    )
    assert run("python", "-P", "-c", loading, directory=tmp_path).stderr == ""


def test_the_documentation_says_what_it_runs_with() -> None:
    text = (ETC.parent / "docs/getting-started.rst").read_text("utf-8")
    (install,) = distributions(name="kraftek-gateway", path=[sysconfig.get_path("purelib")])
    for requirement in install.requires or ():
        name, _, version = requirement.partition(";")[0].partition(">=")
        assert not name.startswith(("Twisted", "autobahn")) or version.strip() in text, requirement
    versions = [line.rpartition(" ")[2] for line in install.metadata.get_all("Classifier") or ()]
    pythons = [version for version in versions if version.startswith("3.")]
    assert re.search(rf"CPython \D*{re.escape(pythons[0])} \w+ {re.escape(pythons[-1])}\b", text)


# The systemd units

SERVICE = "kraftek-gateway.service"
TEMPLATE = "kraftek-gateway@.service"


def unit(name: str = SERVICE) -> dict[str, list[str]]:
    """The settings of a unit file, with every value that each is given."""
    settings: dict[str, list[str]] = {}
    for line in (ETC / "systemd" / name).read_text("utf-8").splitlines():
        if line and not line.startswith(("#", "[")):
            key, separator, value = line.partition("=")
            assert separator, line
            settings.setdefault(key, []).append(value)
    return settings


def test_the_unit_starts_the_command() -> None:
    (command,) = unit()["ExecStart"]
    twistd, *arguments = shlex.split(command)
    assert twistd.endswith("/bin/twistd")
    assert arguments[:3] == ["--nodaemon", "--pidfile=", "kraftek-gateway"]
    assert arguments[3:] == ["--config", "/etc/kraftek/kraftek-gateway.toml"]
    Options().parseOptions(["--config", str(ETC / "kraftek-gateway.toml")])


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("Type", ["notify"]),
        ("NotifyAccess", ["main"]),
        ("Restart", ["on-failure"]),
        ("RestartPreventExitStatus", [str(ConfigError.EXIT_STATUS)]),
        ("DynamicUser", ["yes"]),
        ("NoNewPrivileges", ["yes"]),
        ("CapabilityBoundingSet", [""]),
        ("ProtectSystem", ["strict"]),
        ("ProtectHome", ["yes"]),
        ("PrivateTmp", ["yes"]),
        ("RestrictAddressFamilies", ["AF_INET AF_INET6 AF_UNIX"]),
        ("SystemCallFilter", ["@system-service", "~@privileged @resources"]),
    ],
)
def test_the_unit_is_hardened(setting: str, values: list[str]) -> None:
    assert unit()[setting] == values


def test_the_unit_leaves_room_for_clients() -> None:
    """Debian's default of 1024 open files would be a gateway for a thousand clients."""
    assert int(unit()["LimitNOFILE"][0]) >= 65_536


def test_the_unit_does_not_break_tls() -> None:
    """pyOpenSSL's callbacks cannot be made without memory that is writable and executable."""
    assert "MemoryDenyWriteExecute" not in unit()


def test_the_template_differs_in_its_socket_alone() -> None:
    alone, template = unit(SERVICE), unit(TEMPLATE)
    (command,) = template.pop("ExecStart")
    assert command == alone.pop("ExecStart")[0] + " --listen systemd:domain=INET:index=0"
    check, reload = template.pop("ExecReload")
    assert [check.removesuffix(" --listen systemd:domain=INET:index=0"), reload] == alone.pop("ExecReload")
    assert template.pop("Description") == [f"{alone.pop('Description')[0]} %i"]
    assert (alone.pop("RuntimeDirectory"), template.pop("RuntimeDirectory")) == (["kraftek"], ["kraftek/%i"])
    assert template.pop("Sockets") == template.pop("Requires") == ["kraftek-gateway@%i.socket"]
    assert template == alone


def test_the_template_starts_the_command() -> None:
    (command,) = unit(TEMPLATE)["ExecStart"]
    options = Options()
    options.parseOptions(["--config", str(ETC / "kraftek-gateway.toml"), *shlex.split(command)[6:]])
    assert options.configuration.listen == ("systemd:domain=INET:index=0",)


def test_the_sockets_share_a_port_and_have_room_for_a_storm() -> None:
    settings = unit("kraftek-gateway@.socket")
    (stream,) = settings["ListenStream"]
    assert stream.startswith("0.0.0.0:"), "the template's command listens on an IPv4 socket"
    assert settings["ReusePort"] == ["yes"]
    assert settings["Backlog"] == ["4096"]
    assert "Accept" not in settings
    assert settings["WantedBy"] == ["sockets.target"]

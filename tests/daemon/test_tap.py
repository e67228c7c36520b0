import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IService
from twisted.internet import reactor as installed

from kraftek.contract.errors import ConfigError
from kraftek.contract.settings import Auth, Config, Redis, Registration, RoomPolicy
from kraftek.daemon.hostnames import HostnameResolver
from kraftek.daemon.tap import Options, makeService

reactor: Any = installed

VARIABLES = ["KRAFTEK_REDIS", "KRAFTEK_LISTEN", "KRAFTEK_AUTH", "PORT", "REDIS_HOST", "REDIS_PORT"]
VARIABLES += ["REDIS_OUTGOING_CHANNEL", "AUTH_SERVICE_URL"]


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def parsed(*arguments: str) -> Config:
    options = Options()
    options.parseOptions(arguments)
    return options.configuration


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], Config()),
        (["--listen", "tcp:1", "--listen=tcp:2"], Config(listen=("tcp:1", "tcp:2"))),
        (["--origin", "*.example.org", "--origin", "same-host"], Config(origins=("*.example.org", "same-host"))),
        (["--redis", "unix:///a"], Config(redis=Redis(url="unix:///a"))),
        (["--auth", "open"], Config(auth=Auth(check="open"))),
        (
            ["--service", "a=b", "--service", "c=d"],
            Config(services=(Registration(name="a", channel="b"), Registration(name="c", channel="d"))),
        ),
        (
            ["--demo"],
            Config(
                demo=True,
                redis=Redis(url="embedded:"),
                auth=Auth(check="open"),
                services=(Registration(name="stickyNotes", channel="events:stickyNotes"),),
                rooms=(RoomPolicy(pattern="*", presence=True, history=1000),),
            ),
        ),
    ],
)
def test_options(arguments: list[str], expected: Config) -> None:
    assert parsed(*arguments) == expected


def test_options_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('listen = ["tcp:1"]\nredis.url = "redis://file"\nauth.check = "http://file"')
    monkeypatch.setenv("KRAFTEK_REDIS", "redis://environment")
    monkeypatch.setenv("KRAFTEK_AUTH", "http://environment")
    assert parsed("--config", str(file), "--auth", "http://option") == Config(
        listen=("tcp:1",), redis=Redis(url="redis://environment"), auth=Auth(check="http://option")
    )


def test_two_parsings_have_nothing_in_common() -> None:
    assert parsed("--listen", "tcp:1").listen == ("tcp:1",)
    assert parsed("--listen", "tcp:2").listen == ("tcp:2",)


@pytest.mark.parametrize(
    "arguments",
    [["--redis"], ["--unknown"], ["something"], ["--demo=yes"], ["--redis", ""], ["--config", "/no/such/file"]],
)
def test_wrong_options_are_the_users_mistake(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(*arguments)
    assert ended.value.code == ConfigError.EXIT_STATUS == 78
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Cannot start: ")


def test_every_mistake_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--redis", "redis://:hunter2@h:port", "--listen", "tcp:x", "--listen", "tcp:y")
    said = capsys.readouterr().out
    assert [line.split(": ")[:3] for line in said.splitlines()] == [
        ["Cannot start", "--listen", "listen[0]"],
        ["Cannot start", "--listen", "listen[1]"],
        ["Cannot start", "--redis", "redis.url"],
    ]
    assert "hunter2" not in said


@pytest.fixture
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The reactor and the collector of this process are not the daemon's."""
    threshold, resolver = gc.get_threshold(), reactor.nameResolver
    monkeypatch.setattr(reactor, "seconds", reactor.seconds)
    yield
    reactor.installNameResolver(resolver)
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.mark.usefixtures("_as_it_was")
def test_make_service() -> None:
    options = Options()
    options.parseOptions(["--demo"])
    assert IService.providedBy(makeService(options))
    assert reactor.seconds is time.monotonic
    assert isinstance(reactor.nameResolver, HostnameResolver)
    assert gc.get_threshold()[0] == 5_000
    assert gc.get_freeze_count() > 10_000


@pytest.mark.parametrize(("value", "on"), [("", True), ("1", True), ("0", False)])
def test_the_environment_turns_the_fast_path_off(value: str, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRAFTEK_FASTPATH", value)
    options = Options()
    options.parseOptions([])
    assert options.fastpath is on


def test_a_mistake_about_the_fast_path_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KRAFTEK_FASTPATH", "off")
    with pytest.raises(SystemExit):
        Options().parseOptions([])
    assert "Cannot start: KRAFTEK_FASTPATH: expected 0 or 1, found 'off'" in capsys.readouterr().out


# The real twistd, out of a directory without a checkout.


def twistd(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.prefix) / "bin/twistd"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, program, *arguments],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_configuration_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("limits.rooms = 7\n")
    right = twistd(tmp_path, "kraftek-gateway", "--check", "--config", str(file))
    assert (right.returncode, right.stdout, right.stderr) == (0, "The configuration is right.\n", "")
    file.write_text(f'limits.rooms = 0\nlisten = ["ssl:1:privateKey={tmp_path}/missing"]\n')
    wrong = twistd(tmp_path, "kraftek-gateway", "--check", "--config", str(file))
    assert wrong.returncode == ConfigError.EXIT_STATUS
    assert wrong.stdout.startswith(f"Cannot start: {file}: limits.rooms: expected ")
    file.write_text(f'listen = ["ssl:1:privateKey={tmp_path}/missing"]\n')
    wrong = twistd(tmp_path, "kraftek-gateway", "--check", "--config", str(file))
    assert wrong.returncode == ConfigError.EXIT_STATUS
    assert wrong.stdout.startswith(f"Cannot start: ssl:1:privateKey={tmp_path}/missing: [Errno 2] No such file")
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.toml"]


def test_twistd_stops_at_a_wrong_configuration(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('listn = []\n[redis]\nurl = "redis://:hunter2@h:port"\n')
    stopped = twistd(tmp_path, "--nodaemon", "kraftek-gateway", "--config", str(file), "--auth", "opne")
    assert stopped.returncode == ConfigError.EXIT_STATUS
    assert stopped.stderr == ""
    check, listn, url = stopped.stdout.splitlines()
    assert check.startswith("Cannot start: --auth: auth.check: expected ")
    assert check.endswith(", found 'opne'")
    assert listn == f"Cannot start: {file}: listn: unknown key; did you mean listen?"
    assert url.startswith(f"Cannot start: {file}: redis.url: expected HOST or HOST:PORT")
    assert url.endswith(", found 'redis://:***@h:***'")
    assert "hunter2" not in stopped.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gateway.toml"]

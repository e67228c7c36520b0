"""Starts the whole chat: ``python docs/examples/chat``, after ``pip install '.[demo]'``. Ctrl-C ends it.

It is a Redis, unless REDIS_URL names one, the web server (auth.py), the gateway and two services. Each of the last four
may be killed, and is started again after some seconds, to see what the page says.
"""

import argparse
import os
import secrets
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet import task
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from kraftek.bus.embedded import EmbeddedRedis, EmbeddedRedisError

HERE = Path(__file__).resolve().parent
AWAY = 3.0  # seconds until a program that was killed is started again
GRACE = 15.0  # seconds that a program has to end


class Program(ProcessProtocol):
    """A running program; ``ended`` fires with its exit status."""

    transport: Any

    def __init__(self) -> None:
        self.ended: Deferred[Any] = Deferred()

    def processEnded(self, reason: Failure) -> None:
        self.ended.callback(reason.value)


class Chat:
    def __init__(self, reactor: Any, options: argparse.Namespace) -> None:
        self.reactor = reactor
        self.options = options
        self.directory = tempfile.mkdtemp(prefix="kraftek-chat-")
        self.redis = EmbeddedRedis(reactor)
        self.programs: dict[str, Program] = {}
        self.failed: Deferred[None] = Deferred()
        self.stopping = False

    async def run(self) -> None:
        """Start everything; returns only with a SystemExit that says what has failed."""
        # Whoever has the secret can sign tokens. It goes by way of a file that others cannot read.
        Path(self.directory, "secret").write_text(secrets.token_hex(32))
        try:
            redis = os.environ.get("REDIS_URL") or await self.redis.start()
        except EmbeddedRedisError as missing:
            raise SystemExit(str(missing)) from None
        port, gateway_port = self.options.port, self.options.gateway_port
        origins = [f"--origin=http://{host}:{port}" for host in ("localhost", "127.0.0.1")]
        twistd = [Path(sys.executable).with_name("twistd"), "--nodaemon", "--pidfile=", "kraftek-gateway"]
        listen = f"--listen=tcp:{gateway_port}:interface=127.0.0.1"
        told = {"PAGE_PORT": str(port), "GATEWAY_URL": f"ws://localhost:{gateway_port}/"}
        told |= {"REDIS_URL": redis, "KRAFTEK_REDIS": redis, "TOKEN_SECONDS": str(self.options.token_seconds)}
        self.environment = {**os.environ, **told}
        self.start("gateway", [*twistd, f"--config={HERE / 'gateway.toml'}", listen, *origins])
        self.start("auth.py", [sys.executable, HERE / "auth.py"])
        for service in ("service.py", "helper.py"):
            self.start(service, [sys.executable, HERE / service])
        print(f"Kill any of these, and it comes back after {AWAY:g} seconds. Ctrl-C ends all of them.", flush=True)
        await self.failed

    def start(self, name: str, command: list[Any]) -> None:
        if self.stopping:
            return
        self.programs[name] = program = Program()
        words = [str(word) for word in command]
        process = self.reactor.spawnProcess(
            program, words[0], words, self.environment, self.directory, childFDs={0: "w", 1: 1, 2: 2}
        )
        print(f"{name} is process {process.pid}", flush=True)
        program.ended.addCallback(self.ended, name, command)

    def ended(self, status: Any, name: str, command: list[Any]) -> None:
        del self.programs[name]
        if self.stopping or self.failed.called:
            return
        if status.exitCode:
            self.failed.errback(SystemExit(f"{name} has failed; what it said last is why."))
        else:
            self.reactor.callLater(AWAY, self.start, name, command)

    def signal(self, name: str) -> None:
        for program in self.programs.values():
            with suppress(ProcessExitedAlready):
                program.transport.signalProcess(name)

    async def stop(self) -> None:
        self.stopping = True
        self.signal("TERM")
        kill = self.reactor.callLater(GRACE, self.signal, "KILL")
        while self.programs:
            await next(iter(self.programs.values())).ended
        if kill.active():
            kill.cancel()
        await self.redis.stop()
        shutil.rmtree(self.directory)


def main(reactor: Any) -> Deferred[None]:
    parser = argparse.ArgumentParser(prog="chat", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="of the page (8000)")
    parser.add_argument("--gateway-port", type=int, default=3001, help="of the gateway (3001)")
    parser.add_argument("--token-seconds", type=float, default=30.0, help="how long a token lives (30)")
    chat = Chat(reactor, parser.parse_args())
    reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(chat.stop()))
    return Deferred.fromCoroutine(chat.run())


if __name__ == "__main__":
    task.react(main)

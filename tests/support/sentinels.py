"""A master, a replica and three sentinels, all of them real, on ports of 127.0.0.1."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kraftek.bus.embedded import redis_server_path
from tests.support.ports import free_port
from tests.support.redis_server import PrivateRedis
from tests.support.waiting import wait_until

__all__ = ["NAME", "Sentinels"]

NAME = "mymaster"

PATIENCE = 60.0
"""Seconds for what sentinels do, which have periods of their own: 1 s, 2 s, and 10 s; and one that has stood still does
nothing for 30 s."""

CONFIGURATION = """
port {port}
bind 127.0.0.1
dir {directory}
logfile {directory}/sentinel-{port}.log
sentinel monitor {name} 127.0.0.1 {master} 2
sentinel down-after-milliseconds {name} 1000
sentinel failover-timeout {name} 6000
"""


class Sentinels:
    """Three sentinels, and ``servers``: the master, and its replica. ``url`` is for the gateway and services.

    ``password``: one that the sentinels want. A server that is started again after a fail-over is started as a replica.
    """

    def __init__(self, binary: str | None = None, password: str = "") -> None:
        self.binary = binary or redis_server_path()
        self.password = password
        self.servers = [PrivateRedis(self.binary), PrivateRedis(self.binary)]
        self.server_ports = [free_port(), free_port()]
        self.ports = [free_port(), free_port(), free_port()]
        self.url = f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/{NAME}/0"
        if password:
            self.url += f"?sentinel_password={password}"
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start all, and return once a fail-over could begin."""
        master, replica = self.server_ports
        self.servers[0].start("--port", str(master), "--repl-diskless-sync-delay", "0")
        self.servers[1].start(
            *("--port", str(replica), "--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1", str(master))
        )
        self._linked(self.servers[1])
        for port in self.ports:
            self.start_sentinel(port)
        wait_until(self.ready, self._state, PATIENCE)

    def start_sentinel(self, port: int) -> None:
        """Start one that was not started or was killed; it goes on with what it knew."""
        directory = self.servers[0].directory
        file = directory / f"sentinel-{port}.conf"
        if not file.exists():
            text = CONFIGURATION.format(port=port, directory=directory, name=NAME, master=self.server_ports[0])
            file.write_text(text + (f"requirepass {self.password}\n" if self.password else ""))
        self._processes[port] = subprocess.Popen(
            [self.binary, str(file), "--sentinel"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        wait_until(lambda: self._answers(port), f"an answer of the sentinel on {port}", PATIENCE)

    def kill_sentinel(self, port: int) -> None:
        """``kill -9``."""
        process = self._processes.pop(port)
        process.kill()
        process.wait(PATIENCE)

    def ask(self, port: int, *command: str) -> Any:
        """What the sentinel on this port answers to one command."""
        with self.client(port) as client:
            return client.execute_command(*command)

    def client(self, port: int, **options: Any) -> redis.Redis:
        """A client of the server or the sentinel on this port."""
        password = self.password if port in self.ports else None
        options = {"decode_responses": True, "protocol": 2, "retry": Retry(NoBackoff(), 0), **options}
        return redis.Redis(port=port, password=password or None, **options)

    def master(self, asked: int | None = None) -> int:
        """Which of ``servers`` is the master, as the sentinel on the port ``asked`` has it, or the first that runs."""
        _, port = self.ask(asked or next(iter(self._processes)), "SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
        return self.server_ports.index(int(port))

    def fail_over(self) -> int:
        """Have the replica promoted, with the master alive. Return once every sentinel says so: the new master."""
        before = self.master()
        self.ask(next(iter(self._processes)), "SENTINEL", "FAILOVER", NAME)
        return self.switched(before)

    def switched(self, before: int) -> int:
        """Return once every sentinel has another master: that one."""
        wait_until(lambda: all(self.master(port) != before for port in self._processes), self._state, PATIENCE)
        return self.master()

    def revive(self, server: int) -> None:
        """Start a killed server as a replica of the master, and return once a fail-over could begin."""
        self.rejoin(server)
        wait_until(self.ready, self._state, PATIENCE)

    def rejoin(self, server: int) -> None:
        """Start a killed server as a replica of the master, and return once it has what that has."""
        options = self.servers[server].options
        if "--replicaof" in options:
            del options[options.index("--replicaof") :]
        self.servers[server].start("--replicaof", "127.0.0.1", str(self.server_ports[self.master()]))
        self._linked(self.servers[server])

    def ready(self) -> bool:
        """Whether a fail-over could begin."""
        return all(self._ready(port) for port in self._processes)

    def agree(self) -> bool:
        """Whether all sentinels name the same master, and find it well."""
        known = [self._known(port)[0] for port in self._processes]
        return len({master["port"] for master in known}) == 1 and all(master["flags"] == "master" for master in known)

    def stood_still(self) -> bool:
        """Whether any of them has done nothing for a while, because it had stood still."""
        return any("+tilt" in log.read_text() for log in self.servers[0].directory.glob("sentinel-*.log"))

    def close(self) -> None:
        """End everything that was started."""
        for port in tuple(self._processes):
            self.kill_sentinel(port)
        for server in self.servers:
            server.close()

    def _linked(self, replica: PrivateRedis) -> None:
        wait_until(lambda: replica.client().info("replication").get("master_link_status") == "up", "replication")

    def _answers(self, port: int) -> bool:
        with suppress(redis.ConnectionError):
            return bool(self.ask(port, "PING"))
        return False

    def _ready(self, port: int) -> bool:
        master, replicas = self._known(port)
        good = [each for each in replicas if each["flags"] == "slave" and each["master-link-status"] == "ok"]
        return master["flags"] == "master" and master["num-other-sentinels"] == "2" and len(good) == 1

    def _known(self, port: int) -> tuple[dict[str, str], list[dict[str, str]]]:
        with self.client(port) as client:
            client.response_callbacks.clear()
            master = _table(client.execute_command("SENTINEL", "MASTER", NAME))
            return master, [_table(each) for each in client.execute_command("SENTINEL", "REPLICAS", NAME)]

    def _state(self) -> str:
        return f"sentinels ready for a fail-over: {[self._known(port) for port in self._processes]}"


def _table(fields: list[str]) -> dict[str, str]:
    return dict(zip(fields[::2], fields[1::2], strict=True))

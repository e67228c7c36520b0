"""Redis in a chaos run with Sentinel: a master and a replica that take turns, and three sentinels. All of it is real.

Its methods block; the world calls them in threads. Replication is asynchronous, so that each fail-over loses what the
replica had not got yet, and what the old master still took.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from tests.support.sentinels import NAME, Sentinels
from tests.support.waiting import wait_until

__all__ = ["Masters"]

PATIENCE = 30.0


class Masters:
    """``url``: for gateways and services."""

    name = "redis"

    def __init__(self) -> None:
        self._all = Sentinels()
        self.url = self._all.url
        self._master = 0

    def start(self) -> None:
        """Start all."""
        self._all.start()

    def close(self) -> None:
        """End all."""
        self._all.close()

    def publisher(self, **options: Any) -> Any:
        """A client of whoever is master."""
        addresses = [("127.0.0.1", port) for port in self._all.ports]
        sentinel = Sentinel(addresses, sentinel_kwargs={"socket_timeout": 1.0}, retry=Retry(NoBackoff(), 0), **options)
        return sentinel.master_for(NAME)

    @property
    def ready(self) -> bool:
        """Whether a fail-over can begin."""
        return self._all.ready()

    def kill(self) -> None:
        """Kill the master. Return once every sentinel names the other one."""
        self._all.servers[self._master].kill()
        self._master = self._all.switched(self._master)

    def rejoin(self) -> None:
        """Start who was killed, as the master's replica."""
        self._all.rejoin(1 - self._master)

    def freeze(self) -> None:
        """Stop the master in its tracks."""
        self._all.servers[self._master].freeze()

    def thaw(self) -> bool:
        """Let it go on. Return once the sentinels agree: whether they name the other one meanwhile."""
        self._all.servers[self._master].thaw()
        wait_until(self._all.agree, "sentinels that agree", PATIENCE)
        before, self._master = self._master, self._all.master()
        return before != self._master

    def fail_over(self) -> None:
        """Have the replica promoted while the master lives. Return once every sentinel names it."""
        self._master = self._all.fail_over()

    def replace_sentinel(self, number: int) -> None:
        """Kill a sentinel, and start it again."""
        port = self._all.ports[number]
        self._all.kill_sentinel(port)
        self._all.start_sentinel(port)

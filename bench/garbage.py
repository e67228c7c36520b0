"""Python's garbage collector in a gateway that many come to: ``python -m bench.garbage``. README.rst says how to read
what it prints.

A Redis, a gateway whose reactor is watched, and clients: first all of them come, and then each goes and comes back.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
from pathlib import Path

from bench.floods import look, started_for_many
from bench.measure import resident_bytes
from bench.slow_readers import Client, connect

AT_ONCE = 100
"""Clients that go and come back together."""


async def _measured(port: int, directory: Path, gateway: subprocess.Popen[bytes], counts: list[int]) -> None:
    clients: list[Client] = []
    look(gateway, directory / "turns")
    for count in counts:
        clients += await connect(port, count - len(clients))
        _tell(f"{count} clients come", gateway, directory)
        for _ in range(2):
            for _each in range(0, count, AT_ONCE):
                gone, clients = clients[:AT_ONCE], clients[AT_ONCE:]
                for client in gone:
                    client.transport.abort()
                clients += await connect(port, len(gone))
        _tell("each comes back, twice", gateway, directory)


def _tell(what: str, gateway: subprocess.Popen[bytes], directory: Path) -> None:
    step, turn, long, collection = look(gateway, directory / "turns")
    print(
        f"{what:24} longest collection {1000 * collection:5.1f} ms, longest step {1000 * step:5.1f} ms, longest turn "
        f"{1000 * turn:5.1f} ms; {long:.0f} steps above 10 ms; {resident_bytes([gateway.pid]) / 1e6:.0f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.garbage", description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--before", default="", metavar="DIR", help="checkout of another gateway, to measure that")
    asked = parser.parse_args()
    with started_for_many(asked.before) as (directory, port, gateway):
        asyncio.run(_measured(port, directory, gateway, asked.clients))


if __name__ == "__main__":
    main()

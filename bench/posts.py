"""POSTs in parallel while access is asked: ``python -m bench.posts``. README.rst says how to read what it prints.

A Redis, a gateway whose reactor is watched, an auth service that takes its time for all but one client, which pings
meanwhile; and a process that sends the POSTs: all to one long-polling session, and then each to one of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from bench.floods import NICE, Behaved, Measured, look, running, started, until
from bench.measure import allow_many_files, resident_bytes
from tests.support.ports import free_port

CONFIG = """
listen = ["tcp:{port}:interface=127.0.0.1"]
redis.url = "unix://{directory}/redis.sock"
auth.check = "http://127.0.0.1:{auth}"
auth.timeout = 20.0
auth.concurrency = 1000
[services]
chat = "events:chat"
"""
BODY = b"\x1e".join([b'42["chat:note:heard","%b"]' % (b"x" * 1000)] * 950)
"""Almost as long as the largest that is allowed by default."""
ASKED = 6.0
"""Seconds for which access is asked."""
PATIENCE = 30.0


async def _auth_service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Lets everybody in, slowly, but for the one that behaves."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
            token = json.loads(await reader.readexactly(int(fields[b"content-length"])))["token"]
            if token != "behaved":
                await asyncio.sleep(ASKED)
            body = json.dumps({"success": True, "userId": token}).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            writer.write(head + body)
    except (asyncio.IncompleteReadError, OSError):
        writer.close()


async def _request(port: int, method: str, sid: str, body: bytes = b"") -> bytes:
    """The answer to one request of long-polling; empty when the connection was closed."""
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                target = "/socket.io/?EIO=4&transport=polling" + (f"&sid={sid}" if sid else "")
                length = f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(f"{method} {target} HTTP/1.1\r\nHost: x\r\n{length}".encode() + body)
                await writer.drain()
                return await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""


async def _session(port: int, number: int) -> str:
    """A session that has said who it is, and is not let in yet."""
    answer = await _request(port, "GET", "")
    sid: str = json.loads(answer.partition(b"\r\n\r\n0")[2])["sid"]
    await _request(port, "POST", sid, b'40{"token":"slow-%d","roomId":"r%d"}' % (number, number))
    return sid


async def _load(port: int, count: int, sessions: int) -> None:
    """What the other process does, and prints."""
    sids = await asyncio.gather(*(_session(port, number) for number in range(sessions)))
    answers = await asyncio.gather(*(_request(port, "POST", sids[at % sessions], BODY) for at in range(count)))
    print(json.dumps(Counter(answer[9:12].decode() or "closed" for answer in answers)))


async def _measured(port: int, auth: int, directory: Path, gateway: subprocess.Popen[bytes], count: int) -> None:
    service = await asyncio.start_server(_auth_service, "127.0.0.1", auth)
    behaved = Behaved(port)
    async with service, behaved.connected():
        for what, sessions in (("one session", 1), (f"{count} sessions", count)):
            before, measured, most = resident_bytes([gateway.pid]), Measured(), 0
            look(gateway, directory / "turns")
            answers = directory / f"answers-{sessions}"
            arguments = ("-m", "bench.posts", "--posts", str(count), "--load", str(port), str(sessions))
            with answers.open("wb") as output:
                log = directory / "load.log"
                with running(log, sys.executable, *arguments, nice=NICE, stdout=output) as load:
                    pinging = asyncio.create_task(behaved.measure(ASKED + 3.0, measured, ["ping"]))
                    while not (pinging.done() and load.poll() is not None):
                        await asyncio.sleep(0.05)
                        most = max(most, resident_bytes([gateway.pid]))
            step, turn, *_ = look(gateway, directory / "turns")
            until(answers.read_text, log.read_text())
            print(f"{count} POSTs of {len(BODY) / 1e6:.2f} MB at a time to {what} while access is asked")
            print(
                f"answered {answers.read_text().strip()}; memory of the gateway {(most - before) / 1e6:+.0f} MB at most"
            )
            print(
                f"a ping meanwhile: p99 {measured.of('ping', 0.99)} ms, the slowest {measured.of('ping', 1.0)} ms",
                end="",
            )
            print(f"; longest step {1000 * step:.1f} ms, longest turn {1000 * turn:.1f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.posts", description=__doc__)
    parser.add_argument("--posts", type=int, default=400)
    parser.add_argument("--before", default="", metavar="DIR", help="checkout of another gateway, to measure that")
    parser.add_argument("--load", type=int, nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    allow_many_files()
    if asked.load:
        port, sessions = asked.load
        asyncio.run(_load(port, asked.posts, sessions))
        return
    with tempfile.TemporaryDirectory(prefix="kraftek-bench-") as name:
        directory, port, auth = Path(name), free_port(), free_port()
        with started(directory, CONFIG.format(directory=directory, port=port, auth=auth), asked.before) as (_, gateway):
            asyncio.run(_measured(port, auth, directory, gateway, asked.posts))


if __name__ == "__main__":
    main()

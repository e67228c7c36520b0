"""The auth service of the chaos run: it changes its mind, and is slow, silent, broken or away when told to."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from itertools import count
from typing import Any

from tests.chaos.ledger import Ban, Ledger

__all__ = ["AuthService"]

SLOW = 1.0
"""Seconds that it takes for an answer while it is ``slow``."""


class AuthService:
    """Says yes to every token, ``<user>.<number>``, but for those that are over and whom a ban of the ledger concerns.

    ``state``: ``up``, ``slow``, ``silent`` (no answer), ``broken`` (status 500) or ``away`` (connections are reset).
    """

    def __init__(self, ledger: Ledger) -> None:
        self.state = "up"
        self.port = 0
        self.asked = 0
        self._ledger = ledger
        self._numbers = count(1)
        self._expiry: dict[str, float] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        connections = tuple(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    @property
    def connections(self) -> int:
        """How many there are: the gateway keeps as many as it had questions at a time."""
        return len(self._connections)

    def token(self, user: str, seconds: float | None = None) -> str:
        """A new token of the user, which is over after so long."""
        token = f"{user}.{next(self._numbers)}"
        if seconds is not None:
            now = time.monotonic()
            self._expiry[token] = time.time() + seconds
            self._ledger.expires(user, now, now + seconds)
        return token

    def allows(self, token: str, room: str | None) -> bool:
        """The truth."""
        user = token.partition(".")[0]
        refused = any(ban.until == float("inf") and ban.concerns(user, room) for ban in self._ledger.bans)
        return not refused and self._expiry.get(token, time.time() + 1) > time.time()

    def ban(self, user: str, room: str | None, how: str) -> Ban:
        """Change its mind about a user."""
        ban = Ban(user, room, time.monotonic(), how)
        self._ledger.bans.append(ban)
        return ban

    def _answer(self, token: str, room: str | None) -> tuple[str, dict[str, Any]]:
        if not self.allows(token, room):
            return "401 Unauthorized", {"success": False, "message": "no"}
        answer = {"success": True, "userId": token.partition(".")[0], "roomId": room, "ttl": self._ledger.ttl}
        if token in self._expiry:
            answer["expiresAt"] = self._expiry[token]
        return "200 OK", answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
                    question = json.loads(await reader.readexactly(size))
                    if not await self._reply(writer, question):
                        return
        finally:
            self._connections.discard(task)
            writer.close()

    async def _reply(self, writer: asyncio.StreamWriter, question: dict[str, Any]) -> bool:
        self.asked += 1
        if self.state == "away":
            writer.transport.abort()
            return False
        while self.state == "silent":
            await asyncio.sleep(0.1)
        status, answer = self._answer(question["token"], question["roomId"])
        if self.state == "slow":
            await asyncio.sleep(SLOW)
        if self.state == "broken":
            status, answer = "500 Internal Server Error", {"success": True, "userId": "nobody"}
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return True

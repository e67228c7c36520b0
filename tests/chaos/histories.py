"""Rooms with history in a chaos run: what a service tells them, what survives of it, and what pages have of it.

Services tell by the script that the kits send, or by the Function, with an id, until Redis has answered. What survives
is known by the answers, by which ancestors Redis says that an epoch has, and in the end by Redis's logs. The pages are
those of :mod:`tests.chaos.crowd`; :class:`tests.support.copies.Copy` holds what they were told to that.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from kraftek.contract.history import FUNCTION, TELL
from kraftek.contract.names import BROADCAST, history_log_key, history_position_key, room_topic
from tests.chaos.crowd import PAGES
from tests.chaos.ledger import CALM
from tests.support.copies import Copy, Said

if TYPE_CHECKING:
    from tests.chaos.world import World

__all__ = ["CONFIG", "Histories", "two_in_five"]

KEPT = 200
CONFIG = f"""
[rooms]
"h*" = {{history = {KEPT}}}
"""

TOLD = "chat:note:new"
TELLERS = 4
TOLD_EVERY = 0.05
"""Seconds between two messages to any of the rooms."""
TELLING = 0.2
"""Seconds until a message is told again that Redis has not answered."""
LOOKS_EVERY = 0.5
"""Seconds between two looks at which epochs rooms have."""
ARRIVED = 15.0
"""Seconds in which pages are there, and where their rooms are."""
EXCLUDES = 0.1
"""How much of what is told is not for one of the sockets."""


class Histories:
    """``pages``: how many. ``callers``: they, for the crowd."""

    def __init__(self, world: World, pages: int) -> None:
        self.rooms = [f"h{number}" for number in range(max(pages // 20, 2))]
        self.callers = {f"{PAGES}{each}": (two_in_five(self.rooms, each), 1) for each in range(pages)}
        self._world = world
        self._ledger = world.ledger
        self._random = Random(f"{world.seed} histories")
        self._told: dict[tuple[str, str, int], Said] = {}
        self._heard: dict[tuple[str, str, int], Said] = {}
        self._ancestors: dict[tuple[str, str], list[tuple[str, int]]] = {}
        self._lines: list[dict[str, Any]] = []
        self._where: dict[tuple[str, str], tuple[str, int]] = {}
        self._sockets: dict[str, str] = {}
        self._gone: set[str] = set()
        self._pages = pages
        self._tasks: list[asyncio.Task[None]] = []
        self._survives: dict[tuple[str, str], list[Said | None]] = {}

    def start(self) -> None:
        """The pages are there: rooms are told something all the time."""
        loops = [self._speak(each) for each in range(TELLERS)]
        self._tasks = [asyncio.create_task(loop) for loop in (*loops, self._look_on())]

    def stop(self) -> None:
        """However the run ends."""
        for task in self._tasks:
            task.cancel()

    # What is told

    async def _speak(self, number: int) -> None:
        """One teller has some of the rooms: each is told one thing after the other."""
        rooms = self.rooms[number::TELLERS]
        while rooms:
            await asyncio.sleep(TOLD_EVERY * TELLERS)
            sockets = [*self._sockets.values()]
            but_for = [self._random.choice(sockets)] if sockets and self._random.random() < EXCLUDES else []
            await self._tell(self._random.choice(rooms), but_for)

    async def _tell(self, room: str, but_for: Sequence[str] = ()) -> None:
        """Tell a room something: until that is certain."""
        number = next(self._world.numbers)
        message: dict[str, Any] = {"type": TOLD, "payload": {"n": number}}
        if but_for:
            message["excludeSocketIds"] = [*but_for]
        words = room, json.dumps(message), str(number), "", BROADCAST
        command = ("FCALL", FUNCTION, 0) if number % 2 else ("EVAL", TELL.source, 0)
        while True:
            try:
                _, offset, epoch = await self._world.publisher.execute_command(*command, *words)
            except ResponseError as error:
                if "Function not found" in str(error):
                    command = "EVAL", TELL.source, 0  # it was lost with the data, and no gateway has been there yet
            except (RedisError, OSError):
                pass
            else:
                break
            await asyncio.sleep(TELLING)
        self._ledger.seen["told to rooms with history"] += 1
        if offset:
            self._told[room, epoch, offset] = Said(number, frozenset(but_for))
        else:
            self._ledger.seen["told while the rules were lost"] += 1

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(LOOKS_EVERY)
            await self._look()

    async def _look(self) -> dict[str, tuple[str, int]]:
        """Where the rooms are, and by which ancestors."""
        found = {}
        for room in self.rooms:
            try:
                key = history_position_key(room_topic(room))
                epoch, offset, ancestors = await self._world.publisher.hmget(key, "epoch", "offset", "ancestors")
            except (RedisError, OSError):
                continue
            if epoch is not None:
                found[room] = epoch, int(offset)
                words = (ancestors or "").split()
                chain = [(epoch, 0), *zip(words[::2], map(int, words[1::2]), strict=True)]
                for at, (each, _) in enumerate(chain):
                    self._ancestors.setdefault((room, each), chain[at + 1 :])
        return found

    # What pages were told

    def take(self, line: dict[str, Any]) -> None:
        """What one of the pages has written down."""
        self._lines.append(line)
        page, room = line["user"], line["room"]
        match line["what"]:
            case "gone":
                self._gone.add(page)
                self._sockets.pop(page, None)
            case "answered" | "position":
                self._gone.discard(page)
                self._sockets[page] = line["socket"]
                self._where[page, room] = line["payload"].get("epoch", ""), line["payload"].get("offset") or 0
            case "heard":
                self._where[page, room] = line["epoch"], line["offset"]

    async def _until_there(self) -> None:
        """All pages are there, and where their rooms are."""
        until, found = time.monotonic() + ARRIVED, ["nobody looked"]
        while found and time.monotonic() < until:
            await asyncio.sleep(0.2)
            positions = await self._look()
            self._world.read_crowd()
            pages = {page for page, _ in self._where} - self._gone
            found = [f"{page} is at {at} in {room}, which is at {positions.get(room)}"
                     for (page, room), at in self._where.items() if at != positions.get(room)]  # fmt: skip
            if len(pages) != self._pages:
                found.append(f"{len(pages)} pages are there, of {self._pages}")
        for what in found[:5]:
            self._ledger.wrong(f"{ARRIVED:g} s after nothing was wrong any more: {what}")

    async def _tell_all(self) -> None:
        async with asyncio.timeout(2 * ARRIVED):
            for room in self.rooms:
                await self._tell(room)
        await self._until_there()

    async def end(self) -> None:
        """Nothing is wrong any more: pages come back. Then their gateways' subscriptions are lost once more, just when
        every room is told the last thing.
        """
        for task in self._tasks[:-1]:
            task.cancel()
        await asyncio.gather(*self._tasks[:-1], return_exceptions=True)
        await self._tell_all()
        await self._world.publisher.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await self._tell_all()
        self._tasks[-1].cancel()
        positions, logs = await self._look(), {}
        for room in self.rooms:
            entries = await self._world.publisher.xrange(history_log_key(room_topic(room)))
            logs[room] = {int(at.partition("-")[0]): json.loads(fields["m"])["payload"]["n"] for at, fields in entries}
        await self._world.end_crowd()
        self._judge(positions, logs)

    # What is wrong with it

    def _said(self, room: str, epoch: str, offset: int) -> Sequence[Said | None] | None:
        """What survives of an epoch, as a copy asks for it."""
        ancestors = self._ancestors.get((room, epoch))
        if ancestors is None:
            return None
        said = self._survives.setdefault((room, epoch), [])
        for each in range(len(said) + 1, offset + 1):
            of = [epoch, *(name for name, last in ancestors if each <= last)]
            # Of what was told, and lost with the data before Redis could answer, nobody knows but who has heard it.
            found = (known.get((room, name, each)) for known in (self._told, self._heard) for name in of)
            said.append(next((one for one in found if one is not None), None))
        return said

    def _judge(self, positions: dict[str, tuple[str, int]], logs: dict[str, dict[int, int]]) -> None:
        for line in self._lines:
            if line["what"] == "heard":
                self._heard.setdefault((line["room"], line["epoch"], line["offset"]), Said(line["n"]))
        copies: dict[tuple[str, str], Copy] = {}
        by_page: dict[str, set[str]] = defaultdict(set)
        for line in self._lines:
            page, room = line["user"], line["room"]
            if line["what"] in {"answered", "position", "heard"} and room not in by_page[page]:
                by_page[page].add(room)
                copies[page, room] = Copy(room, self._said, self._complains(page))
            if line["what"] == "answered":
                for each in by_page[page]:
                    copies[page, each].connected(line["socket"])  # since names the sockets that the page had
            self._judge_line(line, copies.get((page, room)))
        for (page, room), copy in copies.items():
            copy.has_all(*positions.get(room, ("", 0)))
            self._ledger.seen["pages in rooms with history"] += page not in self._gone
            self._ledger.seen["snapshots of rooms with history"] += copy.snapshots
        for room, (epoch, offset) in positions.items():
            said = self._said(room, epoch, offset) or []
            numbers = [None if each is None else each.number for each in said]
            lost = [at for at, number in logs[room].items() if numbers[at - 1] != number]
            if lost or len(logs[room]) != min(offset, KEPT):
                self._ledger.wrong(f"{room} keeps {len(logs[room])} of {offset}, and {lost[:5]} differ")

    def _complains(self, page: str) -> Any:
        return lambda what: self._ledger.wrong(f"{page}: {what}")

    def _judge_line(self, line: dict[str, Any], copy: Copy | None) -> None:
        seen, what = self._ledger.seen, line["what"]
        if what == "error":
            seen[f"pages get {line['payload'].get('code')}"] += 1
        elif what == "heard":
            assert copy is not None
            seen["heard in rooms with history"] += 1
            copy.heard(line["offset"], line["n"])
        elif what in {"answered", "position"}:
            assert copy is not None
            payload, since = line["payload"], line.get("since")
            seen[f"{what}: recovered {payload.get('recovered')} {payload.get('reason', '')}".strip()] += 1
            if payload.get("recovered") is False:
                self._excuse(line, copy)
            if what == "answered":
                copy.answered(payload, since)
            else:
                copy.positioned(payload)

    def _excuse(self, line: dict[str, Any], copy: Copy) -> None:
        """Whether the page had to lose its place."""
        payload, room, at = line["payload"], copy.room, line["at"]
        reason, story = (
            payload["reason"],
            f"{line['user']} at {copy} is told {payload} at {at - self._ledger.began:.3f}",
        )
        if reason == "unavailable":
            gateway = line["socket"].partition(".")[0]
            if self._ledger.troubles.quiet(self._ledger.gateway_names(gateway), at - CALM, at):
                self._ledger.wrong(f"{story}, and nothing is wrong")
        elif reason == "epoch":
            chain = [(payload["epoch"], payload["offset"]), *self._ancestors.get((room, payload["epoch"]), ())]
            survives = any(epoch == copy.epoch and copy.offset <= last for epoch, last in chain) and len(chain) < 8
            if survives and copy.offset <= payload["offset"]:  # otherwise it was ahead of its gateway
                self._ledger.wrong(f"{story}, and was in one of {chain}")
        elif payload["offset"] - copy.offset <= KEPT:
            self._ledger.wrong(f"{story}, and {KEPT} are kept")


def two_in_five(rooms: Sequence[str], number: int) -> list[str]:
    """The rooms of one of the crowd: two in five are in two of these."""
    first = number % len(rooms)
    return [rooms[first], rooms[(first + 1) % len(rooms)]] if number % 5 < 2 else [rooms[first]]

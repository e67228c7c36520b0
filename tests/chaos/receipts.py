"""Messages with a receipt in a chaos run: who has got them, as a service is told, is held to what pages did.

A service tells some of the pages, and somebody who never comes, what they are to acknowledge; the pages of the crowd
do, but those that are mute. In seconds:

==============  ======================================================================================================
:data:`WITHIN`  pages have to acknowledge a message
:data:`SURE`    before it is told, a page has come or gone, or its gateway may not know that yet
==============  ======================================================================================================
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

from kraftek.service import Away, OldGateway, Receipt, Rejected
from kraftek.service.asyncio import Publisher
from tests.chaos.crowd import is_mute
from tests.chaos.ledger import CALM, Ledger

if TYPE_CHECKING:
    from tests.chaos.world import World

__all__ = ["STRANGER", "Mail", "Receipts", "Tellers"]

WITHIN = 3.0
SURE = 2.0
TOLD = "chat:mail:new"
TELLERS = 2
EVERY = 0.5
"""Seconds between two messages of a teller."""
TO = 5
STRANGER = "stranger"
"""A user who never comes."""

THERE, AWAY, UNSURE = "there", "away", "unsure"
STATES = {"answered": THERE, "gone": AWAY, "error": UNSURE}
"""What a page is when it has noted that."""


@dataclass(frozen=True)
class Mail:
    """A message to these users, told ``at``. ``receipt``: what its teller heard of it, ``until`` then."""

    number: int
    users: tuple[str, ...]
    at: float
    receipt: Receipt
    until: float


class Receipts:
    """What was acknowledged, and what tellers heard of it. No I/O."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._mails: list[Mail] = []
        self._acknowledged: dict[tuple[str, int], float] = {}
        self._states: dict[str, list[tuple[float, str]]] = defaultdict(list)

    def take(self, line: dict[str, Any]) -> None:
        """What one of the pages has written down."""
        if line["what"] == "acknowledges":
            self._acknowledged.setdefault((line["user"], line["n"]), line["at"])
        elif state := STATES.get(line["what"]):
            self._states[line["user"]].append((line["at"], state))

    def told(self, mail: Mail) -> None:
        """A teller has its receipt."""
        self._mails.append(mail)
        self._ledger.seen["receipts"] += 1

    def failed(self, at: float, until: float, why: str) -> None:
        """A teller has none."""
        self._ledger.seen["receipts that failed"] += 1
        if self._is_quiet(at, until):
            self._ledger.wrong(f"no receipt at {at - self._ledger.began:.3f}, and nothing is wrong: {why}")

    def _is_quiet(self, at: float, until: float) -> bool:
        return self._ledger.troubles.quiet(self._ledger.troubles.names, at - CALM, until)

    def judge(self) -> None:
        """All that pages wrote down is taken."""
        for mail in self._mails:
            story = f"message {mail.number} at {mail.at - self._ledger.began:.3f}: {mail.receipt}"
            receipt = mail.receipt
            said = Counter((*receipt.acknowledged, *receipt.slow, *receipt.offline, *receipt.owed))
            if said != Counter(mail.users):
                self._ledger.wrong(f"{story}, and it was told to {mail.users}")
            for user in receipt.acknowledged:
                if self._acknowledged.get((user, mail.number), mail.until) >= mail.until:
                    self._ledger.wrong(f"{story}, and {user} has not acknowledged it")
            if self._is_quiet(mail.at, mail.until):
                self._judge_in_quiet(mail, story)

    def _judge_in_quiet(self, mail: Mail, story: str) -> None:
        """Nothing was wrong: so each is what it was all the time."""
        self._ledger.seen["receipts when nothing is wrong"] += 1
        receipt = mail.receipt
        if not receipt.complete or receipt.owed:
            self._ledger.wrong(f"{story}, and nothing is wrong")
        for user in mail.users:
            state = self._state(user, mail.at - SURE, mail.until)
            ends = {THERE: "slow" if is_mute(user) else "acknowledged", AWAY: "offline"}
            if state in ends:
                self._ledger.seen[f"receipts: {ends[state]}"] += 1
                if user not in getattr(receipt, ends[state]):
                    self._ledger.wrong(f"{story}, and {user} was {state} all the time")

    def _state(self, user: str, since: float, until: float) -> str:
        """What the page was all the time, if it was one thing."""
        before, states = AWAY, set()
        for at, state in self._states.get(user, ()):
            if at <= since:
                before = state
            elif at <= until:
                states.add(state)
        return before if states <= {before} else UNSURE


class Tellers:
    """They tell ``pages`` something all the time, with a receipt."""

    def __init__(self, world: World, receipts: Receipts, pages: Iterable[str]) -> None:
        self._world = world
        self._receipts = receipts
        self._pages = [*pages]
        self._random = Random(f"{world.seed} receipts")
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, url: str) -> None:
        """The pages are there, and Redis is at ``url``."""
        self._tasks = [asyncio.create_task(self._tell_on(url)) for _ in range(TELLERS)]

    async def stop(self) -> None:
        """Return once nothing is told any more."""
        for task in self._tasks:
            task.cancel()
        for end in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(end, Exception):
                self._world.ledger.wrong(f"a teller of messages with receipts has ended: {end!r}")
        self._tasks.clear()

    async def _tell_on(self, url: str) -> None:
        async with Publisher(url) as publisher:
            while True:
                await asyncio.sleep(EVERY)
                await self._tell(publisher)

    async def _tell(self, publisher: Publisher) -> None:
        number = next(self._world.numbers)
        users = (*self._random.sample(self._pages, min(TO, len(self._pages))), STRANGER)
        at = time.monotonic()
        try:
            receipt = await publisher.broadcast_with_receipt(TOLD, {"n": number}, user_ids=users, timeout=WITHIN)
        except (Away, Rejected, OldGateway) as error:
            self._receipts.failed(at, time.monotonic(), repr(error))
        else:
            self._receipts.told(Mail(number, users, at, receipt, time.monotonic()))

"""Requests that are answered in parts, and cancelled, in a chaos run: what must hold of each. No I/O.

The clients of :mod:`tests.chaos.talkers` say what they ask, cancel and are told; services write down when their
handlers begin and end. In seconds:

============  ========================================================================================================
:data:`ENDS`  after a request was cancelled, and nothing was wrong for ten seconds, no handler runs for it any more, and
              none begins
============  ========================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

from tests.chaos.ledger import CALM, WAITS, Ledger

__all__ = ["ENDS", "Talks"]

ENDS = 1.0
TOO_LATE = 1.0
"""Seconds after which an event with that id is another request: by its gateway's clock, which is this machine's."""
CANCELLED = "CANCELLED"


@dataclass
class Run:
    """Of a handler. ``how`` it has ended, if it has."""

    begun: float
    ended: float = inf
    how: str = ""


@dataclass
class Talk:
    """A request, sent through these ``gateways``. ``heard``: run and number of each part, in order. ``cancelled_at``:
    when its client said so, or was told that it is.
    """

    key: str
    service: str
    at: float
    parts: int
    gateways: set[str]
    cancelled_at: float = inf
    outcome: str | None = None
    settled_at: float = inf
    heard: list[tuple[str, int]] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)
    given_up: bool = False


@dataclass(frozen=True)
class Claim:
    """It is a hole, unless anything on the way of the request was wrong between these times."""

    talk: Talk
    what: str
    since: float
    until: float


class Talks:
    """All of them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._all: dict[str, Talk] = {}
        self._claims: list[Claim] = []

    # What clients do, and are told

    def asked(self, key: str, service: str, gateway: str, parts: int, at: float) -> None:
        """A client sends a request that takes so many parts, for the first time or again."""
        talk = self._all.setdefault(key, Talk(key, service, at, parts, set()))
        talk.gateways.add(gateway)

    def cancelled(self, key: str, at: float) -> None:
        """Its client has said that it does not want it any more."""
        talk = self._all[key]
        talk.cancelled_at = min(talk.cancelled_at, at)
        self._ledger.seen["cancelled"] += 1

    def given_up(self, key: str) -> None:
        """Its client hears nothing of it any more."""
        self._all[key].given_up = True

    def part(self, key: str, run: str, number: int, payload: Any, at: float) -> None:
        """A client was told a part of the answer."""
        self._ledger.seen["parts heard"] += 1
        talk = self._all[key]
        last_run, last = talk.heard[-1] if talk.heard else ("", 0)
        story = f"{key} gets part {number} of {run} at {at - self._ledger.began:.3f}, after {last} of {last_run}"
        talk.heard.append((run, number))
        if payload != {"n": number}:
            self._ledger.wrong(f"{story}: it is {payload}")
        if run == last_run and number <= last:
            self._ledger.wrong(story)
        elif number != (last + 1 if run == last_run else 1) or run in {each for each, _ in talk.heard[:-2]} - {
            last_run
        }:
            self._claim(talk, story, at - CALM, at)

    def settled(self, key: str, outcome: str, at: float) -> None:
        """A client is answered: ``ok``, or the code of an error. Whoever asks again is told the same."""
        talk, seen = self._all[key], self._ledger.seen
        if talk.outcome is not None:
            seen["asked for an answer again"] += 1
            if outcome != talk.outcome:
                text = f"{key} is answered {outcome} at {at - self._ledger.began:.3f}, and was {talk.outcome} before"
                self._claim(talk, text, talk.settled_at - CALM, at)
            return
        seen[f"answered in parts: {outcome}"] += 1
        talk.outcome, talk.settled_at = outcome, at
        if outcome == CANCELLED and talk.cancelled_at == inf:
            self._ledger.wrong(f"{key} is {CANCELLED}, and nobody had cancelled it")

    # What services do

    def ran(self, line: Mapping[str, Any]) -> None:
        """A handler begins or ends."""
        self._ledger.seen[f"a long handler {line['how']}"] += 1
        talk = self._all.get(str(line["payload"]))
        if talk is None:
            self._ledger.wrong(f"a handler {line['how']} with {line}, which nobody has asked")
        elif line["how"] == "begins":
            talk.runs[line["run"]] = Run(line["at"])
        else:
            run = talk.runs[line["run"]]
            run.ended, run.how = line["at"], line["how"]

    # What must hold

    def judge(self, done: Mapping[str, int]) -> None:
        """Look at all of them; nothing is under way any more. ``done``: how often each handling was committed."""
        for talk in self._all.values():
            self._judge(talk, done.get(f"{talk.service} {talk.key}", 0))
        for claim in self._claims:
            quiet = self._ledger.troubles.quiet(self._names(claim.talk), claim.since, claim.until)
            if quiet and not self._ledger.lost(claim.since, claim.until):
                self._ledger.wrong(claim.what)

    def _judge(self, talk: Talk, done: int) -> None:
        wrong, story = self._ledger.wrong, f"{talk.key} to {talk.service}, asked at {talk.at - self._ledger.began:.3f}"
        if talk.outcome is None:
            if not talk.given_up:
                wrong(f"{story}: no answer")
            until = max([talk.cancelled_at, *(run.begun for run in talk.runs.values())]) if talk.given_up else talk.at
        else:
            until = talk.settled_at
            story += f", {talk.outcome} at {until - self._ledger.began:.3f}"
        lost = self._ledger.lost(talk.at, until + WAITS)
        begun = [run.begun for run in talk.runs.values()]
        if talk.outcome == "ok" and not done and not self._ledger.lost(talk.at, inf):  # with the count itself
            wrong(f"{story}: and nobody has done it")
        if done > 1 and not lost:
            wrong(f"{story}: it was done {done} times")
        if len(begun) > 1 and talk.service == "chat" and not lost:
            wrong(f"{story}: handled {len(begun)} times")
        if talk.outcome is not None:
            self._judge_answer(talk, story)
        if talk.cancelled_at < inf:
            self._judge_cancel(talk, story)

    def _judge_answer(self, talk: Talk, story: str) -> None:
        since = talk.at - CALM
        if talk.outcome not in ("ok", CANCELLED):
            self._claim(talk, f"{story}: and nothing was wrong", since, talk.settled_at)
        elif talk.outcome == "ok":
            if not talk.heard or talk.heard[-1][1] != talk.parts:
                at = talk.heard[-1] if talk.heard else "none"
                self._claim(talk, f"{story}: it has {talk.parts} parts, and {at} was the last", since, talk.settled_at)
            was_done = any(run.how == "ends" and run.ended <= talk.cancelled_at for run in talk.runs.values())
            if talk.settled_at > talk.cancelled_at + ENDS and not was_done:
                text = f"{story}: and it was cancelled at {talk.cancelled_at - self._ledger.began:.3f}"
                self._claim(talk, text, since, talk.settled_at)

    def _judge_cancel(self, talk: Talk, story: str) -> None:
        at = talk.cancelled_at
        for run in talk.runs.values():
            since, until = run.begun - self._ledger.began, run.ended - self._ledger.began
            text = f"cancelled at {at - self._ledger.began:.3f}, and a handler ran from {since:.3f} to {until:.3f}"
            if run.begun <= at < run.ended and run.ended - at < ENDS:
                self._ledger.seen["handlers that ended when cancelled"] += 1
            if run.ended > at + ENDS and run.begun < at + TOO_LATE:
                self._claim(talk, f"{story}: {text}", min(talk.at, at) - CALM, at + ENDS)

    def _claim(self, talk: Talk, what: str, since: float, until: float) -> None:
        self._claims.append(Claim(talk, what, since, until))

    def _names(self, talk: Talk) -> list[str]:
        """Whose troubles are on its way."""
        services = [name for name in self._ledger.troubles.names if name.startswith(f"{talk.service}-")]
        return [*services, *(name for gateway in talk.gateways for name in self._ledger.gateway_names(gateway))]

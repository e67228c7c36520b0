"""The simulation is sharp: it finds each of these faults when its mending is undone, and none while it is there."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from kraftek.contract.history import TELL
from kraftek.contract.lua import Script
from kraftek.core import dispatch, requests
from kraftek.core.access.listening import Listening
from kraftek.core.access.revocations import Revocations
from kraftek.core.catch_up import CatchUp
from kraftek.core.deliveries import Deliveries
from kraftek.core.following import Following
from kraftek.core.history import log
from kraftek.core.rooms import room_cache
from kraftek.core.rooms.reconciliation import Reconciliation
from kraftek.core.rooms.room_cache import RedisRooms
from kraftek.core.withheld import Withholding
from tests.simulation import people
from tests.simulation.invariants import Violation
from tests.simulation.steps import (
    Ask,
    AskAgain,
    Authenticate,
    AuthIs,
    Ban,
    ComeBack,
    Connect,
    Cut,
    CutAll,
    Disconnect,
    FailOver,
    Lag,
    Program,
    Reads,
    Refuse,
    Save,
    Say,
    Step,
    Unfollow,
    Wait,
    run,
)
from tests.simulation.world import Setup

ANN = Connect(0, "ann/1", "red")
BANNED = Ban("ann", None, None, "invalidate")


class Mending(NamedTuple):
    """``undo``: what takes the place of which attributes. ``found``: what the simulation says then."""

    undo: list[tuple[Any, str, Any]]
    steps: tuple[Step, ...]
    found: str
    setup: Setup = Setup()


def _without_claims(self: Any, *args: Any, made: Any = requests.Requests.__init__, **named: Any) -> None:
    made(self, *args, **named)
    self._lasts = False


def _by_arrival(self: Any, present: Any, made: Any = RedisRooms.mend) -> Any:
    """The time at which Redis is told counts, in place of that at which the client came."""
    return made(self, [(entry, round(self._now() * 1_000_000)) for entry, _ in present])


def _without_rivals(script: Script) -> Script:
    """The same without what ``holder.lua`` does."""
    source = script.source.replace("for i = 1, tonumber(ARGV[arg + 5]) do", "for i = 1, 0 do")
    assert source != script.source
    return Script(source)


def _replaced(script: Script, part: str, by: str) -> Script:
    assert part in script.source
    return Script(script.source.replace(part, by))


def _by_generation_alone(script: Script) -> Script:
    """The same on whatever server."""
    return _replaced(script, "generation .. ':' .. order_of(history.stand).epoch", "generation")


HISTORY = Setup(history=100, oldest=True)
COMES = Connect(0, "ann/1", "red"), Wait(0.3), Say("red"), Wait(0.3)

SHARING = Connect(0, "a:b/1", "c"), Wait(0.3), Connect(1, "a/1", "b:c"), Wait(0.3)
"""Two who are where their names come to one string."""

MENDINGS = {
    "no answer from before a gap is believed": Mending(
        [(Listening, "believes", lambda _, asked_at: True)],
        # Cut once, the links are made again before anything is lost.
        (ANN, Wait(1.0), CutAll(), Wait(0.1), CutAll(), BANNED, Wait(3.0), ANN, Wait(0.1)),
        "its links were lost",
    ),
    "what is said waits while access is in question": Mending(
        [(Withholding, "begin", lambda *_: None)],
        (ANN, Wait(1.0), AuthIs("slow"), BANNED, Wait(0.01), Say("red"), Wait(0.1)),
        "is told what is said in red",
    ),
    "another token in place of one that was taken back is asked about, too": Mending(
        [(Withholding, "begin", lambda *_: None)],
        (ANN, Wait(1), Authenticate(0, 2, "blue"), Wait(1), AuthIs("slow"), BANNED, Wait(0.1), Say("red"), Wait(0.1)),
        "is told what is said in red by ann/1",
    ),
    "revocations are kept while writes are refused": Mending(
        [
            (Revocations, "concern", lambda *_: False),
            (Revocations, "sweep", lambda _: None),
            (Revocations, "pending", lambda _: frozenset()),
        ],
        (ANN, Wait(1.0), Refuse("MISCONF"), BANNED, Wait(0.1), Connect(1, "ann/1", "red"), Wait(0.1)),
        "is admitted in red",
    ),
    "what Redis refused is made good": Mending(
        [(Reconciliation, "sweep", lambda _: None)],
        (ANN, Wait(1.0), Refuse("READONLY"), Disconnect(0), Wait(1.0)),
        "room:red has ann",
    ),
    "presence that a full stream did not take is told later": Mending(
        [(dispatch, "_AT_ONCE", 0)],
        (Reads(reads=False), ANN, *(Connect(0, f"{name}/1", "red") for name in ("bob", "a", "cid", "dan")), Wait(1.0)),
        "log thinks that there are",
    ),
    "logins are ordered by time": Mending(
        [(RedisRooms, "mend", _by_arrival)],
        (Cut(0, ("commands", "subscriber"), 0.0), ANN, Wait(0.01), Connect(1, "ann/1", "red"), Wait(3.0)),
        "there was no newer login",
    ),
    "of two entries with one string the later stands": Mending(
        [(room_cache, "MEND", _without_rivals(room_cache.MEND))],
        (*SHARING, CutAll(), Wait(3.0)),
        "socket:a:b:c is",
    ),
    "an entry that leaves puts the other's string back": Mending(
        [(room_cache, "LEAVE", _without_rivals(room_cache.LEAVE))],
        (*SHARING, Disconnect(1), Wait(0.3)),
        "the keys are",
    ),
    "a request that is sent again is claimed": Mending(
        [(requests.Requests, "__init__", _without_claims)],
        (ANN, Wait(0.1), Ask(0, 0), Disconnect(0), AskAgain(0, 1), Wait(0.1)),
        "twice",
    ),
    "a lost receipt is looked up": Mending(
        [(requests, "_UNCERTAIN", ())],
        (ANN, Wait(0.1), Lag(0, "commands", 0.5), Ask(0, 0), Wait(0.1), Cut(0, ("commands",), 1.0), Wait(3.0)),
        "which the service has",
    ),
    "whoever comes back gets what was said meanwhile": Mending(
        [(Deliveries, "tell_again", lambda *_, **__: None)],
        (*COMES, Disconnect(0), Say("red"), ComeBack(0, 1), Wait(0.3)),
        "misses 2",
        HISTORY,
    ),
    "what is said to who catches up waits": Mending(
        [(CatchUp, "write", lambda self, outgoing: self._outlet().write(outgoing))],
        (
            *COMES,
            Connect(1, "bob/1", "red"),
            Wait(0.3),
            Disconnect(0),
            Say("red"),
            Lag(1, "commands", 0.5),
            ComeBack(0, 1),
            Wait(3.0),
            *[Say("red")] * 20,
            Wait(1.0),
        ),
        "misses 2",
        HISTORY,
    ),
    "a lost subscription is found": Mending(
        [(Following, "sweep", lambda _: None)],
        (*COMES, Unfollow(0), Say("red"), Wait(12.0)),
        "misses 2",
        HISTORY,
    ),
    "another server's history is another epoch": Mending(
        [
            (log, "READ", _by_generation_alone(log.READ)),
            (log, "COMPARE", _by_generation_alone(log.COMPARE)),
            (people, "TELL", _by_generation_alone(TELL)),
        ],
        (*COMES, Save(), Say("red"), Wait(0.3), FailOver(0.0, lives=False), Say("red"), Wait(3.0)),
        r"has other messages than survive|hears \d+ at 2, where \d+ was said",  # by when the gateway is back
        HISTORY,
    ),
    "what is told again with its id is told once": Mending(
        [(people, "TELL", _replaced(TELL, "if known then", "if false then"))],
        (*COMES, *[Say("red")] * 12),
        "is told twice",
        HISTORY,
    ),
}


@pytest.fixture(params=MENDINGS)
def mending(request: pytest.FixtureRequest) -> Mending:
    return MENDINGS[request.param]


def test_its_undoing_is_found(mending: Mending, monkeypatch: pytest.MonkeyPatch) -> None:
    run(Program(mending.setup, mending.steps))
    for owner, name, instead in mending.undo:
        monkeypatch.setattr(owner, name, instead)
    with pytest.raises(Violation, match=mending.found):
        run(Program(mending.setup, mending.steps))

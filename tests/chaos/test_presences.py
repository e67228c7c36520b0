"""What watchers are told is held to who is there: each hole is found, and none where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.ledger import REDIS, Ledger
from tests.chaos.presences import KNOWN, Presences

ANN, BOB, CID = "watcher0", "watcher1", "watcher2"
"""They have one, two and three connections, and are in p0 and p1, p1 and p0, and p0."""


class Run:
    """What three watchers write down in p0, and what comes of it."""

    def __init__(self, users: int = 3) -> None:
        self.ledger = Ledger(processes={"a": "gateway-0", "b": "gateway-1"})
        self.presences = Presences(self.ledger, users, 5)

    def say(self, at: float, seat: str, what: str, **more: Any) -> None:
        line = {"at": at, "user": seat.partition("/")[0], "seat": seat, "what": what, "room": "p0", **more}
        self.presences.take(line)

    def enters(self, at: float, seat: str, gateway: str = "a") -> None:
        self.say(at, seat, "entered", socket=f"{gateway}.{seat}")

    def told(self, at: float, seat: str, *, answers: bool = False, count: int, **payload: Any) -> None:
        told = {key: [_shown(each) if key != "left" else each for each in users] for key, users in payload.items()}
        self.say(at, seat, "told", answers=answers, payload={"roomId": "p0", "count": count, **told})

    def come(self) -> None:
        """All are there, and know it."""
        self.enters(100.0, f"{ANN}/0")
        self.enters(100.1, f"{BOB}/0", "b")
        self.enters(100.2, f"{BOB}/1")
        self.told(100.3, f"{ANN}/0", answers=True, users=[ANN], count=1)
        self.told(101.0, f"{ANN}/0", joined=[BOB], count=2)
        self.told(100.4, f"{BOB}/0", answers=True, users=[ANN, BOB], count=2)

    def holes(self, until: float) -> list[str]:
        """Look on until then."""
        self.say(until, f"{CID}/0", "gone")
        self.presences.judge()
        return self.ledger.holes


def _shown(user: str) -> dict[str, Any]:
    return {"userId": user, "data": {"is": user}}


def test_all_know_who_is_there() -> None:
    run = Run()
    run.come()
    assert run.holes(130.0) == []
    assert run.ledger.seen["judged who knows of whom"] > 50


def test_who_stays_unknown_is_a_hole_once_it_should_be_known() -> None:
    run = Run()
    run.come()
    run.enters(110.0, f"{CID}/0", "b")
    run.say(109.9 + KNOWN, f"{ANN}/0", "error", payload={"code": "ODD"})
    run.presences.judge()
    assert run.ledger.holes == []
    run.say(110.1 + KNOWN, f"{ANN}/0", "error", payload={"code": "ODD"})
    run.presences.judge()
    assert len(run.ledger.holes) == 2
    assert f"{BOB}/0 in p0 does not know that {CID} is there at 120.000, 10 s after that" in run.ledger.holes[1]


@pytest.mark.parametrize(("trouble", "excused"), [("gateway-0", True), (REDIS, True), ("gateway-1", False)])
def test_only_a_trouble_of_theirs_excuses_it(trouble: str, excused: bool) -> None:
    run = Run()
    run.come()
    run.say(110.0, f"{BOB}/0", "gone")
    run.say(110.0, f"{BOB}/1", "gone")  # of the gateway of ann
    run.enters(131.5, f"{CID}/0")
    run.ledger.troubles.add(trouble, 111.0, 131.0)
    assert bool(run.holes(131.9)) is not excused


def test_a_user_is_there_as_long_as_one_of_its_connections_is() -> None:
    run = Run()
    run.come()
    run.say(120.0, f"{BOB}/0", "gone")
    assert run.holes(120.5) == []
    run.told(121.0, f"{ANN}/0", left=[BOB], count=1)
    found, *unknown = run.holes(125.0)
    assert all(f"{ANN}/0 in p0 does not know that {BOB} is there" in each for each in unknown)
    assert found.startswith(f"{ANN}/0 in p0 at 121.000 is told that {BOB} left, who is there since 100.2")


def test_a_connection_that_ends_just_then_may_have_left() -> None:
    run = Run()
    run.come()
    run.say(120.0, f"{BOB}/0", "gone")
    run.told(120.5, f"{ANN}/0", left=[BOB], count=1)
    run.say(121.0, f"{BOB}/1", "gone")
    assert run.holes(125.0) == []


@pytest.mark.parametrize(
    ("payload", "hole"),
    [
        ({"joined": [BOB], "count": 2}, "joined, who was there"),
        ({"left": [CID], "count": 2}, "left, whom it did not know there"),
        ({"joined": [CID], "count": 2}, "that 2 are there, and of 3"),
    ],
)
def test_a_change_that_is_none_is_a_hole(payload: dict[str, Any], hole: str) -> None:
    run = Run()
    run.come()
    run.told(105.0, f"{ANN}/0", **payload)
    (found,) = run.ledger.holes
    assert hole in found


def test_what_is_known_stays_known_over_connections() -> None:
    run = Run()
    run.come()
    run.say(105.0, f"{ANN}/0", "gone")
    run.enters(106.0, f"{ANN}/0", "b")
    run.told(106.1, f"{ANN}/0", answers=True, count=2)  # the version is the same
    run.told(107.0, f"{BOB}/1", count=2)
    found, *_ = run.holes(130.0)
    assert found.startswith(f"{BOB}/1 in p0 at 107.000 is told a difference, and knows nothing")


def test_what_a_user_shows_is_its_own() -> None:
    run = Run()
    run.come()
    line = {"userId": CID, "data": {"is": BOB}}
    run.say(115.0, f"{ANN}/0", "told", answers=False, payload={"roomId": "p0", "count": 3, "joined": [line]})
    assert any(f"is told that {CID} shows" in each for each in run.holes(116.0))


def test_it_is_seen_when_all_are_there_and_know_it() -> None:
    run = Run(users=1)
    assert run.presences.differences() == [f"{ANN}/0 is not in p0", f"{ANN}/0 is not in p1"]
    for room in ("p0", "p1"):
        nobody: dict[str, Any] = {"roomId": room, "count": 0, "users": []}
        for line in ({"what": "entered", "socket": "a.1"}, {"what": "told", "answers": True, "payload": nobody}):
            run.presences.take({"at": 1.0, "user": ANN, "seat": f"{ANN}/0", "room": room, **line})
    assert run.presences.differences() == [
        f"{ANN}/0 in {room} does not know of ['{ANN}'], but of []" for room in ("p0", "p1")
    ]
    for room in ("p0", "p1"):
        payload = {"roomId": room, "count": 1, "joined": [_shown(ANN)]}
        line = {"what": "told", "answers": False, "payload": payload}
        run.presences.take({"at": 1.0, "user": ANN, "seat": f"{ANN}/0", "room": room, **line})
    assert run.presences.differences() == []

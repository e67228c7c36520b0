"""Whole gateways, in front of a Redis that goes wrong: some seeds of what ``make simulate`` runs many of."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.simulation.invariants import Violation
from tests.simulation.programs import program_of
from tests.simulation.shrinking import failure_of, shortened
from tests.simulation.steps import (
    Ask,
    Authenticate,
    AuthIs,
    Ban,
    ComeBack,
    Connect,
    Cut,
    Disconnect,
    FailOver,
    Join,
    Leave,
    Program,
    Say,
    Tell,
    Unfollow,
    Wait,
    run,
)
from tests.simulation.world import Setup, World

SEEDS = 10
"""For each of the tests: a second."""


@pytest.fixture(autouse=True, scope="module")
def small_heap() -> Iterator[None]:
    """Each run collects its garbage, so that failures which nobody handled are logged; all else is left out of it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("first", range(20, 60, SEEDS))
def test_what_must_hold_holds(first: int) -> None:
    for seed in range(first, first + SEEDS):
        program = program_of(seed)
        error = failure_of(program)
        if error is not None:
            steps = "\n".join(map(str, shortened(program, error).steps))
            pytest.fail(f"{error}\nmake simulate SEED={seed}\n{program.setup}\n{steps}", pytrace=False)


def test_a_run_comes_twice() -> None:
    program = program_of(5)
    stories: list[list[str]] = [[], []]
    for story in stories:
        run(program, story)
    assert stories[0] == stories[1]
    assert len(stories[0]) > len(program.steps)


def test_a_run_sees_what_it_is_about() -> None:
    world = run(
        Program(
            Setup(),
            (
                Connect(0, "ann/1", "red"),
                Connect(1, "bob/1", "red"),
                Wait(1.0),
                Ask(0, 0),
                Say("red"),
                Wait(0.1),
                Ban("ann", None, None, "invalidate"),
                Cut(1, ("commands",), 0.0),
                Wait(1.0),
            ),
        )
    )
    seen = world.invariants.seen
    assert min(seen[what] for what in ("admitted", "delivered", "handled", "chat left", "log left", "read")) >= 1
    assert (seen["revoked"], seen["closed 4403"]) == (1, 1)
    assert all(gateway.counters.redis_connects == 1 + (gateway.name == "g1") for gateway in world.gateways)


@pytest.mark.parametrize("denied", [False, True])
def test_another_token_counts_in_rooms_that_it_was_not_shown_for(denied: bool) -> None:
    """Also if it is denied in the one that it was shown for: the first may be taken back then."""
    refuses = (Ban("ann", 2, "blue", "silently"),) if denied else ()
    comes = Connect(0, "ann/1", "red"), Wait(0.3), *refuses, Authenticate(0, 2, "blue"), Wait(0.1)
    world = run(Program(Setup(), (*comes, Ban("ann", 1, "red", "invalidate"), Wait(0.1), Say("red"), Wait(0.3))))
    assert world.invariants.seen["refused ACCESS_DENIED"] == denied
    assert world.invariants.seen["delivered"] >= 1
    assert not world.invariants.seen["revoked"]


def test_who_leaves_a_room_while_another_token_is_asked_about_stays_out() -> None:
    comes = Connect(0, "ann/1", "red"), Wait(0.3), Join(0, "blue"), Wait(0.3)
    world = run(Program(Setup(), (*comes, AuthIs("slow"), Authenticate(0, 2, None), Leave(0, 0), Wait(3.0))))
    assert world.invariants.seen["refreshed"] == 1
    assert {("ann", "blue")} == world.invariants.in_rooms().keys() - {("probe", "g0"), ("probe", "g1")}


def test_a_page_comes_back_to_a_room_with_history() -> None:
    come, away = (Connect(0, "ann/1", "red"), Wait(0.1)), (Disconnect(0), Wait(0.1), Say("red"), Say("red"))
    steps = (*come, Say("red"), Wait(0.1), *away, ComeBack(0, 1), Wait(0.1), Say("red", 0), Say("red"))
    world = run(Program(Setup(history=100), (*steps, FailOver(0.0, lives=False), Wait(3.0), Say("red"))))
    (page,) = (copy for client in world.clients for copy in client.copies.values() if client.user == "ann")
    assert page.snapshots == 1
    assert [each is None for each in page.seen] == [False, False, False, True, *[False] * (len(page.seen) - 4)]
    assert len(page.seen) >= 6
    assert world.invariants.seen["recovered True"] == 2  # when it came back, and when the room's epoch got another name


def test_a_gateway_that_never_works_is_found_also_when_it_may_be_full_for_a_moment() -> None:
    with pytest.raises(Violation, match="g0 does not work"):
        run(Program(Setup(in_flight=1), ()))


def test_a_page_comes_back_to_where_its_user_was() -> None:
    come, away = (Connect(0, "ann/1", "red"), Wait(0.1)), (Disconnect(0), Wait(0.1), Tell("ann"), Tell("ann"))
    steps = (*come, Tell("ann"), Wait(0.1), *away, ComeBack(0, 1), Wait(0.1), Tell("ann"), Tell("bob"), Unfollow(1))
    world = run(Program(Setup(users=100), (*steps, Tell("ann"), FailOver(0.0, lives=False), Wait(3.0), Tell("ann"))))
    (page,) = (copy for client in world.clients for copy in client.copies.values() if client.user == "ann")
    assert (page.room, page.snapshots) == ("user:ann", 1)
    assert [each is None for each in page.seen] == [False] * 6
    assert world.invariants.seen["recovered True"] == 2


def test_a_failure_is_made_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "heal", lambda world: world.invariants.wrong("a client came") if world.clients else None)
    steps = (Wait(0.1), Say("red"), Connect(0, "ann/1", "red"), Ask(0, 0), Say("red"), Wait(0.1))
    program = Program(Setup(), steps)
    error = failure_of(program)
    assert isinstance(error, Violation)
    assert shortened(program, error).steps == (Connect(0, "ann/1", "red"),)

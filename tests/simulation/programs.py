"""Programs: drawn by Hypothesis, and one for each seed."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.simulation.network import COMMANDS, SUBSCRIBER
from tests.simulation.steps import (
    ROOMS,
    USERS,
    Answers,
    Ask,
    AskAgain,
    Authenticate,
    AuthIs,
    Ban,
    Burst,
    ComeBack,
    Connect,
    Cut,
    CutAll,
    Deafen,
    Disconnect,
    FailOver,
    Flush,
    Forgive,
    Garble,
    Join,
    Kill,
    Lag,
    Leave,
    Limit,
    Pause,
    Program,
    Reads,
    Refuse,
    Resume,
    Save,
    Say,
    Start,
    Step,
    Stop,
    Tell,
    Unfollow,
    Wait,
)
from tests.simulation.world import Setup

__all__ = ["program_of", "programs"]

_small = st.integers(0, 3)
_numbers = st.integers(1, 2)
_kinds: Any = st.sampled_from([SUBSCRIBER, COMMANDS])

Steps = st.SearchStrategy[Step]
Scenes = st.SearchStrategy[tuple[Step, ...]]


def _common(users: st.SearchStrategy[str], rooms: st.SearchStrategy[str]) -> list[Steps]:
    """What may happen in every run; what stands here twice happens twice as often."""
    connect = st.builds(Connect, _small, _tokens(users), rooms)
    wait = st.builds(Wait, st.sampled_from([0.01, 0.001, 0.1, 0.3, 1.0, 3.0]))
    return [
        connect,
        connect,
        connect,
        wait,
        wait,
        st.builds(Say, rooms),
        st.builds(Say, rooms, st.none() | _small),
        st.builds(Tell, users),
        st.builds(Ask, _small, _small),
        st.builds(AskAgain, _small, _small),
        st.builds(Join, _small, rooms),
        st.builds(Leave, _small, _small),
        st.builds(Disconnect, _small),
        st.builds(ComeBack, _small, _small),
    ]


def _special(users: st.SearchStrategy[str], rooms: st.SearchStrategy[str]) -> list[Steps]:
    """Of which a run has a few kinds."""
    tokens, everywhere = _tokens(users), st.none() | rooms
    links = st.sampled_from([("subscriber",), ("commands",), ("commands", "subscriber")])
    return [
        st.builds(Ban, users, st.none(), everywhere, st.just("invalidate")),
        st.builds(Ban, users, st.none(), everywhere, st.just("delete")),
        st.builds(Ban, users, st.none(), everywhere, st.just("silently")),
        st.builds(Ban, users, _numbers, everywhere, st.sampled_from(["delete", "silently"])),
        st.builds(Forgive),
        st.builds(Authenticate, _small, _numbers, everywhere),
        st.builds(AuthIs, st.sampled_from(["up", "slow", "down", "hangs"])),
        st.builds(Limit, tokens, st.just(3.0), st.none()),
        st.builds(Limit, tokens, st.none(), st.sampled_from([2.0, 5.0])),
        st.builds(Answers, st.sampled_from([0.005, 1.0, 1.95, 3.0, None])),
        st.builds(Reads, st.sampled_from([False, False, True])),
        st.builds(Lag, _small, _kinds, st.sampled_from([0.005, 0.05, 0.5, 1.5])),
        st.builds(Cut, _small, links, st.sampled_from([0.0, 1.0, 0.5])),
        st.builds(CutAll),
        st.builds(Deafen, _small, _kinds),
        st.builds(Refuse, st.sampled_from([None, "READONLY", "MISCONF", "NOREPLICAS", "OOM"])),
        st.builds(Save),
        st.builds(Stop),
        st.builds(Start, st.sampled_from(["kept", "saved", "empty"])),
        st.builds(FailOver, st.sampled_from([0.0, -3.0, 3.0]), st.booleans()),
        st.builds(Flush),
        st.builds(Garble, st.sampled_from(["access:token:", "request:", "gateways:lost"])),
        st.builds(Burst, _small),
        st.builds(Pause, _small),
        st.builds(Resume),
        st.builds(Kill, _small, st.booleans()),
        st.builds(Unfollow, _small),
    ]


def _scenes(users: st.SearchStrategy[str], rooms: st.SearchStrategy[str]) -> list[Scenes]:
    """Steps that say more one after the other: chance alone would rarely bring them together."""
    tokens, everywhere = _tokens(users), st.none() | rooms
    connect = st.builds(Connect, _small, tokens, rooms)
    wait = st.builds(Wait, st.sampled_from([0.01, 0.3, 1.0, 3.0]))
    cut = st.builds(Cut, _small, st.sampled_from([("subscriber",), ("commands", "subscriber")]), st.just(0.0))
    refuse = st.builds(Refuse, st.sampled_from(["READONLY", "MISCONF", "NOREPLICAS", "OOM"]))
    slow = st.builds(AuthIs, st.sampled_from(["slow", "down", "hangs"]))
    deafen = st.builds(Deafen, _small, _kinds)
    lag = st.builds(Lag, _small, _kinds, st.sampled_from([0.05, 0.5, 1.5]))
    stop = st.just(Stop())
    ban = st.builds(Ban, users, st.none() | _numbers, everywhere, st.sampled_from(["invalidate", "delete", "silently"]))
    well = st.sampled_from([Refuse(None), Start("kept"), Start("saved"), AuthIs("up")])
    say, ask, again = st.builds(Say, rooms), st.builds(Ask, _small, _small), st.builds(AskAgain, _small, _small)
    fail = st.builds(FailOver, st.sampled_from([0.0, -3.0]), st.booleans())
    unfollow, back = st.builds(Unfollow, _small), st.builds(ComeBack, _small, _small)
    ends = st.builds(Disconnect, _small) | st.builds(Kill, _small, st.booleans())
    trouble = st.one_of(cut, st.just(CutAll()), refuse, slow, deafen, lag, stop)
    return [
        st.tuples(connect, wait, trouble, ban, say, connect, well, wait, connect, say),
        st.tuples(st.just(Save()), connect, ban | st.builds(Disconnect, _small), stop, st.just(Start("saved")), wait),
        st.tuples(trouble, connect, connect, wait, connect, well),
        st.tuples(trouble, st.builds(Burst, _small) | connect, connect, st.builds(Disconnect, _small), well),
        st.tuples(ask, cut | lag | ends, wait, ends, again, wait),
        st.tuples(connect, say, wait, ends, say, trouble | fail, say, well, back, wait, say),
        st.tuples(connect, connect, say, st.just(Save()) | wait, say, fail | unfollow, say, wait, say, ends, back, say),
    ]


def _tokens(users: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(lambda user, number: f"{user}/{number}", users, _numbers)


def _all(names: int) -> tuple[list[Steps], list[Steps], Scenes]:
    users, rooms = st.sampled_from(USERS[:names]), st.sampled_from(ROOMS[:names])
    return _common(users, rooms), _special(users, rooms), st.one_of(_scenes(users, rooms))


_STEPS = {names: _all(names) for names in (2, 4)}


@st.composite
def programs(draw: st.DrawFn, without: frozenset[str] = frozenset()) -> Program:
    """Programs. Each has few kinds of trouble: all of them in each would hide each other.

    ``without``: the names of steps that are left out, and ``Colons`` for the names with one.
    """
    common, special, scenes = _STEPS[2 if "Colons" in without else draw(st.sampled_from([2, 2, 2, 4]))]
    numbers = st.lists(st.integers(0, len(special) - 1), min_size=2, max_size=8, unique=True)
    step = st.one_of(*common, *(special[number] for number in draw(numbers)))
    # A list alone would have five of them, on average.
    some = st.lists(st.lists(step, min_size=1, max_size=10) | scenes, min_size=4, max_size=20)
    steps = [step for part in draw(some) for step in part]
    comers = draw(st.lists(common[0], max_size=5))
    setup = Setup(
        seed=draw(st.integers(0, 2**16)),
        gateways=draw(st.sampled_from([2, 2, 3])),
        single=draw(st.sampled_from([True, True, True, False])),
        prefix=draw(st.sampled_from(["", "", "p:"])),
        in_flight=draw(st.sampled_from([10_000, 10_000, 10_000, 8])),
        oldest=draw(st.sampled_from([False, False, True])),
        history=draw(st.sampled_from([0, 100, 100, 100, 3])),
        with_history=draw(st.sampled_from(["*", "*", "r*"])),
        history_ttl=draw(st.sampled_from([600.0, 600.0, 2.0])),
        users=draw(st.sampled_from([0, 100, 3])),
        mixed=(mixed := draw(st.sampled_from([False, False, False, False, True]))),
        # Gateways that know nothing of it say no word: the others find that out ten seconds later.
        presence=draw(st.booleans()) and not mixed,
    )
    return Program(setup, tuple(step for step in [*comers, *steps] if type(step).__name__ not in without))


def program_of(number: int, without: frozenset[str] = frozenset()) -> Program:
    """The program of a seed."""
    found: list[Program] = []

    # Hypothesis begins with the simplest of all programs, which does nothing.
    @seed(number)
    @settings(
        max_examples=2, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(_drawn(without))
    def draw(program: Program) -> None:
        found.append(program)

    draw()
    return found[-1]


@cache
def _drawn(without: frozenset[str]) -> st.SearchStrategy[Program]:
    return programs(without)

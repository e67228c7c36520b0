"""The ledger of the chaos run finds each hole that it is there for, and none where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.chaos.ledger import AUTH, CALM, LINKED, MACHINE, REDIS, WAITS, Accepted, Ask, Ban, Expected, Ledger, Troubles

DONE = {"chat k": 1, "board k": 1, "board l": 1, "desk k": 1}


def line(key: str, at: float, **more: Any) -> dict[str, Any]:
    """What a service writes of an event."""
    return {
        "type": "chat:say:back",
        "user": "ann",
        "socket": "g.1",
        "room": "red",
        "sent": 0,
        "payload": key,
        "at": at,
    } | more


def asked(outcome: str | None = "ok", service: str = "chat", key: str = "k", at: float = 100.0) -> Ledger:
    """A request, answered a second later, which nobody has handled."""
    ledger = Ledger()
    ask(ledger, outcome, service, key, at)
    return ledger


def ask(ledger: Ledger, outcome: str | None = "ok", service: str = "chat", key: str = "k", at: float = 100.0) -> None:
    """Another one."""
    ledger.asked(Ask(key, service, "ann", "red", at, ordered=True))
    if outcome is not None:
        ledger.settled(key, outcome, at + 1.0)


def holes(ledger: Ledger, done: dict[str, int] = DONE) -> list[str]:
    """What it finds."""
    ledger.judge_requests(done)
    ledger.judge_access()
    ledger.judge_presence()
    return ledger.holes


@pytest.mark.parametrize("service", ["chat", "desk", "board"])
def test_a_request_that_is_handled_and_answered_is_no_hole(service: str) -> None:
    ledger = asked(service=service)
    ledger.handled(service, line("k", 100.5), 0.0)
    assert holes(ledger) == []


@pytest.mark.parametrize(
    ("make", "hole"),
    [
        (lambda: asked(None), "no answer"),
        (lambda: asked("ok"), "nobody handled it"),
        (lambda: asked("ok", "board"), "nobody handled it"),
        (lambda: asked("TIMEOUT"), "nothing was wrong"),
    ],
)
def test_a_request_leaves_a_hole(make: Callable[[], Ledger], hole: str) -> None:
    (found,) = holes(make())
    assert hole in found


def test_an_answer_too_many_is_a_hole() -> None:
    ledger = asked()
    ledger.handled("chat", line("k", 100.5), 0.0)
    ledger.settled("k", "TIMEOUT", 102.0)
    (found,) = holes(ledger)
    assert "answered twice: ok, then TIMEOUT" in found


def test_handled_twice_is_a_hole_unless_data_were_lost() -> None:
    ledger = asked()
    ledger.handled("chat", line("k", 100.5), 0.0)
    ledger.handled("chat", line("k", 101.5), 0.0)
    (found,) = holes(ledger)
    assert "handled 2 times" in found
    ledger.holes.clear()
    ledger.lost_data(101.0, 101.2)
    assert holes(ledger) == []


def test_on_a_stream_it_may_be_handled_twice_but_committed_once() -> None:
    ledger = asked(service="desk")
    ledger.handled("desk", line("k", 100.5), 0.0)
    ledger.handled("desk", line("k", 101.5), 0.0)
    assert holes(ledger) == []
    (found,) = holes(ledger, {"desk k": 2})
    assert "committed 2 times" in found


def test_refused_as_undelivered_and_handled_is_a_hole() -> None:
    ledger = asked("SERVICE_UNAVAILABLE")
    ledger.troubles.add(REDIS, 99.0, 100.5)
    ledger.handled("chat", line("k", 100.5), 0.0)
    assert holes(ledger, {}) == []
    (found,) = holes(ledger)
    assert "handled all the same" in found


def test_what_was_acknowledged_is_handled_in_order() -> None:
    ledger = asked(service="board")
    ask(ledger, service="board", key="l", at=102.0)
    ledger.handled("board", line("l", 103.0), 0.0)
    ledger.handled("board", line("k", 104.0), 0.0)
    (found,) = holes(ledger)
    assert "l was handled at 103.000, before k" in found
    ledger.holes.clear()
    ledger.handled("board", line("k", 101.0), 0.0)
    assert holes(ledger) == []


def accepted(*keys: str, connection: int = 1, ledger: Ledger | None = None) -> Ledger:
    """Redis takes these, a second after each other."""
    ledger = ledger or Ledger()
    for number, key in enumerate(keys):
        ledger.accepted("chat", "red", Accepted(key, connection, number, 100.0 + number))
    return ledger


def test_what_a_service_does_of_a_room_is_in_the_order_in_which_redis_took_it() -> None:
    ledger = accepted("a", "b", "c", "d")
    ledger.judge_rooms_order("chat", "red", ["a", "c", "d"])
    ledger.judge_rooms_order("chat", "red", ["x", "a", "b"])  # of x nothing is known
    ledger.judge_rooms_order("chat", "blue", ["b", "a"])
    assert ledger.holes == []
    ledger.judge_rooms_order("chat", "red", ["a", "c", "b", "d"])
    assert ledger.holes == ["chat did of red: c, taken at 102.000, before b, taken at 101.000"]


@pytest.mark.parametrize("how", ["by another connection", "twice", "by a server that lost it"])
def test_what_tells_nothing_of_the_order(how: str) -> None:
    ledger = accepted("a", "b")
    if how == "by another connection":
        accepted("c", connection=2, ledger=ledger)
        ledger.judge_rooms_order("chat", "red", ["b", "c"])
        return
    if how == "twice":
        accepted("a", connection=2, ledger=ledger)
    else:
        ledger.lost_data(101.0, 101.5)
    ledger.judge_rooms_order("chat", "red", ["b", "a"])
    assert ledger.holes == []


def test_what_a_client_says_in_a_room_is_taken_in_its_order() -> None:
    ledger = accepted("b", "a")
    for key in ("a", "b"):
        ledger.asked(Ask(key, "chat", "ann", "red", 100.0, gateway="g"))
        ledger.settled(key, "ok", 101.0)
    ledger.judge_senders_order()
    assert ledger.holes == ["ann said to chat in red: a, taken at 101.000, before b, taken at 100.000"]
    ledger.holes.clear()
    ledger.troubles.add(REDIS, 99.0, 99.5)
    ledger.judge_senders_order()
    assert ledger.holes == []


def test_a_refusal_is_excused_by_a_trouble() -> None:
    ledger = asked("TIMEOUT")
    ledger.troubles.add("gateway-0", 100.0 - CALM, 101.0 - CALM)
    assert holes(ledger) == []


@pytest.mark.parametrize(("name", "excuses"), [("gateway-0", True), ("chat-0", True), ("redis", True),
                                                ("gateway-1", False), ("desk-0", False)])  # fmt: skip
def test_only_a_trouble_on_its_way_excuses_a_refusal(name: str, excuses: bool) -> None:
    ledger = Ledger(processes={"g": "gateway-0"})
    ledger.asked(Ask("k", "chat", "ann", "red", 100.0, gateway="g"))
    ledger.settled("k", "TIMEOUT", 101.0)
    ledger.troubles.add(name, 98.0, 99.0)
    assert len(holes(ledger)) == (0 if excuses else 1)


@pytest.mark.parametrize(("since", "excused"), [(99.0, False), (100.5, True), (102.0 + WAITS, False)])
def test_only_data_lost_while_it_waits_excuse_an_acknowledged_event(since: float, excused: bool) -> None:
    ledger = asked(service="board")
    ledger.lost_data(since, since + 0.5)
    assert len(holes(ledger)) == (0 if excused else 1)


def banned(told_at: float | None = 100.0) -> Ledger:
    ledger = Ledger(processes={"g": "gateway-0"})
    ledger.bans.append(Ban("ann", "red", 99.9, "invalidate", told_at, until=120.0))
    return ledger


@pytest.mark.parametrize(("told_at", "late"), [(100.0, 101.1), (None, 107.5)])
def test_what_is_told_after_a_no_is_a_hole(told_at: float | None, late: float) -> None:
    ledger = banned(told_at)
    ledger.heard("ann", "g.1", "red", 1, 99.8, 99.9)
    ledger.heard("ann", "g.1", "red", 2, late - 0.2, late - 0.2)
    ledger.heard("bob", "g.1", "red", 3, late, late)
    ledger.heard("ann", "g.1", "blue", 4, late, late)
    ledger.heard("ann", "g.1", "red", 5, late, 120.1)  # held until the auth service said yes again
    assert holes(ledger) == []
    ledger.heard("ann", "g.1", "red", 6, late, late + 0.1)
    (found,) = holes(ledger)
    assert found.startswith("ann is told what is said in red at")


@pytest.mark.parametrize("what", ["admitted", "sends"])
def test_what_is_let_in_after_a_no_is_a_hole(what: str) -> None:
    ledger = banned()
    if what == "admitted":
        ledger.admitted("ann", "g", "red", 101.5)
    else:
        ledger.handled("chat", line("k", 101.5, sent=101_500), 0.0)
    (found,) = holes(ledger)
    assert f"ann {'is admitted' if what == 'admitted' else what} in red at 101.500, by gateway-0" in found


@pytest.mark.parametrize("trouble", ["gateway-0", REDIS, AUTH, MACHINE])
def test_a_trouble_stretches_the_bound(trouble: str) -> None:
    ledger = banned()
    ledger.troubles.add(trouble, 97.0, 101.0)
    ledger.heard("ann", "g.1", "red", 1, 102.0, 102.0)
    assert holes(ledger) == []
    ledger.bans[0].until = 200.0
    ledger.heard("ann", "g.1", "red", 2, 101.1 + LINKED + ledger.ttl, 115.5)
    (found,) = holes(ledger)
    assert "told by invalidate at 100.000" in found


def test_the_trouble_of_another_gateway_does_not() -> None:
    ledger = banned()
    ledger.troubles.add("gateway-1", 97.0, 101.0)
    ledger.heard("ann", "g.1", "red", 1, 102.0, 102.0)
    assert len(holes(ledger)) == 1


def test_messages_come_once_and_in_order() -> None:
    ledger = Ledger()
    for socket, number in [("g.1", 1), ("g.1", 3), ("g.2", 1)]:
        ledger.heard("ann", socket, "red", number, 100.0, 100.0)
    assert holes(ledger) == []
    ledger.heard("ann", "g.1", "red", 3, 100.0, 100.0)
    ledger.heard("ann", "g.1", "red", 2, 100.0, 100.0)
    assert len(holes(ledger)) == 2


def test_what_is_said_is_heard() -> None:
    ledger = Ledger()
    ledger.expect(Expected("ann", "g", "g.1", "red", 7, 100.0))
    (found,) = holes(ledger)
    assert "does not hear 7" in found
    ledger.holes.clear()
    ledger.ended("g.1", "red", 101.0)
    assert holes(ledger) == []


@pytest.mark.parametrize("code", [1011, 1002, 4408, 4409, 4413, 4429, 4403, 4401])
def test_an_odd_close_is_a_hole(code: int) -> None:
    ledger = Ledger()
    ledger.closed("ann", "g", code, "", 100.0)
    assert len(ledger.holes) == 1


def test_a_lost_connection_is_excused_by_a_trouble_and_a_refusal_by_a_ban() -> None:
    ledger = banned()
    ledger.closed("ann", "g", 4403, "ACCESS_REVOKED", 100.1)
    ledger.troubles.add("gateway-0", 95.0, 96.0)
    ledger.closed("ann", "g", 1006, "", 100.0)
    ledger.expires("bob", 100.0, 107.0)
    ledger.closed("bob", "g", 4403, "ACCESS_REVOKED", 107.1)
    assert ledger.holes == []
    ledger.closed("ann", "g", 1006, "", 110.0)
    assert len(ledger.holes) == 1


def present(ledger: Ledger, number: int, what: str, **more: Any) -> None:
    payload = {"epoch": "e", "number": number}
    ledger.present({"type": f"gateway:{what}", "user": "ann", "room": "red", "payload": payload} | more)


def test_presence_alternates() -> None:
    ledger = Ledger()
    present(ledger, 1, "room:reset", user="", room=None)
    for number, what in [(2, "client:joined"), (3, "client:left"), (3, "client:left"), (4, "client:joined")]:
        present(ledger, number, what)
    assert holes(ledger) == []
    assert ledger.judge_told([("ann", "red")]) == []
    assert len(ledger.judge_told([])) == 1
    present(ledger, 5, "client:joined")
    (found,) = holes(ledger)
    assert "ann joined red twice" in found


def test_the_room_cache_is_who_is_there() -> None:
    ledger = Ledger()
    there = {("ann", "red"): "g.1"}
    assert ledger.judge_rooms(there, there) == []
    for rooms in ({("ann", "red"): "g.2"}, {}, {**there, ("bob", "red"): "g.3"}):
        assert len(ledger.judge_rooms(rooms, there)) == 1


def test_services_are_told_who_is_there() -> None:
    ledger = Ledger()
    present(ledger, 1, "room:reset", user="", room=None, there=[["ann", "red"]])
    assert ledger.judge_told([("ann", "red")]) == []
    present(ledger, 3, "client:left", user="bob")
    assert ledger.judge_told([("ann", "red")]) == ["presence events [2] of epoch e are missing"]
    assert len(ledger.judge_told([("ann", "red"), ("bob", "red")])) == 2


def test_troubles() -> None:
    troubles = Troubles()
    troubles.begin("a", 10.0)
    troubles.begin("a", 11.0)
    troubles.end("a", 12.0)
    assert not troubles.quiet(["a"], 13.0, 14.0)
    troubles.end("a", 20.0)
    assert troubles.quiet(["a"], 21.0, 22.0)
    assert troubles.quiet(["b"], 15.0, 16.0)
    troubles.add("b", 25.0, 26.0)
    assert troubles.stretched(["a", "b"], 9.0, 0.0, 1.0) == 9.0
    assert troubles.stretched(["a", "b"], 15.0, 0.0, 1.0) == 21.0
    assert troubles.stretched(["a", "b"], 15.0, 0.0, 6.0) == 32.0

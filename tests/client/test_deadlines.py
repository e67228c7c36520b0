"""When a client has to look at something again."""

from __future__ import annotations

from kraftek.client.deadlines import Deadlines


def test_the_earliest_is_first_and_taken_once() -> None:
    deadlines = Deadlines()
    assert deadlines.first() is None
    assert deadlines.take(1e9) is None
    deadlines.set("b", 2.0)
    deadlines.set("a", 1.0)
    assert deadlines.first() == 1.0
    assert deadlines.take(0.9) is None
    assert deadlines.take(1.0) == "a"
    assert deadlines.first() == 2.0
    assert [deadlines.take(5.0), deadlines.take(5.0)] == ["b", None]


def test_a_name_has_one_time() -> None:
    deadlines = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.set("a", 3.0)
    assert deadlines.first() == 3.0
    assert deadlines.take(2.0) is None
    assert [deadlines.take(3.0), deadlines.take(3.0)] == ["a", None]


def test_what_was_cancelled_is_not_due() -> None:
    deadlines = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.set("b", 2.0)
    deadlines.cancel("a")
    deadlines.cancel("nobody")
    assert deadlines.first() == 2.0
    deadlines.clear()
    assert deadlines.first() is None
    assert len(deadlines) == 0


def test_what_was_cancelled_does_not_pile_up() -> None:
    deadlines = Deadlines()
    for number in range(1000):
        deadlines.set(str(number), 60.0)
        deadlines.cancel(str(number))
    assert len(deadlines) < 100

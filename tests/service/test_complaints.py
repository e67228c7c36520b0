"""What a service says of what goes wrong over and over."""

from __future__ import annotations

from kraftek.service.backend import COMPLAINTS, SILENCE, Complaints


def test_each_thing_is_said_once_a_minute() -> None:
    said: list[str] = []
    now = 0.0
    complaints = Complaints(said.append, lambda: now)
    for text in ("one", "two", "one", "two"):
        complaints.about(text)
    assert said == ["one", "two"]
    now = SILENCE - 1
    complaints.about("one")
    assert said == ["one", "two"]
    now = SILENCE
    complaints.about("one")
    assert said == ["one", "two", "one"]


def test_there_is_a_bound_to_what_is_said() -> None:
    said: list[str] = []
    now = 0.0
    complaints = Complaints(said.append, lambda: now)
    for number in range(2 * COMPLAINTS):
        complaints.about(str(number))
    assert len(said) == COMPLAINTS
    now = SILENCE
    complaints.about("more")
    assert said[-1] == "more"

"""Above limits.memory what waits is given up, and new clients are turned away."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import force_setattr
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from kraftek.contract.accounts import Accounts
from kraftek.contract.metrics import Counters
from kraftek.contract.readiness import Readiness
from kraftek.contract.settings import Limits
from kraftek.daemon import memory
from kraftek.daemon.memory import MemoryCeiling, resident_bytes
from tests.support.fakes import FakeBus

MOST = 1000


class Subject:
    """A ceiling, over a client for which bytes wait, and what new clients are told."""

    def __init__(self, most: int = MOST) -> None:
        self.accounts = Accounts()
        self.counters = Counters()
        self.clock = Clock()
        self.resident = 0
        self.told: list[str] = []
        self.readiness = Readiness(FakeBus())
        self.limits = Limits(memory=most)
        self.ceiling = MemoryCeiling(
            self.limits,
            self.accounts,
            self.counters,
            self.clock,
            self.readiness,
            self.told.append,
            resident=lambda: self.resident,
        )
        self.accounts.shed_by("unsent", self.shed)

    def shed(self, size: int) -> int:
        """Clients for which a hundred bytes wait each are closed."""
        freed = 0
        while freed < size and self.accounts.unsent:
            self.accounts.unsent -= 100
            freed += 100
        return freed


def test_what_waits_is_given_up_until_nine_tenths_are_left() -> None:
    subject = Subject()
    subject.accounts.unsent, subject.accounts.in_flight = 900, 100
    subject.ceiling.sweep()
    assert subject.accounts.total == 1000
    subject.accounts.in_flight = 150
    with capturedLogs() as logs:
        for _ in range(2):
            subject.ceiling.sweep()
            assert subject.accounts.total == 850
            subject.accounts.in_flight += 200
    assert subject.counters.memory_shed_bytes == 400
    assert len(logs) == 1
    assert subject.told == []


def test_what_nobody_can_give_up_stays() -> None:
    subject = Subject()
    subject.accounts.unsent, subject.accounts.in_flight = 200, 2000
    subject.ceiling.sweep()
    assert (subject.accounts.unsent, subject.accounts.in_flight) == (0, 2000)
    subject.ceiling.sweep()
    assert subject.counters.memory_shed_bytes == 200


def test_new_clients_are_turned_away_until_the_process_is_smaller() -> None:
    subject = Subject()
    with capturedLogs() as logs:
        for resident in (1000, 1001, 2000, 951):
            subject.resident = resident
            subject.ceiling.sweep()
        assert subject.readiness.fault == "limits.memory is exceeded"
        assert not subject.readiness.ready
        assert subject.told == ["the gateway has too little memory"]
        subject.resident = 950
        subject.ceiling.sweep()
        assert subject.readiness.fault is None
        assert subject.readiness.ready
        assert subject.told == ["the gateway has too little memory", ""]
        subject.resident = 1001
        subject.ceiling.sweep()
    assert [event["log_level"].name for event in logs] == ["error", "info", "error"]
    assert subject.counters.memory_exceeded == 2
    assert subject.counters.memory_shed_bytes == 0


def test_a_ceiling_that_is_taken_away_turns_nobody_away() -> None:
    subject = Subject()
    subject.resident = 2000
    subject.ceiling.sweep()
    force_setattr(subject.limits, "memory", 0)
    for _ in range(2):
        subject.ceiling.sweep()
    assert subject.readiness.ready
    assert subject.told == ["the gateway has too little memory", ""]


def test_without_a_ceiling_nothing_is_given_up() -> None:
    subject = Subject(0)
    subject.accounts.unsent = subject.resident = 10**12
    subject.ceiling.sweep()
    assert subject.accounts.unsent == 10**12
    assert subject.told == []


def test_the_memory_of_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert 10_000_000 < resident_bytes() < 10_000_000_000
    monkeypatch.setattr(memory, "_STATM", tmp_path / "none")
    assert resident_bytes() == 0

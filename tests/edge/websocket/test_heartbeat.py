"""Pings by the wheel."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from kraftek.edge.websocket.heartbeat import Heartbeat

INTERVAL = 64.0
TIMEOUT = 20.0
SLOT = 1.0
"""Seconds that one of the wheel's slots is wide, with this interval."""


class Connection:
    """A connection that notes when it was pinged, and answers at once while it ``lives``."""

    def __init__(self, clock: Clock, *, lives: bool = True) -> None:
        self.heard = True
        self.slot = -1
        self.lives = lives
        self.pinged: list[float] = []
        self.dropped: list[float] = []
        self._clock = clock

    def ping(self) -> None:
        self.pinged.append(self._clock.seconds())
        if self.lives:
            self.heard = True

    def silent(self) -> None:
        self.dropped.append(self._clock.seconds())


class Subject:
    """A heartbeat, swept as the daemon sweeps it."""

    def __init__(self, started: float = 0.0, interval: float = INTERVAL, timeout: float = TIMEOUT) -> None:
        self.clock = Clock()
        self.clock.advance(started)
        self.heartbeat = Heartbeat(self.clock, interval, timeout)

    def connect(self, *, lives: bool = True) -> Connection:
        connection = Connection(self.clock, lives=lives)
        self.heartbeat.add(connection)
        return connection

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)
            self.heartbeat.sweep()


@pytest.mark.parametrize("started", [0.0, 1_700_000_000.3])
def test_a_connection_is_pinged_every_interval_and_lives(started: float) -> None:
    subject = Subject(started)
    connection = subject.connect()
    subject.run(5 * INTERVAL + 2)
    times = [at - started for at in connection.pinged]
    assert len(times) == 5
    for number, at in enumerate(times, 1):
        assert abs(at - number * INTERVAL) <= SLOT + 0.25
    assert connection.dropped == []


def test_a_connection_that_is_silent_after_a_ping_is_dropped_in_time() -> None:
    subject = Subject()
    connection = subject.connect(lives=False)
    subject.run(2 * INTERVAL - 1)
    [pinged], [dropped] = connection.pinged, connection.dropped
    assert TIMEOUT <= dropped - pinged <= TIMEOUT + SLOT + 0.25


def test_anything_that_is_heard_in_time_counts_as_an_answer() -> None:
    subject = Subject()
    connection = subject.connect(lives=False)
    subject.run(INTERVAL + TIMEOUT - 1)
    assert connection.pinged
    assert not connection.heard
    connection.heard = True
    subject.run(INTERVAL - TIMEOUT)
    assert connection.dropped == []


def test_a_connection_that_is_gone_is_left_alone() -> None:
    subject = Subject()
    gone, stays = subject.connect(), subject.connect()
    subject.run(INTERVAL / 2)
    subject.heartbeat.remove(gone)
    subject.heartbeat.remove(gone)
    subject.run(2 * INTERVAL)
    assert (len(gone.pinged), len(stays.pinged)) == (0, 2)
    assert not any(gone in slot for slot in subject.heartbeat._wheel)


def test_a_connection_may_go_while_others_are_dropped() -> None:
    subject = Subject()

    class Leaving(Connection):
        def silent(self) -> None:
            super().silent()
            subject.heartbeat.remove(self)

    leaving = [Leaving(subject.clock, lives=False) for _ in range(5)]
    for connection in leaving:
        subject.heartbeat.add(connection)
    subject.run(2 * INTERVAL)
    assert [len(connection.dropped) for connection in leaving] == [1] * 5


def test_connections_of_different_times_are_pinged_at_different_times() -> None:
    subject = Subject()
    connections = []
    for _ in range(int(INTERVAL)):
        connections.append(subject.connect())
        subject.run(SLOT)
    subject.run(INTERVAL)
    assert len({connection.pinged[0] for connection in connections}) == len(connections)
    assert all(1 <= len(connection.pinged) <= 2 for connection in connections)


def test_a_timeout_is_shorter_than_the_interval_whatever_it_is_set_to() -> None:
    subject = Subject(timeout=10 * INTERVAL)
    dead, lives = subject.connect(lives=False), subject.connect()
    subject.run(3 * INTERVAL)
    assert dead.dropped
    assert not lives.dropped


def test_a_timeout_is_longer_than_the_time_between_two_sweeps() -> None:
    subject = Subject(interval=2.0, timeout=0.01)
    dead, lives = subject.connect(lives=False), subject.connect()
    subject.run(8.0)
    assert dead.dropped[0] - dead.pinged[0] >= 1.0
    assert len(lives.pinged) >= 3
    assert not lives.dropped


@pytest.mark.parametrize("jump", [TIMEOUT, 1.5 * INTERVAL, 10_000.0, 1e9])
def test_nobody_is_dropped_because_the_process_stood_still_or_its_clock_was_set(jump: float) -> None:
    # A laptop that slept, a machine that was moved, NTP: nobody could answer meanwhile, and nobody could be heard.
    subject = Subject()
    connections = []
    for _ in range(int(INTERVAL)):
        connections.append(subject.connect())
        subject.run(SLOT)
    subject.run(INTERVAL / 2)
    for connection in connections:
        connection.lives = False  # what they answer now is read after the sweep
    subject.clock.advance(jump)
    subject.heartbeat.sweep()
    for connection in connections:
        connection.lives = connection.heard = True
    subject.run(2 * INTERVAL)
    assert [connection for connection in connections if connection.dropped] == []
    assert all(connection.pinged[-1] > subject.clock.seconds() - INTERVAL - 2 for connection in connections)


def test_who_was_pinged_just_before_such_a_jump_gets_another_chance() -> None:
    subject = Subject()
    connection = subject.connect(lives=False)
    subject.run(INTERVAL + 1)
    assert len(connection.pinged) == 1
    subject.clock.advance(TIMEOUT + 5)
    subject.heartbeat.sweep()
    subject.run(TIMEOUT)
    assert connection.dropped == []
    subject.run(2 * INTERVAL)
    assert connection.dropped  # for it is dead


def test_a_clock_that_is_set_back_stops_no_pings() -> None:
    subject = Subject(100_000.0)
    connection = subject.connect()
    subject.run(1)
    subject.clock.rightNow -= 50_000.0
    subject.run(2 * INTERVAL + 2)
    assert len(connection.pinged) >= 1
    assert connection.dropped == []

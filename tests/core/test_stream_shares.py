"""Shares of users in a stream."""

from __future__ import annotations

from kraftek.core import stream_shares
from kraftek.core.stream_shares import StreamShares


class Stream:
    """A stream, and a gateway that sends to it; Redis is looked at when it should be, and answers at once."""

    def __init__(self, max_length: int = 1000, max_bytes: int = 1_000_000) -> None:
        self.looks = 0
        self.entries: list[tuple[str, int]] = []
        self.handled = self.waiting = 0
        self.bounds = max_length, max_bytes
        self.shares = StreamShares(max_length, max_bytes, self.look)

    def look(self) -> None:
        self.looks += 1
        self.shares.seen(self.shares.asked(), len(self.entries), self.waiting, self.handled)

    def send(self, user: str, count: int, size: int = 100) -> int:
        """How many of so many events were taken."""
        taken = 0
        for _ in range(count):
            full = len(self.entries) >= self.bounds[0] or self.waiting >= self.bounds[1]
            if not full and self.shares.takes(user, size):
                self.entries.append((user, size))
                self.waiting += size
                taken += 1
        return taken

    def handle(self, count: int) -> None:
        size = sum(size for _, size in self.entries[:count])
        self.handled += size
        self.waiting -= size
        del self.entries[:count]

    def waits(self, user: str) -> int:
        return sum(who == user for who, _ in self.entries)


def test_one_user_takes_half() -> None:
    stream = Stream()
    assert 490 <= stream.send("flood", 2000) <= 560
    assert stream.send("ann", 100) == 100


def test_a_burst_takes_no_more_while_redis_is_looked_at() -> None:
    looks: list[float] = []
    shares = StreamShares(1000, 1_000_000, lambda: looks.append(shares.asked()) if not looks else None)
    taken = sum(shares.takes("flood", 1000) for _ in range(5000))
    assert len(looks) == 1
    assert 540 <= taken <= 560
    assert all(shares.takes("ann", 1000) for _ in range(100))
    shares.seen(looks.pop(), 100, 100_000, 450_000)
    assert shares.takes("flood", 1000), "most of it was handled meanwhile"


def test_a_burst_of_large_events_takes_no_more_either() -> None:
    shares = StreamShares(1000, 65_536, lambda: None)  # Redis does not answer yet
    assert [shares.takes("flood", 20_000) for _ in range(5)] == [True, True, False, False, False]
    assert shares.takes("ann", 20_000)


def test_users_share_what_is_there() -> None:
    stream = Stream()
    for _ in range(2000):
        for user in ("one", "two", "three"):
            stream.send(user, 1)
    assert all(230 <= stream.waits(user) <= 280 for user in ("one", "two", "three"))
    assert stream.send("ann", 50) == 50


def test_many_users_fill_it() -> None:
    stream = Stream()
    for _ in range(20):
        for user in range(100):
            stream.send(f"user {user}", 1)
    assert len(stream.entries) > 950


def test_large_events_are_shared_by_their_bytes() -> None:
    stream = Stream()
    assert 45 <= stream.send("flood", 200, 10_000) <= 56
    assert stream.send("ann", 20, 1000) == 20


def test_who_sends_what_is_handled_is_never_refused() -> None:
    stream = Stream()
    for _ in range(100):
        assert stream.send("fast", 100) == 100
        stream.handle(100)
    assert stream.looks < 300


def test_what_was_handled_makes_room_for_its_user() -> None:
    stream = Stream()
    stream.send("flood", 1000)
    stream.send("ann", 10)
    stream.handle(300)
    stream.look()
    assert 50 <= stream.send("flood", 1000) <= 300
    assert stream.send("ann", 100) == 100
    stream.handle(1000)
    stream.look()
    assert stream.send("flood", 400) == 400


def test_a_slow_service_is_shared_between_a_flood_and_others() -> None:
    stream = Stream()
    taken = dict.fromkeys(["flood", *map(str, range(10))], 0)
    for _ in range(200):
        taken["flood"] += stream.send("flood", 300)
        for user in range(10):
            taken[str(user)] += stream.send(str(user), 2)
        stream.handle(100)
        stream.look()
    assert [taken[str(user)] for user in range(10)] == [400] * 10
    assert taken["flood"] > 10_000


def test_users_with_little_are_forgotten_when_there_are_many() -> None:
    stream = Stream(max_length=100_000, max_bytes=10_000_000)
    stream.send("flood", 40_000)
    for user in range(stream_shares.MOST_USERS):
        assert stream.shares.takes(f"user {user}", 100)
    stream.look()
    assert len(stream.shares._users) == 1
    assert stream.send("flood", 20_000) < 15_000


def test_a_stream_that_never_empties_goes_on_for_ever() -> None:
    stream = Stream()
    stream.send("ann", 100)
    for _ in range(2000):
        stream.handle(50)
        stream.send("ann", 50)
        stream.handled += 10_000
        stream.look()
    assert stream.send("ann", 100) == 100
    assert stream.shares._weight < 1e200


def test_that_a_stream_is_full_is_said_by_redis() -> None:
    stream = Stream(max_length=100)
    for user in range(100):
        stream.send(str(user), 1)
    stream.look()
    assert stream.shares.takes("0", 100)

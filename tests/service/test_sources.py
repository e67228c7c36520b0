"""Events over Pub/Sub are begun a few at a time, on loops of both kinds, and more is read in between.

Those of a stream are for the instance that holds its lease: what the scripts do for any other one.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any, cast

import pytest

from kraftek.contract.consumer_groups import FORGOTTEN_AFTER, JOIN
from kraftek.contract.lua import Script
from kraftek.service.backend import Backend
from kraftek.service.handling import Handling
from kraftek.service.jobs import Jobs
from kraftek.service.lanes import EVENTS
from kraftek.service.link import Link
from kraftek.service.processor import Context, EventProcessor
from kraftek.service.sources import BEGIN, KEEP, RELEASE, SHARE, SLICE, TAKE, Leased, Shared, Subscription
from tests.support.redis_server import PrivateRedis

CONCURRENCY = 32


class Pause:
    """What a coroutine awaits until the loop goes on with it."""

    def __await__(self) -> Generator[Pause, None, None]:
        yield self


class Signal:
    """Is not set: who waits looks again in the next round."""

    def set(self, value: object = True) -> None: ...

    async def wait(self, seconds: float | None) -> None:
        await Pause()


class Loop:
    """A backend. ``at_once``: a coroutine begins when it is spawned, as under Twisted, and otherwise in the next round,
    as under asyncio. In each round what was spawned or has paused goes on, and then more is read. Redis answers in
    ``delay`` rounds.
    """

    def __init__(self, at_once: bool, delay: int = 1) -> None:
        self.at_once, self.delay = at_once, delay
        self.ready: deque[Coroutine[Any, Any, None]] = deque()
        self.listener: Callable[[bytes], None]
        self.calls: list[Any] = []
        self.now = 0.0
        self.failures: list[BaseException] = []
        self.spawned = 0

    async def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        self.listener = listener

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> object:
        self.spawned += 1
        if self.at_once:
            self._go_on(coroutine)
        else:
            self.ready.append(coroutine)
        return coroutine

    def pause(self) -> Awaitable[object]:
        return Pause()

    def signal(self) -> Signal:
        return Signal()

    async def call(self, *command: Any) -> int:
        self.calls.append(command)
        for _ in range(self.delay):
            await Pause()
        return 1

    async def run(self, script: Any, keys: Any, args: Any) -> int:
        return -1  # the stream of events between services is full

    def failed(self, text: str, error: BaseException) -> None:
        self.failures.append(error)

    def round(self) -> None:
        """What is ready goes on once."""
        for _ in range(len(self.ready)):
            self._go_on(self.ready.popleft())

    def _go_on(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            coroutine.send(None)
        except StopIteration:
            return
        self.ready.append(coroutine)


class Service:
    """A service over Pub/Sub whose handler, a plain function, takes so many seconds."""

    def __init__(self, loop: Loop, seconds: float) -> None:
        self.loop = loop
        self.handled: list[str] = []
        self.processor = processor = EventProcessor("chat", concurrency=CONCURRENCY)

        @processor.on("say:back")
        def handle(context: Context, payload: object) -> None:
            self.loop.now += seconds
            self.handled.append(context.user_id)

        @processor.on("say:on")
        def emit(context: Context, payload: object) -> None:
            context.emit("other:a:b")

        backend = cast("Backend", self.loop)
        self.jobs = Jobs(backend, lambda _: None)
        handling = Handling(processor, backend, self.jobs, cast("Link", None), lambda _: None)
        self.source = Subscription(processor, backend, self.jobs, handling, lambda: self.loop.now)
        self.jobs.spawn(self.source.begin)
        self.loop.round()

    def reads(self, *users: str, name: str = "chat:say:back") -> None:
        """An event of each of these arrives, each from a socket of its own."""
        for number, user in enumerate(users):
            event = {"eventType": name, "userId": user, "socketId": f"g.{user}{number}", "replyTo": "r"}
            self.loop.listener(json.dumps(event).encode())

    def per_round(self, rounds: int) -> list[int]:
        """How many are handled in each of these rounds."""
        numbers = []
        for _ in range(rounds):
            before = len(self.handled)
            self.loop.round()
            numbers.append(len(self.handled) - before)
        return numbers


@pytest.fixture(params=[True, False], ids=["Twisted", "asyncio"])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    made = Loop(bool(request.param))
    yield made
    for coroutine in made.ready:
        coroutine.close()


def test_only_as_many_are_begun_before_the_next_read_as_there_is_time_for(loop: Loop) -> None:
    service = Service(loop, SLICE / 2)
    service.reads(*["flood"] * 20)
    assert len(service.handled) == (2 if loop.at_once else 0)
    numbers = service.per_round(100)
    assert max(numbers) == 2
    assert len(service.handled) == 20
    assert service.loop.ready == deque()


def test_one_that_takes_long_is_handled_all_the_same(loop: Loop) -> None:
    service = Service(loop, 10 * SLICE)
    service.reads(*["flood"] * 5)
    assert max(service.per_round(50)) == 1
    assert len(service.handled) == 5


def test_as_many_as_ever_are_begun_that_take_no_time(loop: Loop) -> None:
    service = Service(loop, 0.0)
    service.reads(*["ann"] * 50)
    service.loop.round()
    assert len(service.handled) >= CONCURRENCY
    service.per_round(20)
    assert len(service.handled) == 50


def test_who_comes_after_a_flood_waits_for_no_more_than_a_slice_of_it(loop: Loop) -> None:
    service = Service(loop, SLICE)
    service.reads(*["flood"] * 100)
    service.per_round(4)
    before = len(service.handled)
    service.reads("ann")
    while "ann" not in service.handled:
        service.loop.round()
    assert service.handled.index("ann") - before <= 2


def test_few_are_tried_again_while_each_takes_long(loop: Loop) -> None:
    service = Service(loop, SLICE)
    service.reads(*["flood"] * 50)
    service.per_round(8)
    loop.spawned = 0
    handled = sum(service.per_round(30))
    assert handled
    assert loop.spawned <= 6 * handled
    service.per_round(400)
    assert len(service.handled) == 50


def test_reading_has_as_much_time_as_what_takes_long(loop: Loop) -> None:
    service = Service(loop, 10 * SLICE)
    service.reads(*["flood"] * 100)
    read = 0
    while len(service.handled) < 6:
        handled = len(service.handled)
        service.loop.round()
        if len(service.handled) == handled:
            service.loop.now += SLICE  # to read takes that long
            service.reads("flood")
            read += 1
    assert 40 <= read <= 70


def test_a_stop_waits_for_what_has_not_begun(loop: Loop) -> None:
    service = Service(loop, SLICE)
    service.reads(*["ann"] * 10)
    while len(service.handled) < 10:
        assert service.jobs._running, "nothing would be waited for"
        service.loop.round()
    service.per_round(5)
    assert not service.jobs._running
    assert not service.loop.failures


def test_who_floods_beyond_what_may_wait_is_refused(loop: Loop) -> None:
    service = Service(loop, SLICE)
    service.reads(*["flood"] * (EVENTS // 2 + 10))
    assert service.processor.refused >= 9
    service.loop.round()
    assert "SERVICE_UNAVAILABLE" in str(service.loop.calls)


def test_a_socket_whose_events_are_refused_hears_of_one_a_second(loop: Loop) -> None:
    service = Service(loop, SLICE)
    service.reads(*["flood"] * (EVENTS // 2 + 10))

    def is_told(at: float, *sockets: str) -> list[bool]:
        loop.now = at
        told = []
        for socket in sockets:
            refused, before = service.processor.refused, loop.spawned
            event = {"eventType": "chat:say:back", "userId": "flood", "socketId": socket, "replyTo": "r"}
            loop.listener(json.dumps(event).encode())
            assert service.processor.refused == refused + 1
            told.append(loop.spawned > before)
        return told

    assert is_told(0.5, "one", "one") == [True, False]
    assert is_told(1.4, "one", "another", "another") == [False, True, False]
    assert is_told(1.6, "one", "another") == [True, False]
    assert is_told(2.5, "one", "another") == [False, True]


def test_what_cannot_be_committed_is_refused_and_counted(loop: Loop) -> None:
    service = Service(loop, 0.0)
    service.reads("ann", name="chat:say:on")
    service.per_round(5)
    assert service.processor.refused == 1
    assert "SERVICE_UNAVAILABLE" in str(loop.calls)


# Leases.

LONG, LONGER = 50_000, 100_000
"""Milliseconds that leases last."""


class Partitions:
    """Two streams of one service in a Redis, each with its lease, and two events in the first."""

    streams = ("s:0", "s:1")
    leases = ("s:0:lease", "s:1:lease")

    def __init__(self, server: PrivateRedis) -> None:
        self._server = server
        self.call = server.call
        self._held: dict[str, dict[int, bytes]] = {}
        self.call("FLUSHALL")
        for stream in self.streams:
            self.run(JOIN, [stream], "service", FORGOTTEN_AFTER)
        self.entries = [self.call("XADD", "s:0", "*", "event", event) for event in ("one", "two")]

    def share(self, name: str, milliseconds: int = LONG, *, leaves: bool = False) -> list[int]:
        """The streams that an instance holds, whose leases it remembers from now on."""
        _, held, _ = self.run(SHARE, ["instances", *self.leases], name, milliseconds, int(leaves))
        self._held[name] = {**self._held.get(name, {}), **dict(held)}
        return [number for number, _ in held]

    def reads(self, name: str, stream: int) -> bytes:
        """The lease by which it reads, still or again."""
        return self._held.get(name, {}).get(stream, name.encode())

    def keep(self, name: str, milliseconds: int = LONG) -> None:
        self.run(KEEP, ["instances", *self.leases], name, milliseconds)

    def take(self, name: str, stream: int = 0, look_from: str = "") -> list[bytes] | None:
        """The events that it reads; nothing if it may not."""
        words = (self.reads(name, stream), "service", name, look_from, 10)
        found = self.run(TAKE, [self.leases[stream], self.streams[stream]], *words)
        return [fields[1] for _, fields, _ in found[1]] if found else None

    def begin(self, name: str) -> list[int]:
        """For each of the two events, whether it may begin it."""
        return self.begin_by(self.reads(name, 0), name)

    def begin_by(self, lease: bytes, name: str) -> list[int]:
        """The same, by a lease that it has or has had."""
        words = [word for entry in self.entries for word in (entry, 2, 0)]
        return list(self.run(BEGIN, [self.leases[0], self.streams[0]], lease, "service", name, *words))

    def release(self, name: str) -> None:
        self.run(RELEASE, [self.leases[0]], self.reads(name, 0))

    def left(self, stream: int = 0) -> int:
        """Milliseconds that its lease lasts from now on; negative when there is none."""
        return int(self.call("PTTL", self.leases[stream]))

    def owners(self) -> set[str]:
        """Who has the entries that are pending."""
        with self._server.client() as client:
            pending: Any = client.xpending_range("s:0", "service", "-", "+", 10)
        return {entry["consumer"].decode() for entry in pending}

    def run(self, script: Script, keys: list[str], *args: str | int | bytes) -> Any:
        words = [word if isinstance(word, bytes) else str(word) for word in args]
        return self.call("EVAL", script.source, str(len(keys)), *keys, *words)


@pytest.fixture
def partitions(server: PrivateRedis) -> Partitions:
    return Partitions(server)


def test_each_stream_is_held_by_one_instance_and_all_have_a_fair_share(partitions: Partitions) -> None:
    assert partitions.share("one") == [0, 1]
    assert partitions.share("two") == []
    partitions.release("one")
    assert partitions.share("two") == [0]
    assert partitions.share("one") == [1], "and no more than its share"
    assert partitions.share("two") == [0]


def test_who_leaves_takes_no_stream_and_keeps_what_it_has(partitions: Partitions) -> None:
    assert partitions.share("one") == [0, 1]
    assert partitions.share("one", leaves=True) == [0, 1]
    partitions.release("one")
    assert partitions.share("one", leaves=True) == [1]
    assert partitions.share("two") == [0]


def test_only_who_holds_the_lease_reads_and_begins(partitions: Partitions) -> None:
    partitions.share("one")
    assert partitions.take("two") is None
    assert partitions.take("two", look_from="-") is None
    assert partitions.take("one") == [b"one", b"two"]
    assert partitions.take("two", look_from="-") is None
    assert partitions.begin("two") == []
    assert partitions.owners() == {"one"}
    assert partitions.begin("one") == [1, 1]


def test_one_lease_is_not_that_of_another_stream(partitions: Partitions) -> None:
    partitions.share("one")
    partitions.release("one")
    partitions.share("two")
    assert partitions.take("one") is None
    assert partitions.take("one", stream=1) == []
    assert partitions.take("two") == [b"one", b"two"]
    assert partitions.take("two", stream=1) is None


def test_who_has_lost_the_lease_begins_nothing_of_what_it_has_read(partitions: Partitions) -> None:
    partitions.share("one")
    partitions.take("one")
    partitions.call("DEL", partitions.leases[0])  # it was paused for longer than that lasts
    partitions.share("two")
    assert partitions.begin("one") == []
    assert partitions.take("one") is None
    assert partitions.take("two", look_from="-") == [b"one", b"two"]
    assert partitions.owners() == {"two"}
    assert partitions.begin("one") == []
    assert partitions.owners() == {"two"}


def test_who_has_the_lease_again_is_not_who_has_had_it_all_the_time(partitions: Partitions) -> None:
    # It was paused, and another instance has read meanwhile, and ended: what that one left is found by beginning anew.
    partitions.share("one")
    before = partitions.reads("one", 0)
    partitions.call("DEL", partitions.leases[0])
    partitions.share("two")
    assert partitions.take("two") == [b"one", b"two"]
    partitions.release("two")
    words = (before, "service", "one", "", 10)
    partitions.share("two", leaves=True)
    assert sorted(partitions.share("one")) == [0, 1]
    assert partitions.run(TAKE, [partitions.leases[0], "s:0"], *words) == []
    assert partitions.begin_by(before, "one") == []
    partitions.run(RELEASE, [partitions.leases[0]], before)
    assert partitions.take("one", look_from="-") == [b"one", b"two"]
    assert partitions.begin("one") == [1, 1]


def test_who_has_lost_the_lease_neither_renews_nor_removes_it(partitions: Partitions) -> None:
    partitions.share("one")
    partitions.call("DEL", partitions.leases[0])
    assert partitions.share("two") == [0]
    partitions.keep("one", LONGER)
    assert partitions.share("one", LONGER) == [1]
    partitions.release("one")
    assert 0 < partitions.left() <= LONG
    assert partitions.left(stream=1) > LONG
    assert partitions.take("two") == [b"one", b"two"]


def test_a_beat_renews_what_is_held(partitions: Partitions) -> None:
    partitions.share("one")
    partitions.keep("one", LONGER)
    assert min(partitions.left(), partitions.left(stream=1)) > LONG
    partitions.call("DEL", "instances", *partitions.leases)
    partitions.keep("one", LONGER)
    assert partitions.call("EXISTS", "instances", *partitions.leases) == 0, "and makes nothing anew"


class Slow:
    """A backend on asyncio whose Redis answers when it is told to, and which knows nothing of waits that end early."""

    def __init__(self) -> None:
        self.asked: deque[asyncio.Future[Any]] = deque()
        self.waits = 0

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.create_task(coroutine)

    def reader(self) -> Any:
        return self

    def close(self) -> None: ...

    def call(self, *_: object) -> asyncio.Future[Any]:
        return self.run()

    def run(self, *_: object) -> asyncio.Future[Any]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    async def answer(self, reply: Any) -> None:
        while not self.asked:
            await asyncio.sleep(0)
        self.asked.popleft().set_result(reply)
        for _ in range(5):
            await asyncio.sleep(0)

    def signal(self) -> Any:
        return self

    def set(self, value: object = True) -> None: ...

    async def wait(self, seconds: float | None) -> None:
        self.waits += 1
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("kind", "before", "last"), [(Shared, [None], []), (Leased, [], [1, [], []])], ids=["shared", "leased"]
)
def test_a_stop_that_comes_while_redis_is_asked_waits_for_nothing(
    kind: type[Shared] | type[Leased], before: list[Any], last: Any
) -> None:
    async def stop() -> None:
        backend = Slow()
        processor = EventProcessor("chat", transport="stream", unordered=kind is Shared)
        jobs = Jobs(cast("Backend", backend), pytest.fail)
        source = kind("chat.1", processor, cast("Backend", backend), jobs, cast("Handling", None))
        await source.begin()
        for reply in before:
            await backend.answer(reply)
        while not backend.asked:
            await asyncio.sleep(0)
        jobs.stopping = True
        source.stop()
        jobs.change()
        await backend.answer(last)
        if kind is Leased:
            await backend.answer(last)  # it says that it has left
        assert backend.waits == 0
        assert not jobs._running

    asyncio.run(asyncio.wait_for(stop(), 10))

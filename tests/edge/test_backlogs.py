"""What waits for clients that do not read: the order, what is replaced, dropped and too old, and the bounds."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from twisted.internet.task import Clock

from kraftek.contract.messages import NULL, Delivery, Gap, Outgoing
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import EventPolicy, Limits
from kraftek.edge.backlogs import IN_TRANSPORT, Backlog, Backlogs
from tests.support.backlogs import make_backlogs

POLICIES = (
    EventPolicy(pattern="cursor:*", policy="latest", key="who"),
    EventPolicy(pattern="brief:*", policy="latest", key="who", ttl=5.0),
    EventPolicy(pattern="typing:*", policy="drop"),
    EventPolicy(pattern="toast:*", ttl=5.0),
)
MUCH = 1 << 30


class Slow:
    """A client that does not read."""

    def __init__(self) -> None:
        self.given_up = 0
        self.backlog: Backlog | None = None

    def give_up(self) -> None:
        self.given_up += 1
        assert self.backlog is not None
        self.backlog.end()

    def gap(self, gap: Gap) -> Outgoing | None:
        return Outgoing(repr({room: dict(missed) for room, missed in gap.rooms.items()}).encode())


class Place:
    """A process with one client that is blocked. ``said`` makes what a service said, ``answer`` anything else."""

    def __init__(self, unsent_bytes: int = 1 << 20) -> None:
        self.clock, self.counters = Clock(), Counters()
        self.backlogs = make_backlogs(self.clock, self.counters, Limits(unsent_bytes=unsent_bytes), POLICIES)
        self.client, self.backlog = self.block()

    def block(self) -> tuple[Slow, Backlog]:
        client = Slow()
        client.backlog = self.backlogs.begin(client)
        return client, client.backlog

    def said(self, type: str, who: str = "", text: str = "", room_id: str | None = "r") -> Outgoing:
        payload = Raw(b'{"who":"%b"}' % who.encode())
        name = text or f"{type} {who}".strip()
        return Outgoing(name.encode(), about=Delivery(type, payload, room_id))

    def put(self, *types: str) -> None:
        for each in types:
            name, _, rest = each.partition(" ")
            who, _, text = rest.partition("=")
            outgoing = Outgoing(each.encode()) if name.isupper() else self.said(name, who, each if text else "")
            assert self.backlog.put(outgoing)

    def taken(self, most: int = MUCH) -> list[str]:
        return [outgoing.text.decode() for outgoing in self.backlog.take(most)]

    @property
    def unsent(self) -> int:
        return self.backlogs.accounts.unsent


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.backlog.end()
    assert made.unsent == 0
    assert len(made.backlogs) == 0


def test_messages_without_a_policy_wait_in_order(place: Place) -> None:
    place.put("a", "b", "a")
    assert len(place.backlog) == 3
    assert place.taken() == ["a", "b", "a"]
    assert place.taken() == []


def test_a_later_one_goes_to_the_end_and_its_predecessor_is_removed(place: Place) -> None:
    place.put("cursor:moved ann=1", "a", "cursor:moved bob=1", "cursor:moved ann=2", "b", "cursor:moved ann=3")
    assert len(place.backlog) == 4
    assert place.taken() == ["a", "cursor:moved bob=1", "b", "cursor:moved ann=3"]
    assert place.counters.messages_skipped == {"drop": 0, "latest": 2, "ttl": 0}


def test_answers_overtake_what_may_be_replaced_and_nothing_else(place: Place) -> None:
    place.put("cursor:moved ann", "a", "cursor:moved bob", "cursor:moved cid", "ERROR 1", "ANSWER 2")
    assert place.taken() == ["cursor:moved ann", "a", "ERROR 1", "ANSWER 2", "cursor:moved bob", "cursor:moved cid"]


def test_what_ends_a_room_overtakes_nothing_of_it(place: Place) -> None:
    place.put("a", "cursor:moved ann")
    assert place.backlog.put(Outgoing(b"ACCESS_REVOKED", about=Delivery("", room_id="r")))
    assert place.taken() == ["a", "cursor:moved ann", "ACCESS_REVOKED"]


def test_what_is_dropped_is_told_before_the_next(place: Place) -> None:
    place.put("a", "typing:begun ann", "typing:begun bob", "b")
    assert place.backlog.put(place.said("typing:begun", room_id=None))
    assert place.taken(30) == ["{'r': {'typing:*': 2}, '': {'typing:*': 1}}", "a"]
    place.put("typing:ended ann")
    assert place.taken() == ["{'r': {'typing:*': 1}}", "b"]
    assert place.taken() == []


def test_what_is_dropped_is_told_when_nothing_else_waits(place: Place) -> None:
    place.put("typing:begun ann")
    assert len(place.backlog) == 0
    assert place.taken() == ["{'r': {'typing:*': 1}}"]


def test_what_waited_too_long_is_not_sent_and_told(place: Place) -> None:
    place.put("toast:shown 1", "a", "brief:moved ann")
    place.clock.advance(4)
    place.put("toast:shown 2")
    place.clock.advance(2)
    assert place.taken(3 * 32) == ["a", "toast:shown 2"]
    assert place.taken() == ["{'r': {'toast:*': 1, 'brief:*': 1}}"]
    assert place.counters.messages_skipped == {"drop": 0, "latest": 0, "ttl": 2}


def test_what_replaces_something_is_as_old_as_itself(place: Place) -> None:
    place.put("brief:moved ann=1")
    place.clock.advance(4)
    place.put("brief:moved ann=2")
    place.clock.advance(4)
    assert place.taken() == ["brief:moved ann=2"]


def test_chunks_are_of_so_many_bytes_and_a_larger_message_is_alone(place: Place) -> None:
    for text in ("a" * 34, "b" * 34, "c" * 34, "d" * 500, "e"):
        place.backlog.put(Outgoing(text.encode()))
    chunks = []
    while chunk := place.taken(100):
        chunks.append([text[0] for text in chunk])
    assert chunks == [["a", "b"], ["c"], ["d"], ["e"]]


def test_past_the_limit_there_is_no_room() -> None:
    place = Place(unsent_bytes=IN_TRANSPORT * 3)
    room = IN_TRANSPORT * 2
    half = Outgoing(b"x" * (room // 2 - 16))
    assert place.backlog.put(half)
    assert place.backlog.put(Outgoing(half.text))
    assert not place.backlog.put(Outgoing(b"x"))
    assert place.taken() == [half.text.decode()] * 2
    assert place.backlog.put(Outgoing(b"x"))


def test_one_message_may_be_larger_than_the_limit() -> None:
    place = Place(unsent_bytes=IN_TRANSPORT * 3)
    large = b"x" * IN_TRANSPORT * 10
    assert place.backlog.put(Outgoing(b"before"))
    assert place.backlog.put(Outgoing(large))
    assert place.backlog.put(Outgoing(b"after"))
    assert not place.backlog.put(Outgoing(large))
    assert [len(text) for text in place.taken(100)] == [6]
    assert [len(text) for text in place.taken(100)] == [len(large)]
    assert place.backlog.put(Outgoing(large))


def test_what_is_too_old_makes_room() -> None:
    place = Place(unsent_bytes=IN_TRANSPORT * 3)
    for _ in range(2):
        while place.backlog.put(place.said("toast:shown", text="x" * 10_000)):
            pass
        assert not place.backlog.put(Outgoing(b"x" * 10_000))
        place.clock.advance(6)
        assert place.backlog.put(Outgoing(b"y" * 10_000))
    told, *texts = place.taken()
    assert texts == ["y" * 10_000] * 2
    assert told == repr({"r": {"toast:*": place.counters.messages_skipped["ttl"]}})


def test_who_moves_for_an_hour_takes_no_more_room_than_who_moved_once(place: Place) -> None:
    for number in range(10_000):
        place.put(f"cursor:moved {number % 3}={number}", *(["a"] if number % 1000 == 0 else []))
        if number % 100 == 0:
            place.put(f"toast:shown {number}")
        place.clock.advance(0.1)
    assert len(place.backlog) == 3 + 10 + 1
    assert len(place.backlog._order) < 100
    assert sum(map(len, place.backlog._expiring.values())) == 1


def test_what_waits_for_several_counts_once(place: Place) -> None:
    before = place.unsent
    clients = [place.block()[1] for _ in range(3)]
    assert place.unsent == before + 3 * IN_TRANSPORT
    message = place.said("cursor:moved", "ann", "x" * 84)
    for backlog in clients:
        assert backlog.put(message)
    assert place.unsent == before + 3 * IN_TRANSPORT + 100
    assert clients[0].take(MUCH) == [message]
    clients[1].end()
    assert place.unsent == before + 2 * IN_TRANSPORT + 100
    clients[2].put(place.said("cursor:moved", "ann", "y" * 84))
    assert place.unsent == before + 2 * IN_TRANSPORT + 100
    for backlog in clients:
        backlog.end()
    assert place.unsent == before


def test_the_payload_is_not_kept_for_what_waits(place: Place) -> None:
    message = place.said("cursor:moved", "ann")
    place.backlog.put(message)
    assert message.about is None
    assert message.waiting is not None


def test_where_it_is_in_a_history_is_known_of_what_waits(place: Place) -> None:
    """A client that catches up, or comes back, is told by that what it has not got yet."""
    about = Delivery("cursor:moved", Raw(b'{"by":"ann"}'), "r", offset=12, order="e.15")
    message = Outgoing(b"m12", about=about)
    place.backlog.put(message)
    assert message.about == Delivery("", NULL, "r", offset=12, order="e.15")


def test_who_takes_nothing_of_a_large_message_is_given_up() -> None:
    place = Place(unsent_bytes=IN_TRANSPORT * 3)
    patience = Limits().ping_timeout
    other, small = place.block()
    assert place.backlog.put(Outgoing(b"x" * IN_TRANSPORT * 10))
    assert small.put(Outgoing(b"x"))
    place.clock.advance(patience - 1)
    place.backlogs.sweep()
    place.backlog.progress = place.clock.seconds()
    place.clock.advance(patience)
    place.backlogs.sweep()
    assert place.client.given_up == 0
    place.clock.advance(1)
    place.backlogs.sweep()
    assert (place.client.given_up, other.given_up) == (1, 0)
    small.end()


def test_the_worst_are_shed_first() -> None:
    place = Place()
    clients = [place.block() for _ in range(3)]
    for number, (_, backlog) in enumerate(clients):
        for _ in range(number + 1):
            backlog.put(Outgoing(b"x" * 1000))
    assert place.backlogs.shed(100_000) == 2 * IN_TRANSPORT + 5 * 1016
    assert [client.given_up for client, _ in clients] == [0, 1, 1]
    assert place.backlogs.shed(10_000_000) == 2 * IN_TRANSPORT + 1016
    assert place.unsent == 0


@given(st.lists(st.sampled_from("abcdABCD12 "), max_size=80), st.randoms(use_true_random=False))
def test_it_is_what_a_plain_list_would_be(steps: list[str], chance: random.Random) -> None:
    """Small letters wait in order, capitals may be replaced, digits are answers; a blank is the client's reading."""
    place, model, sent = Place(), list[str](), list[str]()
    put: Callable[[str], None] = place.put
    for number, step in enumerate(steps):
        if step == " ":
            most = chance.randrange(1, 200)
            got = place.taken(most)
            assert got == model[: len(got)]
            assert got or not model
            del model[: len(got)]
            sent += got
        elif step.isdigit():
            name = f"ANSWER {step} {number}"
            put(name)
            # Taking ends what may be overtaken, so that the rest is one chunk after the other.
            at = len(model)
            while at > 0 and model[at - 1].startswith("cursor") and model[at - 1] not in fixed(place):
                at -= 1
            model.insert(at, name)
        elif step.isupper():
            name = f"cursor:moved {step}={number}"
            put(name)
            model[:] = [each for each in model if not each.startswith(f"cursor:moved {step}=")]
            model.append(name)
        else:
            name = f"{step} x={number}"
            put(name)
            model.append(name)
    assert place.taken() == model


def fixed(place: Place) -> set[str]:
    """The messages that nothing overtakes any more."""
    order = (each if isinstance(each, Outgoing) else each.outgoing for each in place.backlog._order)
    return {each.text.decode() for each in order if each is not None}


def test_there_are_no_backlogs_without_slow_clients() -> None:
    backlogs: Backlogs = make_backlogs(Clock(), Counters())
    assert (len(backlogs), backlogs.shed(1)) == (0, 0)
    backlogs.sweep()

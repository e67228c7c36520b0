"""The Engine.IO clients of a process: the change from polling to WebSocket, and what becomes of each when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest
from twisted.logger import capturedLogs
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import RESTART
from kraftek.contract.interfaces import IClientLink, IReceiver
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Delivery, Gap, Outgoing
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import EventPolicy, Limits
from kraftek.contract.turns import STEP, Turns
from kraftek.edge.addresses import Addresses
from kraftek.edge.engineio import posts
from kraftek.edge.engineio.clients import EngineClient, EngineClients, EngineSocket
from kraftek.edge.engineio.connection import CLOSE_TIMEOUT, UPGRADE_TIMEOUT, ConnectionState, EngineSettings
from kraftek.edge.engineio.packets import EngineError, encode_message
from kraftek.edge.engineio.posts import Posted
from tests.support.backlogs import make_backlogs
from tests.support.fakes import FakeLink
from tests.support.iterations import Iterations

SETTINGS = EngineSettings()
UNSENT = 200
LAST = encode_message(b"last word")


@implementer(IReceiver)
class Listener:
    """What speaks on top: it notes what it hears."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self.heard: list[bytes] = []
        self.charged: list[tuple[int, int]] = []
        self.ended = 0
        self.on_message: Callable[[], object] = lambda: None

    def receive(self, data: bytes, binary: bool = False) -> None:
        self.heard.append(data)
        self.on_message()

    def charge(self, events: int, size: int) -> None:
        self.charged.append((events, size))

    def lost(self) -> None:
        self.ended += 1

    def overrun(self) -> Outgoing | None:
        return LAST

    def gap(self, gap: Gap) -> Outgoing | None:
        return encode_message(repr(gap.rooms).encode())


class World:
    """Clients of a process, on a clock."""

    def __init__(self, per_address: int = 0, *events: EventPolicy) -> None:
        self.clock = Iterations()
        self.accounts = Accounts()
        self.counters = Counters()
        self.listeners: list[Listener] = []
        iteration, self.addresses = Iteration(self.clock), Addresses(per_address)
        self.backlogs = make_backlogs(self.clock, self.counters, Limits(unsent_bytes=UNSENT), events)
        self.clients = EngineClients(
            self.clock,
            iteration,
            self.counters,
            SETTINGS,
            self._open,
            self.addresses,
            10,
            turns=Turns(self.clock, self.accounts),
            backlogs=self.backlogs,
        )

    def _open(self, client: EngineClient) -> Listener:
        self.listeners.append(Listener(client))
        return self.listeners[-1]

    def poll(self, client: EngineClient) -> list[str]:
        """Answers of a held GET, now and later."""
        answers: list[str] = []
        client.poll(lambda body: answers.append("503" if body is None else body.decode()))
        return answers

    def post(self, client: EngineClient, body: bytes, posted: Posted) -> None:
        """A POST, whole."""
        post = client.expect_post(posted)
        post.add(body)
        post.arrived()

    def polling(self, peer: str = "peer") -> tuple[EngineClient, Listener]:
        answers: list[bytes | None] = []
        client = self.clients.poll(peer, answers.append)
        assert answers[0] is not None
        return client, self.listeners[-1]

    def socket(self, client: EngineClient) -> tuple[EngineSocket, FakeLink]:
        link = FakeLink()
        socket = self.clients.connect(client.engine.sid, link)
        assert socket is not None
        return socket, link

    def upgraded(self) -> tuple[EngineClient, Listener, EngineSocket, FakeLink]:
        client, listener = self.polling()
        socket, link = self.socket(client)
        socket.receive(b"2probe")
        socket.receive(b"5")
        assert texts(link) == ["3probe"]
        return client, listener, socket, link

    def take(self, seconds: float) -> None:
        """Something takes so long."""
        self.clock.rightNow += seconds

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.clients.sweep()
        self.clock.advance(0)


def texts(link: FakeLink) -> list[str]:
    written, link.written = link.written, []
    return [outgoing.text.decode() for outgoing in written]


@pytest.fixture
def world() -> World:
    return World()


def test_they_are_links_and_receivers(world: World) -> None:
    client, _ = world.polling()
    assert verifyObject(IClientLink, client)
    assert verifyObject(IReceiver, world.socket(client)[0])


def test_a_websocket_from_the_start(world: World) -> None:
    link = FakeLink()
    socket = world.clients.connect(None, link)
    assert socket is not None
    (handshake,) = texts(link)
    assert json.loads(handshake[1:])["upgrades"] == []
    (listener,) = world.listeners
    socket.receive(b"4hello")
    socket.receive(b"\0", binary=True)
    assert listener.heard == [b"hello", b"\0"]
    listener.client.write(encode_message(b"at once"))
    assert texts(link) == ["4at once"]
    socket.lost()
    assert listener.ended == 1
    with pytest.raises(EngineError):
        world.clients.find(listener.client.engine.sid)


def test_the_change_to_a_websocket_loses_nothing(world: World) -> None:
    client, listener = world.polling()
    held = world.poll(client)
    socket, link = world.socket(client)
    socket.receive(b"2probe")
    assert (texts(link), held) == (["3probe"], ["6"])
    client.write(encode_message(b"in between"))
    world.clock.advance(0)
    assert texts(link) == []
    socket.receive(b"5")
    assert texts(link) == ["4in between"]
    socket.receive(b"4over")
    client.write(encode_message(b"after"))
    assert (listener.heard, texts(link)) == ([b"over"], ["4after"])
    with pytest.raises(EngineError):
        world.poll(client)


def test_a_websocket_that_does_not_probe_is_closed_and_polling_goes_on(world: World) -> None:
    client, listener = world.polling()
    socket, link = world.socket(client)
    socket.receive(b"4hello")
    assert link.closed is not None
    held = world.poll(client)
    client.write(encode_message(b"still here"))
    world.clock.advance(0)
    assert (held, listener.heard, listener.ended) == (["4still here"], [], 0)


def test_a_change_that_takes_too_long_is_given_up(world: World) -> None:
    client, _ = world.polling()
    late, link = world.socket(client)
    late.receive(b"2probe")
    world.pass_time(UPGRADE_TIMEOUT)
    assert link.closed is not None
    # Another may try, and nothing that the first does now matters.
    socket, other = world.socket(client)
    socket.receive(b"2probe")
    late.receive(b"5")
    late.lost()
    socket.receive(b"5")
    client.write(encode_message(b"here"))
    assert texts(other) == ["3probe", "4here"]


@pytest.mark.parametrize("upgraded", [True, False])
def test_a_second_websocket_is_turned_away(world: World, upgraded: bool) -> None:
    client = world.upgraded()[0] if upgraded else world.polling()[0]
    if not upgraded:
        world.socket(client)
    assert world.clients.connect(client.engine.sid, FakeLink()) is None


def test_nobody_has_a_websocket_for_an_unknown_session(world: World) -> None:
    assert world.clients.connect("nobody", FakeLink()) is None


def test_what_is_closed_on_top_is_closed_with_its_code(world: World) -> None:
    client, listener, _, link = world.upgraded()
    client.close(4401, "AUTH_FAILED")
    assert (link.closed, listener.ended) == ((4401, "AUTH_FAILED"), 1)


@pytest.mark.parametrize("held", [True, False])
def test_no_poll_is_told_to_stay_away_when_the_gateway_stops(world: World, held: bool) -> None:
    client, _ = world.polling()
    answers = world.poll(client) if held else []
    client.close(RESTART, "the gateway stops")
    assert answers == (["503"] if held else [])
    with pytest.raises(EngineError):
        world.clients.find(client.engine.sid)


def test_who_polls_gets_what_was_said_before_the_close(world: World) -> None:
    client, listener = world.polling()
    client.write(encode_message(b"AUTH_FAILED"))
    client.close(4401, "AUTH_FAILED")
    assert listener.ended == 1
    assert world.poll(client) == ["4AUTH_FAILED"]
    assert world.poll(client) == ["1"]
    with pytest.raises(EngineError):
        world.clients.find(client.engine.sid)


@pytest.mark.parametrize("fetched", ["5", "poll"])
def test_who_changes_over_gets_what_was_said_before_the_close(world: World, fetched: str) -> None:
    """By the WebSocket when it had already had the answer to its last poll, by that poll otherwise."""
    client, listener = world.polling()
    socket, link = world.socket(client)
    socket.receive(b"2probe")
    assert texts(link) == ["3probe"]
    client.write(encode_message(b"DUPLICATE_CONNECTION"))
    client.close(4409, "DUPLICATE_CONNECTION")
    assert (listener.ended, link.closed) == (1, None)
    if fetched == "5":
        socket.receive(b"5")
        assert texts(link) == ["4DUPLICATE_CONNECTION"]
    else:
        assert world.poll(client) == ["4DUPLICATE_CONNECTION"]
        assert link.closed is None
        assert world.poll(client) == ["1"]
    assert link.closed is not None
    with pytest.raises(EngineError):
        world.clients.find(client.engine.sid)


def test_who_begins_to_change_over_as_it_is_closed_polls_what_was_said_before(world: World) -> None:
    client, _ = world.polling()
    socket, link = world.socket(client)
    client.write(encode_message(b"DUPLICATE_CONNECTION"))
    client.close(4409, "DUPLICATE_CONNECTION")
    socket.receive(b"2probe")
    socket.receive(b"5")  # of no account any more
    assert link.closed is not None
    assert texts(link) == []
    assert world.clients.connect(client.engine.sid, FakeLink()) is None
    assert world.poll(client) == ["4DUPLICATE_CONNECTION"]
    assert world.poll(client) == ["1"]


def test_a_websocket_left_open_for_what_was_said_before_the_close_is_closed_in_time(world: World) -> None:
    client, _ = world.polling()
    socket, link = world.socket(client)
    socket.receive(b"2probe")
    client.write(encode_message(b"DUPLICATE_CONNECTION"))
    client.close(4409, "DUPLICATE_CONNECTION")
    world.pass_time(CLOSE_TIMEOUT - 0.1)
    assert link.closed is None
    world.pass_time(0.1)
    assert link.closed is not None


def test_whoever_is_gone_when_it_is_closed_does_not_count_for_long() -> None:
    world = World(per_address=1)
    client, listener = world.polling()
    assert world.addresses.full("peer")
    client.write(encode_message(b"AUTH_TIMEOUT"))
    client.close(4408, "AUTH_TIMEOUT")
    assert listener.ended == 1
    world.pass_time(CLOSE_TIMEOUT - 0.1)
    assert world.addresses.full("peer")
    world.pass_time(0.1)
    assert not world.addresses.full("peer")
    assert world.counters.ping_timeouts == 0
    world.polling()


def test_the_close_answers_what_was_posted_and_not_read(world: World) -> None:
    """A client waits for that before it changes over."""
    client, _ = world.polling()
    socket, link = world.socket(client)
    socket.receive(b"2probe")
    client.pause()
    done: list[str] = []
    world.post(client, b"4one", lambda _: done.append("before"))
    client.write(encode_message(b"AUTH_FAILED"))
    client.close(4401, "AUTH_FAILED")
    world.post(client, b"4two", lambda _: done.append("after"))
    assert done == ["before", "after"]
    socket.receive(b"5")
    assert texts(link) == ["3probe", "4AUTH_FAILED"]


def test_a_breach_of_the_protocol_closes_the_websocket(world: World) -> None:
    _, listener, socket, link = world.upgraded()
    socket.receive(b"9")
    assert link.closed is not None
    assert listener.ended == 1


def test_each_is_pinged_and_given_up_when_silent(world: World) -> None:
    client, listener, socket, link = world.upgraded()
    for _ in range(3):
        world.pass_time(SETTINGS.ping_interval)
        assert texts(link) == ["2"]
        socket.receive(b"3")
    world.pass_time(SETTINGS.ping_interval)
    world.pass_time(SETTINGS.ping_timeout)
    assert link.closed is not None
    assert (listener.ended, world.counters.ping_timeouts) == (1, 1)
    assert client.engine.state is ConnectionState.CLOSED


def test_who_does_not_fetch_what_it_is_sent_gets_the_last_word(world: World) -> None:
    client, listener = world.polling()
    world.clock.advance(1.0)  # it has had the time to come back
    for _ in range(4):
        client.write(encode_message(b"x" * 40))
    assert listener.ended == 0  # not in the middle of somebody's loop
    world.clock.advance(0)
    assert (listener.ended, world.counters.slow_consumers) == (1, 1)
    assert world.poll(client) == ["4last word"]
    assert world.poll(client) == ["1"]


def test_what_comes_between_two_polls_is_not_held_against_the_client(world: World) -> None:
    client, listener = world.polling()
    answers = world.poll(client)
    for n in range(3):
        client.write(encode_message(b"%d" % n * 80))
    world.clock.advance(0)
    assert len(answers) == 1
    for n in range(3):
        client.write(encode_message(b"%d" % n * 80))
        world.clock.advance(0.3)
    assert listener.ended == 0
    assert world.poll(client) == ["\x1e".join(f"4{n}" + str(n) * 79 for n in range(3))]
    for _ in range(40):
        client.write(encode_message(b"x" * 80))  # there is an end to it
    world.clock.advance(0)
    assert (listener.ended, world.counters.slow_consumers) == (1, 1)


def test_a_post_of_many_packets_leaves_time_for_others(world: World) -> None:
    client, listener = world.polling()
    done: list[EngineError | None] = []
    listener.on_message = lambda: world.take(0.001)
    world.post(client, b"\x1e".join([b"4x"] * 1_200), done.append)
    assert (len(listener.heard), done) == (STEP, [])
    world.clock.advance(0)
    assert (len(listener.heard), done) == (1_200, [None])


def test_a_post_waits_for_none_of_those_who_have_sent_much(world: World) -> None:
    steps: list[object] = []

    class Flooder:
        def step(self) -> bool:
            steps.append(self)
            world.take(0.0005)
            return True

        def rest(self) -> None:
            pass

        failed = rest

    for _ in range(1_000):
        world.clients.turns.add(Flooder())
    client, listener = world.polling()
    done: list[EngineError | None] = []
    listener.on_message = lambda: steps.append(listener)
    world.post(client, b"4a\x1e4b", done.append)
    world.clock.iterate()
    assert done == [None]
    assert steps[:2] == [listener, listener]
    # What was slowed goes on in its turn.
    listener.on_message = lambda: client.slow(0.5)
    world.post(client, b"4c\x1e4d", done.append)
    world.clock.iterate()
    world.clock.rightNow += 0.5
    world.clock.iterate()
    assert (listener.heard, done) == ([b"a", b"b", b"c"], [None])


def test_a_post_is_read_no_further_than_the_receiver_wants(world: World) -> None:
    client, listener = world.polling()
    listener.on_message = lambda: client.pause() if len(listener.heard) == 2 else None
    done: list[EngineError | None] = []
    world.post(client, b"4a\x1e4b\x1e4c", done.append)
    assert (listener.heard, done) == ([b"a", b"b"], [])
    client.resume()
    assert (listener.heard, done) == ([b"a", b"b", b"c"], [None])


def test_a_receiver_may_pause_and_resume_within_a_post(world: World) -> None:
    client, listener = world.polling()

    def pause_and_resume() -> None:
        client.pause()
        client.resume()

    listener.on_message = pause_and_resume
    done: list[EngineError | None] = []
    world.post(client, b"4a\x1e4b\x1e4c", done.append)
    assert (listener.heard, done) == ([b"a", b"b", b"c"], [None])


def test_what_came_before_a_malformed_packet_counts(world: World) -> None:
    client, listener = world.polling()
    answers = world.poll(client)
    done: list[EngineError | None] = []
    world.post(client, b"4a\x1e9", done.append)
    (error,) = done
    assert (error and error.status, listener.heard, listener.ended) == (400, [b"a"], 1)
    assert answers == ["1"]


def test_who_closes_amid_a_post_hears_no_more(world: World) -> None:
    client, listener = world.polling()
    listener.on_message = lambda: client.close(1000, "")
    done: list[EngineError | None] = []
    world.post(client, b"4a\x1e4b", done.append)
    assert (listener.heard, done) == ([b"a"], [None])


def test_a_second_post_ends_the_session_and_the_first(world: World) -> None:
    client, listener = world.polling()
    done: list[EngineError | None] = []
    post = client.expect_post(done.append)
    post.add(b"4")
    with pytest.raises(EngineError):
        client.expect_post(done.append)
    assert (listener.ended, world.accounts.unhandled) == (1, 0)
    post.add(b"a")
    assert world.accounts.unhandled == 0
    post.arrived()
    (error,) = done
    assert error is not None
    assert listener.heard == []


def test_a_post_that_breaks_off_ends_the_session(world: World) -> None:
    client, listener = world.polling()
    post = client.expect_post(lambda _: None)
    post.add(b"4a")
    assert world.accounts.unhandled == 2
    client.post_lost()
    assert listener.ended == 1
    assert world.accounts.unhandled == 0
    post.arrived()
    assert listener.heard == []
    client, _ = world.polling()
    client.post_lost()  # it was answered before


def test_packets_without_a_message_are_handled_in_turns_and_charged(world: World) -> None:
    client, listener = world.polling()
    charge = listener.charge

    def charged(events: int, size: int) -> None:
        world.take(0.001)
        charge(events, size)

    listener.charge = charged  # type: ignore[method-assign]
    done: list[EngineError | None] = []
    world.post(client, b"\x1e".join([b"6"] * 1_200), done.append)
    assert (len(listener.charged), done) == (STEP, [])
    world.clock.advance(0)
    assert (len(listener.charged), done) == (1_200, [None])


def test_what_is_posted_counts_until_it_is_handled(world: World) -> None:
    client, listener = world.polling()
    client.pause()
    world.post(client, b"4one", lambda _: None)
    assert world.accounts.unhandled == 4
    client.resume()
    assert (listener.heard, world.accounts.unhandled) == ([b"one"], 0)


@pytest.mark.parametrize("whole", [True, False])
def test_the_oldest_post_is_given_up_when_there_are_too_many(
    world: World, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posts, "MOST", 10)
    told: dict[int, EngineError | None] = {}
    listeners = []
    for number in range(3):
        client, listener = world.polling()
        client.pause()
        post = client.expect_post(partial(told.__setitem__, number))
        post.add(b"4abc")
        if whole:
            post.arrived()
        listeners.append(listener)
    error = told.pop(0)
    assert error is not None
    assert error.status == 503
    assert (told, [listener.ended for listener in listeners]) == ({}, [1, 0, 0])
    assert (world.accounts.unhandled, world.counters.posts_refused) == (8, 1)


def test_the_clients_of_one_address_take_no_room_of_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest was given up: that of whoever sent slowly."""
    monkeypatch.setattr(posts, "MOST", 65)
    told: dict[str, EngineError | None] = {}

    def begin(name: str, peer: str, body: bytes) -> None:
        post = world.polling(peer)[0].expect_post(partial(told.__setitem__, name))
        post.add(body)

    world.clients.max_clients = 100
    begin("slow", "2001:db8:1::1", b"4" * 20)
    begin("small", "2001:db8:2::1", b"4" * 5)
    begin("large", "2001:db8:2::2", b"4" * 30)
    assert told == {}
    for number in range(20):
        begin(f"more {number}", f"2001:db8:2::{number + 3}", b"4" * 10)
    assert ("slow" in told, "small" in told) == (False, False)
    assert list(told) == ["large", *(f"more {number}" for number in range(16))]
    assert world.accounts.unhandled == 65


def test_posts_are_given_up_where_memory_is_short(world: World) -> None:
    told: list[EngineError | None] = []
    for body in (b"4a", b"4abc", b"4ab"):
        client, _ = world.polling()
        client.pause()
        world.post(client, body, told.append)
    assert world.clients.turns.shed(3) == 4
    assert [error is not None and error.status for error in told] == [503]
    assert world.clients.turns.shed(100) == 5
    assert world.accounts.unhandled == 0


def test_who_is_slowed_reads_its_post_later(world: World) -> None:
    client, listener = world.polling()
    listener.on_message = lambda: client.slow(0.5) if listener.heard == [b"a"] else None
    done: list[EngineError | None] = []
    world.post(client, b"4a\x1e4b", done.append)
    client.pause()
    client.resume()
    assert (listener.heard, done) == ([b"a"], [])
    world.clock.advance(0.5)
    assert (listener.heard, done) == ([b"a", b"b"], [None])


def test_a_fault_in_a_post_ends_the_session(world: World) -> None:
    client, listener = world.polling()
    done: list[EngineError | None] = []

    def fail() -> None:
        if len(listener.heard) > STEP:
            raise ZeroDivisionError
        world.take(0.001)

    listener.on_message = fail
    world.post(client, b"\x1e".join([b"4x"] * 100), done.append)
    with capturedLogs() as logged:
        world.clock.advance(0)
    assert [event["log_failure"].type for event in logged] == [ZeroDivisionError]
    assert (done, listener.ended) == ([None], 1)


@pytest.mark.parametrize("slowed", [True, False])
def test_who_is_not_read_is_not_given_up_for_its_silence(world: World, slowed: bool) -> None:
    client, listener, socket, _ = world.upgraded()
    world.pass_time(SETTINGS.ping_interval)
    if slowed:
        client.slow(1.0)
    else:
        client.pause()
    world.pass_time(SETTINGS.ping_timeout)
    assert listener.ended == 0
    if slowed:
        socket.receive(b"3")
        world.pass_time(SETTINGS.ping_timeout)
        assert listener.ended == 0
    else:
        client.resume()
        world.pass_time(SETTINGS.ping_timeout)
        assert listener.ended == 0  # it has as long again to answer
        world.pass_time(SETTINGS.ping_timeout)
        assert listener.ended == 1


def test_packets_of_a_websocket_without_a_message_are_charged(world: World) -> None:
    _, listener, socket, _ = world.upgraded()
    listener.charged.clear()
    socket.receive(b"6")
    socket.charge(1, 7)
    assert listener.charged == [(1, 1), (1, 7)]


def test_a_client_is_given_up_at_the_moment_that_it_was_told(world: World) -> None:
    _, listener, _, link = world.upgraded()
    world.pass_time(SETTINGS.ping_interval)
    pinged = world.clock.seconds()
    assert texts(link) == ["2"]
    while not listener.ended:
        world.clock.advance(0.01)
        if round(world.clock.seconds() * 100) % 25 == 0:
            world.clients.sweep()
    assert world.clock.seconds() - pinged == pytest.approx(SETTINGS.ping_timeout, abs=0.011)


def test_pausing_follows_the_client_to_its_websocket(world: World) -> None:
    client, _ = world.polling()
    client.pause()
    done: list[str] = []
    world.post(client, b"4one", lambda _: done.append("ok"))
    socket, link = world.socket(client)
    socket.receive(b"2probe")
    assert not link.paused
    socket.receive(b"5")
    assert link.paused
    assert done == []
    client.resume()
    assert (link.paused, done) == (False, ["ok"])


def test_polling_clients_are_limited(world: World) -> None:
    for _ in range(10):
        world.polling()
    with pytest.raises(EngineError) as refused:
        world.clients.poll("peer", lambda body: None)
    assert (refused.value.status, str(refused.value)) == (503, "too many connections")
    assert world.counters.connections_refused["process"] == 1


def test_a_client_that_polls_in_time_misses_nothing() -> None:
    world = World(0, EventPolicy(pattern="typing", policy="drop"))
    client, _ = world.polling()
    world.poll(client)
    client.write(encode_message(b"first"))
    world.clock.advance(0)
    world.clock.advance(0.5)
    client.write(told(b"typing"))
    assert world.poll(client) == ["4typing"]


def test_a_client_that_polls_late_is_told_what_it_missed() -> None:
    world = World(
        0,
        EventPolicy(pattern="typing", policy="drop"),
        EventPolicy(pattern="moved", policy="latest"),
        EventPolicy(pattern="shown", ttl=5.0),
    )
    client, _ = world.polling()
    client.write(encode_message(b"1"))
    world.clock.advance(1.0)
    for text in (b"typing", b"moved", b"shown", b"moved"):
        client.write(told(text))
    assert len(world.backlogs) == 1
    world.clock.advance(6.0)
    client.write(told(b"made"))
    fetched = ("4{'r': {'typing': 1}}", "41", "4moved", "4made", "4{'r': {'shown': 1}}")
    assert world.poll(client) == ["\x1e".join(fetched)]
    assert len(world.backlogs) == 0


def told(text: bytes) -> Outgoing:
    """What a service said in a room; its type is the text."""
    outgoing = encode_message(text)
    outgoing.about = Delivery(text.decode(), room_id="r")
    return outgoing


def test_what_waits_for_a_client_that_is_changing_over_is_bounded_and_in_the_account(world: World) -> None:
    """16 times as much could wait, in no account, for as long as one WebSocket after the other was offered."""
    accounts = world.backlogs.accounts
    client, listener = world.polling()
    socket, _ = world.socket(client)
    world.clock.advance(1.0)
    client.write(encode_message(b"x" * 79))
    assert accounts.unsent == 80 + 16
    socket.receive(b"2probe")
    assert accounts.unsent == 80 + 16
    client.write(encode_message(b"x" * 79))
    assert (accounts.unsent, world.counters.slow_consumers) == (0, 1)
    world.clock.advance(0)
    assert listener.ended == 1


def test_what_waited_while_it_changed_over_is_written_to_its_websocket(world: World) -> None:
    client, _ = world.polling()
    socket, link = world.socket(client)
    client.write(encode_message(b"in time"))
    world.clock.advance(1.0)
    client.write(encode_message(b"late"))
    socket.receive(b"2probe")
    socket.receive(b"5")
    assert texts(link) == ["3probe", "4in time", "4late"]
    assert world.backlogs.accounts.unsent == 0


def test_what_waits_when_a_client_is_closed_stays_in_the_account_until_it_is_fetched(world: World) -> None:
    client, _ = world.polling()
    client.write(encode_message(b"x" * 9))
    client.close(4401, "AUTH_FAILED")
    assert world.backlogs.accounts.unsent == 10 + 16
    assert world.poll(client) == ["4" + "x" * 9]
    assert world.backlogs.accounts.unsent == 0
    other, _ = world.polling()
    other.write(encode_message(b"x" * 9))
    other.close(4401, "AUTH_FAILED")
    world.pass_time(CLOSE_TIMEOUT)
    assert (world.backlogs.accounts.unsent, len(world.backlogs)) == (0, 0)


def test_what_came_in_time_is_not_kept_for_long(world: World) -> None:
    client, listener = world.polling()
    for _ in range(10):
        client.write(encode_message(b"x" * 80))
    world.clock.advance(Limits().ping_timeout)
    world.backlogs.sweep()
    assert listener.ended == 0
    world.clock.advance(0.1)
    world.backlogs.sweep()
    world.clock.advance(0)
    assert (listener.ended, world.backlogs.accounts.unsent) == (1, 0)

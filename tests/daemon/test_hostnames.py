"""Names looked up by a name server that answers, hangs, fails, and changes its mind."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHostnameResolver, IResolutionReceiver
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.daemon.hostnames import HostnameResolver

HERE = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]
THERE = [
    (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::2", 80, 0, 0)),
    (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.2", 80)),
]
UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
AGAIN = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@implementer(IResolutionReceiver)
class Receiver:
    """Who asked for a name. ``found`` is ``None`` until the answer is complete."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.heard: list[str] = []
        self.found: list[str] | None = None

    def resolutionBegan(self, resolution: Any) -> None:
        self.began.append(resolution.name)

    def addressResolved(self, address: Any) -> None:
        assert self.began
        assert self.found is None
        self.heard.append(address.host)

    def resolutionComplete(self) -> None:
        assert self.found is None
        self.found = self.heard


class Question:
    """A look-up on its thread, which waits for the test."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self.answer: queue.Queue[Any] = queue.Queue()


class Reactor(Clock):
    """Calls from threads wait for :meth:`hear`."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: queue.Queue[Callable[[], None]] = queue.Queue()

    def callFromThread(self, call: Callable[..., None], *args: Any) -> None:
        self._calls.put(lambda: call(*args))

    def hear(self) -> None:
        self._calls.get(timeout=10)()


class World:
    """A resolver and the system's look-up, which does what the test says."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.questions: queue.Queue[Question] = queue.Queue()
        self.asked: list[Question] = []
        self.resolver = HostnameResolver(self.reactor, self._look_up)

    def _look_up(self, *arguments: Any) -> Any:
        question = Question(arguments)
        self.asked.append(question)
        self.questions.put(question)
        answer = question.answer.get(timeout=10)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ask(self, name: str = "auth.example", **how: Any) -> Receiver:
        receiver = Receiver()
        resolution: Any = self.resolver.resolveHostName(receiver, name, 80, **how)
        assert resolution.name == name
        assert receiver.began == [name]
        return receiver

    def next(self) -> Question:
        """The oldest look-up under way that was not seen yet."""
        return self.questions.get(timeout=10)

    def answer(self, question: Question, answer: Any) -> None:
        question.answer.put(answer)
        self.reactor.hear()

    def learn(self, answer: Any) -> Receiver:
        """Ask, and be answered at once."""
        receiver = self.ask()
        self.answer(self.next(), answer)
        return receiver

    @property
    def idle(self) -> bool:
        return self.questions.empty() and not self.reactor.getDelayedCalls()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for question in world.asked:
        question.answer.put([])  # no thread waits on


def test_it_is_a_resolver(world: World) -> None:
    assert verifyObject(IHostnameResolver, world.resolver)


def test_all_addresses_in_order(world: World) -> None:
    assert world.learn(THERE).found == ["2001:db8::2", "192.0.2.2"]
    assert world.idle


def test_how_the_system_is_asked(world: World) -> None:
    questions: list[tuple[dict[str, Any], int, int]] = [
        ({}, socket.AF_UNSPEC, socket.SOCK_STREAM),
        ({"addressTypes": [IPv4Address]}, socket.AF_INET, socket.SOCK_STREAM),
        ({"addressTypes": [IPv6Address]}, socket.AF_INET6, socket.SOCK_STREAM),
        ({"addressTypes": [IPv4Address, IPv6Address]}, socket.AF_UNSPEC, socket.SOCK_STREAM),
        ({"transportSemantics": "UDP"}, socket.AF_UNSPEC, socket.SOCK_DGRAM),
    ]
    for how, family, kind in questions:
        world.ask(**how)
        question = world.next()
        assert question.arguments == ("auth.example", 80, family, kind)
        world.answer(question, [])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "fe80::1"])
def test_an_address_is_no_name(world: World, address: str) -> None:
    assert world.ask(address).found == [address]
    assert world.idle


def test_an_address_of_another_family_is_none(world: World) -> None:
    assert world.ask("::1", addressTypes=[IPv4Address]).found == []
    assert world.idle


@pytest.mark.parametrize("answer", [UNKNOWN, AGAIN, OSError("out of files"), UnicodeError("label too long"), []])
def test_nothing_found(world: World, answer: Any) -> None:
    assert world.learn(answer).found == []
    assert world.idle


def test_who_asks_at_the_same_time_shares_a_look_up(world: World) -> None:
    receivers = [world.ask() for _ in range(3)]
    other = world.ask("redis.example")
    question = world.next()
    assert world.next().arguments[0] == "redis.example"
    assert world.questions.empty()
    world.answer(question, HERE)
    assert [receiver.found for receiver in receivers] == [["192.0.2.1"]] * 3
    assert other.found is None


def test_every_question_is_asked_anew(world: World) -> None:
    assert world.learn(HERE).found == ["192.0.2.1"]
    assert world.learn(THERE).found == ["2001:db8::2", "192.0.2.2"]
    assert world.learn(UNKNOWN).found == []


def test_a_look_up_that_hangs_does_not_hang_the_next(world: World) -> None:
    """When the name server is back, the next look-up is answered, and everybody with it."""
    first = world.ask()
    hanging = world.next()
    world.reactor.advance(1.0)
    assert first.found is None
    second = world.ask()
    world.answer(world.next(), HERE)
    assert first.found == second.found == ["192.0.2.1"]
    world.answer(hanging, THERE)  # which was true before
    assert world.learn(AGAIN).found == ["192.0.2.1"]
    assert world.idle


def test_a_failure_is_told_to_its_own_look_up_alone(world: World) -> None:
    first = world.ask()
    hanging = world.next()
    world.reactor.advance(1.0)
    second = world.ask()
    newer = world.next()
    world.answer(hanging, AGAIN)
    assert (first.found, second.found) == ([], None)
    world.answer(newer, HERE)
    assert second.found == ["192.0.2.1"]


@pytest.mark.parametrize("failure", [AGAIN, None])
def test_a_name_server_that_is_away_takes_nothing_back(world: World, failure: Exception | None) -> None:
    world.learn(HERE)
    receiver = world.ask()
    question = world.next()
    if failure:
        world.answer(question, failure)
    else:
        world.reactor.advance(1.0)
        late = world.ask()  # nor does anybody wait again for what hangs
        assert late.found == ["192.0.2.1"]
        world.answer(question, THERE)
        world.answer(world.next(), THERE)
    assert receiver.found == ["192.0.2.1"]


def test_a_name_that_is_no_more_is_forgotten(world: World) -> None:
    world.learn(HERE)
    world.learn(UNKNOWN)
    assert world.learn(AGAIN).found == []


def test_look_ups_that_hang_are_bounded(world: World) -> None:
    for _ in range(100):
        world.ask()
        world.reactor.advance(1.0)
    hanging = [world.next() for _ in range(64)]
    assert world.questions.empty()
    for question in hanging:
        world.answer(question, AGAIN)
    assert world.idle


def test_its_threads_keep_no_process_alive(world: World) -> None:

    world.ask()
    question = world.next()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "look up auth.example"]
    assert thread.daemon
    world.answer(question, HERE)
    thread.join(10)

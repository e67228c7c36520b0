"""An upgrade up to the moment in which the image is replaced, and everything for which it is called off."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from kraftek.contract.interfaces import IClientLink, IMovableLink
from kraftek.contract.iteration import Iteration
from kraftek.daemon import upgrade as module
from kraftek.daemon.image import Inheritance
from kraftek.daemon.state import State, read_state
from kraftek.daemon.upgrade import Upgrade
from kraftek.edge.dialects.native import NativeDialect
from kraftek.edge.moving import EdgeMove
from tests.edge.websocket.edge import Edge
from tests.support.fakes import FakeLink
from tests.support.world import House

reactor: Any = installed

SAYS_YES = b"The configuration is right.\nIt takes over format 1.\n"


class Command:
    """That of a process whose image cannot be replaced. ``says``: what a child says, and its status."""

    directory = "/"
    current: ClassVar = ["twistd"]

    def __init__(self, says: bytes | None = SAYS_YES, status: int = 0) -> None:
        self.says = says
        self.status = status
        self.given: list[State] = []

    def check(self, *options: str) -> tuple[list[str], dict[str, str]]:
        assert options == ("--takes-over=1",)
        return ["program", "--check"], {"HOME": "/"}

    def run(self, *arguments: object) -> Deferred[tuple[bytes, bytes, int]]:
        """In the place of a child."""
        assert arguments == ("program", ["--check"], {"HOME": "/"}, "/", reactor)
        return Deferred() if self.says is None else succeed((self.says, b"", self.status))

    def replace(self, memory: int, agreed: int) -> None:
        self.given.append(read_state(Inheritance(state=memory, format=agreed, current=[])))
        assert all(map(os.get_inheritable, self.given[-1].descriptors))
        raise OSError("no such file")


@implementer(IClientLink, IMovableLink)
class Link(FakeLink):
    """A link that can be handed over. ``frozen``: as often as it was asked, ``False`` until ``ready``."""

    movable = True

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.ready = True
        self.frozen = False
        self._descriptor = descriptor

    def freeze(self) -> bool:
        self.frozen = self.ready
        return self.ready

    def thaw(self) -> None:
        self.frozen = False

    def give(self) -> tuple[int, bytes]:
        assert self.frozen
        return self._descriptor, b"link"


class Bus:
    """Everything that was sent is answered."""

    idle = True
    frozen = False

    def freeze(self) -> bool:
        self.frozen = True
        return True

    def thaw(self) -> None:
        self.frozen = False

    def give(self) -> None:
        return None


class Sweeps:
    running = True

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False


class UpgradeTest(TestCase):
    timeout = 20

    def setUp(self) -> None:
        self.house, self.edge, self.bus, self.sweeps = House(), Edge(), Bus(), Sweeps()
        self.ours, theirs = socket.socketpair()
        self.addCleanup(self.ours.close)
        self.addCleanup(theirs.close)
        self.patch(module, "_STUCK", 0.05)
        self.patch(module, "_FREEZING", 0.3)
        self.patch(module, "_DRAINING", 0.1)

    def client(self, link: Any = None) -> Any:
        link = link or Link(self.ours.fileno())
        return self.house.gateway.open(link, NativeDialect())

    def made(self, command: Any) -> Upgrade:
        edge: Any = SimpleNamespace(
            move=EdgeMove(self.edge.factory, SimpleNamespace(), None),  # type: ignore[arg-type]
            connections=self.edge.connections,
            site=self.edge.site,
            clients=self.edge.factory,
        )
        iteration, ports, others = Iteration(Clock()), [("tcp:1", self.ours)], [self]
        parts: Any = {"sweeps": self.sweeps, "ports": ports, "others": others}
        bus: Any = self.bus
        return Upgrade(reactor, command, self.house.core, edge, bus, iteration, **parts)

    def startReading(self) -> None:
        self.reads = True

    def stopReading(self) -> None:
        self.reads = False

    async def called_off(self, command: Command, before: Callable[[Upgrade], object] = lambda _: None) -> str:
        """Why. Everything goes on as before."""
        upgrade = self.made(command)
        self.patch(module, "getProcessOutputAndValue", command.run)
        with capturedLogs() as events:
            before(upgrade)
            await upgrade.run()
        assert not upgrade.running
        assert not self.edge.factory.freezing
        assert self.sweeps.running
        assert not self.bus.frozen
        assert not any(session.link.frozen for session in self.house.roster)  # type: ignore[attr-defined]
        return "\n".join(formatEvent(event) for event in events)

    async def test_the_next_image_gets_everything(self) -> None:
        session, command = self.client(), Command()
        assert "Not upgraded: twistd: no such file" in await self.called_off(command)
        (state,) = command.given
        assert (state.gateway_id, state.listeners) == ("gw", [("tcp:1", self.ours.fileno())])
        assert state.sockets == [(self.ours.fileno(), b"link", self.house.move.give_session(session))]
        assert not os.get_inheritable(self.ours.fileno())
        assert session.link.closed is None
        assert self.reads

    async def test_a_version_that_cannot_take_over(self) -> None:
        why = await self.called_off(Command(b"Cannot start: no", 78))
        assert "Not upgraded: program cannot take over: Cannot start: no" in why
        assert "cannot take over: it ended with 3" in await self.called_off(Command(b"", 3))
        other = b"It takes over format 2."
        assert "cannot take over: It takes over format 2." in await self.called_off(Command(other))

    async def test_a_version_that_says_nothing(self) -> None:
        self.patch(module, "_CHECKING", 0.1)
        why = await self.called_off(Command(None))
        assert "does not say within 0.1 s that it can take over" in why

    async def test_redis_that_does_not_answer(self) -> None:
        self.bus.idle = False
        assert "came to an end within 0.3 s" in await self.called_off(Command())

    async def test_a_gateway_that_stops(self) -> None:
        assert "Not upgraded: the gateway stops" in await self.called_off(Command(), Upgrade.stop)

    async def test_who_cannot_be_handed_over_is_drained_and_who_is_stuck(self) -> None:
        polling, stuck, checking = self.client(FakeLink()), self.client(), self.client()
        stuck.link.ready = False
        checking.check_begins()
        command = Command()
        assert "1 clients cannot be handed over" in await self.called_off(command)
        for session in (polling, stuck, checking):
            assert session.link.closed == (1012, "the gateway is upgraded")
            assert session.link.read()[-1]["type"] == "drain"
        assert command.given[0].sockets == []

    async def test_state_for_which_there_is_no_memory(self) -> None:
        def full(_: bytes) -> int:
            raise OSError("no memory")

        self.patch(module, "memory_of", full)
        assert "bytes, cannot be kept: no memory" in await self.called_off(Command())

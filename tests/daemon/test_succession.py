"""What one image of the process takes over from the one before, and gives to the next."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from twisted.internet import reactor as installed
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import TestCase

from kraftek.bus.server import Server
from kraftek.bus.subscriber import SubscriberState
from kraftek.contract.settings import Config, Operator
from kraftek.daemon import succession as module
from kraftek.daemon.image import Inheritance, memory_of
from kraftek.daemon.listening import Certificates
from kraftek.daemon.state import FORMATS, State
from kraftek.daemon.succession import Succession
from tests.support.world import House

reactor: Any = installed

NOTHING: Any = None


class Bus:
    """Notes what it is to go on with."""

    def __init__(self) -> None:
        self.adopted: list[object] = []
        self.listening = SimpleNamespace(adopt=lambda make, inherited: self.adopted.append(inherited))


class Upgrades:
    """In the place of an upgrade."""

    def __init__(self, *parts: object, **others: object) -> None:
        self.parts, self.others = parts, others
        self.running = False
        self.stopped = False

    async def run(self) -> None:
        self.running = True
        raise ZeroDivisionError

    def stop(self) -> None:
        self.stopped = True


def logged(events: Sequence[Any]) -> str:
    return "\n".join(formatEvent(event) for event in events)


class SuccessionTest(TestCase):
    timeout = 10

    def inheritance(self, *listeners: tuple[str, int], subscriber: int) -> Inheritance:
        given = msgspec.msgpack.encode(SubscriberState(id=17, server=Server(run="abc")))
        state = State(
            version="0.9",
            gateway_id="gw",
            sockets=[(subscriber, b"connection", b"session")],
            listeners=[*listeners],
            core=House().move.give(),
            subscriber=(subscriber, given),
        )
        return Inheritance(state=memory_of(state.encoded), format=FORMATS[0], current=[])

    async def test_an_image_takes_over(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        number = listener.getsockname()[1]
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        ours.set_inheritable(True)
        restored: list[object] = []

        def restore(*given: object) -> str:
            restored.append(given[:2])
            return "link"

        edge: Any = SimpleNamespace(move=SimpleNamespace(restore=restore))
        found = Succession(reactor, None, self.inheritance(("tcp:1", listener.detach()), subscriber=ours.fileno()))
        own, taken = found.endpoints(["tcp:0:interface=127.0.0.1", "tcp:1"], Certificates())
        port: Any = await taken.listen(Factory.forProtocol(Protocol))
        assert port.getHost().port == number
        await port.stopListening()
        del own
        assert found.gateway_id == "gw"
        bus: Any = Bus()
        with capturedLogs() as events:
            links: Any = found.take_over(House().core, edge, bus)
        assert links == ["link"]
        assert restored == [(ours.fileno(), b"connection")]
        assert not ours.get_inheritable()
        assert [inherited.id for inherited in bus.adopted] == [17]
        assert logged(events) == "Took over 1 sockets of version 0.9"
        found.failed(["too late"])

    async def test_an_image_that_has_nothing_to_take_over(self) -> None:
        found = Succession(reactor, None, None)
        assert found.endpoints([], Certificates()) == []
        assert found.gateway_id == ""
        assert found.take_over(NOTHING, NOTHING, NOTHING) == []
        with capturedLogs() as events:
            found.failed(["one", "two"])
            found.prepare(Config(), NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, [], [])
            found.begin()
            found.end()
        assert logged(events).startswith("Cannot start: one\nCannot start: two\nNot upgraded: the gateway starts,")

    async def test_an_image_is_upgraded_once_at_a_time(self) -> None:
        self.patch(module, "Upgrade", Upgrades)
        command: Any = object()
        found = Succession(reactor, command, None)
        ports: Any = ["port", "operator's"]
        config = Config(listen=("tcp:1",), operator=Operator(listen=("tcp:2",)))
        found.prepare(config, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, ports[:1], ports[1:])
        upgrade: Any = found._upgrade
        assert upgrade.others["ports"] == [("tcp:1", "port"), ("tcp:2", "operator's")]
        with capturedLogs() as events:
            found.begin()
            found.begin()
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        assert [formatEvent(event)[:12] for event in events] == ["The upgrade ", "Not upgraded"]
        found.end()
        assert upgrade.stopped


def test_state_that_cannot_be_read() -> None:
    descriptor = os.memfd_create("nothing", 0)
    found = Succession(reactor, None, Inheritance(state=descriptor, format=99, current=[]))
    with pytest.raises(ValueError, match="99"):
        found.endpoints([], Certificates())
    os.close(descriptor)

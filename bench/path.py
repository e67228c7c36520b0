"""What a message costs in the gateway's own code: ``python -m bench.path``. README.rst says how to read what it prints.

The gateway's real parts, from a client's bytes to the bytes for Redis and back, on transports that take everything.
What arrives is made before, and nothing else runs: no kernel, client, Redis or service.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

import txaio
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

import kraftek.bus.connections
from kraftek.bus import RedisBus
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters
from kraftek.contract.redis_url import redis_address
from kraftek.contract.settings import Config, Redis, Registration
from kraftek.core.access.open import OpenAccess
from kraftek.core.registry import ServiceRegistry
from tests.support.fakes import FakeRooms

try:
    from kraftek.daemon.assembly import Core, Edge, Surroundings
except ImportError:  # of an older gateway, for --before
    from kraftek.daemon.assembly import core_of, edge_of  # type: ignore[attr-defined]

    Surroundings = None  # type: ignore[assignment,misc]

try:
    from kraftek.bus.subscriber import SubscriberConnection
    from kraftek.contract.accounts import Accounts
except ImportError:  # of an older gateway, for --before
    SubscriberConnection = kraftek.bus.connections.SubscriberConnection  # type: ignore[attr-defined,misc]
    Accounts = None  # type: ignore[assignment,misc]

CLIENTS = 1000
SENDERS = 48
"""Those of them that send: so each has been allowed as many messages at a time as a busy client is."""
TOGETHER = 8
"""Messages or connections of one iteration of the reactor."""
TURNS = 400
WARM = 130
"""Iterations before: everybody has sent something."""
TEXT = b"x" * 64
_GONE = Failure(ConnectionDone())

Turn = tuple[int, Callable[[], None]]
"""What is done in an iteration, and how many messages are in it."""


class Transport:
    """Takes everything. ``asked``: what was written, where that matters."""

    connected = True
    disconnecting = False
    protocol: Any = None

    def __init__(self, number: int = 1, asked: list[bytes] | None = None) -> None:
        self.asked = asked
        self.peer = IPv4Address("TCP", f"127.0.{number >> 8}.{number & 255}", 1)

    def getPeer(self) -> IPv4Address:
        return self.peer

    getHost = getPeer

    def write(self, data: bytes) -> None:
        if self.asked is not None:
            self.asked.append(data)

    def send(self, data: bytes) -> int:
        return len(data)

    def _nothing(self, *_: object) -> None:
        pass

    setTcpNoDelay = setTcpKeepAlive = registerProducer = unregisterProducer = _nothing
    pauseProducing = resumeProducing = loseConnection = abortConnection = _nothing


def _write(transport: Any, data: bytes) -> Callable[[bytes], int]:
    """As :func:`kraftek.fastpath.write_now`."""
    transport.write(data)
    send: Callable[[bytes], int] = transport.send
    return send


def _made(function: Callable[..., Any], *args: Any, **known: Any) -> Any:
    """With those arguments that it has: an older gateway has fewer."""
    parameters = inspect.signature(function).parameters
    return function(*args, **{name: value for name, value in known.items() if name in parameters})


def _assembled(config: Config, **known: Any) -> tuple[Any, Any]:
    """The core and the edge."""
    clock = known["clock"]
    if Surroundings is None:
        core = _made(core_of, config, **known)
        return core, edge_of(config, core, known["iteration"], known["counters"], clock)
    rooms = known.pop("rooms")
    given = Surroundings(config=config, **known)
    core = Core(given, rooms=rooms)
    return core, Edge(given, core, clock)


class Gateway:
    """One with ``CLIENTS`` clients: half of them in a large room, the others in rooms of four."""

    def __init__(self) -> None:
        self.clock = clock = Clock()
        clock.advance(100.0)
        txaio.config.loop = clock  # type: ignore[attr-defined]
        self.iteration = iteration = Iteration(clock)
        iteration.write, iteration.driven = _write, True
        services = (
            Registration(name="echo", channel="events:echo"),
            Registration(name="chat", channel="events:chat", reply=True),
        )
        config = Config(redis=Redis(url="redis://127.0.0.1:1"), services=services)
        counters, accounts = Counters(), () if Accounts is None else (Accounts(),)
        known = {"accounts": accounts[0]} if accounts else {}
        bus: Any = _made(RedisBus, clock, config.redis, iteration, counters, **known)
        shared = clock, redis_address(config.redis.url), config.redis, bus, iteration, *accounts
        self.commands: Any = self._connected(kraftek.bus.connections.CommandConnection(*shared))
        connection: Any = SubscriberConnection
        self.subscriber: Any = self._connected(connection(*shared, bus._channels))  # noqa: SLF001
        bus._commands = bus._sender = self.commands  # noqa: SLF001
        bus._subscriber = self.subscriber  # noqa: SLF001
        bus.available = True
        registry = ServiceRegistry(services)
        self.core, self._edge = _assembled(
            config,
            gateway_id="gw",
            registry=registry,
            bus=bus,
            access=OpenAccess(bus),
            rooms=FakeRooms(),
            counters=counters,
            clock=clock,
            iteration=iteration,
            **known,
        )
        self.clients = [
            self.connect(number, f"room{number // 8}" if number % 2 else "large") for number in range(CLIENTS)
        ]
        iteration.end()
        self.sockets = [session.socket_id.encode() for session in self.core.roster]

    def _connected(self, connection: Any) -> Any:
        connection.makeConnection(Transport(asked=[]))
        self.iteration.end()
        connection.waiting.clear()
        connection.transport.asked.clear()
        return connection

    def connect(self, number: int, room: str) -> Transport:
        """A client connects, with a token of its own."""
        transport = Transport(number)
        transport.protocol = self._edge.site.buildProtocol(transport.peer)
        transport.protocol.makeConnection(transport)
        transport.protocol.dataReceived(
            b"GET /?token=t%d&roomId=%b HTTP/1.1\r\nHost: gateway.test\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            % (number, room.encode())
        )
        return transport

    def answer(self) -> None:
        """Redis does what it was asked."""
        asked = b"".join(self.commands.transport.asked)
        self.commands.transport.asked.clear()
        scripts = len(self.commands.waiting) - (published := asked.count(b"$7\r\nPUBLISH\r\n"))
        self.commands.dataReceived(b":1\r\n" * published + b"*0\r\n" * scripts)

    def said(self, body: bytes, *, to_all: bool = False) -> bytes:
        """A service says so, to this gateway or to all."""
        channels = self.subscriber._listeners  # noqa: SLF001
        channel = next(name for name in channels if (b"broadcast" if to_all else b"reply") in name)
        return b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(channel), channel, len(body), body)

    def passed(self) -> None:
        """A millisecond."""
        self.iteration.end()
        self.clock.advance(0.001)
        self.iteration.end()


def frame(payload: bytes) -> bytes:
    """A client's."""
    size, mask = len(payload), b"\1\2\3\4"
    head = bytes((0x81, 0x80 | size)) if size < 126 else bytes((0x81, 0xFE)) + size.to_bytes(2, "big")
    return head + mask + bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))


def round_trips(gateway: Gateway, each: int, *, request: bool) -> Iterator[Turn]:
    """There and back, so many at a time by ``each`` client."""
    service, many = b"chat" if request else b"echo", TOGETHER // each
    turns = []
    for first in range(0, SENDERS, many):
        reads, answers = [], b""
        for client in range(first, first + many):
            read = b""
            for number in range(each):
                asks, answered = (b'"id":%d,' % number, b'"inReplyTo":%d,' % number) if request else (b"", b"")
                read += frame(b'{"type":"%b:text:send",%b"payload":{"text":"%b"}}' % (service, asks, TEXT))
                answers += gateway.said(
                    b'{"type":"%b:text:sent","recipients":["%b"],%b"payload":{"text":"%b"}}'
                    % (service, gateway.sockets[client], answered, TEXT)
                )
            reads.append((gateway.clients[client].protocol, read))
        turns.append((reads, answers))

    def play(reads: list[tuple[Any, bytes]], answers: bytes) -> None:
        for protocol, data in reads:
            protocol.dataReceived(data)
        gateway.iteration.end()
        gateway.answer()
        gateway.subscriber.dataReceived(answers)
        gateway.passed()

    while True:
        for reads, answers in turns:
            yield TOGETHER, partial(play, reads, answers)


def deliveries(gateway: Gateway, room: str, size: int) -> Iterator[Turn]:
    """A message to a room."""
    data = gateway.said(
        b'{"type":"echo:text:sent","roomId":"%b","payload":{"text":"%b"}}' % (room.encode(), TEXT), to_all=True
    )

    def play() -> None:
        gateway.subscriber.dataReceived(data)
        gateway.passed()

    while True:
        yield size, play


def connections(gateway: Gateway) -> Iterator[Turn]:
    """Clients that connect, authenticate, and leave."""

    def play() -> None:
        made = [gateway.connect(CLIENTS + number, f"new{number // 4}") for number in range(TOGETHER)]
        gateway.passed()
        for each in made:
            each.protocol.connectionLost(_GONE)

    while True:
        yield TOGETHER, play


CASES: dict[str, Callable[[Gateway], Iterator[Turn]]] = {
    "event, 1 in flight": lambda gateway: round_trips(gateway, 1, request=False),
    "event, 8 in flight": lambda gateway: round_trips(gateway, 8, request=False),
    "request, 1 in flight": lambda gateway: round_trips(gateway, 1, request=True),
    "request, 8 in flight": lambda gateway: round_trips(gateway, 8, request=True),
    "delivery, room of 4": lambda gateway: deliveries(gateway, "room7", 4),
    "delivery, room of 500": lambda gateway: deliveries(gateway, "large", 500),
    "connection": connections,
}


def least(name: str) -> float:
    """Microseconds of one message in the iteration that took least."""
    gateway = Gateway()
    turns = CASES[name](gateway)
    for _ in range(WARM):
        next(turns)[1]()
    gc.collect()
    gc.disable()
    took = inf
    for _ in range(TURNS):
        messages, turn = next(turns)
        began = perf_counter()
        turn()
        took = min(took, (perf_counter() - began) / messages)
    gc.enable()
    return took * 1e6


def operations(name: str) -> tuple[float, Counter[str]]:
    """Operations of Python's for one message, as a whole and in each function. They are always the same."""
    gateway = Gateway()
    turns = CASES[name](gateway)
    for _ in range(WARM):
        next(turns)[1]()
    # A multiple of how often budgets are looked at: everybody sends 64 messages.
    played = [next(turns) for _ in range(64 * SENDERS // TOGETHER if "flight" in name else 20)]
    found: Counter[str] = Counter()

    def called(entered: Any, _event: str, _argument: object) -> Any:
        code = entered.f_code
        where = f"{code.co_filename.rpartition('kraftek/')[2].rpartition('site-packages/')[2]} {code.co_qualname}"
        entered.f_trace_opcodes, entered.f_trace_lines = True, False

        def step(_frame: object, event: str, _argument: object) -> Any:
            found[where] += event == "opcode"
            return step

        return step

    sys.settrace(called)
    for _, turn in played:
        turn()
    sys.settrace(None)
    messages = sum(many for many, _ in played)
    for where in found:
        found[where] *= 1 / messages  # type: ignore[assignment]
    return sum(found.values()), found


def _by(checkout: str, arguments: list[str]) -> str:
    """What the program prints with the gateway of that checkout."""
    environment = {**os.environ, "PYTHONPATH": checkout}
    command = [sys.executable, "-P", str(Path(__file__).resolve()), *arguments]
    return subprocess.run(command, env=environment, cwd=checkout, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--operations", action="store_true", help="count Python's operations, by function")
    parser.add_argument("--before", default="", metavar="DIR", help="checkout of a gateway to compare with")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    txaio.use_twisted()
    here = str(Path(__file__).resolve().parents[1])
    for name in asked.only or CASES:
        if asked.operations:
            whole, found = operations(name)
            print(f"{name}: {whole:.0f} operations")
            for where, number in found.most_common(30):
                print(f"{number:10.1f}  {where}")
        elif asked.once:
            print(least(name))
        else:
            # In turn, because the machine is another one each minute.
            of = {checkout: inf for checkout in (asked.before, here) if checkout}
            for _ in range(asked.rounds):
                for checkout, took in of.items():
                    of[checkout] = min(took, float(_by(checkout, ["--once", "--only", name])))
            print(f"{name:24}", *(f"{took:8.2f} µs" for took in of.values()), flush=True)


if __name__ == "__main__":
    main()

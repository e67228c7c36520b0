"""How long one client can keep a gateway's reactor, by what it sends: the longest step, and the cost of 64 KiB.

By hand: ``python -m bench.steps``, or with the names of kinds. The gateway's own edge and sessions run in this process
on a transport of strings, and Redis is a stand-in that takes everything; each kind of traffic arrives in reads of
64 KiB. A step is all that the reactor does before it looks at other sockets: the handling of one read, or of the turns
of one iteration. All is processor time, and the
least of several rounds, because the machine has other work, too.
"""

from __future__ import annotations

import gc
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from time import thread_time
from typing import Any

import txaio
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from kraftek.contract.accounts import Accounts
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Token
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Limits
from kraftek.contract.turns import Turns
from kraftek.edge.addresses import Addresses
from kraftek.edge.dialects.socketio_client import SocketIOClient
from kraftek.edge.dialects.socketio_packets import SocketSettings
from kraftek.edge.engineio.clients import EngineClients
from kraftek.edge.engineio.connection import EngineSettings
from tests.edge.websocket.edge import Edge, RecordingTransport, handshake
from tests.support.backlogs import make_backlogs
from tests.support.fakes import Question

READ = 65_536
"""Bytes that Twisted reads at a time."""

ROUNDS = 5


class RealTime(Clock):
    """A clock that goes by the processor time of this thread.

    :meth:`iterate` does what a reactor does before it looks at its sockets.
    """

    def seconds(self) -> float:
        return thread_time()

    def iterate(self) -> bool:
        """Call what is due; whether there was anything."""
        now = self.seconds()
        due = [call for call in self.calls if call.getTime() <= now]
        for call in due:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)
        return bool(due)


def frame(opcode: int, payload: bytes, *, fin: bool = True, rsv1: bool = False) -> bytes:
    """A client's frame, with a mask of zeros."""
    first = fin << 7 | rsv1 << 6 | opcode
    size = len(payload)
    if size < 126:
        return bytes((first, 0x80 | size, 0, 0, 0, 0)) + payload
    return bytes((first, 0xFE)) + size.to_bytes(2, "big") + bytes(4) + payload


def deflated(data: bytes) -> bytes:
    """As permessage-deflate has it."""
    deflate = zlib.compressobj(9, wbits=-15)
    return (deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


def full(unit: bytes) -> bytes:
    """A read full of it."""
    return unit * (READ // len(unit))


def _megabyte(value: bytes, packet: bytes = b"42") -> bytes:
    """One event, as large as Socket.IO's may be, of nothing but these values."""
    return b'%b["notes:n:1",[%b]]' % (packet, b",".join([value] * (990_000 // (len(value) + 1))))


BOMB = deflated(b'{"type":"notes:n:1","payload":"%s"}' % (b"x" * 65_000))
ATTACHED = b'451-["notes:n:1",{"_placeholder":true,"num":0}]'
EVENT = b'{"type":"notes:n:1"}'
KINDS: dict[str, tuple[bytes, ...]] = {
    "pings": (full(frame(9, b"")),),
    "pongs": (full(frame(10, b"")),),
    "events": (full(frame(1, EVENT)),),
    "unknown events": (full(frame(1, b'{"type":"x:y:z"}')),),
    "joins": (full(frame(1, b'{"type":"join","payload":{"roomId":"r"}}')),),
    "malformed": (full(frame(1, b"{")),),
    "1-byte fragments": (frame(1, b"x", fin=False) + full(frame(0, b"x", fin=False)),),
    "empty binaries": (full(frame(2, b"")),),
    "empty deflated": (full(frame(1, b"\0", rsv1=True)),),
    "inflating to the limit": (full(frame(1, BOMB, rsv1=True)),),
    "one message": (frame(1, b'{"type":"notes:n:1","payload":"%s"}' % (b"x" * 65_000)),),
    "one binary of 64 KiB": (frame(2, b"x" * 65_000),),
    "byte by byte": tuple(bytes((byte,)) for byte in frame(1, b"x" * 65_000)),
    "Socket.IO events": (full(frame(1, b'42["notes:n:1",{}]')),),
    "Socket.IO noops": (full(frame(1, b"6")),),
    "Socket.IO attachments": (full(frame(1, ATTACHED) + frame(2, b"x" * 100)),),
    "POST of events": (b"\x1e".join([b'42["notes:n:1",{}]'] * (READ // 19)),),
    "POST of noops": (b"\x1e".join([b"6"] * (READ // 2)),),
    "POST of a megabyte of lists": (_megabyte(b"[]"),),
    "POST of a megabyte of levels": (_megabyte(b"[" * 50 + b"]" * 50),),
    "POST of a megabyte of halves": (_megabyte(b'"\\ud800"'),),
    "POST of a megabyte of places": (_megabyte(b'{"_placeholder":true,"num":1}', b"451-"),),
}
"""By name: what arrives, read by read."""


UNLIMITED = Limits(
    events_per_socket=0, bytes_per_socket=0, events_per_user=0, bytes_per_user=0, joins_per_user=0, questions_per_user=0
)
"""Without budgets, which would slow what is measured."""


def gateway() -> tuple[Edge, RealTime]:
    """The edge of a gateway where everybody may do everything."""
    clock, counters = RealTime(), Counters()
    packets = SocketSettings(max_attachment_bytes=1_000_000)
    turns = Turns(clock, Accounts())
    clients = EngineClients(
        clock,
        Iteration(clock),
        counters,
        EngineSettings(),
        lambda client: SocketIOClient(client, packets, edge.house.gateway.open),
        Addresses(0),
        1000,
        turns=turns,
        backlogs=make_backlogs(clock, counters, UNLIMITED),
    )
    edge = Edge(limits=UNLIMITED, compression=True, engine_clients=clients)
    edge.factory.iteration = Iteration(clock)
    edge.factory.turns = turns
    return edge, clock


class Subject:
    """One client, let in, on a transport of strings. ``paused``: the gateway does not read it."""

    def __init__(self, kind: str) -> None:
        self.edge, self.clock = gateway()
        access: Any = self.edge.house.access
        access.check = self._check
        self.transport = self._connected()
        if kind.startswith("POST"):
            self._post(b'40{"token":"t"}')
        elif kind.startswith("Socket.IO"):
            self.transport.protocol.dataReceived(_asking("/socket.io/?EIO=4&transport=websocket"))
            self.transport.protocol.dataReceived(frame(1, b'40{"token":"t"}'))
        else:
            offer = handshake(Sec_WebSocket_Extensions="permessage-deflate")
            self.transport.protocol.dataReceived(offer.replace(b"GET / ", b"GET /?token=t&roomId=r "))
        self._settle()

    @property
    def paused(self) -> bool:
        return bool(self.transport.producerState == "paused")

    def play(self, reads: tuple[bytes, ...], post: bool) -> Iterator[float]:
        """The seconds of each step."""
        for data in reads:
            arrives = partial(self._post, data) if post else partial(self.transport.protocol.dataReceived, data)
            yield self._timed(arrives)
            while self.clock.calls or self.paused:
                yield self._timed(self.clock.iterate)

    def _timed(self, step: Callable[[], object]) -> float:
        began = thread_time()
        step()
        took = thread_time() - began
        self.edge.house.bus.published.clear()
        self.transport.clear()
        return took

    def _post(self, body: bytes) -> None:
        """A POST of a session, which begins with the first."""
        if not hasattr(self, "sid"):
            first = self._connected()
            target = "/socket.io/?EIO=4&transport=polling"
            first.protocol.dataReceived(f"GET {target} HTTP/1.1\r\nHost: gateway.test\r\n\r\n".encode())
            while self.clock.iterate():
                pass
            self.sid = json.loads(first.value().partition(b"\r\n\r\n0")[2])["sid"]
        target = f"/socket.io/?EIO=4&transport=polling&sid={self.sid}"
        head = f"POST {target} HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: {len(body)}\r\n\r\n"
        self.transport.protocol.dataReceived(head.encode() + body)

    def _connected(self) -> RecordingTransport:
        return self.edge.accept()[1]

    def _settle(self) -> None:
        for _ in range(100):
            self._timed(self.clock.iterate)

    def _check(self, token: Token, room_id: str | None, asker: object) -> Any:
        question = Question(token.value, room_id, Deferred())
        question.yes("user")
        return question.answer


def _asking(target: str) -> bytes:
    return handshake().replace(b"GET / ", b"GET %s " % target.encode())


def measured(kind: str) -> tuple[float, float]:
    """Seconds of the longest step, and of all steps for 64 KiB."""
    longest, whole = inf, inf
    for _ in range(ROUNDS):
        subject = Subject(kind)
        gc.collect()
        steps = list(subject.play(KINDS[kind], kind.startswith("POST")))
        longest, whole = min(longest, max(steps)), min(whole, sum(steps))
    return longest, whole


def main(kinds: list[str]) -> None:
    """Print a line for each kind."""
    txaio.use_twisted()
    print(f"{'what arrives':28}{'longest step':>14}{'64 KiB':>12}")
    for kind in kinds or KINDS:
        longest, whole = measured(kind)
        print(f"{kind:28}{longest * 1000:11.2f} ms{whole * 1000:9.1f} ms")


if __name__ == "__main__":
    main(sys.argv[1:])

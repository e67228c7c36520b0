"""What a server may say on a connection to Redis: each who waits hears once, in order, and nothing raises."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from kraftek.bus.connections import CommandConnection, RedisConnection
from kraftek.bus.server import UnsuitableServer, examine, server_in
from kraftek.bus.subscriber import SubscriberConnection
from kraftek.contract.accounts import Accounts
from kraftek.contract.iteration import Iteration
from kraftek.contract.redis_errors import shows_replica
from kraftek.contract.redis_url import redis_address
from kraftek.contract.settings import Redis
from tests.fuzz.material import cut
from tests.fuzz.watch import Target

__all__ = ["TARGET"]

_HUGE = re.compile(rb"[*%~>$=!(|][0-9]{6,}")
"""hiredis makes room for what is announced, before it is there: of Redis, which is trusted with memory."""

_INFO = b"redis_version:7.0.0\r\nrun_id:r\r\nrole:master\r\n"
_GREETING = b"$%d\r\n%b\r\n" % (len(_INFO), _INFO)
_ADDRESS = redis_address("redis://127.0.0.1/0")


class _Owner:
    """Who holds the connection, and all that it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.lost = 0

    def connection_ready(self, connection: RedisConnection) -> None:
        self.told.append("ready")

    def connection_lost(self, connection: RedisConnection, reason: str) -> None:
        self.lost += 1

    def note(self, number: int) -> Callable[[Any], None]:
        """What notes an answer to the command of that number."""

        def noted(answer: Any) -> None:
            self.told.append((number, repr(answer.value) if isinstance(answer, Failure) else repr(answer)))

        return noted


class _Transport(StringTransport):
    """As a socket, it takes that it is closed twice."""

    def __init__(self) -> None:
        super().__init__(lenient=True)


def _conversation(reads: list[bytes], kind: int, waiting: int) -> tuple[list[Any], bool]:
    """What all heard, in order, and whether the connection was given up."""
    clock, owner = Clock(), _Owner()
    iteration, accounts = Iteration(clock), Accounts()
    made: RedisConnection
    if kind == 0:
        made = CommandConnection(clock, _ADDRESS, Redis(), owner, iteration, accounts)
    else:
        listeners = {b"news": [owner.told.append]}
        made = SubscriberConnection(clock, _ADDRESS, Redis(), owner, iteration, accounts, listeners)
    transport = _Transport()
    made.makeConnection(transport)
    clock.advance(0)
    if kind < 2:
        made.dataReceived(_GREETING + (b"+OK" if kind == 0 else b":7") + b"\r\n+PONG\r\n")
        assert owner.told == ["ready"]
    for number in range(waiting):
        if number % 3 == 2:
            made.send(b"PUBLISH", owner.note(number))
        else:
            made.ask("PING").addBoth(owner.note(number))
    clock.advance(0)
    for data in reads:
        made.dataReceived(data)
        if transport.disconnected:
            break  # a transport that was aborted hands out nothing more
    # Errors that are the same are not equal.
    heard = [repr(each) if isinstance(each, Exception) else each for each in owner.told]
    given_up = bool(transport.disconnected)
    made.connectionLost(Failure(ConnectionDone()))
    assert owner.lost == 1
    assert not made.waiting
    assert accounts.total == 0, accounts
    numbers = [told[0] for told in owner.told if isinstance(told, tuple)]
    assert numbers == list(range(waiting)), numbers
    assert [call for call in clock.getDelayedCalls() if call.getTime() > 0] == []
    return heard, given_up


def _check_answers(data: bytes) -> None:
    """What is read off answers by itself."""
    server = server_in(data)
    try:
        examine(server)
    except UnsuitableServer as error:
        assert "\n" not in str(error)
    shows_replica(data.decode("utf-8", "replace"))


def _run(data: bytes) -> None:
    how, where, data = sum(data[:1]), sum(data[1:2]), data[2:]
    if _HUGE.search(data):
        return
    if how & 0x80:
        _check_answers(data)
        return
    kind, waiting = how % 3, how // 3 % 8
    whole, given_up = _conversation([data] if data else [], kind, waiting)
    pieces = cut(data, where)
    heard, other = _conversation(pieces, kind, waiting)
    assert other == given_up
    # Of a server that was given up what came in the same read still counts.
    expected = whole[: len(heard)] if given_up else whole
    assert heard == expected, f"in {len(pieces)} pieces: {heard}; whole: {whole}"


_REPLIES = (
    b"+OK\r\n:7\r\n$5\r\nhello\r\n$-1\r\n-ERR no\r\n*2\r\n:1\r\n*-1\r\n",
    b"-READONLY You can't write against a read only replica.\r\n-NOSCRIPT x\r\n-MASTERDOWN Link\r\n",
    b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$2\r\nhi\r\n*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n:5\r\n",
    b"*3\r\n$7\r\nmessage\r\n$5\r\nother\r\n$2\r\nhi\r\n*0\r\n+x\r\n",
    b"*1\r\n$7\r\nmessage\r\n*-1\r\n*2\r\n$7\r\nmessage\r\n:1\r\n",
    b">3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$2\r\nhi\r\n#t\r\n#f\r\n_\r\n,1.5\r\n%1\r\n+a\r\n:1\r\n~1\r\n:1\r\n(123\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b":x\r\n$x\r\n*x\r\n",
    b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n:1\r\n",
    b":9223372036854775807\r\n:-9223372036854775809\r\n",
    _GREETING + b"+OK\r\n+PONG\r\n:1\r\n",
)
_SEEDS = [bytes((3 * 5 + kind, 7)) + reply for reply in _REPLIES for kind in range(3)]
_SEEDS += [
    b"\x80\0redis_version:7.0.0\r\nrun_id:r\r\nrole:slave\r\nmaster_host:h\r\nmaster_port:1\r\nmaxmemory_policy:x\r\n",
    b"\x80\0redis_version:5.0\r\nredis_mode:cluster\r\n",
    b"\x80\0ERR Error running script: -READONLY no\r\n",
]

TARGET = Target("redis_replies", _run, _SEEDS, calls=(3_000, 100), memory=(500_000, 1_000))

"""What all connections to Redis have in common, and the one that commands and publishes.

Made by :class:`kraftek.bus.RedisBus`, driven by Twisted. They are txredisapi's protocol with its hiredis reader
and its exceptions. Its queue of replies is left aside: a Deferred and a conversion per reply cost more than all of
our routing, and a subscriber's queue takes the second confirmation of a ``SUBSCRIBE`` for the next answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import hiredis
import txredisapi
from msgspec import Struct
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import HiredisProtocol, InvalidData, ResponseError

from kraftek.bus.replies import INCOMPLETE, ODD, Replies, oddly
from kraftek.bus.resp import command, script_call, script_head
from kraftek.bus.server import Server, UnsuitableServer, examine, server_in
from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import NotPublished, Refusal
from kraftek.contract.interfaces import Undelivered
from kraftek.contract.iteration import Iteration
from kraftek.contract.lua import Argument, ForEach, Script
from kraftek.contract.redis_errors import is_no_script, shows_replica
from kraftek.contract.redis_url import RedisAddress
from kraftek.contract.settings import Redis

__all__ = [
    "NO_BATCH",
    "Batch",
    "CommandConnection",
    "ConnectionOwner",
    "RedisConnection",
    "lead_apart",
]

if txredisapi.hiredis is None:
    raise ImportError(
        "hiredis is missing: pip install hiredis (txredisapi reads 300,000 messages a second with it, 2,000 without)"
    )

_BATCH = 100
"""Messages of a :class:`Batch`, which is one command, at most: Redis does nothing else for a millisecond."""

CHECK_INTERVAL = 1.0
"""Seconds in which it is noticed that a server has become a replica, refuses writes, or takes them again."""


class _RefusalError(ResponseError, Refusal):  # type: ignore[misc]  # txredisapi has no annotations
    """An error reply, for the code that does not know txredisapi, too."""


class ConnectionOwner(Protocol):
    """Notified when a connection is ready, at most once, and when it is lost, once."""

    def connection_ready(self, connection: RedisConnection) -> None: ...

    def connection_lost(self, connection: RedisConnection, reason: str) -> None: ...


class RedisConnection(HiredisProtocol):  # type: ignore[misc]  # txredisapi has no annotations
    """One connection: greets Redis, checks that it answers, and passes replies in order to those who wait for them.

    ``server``: what the server at its other end says of itself, once it was asked; nothing where our user may not ask.
    ``refused``: Redis is available, but does not allow a command that this connection needs, or is ``unsuitable``.
    ``demoted``: it has shown to be a replica by now. ``heard``: when Redis last answered a ping, by ``clock``.

    It prepares itself. ``ClientService`` offers ``prepareConnection`` for that, but raises ``NoTransition`` when the
    connection is lost meanwhile (Twisted 26.10).
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, address: RedisAddress, config: Redis, owner: ConnectionOwner) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self._reader = hiredis.Reader(protocolError=InvalidData, replyError=_RefusalError, notEnoughData=INCOMPLETE)
        self._clock = clock
        self._address = address
        self._config = config
        self._owner = owner
        self._refusal_logged = False
        self._fault = ""
        self.server = Server()
        self.unsuitable: UnsuitableServer | None = None
        self.demoted = False
        self.heard = 0.0
        self.refused = False
        self.waiting: deque[Deferred[Any] | Callable[[Any], None]] = deque()
        self.replies = Replies(self, clock)

    def ask(self, *parts: Argument) -> Deferred[Any]:
        """Send a command. Fires with its reply; fails with ``ResponseError``, or with ``NotPublished`` when lost."""
        answer: Deferred[Any] = Deferred()
        self.send(command(*parts), answer)
        return answer

    def send(self, request: bytes, waiter: Deferred[Any] | Callable[[Any], None]) -> None:
        """Send one request, whose reply goes to ``waiter``."""
        self.waiting.append(waiter)
        self.write(request)

    def write(self, data: bytes) -> None:
        """Write to the socket."""
        self.transport.write(data)

    def need(self, answers: Sequence[Deferred[Any]]) -> Deferred[Any]:
        """Fires when all of them fired. If one fails this connection is useless: it is closed, and this fails."""
        return gatherResults(answers, consumeErrors=True).addErrback(self._refused)

    def identify(self) -> Sequence[Deferred[Any]]:
        """Ask which server this is. One that cannot be used is given up."""
        return [self.ask("INFO").addCallbacks(self._met, self._not_met)]

    def prepare(self) -> Sequence[Deferred[Any]]:
        """Send the commands that this connection needs before it is ready."""
        raise NotImplementedError

    def ping(self) -> Deferred[Any]:
        """Ask something, to see that Redis answers."""
        return self.ask("PING")

    @property
    def ping_interval(self) -> float:
        """Seconds from an answer to the next ping."""
        return self._config.ping_interval

    def give_up(self, reason: str) -> None:
        """Close at once. The owner gets the reason, and ``ClientService`` tries again."""
        if not self.connected:
            return
        if self._address.password:
            # A server whose AUTH was renamed away quotes the arguments of the unknown command in its error.
            reason = reason.replace(self._address.password, "(password)")
        self._fault = self._fault or reason
        self.transport.abortConnection()

    def leave_server(self, reason: str) -> None:
        """Give up this connection, and have the owner give up all others: the server is no primary any more."""
        self.demoted = True
        self.give_up(reason)

    # Called by Twisted

    def connectionMade(self) -> None:
        """Log in and prepare. txredisapi's own log-in gives up for good when Redis refuses."""
        self._alarm = self._clock.callLater(self._config.ping_timeout, self._unanswered)
        answers = []
        if self._address.password:
            names = [self._address.username] if self._address.username else []
            answers.append(self.ask("AUTH", *names, self._address.password))
        answers += self.identify()
        answers += self.prepare()
        # Refused while Redis is loading its data.
        answers.append(self.ask("PING"))
        self.need(answers).addCallbacks(self._prepared, lambda _: None)

    def dataReceived(self, data: bytes) -> None:
        """Hand out every complete reply. txredisapi's own converts and queues each of them."""
        reader, replies = self._reader, []
        try:
            try:
                reader.feed(data)
                while (reply := reader.gets()) is not INCOMPLETE:
                    replies.append(reply)
            finally:
                if replies:
                    self.replies.take(replies)
        except ODD as error:
            self.give_up(oddly(error))
        if not replies:
            self.waits_for_rest(len(data))

    def waits_for_rest(self, size: int) -> None:
        """So many bytes came, and no reply is complete."""

    def hand_out(self, replies: list[Any], *, more: bool = False) -> None:
        """Replies that came together. ``more``: others of them follow at once."""
        for reply in replies:
            self.replied(reply)

    def replied(self, reply: Any) -> None:
        """Pass one reply, or the reason why there is none, to its waiter. What a waiter raises is logged."""
        waiter = self.waiting.popleft()
        try:
            if not isinstance(waiter, Deferred):
                if type(reply) is int:
                    waiter(reply)
                else:
                    self.unpublished(waiter, reply)
            elif isinstance(reply, Exception):
                self._look(reply)
                waiter.errback(reply)
            else:
                waiter.callback(reply)
        except Exception:  # noqa: BLE001  # the edge's one guard: it must not unwind the reader
            self.log.failure("Handling a reply of Redis failed: a bug, please report it")

    def unpublished(self, receipt: Callable[[int], None], reply: Any) -> None:
        """Redis refused a message, or never answered."""
        if not isinstance(reply, ResponseError):
            receipt(Undelivered.LOST)
            return
        self._look(reply)
        if not self._refusal_logged:
            self._refusal_logged = True
            self.log.error("Redis refuses a message (logged once a connection): {reason}", reason=str(reply))
        receipt(Undelivered.REFUSED)

    def connectionLost(self, why: Failure) -> None:
        """Notify the owner, then fail all waiters."""
        if not self._fault:
            self.replies.hand_out_all()
        super().connectionLost(why)
        if self._alarm.active():
            self._alarm.cancel()
        self._owner.connection_lost(self, self._fault or why.getErrorMessage())
        lost = NotPublished("the connection to Redis was lost before the answer")
        while self.waiting:
            self.replied(lost)

    # Within

    def _met(self, info: bytes) -> None:
        self.server = server_in(info)
        examine(self.server)

    def _not_met(self, failure: Failure) -> Failure | None:
        """Who it is cannot be asked without the right to: what it does will show it."""
        return None if failure.getErrorMessage().startswith("NOPERM") else failure

    def _look(self, error: Exception) -> None:
        """A server that shows to be no primary is given up: the name may lead to another one by now."""
        if isinstance(error, ResponseError) and shows_replica(text := str(error)):
            self.leave_server(text)

    def _refused(self, failure: Failure) -> Failure:
        reason = failure.value.subFailure if isinstance(failure.value, FirstError) else failure
        if not reason.check(NotPublished):
            self.refused = True
            if isinstance(reason.value, UnsuitableServer):
                self.unsuitable = reason.value
            self.give_up(reason.getErrorMessage())
        return failure

    def _prepared(self, _: object) -> None:
        self._alarm.cancel()
        self._heard()
        self._owner.connection_ready(self)

    def _heard(self) -> None:
        self.heard = self._clock.seconds()
        self._alarm = self._clock.callLater(self.ping_interval, self._ping)

    def _ping(self) -> None:
        self._alarm = self._clock.callLater(self._config.ping_timeout, self._unanswered)
        # An error is an answer as well; a lost connection is reported elsewhere.
        self.ping().addBoth(self._answered)

    def _answered(self, _: object) -> None:
        if self.connected:
            self._alarm.cancel()
            self._heard()

    def _unanswered(self) -> None:
        self.give_up(f"no answer for {self._config.ping_timeout} s")


def lead_apart(*connections: RedisConnection | None) -> bool:
    """Whether these do not all lead to the same server."""
    return len({connection.server.run for connection in connections if connection is not None}) > 1


class CommandConnection(RedisConnection):
    """Publishes and commands. What is sent in one reactor iteration leaves in one write.

    ``check``: asks whether the server is still the right one, and whether it takes writes. It is called every second,
    in place of a ping; without it a ping asks for the role alone. ``batched``: messages that wait for their answers
    beside those in ``waiting``, where a batch is one. ``unanswered``: bytes of what was sent and not answered yet, a
    batch that is still open left out. Those of requests that were sent together are given back together, a little
    later than they were answered: no size is kept for each.
    """

    def __init__(
        self,
        clock: IReactorTime,
        address: RedisAddress,
        config: Redis,
        owner: ConnectionOwner,
        iteration: Iteration,
        accounts: Accounts,
        check: Callable[[CommandConnection], Deferred[Any]] | None = None,
    ) -> None:
        super().__init__(clock, address, config, owner)
        self._iteration = iteration
        self._accounts = accounts
        self._check = check
        self.unanswered = 0
        self._replies = 0
        # With so many replies so many bytes are given back.
        self._due = self._due_bytes = 0
        self._unwritten: list[bytes] = []
        self._flushes = False
        self._batch: Batch | None = None
        self.batched = 0
        self._scripts: set[Script] = set()
        self._heads: dict[str, bytes] = {}

    @property
    def full(self) -> bool:
        """As much waits for its answer as may, the messages of an open batch left out."""
        return (
            len(self.waiting) + self.batched >= self._config.in_flight
            or self.unanswered >= self._config.in_flight_bytes
        )

    def send(self, request: bytes, waiter: Deferred[Any] | Callable[[Any], None]) -> None:
        """Send one request at the end of this iteration."""
        if self._batch is not None:
            self.close_batch()
        self.waiting.append(waiter)
        if not self._flushes:
            self._flushes = True
            self._iteration.at_end(self, first=True)
        self._unwritten.append(request)
        self.unanswered += len(request)

    def write(self, data: bytes) -> None:
        self._iteration.write(self.transport, data)

    def flush(self) -> None:
        """Write now. (The base class's ``flush`` empties databases, which no caller should need.)"""
        self.close_batch()
        self._flushes = False
        unwritten, self._unwritten = self._unwritten, []
        if unwritten:
            data = b"".join(unwritten)
            self._accounts.in_flight += len(data)
            self.write(data)

    def hand_out(self, replies: list[Any], *, more: bool = False) -> None:
        super().hand_out(replies)
        self._replies += len(replies)
        if not self.waiting:
            self._accounts.in_flight -= self.unanswered
            self.unanswered = self._due = self._due_bytes = 0
        elif self._replies >= self._due:
            self._accounts.in_flight -= self._due_bytes
            self.unanswered -= self._due_bytes
            self._due, self._due_bytes = self._replies + len(self.waiting), self.unanswered

    @property
    def idle(self) -> bool:
        """Whether everything that was sent is answered."""
        return not self.waiting and self._batch is None and not self._unwritten

    def prepare(self) -> Sequence[Deferred[Any]]:
        return [self.ask("SELECT", self._address.database)]

    def ping(self) -> Deferred[Any]:
        if self._check is not None:
            return self._check(self)
        # A replica publishes as a primary does, and nobody hears it there.
        return self.ask("INFO", "replication").addCallback(self._look_at_role)

    @property
    def ping_interval(self) -> float:
        interval = super().ping_interval
        return interval if self._check is None else min(interval, CHECK_INTERVAL)

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Deferred[Any]:
        """Run a script, in order with everything sent before and after.

        The first time on a connection it goes whole, by which Redis learns it for the next times. When Redis
        forgot it meanwhile (``SCRIPT FLUSH``) it is sent again: that one time it runs after what was sent since.
        """
        rest = (len(keys), *keys, *args)
        if script.tracks:
            self._track_next()
        if script not in self._scripts:
            self._scripts.add(script)
            return self.ask("EVAL", script.source, *rest)
        return self.ask("EVALSHA", script.digest, *rest).addErrback(self._forgotten, script, rest)

    def open_batch(self, script: ForEach) -> Batch:
        """Run a script for messages, in order with everything else. They may be appended to what this gives, until
        something else is sent or this iteration ends. A command for each takes some 30,000 processor instructions more.
        """
        self.close_batch()
        if not self._flushes:
            self._flushes = True
            self._iteration.at_end(self, first=True)
        room = self._config.in_flight - len(self.waiting) - self.batched
        self._batch = batch = Batch(script, min(room, _BATCH))
        return batch

    def close_batch(self) -> None:
        """Send the messages of the open batch, if there is one."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        batch.room = 0
        script, messages = batch.script, batch.messages
        try:
            given = script.arguments(messages, self._config.prefix)
        except Exception:  # noqa: BLE001  # the edge's one guard: other messages wait for the end of this iteration
            self.log.failure("Sending a batch of messages to Redis failed: a bug, please report it")
            batch.messages = []
            refused = Undelivered.REFUSED.value  # a plain number, as a script answers
            self._clock.callLater(0, self._tell, [(message, refused) for message in messages])
            return
        self.batched += len(messages) - 1
        head = self._heads.get(script.digest)
        if head is None:
            head = script_head(b"EVAL", script.source)
            self._heads[script.digest] = script_head(b"EVALSHA", script.digest)
        self.send(script_call(head, given), batch)

    def unpublished(self, receipt: Callable[[int], None], reply: Any) -> None:
        """As the base class has it; also the answers to a batch come here."""
        if type(receipt) is not Batch:
            super().unpublished(receipt, reply)
        elif _is_forgotten(reply):
            given = receipt.script.arguments(receipt.messages, self._config.prefix)
            self.send(script_call(script_head(b"EVAL", receipt.script.source), given), receipt)
        else:
            messages, receipt.messages = receipt.messages, []  # its caller may keep it for long
            self.batched -= len(messages) - 1
            if type(reply) is list:
                self._tell([(messages[reply[i]], reply[i + 1]) for i in range(0, len(reply), 2)])
            else:
                self._tell([(message, reply) for message in messages])

    def _look_at_role(self, info: bytes) -> None:
        if server_in(info).role != "master":
            self.leave_server("it is no primary any more")

    def track(self, target: int) -> Deferred[Any]:
        """Have Redis announce changes of keys to the connection ``target``: of those that :class:`TrackingScript` read,
        except changes made on this connection. Redis announces one change, and then forgets the key.

        Off first: it may be on for another target. ``CACHING`` finds out whether we may, and holds for the ``PING``.
        """
        off = self.ask("CLIENT", "TRACKING", "OFF")
        on = self.ask("CLIENT", "TRACKING", "ON", "REDIRECT", target, "OPTIN", "NOLOOP")
        return self.need([off, on, self.ask("CLIENT", "CACHING", "YES"), self.ask("PING")])

    def connectionLost(self, why: Failure) -> None:
        self.close_batch()
        self._accounts.in_flight -= self.unanswered - sum(map(len, self._unwritten))
        self.unanswered = self._due = self._due_bytes = 0
        self._unwritten.clear()
        super().connectionLost(why)

    def _tell(self, answers: Iterable[tuple[Sequence[Any], Any]]) -> None:
        for message, answer in answers:
            receipt = message[-1]
            try:
                if type(answer) is int or type(answer) is bytes:
                    receipt(answer)
                else:
                    super().unpublished(receipt, answer)
            except Exception:  # noqa: BLE001  # as for a reply: one's fault must not keep it from the others
                self.log.failure("Handling a reply of Redis failed: a bug, please report it")

    def _track_next(self) -> None:
        """Have Redis track the keys that the next command reads. Only that command counts as one in flight."""
        self.batched -= 1
        self.need([self.ask("CLIENT", "CACHING", "YES").addBoth(self._tracks)]).addErrback(lambda _: None)

    def _tracks(self, answer: Any) -> Any:
        self.batched += 1
        return answer

    def _forgotten(self, failure: Failure, script: Script, rest: Sequence[Argument]) -> Deferred[Any] | Failure:
        if _is_forgotten(failure.value):
            if script.tracks:
                self._track_next()
            return self.ask("EVAL", script.source, *rest)
        return failure


class Batch(Struct, eq=False):
    """Messages for one script, as :meth:`kraftek.contract.interfaces.IBus.run` has them. ``room``: for so many, and for
    none when it is closed.
    """

    script: ForEach
    room: int
    messages: list[Any] = []

    def __call__(self, answer: object) -> None:
        raise AssertionError(f"a batch is answered by a list, not {answer!r}")


NO_BATCH = Batch(ForEach("", lambda _: ((), ()), 0), 0)
"""One that was never open."""


def _is_forgotten(reply: object) -> bool:
    return isinstance(reply, ResponseError) and is_no_script(str(reply))

"""The Engine.IO clients of this process, by session id: each over polling, over a WebSocket, or changing over.

Made by :mod:`kraftek.daemon.assembly`. The transports, :mod:`kraftek.edge.websocket` and
:mod:`kraftek.edge.engineio.polling`, hand in what arrived and are handed what to answer; what it means is for whoever
speaks on top: the gateway's sessions, or anything else that is given here as ``open``. The protocol itself is
:mod:`kraftek.edge.engineio.connection`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from secrets import token_urlsafe

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from kraftek.contract.errors import RESTART
from kraftek.contract.interfaces import IClientLink, IReceiver
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Gap, Outgoing
from kraftek.contract.metrics import Counters, RefusalReason
from kraftek.contract.turns import BUDGET, HELD, Turns
from kraftek.edge.addresses import Addresses
from kraftek.edge.backlogs import Backlogs
from kraftek.edge.engineio.connection import ConnectionState, EngineSession, EngineSettings, Reason
from kraftek.edge.engineio.packets import EngineError, ErrorCode, Message
from kraftek.edge.engineio.posts import Post, Posted, Posts
from kraftek.edge.engineio.unfetched import Unfetched, Unread

__all__ = ["Answer", "EngineClient", "EngineClients", "EngineSocket"]


Answer = Callable[[bytes | None], Unread | None]
"""Answers a held GET with this body; ``None``: the gateway goes away, come back later. Returns the answer as long as
its transport has not taken all of it: then ``poll_progress`` or ``poll_lost`` of the client is called."""

_AHEAD = 0.3
"""Seconds by which a sweep looks ahead, a little more than between two of them: time-outs are judged to the moment."""


@implementer(IClientLink)
class EngineClient:
    """One client: the link of the dialect on top of Engine.IO.

    On a WebSocket messages are written to the socket at once. With polling those of one reactor iteration answer the
    held poll at its end, and while none is held they wait as ``unfetched``.
    """

    __slots__ = (
        "_answer",
        "_clients",
        "_messages",
        "_settling",
        "_socket",
        "_unfetched",
        "direct",
        "engine",
        "peer",
        "post",
        "reasons",
        "receiver",
        "unread",
    )

    def __init__(self, clients: EngineClients, engine: EngineSession, peer: str, *, polls: bool) -> None:
        self.engine = engine
        # None once it has changed over, or is gone.
        self._unfetched = Unfetched(self, clients.backlogs) if polls else None
        self.peer = peer
        self._clients = clients
        self.receiver: IReceiver | None = None
        self._answer: Answer | None = None
        self._socket: EngineSocket | None = None
        # The WebSocket, as long as it is all there is to write to.
        self.direct: IClientLink | None = None
        self._settling = False
        # Why it is not read, a set, and whether it was not since the last ping.
        self.reasons = 0
        self.unread = False
        self.post: Post | None = None

    # What the polling transport calls.

    def poll(self, answer: Answer) -> None:
        """A GET arrived: ``answer`` is called once with its body, now or later. Raises ``EngineError``."""
        unfetched, read = self._unfetched, True
        if unfetched is not None:
            read = not unfetched.unread
            self._clients.counters.slow_consumers += not read
            self.engine.fetch(unfetched.take())
        try:
            self.engine.poll(read=read)
            self._answer = answer
        finally:
            self.flush()

    def poll_progress(self) -> None:
        """It has read some of the answer to the last GET."""
        if self._unfetched is not None:
            self._unfetched.progress()

    def poll_lost(self) -> None:
        """The connection of the GET went away that is held, or whose answer it has not read."""
        if self._unfetched is not None:
            self._unfetched.lost()
        self._leave_poll()

    def expect_post(self, answer: Posted) -> Post:
        """A POST's head arrived: ``answer`` is called when the client may send more. Raises ``EngineError``."""
        try:
            self.engine.post()
            self.post = Post(self, answer, self._clients.posts)
            return self.post
        finally:
            self.flush()

    def post_lost(self) -> None:
        """Its connection went away before all of it was there."""
        if self.post is not None:
            self.post.drop()
            self.post = None
        self.engine.post_lost()
        self.flush()

    # What the WebSocket's side calls.

    def offer(self, link: IClientLink, now: float) -> EngineSocket:
        """A WebSocket of this client was opened. Raises ``EngineError``: it is to be closed."""
        self.engine.offer(now)
        self._socket = EngineSocket(self, link)
        return self._socket

    def frame(self, socket: EngineSocket, data: bytes, binary: bool) -> None:
        """A message arrived on a WebSocket of this client."""
        if socket is not self._socket:
            return
        try:
            message = self.engine.receive_frame(data, binary)
        except EngineError:
            self._socket = None
            socket.link.close(1002, "protocol error")
            self.flush()
            return
        if message is not None:
            self.receive(*message)
        else:
            self.charge(1, len(data))
            if self._unfetched is not None and self.engine.on_websocket:
                self.engine.fetch(self._unfetched.take())
            self.flush()

    def charge(self, events: int, size: int) -> None:
        """What arrived on its WebSocket beside messages, as in :class:`kraftek.contract.interfaces.IReceiver`."""
        if self.receiver is not None:
            self.receiver.charge(events, size)

    def socket_lost(self, socket: EngineSocket) -> None:
        """A WebSocket of this client went away."""
        if socket is self._socket:
            self._socket = None
            self.engine.websocket_lost()
            self.flush()

    def overrun(self) -> Outgoing | None:
        """It does not read what it is sent: the last word to it."""
        return None if self.receiver is None else self.receiver.overrun()

    def gap(self, gap: Gap) -> Outgoing | None:
        """What it missed, as it is told."""
        return None if self.receiver is None else self.receiver.gap(gap)

    def tick(self, now: float) -> None:
        """It is ``now``."""
        self.engine.tick(now, read=not self.unread)
        self.unread = self.reasons != 0 or self.post is not None
        self.flush()

    # The link of what speaks on top.

    def write(self, outgoing: Outgoing) -> None:
        direct = self.direct
        if direct is not None:
            direct.write(outgoing)
            return
        if self._unfetched is None or not self.engine.awaits_poll:
            self.engine.send(outgoing)
            self._settle_later()
        elif not self._unfetched.put(outgoing):
            self.give_up()

    def close(self, code: int, reason: str) -> None:
        answer = self._answer
        if code == RESTART and self.direct is None:
            # Some clients do not reconnect after the protocol's close packet (python-socketio): neither the
            # poll that is held nor the next one may get it.
            self._leave_poll()
            if answer is not None:
                answer(None)
        self.engine.close(self._clients.clock.seconds())
        self._settle(code, reason)

    def pause(self) -> None:
        self._stop(HELD)

    def resume(self) -> None:
        self._go(HELD)

    def slow(self, seconds: float) -> None:
        self._stop(BUDGET)
        self._clients.turns.slow(self, seconds)

    def flush(self) -> None:
        """The iteration ends, or the session changed."""
        self._settle(1000, "")

    def _settle(self, code: int, reason: str) -> None:
        """Answer, write and end what the session's state asks for."""
        self._settling = False
        engine, socket = self.engine, self._socket
        body = engine.payload()
        if body is not None and self._answer is not None:
            self._answer_poll(self._answer, body)
        if socket is not None:
            for outgoing in engine.frames():
                socket.link.write(outgoing)
        state = engine.state
        if state is ConnectionState.WEBSOCKET:
            if self.direct is None and socket is not None:
                self.direct = socket.link
                self._leave_polling()
                if self.reasons:
                    socket.link.pause()
        elif state is ConnectionState.CLOSED or state is ConnectionState.CLOSING:
            self._end(state, code, reason)
        elif state is ConnectionState.POLLING and socket is not None:
            self._socket = None
            socket.link.close(1000, "")

    def open(self, receiver: IReceiver) -> None:
        """Hand what arrives to ``receiver`` from now on."""
        self.receiver = receiver

    def attach(self, link: IClientLink) -> EngineSocket:
        """The WebSocket that this client began with."""
        self._socket = EngineSocket(self, link)
        self.flush()
        return self._socket

    # What its POST calls.

    def receive(self, data: bytes, binary: bool) -> None:
        """A message arrived."""
        if self.receiver is not None:
            self.receiver.receive(data, binary)

    def packets(self, body: bytes) -> Iterator[Message | None]:
        """What is in the body, as it is handled."""
        return self.engine.receive_payload(body)

    def posted(self) -> None:
        """All of it is handled."""
        self.post = None
        self.engine.posted()
        self.flush()

    def unslowed(self) -> None:
        """The time for which it was slowed is over."""
        self._go(BUDGET)

    def _stop(self, reason: int) -> None:
        if not self.reasons:
            self.unread = True
            if self.direct is not None:
                self.direct.pause()
        self.reasons |= reason

    def _go(self, reasons: int) -> None:
        self.reasons &= ~reasons
        if not self.reasons:
            if self.direct is not None:
                self.direct.resume()
            if self.post is not None:
                self.post.go(slowed=reasons == BUDGET)

    def give_up(self) -> None:
        """It does not fetch what it is sent: close it."""
        self._clients.counters.slow_consumers += 1
        if self._unfetched is not None:
            self._unfetched.drop()
        self.engine.discard()
        last = self.overrun()
        if last is not None:
            self.engine.send(last)
        self.engine.close(self._clients.clock.seconds())
        self._settle_later()

    def _answer_poll(self, answer: Answer, body: bytes) -> None:
        self._answer, unfetched = None, self._unfetched
        if unfetched is not None:
            unfetched.answered()
        unread = answer(body)
        if unread is not None and unfetched is not None:
            unfetched.begin(unread)

    def _leave_poll(self) -> None:
        self._answer = None
        self.engine.poll_lost()
        self.flush()

    def _leave_polling(self) -> None:
        """It polls no more. It must not hold what holds it, either: it would wait for the collector of cycles."""
        unfetched, self._unfetched = self._unfetched, None
        if unfetched is not None:
            unfetched.end()

    def _settle_later(self) -> None:
        if not self._settling:
            self._settling = True
            self._clients.iteration.at_end(self)

    def _end(self, state: ConnectionState, code: int, reason: str) -> None:
        receiver, self.receiver = self.receiver, None
        self.direct = None
        # A client that is changing over reads what is left from its next poll or from the WebSocket, and it alone knows
        # from which: until then the WebSocket stays open.
        if state is ConnectionState.CLOSED:
            if self.post is not None:
                self.post.drop()
            self._leave_polling()
            socket, self._socket = self._socket, None
            self._clients.forget(self)
            if socket is not None:
                socket.link.close(code, reason)
        if receiver is not None:
            receiver.lost()
        # It does not change over before its POST is answered, and nobody else resumes any more.
        self._go(HELD | BUDGET)


@implementer(IReceiver)
class EngineSocket:
    """One WebSocket of a client, as its protocol sees it. A client may have had others before."""

    __slots__ = ("_client", "link")

    def __init__(self, client: EngineClient, link: IClientLink) -> None:
        self._client = client
        self.link = link

    def receive(self, data: bytes, binary: bool = False) -> None:
        self._client.frame(self, data, binary)

    def charge(self, events: int, size: int) -> None:
        self._client.charge(events, size)

    def lost(self) -> None:
        self._client.socket_lost(self)

    def overrun(self) -> Outgoing | None:
        return self._client.overrun()

    def gap(self, gap: Gap) -> Outgoing | None:
        return self._client.gap(gap)


class EngineClients:
    """All Engine.IO clients. ``open`` is called with each new one, and returns its receiver.

    Each counts once for its ``peer``, on whatever transport. ``max_clients``: when there are as many, no new one is let
    in by polling. Those that come by WebSocket are let in, or not, where that arrives.
    """

    def __init__(
        self,
        clock: IReactorTime,
        iteration: Iteration,
        counters: Counters,
        settings: EngineSettings,
        open: Callable[[EngineClient], IReceiver],
        addresses: Addresses,
        max_clients: int,
        *,
        turns: Turns,
        backlogs: Backlogs,
    ) -> None:
        self.iteration = iteration
        self.turns = turns
        self.posts = Posts(turns, counters)
        self.counters = counters
        self.backlogs = backlogs
        self.settings = settings
        self.clock = clock
        self._open = open
        self._addresses = addresses
        self.max_clients = max_clients
        self._turned_away: tuple[RefusalReason, str] | None = None
        self._by_sid: dict[str, EngineClient] = {}

    def find(self, sid: str) -> EngineClient:
        """The client of that session id. Raises ``EngineError``, ``UNKNOWN_SID``."""
        client = self._by_sid.get(sid)
        if client is not None:
            now = self.clock.seconds()
            if client.engine.deadline <= now:
                client.tick(now)
        if client is None or client.engine.state is ConnectionState.CLOSED:
            raise EngineError(ErrorCode.UNKNOWN_SID, "no such session")
        return client

    def connect(self, sid: str | None, link: IClientLink) -> EngineSocket | None:
        """A WebSocket was opened, for the client ``sid`` or for a new one; ``None``: it is to be closed."""
        if sid is not None:
            try:
                return self.find(sid).offer(link, self.clock.seconds())
            except EngineError:
                return None
        client = self.new(link.peer, websocket=True)
        socket = client.attach(link)
        client.open(self._open(client))
        return socket

    def poll(self, peer: str, answer: Answer) -> EngineClient:
        """The first GET of a new client; ``answer`` as in ``EngineClient.poll``. Raises ``EngineError``: not now."""
        if self._turned_away is not None:
            raise self._refused(*self._turned_away, 503)
        if len(self._by_sid) >= self.max_clients:
            raise self._refused(RefusalReason.PROCESS, "too many connections", 503)
        if self._addresses.full(peer):
            raise self._refused(RefusalReason.ADDRESS, "too many connections from this address", 429)
        client = self.new(peer, websocket=False)
        client.poll(answer)
        client.open(self._open(client))
        return client

    def turn_away(self, text: str, why: RefusalReason) -> None:
        """Let no new client in by polling from now on, and say why; with an empty text let them in again."""
        self._turned_away = (why, text) if text else None

    def forget(self, client: EngineClient) -> None:
        """A client disconnected."""
        known = self._by_sid.pop(client.engine.sid, None)
        if known is None:
            return
        self._addresses.remove(client.peer)
        if client.engine.reason is Reason.PING_TIMEOUT:
            self.counters.ping_timeouts += 1

    def sweep(self) -> None:
        """What time brings: pings, and those that did not answer. Called a few times a second."""
        now = self.clock.seconds()
        for client in [client for client in self._by_sid.values() if client.engine.deadline <= now + _AHEAD]:
            engine = client.engine
            if engine.deadline <= now:
                client.tick(now)
            elif engine.ends == engine.deadline:
                self.clock.callLater(engine.ends - now, self._tick, client)

    def _tick(self, client: EngineClient) -> None:
        client.tick(self.clock.seconds())

    def _refused(self, reason: RefusalReason, text: str, status: int) -> EngineError:
        self.counters.connections_refused[reason] += 1
        return EngineError(ErrorCode.FORBIDDEN, text, status)

    def new(self, peer: str, *, websocket: bool, sid: str = "") -> EngineClient:
        """A client, of which nobody on top knows yet."""
        sid = sid or token_urlsafe(15)
        engine = EngineSession(sid, self.settings, self.clock.seconds(), websocket=websocket)
        client = self._by_sid[sid] = EngineClient(self, engine, peer, polls=not websocket)
        self._addresses.add(peer)
        return client

"""The common part of the clients for asyncio and Twisted: everything except for awaitables, timers and sockets."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict, TypeVar, Unpack
from urllib.parse import urlsplit

from kraftek.client.conversation import Conversation
from kraftek.client.errors import Closed
from kraftek.client.history import result_of
from kraftek.client.listeners import Listener
from kraftek.client.messages import (
    Ask,
    Change,
    Drop,
    Dropped,
    Fetch,
    Hear,
    Open,
    Part,
    Presence,
    Recovered,
    Settle,
    State,
)
from kraftek.client.older import Older
from kraftek.client.snapshots import Snapshots
from kraftek.contract.surrogates import check_name

__all__ = [
    "CLOSE_TIMEOUT",
    "MAX_MESSAGE",
    "PING_INTERVAL",
    "PING_TIMEOUT",
    "Backend",
    "Listener",
    "Options",
    "TokenSource",
]

P = TypeVar("P")

TokenSource = Callable[[bool], str | Awaitable[str]]
"""Asked for a token on each attempt to connect, and before access expires; the argument is whether the last one was
refused. For a refresh a fresh token is needed: the same one is asked for again, less and less often."""

_OWN = frozenset({"state", "dropped", "recovered"})
"""Event types that only the client itself passes to listeners: messages of services with these types are ignored."""


_PRESENCE = "presence of "
"""How the types begin under which those are kept who listen to who is in a room: no message has such a type."""

_PART = "part of "
"""The same, of those who listen to the parts of an answer."""


class RequestOptions(TypedDict, total=False):
    """The optional arguments of a request: see :meth:`Backend.request`."""

    room: str | None
    timeout: float | None
    on_progress: Listener | None


class Options(TypedDict, total=False):
    """The optional arguments of a client: see :class:`Backend`."""

    room: str | None
    history: int
    timeout: float
    queue: int
    random: Callable[[], float]
    data: Any


MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of one message at most: more than a gateway buffers for one client."""

CLOSE_TIMEOUT = 2.0
"""Seconds until a socket is cut whose close frame the gateway does not answer."""

PING_INTERVAL = 20.0
PING_TIMEOUT = 20.0
"""Seconds: the client's own pings detect a connection that was lost without a close frame."""


class Backend(Snapshots, Older[P]):
    """A client of the gateway at ``url``, ``ws://`` or ``wss://``. It connects, and reconnects automatically.

    ``token``: see :data:`TokenSource`. When it raises, the attempt has failed, and another follows.
    ``room``: the room to be in from the start. Without one, the auth service must let this user in without.
    ``timeout``: seconds that a request, ``join`` and ``leave`` wait for their answer by default. A service has 10 s by
    default, after which the gateway answers ``TIMEOUT``: the client waits a little longer.
    ``queue``: how many events may wait to be sent, and besides them how many requests for their answers, and how many
    ``join``. The gateway has the same limit for the requests of one socket.
    ``random``: returns numbers from 0 to 1, for the full jitter of every wait.
    ``data``: what others in its rooms see of this user beside its id, where the gateway tells who is in a room.
    ``history``: so many messages that ``room`` was told before come first, in order, unless what was missed since does,
    if the gateway keeps its history.

    Its methods belong to the thread of the reactor or event loop, and return its awaitables: Deferreds, or Futures.
    """

    def __init__(
        self,
        url: str,
        token: TokenSource,
        *,
        room: str | None = None,
        timeout: float = 15.0,
        queue: int = 256,
        random: Callable[[], float] = random.random,
        data: Any = None,
        history: int = 0,
    ) -> None:
        super().__init__()
        self._address = urlsplit(url)
        if self._address.scheme not in {"ws", "wss"} or not self._address.hostname or self._address.fragment:
            # The query string may contain a token.
            raise ValueError(f"expected ws://HOST[:PORT][/PATH] or wss://…, found {url.partition('?')[0]!r}")
        self._port = self._address.port or (443 if self._address.scheme == "wss" else 80)
        self.url = url
        self._token, self._timeout = token, timeout
        self._conversation = Conversation(() if room is None else (room,), queue, random, data)
        self._recovery = self._conversation.recovery
        self._begin_with(room, history)
        self._connecting: list[P] = []
        self._promises: dict[str, P] = {}
        self._acting = False
        self._due: float | None = None

    @property
    def state(self) -> State:
        """The state of the client."""
        return self._conversation.state

    @property
    def user_id(self) -> str | None:
        """The user id from the gateway, since the first authentication."""
        return self._conversation.user_id

    @property
    def socket_id(self) -> str | None:
        """The gateway's id of the present connection, if there is one; services know it."""
        return self._conversation.socket_id

    @property
    def rooms(self) -> list[str]:
        """The rooms that it is in, or joins as soon as it is connected. The first is the default room of events."""
        return self._conversation.rooms

    def connect(self) -> P:
        """Connect, and stay connected. Fires once connected; fails with :class:`Closed` if it is closed for good.

        A closed client may be connected again, and joins the rooms that it was in.
        """
        promise = self._promise(None)
        if self.state is State.READY:
            self._resolve(promise, None)
        else:
            self._connecting.append(promise)
            self._conversation.connect()
            self._act()
        return promise

    def close(self) -> P:
        """Close it for good. Events that wait are sent if it is connected, otherwise listeners to ``dropped`` get them;
        requests fail with :class:`Closed`.

        Fires when the socket is closed.
        """
        self._conversation.close(is_open=self._is_open())
        for key in [*self._fetches]:
            self._stop_fetching(key)
        self._act()
        return self._gone()

    def emit(self, type: str, payload: Any = None, *, room: str | None = None, volatile: bool = False) -> bool:
        """Send an event, now or once connected. It may be lost when the connection is: a request would not be.
        ``volatile``: now or never, such as a cursor. ``False`` when it will not be sent; then nobody else is told.

        ``payload``: anything that msgspec can encode. ``room``: one of its rooms, by default the first.
        Raises :class:`Closed`, :class:`~kraftek.client.QueueFull`, and ``ValueError`` if ``type`` is no event name or
        ``room`` contains half of a surrogate pair. In the payload that becomes U+FFFD.
        When the gateway refuses the event, listeners to ``error`` are called; when it closes the socket because of its
        size, those to ``dropped`` as well.
        """
        if not volatile:
            self._conversation.emit(type, payload, room)
        elif not self._conversation.emit_now(type, payload, room, is_open=self._is_open()):
            return False
        self._act()
        return True

    def request(self, type: str, payload: Any = None, **how: Unpack[RequestOptions]) -> P:
        """Send an event and wait for its answer, across reconnects. Fires with the answer's payload.

        It is sent again under the same ``id`` when the connection is lost before the answer comes: the gateway does not
        run it twice. Fails with :class:`~kraftek.client.Refused` or :class:`Closed`; raises as :meth:`emit`. Cancel
        it, and the service is told to do no more about it, at once or after reconnecting.

        ``on_progress``: called with each :class:`Part` of an answer that comes in parts: one with the number 1 begins
        anew. Each gives the request its time anew.
        """
        limit, on_progress = self._limit(how.get("timeout")), how.get("on_progress")
        key = self._conversation.request(self._now(), limit, type, payload, how.get("room"))
        if on_progress is not None:
            self.on(_PART + key, on_progress)
            self._conversation.parts.ask(key, limit)
        return self._promised(key)

    def join(self, room: str, *, timeout: float | None = None, data: Any = None, history: int = 0) -> P:
        """Join a room, also after every reconnect. Fires once joined; fails with :class:`~kraftek.client.Refused`.
        ``data``: what others see of this user there, in place of the client's own; to change it, join again.
        ``history``: so many messages that it was told before come first, in order, unless what was missed since does.

        After ``timeout`` seconds, including time without a connection, it fails with ``TIMEOUT`` and leaves the room.
        When a room cannot be joined again after a reconnect, or access to it is revoked, listeners to ``error`` are
        called with its ``room_id``.
        """
        self._begin_with(room, history)
        return self._promised(self._conversation.join(self._now(), self._limit(timeout), room, data))

    def leave(self, room: str, *, timeout: float | None = None) -> P:
        """Leave a room. Fires once left; fails with ``TIMEOUT`` when the gateway does not answer."""
        return self._promised(self._conversation.leave(self._now(), self._limit(timeout), room))

    def refresh(self) -> P:
        """Ask for another token, and show it on the open socket. That is done in time without being told, where the
        gateway says when access expires. Fires once it counts, on this socket or the next; fails with
        :class:`~kraftek.client.Refused` if there is none, or the same, or the gateway refuses it. Raises
        :class:`Closed`.
        """
        return self._promised(self._conversation.refresh())

    def presence(self, room: str, listener: Callable[[Presence], object]) -> Callable[[], None]:
        """Call ``listener`` with who is in a room: :class:`~kraftek.client.Presence`, once that is known, and at each
        change, also of what changed while there was no connection. Enters no room. Where the gateway does not tell it,
        listeners to ``error`` are called with the ``room_id``. The result ends that. Raises ``ValueError``.
        """
        known = self._are_listening(_PRESENCE + room)
        end = self.on(_PRESENCE + room, listener)
        if not known:
            self._conversation.watch(room)
        elif (present := self._conversation.presence(room)) is not None:
            listener(present)
        self._act()

        def unwatch() -> None:
            known = self._are_listening(_PRESENCE + room)
            end()
            if known and not self._are_listening(_PRESENCE + room):
                self._conversation.unwatch(room)
                self._act()

        return unwatch

    # What happened, called by the subclass

    def _has_token(self, attempt: int, token: object) -> None:
        if not isinstance(token, str):
            self._has_no_token(attempt, TypeError(f"expected a token, found {type(token).__name__}"))
            return
        try:
            check_name(token)
        except ValueError as error:
            self._has_no_token(attempt, error)
            return
        self._conversation.token(attempt, token, self._now())
        self._act()

    def _has_no_token(self, attempt: int, error: BaseException) -> None:
        if attempt == self._conversation.attempt:
            self._log_error("asking for a token failed", error)
        self._conversation.no_token(attempt, f"no token: {type(error).__name__}", self._now())
        self._act()

    def _opened(self, attempt: int) -> None:
        self._conversation.opened(attempt)
        self._act()

    def _received(self, attempt: int, text: str | bytes) -> None:
        self._conversation.received(attempt, text, self._now())
        self._act()

    def _lost(self, attempt: int, code: int, reason: str) -> None:
        self._conversation.lost(attempt, code, reason, self._now())
        self._act()

    def _wake(self) -> None:
        self._due = None
        self._conversation.wake(self._now())
        self._act()

    # What to do

    def _act(self) -> None:
        if self._acting:
            # Called by a listener: its actions come after the one that called it.
            return
        self._acting = True
        try:
            while action := self._conversation.next_action():
                self._do(action)
        finally:
            self._acting = False
        self._pump()
        due = self._conversation.due()
        if due != self._due:
            self._due = due
            self._wake_at(due)

    def _do(self, action: Any) -> None:
        match action:
            case Settle(key, outcome):
                self._settle(key, result_of(key, outcome))
            case Hear(message) if message.type not in _OWN:
                self._conversation.heard(message, handled=self._notify(message.type, message))
            case Dropped(message):
                self._notify("dropped", message)
            case Recovered() | Presence() | Part():
                self._notify(_type_of(action), action)
            case Fetch(key):
                self._fetch(key)
            case Ask(attempt, refused):
                self._ask(attempt, refused)
            case Open(attempt):
                self._open(attempt)
            case Drop(attempt, last):
                self._drop(attempt, last)
            case Change(state, code, reason):
                if state in (State.READY, State.CLOSED):
                    waiting, self._connecting = self._connecting, []
                    for promise in waiting:
                        self._resolve(promise, Closed(code, reason) if state is State.CLOSED else None)
                self._notify("state", action)

    def _settle(self, key: str, outcome: Any) -> None:
        promise, _ = self._promises.pop(key, None), self._listeners.pop(_PART + key, None)
        if promise is not None:
            self._resolve(promise, outcome)

    def _promised(self, key: str) -> P:
        promise = self._promises[key] = self._promise(lambda: self._forget(key))
        self._act()
        return promise

    def _forget(self, key: str) -> None:
        """The user has cancelled the awaitable."""
        self._promises.pop(key, None)
        self._listeners.pop(_PART + key, None)
        self._conversation.cancel(key)
        self._act()

    @abstractmethod
    def _now(self) -> float:
        """Seconds of a monotonic clock."""

    @abstractmethod
    def _wake_at(self, due: float | None) -> None:
        """Call :meth:`_wake` at ``due``, in place of the time that was set before."""

    @abstractmethod
    def _promise(self, cancelled: Callable[[], None] | None) -> P:
        """A new awaitable; ``cancelled`` is called when the user cancels it."""

    @abstractmethod
    def _resolve(self, promise: P, outcome: Any) -> None:
        """Fire it, or fail it if ``outcome`` is an exception; unless it was cancelled."""

    @abstractmethod
    def _ask(self, attempt: int, refused: bool) -> None:
        """Ask the user for a token: calls :meth:`_has_token` or :meth:`_has_no_token`."""

    @abstractmethod
    def _open(self, attempt: int) -> None:
        """Open a socket: calls :meth:`_opened`, :meth:`_received` for each message, and finally :meth:`_lost`."""

    @abstractmethod
    def _drop(self, attempt: int, last: tuple[bytes, ...]) -> None:
        """Cancel the question for a token, or close the socket, open or not; see :class:`Drop`."""

    @abstractmethod
    def _is_open(self) -> bool:
        """Whether there is a socket that can be written to: not one on which a close frame was sent or received."""

    @abstractmethod
    def _pump(self) -> None:
        """Send what :meth:`Conversation.next_frame` has, if the socket can be written to. What cannot stays there."""

    @abstractmethod
    def _gone(self) -> P:
        """Fires when no socket is left."""


def _type_of(action: Recovered | Presence | Part) -> str:
    """What those listen to who are told of it."""
    match action:
        case Presence(room_id):
            return _PRESENCE + room_id
        case Part(key):
            return _PART + key
        case _:
            return "recovered"

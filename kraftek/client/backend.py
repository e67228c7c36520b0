"""What the clients for asyncio and for Twisted have in common: all but promises, timers and sockets."""

from __future__ import annotations

import inspect
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import urlsplit

from kraftek.client.conversation import Conversation
from kraftek.client.errors import Closed
from kraftek.client.messages import Ask, Change, Drop, Dropped, Hear, Message, Open, Settle, State
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
"""Asked for a token on each attempt to connect; the argument is whether the last one was refused."""

Listener = Callable[[Any], object]

_OWN = frozenset({"state", "dropped"})
"""What listeners are told under these is our own word: no service can say it."""


class Options(TypedDict, total=False):
    """What may be said of a client besides where and who: see :class:`Backend`."""

    room: str | None
    timeout: float
    queue: int
    random: Callable[[], float]


MAX_MESSAGE = 16 * 1024 * 1024
"""Bytes of the gateway's messages at most: past what a gateway would let wait for this client."""

CLOSE_TIMEOUT = 2.0
"""Seconds until a socket that the gateway does not close, when asked to, is cut."""

PING_INTERVAL = 20.0
PING_TIMEOUT = 20.0
"""Seconds: a gateway that died without a word is noticed by pings of our own."""


class Backend(ABC, Generic[P]):
    """A client of the gateway at ``url``, ``ws://`` or ``wss://``. It connects, and comes back by itself.

    ``token``: see :data:`TokenSource`. When it raises, the attempt has failed, and another follows.
    ``room``: the room to be in from the start. Without one, the auth service must let this user in without.
    ``timeout``: seconds that a request, ``join`` and ``leave`` wait for their answer, unless they say otherwise. A
    service has 10 s by default, after which the gateway says ``TIMEOUT``: the client waits a little longer.
    ``queue``: how many messages may wait: for a connection, to be sent, or for their answers. The gateway lets as many
    requests of one socket wait.
    ``random``: gives numbers from 0 to 1, for the full jitter of every wait.

    Its methods belong to the thread of the reactor or event loop, and return its promises: Deferreds, or Futures.
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
    ) -> None:
        self._address = urlsplit(url)
        if self._address.scheme not in {"ws", "wss"} or not self._address.hostname or self._address.fragment:
            # What stands after the question mark may be a token.
            raise ValueError(f"expected ws://HOST[:PORT][/PATH] or wss://…, found {url.partition('?')[0]!r}")
        self._port = self._address.port or (443 if self._address.scheme == "wss" else 80)
        self.url = url
        if room is not None:
            check_name(room)
        self._token = token
        self._timeout = timeout
        self._conversation = Conversation(() if room is None else (room,), queue, random)
        self._listeners: dict[str, dict[object, Listener]] = {}
        self._connecting: list[P] = []
        self._promises: dict[str, P] = {}
        self._acting = False
        self._due: float | None = None

    @property
    def state(self) -> State:
        """What it is doing."""
        return self._conversation.state

    @property
    def user_id(self) -> str | None:
        """Who the gateway says we are, since it was connected for the first time."""
        return self._conversation.user_id

    @property
    def socket_id(self) -> str | None:
        """The gateway's name for the present connection, if there is one; services know it."""
        return self._conversation.socket_id

    @property
    def rooms(self) -> list[str]:
        """Those it is in, or enters as soon as it is connected. An event is from the first of them, unless it says."""
        return self._conversation.rooms

    def connect(self) -> P:
        """Connect, and stay connected. Fires once connected; fails with :class:`Closed` if that is forbidden.

        A closed client may be connected again. It is in the rooms that it was in.
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
        """Close it for good. Events that wait are sent if it is connected, else told as ``dropped``; requests fail with
        :class:`Closed`.

        Fires when the socket is closed.
        """
        self._conversation.close()
        self._act()
        return self._gone()

    def emit(self, type: str, payload: Any = None, *, room: str | None = None) -> None:
        """Send an event, now or once connected. It may be lost when the connection is: a request would not be.

        ``payload``: what msgspec can encode. ``room``: one of its rooms; without it, the first.
        Raises :class:`Closed`, :class:`~kraftek.client.QueueFull`, and ``ValueError`` if ``type`` names no event, or if
        half of a surrogate pair stands in ``room``. In the payload that becomes U+FFFD.
        When the gateway refuses it, ``error`` is heard.
        """
        self._conversation.emit(type, payload, room)
        self._act()

    def request(self, type: str, payload: Any = None, *, room: str | None = None, timeout: float | None = None) -> P:
        """Send an event and wait for its answer, across reconnects. Fires with the answer's payload.

        Sent again under the same ``id`` when the connection was lost before the answer came: the gateway does not run
        it twice. Fails with :class:`~kraftek.client.Refused` or :class:`Closed`; raises as :meth:`emit`. Cancel it to
        forget it.
        """
        key = self._conversation.request(self._now(), self._limit(timeout), type, payload, room)
        return self._promised(key)

    def join(self, room: str, *, timeout: float | None = None) -> P:
        """Be in this room as well, also after a reconnect. Fires once in; fails with :class:`~kraftek.client.Refused`.

        After ``timeout`` seconds, time without a connection included, that is ``TIMEOUT``, and it is out of the room.
        When a room cannot be entered again after a reconnect, or access to it is taken back, ``error`` is heard, with
        its ``room_id``.
        """
        return self._promised(self._conversation.join(self._now(), self._limit(timeout), room))

    def leave(self, room: str, *, timeout: float | None = None) -> P:
        """Leave a room. Fires once out; fails with ``TIMEOUT`` when the gateway does not answer."""
        return self._promised(self._conversation.leave(self._now(), self._limit(timeout), room))

    def on(self, type: str, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with each :class:`Message` of this type that answers no request; the result ends that.

        ``error`` are those that concern no request. Under ``state`` each :class:`Change` is told, under
        ``dropped`` each event that will not be sent because the client was closed.
        Raises ``TypeError`` for an ``async`` function: nobody would await it.
        """
        if inspect.iscoroutinefunction(listener):
            raise TypeError(f"a listener is a plain function, and {listener!r} is async: let it start a task")
        listeners = self._listeners.setdefault(type, {})
        subscription = object()  # the same listener may be subscribed more than once
        listeners[subscription] = listener

        def end() -> None:
            listeners.pop(subscription, None)

        return end

    def _limit(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    # What happened, told by the subclass

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
            self._complain("asking for a token failed", error)
        self._lost(attempt, 1006, f"no token: {type(error).__name__}")

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

    # What is to be done

    def _act(self) -> None:
        if self._acting:
            # A listener has called: what it wants is done after what led to it.
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
                promise = self._promises.pop(key, None)
                if promise is not None:
                    self._resolve(promise, outcome.payload if isinstance(outcome, Message) else outcome)
            case Hear(message):
                if message.type not in _OWN:
                    self._tell(message.type, message)
            case Dropped(message):
                self._tell("dropped", message)
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
                self._tell("state", action)

    def _tell(self, type: str, what: Message | Change) -> None:
        listeners = self._listeners.get(type, {})
        for subscription, listener in tuple(listeners.items()):
            if subscription not in listeners:
                continue  # another listener has just ended it
            try:
                listener(what)
            except Exception as error:  # noqa: BLE001  # the guard of this edge: the listener's fault, not ours
                self._complain(f"a listener to {type} failed", error)

    def _promised(self, key: str) -> P:
        promise = self._promises[key] = self._promise(lambda: self._forget(key))
        self._act()
        return promise

    def _forget(self, key: str) -> None:
        """The user has cancelled the promise."""
        if self._promises.pop(key, None) is not None:
            self._conversation.forget(key)
            self._act()

    @abstractmethod
    def _now(self) -> float:
        """Seconds, of a clock that does not jump."""

    @abstractmethod
    def _wake_at(self, due: float | None) -> None:
        """Call :meth:`_wake` then, and no more at any earlier ``due``."""

    @abstractmethod
    def _promise(self, cancelled: Callable[[], None] | None) -> P:
        """A new one; ``cancelled`` is called when the user cancels it."""

    @abstractmethod
    def _resolve(self, promise: P, outcome: Any) -> None:
        """Fire it, with an exception let it fail; unless it was cancelled."""

    @abstractmethod
    def _ask(self, attempt: int, refused: bool) -> None:
        """Ask the user for a token: :meth:`_has_token` or :meth:`_has_no_token`."""

    @abstractmethod
    def _open(self, attempt: int) -> None:
        """Open a socket: :meth:`_opened`, :meth:`_received` for each message, in the end :meth:`_lost`."""

    @abstractmethod
    def _drop(self, attempt: int, last: tuple[bytes, ...]) -> None:
        """Be without the token or the socket that is being asked for, opened, or open; see :class:`Drop`."""

    @abstractmethod
    def _pump(self) -> None:
        """Send what :meth:`Conversation.next_frame` has, if the socket can be written to."""

    @abstractmethod
    def _gone(self) -> P:
        """Fires when no socket is left."""

    @abstractmethod
    def _complain(self, what: str, error: BaseException) -> None:
        """Log something that the user's code did."""

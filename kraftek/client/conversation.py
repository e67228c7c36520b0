"""The protocol of a client, across reconnects, sans-IO. Called by the backends.

There are no sockets and no clock in here. :class:`Conversation` is called with what happened and the time; it returns
what to do (:data:`Action`), what to send (:meth:`Conversation.next_frame`) and when to call it again
(:meth:`Conversation.due`).
The rules are those of docs/client-protocol.rst: "Close codes", "Reconnecting", "Requests and answers".
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from kraftek.client.backoff import LATER, Backoff
from kraftek.client.deadlines import PATIENCE, Deadlines
from kraftek.client.errors import Closed, QueueFull, Refused
from kraftek.client.frames import check_event, check_room, error_of, frame, is_for_later, is_held_up, refused, text_of
from kraftek.client.messages import Action, Ask, Change, Drop, Dropped, Hear, Message, Open, Presence, Settle, State
from kraftek.client.outbox import Kind, Outbox, ids
from kraftek.client.parts import Parts
from kraftek.client.presence import Watching
from kraftek.client.recovery import Recovery
from kraftek.client.refresh import REFRESH, Refresh
from kraftek.client.rooms import Rooms
from kraftek.contract.messages import ReceivedError
from kraftek.contract.names import SUBPROTOCOL
from kraftek.contract.payloads import payload_decoder

__all__ = ["Conversation"]

_STEADY = 5.0
"""Seconds: a connection that was ready for so long counts as stable, and resets the back-off."""

_CONNECTION = ""
"""The name of the connection's own deadline, beside the ids of requests."""
_CANCEL = "cancel "
"""The prefix of a request's id for the word that it is given up."""
_HELD = "held"
"""The name of the deadline until which neither events nor requests are sent, after ``RATE_LIMITED``."""


_decode = payload_decoder(Message).decode

_TOO_LARGE = "TOO_LARGE", "the message is too large for the gateway"


class Conversation:
    """One client's side of the protocol.

    ``rooms``: to join from the start; authentication is for the first. ``data``: what the client shows of itself there.
    ``queue``: how many events may wait unsent, how
    many requests unanswered, and how many joins. ``random`` returns numbers from 0 to 1, for the full jitter of every
    wait. Times are in seconds of a monotonic clock.

    ``user_id``: from the gateway, since the first authentication. ``socket_id``: the gateway's id of the present
    socket, if there is one. ``parts``: the requests whose answers may come in parts; ``recovery``:
    what is known of the histories of rooms and of the user.

    A socket is identified by the number of its attempt. Calls for another than the present ``attempt`` are ignored.

    =======================  ==============  ==========================  ===========================  ================
    input                    ``CLOSED``      ``CONNECTING``              ``READY``                    ``WAITING``
    =======================  ==============  ==========================  ===========================  ================
    :meth:`connect`          → CONNECTING    nothing                     nothing                      nothing
    :meth:`close`            nothing         → CLOSED                    events sent; → CLOSED        → CLOSED
    :meth:`emit`             ``Closed``      queued                      sent, or waits for its room  queued
    :meth:`emit_now`         nothing         nothing                     sent, or not                 nothing
    :meth:`request`          ``Closed``      queued                      sent, or waits for its room  queued
    :meth:`heard`            nothing         nothing                     acknowledged                 nothing
    :meth:`cancel`           nothing         queued, if it was sent      sent, if the request was     queued, likewise
    :meth:`join`             ``Closed``      queued                      sent                         queued
    :meth:`leave`            ``Closed``      settled                     sent                         settled
    :meth:`refresh`          ``Closed``      waits for READY             asks for a token             waits for READY
    :meth:`token`            ignored         opens a socket              shows it, if it is another   ignored
    :meth:`no_token`         ignored         as :meth:`lost`             asks again later             ignored
    :meth:`opened`           ignored         sends ``authenticate``      ignored                      ignored
    ``authenticated``        ignored         → READY: sends what was     to listeners                 ignored
                                             queued, rooms first
    ``error`` without an id  ignored         to listeners; the token is  to listeners                 ignored
                                             sent again if the auth
                                             service was unavailable;
                                             → CLOSED if the token was
                                             malformed
    ``drain``                ignored         its time replaces the back-off of the next :meth:`lost`  ignored
    an answer                ignored         to listeners                settled                      ignored
    no JSON                  ignored         → WAITING                   → WAITING                    ignored
    :meth:`lost`             ignored         → WAITING, or CLOSED        → WAITING, or CLOSED         ignored
                                             for good by the code        for good by the code
    :meth:`wake`             nothing         requests and joins time     as before; a room that was   time-outs;
                                             out; → WAITING if it took   not entered again →          → CONNECTING
                                             too long                    WAITING
    =======================  ==============  ==========================  ===========================  ================
    """

    def __init__(
        self,
        rooms: tuple[str, ...] = (),
        queue: int = 256,
        random: Callable[[], float] = random.random,
        data: Any = None,
    ) -> None:
        self.state = State.CLOSED
        self.user_id: str | None = None
        self.socket_id: str | None = None
        self._queue, self._backoff = queue, Backoff(random)
        self._actions: deque[Action] = deque()
        self._ids, self._attempts = ids(), 0
        self.attempt: int | None = None
        self._authenticate: bytes | None = None
        self._complaint: ReceivedError | None = None
        self._ready_since, self._refused, self._token, self._end = 0.0, False, "", Closed(1000, "not connected yet")
        self._outbox, self._deadlines = Outbox(), Deadlines()
        self.parts = Parts(self._actions, self._deadlines, self._outbox)
        self.recovery = Recovery(random, self._actions, self._deadlines, self._ids, self._outbox, self._check_space)
        self._watching = Watching(random, self._actions, self._deadlines, self._outbox, self._ids)
        self._rooms = Rooms(
            rooms,
            actions=self._actions,
            deadlines=self._deadlines,
            outbox=self._outbox,
            ids=self._ids,
            backoff=self._backoff,
            recovery=self.recovery,
            watching=self._watching,
            data=data,
        )
        self._refresh = Refresh(random, self._actions, self._deadlines, self._outbox, self._ids)

    # For the backend

    def next_action(self) -> Action | None:
        """The next action; ``None`` when there is none."""
        return self._actions.popleft() if self._actions else None

    def next_frame(self) -> bytes | None:
        """The next text message for the socket; ``None`` when there is none. A backend asks when it can write."""
        if self.state is State.CONNECTING:
            shown, self._authenticate = self._authenticate, None
            return shown
        if self.state is not State.READY:
            return None
        if self._deadlines.of(_HELD) is not None:
            return self._outbox.take_control()
        if self._rooms.are_asked_for:
            return self._outbox.take_early()
        return self._outbox.take(self._rooms.default, self._rooms.closed)

    def due(self) -> float | None:
        """When to call :meth:`wake`."""
        return self._deadlines.first()

    @property
    def rooms(self) -> list[str]:
        """The rooms that it is in, or joins as soon as it is connected; the first is the default room of events."""
        return self._rooms.names

    # For the user

    def connect(self) -> None:
        """Connect, and stay connected; from ``CLOSED`` only."""
        if self.state is State.CLOSED:
            self._backoff.reset()
            self._begin()

    def close(self, *, is_open: bool = True) -> None:
        """Close for good. Events that wait are sent if the socket ``is_open``; requests that wait fail."""
        if self.state is State.CLOSED:
            return
        if self.attempt is not None:
            sends = is_open and self._takes_events
            last = self._outbox.take_events(self._rooms.default, self._rooms.closed) if sends else ()
            self._actions.append(Drop(self.attempt, last))
        self._finish(1000, "closed by the client")

    def emit(self, type: str, payload: Any = None, room_id: str | None = None) -> None:
        """Send an event once there is a connection. Raises ``ValueError``, :class:`Closed`, :class:`QueueFull`."""
        check_event(type, room_id)
        self._check_space(self._outbox.events)
        self._outbox.put(next(self._ids), Kind.EVENT, frame(type, payload, room_id=room_id), room_id)

    def emit_now(self, type: str, payload: Any = None, room_id: str | None = None, *, is_open: bool = True) -> bool:
        """Send an event if that can be done at once. Whether it is sent. Raises ``ValueError``."""
        check_event(type, room_id)
        default, closed = self._rooms.default, self._rooms.closed
        is_in = (room_id or default) not in closed
        if not (is_open and is_in and self._takes_events) or self._outbox.is_behind(default, closed):
            return False
        self._outbox.put(next(self._ids), Kind.VOLATILE, frame(type, payload, room_id=room_id))
        return True

    def request(self, now: float, timeout: float, type: str, payload: Any = None, room_id: str | None = None) -> str:
        """Send an event and wait for its answer, which is settled under the id returned. Raises as :meth:`emit`.

        Without a room it is for the first of :attr:`rooms` when it is sent for the first time, also when sent again.
        """
        check_event(type, room_id)
        self._check_space(self._outbox.pending)
        key = next(self._ids)
        self._outbox.put(key, Kind.REQUEST, frame(type, payload, key, room_id), room_id)
        self._deadlines.set(key, now + timeout)
        return key

    def join(self, now: float, timeout: float, room_id: str, data: Any = None) -> str:
        """Join a room, also after every reconnect; settled under the id returned. Raises as :meth:`emit`."""
        check_room(room_id)
        self._check_space(self._rooms.joining)
        return self._rooms.join(room_id, now + timeout, ready=self.state is State.READY, data=data)

    def leave(self, now: float, timeout: float, room_id: str) -> str:
        """Leave a room; settled under the id returned. Raises ``ValueError`` and :class:`Closed`."""
        check_room(room_id)
        if self.state is State.CLOSED:
            raise self._end
        return self._rooms.leave(room_id, now + timeout, ready=self.state is State.READY)

    def refresh(self) -> str:
        """Ask for another token and show it; settled under the id returned. Raises :class:`Closed`."""
        if self.state is State.CLOSED:
            raise self._end
        return self._refresh.wanted(self.attempt if self.state is State.READY else None)

    def watch(self, room_id: str) -> None:
        """Ask who is in a room, and hear of changes, as :class:`Presence`. Raises ``ValueError``."""
        check_room(room_id)
        self._watching.watch(room_id)

    def unwatch(self, room_id: str) -> None:
        """Do so no more."""
        self._watching.unwatch(room_id)

    def presence(self, room_id: str) -> Presence | None:
        """Who is in a room that is watched, if that is known."""
        return self._watching.now(room_id)

    def heard(self, message: Message, *, handled: bool) -> None:
        """Listeners were told of a message. If they have ``handled`` it the gateway is told, if it wants to know. On
        another socket than that of the message it would count for nothing.
        """
        if handled and message.receipt is not None and self.state is State.READY:
            self._outbox.put(next(self._ids), Kind.CONTROL, frame("receipt", None, message.receipt))

    def forget(self, key: str) -> None:
        """The user no longer waits for this request."""
        self._refresh.waiting.discard(key)
        if self._outbox.is_request(key):
            self._outbox.discard(key)
            self._deadlines.cancel(key)

    def cancel(self, key: str) -> None:
        """As :meth:`forget`; the service is told to do no more about it, if it may have it."""
        request = self._outbox.sent(key)
        self.forget(key)
        if request is not None and ":" in (event := _decode(request).type):
            self._outbox.put(_CANCEL + key, Kind.CANCEL, frame("cancel", {"eventType": event}, key))

    # What happened

    def token(self, attempt: int, token: str, now: float) -> None:
        """The user has returned a token."""
        if attempt == self.attempt and self.state is State.READY:
            self._refresh.show(token, now)
        elif attempt == self.attempt:
            self._token = self._refresh.shown = token
            self._deadlines.set(_CONNECTION, now + PATIENCE)
            self._actions.append(Open(attempt))

    def no_token(self, attempt: int, reason: str, now: float) -> None:
        """The user has none. The socket that there is stays."""
        if attempt == self.attempt and self.state is State.READY:
            self._refresh.failed(Refused("NO_TOKEN", reason), now)
        else:
            self.lost(attempt, 1006, reason, now)

    def opened(self, attempt: int) -> None:
        """The socket is open."""
        if attempt == self.attempt:
            self._show_token()

    def received(self, attempt: int, text: str | bytes, now: float) -> None:
        """A message came."""
        if attempt != self.attempt:
            return
        try:
            message = _decode(text)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as wrong:
            self._actions.append(Drop(attempt))
            self.lost(attempt, 1002, f"not {SUBPROTOCOL}: {type(wrong).__name__}", now)
            return
        error = error_of(message.payload) if message.type == "error" else None
        key = message.id
        if message.type == "drain" and key is None:
            self._backoff.drained(message.payload)
        if self.state is State.CONNECTING:
            self._while_connecting(message, error, now)
        elif self._rooms.are_meant(key):
            room_id = self._rooms.answered(key, message, error, now)
            if room_id is not None:
                self._refresh.watch(room_id, message.payload, now)
        elif key is not None and key == self._refresh.key:
            self._complaint = error or self._complaint
            if self._refresh.answered(message, error, now):
                self._deadlines.cancel(_HELD)
        elif self._outbox.is_unanswered(key):
            self._answered(str(key), message, error, now)
        elif key is None:
            self._heard(message, error, len(text), now)
        else:
            self._outbox.discard(f"{_CANCEL}{key}")
            self._watching.answered(message, error, now)

    def lost(self, attempt: int, code: int, reason: str, now: float) -> None:
        """The socket was lost or could not be opened, or there is no token."""
        if attempt != self.attempt:
            return
        complaint, self._complaint = self._complaint, None
        retry_after = None
        # The gateway sends an error before it closes; the reason in the close frame is the error's code.
        if complaint is not None and complaint.code == reason:
            reason, retry_after = f"{reason}: {complaint.message}", complaint.retry_after
        once_more = code in LATER or (code == 4401 and not self._refused)
        if 4400 <= code <= 4499 and not once_more:
            self._finish(code, reason)
            return
        self._refused = self._refused or code == 4401
        self._requeue(code)
        if self.state is State.READY and now >= self._ready_since + _STEADY:
            self._backoff.reset()
        wait = self._backoff.after(code, retry_after)
        self.attempt = None
        self._deadlines.set(_CONNECTION, now + wait)
        self._become(Change(State.WAITING, code, reason, wait))

    def wake(self, now: float) -> None:
        """Time has passed."""
        while (key := self._deadlines.take(now)) is not None:
            ready = self.state is State.READY
            if key == _HELD:
                continue
            if key == REFRESH:
                self._refresh.ask(self.attempt)
            elif self._outbox.is_request(key):
                self.forget(key)
                self._settle(key, Refused("TIMEOUT", "no answer in time"))
            elif key == self._refresh.key:
                self._refresh.timed_out(now)
            elif self.recovery.wake(key) or self._watching.wake(key) or self._rooms.wake(key, now, ready=ready):
                continue
            elif key != _CONNECTION:
                self._give_up(1006, f"a room was not entered within {PATIENCE:g} s", now)
            elif self.state is State.WAITING:
                self._begin()
            elif self._complaint is not None:
                self._deadlines.set(_CONNECTION, now + PATIENCE)
                self._show_token()
            else:
                self._give_up(1006, f"not authenticated within {PATIENCE:g} s", now)

    # Steps

    def _begin(self) -> None:
        self._attempts += 1
        self.attempt = self._attempts
        self._become(Change(State.CONNECTING))
        self._actions.append(Ask(self.attempt, self._refused))

    def _give_up(self, code: int, reason: str, now: float) -> None:
        """Close the socket, and act as if it had been closed with this code."""
        assert self.attempt is not None
        self._actions.append(Drop(self.attempt))
        self.lost(self.attempt, code, reason, now)

    def _show_token(self) -> None:
        self._complaint = None
        shown = {"token": self._token, **self._rooms.show(), **self.recovery.user_since()}
        self._authenticate = frame("authenticate", shown)

    def _while_connecting(self, message: Message, error: ReceivedError | None, now: float) -> None:
        if error is not None:
            self._complaint = error
            if is_for_later(error):
                self._deadlines.set(_CONNECTION, now + self._backoff.unavailable(error.retry_after))
        elif message.type == "authenticated":
            self._ready(message.payload, now)
            self._refresh.answered(message, None, now)
        elif message.type == "connected":
            self.socket_id = text_of(message.payload, "socketId")
        self._actions.append(Hear(message))
        if error is not None and error.code == "INVALID_MESSAGE":
            # The gateway keeps the socket open, but would refuse the same on another one.
            self._give_up(4400, error.code, now)

    def _ready(self, payload: Any, now: float) -> None:
        self._ready_since, self._refused, self._token = now, False, ""
        self._deadlines.cancel(_CONNECTION)
        user_id = text_of(payload, "userId")
        if self.user_id not in {None, user_id}:
            self.recovery.another_user()
            payload = {**payload, "recovered": False} if isinstance(payload, dict) else None
        self.user_id = user_id
        self.recovery.entered(None, payload.get("userPosition") if isinstance(payload, dict) else None)
        self._rooms.enter(payload, now)
        self._become(Change(State.READY))

    def _answered(self, key: str, message: Message, error: ReceivedError | None, now: float) -> None:
        if self.parts.heard(key, message, now):
            return
        until = self._hold(error, now)
        if until is not None and until < (self._deadlines.of(key) or until):
            self._outbox.refuse(key)
        else:
            self.forget(key)
            self._settle(key, message if error is None else refused(error))

    def _heard(self, message: Message, error: ReceivedError | None, size: int, now: float) -> None:
        """A message that answers nothing."""
        if error is None:
            if message.type == "presence":
                self._watching.hear(message)
            self.recovery.hear(message, size)
            return
        self._complaint = error
        self._hold(error, now)
        if error.code == "ACCESS_REVOKED":
            self._rooms.revoked(message.room_id)
        self._actions.append(Hear(message))

    def _hold(self, error: ReceivedError | None, now: float) -> float | None:
        """Send neither events nor requests until the gateway takes more. If it has refused any, returns how soon that
        may be: with a fresh token at once.
        """
        if error is not None and error.code == "TOKEN_EXPIRED":
            self._refresh.ask(self.attempt)
            self._deadlines.extend(_HELD, now + PATIENCE)
            return now
        if error is None or not is_held_up(error):
            return None
        return self._deadlines.extend(_HELD, now + self._backoff.unavailable(error.retry_after))

    def _requeue(self, code: int) -> None:
        """The socket was lost: unanswered requests are to be sent again, before the rest."""
        if code == 1009:
            self._too_large(*self._outbox.too_large())
        self._outbox.socket_lost()
        self._refresh.lost()
        self._rooms.socket_lost()
        self._socket_lost()

    def _too_large(self, key: str, event: bytes | None) -> None:
        """The gateway has closed the socket because of this request, or event: the next one, too, if it got it."""
        if key:
            self.forget(key)
            self._settle(key, Refused(*_TOO_LARGE))
        elif event is not None:
            message = _decode(event)
            code, text = _TOO_LARGE
            why = {"code": code, "message": text, "eventType": message.type}
            self._actions += (Hear(Message("error", why, None, message.room_id)), Dropped(message))

    def _finish(self, code: int, reason: str) -> None:
        self._end, self._token = Closed(code, reason), ""
        self._socket_lost()
        self.attempt = self._complaint = None
        dropped = self._outbox.take_events()
        for key in (*self._outbox.requests(), *self._refresh.waiting):
            self._settle(key, self._end)
        self._rooms.close(self._end)
        for part in (self._outbox, self._deadlines, self._refresh, self.parts):
            part.clear()
        self._become(Change(State.CLOSED, code, reason))
        self._actions.extend(Dropped(_decode(event)) for event in dropped)

    def _socket_lost(self) -> None:
        self.recovery.socket_lost(self.socket_id if self.state is State.READY else None)
        self._watching.socket_lost()
        self._authenticate = self.socket_id = None

    @property
    def _takes_events(self) -> bool:
        """Whether events and requests are sent at once."""
        return self.state is State.READY and self._deadlines.of(_HELD) is None and not self._rooms.are_asked_for

    def _check_space(self, waiting: int) -> None:
        """``waiting``: how many of the kind wait already."""
        if self.state is State.CLOSED:
            raise self._end
        if waiting >= self._queue:
            raise QueueFull(f"{self._queue} of them wait already")

    def _become(self, change: Change) -> None:
        self.state = change.state
        self._actions.append(change)

    def _settle(self, key: str, outcome: Message | Refused | Closed | None) -> None:
        self._actions.append(Settle(key, outcome))

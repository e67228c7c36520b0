"""Plays ``transcripts/`` with a Python client, against a real WebSocket server, and with a clock that stands still.

``js/transcripts.test.js`` plays the same ones with kraftek.js. A transcript is a list of steps, and each step a list:

======================================  ===============================================================================
step                                    what happens
======================================  ===============================================================================
``"open", socket_id``                   the client opens a socket, and is told ``connected``, with ``s`` unless it says
``"shows", shown``                      it authenticates with this payload
``"admitted", told``                    that is answered with this payload of ``authenticated``
``"refused", error``                    that is answered with this payload of ``error``
``"admit", shown, told``                ``shows`` and ``admitted`` in one
``"refuse", shown, error``              ``shows`` and ``refused`` in one
``"ready", told``                       all of that until the client is ready: in its room, if it has one
``">", message``                        it sends this message next; ``"id": "$name"`` names the id at its first use
``"<", message``                        it is told this
``"close", code, reason``               the socket is closed
``"closing", code, reason``             the client is sent a close frame, and the connection stays; ``"closed"`` ends it
``"drops"``                             it closes the socket with 1000
``"cut"``                               the connection ends without a close frame
``"pass", seconds``                     time passes
``"nothing"``                           nothing else has happened by now
``"pinged"``                            it has sent a ping of WebSocket's own
``"token", token``                      what the application says from now on when asked for one; ``null``: it fails
``"asked", [refused, …]``               how it was asked since the last such step
``"connect"``, ``"leave"``              the application connects again, or closes the client
``"emit", arguments, result``           it emits, and is told this: ``true``, ``false``, or a code
``"call", name, method, arguments``     it calls ``request``, ``history``, ``join``, ``leave`` or ``refresh``; with
                                        ``progress`` it hears each ``part`` of the answer, with its number
``"cancel", name``                      the application gives that ``request`` up
``"done", name, outcome``               that call ends: ``{"ok": …}`` or ``{"error": code}``; of a page of a history
                                        with the offsets and payloads of its ``messages``, and ``before``
``"snapshot", room``                    the application will fetch the state of this room: each time it does is heard
``"no_snapshot", room``                 it wants that no more; in these steps the room ``null`` is the user
``"fetched", room, outcome``            the first such fetch under way ends: ``{"ok": state}`` or ``{"error": text}``
``"room_state", room, types``           it has a room's state, fetched alike: a list to which these types append their
                                        payloads; each change of it is heard
``"state_error", room, code``           what that says is wrong
``"presence", room``                    the application wants to know who is in this room: it hears ``{users, count,
                                        joined, left}``, the users by their ids with what they show
``"no_presence", room``                 it wants that no more
``"state", change``                     the application hears of this state; ``wait`` in seconds
``"hear", type, what``                  it hears this event, ``error``, ``dropped``, ``snapshot``, ``room_state`` or
                                        ``presence``; of a text the ``piece``, its ``key``, and the ``text`` so far
======================================  ===============================================================================

All that the client sends, and all that the application hears, is in the transcript: what is not there must not happen.
In objects that the application hears only the members that are in the transcript are compared. A step for one library
alone begins with ``"js "`` or ``"python "``; the transcript then says in ``differs`` why. Besides its ``steps`` and its
``name`` a transcript may have ``client``, the options of the client; ``token``, the first one if it is not ``t1``; and
``listens``, the types of events that the application hears besides.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from kraftek.client import Change, Closed, HistoryPage, Message, Presence, QueueFull, Recovered, Refused, RoomState
from tests.client.backends import BackendThread, User
from tests.client.scripted import Far, Json, ScriptedGateway
from tests.support.waiting import wait_until

__all__ = ["TRANSCRIPTS", "Player"]

TRANSCRIPTS: dict[str, Json] = {
    f"{path.stem}: {each['name']}": each
    for path in sorted((Path(__file__).parent / "transcripts").glob("*.json"))
    for each in json.loads(path.read_text("utf-8"))
}

_SIGNS = {">": "sends", "<": "told", "leave": "closes"}

STEP = 15.0
"""Seconds that pass at a time: the clients' own pings must be answered between them."""


class Player:
    """One client, one server, and what the application has heard and not yet been asked for."""

    def __init__(self, backend: BackendThread, server: ScriptedGateway, transcript: Json) -> None:
        options = {"random": lambda: 0.5, **transcript.get("client", {})}
        self._backend, self._server, self._room = backend, server, options.get("room")
        self._token: str | None = transcript.get("token", "t1")
        self._asked: list[bool] = []
        self._far: Far | None = None
        self._leaving: Far | None = None
        self._shown: Json = {}
        self._ids: dict[str, str] = {}
        self._calls: dict[str, Future[Any]] = {}
        self._promises: dict[str, Any] = {}
        self._fetching: list[tuple[str | None, Future[Any]]] = []
        self._no_snapshot: dict[str | None, Callable[[], None]] = {}
        self._room_states: dict[str | None, RoomState[list[Any]]] = {}
        self._no_presence: dict[str, Callable[[], None]] = {}
        self._heard: queue.Queue[Json] = queue.Queue()
        self.user = User(backend, server.url, self._ask, options)
        for name in ("error", "dropped", *transcript.get("listens", ())):
            self.user.client.on(name, partial(self._hear, name))
        self.user.start("connect")

    def play(self, steps: list[list[Any]]) -> None:
        """All steps, and nothing else."""
        for number, (verb, *arguments) in enumerate(steps):
            library, _, rest = verb.rpartition(" ")
            if library == "js":
                continue
            try:
                getattr(self, f"step_{_SIGNS.get(rest, rest)}")(*arguments)
            except (AssertionError, queue.Empty, TimeoutError) as wrong:
                wrong.add_note(f"in step {number + 1}: {json.dumps([verb, *arguments])}")
                raise
        self.step_nothing()

    def end(self) -> None:
        """Leave nothing behind."""
        self.user.start("close")
        for far in (self._far, self._leaving):
            if far is not None:
                far.end_close()
        wait_until(
            lambda: self._backend.run(self._backend.leftovers) == [],
            lambda: f"nothing left behind: {self._backend.run(self._backend.leftovers)}",
        )

    def _start(self, method: str, *arguments: Any, **options: Any) -> Future[Any]:
        """Call it; that is done when this returns, and its promise may be kept later."""
        promise: Future[Any] = self.user.start(method, *arguments, **options)
        self._backend.run(lambda: None)
        return promise

    def _hear(self, name: str, message: Message | Recovered) -> None:
        if isinstance(message, Recovered):
            what = {"roomId": message.room_id, "recovered": message.recovered, "reason": message.reason}
            self._heard.put({"type": name, "what": what})
            return
        event = {"type": message.type, "payload": message.payload, "roomId": message.room_id}
        error = {**(message.payload or {}), "roomId": message.room_id} if name == "error" else {}
        heard = {"error": error, "dropped": event}.get(name, message.payload)
        if (append := message.append) is not None:
            more = {"last": True} if append.last else {}
            self._heard.put({"type": name, "what": {"piece": heard, "key": append.key, "text": append.text, **more}})
            return
        self._heard.put({"type": name, "what": _without_null(heard)})

    def _fetch(self, room: str | None) -> Any:
        """What it fetches the state of a room with: ``fetched`` says what that becomes."""
        self._heard.put({"type": "snapshot", "what": room})
        fetched: Future[Any] = Future()
        self._fetching.append((room, fetched))
        return self._backend.awaited(fetched)

    def _ask(self, refused: bool) -> str:
        self._asked.append(refused)
        if self._token is None:
            raise OSError("no token")
        return self._token

    @property
    def _peer(self) -> Far:
        assert self._far is not None, "there is no socket"
        return self._far

    def step_nothing(self) -> None:
        if self._far is not None:
            self._far.settle()
            assert self._far.left_over() == []
        else:
            self._backend.pass_time(0.0)
        assert [*self.user.changes.queue] == []
        assert [*self._heard.queue] == []

    # Steps

    def step_open(self, socket_id: str = "s") -> None:
        self._far = self._server.accept()
        self._far.say("connected", {"socketId": socket_id})

    def step_ready(self, told: Json | None = None) -> None:
        self.step_state({"state": "connecting"})
        self.step_open()
        shown = {"token": self._token, "roomId": self._room}
        self.step_admit(_without_null(shown), {"userId": "ada", **(told or {})})
        self.step_state({"state": "ready"})

    def step_shows(self, expected: Json) -> None:
        shown = _without_null(self._peer.expect("authenticate"))
        assert shown["payload"] == expected
        # Python names no id the first time, and needs none.
        self._shown = {"id": shown["id"]} if "id" in shown else {}

    def step_admitted(self, told: Json) -> None:
        self._peer.say("authenticated", told, **self._shown)

    def step_refused(self, error: Json) -> None:
        self._peer.say("error", {"message": "because", **error}, **self._shown)

    def step_admit(self, shown: Json, told: Json) -> None:
        self.step_shows(shown)
        self.step_admitted(told)

    def step_refuse(self, shown: Json, error: Json) -> None:
        self.step_shows(shown)
        self.step_refused(error)

    def step_sends(self, expected: Json) -> None:
        sent = _without_null(self._peer.expect(expected["type"]))
        name = expected.get("id")
        if isinstance(name, str):
            assert self._ids.setdefault(name, sent["id"]) == sent["id"]
            sent["id"] = name
        assert sent == expected

    def step_told(self, message: Json) -> None:
        known = {"id": self._ids[message["id"]]} if "id" in message else {}
        self._peer.say_raw(json.dumps({**message, **known}))

    def step_close(self, code: int, reason: str = "") -> None:
        self.step_nothing()
        self._peer.close(code, reason)
        self._far = None

    def step_closing(self, code: int, reason: str = "") -> None:
        self.step_nothing()
        self._peer.begin_close(code, reason)
        wait_until(lambda: not self._backend.run(self.user.client._is_open), "that the client has read the close frame")
        self._leaving, self._far = self._peer, None

    def step_closed(self) -> None:
        self.step_nothing()
        assert self._leaving is not None, "no socket is closing"
        self._leaving.end_close()

    def step_drops(self) -> None:
        assert self._peer.expect_close() == 1000
        self._peer.ended.set()
        self._far = None

    def step_cut(self) -> None:
        self.step_nothing()
        self._peer.cut()
        self._far = None

    def step_pass(self, seconds: float) -> None:
        while seconds > 0:
            self.step_nothing()
            self._backend.pass_time(min(seconds, STEP))
            seconds -= STEP

    def step_pinged(self) -> None:
        assert self._peer.pings > 0

    def step_token(self, token: str | None) -> None:
        self._token = token

    def step_asked(self, expected: list[bool]) -> None:
        wait_until(lambda: len(self._asked) >= len(expected), lambda: f"{expected}, there is {self._asked}")
        asked, self._asked = self._asked, []
        assert asked == expected

    def step_connect(self) -> None:
        self._start("connect")

    def step_closes(self) -> None:
        self.step_nothing()
        self._start("close")
        if self._far is not None:
            self._far.ended.set()
            self._far = None

    def step_emit(self, arguments: Json, expected: bool | str) -> None:
        self.step_nothing()
        given = {**arguments}
        try:
            result = self.user.run("emit", given.pop("type"), given.pop("payload", None), **given)
        except (Closed, QueueFull, ValueError) as error:
            result = _code(error)
        assert result == expected

    def step_call(self, name: str, method: str, arguments: Json) -> None:
        self.step_nothing()
        given = {**arguments}
        positional = [given.pop(key) for key in ("type", "payload") if key in given]
        if given.pop("progress", False):
            given["on_progress"] = lambda part: self._heard.put({"type": "part", "what": [part.payload, part.number]})
        if method in {"history", "join", "leave"}:
            positional.append(given.pop("room"))

        def call() -> Any:
            self._promises[name] = getattr(self.user.client, method)(*positional, **given)
            return self._promises[name]

        self._calls[name] = self._backend.start(call)
        self._backend.run(lambda: None)

    def step_cancel(self, name: str) -> None:
        self.step_nothing()
        self._backend.run(lambda: bool(self._promises.pop(name).cancel()))
        called = self._calls.pop(name)
        try:
            error = called.exception(10.0)
        except CancelledError as cancelled:
            error = cancelled
        assert type(error).__name__ == "CancelledError"

    def step_done(self, name: str, expected: Json) -> None:
        try:
            outcome = {"ok": _plain(self._calls.pop(name).result(10.0))}
        except (Refused, Closed, QueueFull, ValueError) as error:
            outcome = {"error": _code(error)}
        assert outcome == expected

    def step_snapshot(self, room: str | None) -> None:
        fetch = partial(self._fetch, room)
        self._no_snapshot[room] = self.user.run(*(("user_snapshot",) if room is None else ("snapshot", room)), fetch)

    def step_no_snapshot(self, room: str | None) -> None:
        self.step_nothing()
        self._backend.run(self._no_snapshot[room])

    def step_presence(self, room: str) -> None:
        def hear(present: Presence) -> None:
            what = {"users": present.users, "count": present.count, "joined": present.joined, "left": present.left}
            self._heard.put({"type": "presence", "what": what})

        self._no_presence[room] = self.user.run("presence", room, hear)

    def step_no_presence(self, room: str) -> None:
        self.step_nothing()
        self._backend.run(self._no_presence[room])

    def step_fetched(self, room: str | None, outcome: Json) -> None:
        self.step_nothing()
        first = next(each for each in self._fetching if each[0] == room)
        self._fetching.remove(first)
        if "ok" in outcome:
            first[1].set_result(outcome["ok"])
        else:
            first[1].set_exception(OSError(outcome["error"]))

    def step_room_state(self, room: str | None, types: list[str]) -> None:
        def made() -> RoomState[list[Any]]:
            def added(state: list[Any], payload: Any) -> list[Any]:
                return [*state, payload]

            client, how = self.user.client, (partial(self._fetch, room), dict.fromkeys(types, added))
            state = client.user_state(*how) if room is None else client.room_state(room, *how)
            state.subscribe(lambda value: self._heard.put({"type": "room_state", "what": value}))
            return state

        self._room_states[room] = self._backend.run(made)

    def step_state_error(self, room: str | None, code: str) -> None:
        error = wait_until(lambda: self._room_states[room].error, f"an error of the state of {room}")
        assert isinstance(error, Refused)
        assert error.code == code

    def step_state(self, expected: Json) -> None:
        change: Change = self.user.changes.get(timeout=10.0)
        heard = {"state": change.state.value, "wait": change.wait, "code": change.code}
        assert {key: heard[key] for key in expected} == expected

    def step_hear(self, name: str, expected: Any) -> None:
        heard = self._heard.get(timeout=10.0)
        what = heard["what"]
        if isinstance(expected, dict) and isinstance(what, dict):
            what = {key: what.get(key) for key in expected}
        assert (heard["type"], what) == (name, expected)


def _code(error: Exception) -> str:
    match error:
        case Refused():
            return error.code
        case Closed():
            return "CLOSED"
        case QueueFull():
            return "QUEUE_FULL"
    return "WRONG_NAME"


def _plain(result: Any) -> Any:
    if not isinstance(result, HistoryPage):
        return result
    messages = [[each.offset, each.payload] for each in result.messages]
    return {"messages": messages, "before": None if result.before is None else msgspec.to_builtins(result.before)}


def _without_null(value: Any) -> Any:
    """Left out, a member is ``null``."""
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return value

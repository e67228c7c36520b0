"""What clients missed, and how they come to know: the examples of the documentation, against real gateways."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from kraftek.client import Recovered
from kraftek.contract.history import APPEND, TELL
from tests.client.backends import BACKENDS, User
from tests.docs.pages import code
from tests.integration.conftest import Starter
from tests.integration.test_kraftek_js import Node
from tests.support.forwarder import Forwarder
from tests.support.waiting import wait_until

Json = dict[str, Any]

SAID = "chat:message:sent"
KEPT = 50
CONFIG = {"rooms": {"kept-*": {"history": KEPT}}}
SERVICES = {"chat": {"channel": "events:chat", "reply": True}}


class Chat:
    """Two gateways of one Redis, and a service that lists what was said, in ``room``, of which a history is kept, and
    in ``r2``. A client comes by way of ``road``.
    """

    def __init__(self, start: Starter, stage: ExitStack) -> None:
        self.redis = start.redis()
        self.gateways = [start.gateway(self.redis, services=SERVICES, config=CONFIG) for _ in range(2)]
        self.road = Forwarder(self.gateways[0].port)
        stage.callback(self.road.close)
        self.service = start.service(self.redis, "events:chat", self._list)
        self.said: dict[str, Json] = {}
        self.lists = self._tests = 0
        self._client = self.redis.client()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.road.port}/"

    def _list(self, event: Json) -> Json:
        self.lists += 1
        reply = {"type": event["eventType"], "inReplyTo": event["id"], "recipients": [event["socketId"]]}
        return {**reply, "payload": self.said}

    def say(self, *ids: int, room: str = "") -> None:
        """As a service does: it is listed before anybody is told."""
        for each in ids:
            message = self.said[str(each)] = {"id": each}
            self._tell(room or self.room, {"type": "chat:message:sent", "payload": message})

    def _tell(self, room: str, message: Json) -> int:
        told = self._client.eval(TELL.source, 0, room, json.dumps(message), "", "", "events:broadcast")
        assert isinstance(told, list)
        return int(told[1])

    def append(self, *pieces: str, flags: str = "") -> None:
        for piece in pieces:
            args = self.room, "bot:text:said", "answer", piece, flags, "", "", "events:broadcast"
            self._client.eval(APPEND.source, 0, *args)

    @property
    def room(self) -> str:
        return f"kept-{self._tests}"

    def reset(self) -> None:
        """For the next test: Redis may have lost what the gateways have told it of rooms, and soon has it again."""
        self.road.target = self.gateways[0].port
        self.said, self.lists = {}, 0
        self._tests += 1
        wait_until(lambda: self._tell("kept-another", {"type": "a:b:c"}) > 0, "that a history is kept")


class Follower(ABC):
    """A client that runs the documentation's example, and notes what it hears and shows."""

    @abstractmethod
    def noted(self) -> Json:
        """``heard``: ids; ``recovered``: whether, and why not, each time; ``shown``: ids, in their order."""

    def expect(self, **expected: Any) -> None:
        """Soon this is what it noted."""
        wait_until(
            lambda: {key: value for key, value in self.noted().items() if key in expected} == expected,
            lambda: f"{expected}, there is {self.noted()}",
            30.0,
        )


class Followed(NamedTuple):
    """What a client follows: a room, or its user, who is in a room as well. ``example``: the documentation's, for both
    libraries; ``state``: what that calls the state for Python.
    """

    room: str | None
    example: tuple[str, str] = ("kraftek-js-state", "client-state")
    said: str = SAID
    state: str = "messages"
    token: str = "ada"

    def code(self, library: int) -> str:
        text = code(self.example[library])
        return text if self.room is None else text.replace('"r1"', f'"{self.room}"')


class JavaScript(Follower):
    def __init__(self, url: str, followed: Followed, stage: ExitStack) -> None:
        self._node = Node()
        stage.callback(self._node.close)
        first = 'roomId: "lobby", ' if followed.room is None else ""
        options = f'token: () => "{followed.token}", {first}base: 50, cap: 200'
        self._node.evaluate(
            f"""(() => {{
                const gateway = kraftek.connect("{url}", {{ {options} }});
                const heard = [], recovered = [];
                let shown = [];
                globalThis.noted = () => ({{ heard, recovered, shown }});
                gateway.on("{followed.said}", ({{ id }}) => heard.push(id));
                gateway.on("recovered", ({{ roomId, recovered: all, reason }}) => {{
                    if (roomId === {json.dumps(followed.room)}) recovered.push([all, reason ?? null]);
                }});
                const show = (all) => (shown = all.map(({{ id }}) => id));
                {followed.code(0)}
            }})()"""
        )

    def noted(self) -> Json:
        noted = self._node.evaluate("noted()")
        assert isinstance(noted, dict)
        return noted


class Python(Follower):
    def __init__(self, backend: str, url: str, followed: Followed, stage: ExitStack) -> None:
        thread = BACKENDS[backend]()
        stage.callback(thread.stop)
        options = {"room": followed.room or "lobby", "random": lambda: 0.05}
        user = User(thread, url, lambda _: followed.token, options)
        stage.callback(user.run, "close")
        self._thread, client = thread, user.client
        self._heard: list[int] = []
        self._recovered: list[Any] = []
        names: Json = {"client": client, "print": lambda *_: None}

        def note(told: Recovered) -> None:
            if told.room_id == followed.room:
                self._recovered.append([told.recovered, told.reason])

        def follow() -> None:
            client.on(followed.said, lambda message: self._heard.append(message.payload["id"]))
            client.on("recovered", note)
            client.connect()
            exec(followed.code(1), names)

        thread.run(follow)
        self._state = names[followed.state]

    def noted(self) -> Json:
        def noted() -> Json:
            shown = [message["id"] for message in (self._state.value or {}).values()]
            return {"heard": [*self._heard], "recovered": [*self._recovered], "shown": shown}

        found = self._thread.run(noted)
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    with ExitStack() as stage:
        yield Chat(Starter(stage, tmp_path_factory), stage)


@pytest.fixture
def chat(of_module: Chat) -> Chat:
    of_module.reset()
    return of_module


def follower_of(library: str, url: str, followed: Followed, stage: ExitStack) -> Follower:
    """A client with that library."""
    return JavaScript(url, followed, stage) if library == "javascript" else Python(library, url, followed, stage)


def follow(library: str, chat: Chat, room: str, stage: ExitStack) -> Follower:
    """A client that is in the room, and shows what was said there."""
    follower = follower_of(library, chat.url, Followed(room), stage)
    follower.expect(shown=[*map(int, chat.said)], recovered=[])
    assert chat.lists == 1
    return follower


def test_nobody_misses_anything_in_a_room_with_history(library: str, chat: Chat, stage: ExitStack) -> None:
    """When its socket is cut, and when it comes to another gateway: it hears all, in order, and asks nobody."""
    chat.say(1, 2)
    follower = follow(library, chat, chat.room, stage)
    chat.say(3, 4)
    follower.expect(heard=[3, 4])
    for turn in range(1, 4):
        chat.road.refuse()
        chat.say(*range(10 * turn, 10 * turn + 9))
        chat.road.target = chat.gateways[turn % 2].port
        chat.road.admit()
        chat.say(10 * turn + 9)
        follower.expect(recovered=[[True, None]] * turn)
    everything = [3, 4, *range(10, 40)]
    follower.expect(heard=everything, shown=[1, 2, *everything])
    assert chat.lists == 1


def test_what_cannot_be_recovered_is_fetched_once(library: str, chat: Chat, stage: ExitStack) -> None:
    """When more was missed than is kept, and when Redis has lost everything."""
    chat.say(1)
    follower = follow(library, chat, chat.room, stage)
    chat.road.refuse()
    chat.say(*range(100, 100 + KEPT + 1))
    chat.road.admit()
    follower.expect(recovered=[[False, "too_many"]], shown=[1, *range(100, 100 + KEPT + 1)])
    assert (chat.lists, follower.noted()["heard"]) == (2, [])
    chat.say(200)
    follower.expect(heard=[200])

    chat.road.refuse()
    chat.say(201)
    chat.redis.client().flushall()
    chat.road.admit()
    wait_until(lambda: chat.lists > 2, lambda: f"a third list, there is {follower.noted()}", 30.0)
    follower.expect(shown=[*map(int, chat.said)])
    chat.say(202)
    follower.expect(shown=[*map(int, chat.said)])
    expect_lost(follower, chat)


def test_redis_loses_everything_under_an_open_connection(library: str, chat: Chat, stage: ExitStack) -> None:
    chat.say(1)
    follower = follow(library, chat, chat.room, stage)
    chat.redis.client().flushall()
    chat.say(2)
    wait_until(lambda: chat.lists > 1, lambda: f"a second list, there is {follower.noted()}", 30.0)
    follower.expect(shown=[1, 2])
    chat.say(3)
    follower.expect(shown=[1, 2, 3])
    expect_lost(follower, chat)


def expect_lost(follower: Follower, chat: Chat) -> None:
    """Each list but the first is for a loss that was told; a gateway that cannot know yet tells of it twice."""
    recovered = follower.noted()["recovered"]
    assert not any(all_of_it for all_of_it, _ in recovered), recovered
    assert {reason for _, reason in recovered} <= {"too_many", "epoch", "unavailable"}
    assert chat.lists <= 1 + len(recovered)


def test_without_a_history_the_state_is_fetched_at_each_entry(library: str, chat: Chat, stage: ExitStack) -> None:
    chat.say(1, room="r2")
    follower = follow(library, chat, "r2", stage)
    chat.say(2, room="r2")
    follower.expect(heard=[2])
    chat.road.refuse()
    chat.say(3, room="r2")
    chat.road.admit()
    follower.expect(recovered=[[False, None]], shown=[1, 2, 3], heard=[2])
    assert chat.lists == 2


def test_who_comes_late_begins_with_the_last_messages_and_goes_back(library: str, chat: Chat, stage: ExitStack) -> None:
    """It joins, hears the last 50 once and before what is new, and reads back page by page, over either gateway."""
    chat.say(*range(1, KEPT + 11))
    late = follow_late(library, chat, stage)
    chat.say(1000)
    everything = [*range(11, KEPT + 11), 1000]
    wait_until(lambda: late.heard() == everything, lambda: f"{everything}, it heard {late.heard()}", 30.0)
    chat.road.target = chat.gateways[1].port
    chat.road.cut()
    pages = late.go_back()
    assert [each for page in reversed(pages) for each in page] == everything[1:]
    assert all(len(page) <= 20 for page in pages)
    wait_until(lambda: late.recovered() == [True], lambda: f"that it is back, it is {late.recovered()}", 30.0)


def test_a_text_that_comes_in_pieces_is_whole(library: str, chat: Chat, stage: ExitStack) -> None:
    """Also after a reconnect, to the other gateway, and for who came late."""
    chat.append("Once ", flags="first")
    chat.append("upon ")
    late = follow_late(library, chat, stage, pages=False)
    wait_until(lambda: late.texts() == {"answer": "Once upon "}, lambda: f"the beginning, it has {late.texts()}", 30.0)
    chat.append("a time ")
    wait_until(lambda: late.texts() == {"answer": "Once upon a time "}, lambda: f"more, it has {late.texts()}", 30.0)
    chat.road.refuse()
    chat.append("there was ", "a gateway")
    chat.road.target = chat.gateways[1].port
    chat.road.admit()
    chat.append(".", flags="last")
    whole = "Once upon a time there was a gateway."
    wait_until(lambda: late.texts() == {"answer": whole}, lambda: f"all of it, it has {late.texts()}", 30.0)


class Late(ABC):
    """A client that comes late, by the documentation's example."""

    @abstractmethod
    def heard(self) -> list[int]: ...

    @abstractmethod
    def recovered(self) -> list[bool]: ...

    @abstractmethod
    def texts(self) -> dict[str, str]: ...

    @abstractmethod
    def go_back(self) -> list[list[int]]:
        """The ids of each page, the newest first."""


class LateJavaScript(Late):
    def __init__(self, url: str, room: str, stage: ExitStack, *, pages: bool) -> None:
        self._node = Node()
        stage.callback(self._node.close)
        example = code("kraftek-js-history").replace('"r1"', f'"{room}"')
        two_pages = 'if (messages.length !== 20 || older.messages.length !== 20) throw new Error("not two pages");'
        self._node.evaluate(
            f"""(async () => {{
                const gateway = kraftek.connect("{url}", {{ token: () => "bob", roomId: "r2", base: 50, cap: 200 }});
                const heard = [], recovered = [];
                globalThis.gateway = gateway;
                globalThis.heard = () => heard;
                globalThis.recovered = () => recovered;
                gateway.on("chat:message:sent", ({{ id }}) => heard.push(id));
                gateway.on("recovered", (told) => told.roomId === "{room}" && recovered.push(told.recovered));
                {code("kraftek-js-texts")}
                globalThis.texts = () => texts;
                {example}
                {two_pages if pages else ""}
                globalThis.goBack = async () => {{
                    const pages = [];
                    for (let before; pages.length === 0 || before; ) {{
                        const page = await gateway.history("{room}", {{ before, limit: 20 }});
                        pages.push(page.messages.map(({{ payload }}) => payload.id));
                        before = page.before;
                    }}
                    return pages;
                }};
            }})()"""
        )

    def heard(self) -> list[int]:
        return list(self._node.evaluate("heard()"))

    def recovered(self) -> list[bool]:
        return list(self._node.evaluate("recovered()"))

    def texts(self) -> dict[str, str]:
        texts: dict[str, str] = self._node.evaluate("texts()")
        return texts

    def go_back(self) -> list[list[int]]:
        return list(self._node.evaluate("goBack()"))


class LatePython(Late):
    def __init__(self, backend: str, url: str, room: str, stage: ExitStack) -> None:
        thread = BACKENDS[backend]()
        stage.callback(thread.stop)
        self._user = User(thread, url, lambda _: "bob", {"room": "r2", "random": lambda: 0.05})
        stage.callback(self._user.run, "close")
        self._room = room
        self._heard: list[int] = []
        self._recovered: list[bool] = []
        client = self._user.client
        client.on("chat:message:sent", lambda message: self._heard.append(message.payload["id"]))
        client.on("recovered", self._note)
        self._user.run("connect")
        names: Json = {"client": client}
        exec(code("client-texts"), names)
        self.names = names
        exec(code("client-history").replace('"r1"', f'"{room}"'), names)
        thread.run(lambda: names["late"](client), 30.0)

    def texts(self) -> dict[str, str]:
        texts: dict[str, str] = self.names["texts"]
        return dict(texts)

    def _note(self, told: Recovered) -> None:
        if told.room_id == self._room:
            self._recovered.append(told.recovered)

    def heard(self) -> list[int]:
        return [*self._heard]

    def recovered(self) -> list[bool]:
        return [*self._recovered]

    def go_back(self) -> list[list[int]]:
        pages: list[list[int]] = []
        before = None
        while not pages or before is not None:
            page = self._user.run("history", self._room, before=before, limit=20)
            pages.append([message.payload["id"] for message in page.messages])
            before = page.before
        return pages


def follow_late(library: str, chat: Chat, stage: ExitStack, *, pages: bool = True) -> Late:
    if library == "javascript":
        return LateJavaScript(chat.url, chat.room, stage, pages=pages)
    return LatePython(library, chat.url, chat.room, stage)

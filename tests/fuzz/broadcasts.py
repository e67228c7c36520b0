"""What services publish for clients: those that it names get it, as it was written, and nobody else gets anything."""

from __future__ import annotations

from typing import Any, TypeVar

from kraftek.contract.errors import CLOSE_CODES, Code
from kraftek.contract.messages import Outgoing
from kraftek.edge.dialects.socketio_client import SocketIODialect
from kraftek.edge.dialects.socketio_packets import SocketSettings
from tests.fuzz.material import NOT_JSON, json_in
from tests.fuzz.watch import Target
from tests.support.fakes import FakeLink
from tests.support.world import Client, House

__all__ = ["TARGET"]

A = TypeVar("A")

_ROOMS = {"1": ("ann", "red"), "2": ("ann", "blue"), "3": ("bob", "red")}
"""The sockets, by what stands for their ids in an input after a ``$``, each with its user and room."""


class _Meant:
    """What a message says, by another reader; raises ``ValueError`` where that is not certain."""

    def __init__(self, body: bytes) -> None:
        value = json_in(body)
        if not isinstance(value, dict) or b"\\ud" in body.lower():
            raise ValueError
        self.type = _a(str, value.get("type"))
        self.payload = value.get("payload")
        self.recipients = _some(value.get("recipients"))
        self.users = _some(value.get("userIds"))
        self.excluded = _some(value.get("excludeSocketIds"))
        room = value.get("roomId")
        self.room = None if room is None else _a(str, room)
        self.everybody = _a(bool, value.get("everybody", False))
        answers = value.get("inReplyTo")
        self.answers = None if answers is None else answers if type(answers) is int else _a(str, answers)
        if self.room in (None, "") and isinstance(self.payload, dict) and not (self.recipients or self.users):
            room = self.payload.get("roomId")
            self.room = room if isinstance(room, str) else None


def _a(kind: type[A], value: object) -> A:
    if type(value) is not kind:
        raise ValueError
    return value


def _some(values: object) -> list[str]:
    if values is None:
        return []
    if not isinstance(values, list):
        raise ValueError  # noqa: TRY004  # as all that is malformed
    return [_a(str, each) for each in values]


class _Scene:
    """A gateway with some clients, one of which waits for an answer."""

    def __init__(self) -> None:
        self.house = House(single=False)
        self.clients = {name: self.house.admit(user, room) for name, (user, room) in _ROOMS.items()}
        self.asker = self.clients["1"]
        self.asker.send({"type": "chat:note:ask", "id": 7})
        self.house.bus.answer(1)
        self.other = self.house.connect(dialect=SocketIODialect(_Unheard(), SocketSettings()))
        for client in self.clients.values():
            client.link.read()

    def addressed(self, meant: _Meant) -> set[str]:
        """The sockets that it names or whose room it is for."""
        by_name = {self.clients[name].id: name for name in _ROOMS}
        if meant.recipients or meant.users:
            named = {by_name[socket] for socket in meant.recipients if socket in by_name}
            named |= {name for name, (user, _) in _ROOMS.items() if user in meant.users}
        elif meant.everybody:
            named = {*_ROOMS}
        else:
            named = {name for name, (_, room) in _ROOMS.items() if room == meant.room}
        return named - {by_name.get(socket, "") for socket in meant.excluded}

    def check_told(self, meant: _Meant, told: dict[str, list[Any]]) -> None:
        """Each was told what it should be told."""
        if meant.answers is not None and (meant.recipients or meant.users):
            expected = {"1"} if meant.answers == 7 and self.asker.id in meant.recipients else set()
        else:
            expected = self.addressed(meant)
        assert {name for name, messages in told.items() if messages} == expected
        for messages in told.values():
            for message in messages:
                assert (message["type"], message.get("payload")) == (meant.type, meant.payload)

    def check_closed(self, meant: _Meant) -> None:
        """Those that a service puts out are out, however wrong its reason is; one that names nobody is for nobody."""
        named = self.addressed(meant) if meant.recipients or meant.users else set()
        if meant.excluded:
            return  # which nobody promises for a disconnect
        for name, client in self.clients.items():
            out = name in named and meant.room in (None, _ROOMS[name][1])
            assert (client.link.closed is not None) == out, name
            if client.link.closed is not None:
                code, reason = client.link.closed
                assert code in (*CLOSE_CODES.values(), 4403)
                assert len(reason.encode()) <= 123


class _Unheard(FakeLink):
    """The link of a client that is in no room."""

    def write(self, outgoing: Outgoing) -> None:
        raise AssertionError("it is told something")


def _texts(client: Client) -> list[Any]:
    """What a client was told, which every client can read."""
    texts = [outgoing.text for outgoing in client.link.written]
    client.link.written.clear()
    for text in texts:
        text.decode()
    return [json_in(text) for text in texts]


def _run(data: bytes) -> None:
    scene = _Scene()
    house, counters = scene.house, scene.house.counters
    body = data
    for name, client in scene.clients.items():
        body = body.replace(b"$" + name.encode(), client.id.encode())
    house.deliveries.received(body)
    told = {name: _texts(client) for name, client in scene.clients.items()}
    assert counters.errors_internal == 0
    try:
        meant = _Meant(body)
    except ValueError:
        return
    assert meant.type == "disconnect" or counters.broadcasts + counters.broadcasts_malformed == 1
    if counters.broadcasts_malformed and meant.type != "disconnect":
        raise AssertionError("a good message is taken for malformed")
    if meant.type == "disconnect":
        scene.check_closed(meant)
    else:
        scene.check_told(meant, told)
    assert all(message is not NOT_JSON for messages in told.values() for message in messages)
    # A second answer finds nobody who waits.
    if meant.answers is not None and meant.type != "disconnect" and (meant.recipients or meant.users):
        house.deliveries.received(body)
        assert not any(_texts(client) for client in scene.clients.values())
    assert Code.INTERNAL not in str(told)


_SEEDS = [
    b'{"type":"t","payload":{"x":1,"roomId":"red"}}',
    b'{"type":"t","roomId":"red","payload":[1,2.50],"excludeSocketIds":["$1"]}',
    b'{"type":"t","recipients":["$1","$2","gw.nobody"]}',
    b'{"type":"t","recipients":["$1"],"payload":"one"}',
    b'{"type":"t","userIds":["ann","nobody"],"recipients":["$3"],"excludeSocketIds":["$2"]}',
    b'{"type":"answer","inReplyTo":7,"recipients":["$1"],"payload":{"ok":true}}',
    b'{"type":"answer","inReplyTo":"7","recipients":["$1"],"userIds":["ann"]}',
    b'{"type":"answer","inReplyTo":7,"payload":{"roomId":"blue"}}',
    b'{"type":"t","everybody":true,"roomId":"red","excludeSocketIds":["$1"]}',
    b'{"type":"disconnect","recipients":["$1"],"payload":{"code":"BANNED","message":"bye"}}',
    b'{"type":"disconnect","userIds":["ann"],"roomId":"red","payload":{"code":null,"message":5}}',
    b'{"type":"disconnect","recipients":["$2"],"payload":{"code":"DUPLICATE_CONNECTION"}}',
    b'{"type":"disconnect","roomId":"red"}',
    b'{"type":"disconnect","recipients":["$3"],"payload":[1]}',
    b'{"type":"t","payload":{"roomId":7}}',
    b'{"type":"t","payload":"\\ud83d","roomId":"red"}',
    b'{"type":"t","payload":1,"roomId":"\\ud83d"}',
    b'{"type":"t","payload":"\xff","roomId":"red"}',
    b'{"type":"t","recipients":[],"roomId":"","payload":{"roomId":"red"}}',
    b'{"type":"t","recipients":null,"userIds":null,"roomId":null,"inReplyTo":null}',
    b'{"type":"t","payload":' + 300 * b"[" + 300 * b"]" + b',"roomId":"red"}',
    b'{"type":5}',
    b"[]",
]

TARGET = Target("broadcasts", _run, _SEEDS, calls=(10_000, 100), memory=(1_000_000, 1_000))

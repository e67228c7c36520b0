"""Who is in the rooms of one simulated client, as it is told: what it knows is compared with the truth at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.people import Client
    from tests.simulation.world import World

__all__ = ["Watching", "look_at_presence"]


class Watching:
    """``known``: of each room that the client is in, its users and what each shows, once it was told. ``shows``: what
    the client shows itself, in all rooms.
    """

    def __init__(self, client: Client) -> None:
        self.shows = next(client.world.numbers)
        self.known: dict[str, dict[str, Any]] = {}
        self._client = client
        self._asked: dict[str, str] = {}

    @property
    def data(self) -> dict[str, Any]:
        """What is sent with a room to enter."""
        return {"data": self.shows} if self._client.world.setup.presence else {}

    def entered(self, room: str) -> None:
        """The client is in the room: it asks who is there, unless it has asked."""
        presence = self._client.gateway.core.presence
        if presence.shown.most(room) and room not in self.known and room not in self._asked.values():
            number = f"p{next(self._client.world.numbers)}"
            self._asked[number] = room
            self._client.send({"type": "presence", "payload": {"roomId": room}, "id": number})

    def left(self, room: str) -> None:
        """It is not any more."""
        self.known.pop(room, None)

    def told(self, message: Any) -> bool:
        """Whether this is about who is in a room. What cannot be said at present is asked again."""
        number, payload = message.get("id"), message.get("payload")
        asked = self._asked.pop(number, None) if number is not None else None
        if message["type"] == "presence":
            self._learn(payload, asked is not None)
            return True
        if asked is not None and asked in self._client.grants:
            world = self._client.world
            world.time.later(self._client.gateway.process, 1.0, self._again, asked)
        return asked is not None

    def _again(self, room: str) -> None:
        if self._client.open and room in self._client.grants:
            self.entered(room)

    def _learn(self, payload: Any, answers: bool) -> None:
        room = payload["roomId"]
        if room not in self._client.grants or (room not in self.known and not answers):
            return
        users = self.known.setdefault(room, {})
        if "users" in payload:
            users.clear()
        for user in (*payload.get("users", ()), *payload.get("joined", ())):
            users[user["userId"]] = user.get("data")
        for user_id in payload.get("left", ()):
            if users.pop(user_id, self) is self:
                self._client.world.invariants.wrong(f"{self._client}: {user_id} left {room}, where it was not")


def look_at_presence(world: World, there: dict[tuple[str, str], str]) -> None:
    """``there``: user and room to socket, as Redis has them. Each client knows that."""
    shown = {client.socket_id: client.presence.shows for client in world.clients}
    for client in world.clients:
        if not (world.setup.presence and client.open and client.gateway.lives):
            continue
        for room in client.grants:
            if client.gateway.core.presence.shown.most(room):
                truth = {user: shown.get(socket) for (user, its_room), socket in there.items() if its_room == room}
                if client.presence.known.get(room) != truth:
                    known = client.presence.known.get(room)
                    world.invariants.wrong(f"{client} knows {known} in {room}, and there are {truth}")

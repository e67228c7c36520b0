"""A gateway with histories, and what the tests of rooms and of users that have one share."""

from __future__ import annotations

from typing import Any

from kraftek.contract.names import topic_channel
from kraftek.contract.settings import RoomPolicy
from tests.support.world import Client, House

BOARDS = (RoomPolicy(pattern="board-*", history=100),)
ROOM = "board-1"


class Histories(House):
    """A gateway whose rooms ``board-…`` have a history. ``type`` is what services tell."""

    type = "notes:note:said"

    def __init__(self, **more: Any) -> None:
        super().__init__(**{"history": BOARDS, **more})

    def tell_topic(self, topic: str, text: str, *, heard: bool = True, **more: Any) -> bytes:
        """A service tells it something; ``heard``: it gets here."""
        told = self.logs.tell(topic, type=self.type, payload=text, **more)
        if heard:
            self.hear_topic(topic, told)
        return told

    def hear_topic(self, topic: str, told: bytes) -> None:
        """Redis has published this."""
        for listener in self.bus._channels.get(topic_channel(topic), ()):
            listener(told)

    def let_in(self, user_id: str, grant: dict[str, Any], **payload: Any) -> Client:
        """A client authenticates with what of this is not ``None``, and may come in."""
        client = self.connect()
        given = {key: value for key, value in payload.items() if value is not None}
        client.send({"type": "authenticate", "payload": {"token": user_id, **given}})
        self.access.next().yes(user_id, **grant)
        return client


def since(offset: int, epoch: str = "e1", **more: Any) -> dict[str, Any]:
    """A place in a history."""
    return {"epoch": epoch, "offset": offset, **more}


def standing(payload: dict[str, Any]) -> dict[str, Any]:
    """What of this says where its client stands in a room."""
    return {key: payload[key] for key in ("epoch", "offset", "recovered", "reason") if key in payload}

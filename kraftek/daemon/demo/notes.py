"""Sticky notes: the service behind the demo's board, and an example of what a service author writes.

A program of its own, for the Redis of REDIS_URL and REDIS_PREFIX. It ends when its standard input is closed.

Every change is broadcast to the whole room, including its sender, as the stored note: every page shows what the service
has. Events are handled one after the other, so when two people move a note the later one wins.
"""

import logging
import os
import secrets
import signal
import threading
from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct, json, structs

from kraftek.service import Context, EventProcessor, Refused

try:
    from kraftek.service.asyncio import run
except ModuleNotFoundError:  # there is no redis-py, and Twisted is there with the gateway
    from kraftek.service.twisted import run

NOTES_LIMIT = 200  # of a room
LIFETIME = 7 * 24 * 3600  # seconds from the last change of a room until its notes expire
X = Annotated[float, Meta(ge=0, le=1600)]  # in the board's own units: where the top left corner may be
Y = Annotated[float, Meta(ge=0, le=800)]
Text = Annotated[str, Meta(max_length=500)]
Colour = Literal["yellow", "orange", "pink", "violet", "blue", "green"]


class New(Struct):
    x: X
    y: Y
    text: Text
    colour: Colour


class Note(New):
    id: str
    by: str = ""
    at: int = 0


class Which(Struct):
    id: str


class Move(Which):
    x: X
    y: Y


class Edit(Which):
    text: Text


class Recolour(Which):
    colour: Colour


notes = EventProcessor("stickyNotes", prefix=os.environ.get("REDIS_PREFIX", ""), concurrency=1)


@notes.on("board:open")
async def open_board(context: Context, _: dict[str, Any]) -> None:
    stored = [Raw(note) for note in await context.redis("HVALS", key(context))]
    payload = {"roomId": context.room_id, "notes": stored}
    context.broadcast_to_sockets("stickyNotes:board:opened", payload, [context.socket_id])


@notes.on("note:create")
async def create(context: Context, new: New) -> None:
    if await context.redis("HLEN", key(context)) < NOTES_LIMIT:
        change(context, "created", Note(id=secrets.token_hex(8), **structs.asdict(new)))
    else:
        refuse(context, f"the board is full: it takes {NOTES_LIMIT} notes")


@notes.on("note:move")
async def move(context: Context, wanted: Move) -> None:
    await alter(context, "moved", wanted)


@notes.on("note:edit")
async def edit(context: Context, wanted: Edit) -> None:
    await alter(context, "edited", wanted)


@notes.on("note:recolour")
async def recolour(context: Context, wanted: Recolour) -> None:
    await alter(context, "recoloured", wanted)


@notes.on("note:delete")
async def delete(context: Context, wanted: Which) -> None:
    await alter(context, "deleted", wanted)


async def alter(context: Context, done: str, wanted: Which) -> None:
    """Find the note and change the parts that are given."""
    if stored := await context.redis("HGET", key(context), wanted.id):
        change(context, done, structs.replace(json.decode(stored, type=Note), **structs.asdict(wanted)))
    else:
        refuse(context, "there is no such note any more")


def change(context: Context, done: str, note: Note) -> None:
    """Store the note and broadcast it to the room: both or neither."""
    note.by, note.at = context.user_id, context.timestamp
    if done == "deleted":
        context.also("HDEL", key(context), note.id)
    else:
        context.also("HSET", key(context), note.id, json.encode(note))
    context.also("EXPIRE", key(context), LIFETIME)
    payload = {"roomId": context.room_id, "userId": context.user_id, "note": note}
    context.broadcast_to_room(f"stickyNotes:note:{done}", payload)


def refuse(context: Context, why: str) -> None:
    """Tell the sender why the change is not possible. Malformed events are refused before they get here."""
    payload = {"eventType": context.event_type, "message": why}
    context.broadcast_to_sockets("stickyNotes:note:refused", payload, [context.socket_id])


def key(context: Context) -> str:
    """The key of the room's notes: a hash from the note's id to the note as JSON."""
    if context.room_id is None:
        raise Refused("NOT_IN_A_ROOM", "the notes are in rooms")
    return f"{notes.prefix}notes:{context.room_id}"


def end_with_input() -> None:
    """Stop the program when its standard input is closed: the gateway, at the other end, has ended then."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    threading.Thread(target=end_with_input, daemon=True).start()
    run(notes)

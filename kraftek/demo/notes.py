"""Sticky notes: the service behind the demo's board, and an example of what a service author writes.

A program of its own, which knows Redis and nothing of the gateway. It ends when its standard input does.

Every change is told to the whole room, its sender included, as the note that is now kept: everybody shows
what the service holds. It takes one event after the other, so of two people who move a note the later wins.
"""

import argparse
import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

BROADCAST = "events:broadcast"
WIDTH, HEIGHT = 1600, 800  # of the board, in its own units: where the top left corner of a note may be
COLOURS = ("yellow", "orange", "pink", "violet", "blue", "green")
TEXT_LIMIT, NOTES_LIMIT = 500, 200  # characters of a note, notes of a room
KEPT = 7 * 24 * 3600  # seconds that the notes of a room outlive its last change

Fields = dict[str, Any]

# What clients say about a note: when it is good, and what to call for when it is not. type(), because True
# is an int to isinstance(); the comparisons turn NaN away, which Python's JSON knows and nobody else's does.
PARTS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "x": (lambda x: type(x) in {int, float} and 0 <= x <= WIDTH, f"a number from 0 to {WIDTH}"),
    "y": (lambda y: type(y) in {int, float} and 0 <= y <= HEIGHT, f"a number from 0 to {HEIGHT}"),
    "text": (lambda t: isinstance(t, str) and len(t) <= TEXT_LIMIT, f"at most {TEXT_LIMIT} characters"),
    "colour": (lambda colour: colour in COLOURS, f"one of {', '.join(COLOURS)}"),
}


class RefusedError(Exception):
    """A mistake of the sender, in words for the sender."""


def parts(event: Fields, *names: str) -> Fields:
    """Those parts of a note that the event's payload sets, all of them good."""
    for name in names:
        good, wanted = PARTS[name]
        if not good(event["payload"].get(name)):
            raise RefusedError(f"{name} must be {wanted}")
    return {name: event["payload"][name] for name in names}


class StickyNotes:
    """The notes of every room, in the Redis hash ``notes:<room>``: from the note's id to the note as JSON."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    def run(self, channel: str) -> None:
        """Take one event after the other, until Redis goes away."""
        with self.redis.pubsub(ignore_subscribe_messages=True) as subscription:
            subscription.subscribe(channel)
            for message in subscription.listen():
                try:
                    event = json.loads(message["data"])
                    try:
                        self.received(event)
                    except RefusedError as mistake:
                        self.answer(event, "note:refused", eventType=event["eventType"], message=str(mistake))
                except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
                    logging.warning("Left out what is no event: %r", error)

    def received(self, event: Fields) -> None:
        """Do what the event asks for, or refuse it. Who sent it is the gateway's word, so it is true."""
        room, name = event.get("roomId"), event["eventType"]
        if room is None or not isinstance(event.get("payload"), dict):
            raise RefusedError("the sender must be in a room, the payload must be an object")
        if name == "stickyNotes:board:open":
            notes = [json.loads(note) for note in self.redis.hgetall(f"notes:{room}").values()]
            self.answer(event, "board:opened", roomId=room, notes=notes)
        elif name == "stickyNotes:note:create":
            if self.redis.hlen(f"notes:{room}") >= NOTES_LIMIT:
                raise RefusedError(f"the board is full: it takes {NOTES_LIMIT} notes")
            new = {"id": secrets.token_hex(8)}
            self.change(event, "created", new | parts(event, "x", "y", "text", "colour"))
        elif name == "stickyNotes:note:move":
            self.change(event, "moved", self.find(event) | parts(event, "x", "y"))
        elif name == "stickyNotes:note:edit":
            self.change(event, "edited", self.find(event) | parts(event, "text"))
        elif name == "stickyNotes:note:recolour":
            self.change(event, "recoloured", self.find(event) | parts(event, "colour"))
        elif name == "stickyNotes:note:delete":
            self.change(event, "deleted", self.find(event))
        else:
            raise RefusedError("the notes know no such event")

    def find(self, event: Fields) -> Fields:
        """The note that the event is about."""
        note = self.redis.hget(f"notes:{event['roomId']}", str(event["payload"].get("id")))
        if note is None:
            raise RefusedError("there is no such note any more")
        return dict(json.loads(note))

    def change(self, event: Fields, change: str, note: Fields) -> None:
        """Keep the note and tell the room: both or neither."""
        note |= {"by": event["userId"], "at": event["timestamp"]}
        told = {"roomId": event["roomId"], "userId": event["userId"], "note": note}
        key, batch = f"notes:{event['roomId']}", self.redis.pipeline()
        batch.hdel(key, note["id"]) if change == "deleted" else batch.hset(key, note["id"], json.dumps(note))
        batch.expire(key, KEPT)
        batch.publish(BROADCAST, json.dumps({"type": f"stickyNotes:note:{change}", "payload": told}))
        batch.execute()

    def answer(self, event: Fields, name: str, **payload: object) -> None:
        """Tell the sender alone, by way of the one gateway that has the sender."""
        told = {"type": f"stickyNotes:{name}", "recipients": [event["socketId"]], "payload": payload}
        self.redis.publish(event.get("replyTo", BROADCAST), json.dumps(told))


def end_with_input() -> None:
    """End the program with its standard input: whoever holds the other end of the pipe is gone by then."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    """Serve the notes; Redis may come and go."""
    options = argparse.ArgumentParser(prog="python -m kraftek.demo.notes")
    options.add_argument("--redis", required=True, metavar="URL", help="redis://HOST:PORT/0, unix:///PATH")
    options.add_argument("--channel", default="events:stickyNotes", help="of the events (%(default)s)")
    chosen = options.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    threading.Thread(target=end_with_input, daemon=True).start()
    redis = Redis.from_url(chosen.redis, retry=Retry(NoBackoff(), 0))
    while True:
        try:
            StickyNotes(redis).run(chosen.channel)
        except RedisError as error:
            logging.warning("Redis does not serve, trying again in a second: %s", error)
            time.sleep(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()

"""Send a message to clients: to a room, to users, to sockets or to everybody.

It is sent once, and not kept: who is not connected never gets it, unless the room, or the user, has a history. Says how
many gateways took it; with none, and no history, the status is 1. With ``--receipt`` it says instead who has got it, as
JSON.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Raw

from kraftek.daemon.cli.place import configuration, place_options
from kraftek.service.messages import Message, checked
from kraftek.service.twisted import Publisher

__all__ = ["options", "run"]


def options(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("type", metavar="TYPE", help="what clients see as its type, such as news:item:new")
    parser.add_argument(
        "payload", metavar="PAYLOAD", nargs="?", default="null", help="JSON, or - to read it; null unless given"
    )
    whom = parser.add_argument_group("to whom: a room, users and sockets, or everybody")
    whom.add_argument("--room", help="everybody in this room")
    whom.add_argument("--user", action="append", metavar="ID", help="every socket of this user; may be repeated")
    whom.add_argument("--socket", action="append", metavar="ID", help="this socket; may be repeated")
    whom.add_argument("--everybody", action="store_true", help="everybody who has authenticated")
    whom.add_argument("--exclude", action="append", metavar="ID", help="not this socket; may be repeated")
    parser.add_argument(
        "--receipt",
        type=float,
        metavar="SECONDS",
        help="wait so long, at most 30, and print who has acknowledged it, was too slow, or is offline",
    )
    place_options(parser)


async def run(reactor: Any, given: Namespace) -> int:
    """Send it."""
    text = sys.stdin.buffer.read() if given.payload == "-" else given.payload.encode("utf-8", "surrogateescape")
    message = checked(
        Message(
            given.type,
            _json(text),
            room_id=given.room,
            user_ids=given.user and tuple(given.user),
            recipients=given.socket and tuple(given.socket),
            exclude_socket_ids=given.exclude and tuple(given.exclude),
            everybody=given.everybody,
        )
    )
    redis = configuration(given).redis
    publisher = Publisher(reactor, redis.url, ca=redis.ca, prefix=redis.prefix, broadcast=redis.broadcast)
    publisher.startService()
    try:
        if given.receipt is not None:
            print(msgspec.json.encode(await publisher.send_with_receipt(message, given.receipt)).decode())
            return 0
        told = await publisher.send(message)
    finally:
        with suppress(Exception):
            await publisher.stopService()
    if not told:
        print(f"kraftek: no gateway took it: none listens to {redis.prefix}{redis.broadcast}", file=sys.stderr)
        return 1
    kept = f", and kept{_where(message, told.offset)}" if told.offset else ""
    print(f"taken by {told.taken} {'gateway' if told.taken == 1 else 'gateways'}{kept}")
    return 0


def _where(message: Message, offset: int) -> str:
    users = len(message.user_ids or ())
    if users > 1:
        return f" in the histories of {users} users"
    return f" as number {offset} of the {'user' if users else 'room'}'s history"


def _json(text: bytes) -> Raw:
    try:
        text.decode()
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"the payload is no JSON: {error}") from None
    return Raw(text.strip())

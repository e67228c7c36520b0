"""List, show, replay or drop dead letters: events that services on streams could not handle.

A replayed event is appended to its stream again, without its id and replyTo, so that nobody is answered. Its order is
gone: it comes after whatever was sent since.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from msgspec import Raw, Struct

from kraftek.bus import RedisBus
from kraftek.contract.lua import Script, lua
from kraftek.contract.names import GATEWAY_STREAM, dead_letters, stream_of
from kraftek.contract.settings import Config
from kraftek.daemon.cli.place import configuration, connected, place_options

__all__ = ["options", "run"]

PAGE = 100
"""Dead letters that are read at a time: of 64 MiB there are few, and those are large."""

REASON = 120
"""Characters of a reason that a list shows."""

REPLAY = Script(lua(__package__, "fields", "streams", "replay", FULL=-1))


class _Letter(Struct, frozen=True):
    stream: str
    id: str
    fields: dict[str, bytes]

    def text(self, field: str) -> str:
        """A field fit for a terminal."""
        found = self.fields.get(field, b"").decode("utf-8", "backslashreplace")
        return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in found)

    def event(self) -> dict[str, Raw] | None:
        """The event, its payload to the byte; ``None`` if it is none."""
        try:
            return msgspec.json.decode(self.fields.get("event", b""), type=dict[str, Raw])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    @property
    def name(self) -> str:
        """The event's name, as far as it has one."""
        try:
            return msgspec.json.decode((self.event() or {})["eventType"], type=str)
        except (KeyError, msgspec.DecodeError):
            return "no event"


def options(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("what", choices=["list", "show", "replay", "drop"], help="what to do")
    parser.add_argument("ids", metavar="ID", nargs="*", help="the dead letters, by the ids that list shows")
    parser.add_argument("--all", action="store_true", help="all that there are, in place of ids")
    parser.add_argument("--service", metavar="NAME", help="those of this service of the configuration")
    parser.add_argument(
        "--stream", metavar="KEY", help="those of this stream, such as events:orders or events:orders:0"
    )
    parser.add_argument("--most", metavar="N", type=int, default=PAGE, help="list so many of each stream; 100")
    place_options(parser)


async def run(reactor: Any, given: Namespace) -> int:
    """Do it."""
    if given.what == "list":
        if given.ids or given.all or given.most < 1:
            raise ValueError("list takes no ids, and --most of at least 1")
    elif bool(given.ids) == given.all:
        raise ValueError(f"{given.what} takes ids or --all, one of them")
    config = configuration(given)
    streams = _streams(config, given)
    async with connected(reactor, config.redis) as bus:
        if given.what == "list":
            return await _list(bus, streams, given.most)
        do = {"show": _show, "replay": _replay, "drop": _drop}[given.what]
        done = failed = 0
        missing = dict.fromkeys(given.ids)
        async for letter in _letters(bus, streams, given.ids):
            missing.pop(letter.id, None)
            if await do(bus, letter):
                done += 1
            else:
                failed += 1
        if given.what == "replay" and done:
            print(f"replayed {done}; their order is gone: they come after what was sent since")
        elif given.what == "drop":
            print(f"dropped {done}")
        for each in missing:
            print(f"kraftek: {each}: no such dead letter", file=sys.stderr)
        return 1 if failed or missing else 0


def _streams(config: Config, given: Namespace) -> list[str]:
    if given.stream is not None:
        return [given.stream]
    found = []
    for service in config.services:
        if service.transport == "stream" and given.service in (None, service.name):
            parts = [stream_of(service.channel, number) for number in range(service.partitions)]
            found += parts or [service.channel]
    if given.service is None:
        return [*found, GATEWAY_STREAM]
    if not found:
        raise ValueError(f"{given.service}: expected a service on a stream that --config names, or --stream KEY")
    return found


async def _letters(bus: RedisBus, streams: list[str], ids: list[str]) -> AsyncIterator[_Letter]:
    """Those of these ids, or all that there are now."""
    for stream in streams:
        if ids:
            for each in ids:
                for letter in await _read(bus, stream, each, each, 1):
                    yield letter
            continue
        newest = await bus.call("XREVRANGE", [dead_letters(stream)], ["+", "-", "COUNT", 1])
        first = "-"
        while newest:
            page = await _read(bus, stream, first, newest[0][0].decode(), PAGE)
            for letter in page:
                yield letter
            if len(page) < PAGE:
                break
            first = f"({page[-1].id}"


async def _read(bus: RedisBus, stream: str, first: str, last: str, most: int) -> list[_Letter]:
    found = await bus.call("XRANGE", [dead_letters(stream)], [first, last, "COUNT", most])
    return [
        _Letter(stream, each.decode(), dict(zip((name.decode() for name in words[::2]), words[1::2], strict=True)))
        for each, words in found
    ]


async def _list(bus: RedisBus, streams: list[str], most: int) -> int:
    none = True
    for stream in streams:
        for letter in await _read(bus, stream, "-", "+", most):
            none = False
            attempts = f"{letter.text('attempts') or '?'} attempts"
            print(letter.id, stream, letter.name, attempts, letter.text("reason")[:REASON], sep="  ")
        left = await bus.call("XLEN", [dead_letters(stream)]) - most
        if left > 0:
            print(f"{left} more of {stream}")
    if none:
        print("no dead letters")
    return 0


async def _show(_: RedisBus, letter: _Letter) -> bool:
    print(f"dead letter  {letter.id}")
    print(f"stream       {letter.stream}")
    for title, field in (("entry", "id"), ("attempts", "attempts"), ("reason", "reason"), ("event", "event")):
        print(f"{title:11}  {letter.text(field)}")
    return True


async def _replay(bus: RedisBus, letter: _Letter) -> bool:
    event = letter.event()
    if event is None:
        print(f"kraftek: {letter.id}: it is no event, and can only be dropped", file=sys.stderr)
        return False
    body = msgspec.json.encode({name: value for name, value in event.items() if name not in {"id", "replyTo"}})
    return bool(await bus.call(REPLAY, [letter.stream, dead_letters(letter.stream)], [letter.id, body]))


async def _drop(bus: RedisBus, letter: _Letter) -> bool:
    return bool(await bus.call("XDEL", [dead_letters(letter.stream)], [letter.id]))

"""The simulated Redis: a server that speaks RESP2, runs the real scripts, and goes wrong when it is told to.

What it keeps, and the commands on that, are in :mod:`tests.simulation.keyspace`; this module has what is about
connections: publishing, scripts, tracking, roles, and what is refused. ``tests/simulation/test_redis.py`` holds all of
it to the answers of a real redis-server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha1
from heapq import heappush
from random import Random
from typing import Any

import hiredis

from tests.simulation.keyspace import COMMANDS, SYNTAX, Command, Keyspace, Missing, Refusal, Status
from tests.simulation.scripts import Scripts
from tests.simulation.virtual_time import WALL, VirtualTime

__all__ = ["REFUSALS", "Peer", "Server"]

REFUSALS = {
    "READONLY": "READONLY You can't write against a read only replica.",
    "MISCONF": "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk. "
    "Commands that may modify the data set are disabled, because this instance is configured to report errors during "
    "writes if RDB snapshotting fails (stop-writes-on-bgsave-error option). Please check the Redis logs for details "
    "about the RDB error.",
    "NOREPLICAS": "NOREPLICAS Not enough good replicas to write.",
    "OOM": "OOM command not allowed when used memory > 'maxmemory'.",
}
"""What is refused, by kind: ``OOM`` is about commands that need memory, the others about all that write."""

INVALIDATE = b"__redis__:invalidate"

_SCRIPTS = Scripts()
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")
_OK, _PONG = Status(b"OK"), Status(b"PONG")


class Tracking:
    """How a connection's cached keys are tracked. ``prefixes``: those of the broadcast mode, or ``None``.
    ``caching``: the next command's are, always or (``optin``) because that was said before.
    """

    def __init__(self, redirect: int, prefixes: tuple[bytes, ...] | None, *, noloop: bool, optin: bool) -> None:
        self.redirect = redirect
        self.prefixes = prefixes
        self.noloop = noloop
        self.optin = optin
        self.caching = not optin


class Peer:
    """One connection, as the server has it. ``send`` is called with what the server writes."""

    def __init__(self, number: int, send: Callable[[bytes], None]) -> None:
        self.number = number
        self.send = send
        self.reader = hiredis.Reader()
        self.channels: dict[bytes, None] = {}
        self.tracking: Tracking | None = None
        self.pending: list[bytes] = []
        self.out: list[bytes] = []


class Server:
    """One process of Redis. ``snapshot``: the data that it starts with. ``ahead``: seconds of its clock before others'.

    ``oldest``: it is a Redis 6.2, not a 7.0. ``refuses``: a kind of :data:`REFUSALS`. ``listeners`` are called with
    each channel, message and number of receivers: they are the simulation's own, and no part of Redis.
    """

    def __init__(
        self, time: VirtualTime, random: Random, snapshot: Any = None, ahead: float = 0.0, *, oldest: bool = False
    ) -> None:
        self.time = time
        self.oldest = oldest
        self._version = b"6.2.14" if oldest else b"7.0.15"
        self.ahead = ahead
        self._random = random
        self.run_id = f"{random.getrandbits(160):040x}"
        self.refuses: str | None = None
        self.keyspace = Keyspace(self.now, random, self._changed)
        if snapshot is not None:
            self.keyspace.load(snapshot)
        self.peers: dict[int, Peer] = {}
        self.listeners: list[Callable[[bytes, bytes, int], None]] = []
        self.missing: list[str] = []
        self._channels: dict[bytes, dict[Peer, None]] = {}
        self._sources: dict[bytes, bytes] = {}
        self._functions: dict[bytes, Any] = {}
        self._numbers = 0
        self._current: Peer | None = None
        self._writer: Peer | None = None  # None while a script writes: NOLOOP is not about what scripts change
        self._written: dict[bytes, Peer | None] = {}  # for the broadcast mode, until the end of this iteration
        self._read: dict[bytes, dict[int, None]] = {}  # for the default mode
        self._dirty = False

    def now(self) -> float:
        """Its clock."""
        return WALL + self.time.now + self.ahead

    # Connections

    def connect(self, send: Callable[[bytes], None]) -> Peer:
        """Somebody connects."""
        self._numbers += 1
        peer = self.peers[self._numbers] = Peer(self._numbers, send)
        return peer

    def disconnect(self, peer: Peer) -> None:
        """It is gone."""
        self.peers.pop(peer.number, None)
        for channel in tuple(peer.channels):
            self.unsubscribe(peer, channel)

    def feed(self, peer: Peer, data: bytes) -> None:
        """What arrived on a connection: one iteration of Redis's event loop."""
        peer.reader.feed(data)
        while (words := peer.reader.gets()) is not False:
            try:
                replies = self.execute(peer, words)
            except Refusal as error:
                replies = [error]
            peer.out += map(_encoded, replies)
        self._end_iteration()

    def call(self, *words: bytes | str) -> Any:
        """What another client gets for a command: a service, or the test."""
        peer = Peer(0, lambda _: None)
        given = [word.encode() if isinstance(word, str) else word for word in words]
        try:
            (reply,) = self.execute(peer, given)
        except Refusal as error:
            reply = error
        self._end_iteration()
        return reply

    def expire(self) -> None:
        """Delete some of what is over, as Redis does: not in order, and not all at once."""
        now, keyspace = self.keyspace.milliseconds(), self.keyspace
        if keyspace.due and keyspace.due[0][0] <= now:
            keyspace.due, due = [], keyspace.due
            for at, key in due:
                if keyspace.expires.get(key) != at:
                    continue
                if at <= now and self._random.random() < 0.5:
                    keyspace.find(key)
                else:
                    heappush(keyspace.due, (at, key))
            self._end_iteration()

    def _end_iteration(self) -> None:
        if self._written:
            self._announce()
        for peer in tuple(self.peers.values()):
            if peer.out:
                data = b"".join(peer.out)
                peer.out.clear()
                peer.send(data)

    # Commands

    def execute(self, peer: Peer, words: list[bytes]) -> Sequence[Any]:
        """Run one command; its replies. Raises :class:`Refusal`."""
        try:
            return self._execute(peer, words)
        finally:
            if peer.tracking is not None and words[0].upper() != b"CLIENT":
                peer.tracking.caching = not peer.tracking.optin

    def _execute(self, peer: Peer, words: list[bytes]) -> Sequence[Any]:
        name = words[0].upper()
        command = COMMANDS.get(name)
        self._current, self._dirty = peer, False
        if command is not None:
            self._writer = peer
            replies: Sequence[Any] = (self._run(command, words, peer, words),)
        elif name in {b"EVAL", b"EVALSHA"}:
            replies = (self._evaluate(peer, name, words),)
        elif name in {b"FUNCTION", b"FCALL"}:
            replies = (self._function(peer, name, words),)
        elif name in {b"SUBSCRIBE", b"UNSUBSCRIBE"}:
            replies = [self._subscription(peer, name, channel) for channel in words[1:]]
        else:
            replies = (self._other(peer, name, words),)
        if peer.pending:
            changed, peer.pending = peer.pending, []
            for key in changed:
                self._tell(peer, [key])
        return replies

    def _run(self, command: Command, words: list[bytes], peer: Peer, whole: list[bytes]) -> Any:
        """Run a command on the data. ``whole``: the command that it is, or whose script it is in."""
        count = len(words)
        if count != command.arity if command.arity > 0 else count < -command.arity:
            raise Refusal(f"ERR wrong number of arguments for '{words[0].decode().lower()}' command")
        if (
            self.refuses is not None
            and not self._dirty
            and (command.grows if self.refuses == "OOM" else command.writes)
        ):
            raise Refusal(REFUSALS[self.refuses])
        if command.writes:
            self._dirty = True
        reply = command.run(self.keyspace, *words[1:])
        tracking = peer.tracking
        if command.reads and tracking is not None and tracking.prefixes is None and tracking.caching:
            for key in _keys(whole):
                self._read.setdefault(key, {})[peer.number] = None
        return reply

    def _evaluate(self, peer: Peer, name: bytes, words: list[bytes]) -> Any:
        if name == b"EVAL":
            source = words[1]
            self._learn(source)
        elif (known := self._sources.get(words[1])) is not None:
            source = known
        else:
            raise Refusal("NOSCRIPT No matching script. Please use EVAL.")
        if source.startswith(b"#!") and not self.oldest:
            self._check_flags(source.split(b"\n", 1)[0])
        count = int(words[2])
        call = self._caller(peer, words)
        return _SCRIPTS.run(source, words[3 : 3 + count], words[3 + count :], call, oldest=self.oldest)

    def _function(self, peer: Peer, name: bytes, words: list[bytes]) -> Any:
        if self.oldest:
            shown = "".join(f"`{word.decode()[:128]}`, " for word in words[1:3])
            raise Refusal(f"ERR unknown command `{words[0].decode()}`, with args beginning with: {shown}")
        if name == b"FUNCTION":
            return self._load_library(words[2])
        function = self._functions.get(words[1])
        if function is None:
            raise Refusal("ERR Function not found")
        if self.refuses is not None:
            raise Refusal(REFUSALS[self.refuses])  # as it has no flags
        count = int(words[2])
        return _SCRIPTS.run_function(function, words[3 : 3 + count], words[3 + count :], self._caller(peer, words))

    def _caller(self, peer: Peer, words: list[bytes]) -> Callable[[list[bytes]], Any]:
        """What a script calls commands by."""
        self._writer = None

        def call(inner: list[bytes]) -> Any:
            try:
                command = COMMANDS.get(inner[0].upper())
                if command is not None:
                    return self._run(command, inner, peer, words)
                return self._other(peer, inner[0].upper(), inner)
            except Missing as missing:  # Lua would catch it
                self.missing.append(str(missing))
                raise Refusal(f"ERR the simulation lacks {missing}") from None
            except Refusal as refusal:
                if self.oldest and str(refusal) in REFUSALS.values():
                    raise Refusal(f"@user_script: 1: -{refusal}") from None
                raise

        return call

    def _check_flags(self, line: bytes) -> None:
        flags = line.partition(b"flags=")[2].split(b",")
        if b"no-writes" in flags or self.refuses is None:
            return
        if self.refuses != "OOM" or b"allow-oom" not in flags:
            raise Refusal(REFUSALS[self.refuses])
        self._dirty = True  # what comes is allowed

    def _other(self, peer: Peer, name: bytes, words: list[bytes]) -> Any:
        match name, *words[1:]:
            case b"PING", *said:
                return self._pong(peer, said)
            case b"PUBLISH", channel, body:
                return self.publish(channel, body)
            case (b"TIME",):
                microseconds = round(self.now() * 1_000_000)
                return [b"%d" % (microseconds // 1_000_000), b"%d" % (microseconds % 1_000_000)]
            case b"SELECT", _:
                return _OK
            case b"FLUSHALL" | b"FLUSHDB", *_:
                self.flush()
                return _OK
            case b"CLIENT", *rest:
                return self._client(peer, rest[0].upper(), rest[1:])
            case b"INFO", *sections:
                return self._info([section.lower() for section in sections])
            case (b"ROLE",):
                replica = [b"slave", b"10.0.0.2", 6379, b"connected", 1]
                return replica if self.refuses == "READONLY" else [b"master", 1, []]
            case b"CONFIG", get, name if get.upper() == b"GET":
                return [name, b"noeviction"] if name == b"maxmemory-policy" else []
            case b"HELLO", *version:
                return self._hello(peer, version)
            case b"SCRIPT", *rest:
                return self._script(rest[0].upper(), rest[1:])
        raise Missing(b" ".join(words).decode(errors="replace"))

    def _pong(self, peer: Peer, said: Sequence[bytes]) -> Any:
        if self.refuses == "MISCONF":
            raise Refusal(REFUSALS["MISCONF"])
        if peer.channels:
            return [b"pong", said[0] if said else b""]
        return said[0] if said else _PONG

    def _hello(self, peer: Peer, version: Sequence[bytes]) -> list[Any]:
        if version and version[0] != b"2":
            raise Missing(f"HELLO {version!r}")
        role = b"replica" if self.refuses == "READONLY" else b"master"
        about = {b"server": b"redis", b"version": self._version, b"proto": 2, b"id": peer.number}
        about |= {b"mode": b"standalone", b"role": role, b"modules": []}
        return [word for pair in about.items() for word in pair]

    def _script(self, sub: bytes, rest: Sequence[bytes]) -> Any:
        if sub == b"EXISTS":
            return [int(digest in self._sources) for digest in rest]
        if sub == b"LOAD":
            return self._learn(rest[0])
        if sub == b"FLUSH":
            self._sources.clear()
            return _OK
        raise Missing(f"SCRIPT {sub!r}")

    def _learn(self, source: bytes) -> bytes:
        digest = sha1(source, usedforsecurity=False).hexdigest().encode()
        self._sources[digest] = source
        return digest

    def _load_library(self, source: bytes) -> bytes:
        if not source.startswith(b"#!"):
            raise Refusal("ERR Missing library metadata")
        library = source.split(b"\n", 1)[0].partition(b"name=")[2]
        if self.refuses is not None:
            raise Refusal(REFUSALS[self.refuses])
        if library in self._functions:
            raise Refusal(f"ERR Library '{library.decode()}' already exists")
        self._functions |= _SCRIPTS.library(source)
        return library

    def _client(self, peer: Peer, sub: bytes, rest: list[bytes]) -> Any:
        match sub, *[word.upper() for word in rest]:
            case (b"ID",):
                return peer.number
            case b"TRACKING", b"OFF", *_:
                peer.tracking = None
                return _OK
            case b"TRACKING", b"ON", *options:
                return self._track(peer, options, rest[1:])
            case b"CACHING", b"YES":
                if peer.tracking is None or not peer.tracking.optin:
                    raise Refusal("ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.")
                peer.tracking.caching = True
                return _OK
            case b"SETNAME" | b"SETINFO" | b"NO-EVICT" | b"NO-TOUCH", *_:
                return _OK
        raise Missing(f"CLIENT {sub!r} {rest!r}")

    def _info(self, sections: list[bytes]) -> bytes:
        replica, version = self.refuses == "READONLY", self._version.decode()
        known = {
            b"server": f"# Server\r\nredis_version:{version}\r\nredis_mode:standalone\r\nrun_id:{self.run_id}\r\n",
            b"replication": f"# Replication\r\nrole:{'slave' if replica else 'master'}\r\nconnected_slaves:0\r\n",
            b"persistence": "# Persistence\r\nloading:0\r\n",
            b"memory": "# Memory\r\nused_memory:1000000\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n",
        }
        if lacking := set(sections) - known.keys() - {b"default", b"all", b"everything"}:
            raise Missing(f"INFO {lacking!r}")
        chosen = [known[section] for section in sections if section in known] or list(known.values())
        return "\r\n".join(chosen).encode()

    def flush(self) -> None:
        """All data is lost."""
        self.keyspace.data.clear()
        self.keyspace.expires.clear()
        self._read.clear()
        for peer in self.peers.values():
            if peer.tracking is not None:
                self._tell(peer, None)

    # Publishing

    def publish(self, channel: bytes, body: bytes) -> int:
        """Send a message to whoever listens; how many those are."""
        peers = self._channels.get(channel, {})
        if peers:
            message = _encoded([b"message", channel, body])
            for peer in peers:
                peer.out.append(message)
        count = len(peers)
        for listener in self.listeners:
            listener(channel, body, count)
        return count

    def subscribers(self, channel: bytes) -> Iterable[Peer]:
        """Who listens."""
        return tuple(self._channels.get(channel, ()))

    def subscribe(self, peer: Peer, channel: bytes) -> None:
        """Have the connection listen."""
        peer.channels[channel] = None
        self._channels.setdefault(channel, {})[peer] = None

    def unsubscribe(self, peer: Peer, channel: bytes) -> None:
        """Have it not listen any more."""
        peer.channels.pop(channel, None)
        self._channels.get(channel, {}).pop(peer, None)

    def _subscription(self, peer: Peer, name: bytes, channel: bytes) -> Any:
        if name == b"SUBSCRIBE":
            self.subscribe(peer, channel)
        else:
            self.unsubscribe(peer, channel)
        return [name.lower(), channel, len(peer.channels)]

    # Tracking

    def _track(self, peer: Peer, options: list[bytes], given: list[bytes]) -> Status:
        redirect, prefixes, broadcast, noloop, optin = 0, [], False, False, False
        at = 0
        while at < len(options):
            match options[at]:
                case b"REDIRECT":
                    at += 1
                    redirect = int(given[at])
                    if redirect not in self.peers:
                        raise Refusal("ERR The client ID you want redirect to does not exist")
                case b"BCAST":
                    broadcast = True
                case b"PREFIX":
                    at += 1
                    prefixes.append(given[at])
                case b"NOLOOP":
                    noloop = True
                case b"OPTIN":
                    optin = True
                case _:
                    raise SYNTAX
            at += 1
        peer.tracking = Tracking(redirect, tuple(prefixes) if broadcast else None, noloop=noloop, optin=optin)
        return _OK

    def _changed(self, key: bytes) -> None:
        self._written[key] = self._writer if key not in self._written else self._written[key] and self._writer
        readers = self._read.pop(key, None)
        for number in readers or ():
            peer = self.peers.get(number)
            if peer is None or peer.tracking is None or peer.tracking.prefixes is not None:
                continue
            if peer is self._current:
                if not peer.tracking.noloop:
                    peer.pending.append(key)
            else:
                self._tell(peer, [key])

    def _announce(self) -> None:
        written, self._written = self._written, {}
        for peer in tuple(self.peers.values()):
            tracking = peer.tracking
            if tracking is None or tracking.prefixes is None:
                continue
            for prefix in tracking.prefixes or (b"",):
                keys = [
                    key for key, writer in written.items()
                    if key.startswith(prefix) and not (tracking.noloop and writer is peer)
                ]  # fmt: skip
                if keys:
                    self._tell(peer, keys)

    def _tell(self, peer: Peer, keys: list[bytes] | None) -> None:
        assert peer.tracking is not None
        target = self.peers.get(peer.tracking.redirect)
        if target is not None and INVALIDATE in target.channels:
            target.out.append(_encoded([b"message", INVALIDATE, keys]))


def _keys(words: list[bytes]) -> Sequence[bytes]:
    """The keys that a command declares."""
    command = COMMANDS.get(words[0].upper())
    if command is not None:
        return words[1:][command.keys]
    return words[3 : 3 + int(words[2])]


def _encoded(reply: Any) -> bytes:
    kind = type(reply)
    if kind is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if kind is int:
        return b":%d\r\n" % reply
    if kind is list:
        return b"*%d\r\n%b" % (len(reply), b"".join(map(_encoded, reply)))
    if reply is None:
        return b"$-1\r\n"
    if kind is Status:
        return b"+%b\r\n" % reply
    return b"-%b\r\n" % str(reply).encode().translate(_ONE_LINE)

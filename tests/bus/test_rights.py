"""The rights that the gateway needs: that the table has them all, and that each that is missing is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import TestCase

import kraftek
from kraftek.bus import RedisBus, connections
from kraftek.bus.rights import COMMANDS, HISTORY_COMMANDS, Need, needs_of
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Config, Redis, Registration, RoomPolicy, SocketIO, Users
from tests.docs.pages import code
from tests.support.fastpath import make_iteration
from tests.support.redis_server import oldest_redis_server, private_redis
from tests.support.waiting import until

SOURCES = Path(kraftek.__file__).parent
SERVICES = (
    Registration(name="chat", channel="events:chat"),
    Registration(name="notes", channel="events:notes", transport="stream"),
    Registration(name="board", channel="events:board", transport="stream", partitions=2),
)


def used() -> set[str]:
    """The commands in the sources of the gateway, each with its subcommand."""
    found = set()
    for file in SOURCES.rglob("*"):
        parts = file.relative_to(SOURCES).parts
        if file.suffix not in {".py", ".lua"} or parts[0] in {"client", "service", "edge"} or parts[1:2] == ("cli",):
            continue
        if file.name in {"rights.py", "sentinel.py"}:
            continue
        text = file.read_text("utf-8")
        for pattern in (
            r"redis\.p?call\(\s*'([A-Z]+)'(?:, '([A-Z]+)')?",
            r"\{'([A-Z]{2,})', (stream)",
            r'\b(?:ask|call)\(\s*"([A-Z]+)"(?:, (?:\[\], \[)?"([A-Z]+)")?',
            r'return \("([A-Z]+)", ()',
        ):
            for command, subcommand in re.findall(pattern, text):
                parts = (
                    (command, subcommand)
                    if command in {"CLIENT", "FUNCTION", "MEMORY", "XGROUP", "XINFO"}
                    else (command,)
                )
                found.add("+" + "|".join(parts).lower())
    return found - {"+auth", "+maxlen"}


def test_the_table_has_what_is_used_and_nothing_else() -> None:
    rights, without = (
        {need.right for need in needs_of(config) if need.right.startswith("+")}
        for config in (Config(rooms=(RoomPolicy(pattern="*", history=1),)), Config(rooms=(RoomPolicy(pattern="*"),)))
    )
    assert rights == used()
    assert len(without) == COMMANDS.count("\n") - 1
    assert len(rights - without) == HISTORY_COMMANDS.count("\n") - 1


def test_keys_and_channels_are_those_of_the_configuration() -> None:
    config = Config(redis=Redis(prefix="k:", broadcast="all"), services=SERVICES)
    rights = {need.right for need in needs_of(config)}
    kept = Config(redis=config.redis, services=SERVICES, rooms=(RoomPolicy(pattern="*", history=1),))
    more = {need.right for need in needs_of(kept)} - rights
    own = "k:gateways:history:"
    assert {f"~{own}rules", f"~{own}position:*", f"~{own}log:*", f"~{own}texts:*", f"&{own}room:*"} <= more
    back = Config(redis=config.redis, services=SERVICES, rooms=kept.rooms, socketio=SocketIO(recovery=True))
    assert {need.right for need in needs_of(back)} - rights - more == {f"~{own}socket:*"}
    watched = Config(redis=config.redis, services=SERVICES, rooms=(RoomPolicy(pattern="*", presence=True),))
    shown = "k:gateways:presence:*"
    assert {need.right for need in needs_of(watched)} - rights == {f"~{shown}", f"&{shown}"}
    users = {need.right for need in needs_of(Config(redis=config.redis, services=SERVICES, users=Users(history=1)))}
    assert users - rights == {*more, f"&{own}user:*"} - {f"&{own}room:*"}
    assert {"~k:room:*", "~k:events:notes", "~k:events:board:0", "~k:events:board:1", "~k:gateways:lost"} <= rights
    assert {"&k:events:chat", "&k:all", "&k:events:reply:*", "&k:events:cancel:*", "&__redis__:invalidate"} <= rights
    assert not {"~k:events:chat", "&k:events:notes", "~k:events:board", "&k:events:broadcast"} & rights


def test_an_error_counts_for_the_right_that_it_is_about() -> None:
    command, key, channel = Need("+get", ("GET", "k")), Need("~k", ("GET", "k")), Need("&c", ("PUBLISH", "c", ""))
    for error, missing in (
        ("NOPERM this user has no permissions to run the 'get' command or its subcommand", (True, False, False)),
        ("NOPERM User gateway has no permissions to run the 'get' command", (True, False, False)),
        ("NOPERM this user has no permissions to access one of the keys used as arguments", (False, True, True)),
        ("NOPERM No permissions to access a key", (False, True, True)),
        ("OOM command not allowed when used memory > 'maxmemory'.", (False, False, False)),
    ):
        assert tuple(need.is_missing(error) for need in (command, key, channel)) == missing


class RightsTest(TestCase):
    """With a user whose rights the test decides, from all of those that docs/operations.rst lists on."""

    timeout = 30
    binary: str | None = None

    def setUp(self) -> None:
        self.redis = private_redis(self, self.binary)
        self.redis.call(*code("redis-acl").split())
        self.patch(connections, "CHECK_INTERVAL", 0.05)

    def make(self) -> RedisBus:
        url = self.redis.url.replace("unix://", "unix://gateway:secret@")
        config = Config(redis=Redis(url=url, prefix="kraftek:"), services=SERVICES)
        bus = RedisBus(reactor, config.redis, make_iteration(reactor), Counters(), needs=needs_of(config))
        bus.track("access:", lambda _: None)
        bus.subscribe("events:broadcast", lambda _: None)
        self.addCleanup(lambda: bus.stopService() if bus.running else None)
        return bus

    async def looked(self, bus: RedisBus) -> None:
        """Return once the look at the rights is over."""
        await until(lambda: self.calls("multi") > 0, "a look at the rights")
        await until(lambda: bus._rights._connecting is None, "the end of the look")

    def calls(self, command: str) -> int:
        with self.redis.client() as client:
            stats: Any = client.info("commandstats")
        return int(stats.get(f"cmdstat_{command}", {}).get("calls", 0))

    async def test_the_rule_of_the_manual_suffices(self) -> None:
        bus = self.make()
        bus.startService()
        await until(lambda: bus.available, "a connection to Redis")
        await self.looked(bus)
        assert bus.fault is None
        assert self.redis.call("ACL", "LOG") == []
        with self.redis.client() as client:
            assert client.keys() == [b"kraftek:gateway:epoch"]
            assert client.hkeys("kraftek:gateway:epoch") == [b"run", b"epoch"]

    async def test_each_missing_right_is_named_until_it_is_granted(self) -> None:
        self.redis.call("ACL", "SETUSER", "gateway", "-xadd", "-zscore", "resetkeys", "~kraftek:gateway*")
        bus = self.make()
        with capturedLogs() as events:
            bus.startService()
            await until(lambda: str(bus.fault).startswith("NOPERM our user lacks"), lambda: f"why, but {bus.fault}")
            assert bus.available
            missing = str(bus.fault).split()[4:]
            assert missing[:2] == ["+xadd", "+zscore"]
            assert {"~kraftek:room:*", "~kraftek:events:notes", "~kraftek:request:*"} <= set(missing[2:])
            assert "~kraftek:gateways" not in missing
            lines = [str(formatEvent(event)) for event in events]
            named = [line.rpartition(" ")[2] for line in lines if "refuses our user gateway the right" in line]
            assert named == missing
            self.redis.call("ACL", "SETUSER", "gateway", "+xadd", "+zscore", "~kraftek:*")
            await until(lambda: bus.fault is None, lambda: f"no fault, but {bus.fault}")

    async def test_what_is_missing_is_also_named_when_it_keeps_redis_away(self) -> None:
        self.redis.call("ACL", "SETUSER", "gateway", "resetchannels", "&kraftek:*", "-client")
        bus = self.make()
        bus.startService()
        await until(lambda: bus._rights.missing, "what is missing")
        assert not bus.available
        subcommands = ["+client|caching", "+client|id", "+client|tracking", "+client|unblock"]
        assert bus._rights.missing == [*subcommands, "&__redis__:invalidate"]

    async def test_without_the_right_to_ask_that_is_named(self) -> None:
        self.redis.call("ACL", "SETUSER", "gateway", "-multi")
        bus = self.make()
        bus.startService()
        await until(lambda: bus.fault == "NOPERM our user lacks +multi", lambda: f"why, but {bus.fault}")
        with self.redis.client() as client:
            assert client.keys() == [b"kraftek:gateway:epoch"]

    async def test_stopping_ends_the_look(self) -> None:
        bus = self.make()
        bus.startService()
        await self.looked(bus)
        bus._rights.look()
        assert bus._rights._connecting is not None
        await bus.stopService()
        assert bus._rights._connecting is None


if oldest := oldest_redis_server():

    class RightsOnRedis62Test(RightsTest):
        """The same with the oldest Redis that is supported."""

        binary = oldest

"""The room cache and presence while Redis refuses writes, comes back with older data, and loses single answers."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.integration.test_processes import READY
from tests.support.forwarder import Forwarder
from tests.support.ports import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from tests.integration.conftest import Client, Connect, RedisServer, StartGateway

SERVICES = {"board": {"channel": "events:board", "presence": True, "transport": "stream"}}

WITHIN = 10.0
"""Seconds within which all is right after Redis takes writes again."""

PATIENCE = 30.0
"""Seconds for connections to a Redis that was started again, and then for the lease of a dead gateway to expire."""

Told = tuple[str, str, str]
"""joined, left or reset, the user, and the room."""


class Rooms:
    """What services read, and hear over a stream."""

    def __init__(self, server: RedisServer) -> None:
        self.redis: Any = server.client()
        self._after = "-"

    def told(self) -> dict[str, list[Told]]:
        """By epoch what was told since :meth:`forget`. Each event of an epoch has the number after that before it."""
        epochs: dict[str, list[Told]] = {}
        numbers: dict[str, int] = {}
        for _, entry in self.redis.xrange("events:board", self._after):
            event = json.loads(entry["event"])
            epoch, number = event["payload"]["epoch"], event["payload"]["number"]
            assert number == numbers.get(epoch, number - 1) + 1
            numbers[epoch] = number
            kind = event["eventType"].rpartition(":")[2]
            epochs.setdefault(epoch, []).append((kind, event["userId"], event.get("roomId", "")))
        return epochs

    def forget(self) -> None:
        """What was told until now is not looked at again."""
        self._after = f"({self.redis.xinfo_stream('events:board')['last-generated-id']}"

    def cache(self) -> dict[tuple[str, str], str]:
        """The socket of each user in each room."""
        rooms = [key.removeprefix("room:") for key in self.redis.scan_iter("room:*")]
        return {(user, room): socket for room in rooms for user, socket in self.redis.hgetall(f"room:{room}").items()}

    def wait(self, *clients: tuple[str, Client], within: float = WITHIN) -> None:
        """Return once these users with their sockets, and no others, are in room r."""
        expected = {(f"user_{token}", "r"): client.socket_id for token, client in clients}
        wait_until(lambda: self.cache() == expected, lambda: f"{expected}, but {self.cache()}", within)
        assert {user: self.redis.get(f"socket:{user}:r") for user, _ in expected} == {
            user: socket for (user, _), socket in expected.items()
        }

    def wait_told(self, *told: Told, perhaps: tuple[Told, ...] = ()) -> None:
        """Return once these were told, each once, of the epoch that is now; or these and all of ``perhaps``."""

        def found() -> list[Told]:
            return sorted(self.told().get(self.redis.hget("gateway:epoch", "epoch"), []))

        ways = sorted(told), sorted(told + perhaps)
        wait_until(lambda: found() in ways, lambda: f"{ways}, but {found()}", WITHIN)


def unwritable_snapshot(client: Any) -> None:
    """Redis refuses writes after it could not save its data: there is a directory in the place of the file."""
    directory = client.config_get("dir")["dir"]
    Path(directory, "dump.rdb").mkdir()
    client.config_set("save", "3600 1000000")
    client.bgsave()
    wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "a failed snapshot")


def writable_snapshot(client: Any) -> None:
    Path(client.config_get("dir")["dir"], "dump.rdb").rmdir()
    client.config_set("save", "")


def nowhere(client: Any) -> None:
    client.replicaof("127.0.0.1", free_port())


REFUSALS: dict[str, tuple[Callable[[Any], object], Callable[[Any], object]]] = {
    "NOREPLICAS": (
        lambda client: client.config_set("min-replicas-to-write", 1),
        lambda client: client.config_set("min-replicas-to-write", 0),
    ),
    "OOM": (lambda client: client.config_set("maxmemory", 1), lambda client: client.config_set("maxmemory", 0)),
    "MISCONF": (unwritable_snapshot, writable_snapshot),
    "READONLY": (nowhere, lambda client: client.replicaof("no", "one")),
}


def refused(client: Any, kind: str) -> int:
    """How many writes Redis has refused for that reason."""
    found = client.info("errorstats").get(f"errorstat_{kind}", {"count": 0})
    return int(found["count"])


def test_what_redis_refused_is_made_good(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    here, there = gateway(redis_server, services=SERVICES), gateway(redis_server, services=SERVICES)
    rooms = Rooms(redis_server)
    client: Any = redis_server.client()
    for kind, (refuse, take) in REFUSALS.items():
        stays, leaves = connect(here, f"stays{kind}", "r"), connect(here, f"leaves{kind}", "r")
        rooms.wait((f"stays{kind}", stays), (f"leaves{kind}", leaves))
        rooms.forget()
        logged = [len(process.log()) for process in (here, there)]
        refuse(client)
        leaves.close()
        comes, visits = connect(there, f"comes{kind}", "r"), connect(there, f"visits{kind}", "r")
        older, newer = connect(here, f"twice{kind}", "r"), connect(there, f"twice{kind}", "r")
        visits.close()
        if kind == "READONLY":
            for process, length in zip((here, there), logged, strict=True):
                process.wait_log("is unavailable", after=length)
        else:
            many = refused(client, kind) + 5
            wait_until(lambda kind=kind, many=many: refused(client, kind) >= many, f"{many} refusals")  # type: ignore[misc]
        take(client)
        rooms.wait((f"stays{kind}", stays), (f"comes{kind}", comes), (f"twice{kind}", newer))
        older.expect_error("DUPLICATE_CONNECTION", WITHIN)
        older.expect_close(4409)
        user = {name: f"user_{name}{kind}" for name in ("comes", "leaves", "twice")}
        rooms.wait_told(("joined", user["comes"], "r"), ("joined", user["twice"], "r"), ("left", user["leaves"], "r"))
        for each in (stays, comes, newer):
            each.expect_nothing()
            each.close()
        rooms.wait()


def test_a_gateway_stops_while_redis_refuses_writes(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    process = gateway(redis_server, services=SERVICES)
    client = connect(process, "stays", "r")
    unwritable_snapshot(redis_server.client())
    assert process.terminate() == -signal.SIGTERM
    client.expect_stop()
    writable_snapshot(redis_server.client())  # or Redis would not stop
    assert "is unavailable" not in process.log()  # it has left Redis by itself


def test_older_data_are_corrected_and_no_client_is_closed(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    """Redis is killed, and comes back with a snapshot from before clients came and went, and gateways died."""
    here, there, dying = (gateway(redis_server, services=SERVICES) for _ in range(3))
    rooms = Rooms(redis_server)
    client: Any = redis_server.client()
    stays, leaves, lost = connect(here, "stays", "r"), connect(here, "leaves", "r"), connect(dying, "lost", "r")
    before = connect(here, "moves", "r")
    rooms.wait(("stays", stays), ("leaves", leaves), ("lost", lost), ("moves", before))
    client.save()
    comes, moved = connect(there, "comes", "r"), connect(there, "moves", "r")
    before.expect_error("DUPLICATE_CONNECTION")
    leaves.close()
    dying.kill()
    rooms.wait(("stays", stays), ("comes", comes), ("moves", moved), ("lost", lost))
    epoch = client.hget("gateway:epoch", "epoch")
    redis_server.kill(keep=True)
    redis_server.start()
    rooms.wait(("stays", stays), ("comes", comes), ("moves", moved), within=PATIENCE)
    assert client.hget("gateway:epoch", "epoch") != epoch
    rooms.wait_told(
        ("reset", "", ""),
        ("joined", "user_comes", "r"),
        ("left", "user_leaves", "r"),
        ("left", "user_lost", "r"),
        # Where the gateway of the older socket comes first: by these data the user is there with that one alone.
        perhaps=(("left", "user_moves", "r"), ("joined", "user_moves", "r")),
    )
    for each in (stays, comes, moved):
        each.expect_nothing()
    ids = {each.wait_log(READY)["id"] for each in (here, there)}
    assert {socket.partition(".")[0] for socket in rooms.cache().values()} == ids
    assert set(client.scan_iter("gateway:*:entries")) == {f"gateway:{id_}:entries" for id_ in ids}


def test_one_socket_stays_when_the_link_is_lost_between_a_login_and_its_answer(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, stage: ExitStack
) -> None:
    here_link, there_link = Forwarder(redis_server.port), Forwarder(redis_server.port)
    for link in (here_link, there_link):
        stage.callback(link.close)
    here, there = (
        gateway(config={"redis": {"url": f"redis://127.0.0.1:{link.port}/0"}}, services=SERVICES)
        for link in (here_link, there_link)
    )
    rooms = Rooms(redis_server)
    older = connect(here, "ann", "r")
    rooms.wait(("ann", older))
    # The newer login is written, and its answer is lost, and with it the order to close the older socket.
    there_link.mute()
    newer = connect(there, "ann", "r")
    rooms.wait(("ann", newer))
    there_link.cut()
    older.expect_error("DUPLICATE_CONNECTION", WITHIN)
    older.expect_close(4409)
    # The order reaches nobody, because the older one's gateway has lost Redis.
    here_link.refuse()
    here.wait_log("is unavailable", WITHIN)
    newest = connect(here, "ann", "r")
    last = connect(there, "ann", "r")
    newer.expect_error("DUPLICATE_CONNECTION")
    here_link.admit()
    newest.expect_error("DUPLICATE_CONNECTION", WITHIN)
    newest.expect_close(4409)
    rooms.wait(("ann", last))
    last.expect_nothing()


def test_names_that_come_to_the_same_key(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    here, there = gateway(redis_server), gateway(redis_server)
    client: Any = redis_server.client()
    first, second = connect(here, "a:b", "c"), connect(there, "a", "b:c")
    key = "socket:user_a:b:c"

    def names(socket_id: str) -> None:
        wait_until(lambda: client.get(key) == socket_id, lambda: f"{socket_id}, but {client.get(key)}")

    names(second.socket_id)
    second.close()
    names(first.socket_id)
    third = connect(there, "a", "b:c")
    names(third.socket_id)
    first.close()
    wait_until(lambda: client.hgetall("room:c") == {}, "an empty room")
    names(third.socket_id)
    third.close()
    wait_until(lambda: not client.exists(key), "no key")

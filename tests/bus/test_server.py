"""Which servers can be used, and what they say when they are not what they were."""

from __future__ import annotations

import pytest

from kraftek.bus.server import Server, UnsuitableServer, examine, server_in
from kraftek.contract.redis_errors import shows_replica

INFO = b"""# Server\r
redis_version:7.0.15\r
redis_mode:standalone\r
os:Linux 6.1: x86_64\r
run_id:00ff\r
\r
# Memory\r
maxmemory_policy:noeviction\r
# Replication\r
role:slave\r
master_host:10.0.0.1\r
master_port:6380\r
"""


def test_what_a_server_says_of_itself() -> None:
    assert server_in(INFO) == Server(
        version="7.0.15", run="00ff", mode="standalone", role="slave", primary="10.0.0.1:6380", eviction="noeviction"
    )
    assert server_in(b"\xff\r\n") == Server()


def test_valkey_calls_its_mode_otherwise() -> None:
    assert server_in(b"redis_version:7.2.4\r\nvalkey_version:8.1.1\r\nserver_mode:cluster\r\n").mode == "cluster"


@pytest.mark.parametrize("version", ["6.2.0", "7.0.15", "8.2.1", "10.0.0", "255.255.255", ""])
def test_what_can_be_used(version: str) -> None:
    examine(Server(version=version, mode="standalone", role="master"))


@pytest.mark.parametrize(
    ("server", "reason", "lasting"),
    [
        (Server(version="6.0.16", role="master"), "it is Redis 6.0.16; expected 6.2 or newer", True),
        (Server(version="5.0.14", role="slave"), "it is Redis 5.0.14; expected 6.2 or newer", True),
        (Server(version="7.0.1", mode="cluster", role="slave"), "it is a Redis Cluster; expected", True),
        (Server(version="7.0.1", mode="sentinel"), "it is a Sentinel; expected", True),
        (Server(version="7.0.1", role="slave", primary="a:1"), "it is a replica of a:1; expected the primary", False),
        (Server(version="7.0.1", role="slave"), "it is a replica; expected the primary", False),
    ],
)
def test_what_cannot_be_used(server: Server, reason: str, lasting: bool) -> None:
    with pytest.raises(UnsuitableServer) as raised:
        examine(server)
    assert str(raised.value).startswith(reason)
    assert raised.value.lasting is lasting


@pytest.mark.parametrize(
    ("error", "replica"),
    [
        ("READONLY You can't write against a read only replica.", True),
        ("READONLY You can't write against a read only replica. script: 119b, on @user_script:1.", True),
        ("ERR Error running script (call to f_119b): @user_script:1: @user_script: 1: -READONLY You can't write", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("LOADING Redis is loading the dataset in memory", True),
        ("MISCONF Redis is configured to save RDB snapshots", False),
        ("NOREPLICAS Not enough good replicas to write.", False),
        ("ERR unknown command 'READONLY', with args beginning with: ", False),
    ],
)
def test_what_shows_a_replica(error: str, replica: bool) -> None:
    assert shows_replica(error) is replica

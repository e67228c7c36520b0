"""What errors of Redis say of the server."""

from __future__ import annotations

import pytest

from kraftek.contract.redis_errors import is_no_script, may_pass, shows_replica


@pytest.mark.parametrize(
    ("error", "passes", "replica"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", True, False),
        ("MISCONF Redis is configured to save RDB snapshots", True, False),
        ("NOREPLICAS Not enough good replicas to write.", True, False),
        ("READONLY You can't write against a read only replica.", True, True),
        ("LOADING Redis is loading the dataset in memory", True, True),
        ("ERR Error running script (call to f_1): @user_script:7: -OOM command not allowed", True, False),
        ("ERR Error running script (call to f_1): @user_script:7: -READONLY You can't write", True, True),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False, False),
        ("NOPERM this user has no permissions to run the 'xadd' command", False, False),
        ("ERR no OOM here", False, False),
    ],
)
def test_what_may_pass(error: str, passes: bool, replica: bool) -> None:
    assert (may_pass(error), shows_replica(error)) == (passes, replica)


def test_a_script_that_is_not_known() -> None:
    assert is_no_script("NOSCRIPT No matching script. Please use EVAL.")
    assert not is_no_script("ERR Error running script: NOSCRIPT ")

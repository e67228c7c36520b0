"""What an error of Redis says of the server it came from: known by the bus and by the service kit alike."""

from __future__ import annotations

import re

__all__ = ["is_no_script", "may_pass", "shows_replica"]

_REPLICA = re.compile(r"(?:^|-)(?:READONLY|MASTERDOWN|LOADING) ")


_PASSING = re.compile(r"(?:^|-)(?:READONLY|MASTERDOWN|LOADING|MISCONF|NOREPLICAS|OOM) ")


def is_no_script(error: str) -> bool:
    """Whether a server does not know the script that it was asked to run by its digest. It has not run it."""
    return error.startswith("NOSCRIPT ")


def may_pass(error: str) -> bool:
    """Whether a server that answers so refuses for what it is, and not for what it was asked: it has no memory, cannot
    save, has too few replicas, or is none of the primary's kind. Asked again later it may accept the same.
    """
    return bool(_PASSING.search(error))


def shows_replica(error: str) -> bool:
    """Whether a server that answers so is no primary, or is becoming a replica, which loads the primary's data.

    Redis 6.2 puts such an error of a command in a script into a sentence of its own.
    """
    return bool(_REPLICA.search(error))

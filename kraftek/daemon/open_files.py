"""What the open files of this process are for, and so how many connections it may have.

Called by :mod:`kraftek.daemon.lifecycle` at the start.
"""

from __future__ import annotations

from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

from twisted.logger import Logger

from kraftek.contract.errors import ConfigError
from kraftek.contract.settings import Config

__all__ = ["OWN_FILES", "connections_allowed", "files_needed"]

OWN_FILES = 64
"""Open files besides clients' connections and those to the auth service: ports, Redis, logs, look-ups of names, the
operator's, and refused connections. An idle gateway has fewer than 20."""

_log = Logger()


def files_needed(config: Config) -> int:
    """Open files that are no client's connection."""
    return OWN_FILES + (config.auth.concurrency if config.auth.check != "open" else 0)


def connections_allowed(config: Config) -> int:
    """How many connections of clients this process may have: as configured, if the limit of open files allows it.

    Raises ``ConfigError`` where that allows none.
    """
    files, wanted, needed = getrlimit(RLIMIT_NOFILE)[0], config.limits.connections, files_needed(config)
    if files == RLIM_INFINITY:
        return wanted or 2**31 - 1
    possible = files - needed
    if possible < 1:
        expected = f"more than {needed}, for this process and auth.concurrency connections to the auth service"
        raise ConfigError([f"the limit of open files (ulimit -n): expected {expected}, found {files}"])
    if wanted > possible:
        _log.warn(
            "limits.connections is {wanted}, but the limit of open files (ulimit -n) is {files}: this process may have "
            "{possible}",
            wanted=wanted,
            files=files,
            possible=possible,
        )
    return min(wanted, possible) if wanted else possible

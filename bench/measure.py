"""Processor time and memory of other processes, from the operating system. The stage and the load ask here.

The processor time is the process clock of ``clock_getcpuclockid(3)``: user and system time of every thread the
process has or had, in nanoseconds. ``utime + stime`` of ``/proc/PID/stat`` is the same figure cut to 10 ms ticks,
too coarse for windows of a second.
"""

import contextlib
import ctypes
import os
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path

_LIBC = ctypes.CDLL(None)
_PAGE = os.sysconf("SC_PAGE_SIZE")

OPEN_FILES = 20_000
"""What a process that holds 8,000 connections is given, where the system allows it."""


def cpu_seconds(pids: Iterable[int]) -> float:
    """Give the processor seconds, user and system, that these processes have used since they began.

    Raises `ProcessLookupError` when one of them is gone.
    """
    total = 0
    for pid in pids:
        clock = ctypes.c_int()
        if _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
            raise ProcessLookupError(pid)
        total += time.clock_gettime_ns(clock.value)
    return total / 1e9


def resident_bytes(pids: Iterable[int]) -> int:
    """Give the resident memory of these processes in bytes; pages that they share count once for each."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE for pid in pids)


def family(pid: int) -> list[int]:
    """Give the process and all that descend from it: nginx, for one, does its work in a child."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            found.extend(map(int, children.read_text().split()))
    return found


def allow_many_files(needed: int = 0) -> None:
    """Let this process, and those that it starts, have as many sockets as the system allows it at most.

    Exits where that is fewer than ``needed``.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for most in (max(hard, OPEN_FILES), hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            break
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < needed:
        sys.exit(f"A process here may open {hard} files; {needed} are needed (ulimit -n).")

"""The image of this process, which another version replaces in place: the process keeps its id and its descriptors.

Called by :mod:`kraftek.daemon.tap` before there is a reactor, and by :mod:`kraftek.daemon.upgrade`.

What is executed is found again by its path. A script that can be executed names its interpreter itself: so the script
in ``current/bin``, where ``current`` is a symbolic link to the virtual environment of a version, is that of the version
to which it leads by then. The way back leads to the directory to which it led when this version was started.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

__all__ = ["Command", "Inheritance", "inherited", "memory_of"]

_VARIABLE = "KRAFTEK_TAKEOVER"
"""The environment variable by which the next image knows what it takes over. It holds no secret."""

_PATIENCE = 30.0
"""Seconds that the next image has until it has taken over."""

_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}
"""Those that wait until the next image knows what to do about them."""

_OF_SYSTEMD = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


class Command:
    """How this process was started. ``words``: the interpreter and all that follows it, as in ``sys.orig_argv``.

    ``current`` starts what is installed now; ``back`` what was installed when this was made.
    """

    def __init__(self, words: Sequence[str], environ: Mapping[str, str], directory: str) -> None:
        python, *rest = words
        self.environ = dict(environ)
        self.directory = directory
        self.back = [_fixed(shutil.which(python) or python, directory), *rest]
        self.current = [shutil.which(python) or python, *rest]
        script = Path(directory, rest[0] if rest else "")
        if script.is_file():
            self.back[1] = str(script.resolve())
            self.current[1] = str(script)
            if os.access(script, os.X_OK):
                self.current = self.current[1:]

    @classmethod
    def own(cls) -> Command:
        """That of this process, which must not have changed its directory or its environment."""
        return cls(sys.orig_argv, os.environ, str(Path.cwd()))

    def check(self, *options: str) -> tuple[list[str], dict[str, str]]:
        """The command that asks the version that is installed now, and its environment."""
        environ = {name: value for name, value in self.environ.items() if name not in _OF_SYSTEMD}
        return [*self.current, *options], environ

    def replace(self, state: int, format: int, execute: Callable[..., Any] = os.execve) -> None:
        """Go on as the version that is installed now, with the state in this descriptor. Raises ``OSError``."""
        inheritance = Inheritance(state=state, format=format, current=self.current, back=self.back)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        directory = Path.cwd()
        try:
            os.chdir(self.directory)
            execute(self.current[0], self.current, {**self.environ, _VARIABLE: inheritance.text})
        finally:
            os.chdir(directory)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _fixed(python: str, directory: str) -> str:
    """The interpreter in the directory to which its path leads now. It may be a symbolic link itself: that is what
    makes it the one of a virtual environment.
    """
    path = Path(directory, python)
    return str(path.parent.resolve() / path.name)


class Inheritance(Struct, kw_only=True):
    """What an image takes over: the descriptor of the state, the format of that, the command that starts what is
    ``current``, and the way ``back``, which is empty when it was gone already.
    """

    state: int
    format: int
    current: list[str]
    back: list[str] = []

    @property
    def text(self) -> str:
        """As :func:`inherited` reads it."""
        return msgspec.json.encode(self).decode()

    def guard(self) -> None:
        """From now on the version before goes on, whatever ends this one before it has taken over, or keeps it from
        that.
        """
        if self.back:
            atexit.register(self.go_back)
            signal.signal(signal.SIGALRM, lambda *_: self.go_back())
            signal.setitimer(signal.ITIMER_REAL, _PATIENCE)

    def taken(self) -> None:
        """Nothing leads back: this image has taken over."""
        atexit.unregister(self.go_back)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        self.back = []
        os.close(self.state)

    def go_back(self, execute: Callable[..., Any] = os.execve) -> None:
        """Have the version before go on, if there is one. Returns when it cannot."""
        back, self.back = self.back, []
        if back:
            sys.stdout.flush()
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            with suppress(OSError):
                execute(back[0], back, {**os.environ, _VARIABLE: self.text})


def inherited(environ: dict[str, str] | os._Environ[str]) -> Inheritance | None:
    """What this image takes over, if anything. It is no longer in the environment then."""
    text = environ.pop(_VARIABLE, None)
    return None if text is None else msgspec.json.decode(text, type=Inheritance)


def memory_of(state: bytes) -> int:
    """A descriptor from which the next image reads this. It has no name by which anybody else could open it."""
    descriptor = os.memfd_create("kraftek-state", 0)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(state)
    return descriptor

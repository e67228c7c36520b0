"""What a backend does for the instance of a service: the things that asyncio and Twisted do in different ways.

Implemented by :mod:`kraftek.service.asyncio` and :mod:`kraftek.service.twisted`, used by
:mod:`kraftek.service.instance` and its parts, whose coroutines work on both: they only ``await``.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from kraftek.contract.lua import Argument, Script

__all__ = [
    "Away",
    "Backend",
    "Blocking",
    "Command",
    "Job",
    "Reader",
    "Refusing",
    "Rejected",
    "Signal",
    "redis_url",
]

Command = Sequence[Argument]
"""The words of a command."""


def redis_url() -> str:
    """The Redis of a program that names none."""
    return os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")


class Away(Exception):  # noqa: N818  # it says what Redis is
    """Redis is unavailable, or disconnected before it answered."""


class Refusing(Away):
    """Redis takes no writes at present: it has no memory, say, or is a replica by now."""


class Rejected(Exception):  # noqa: N818  # it says what became of the command
    """Redis refused a command; the text is Redis's."""


class Signal(Protocol):
    """Something that happens once, for a coroutine that waits for it."""

    def set(self, value: Any = True) -> None:
        """It happened. A second call does nothing."""

    def wait(self, seconds: float | None) -> Awaitable[Any]:
        """The value that it was set to; ``None`` after so many seconds, if a number is given."""


class Reader(Protocol):
    """A connection for commands that wait."""

    def read(self, *command: Argument) -> Awaitable[Any]:
        """As :meth:`Backend.call`."""

    def close(self) -> None: ...


class Blocking(Protocol):
    """Redis for a thread beside the loop. It connects when it is called, and again after an error."""

    def call(self, *command: Argument) -> Any:
        """As :meth:`Backend.call`; every error is :class:`Away`."""

    def close(self) -> None: ...


class Job(Protocol):
    """A running coroutine."""

    def cancel(self) -> Any: ...


class Backend(Protocol):
    """Redis, time and coroutines.

    Answers of Redis are bytes, numbers, lists and ``None``, as RESP2 has them. Failures are of the two kinds above.
    """

    def call(self, *command: Argument) -> Awaitable[Any]:
        """One command, in order with all others."""

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Awaitable[Any]:
        """A script, in order with all commands. Its text is sent once, and again to a Redis that does not know it:
        another one, or one that was restarted. Then it comes after what was sent meanwhile.
        """

    def reader(self) -> Reader: ...

    def blocking(self) -> Blocking:
        """A connection to the same Redis. Called on the thread that uses it."""

    def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> Coroutine[Any, Any, None]:
        """Returns when Redis has confirmed it for the first time. From then on it is renewed after every reconnect."""

    def unsubscribe(self, channel: str) -> Coroutine[Any, Any, None]:
        """Returns when everything that Redis still sent on it was received."""

    def signal(self) -> Signal: ...

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> Job: ...

    def awaitable(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        """The coroutine as handlers await: over Twisted as a Deferred."""

    def from_thread(self, call: Callable[[], None]) -> None:
        """Have the loop call it, from another thread; does nothing when the loop has ended."""

    @property
    def fault(self) -> str | None:
        """Why Redis is unavailable, as far as is known."""

    def pause(self) -> Awaitable[object]:
        """Returns when everybody else had a turn, and what Redis has sent was read."""

    def info(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def failed(self, text: str, error: BaseException) -> None:
        """Log an error with its traceback."""

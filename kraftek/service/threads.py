"""Threads for handlers that block. Made by :class:`kraftek.service.instance.Instance`."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any

from kraftek.service.backend import Backend, Signal

__all__ = ["Threads"]


class Threads:
    """As many threads as are needed at a time; those that are free wait for more.

    They are daemons: one that hangs does not keep the process from ending, as one of an executor of Python's would.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._work: SimpleQueue[tuple[Callable[[], Any], Signal]] = SimpleQueue()
        self._free = 0

    async def run(self, work: Callable[[], Any]) -> Any:
        """What ``work`` returns or raises in a thread, with the context variables of the caller."""
        ended = self._backend.signal()
        self._work.put((partial(copy_context().run, work), ended))
        if self._free:
            self._free -= 1
        else:
            Thread(target=self._works, name="kraftek-handler", daemon=True).start()
        result, error = await ended.wait(None)
        if error is not None:
            raise error
        return result

    def _works(self) -> None:
        while True:
            work, ended = self._work.get()
            outcome: tuple[Any, BaseException | None]
            try:
                outcome = work(), None
            except BaseException as error:  # noqa: BLE001  # the handler's, whatever it is: it is raised on the loop
                outcome = None, error
            del work
            self._backend.from_thread(partial(self._ended, ended, outcome))

    def _ended(self, ended: Signal, outcome: tuple[Any, BaseException | None]) -> None:
        self._free += 1
        ended.set(outcome)

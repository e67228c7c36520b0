"""Something that is done again and again beside a service.

The base of ``Comparison`` and ``SelfRegistration``.
"""

from __future__ import annotations

from kraftek.service.backend import Backend, Signal

__all__ = ["Watch"]


class Watch:
    """``turn`` is called from ``start`` to ``stop``. An error of it ends the watch alone, and is logged with
    ``last_words``.
    """

    last_words: str

    def __init__(self, backend: Backend, first: float = 0.0) -> None:
        """``first``: seconds from the start to the first turn."""
        self.stopped = False
        self._backend = backend
        self._first = first
        self._waiting: Signal | None = None

    async def turn(self) -> float:
        """Do it once. Returns the seconds until the next time."""
        raise NotImplementedError

    def start(self) -> None:
        """Begin."""
        self._backend.spawn(self._run())

    def stop(self) -> None:
        """Take no further turn."""
        self.stopped = True
        if self._waiting is not None:
            self._waiting.set()

    async def _run(self) -> None:
        seconds = self._first
        try:
            while not self.stopped:
                self._waiting = self._backend.signal()
                await self._waiting.wait(seconds)
                if not self.stopped:
                    seconds = await self.turn()
        except Exception as error:  # noqa: BLE001  # the service goes on
            self._backend.failed(self.last_words, error)

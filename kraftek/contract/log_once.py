"""Log lines that would repeat: logged once a minute, or once until it works again. Both take the function that logs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from kraftek.contract.errors import Refusal

__all__ = ["MINUTE", "MOST", "OnceAMinute", "OnceUntilItWorks", "failing"]

MINUTE = 60.0
"""Seconds for which what was logged is not logged again."""

MOST = 100
"""Different lines in that time; further ones are not logged, so that nobody can fill a disk with new ones."""


def failing(log: Any, failure: Any) -> Callable[..., None]:
    """What logs a line about this ``Failure`` to this ``Logger``, both of Twisted: what Redis refused with its reply,
    and a fault of ours with its traceback.
    """

    def logs(text: str, **fields: object) -> None:
        if isinstance(failure.value, Refusal):
            log.error(f"{text}: {{reason}}", reason=str(failure.value), **fields)
        else:
            log.failure(text, failure=failure, **fields)

    return logs


class OnceAMinute:
    """Logs each line at most once a minute. ``now`` gives seconds, by a clock that is never set."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._logged: dict[Hashable, float] = {}

    def __call__(self, log: Callable[..., object], text: str, /, *, about: Hashable = None, **fields: object) -> None:
        """``log(text, **fields)``, unless that was done lately; for each ``about`` by itself, when it is given."""
        line, now = (text, about), self._now()
        if line in self._logged and now - self._logged[line] < MINUTE:
            return
        self._logged = {line: at for line, at in self._logged.items() if now - at < MINUTE}
        if len(self._logged) < MOST:
            self._logged[line] = now
            log(text, **fields)


class OnceUntilItWorks:
    """Logs a failure once, and again only when it has worked since; for each ``about`` by itself.

    ``failing``: what these failures are about.
    """

    def __init__(self) -> None:
        self.failing: set[Hashable] = set()

    def failed(self, log: Callable[..., object], text: str, /, *, about: Hashable = None, **fields: object) -> None:
        """``log(text, **fields)``, if this is the first failure since it worked."""
        if about not in self.failing:
            self.failing.add(about)
            log(text, **fields)

    def works(self, *about: Hashable) -> None:
        """It works for these, or, without any, where nothing distinguishes failures."""
        self.failing.difference_update(about or (None,))

    def keep(self, known: Iterable[Hashable]) -> None:
        """Forget all but these: the others no longer exist."""
        self.failing.intersection_update(known)

"""A clock whose reactor's iterations can be told apart, for what shares them between connections."""

from __future__ import annotations

from twisted.internet.task import Clock

__all__ = ["Iterations"]


class Iterations(Clock):
    """Goes on only when it is told to. :meth:`iterate` calls what is due at the beginning of an iteration, once."""

    def take(self, seconds: float) -> None:
        """Something takes so long."""
        self.rightNow += seconds

    def iterate(self) -> None:
        """One iteration."""
        for call in [call for call in self.calls if call.getTime() <= self.rightNow]:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)

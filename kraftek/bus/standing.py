"""How Redis stands to us while it is connected: the epoch of its data, and whether it takes what must be written.

Made by :class:`kraftek.bus.RedisBus`, for its connection for commands, which checks it every second.
"""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import ResponseError

from kraftek.bus.connections import CommandConnection
from kraftek.bus.outage import Outage
from kraftek.bus.rights import Rights
from kraftek.bus.server import Server
from kraftek.contract.log_once import OnceUntilItWorks
from kraftek.contract.lua import Script, lua
from kraftek.contract.names import EPOCH

__all__ = ["CHECK", "Standing"]

CHECK = Script(lua(__package__, "check"))
"""Finds the epoch, the role, and whether the server takes writes."""


class Standing:
    """``epoch``: as :class:`kraftek.contract.interfaces.IBus` has it. ``epoch_changed`` is called when it has changed
    between :meth:`met` and :meth:`lost`.
    """

    _log = Logger()

    def __init__(
        self, name: str, clock: IReactorTime, prefix: str, rights: Rights, epoch_changed: Callable[[], None]
    ) -> None:
        self.epoch: str | None = None
        self._refusal: str | None = None
        self._met = False
        self._rights = rights
        self._name = name
        self._key = prefix + EPOCH
        self._epoch_changed = epoch_changed
        self._refusals = Outage(
            name,
            clock,
            first="refuses to be written, trying again:",
            still="still refuses to be written after",
            back="takes writes again after",
        )
        self._once = OnceUntilItWorks()

    @property
    def fault(self) -> str | None:
        """Why Redis refuses to be written, or what we are not allowed there."""
        if self._refusal is None and self._rights.missing:
            return f"NOPERM our user lacks {' '.join(self._rights.missing)}"
        return self._refusal

    def check(self, connection: CommandConnection) -> Deferred[None]:
        """Ask. Fires when it is known; fails with ``NotPublished`` when the connection was lost."""
        checking = connection.run(CHECK, [self._key], [token_hex(8)])
        return checking.addCallbacks(self._checked, self._refused, callbackArgs=(connection,))

    def met(self, server: Server) -> None:
        """Redis is available: look at our rights, and warn of a server that may lose keys."""
        self._met = True
        self._rights.look()
        if server.eviction in ("", "noeviction"):
            self._once.works()
            return
        line = (
            "{name} has maxmemory-policy {policy}: when its memory is full it removes room entries, answers and events "
            "that the gateway relies on. Expected noeviction"
        )
        self._once.failed(self._log.warn, line, name=self._name, policy=server.eviction)

    def lost(self) -> None:
        """It no longer is."""
        self._met = False
        self.epoch = self._refusal = None

    def _checked(self, answer: list[Any], connection: CommandConnection) -> None:
        epoch, refusal, run, role = (None if part is None else part.decode("utf-8", "replace") for part in answer)
        if role != "master" or run != (connection.server.run or run):
            connection.leave_server("it is no primary any more")
            return
        self._refuses(refusal)
        self._found(epoch)
        if self._rights.missing:
            self._rights.look()

    def _refused(self, failure: Failure) -> None:
        """The script itself: somebody else's occupies Redis (``BUSY``), or our user may not do all that it does."""
        failure.trap(ResponseError)
        reason = failure.getErrorMessage()
        if not reason.startswith("BUSY"):
            self._refuses(reason)
            self._found(None)

    def _refuses(self, reason: str | None) -> None:
        self._refusal = reason
        if reason is None:
            self._refusals.over()
        else:
            self._refusals.failed(reason)

    def _found(self, epoch: str | None) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            if self._met:
                self._epoch_changed()

"""The upgrade: another version goes on with the sockets of clients, in this process. Made by
:mod:`kraftek.daemon.lifecycle`; how the image is replaced is in :mod:`kraftek.daemon.image`.

1. A child of the version that is installed now checks the configuration, and says which format it takes.
2. Nobody is accepted any more; who connects waits in the kernel's queue. What cannot be handed over is drained.
3. Clients are not read any more, each from the end of a message on. Redis answers what was sent to it.
4. The connection that listens to Redis is not read any more: what Redis sends waits in it.
5. The state goes into memory that the next image inherits, with all descriptors.

Until then everything can be called off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import Logger

import kraftek
from kraftek.bus.moving import BusMove
from kraftek.contract.errors import RESTART
from kraftek.contract.interfaces import IMovableLink
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Drained
from kraftek.core.client_drain import ClientDrain
from kraftek.core.session import Session
from kraftek.daemon.assembly import Core, Edge
from kraftek.daemon.image import Command, memory_of
from kraftek.daemon.state import FORMATS, State
from kraftek.daemon.sweeps import Sweeps
from kraftek.daemon.systemd import notify, reloading

__all__ = ["CalledOff", "Upgrade"]

_CHECKING = 30.0
"""Seconds that the child has."""

_DRAINING = 2.0
"""Seconds in which those are drained that cannot be handed over. Others wait as long to be accepted."""

_STUCK = 1.0
"""Seconds that a client may be in the middle of a message, or a check of its access may take, before it is drained. As
long again closing handshakes are waited for."""

_FREEZING = 3.0
"""Seconds in which Redis has to have answered everything: otherwise the upgrade is called off."""

_TICK = 0.002
"""Seconds between two looks."""

_REASON = "the gateway is upgraded"


class CalledOff(Exception):  # noqa: N818  # it is no error of the gateway
    """There is no upgrade, for this reason; everything goes on."""


class Upgrade:
    """``ports``: all that listen, by their endpoint strings; ``others``: those of them that are not for clients."""

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        command: Command,
        core: Core,
        edge: Edge,
        bus: BusMove,
        iteration: Iteration,
        *,
        ports: Sequence[tuple[str, IListeningPort]],
        others: Sequence[IListeningPort],
        sweeps: Sweeps,
    ) -> None:
        self._clock = clock
        self._command = command
        self._core = core
        self._edge = edge
        self._bus = bus
        self._iteration = iteration
        self._ports = ports
        self._others = others
        self._sweeps = sweeps
        self._frozen: dict[Session, IMovableLink] = {}
        self.running = False
        self._stops = False

    def stop(self) -> None:
        """The gateway stops: call it off, if it is under way."""
        self._stops = True

    async def run(self) -> None:
        """Upgrade. Returns only when it was called off."""
        self.running = True
        try:
            agreed = await self._check()
            reloading()
            try:
                await self._prepare()
                await self._freeze()
                self._replace(agreed)
            finally:
                self._thaw()
                notify("READY=1")
        except CalledOff as reason:
            self._log.error("Not upgraded: {reason}", reason=str(reason))
        finally:
            self.running = False

    async def _check(self) -> int:
        """The format that the version takes which is installed now."""
        offered = ",".join(map(str, FORMATS))
        (path, *words), environ = self._command.check(f"--takes-over={offered}")
        checking: Deferred[Any] = getProcessOutputAndValue(path, words, environ, self._command.directory, self._clock)
        try:
            output, errors, status = await checking.addTimeout(_CHECKING, self._clock)
        except defer.TimeoutError:
            raise CalledOff(f"{path} does not say within {_CHECKING:g} s that it can take over") from None
        lines = output.decode(errors="replace").splitlines()
        said = lines[-1].removeprefix("It takes over format ").rstrip(".") if lines else ""
        if status != 0 or said not in offered.split(","):
            why = (output + errors).decode(errors="replace").strip().splitlines()
            raise CalledOff(f"{path} cannot take over: {why[-1] if why else f'it ended with {status}'}")
        return int(said)

    async def _prepare(self) -> None:
        """Accept nobody, and drain what cannot be handed over."""
        self._edge.connections.hold()
        for port in self._others:
            _call(port, "stopReading")
        self._edge.site.deadlines.end_rests()
        unmovable = _Some(self._core.roster, lambda session: self._edge.move.movable(session.link) is None)
        if len(unmovable):
            self._log.info("{number} clients cannot be handed over, and are drained", number=len(unmovable))
            await ClientDrain(unmovable, self._core.requests, self._clock).begin(_DRAINING, _REASON)
        until = self._clock.seconds() + _STUCK
        while self._edge.move.others and self._clock.seconds() < until:
            await deferLater(self._clock, _TICK)

    async def _freeze(self) -> None:
        """Read nobody, and return when nothing is under way any more."""
        self._edge.move.freezes(True)
        self._sweeps.stop()
        self._core.leases.renew()  # others wait for as long as that lasts before they take this gateway for dead
        began = self._clock.seconds()
        ended = self._core.service_events.end()
        drained = False
        while True:
            if self._stops:
                raise CalledOff("the gateway stops")
            passed = self._clock.seconds() - began
            closed = passed > 2 * _STUCK or not len(self._edge.clients.closings)
            over = self._all_frozen() and closed and ended.called and self._is_settled()
            if over and self._bus.freeze() and self._is_settled():
                return
            if passed > _STUCK and not drained:
                drained = True
                self._drain_stuck()
            if passed > _FREEZING:
                raise CalledOff(f"not everything that is under way came to an end within {_FREEZING:g} s")
            await deferLater(self._clock, _TICK)

    def _all_frozen(self) -> bool:
        for session in self._core.roster:
            if session not in self._frozen:
                link = self._edge.move.movable(session.link)
                if link is not None and link.freeze():
                    self._frozen[session] = link
        return not self._stuck()

    def _stuck(self) -> list[Session]:
        """Who cannot be handed over yet."""
        is_movable, frozen = self._core.move.is_movable, self._frozen
        return [session for session in self._core.roster if session not in frozen or not is_movable(session)]

    def _is_settled(self) -> bool:
        self._core.requests.store_answers()
        self._iteration.end()
        return self._bus.idle and self._iteration.idle

    def _drain_stuck(self) -> None:
        for session in self._stuck():
            if (link := self._frozen.pop(session, None)) is not None:
                link.thaw()
            session.send(Drained(0.0))
            session.close(RESTART, _REASON)

    def _replace(self, agreed: int) -> None:
        state = self._state()
        content = state.encoded
        try:
            memory = memory_of(content)
        except OSError as error:
            raise CalledOff(f"the state, {len(content)} bytes, cannot be kept: {error}") from None
        try:
            for descriptor in state.descriptors:
                os.set_inheritable(descriptor, True)
            notify("WATCHDOG=1")
            text = "Handing over {number} sockets, {size} bytes of state"
            self._log.info(text, number=len(state.sockets), size=len(content))
            self._command.replace(memory, agreed)
        except OSError as error:
            for descriptor in state.descriptors:
                os.set_inheritable(descriptor, False)
            os.close(memory)
            raise CalledOff(f"{self._command.current[0]}: {error}") from None

    def _state(self) -> State:
        sockets = []
        for session in self._core.roster:
            descriptor, given = self._frozen[session].give()
            sockets.append((descriptor, given, self._core.move.give_session(session)))
        return State(
            version=kraftek.__version__,
            gateway_id=self._core.gateway_id,
            sockets=sockets,
            listeners=[(place, _call(port, "fileno")) for place, port in self._ports],
            core=self._core.move.give(),
            subscriber=self._bus.give(),
        )

    def _thaw(self) -> None:
        """It was called off."""
        self._bus.thaw()
        self._edge.move.freezes(False)
        for link in self._frozen.values():
            link.thaw()
        self._frozen.clear()
        for port in self._others:
            _call(port, "startReading")
        self._edge.connections.go_on()
        self._sweeps.start()
        self._core.service_events.begin()


class _Some:
    """Some of the sessions, as of :class:`kraftek.core.roster.Roster`."""

    def __init__(self, sessions: Iterable[Session], wanted: Callable[[Session], bool]) -> None:
        self._sessions = sessions
        self._wanted = wanted

    def __iter__(self) -> Any:
        return filter(self._wanted, self._sessions)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _call(port: Any, method: str) -> Any:
    return getattr(port, method)()

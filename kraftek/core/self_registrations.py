"""Services that register themselves, as far as ``auto_register`` lets them.

Each instance of such a service renews its registration in Redis (``register.lua`` of the service kit); it stands for
:data:`kraftek.contract.registrations.LEASE` seconds after the last one has. Every gateway reads them, and puts into its
registry what may be there: what the configuration has wins, and what cannot be configured cannot be registered. Clients
reach them only where a permission names the service. Made by :mod:`kraftek.daemon.assembly`.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct
from msgspec.structs import asdict
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus, IBusListener, IServiceRegistry
from kraftek.contract.log_once import OnceUntilItWorks, failing
from kraftek.contract.lua import Script, lua
from kraftek.contract.names import SELF_LEASES, SELF_REGISTERED
from kraftek.contract.registrations import LEASE, MOST, PublishedService, check, covers
from kraftek.contract.settings import Config, Registration, SelfRegistration

__all__ = ["POLL", "READ", "SelfRegistered", "SelfRegistrations"]

POLL = 2.0
"""Seconds between two looks. Of a new service gateways hear at once."""

READ = Script(lua(__package__, "time", "keep_type", "self_registrations"))


class SelfRegistered(Struct):
    """A service's own registration, as JSON, and until when it stands, by the machine's monotonic clock."""

    registration: bytes
    until: float


@implementer(IBusListener)
class SelfRegistrations:
    """Keeps ``registry``. ``refused``: services that may not register themselves, and why."""

    _log = Logger()

    def __init__(self, bus: IBus, registry: IServiceRegistry, config: Config, clock: IReactorTime) -> None:
        self._bus = bus
        self.registry = registry
        self._config = config
        self._clock = clock
        self._next = 0.0
        self._once = OnceUntilItWorks()
        self._known: dict[str, SelfRegistered] = {}
        self._registered: dict[str, tuple[bytes, Registration]] = {}
        self.refused: dict[str, str] = {}
        bus.subscribe(SELF_REGISTERED, self._asked)
        bus.add_listener(self)

    def __len__(self) -> int:
        return len(self._registered)

    # IBusListener

    def bus_up(self) -> None:
        """Nobody could renew anything meanwhile."""
        until = self._clock.seconds() + LEASE
        for each in self._known.values():
            each.until = max(each.until, until)
        # At the start this is answered before anybody is in a room: commands are answered in their order.
        self.read()

    def bus_down(self) -> None:
        """What stands goes on until Redis is there."""

    def epoch_changed(self) -> None:
        """Nothing to do: what Redis has lost stands until its services have had the time to register again."""

    # While the gateway runs

    def sweep(self) -> None:
        """Read what there is, if the time has come, and remove what has ended."""
        now = self._clock.seconds()
        if not self._bus.available:
            return
        if now >= self._next:
            self.read()
        ended = [name for name, each in self._known.items() if each.until <= now]
        for name in ended:
            del self._known[name]
        if ended:
            self.reconcile()

    def read(self) -> Deferred[None]:
        """Fires when what Redis has is in the registry, or cannot be read."""
        self._next = self._clock.seconds() + POLL
        return Deferred.fromCoroutine(self._read()).addCallbacks(lambda _: self._once.works(), self._failed)

    def reconcile(self) -> None:
        """Put into the registry what may be there; called when the configuration has changed, too."""
        own = {name: service for name, (_, service) in self._registered.items()}
        others = [each for each in self.registry.services() if own.get(each.name) is not each]
        configured = {each.name for each in others}
        for name in own.keys() & configured:
            del self._registered[name]
        wanted: dict[str, tuple[bytes, Registration]] = {}
        refused: dict[str, str] = {}
        # Those that are there come first: who comes second has to differ.
        names = {name for name in self._known if covers(self._config.auto_register, name)} - configured
        for name in sorted(names, key=lambda name: (name not in own, name)):
            body = self._known[name].registration
            there = self._registered.get(name)
            try:
                service = there[1] if there is not None and there[0] == body else _registration(name, body)
                check(service, self._config.redis.broadcast, others)
            except ValueError as error:
                refused[name] = str(error)
            else:
                wanted[name] = body, service
                others.append(service)
        self._apply(wanted, refused)

    # For another version of the gateway

    def give(self) -> dict[str, SelfRegistered]:
        """All that stand."""
        return self._known

    def take(self, given: Mapping[str, SelfRegistered]) -> None:
        """Go on with them."""
        self._known.update(given)
        self.reconcile()

    # Within

    def _asked(self, _: bytes) -> None:
        """A service has registered itself."""
        self._next = 0.0

    async def _read(self) -> None:
        if not self._config.auto_register:
            return
        found = await self._bus.call(READ, [SELF_REGISTERED, SELF_LEASES], [MOST])
        now = self._clock.seconds()
        for name, registration, milliseconds in found:
            known = SelfRegistered(registration, now + milliseconds / 1000)
            self._known[name.decode("utf-8", "replace")] = known
        self.reconcile()

    def _failed(self, failure: Failure) -> None:
        if failure.check(NotPublished) is None:
            text = "Services that register themselves are not found, until they can be"
            self._once.failed(failing(self._log, failure), text)

    def _apply(self, wanted: dict[str, tuple[bytes, Registration]], refused: dict[str, str]) -> None:
        for name, there in self._registered.items():
            if wanted.get(name) != there:
                self.registry.unregister(name)
                self._log.info("Service {name}, which had registered itself, is gone", name=name)
        for name, (body, service) in wanted.items():
            if self._registered.get(name) != (body, service):
                self.registry.register(service)
                text = "Service {name} has registered itself: {registration}. Clients need a permission that names it"
                self._log.info(text, name=name, registration=body.decode())
        for name, why in refused.items():
            if self.refused.get(name) != why:
                self._log.warn("Service {name} may not register itself: {why}", name=name, why=why)
        self._registered, self.refused = wanted, refused


def _registration(name: str, body: bytes) -> Registration:
    """Raises ``ValueError``."""
    try:
        return SelfRegistration(name=name, **asdict(_decode(body)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its registration: {error}") from None


_decode = msgspec.json.Decoder(PublishedService).decode

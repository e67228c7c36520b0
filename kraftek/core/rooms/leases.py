"""Leases of the gateway processes, and the removal of dead processes' entries from the room cache.

Every process has a lease in Redis and renews it. All processes look for expired leases and remove the entries of their
holders from the room cache, each entry once; services get a ``left`` for these users. A process that was merely paused
finds its lease gone when it renews it, and writes its entries again.

With the lease goes what the process publishes about the services that are registered with it, for their SDKs to read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import NotPublished
from kraftek.contract.fleet import Fleet
from kraftek.contract.interfaces import IBus, IBusListener, IRooms
from kraftek.contract.log_once import OnceUntilItWorks, failing
from kraftek.contract.lua import Script, lua
from kraftek.contract.metrics import Counters
from kraftek.contract.names import ENTRIES, GATEWAY_LEASES, LAST_LOOK, LOST_GATEWAYS, REGISTRATIONS, entries_key
from kraftek.core.rooms.room_cache import ENTRIES_AT_ONCE, read_entry

__all__ = ["LEASE", "LOOK_INTERVAL", "RENEW_INTERVAL", "Leases"]

LEASE = 5.0
"""Seconds after which a process that has not renewed its lease is presumed dead."""

RENEW_INTERVAL = 1.5
"""Seconds between two renewals: two may fail."""

LOOK_INTERVAL = 1.0
"""Seconds between two looks for expired leases."""

OUTAGE = 2.0
"""When no process has looked for so many seconds, Redis was unavailable to all. After a shorter outage each process is
back, which may take the longest wait between two attempts, before its lease expires, which may be ``LEASE -
RENEW_INTERVAL`` after the outage has begun."""

RENEW = Script(lua(__package__, "time", "keep_type", "renew_lease"))
FIND_LOST = Script(lua(__package__, "time", "keep_type", "find_lost"))
RELEASE = Script(lua(__package__, "keep_type", "release_lease"))

_SAMPLE = 200
"""Bytes that the log shows of what cannot be read."""


@implementer(IBusListener)
class Leases:
    """The lease of this process, and its look for expired leases. ``lost`` is called when its own has expired: others
    have removed its entries. ``fleet`` is told how many gateways there are. ``published``: what it publishes.
    """

    _log = Logger()

    def __init__(
        self,
        bus: IBus,
        rooms: IRooms,
        gateway_id: str,
        lost: Callable[[], None],
        fleet: Fleet,
        counters: Counters,
        published: Callable[[], bytes],
    ) -> None:
        self._bus = bus
        self._rooms = rooms
        self._gateway_id = gateway_id
        self._lost = lost
        self._fleet = fleet
        self._counters = counters
        self._published = published
        self._looking = False
        self._warned = False
        self._once = OnceUntilItWorks()
        bus.add_listener(self)

    def bus_up(self) -> None:
        """Renew the lease. The entries are written again in any case after an outage."""
        self._renew()

    def bus_down(self) -> None:
        """Nothing to do."""

    def epoch_changed(self) -> None:
        """Nothing to do: the next renewal finds that the lease is gone."""

    def renew(self) -> None:
        """Called every :data:`RENEW_INTERVAL` seconds, and when the services have changed."""
        self._renew().addCallback(self._renewed)

    def look(self) -> None:
        """Called every :data:`LOOK_INTERVAL` seconds."""
        if not self._looking:
            self._looking = True
            Deferred.fromCoroutine(self._look()).addCallbacks(self._succeeded, self._failed).addBoth(self._looked)

    def release(self) -> None:
        """The process stops."""
        self._call(RELEASE, [GATEWAY_LEASES, entries_key(self._gateway_id), REGISTRATIONS], self._gateway_id)

    async def _look(self) -> None:
        keys = [GATEWAY_LEASES, LOST_GATEWAYS, LAST_LOOK, ENTRIES]
        while found := await self._bus.call(FIND_LOST, keys, [LEASE, OUTAGE, ENTRIES_AT_ONCE]):
            entries = [entry for member in found if (entry := read_entry(member)) is not None]
            if len(entries) < len(found):
                await self._remove([member for member in found if read_entry(member) is None])
            if entries:
                await self._rooms.bury(entries)
                self._counters.entries_swept += len(entries)

    async def _remove(self, members: list[bytes]) -> None:
        if not self._warned:
            self._warned = True
            text = "Members of {key} that no gateway wrote are removed (logged once): {sample}"
            self._log.warn(text, key=LOST_GATEWAYS, sample=repr(members[0][:_SAMPLE]))
        await self._bus.call("SREM", [LOST_GATEWAYS], members)

    def _renew(self) -> Deferred[Any]:
        return self._call(RENEW, [GATEWAY_LEASES, REGISTRATIONS], self._gateway_id, LEASE, self._published())

    def _call(self, script: Script, keys: list[str], *args: str | bytes | float) -> Deferred[Any]:
        return self._bus.call(script, keys, args).addErrback(self._failed)

    def _renewed(self, answer: list[int] | None) -> None:
        if answer is None:
            return
        known, gateways = answer
        self._fleet.counted(gateways)
        if not known:
            self._log.warn("The other gateways presumed this one dead: it was paused, or Redis lost its data")
            self._counters.leases_lost += 1
            self._lost()

    def _looked(self, _: object) -> None:
        self._looking = False

    def _succeeded(self, _: None) -> None:
        self._once.works()

    def _failed(self, failure: Failure) -> None:
        # This fails every second as long as it lasts, and is logged once. A look needs all that a renewal needs.
        if failure.check(NotPublished) is None:
            text = "The leases of gateways are not kept, until they can be"
            self._once.failed(failing(self._log, failure), text)

"""Registers a service that registers itself, for as long as an instance lives, where ``auto_register`` permits it.

Made by :class:`kraftek.service.instance.Instance`. The first time is done here, where the answer is told; from then on
the :class:`kraftek.service.pulse.Pulse` does it as well, also while a handler blocks the loop.
"""

from __future__ import annotations

from msgspec.structs import asdict

from kraftek.contract.lua import Argument, Script, lua
from kraftek.contract.names import SELF_LEASES, SELF_REGISTERED
from kraftek.contract.registrations import LEASE, MOST, PublishedService, check
from kraftek.contract.settings import Registration
from kraftek.service.backend import Away, Backend, Command, Rejected
from kraftek.service.processor import EventProcessor
from kraftek.service.watch import Watch

__all__ = ["SelfRegistration"]

INTERVAL = LEASE / 3
"""Seconds between two times, so that two may fail."""

REGISTER = Script(lua(__package__, "time", "register"))


class SelfRegistration(Watch):
    """From ``start`` to ``stop``; it stands for a while after that, as there may be other instances.

    Raises :class:`ValueError` for a name or a channel that no service can have.
    """

    last_words = "The service is not registered any more"

    def __init__(self, processor: EventProcessor, backend: Backend) -> None:
        super().__init__(backend)
        prefix = processor.prefix
        own = PublishedService(
            channel=processor.channel.removeprefix(prefix),
            transport=processor.transport,
            partitions=processor.partitions,
            reply=bool(processor.reply),
            timeout=processor.timeout,
        )
        check(Registration(name=processor.name, **asdict(own)), processor.broadcast.removeprefix(prefix))
        self._name = processor.name
        self._words = own.words
        self._keys = [prefix + SELF_REGISTERED, prefix + SELF_LEASES]
        self._args: list[Argument] = [self._name, self._words, int(1000 * max(LEASE, processor.claim_after)), MOST]
        self._stands = False
        self._told = ""

    async def turn(self) -> float:
        """Register."""
        await self.register()
        return INTERVAL

    def beat(self) -> Command | None:
        """The command that does it again, once it stands; another thread calls this."""
        if self.stopped or not self._stands:
            return None
        return ("EVAL", REGISTER.source, len(self._keys), *self._keys, *self._args)

    async def register(self) -> None:
        """Do it once, and tell what is new."""
        try:
            stands = await self._backend.run(REGISTER, self._keys, self._args)
        except Away:
            return  # the loop has the same Redis, and says so
        except Rejected as error:
            self._tell(f"cannot register itself: Redis refuses that: {error}")
        else:
            self._stands = stands == self._words
            self._tell("" if self._stands else self._refusal(stands.decode()))

    def _refusal(self, stands: str) -> str:
        if not stands:
            return f"cannot register itself: {MOST} services have done so"
        return (
            f"is registered by other instances as {stands}, and by this one as {self._words.decode()}. Give all the "
            f"same; this one counts when the others have ended"
        )

    def _tell(self, problem: str) -> None:
        told, self._told = self._told, problem
        if problem and problem != told:
            self._backend.warn(f"Service {self._name} {problem}")
        elif told and not problem:
            self._backend.info(f"Service {self._name} is registered by this instance, too, from now on")

"""How each fault of the schedule is done, with the processes and links of a world."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from tests.chaos.masters import Masters
from tests.chaos.people import Person
from tests.chaos.processes import Program
from tests.chaos.schedule import FAULTS, QUIET, Fault
from tests.chaos.stalled import Stalled

if TYPE_CHECKING:
    from tests.chaos.world import World

__all__ = ["Faults"]

LOUD = "loud"
"""The room of clients that do not read."""
LAG = 2.0
"""Seconds for which a replica may be behind, and its old master may still take what is lost."""
FLOODS = ("pings", "unknown events", "texts of {}", "joins and leaves", "1-byte fragments", "empty binaries", "events",
          "requests", "HTTP requests", "handshakes")  # fmt: skip
UPGRADED = re.compile("Took over .*|Not upgraded: .*")
"""What the log of a gateway says when it was upgraded, or could not be."""
CHECKOUT = Path(__file__).resolve().parents[2]


Deed = Callable[[Fault, Any], Awaitable[None]]


class Faults:
    """Whoever is not well already is left alone until that is over."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ledger = world.ledger
        self.busy: set[str] = set()
        deeds: list[tuple[Deed, str]] = [
            (self._kill, "gateway killed, service killed"),
            (self._stop, "gateway stopped, service stopped"),
            (self._restart, "gateway restarted, service restarted"),
            (self._upgrade, "gateway upgraded"),
            (self._stop_redis, "redis stopped"),
            (self._kill_redis, "redis killed, redis killed and data lost"),
            (self._fail_over, "redis fails over"),
            (self._kill_sentinel, "sentinel killed"),
            (self._flush, "redis flushed"),
            (self._fill_redis, "redis refuses writes"),
            (self._cut_kind, "redis cuts subscribers, redis cuts commands"),
            (self._confuse_auth, "auth slow, auth silent, auth broken, auth away"),
            (self._flood, "flood"),
            (self._stall, "stalled clients"),
            (self._revoke, "revoked by invalidate, revoked by delete"),
        ]
        self._deeds: dict[str, Deed] = dict.fromkeys(FAULTS, self._break)
        self._deeds |= {kind: deed for deed, kinds in deeds for kind in kinds.split(", ")}

    async def play(self, faults: Sequence[Fault]) -> None:
        """A round: everything in it has happened, and is mended."""
        began = time.monotonic()
        await asyncio.gather(*(self._do(fault, began) for fault in faults))

    async def _do(self, fault: Fault, began: float) -> None:
        await asyncio.sleep(began + fault.at - time.monotonic())
        whose = FAULTS[fault.kind].whose
        targets = self._targets(whose)
        target = targets[int(fault.which * len(targets))]
        name: str = target.name if target is not None else fault.kind if whose == "crowd" else whose
        if name in self.busy:
            self._tell(f"({fault.kind}: {name} is not well already)")
            return
        self.busy.add(name)
        try:
            self._tell(f"{fault.kind}: {name}, for {fault.seconds:.2f} s")
            if fault.kind not in QUIET:
                self.ledger.troubles.begin(name, time.monotonic())
            await self._deeds[fault.kind](fault, target)
            self._tell(f"{fault.kind}: {name} is over")
        finally:
            if fault.kind not in QUIET:
                self.ledger.troubles.end(name, time.monotonic())
            self.busy.discard(name)

    def _targets(self, whose: str) -> Sequence[Any]:
        world = self.world
        persons = [person for person in world.people if type(person) is Person]
        of_many: dict[str, Sequence[Any]] = {"gateway": world.gateways, "service": world.services, "person": persons}
        return of_many.get(whose, [None])

    def _tell(self, what: str) -> None:
        self.ledger.tell(time.monotonic(), what)

    # Programs

    async def _kill(self, fault: Fault, program: Program) -> None:
        if fault.detail < 0.5:
            # What it is sent meanwhile, and has not handled, ends with it.
            program.stop()
            await asyncio.sleep(min(fault.seconds, 1.0))
        program.kill()
        await asyncio.sleep(fault.seconds)
        await self._start(program)

    async def _stop(self, fault: Fault, program: Program) -> None:
        program.stop()
        await asyncio.sleep(fault.seconds)
        program.resume()

    async def _restart(self, fault: Fault, program: Program) -> None:
        program.terminate()
        await self.world.until(program.ended, lambda: f"{program.name} has not ended: {program.log()}", 20.0)
        await asyncio.sleep(fault.seconds)
        await self._start(program)

    async def _upgrade(self, _: Fault, gateway: Program) -> None:
        def upgrades() -> int:
            return len(UPGRADED.findall(gateway.log()))

        before = upgrades()
        gateway.upgrade()
        await self.world.until(lambda: upgrades() > before, lambda: f"{gateway.name}: {gateway.log()}")
        self._tell(f"{gateway.name}: {UPGRADED.findall(gateway.log())[-1]}")

    async def _start(self, program: Program) -> None:
        program.start()
        await self.world.until(program.ready, lambda: f"{program.name}: {program.log()}")
        self.world.know_gateways()

    async def _confuse_auth(self, fault: Fault, _: None) -> None:
        self.world.auth.state = fault.kind.split()[1]
        await asyncio.sleep(fault.seconds)
        self.world.auth.state = "up"

    # Redis

    async def _kill_redis(self, fault: Fault, _: None) -> None:
        if (masters := self.world.masters) is not None:
            if await self._loses_data(masters.kill):
                self.world.later(asyncio.to_thread(masters.rejoin))
            return
        redis, began = self.world.redis, time.monotonic()
        redis.kill()
        await asyncio.sleep(fault.seconds)
        if lost := fault.kind.endswith("lost"):
            redis.forget()
        await self._start(redis)
        if lost:
            self.ledger.lost_data(began, time.monotonic())

    async def _stop_redis(self, fault: Fault, _: None) -> None:
        if (masters := self.world.masters) is None:
            await self._stop(fault, self.world.redis)
        elif await self._has_replica(masters):
            began = time.monotonic()
            await asyncio.to_thread(masters.freeze)
            await asyncio.sleep(fault.seconds)
            if await asyncio.to_thread(masters.thaw):
                self._tell("the replica has taken over")
                self.ledger.lost_data(began - LAG, time.monotonic() + LAG)

    # With Sentinel

    async def _fail_over(self, *_: object) -> None:
        assert self.world.masters is not None
        await self._loses_data(self.world.masters.fail_over)

    async def _kill_sentinel(self, fault: Fault, _: None) -> None:
        assert self.world.masters is not None
        await asyncio.to_thread(self.world.masters.replace_sentinel, int(fault.detail * 3))

    async def _loses_data(self, switch: Callable[[], None]) -> bool:
        """Have the replica take over, if there is one."""
        masters, began = self.world.masters, time.monotonic()
        assert masters is not None
        if not await self._has_replica(masters):
            return False
        await asyncio.to_thread(switch)
        self.ledger.lost_data(began - LAG, time.monotonic() + LAG)
        return True

    async def _has_replica(self, masters: Masters) -> bool:
        if not await asyncio.to_thread(lambda: masters.ready):
            self._tell("(there is no replica yet)")
            return False
        return True

    async def _flush(self, *_: object) -> None:
        began = time.monotonic()
        await self._tell_redis("FLUSHALL")
        self.ledger.lost_data(began, time.monotonic())

    async def _fill_redis(self, fault: Fault, _: None) -> None:
        await self._tell_redis("CONFIG", "SET", "maxmemory", "1")
        await asyncio.sleep(fault.seconds)
        await self._tell_redis("CONFIG", "SET", "maxmemory", "0")

    async def _cut_kind(self, fault: Fault, _: None) -> None:
        kind = "pubsub" if fault.kind.endswith("subscribers") else "normal"
        await self._tell_redis("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    async def _tell_redis(self, *command: str) -> None:
        try:
            await self.world.publisher.execute_command(*command)
        except (RedisError, OSError) as error:
            self._tell(f"{command}: {error}")

    # Links

    async def _break(self, fault: Fault, target: Program | None) -> None:
        kind, seconds = fault.kind, fault.seconds
        if "client" in kind:
            link = self.world.clients_link
        else:
            assert target is not None
            link = (self.world.auth_links if "auth" in kind else self.world.redis_links)[target.name]
        one = kind.startswith("one")
        if one and not link.pipes:
            return
        broken: Any = link.pipes[int(fault.detail * len(link.pipes))] if one else link
        how = kind.rpartition(" ")[2]
        if how == "cut":
            broken.cut()
            return
        if how == "refused":
            link.refuse()
        elif how == "slow":
            link.slow(0.02 + 0.2 * fault.detail)
        else:
            ways = (("there",), ("back",), ("there", "back"))[int(fault.which * 3e3) % 3]
            broken.hold(*ways)
        await asyncio.sleep(seconds)
        # A network that is mended delivers what was sent meanwhile, or has forgotten the connection.
        if int(fault.detail * 1e3) % 2:
            broken.cut()
        link.mend()

    # Clients

    async def _flood(self, fault: Fault, _: None) -> None:
        kind = FLOODS[int(fault.detail * len(FLOODS))]
        self._tell(f"a flood of {kind}")
        # Not over the link: this process would have to pass everything on.
        port = str(self.world.any_gateway())
        command = ("nice", sys.executable, "-m", "bench.flooder", kind, port, "flooder.1")
        flooder = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert flooder.stdout is not None
        await asyncio.to_thread(flooder.stdout.readline)
        await asyncio.sleep(fault.seconds)
        flooder.terminate()
        with flooder.stdout as output:
            self._tell(f"the flooder: {(await asyncio.to_thread(output.read)).decode().strip()}")
        flooder.wait()

    async def _stall(self, fault: Fault, _: None) -> None:
        world = self.world
        stalled = [Stalled(world.clients_link.port, world.auth.token(f"stalled{each}"), LOUD) for each in range(3)]
        try:
            await asyncio.gather(*(each.connect() for each in stalled))
            until = time.monotonic() + fault.seconds
            while time.monotonic() < until:
                await world.say(LOUD, padding=40_000)
                await asyncio.sleep(0.02)
            for each in stalled:
                found = await each.read_on(1.0)
                self._tell(f"{each}: {found}")
                if found.wrong:
                    self.ledger.wrong(f"{each}, which did not read for {fault.seconds:.1f} s: {found.wrong}")
        except OSError as error:
            self._tell(f"stalled clients: {error}")
        finally:
            for each in stalled:
                each.close()

    async def _revoke(self, fault: Fault, person: Person) -> None:
        how = fault.kind.rpartition(" ")[2]
        rooms = [*person.client.rooms, person.home]
        room = None if how == "delete" or fault.detail < 0.3 else rooms[int(fault.detail * 1e3) % len(rooms)]
        ban = self.world.auth.ban(person.name, room, how)
        publisher = self.world.publisher
        try:
            if how == "invalidate":
                message = {"userId": person.name, **({} if room is None else {"roomId": room})}
                told = await publisher.publish("auth:invalidate", json.dumps(message))
            else:
                told = await publisher.delete(f"access:user:{person.name}")
            ban.told_at = time.monotonic() if told else None
        except (RedisError, OSError) as error:
            self._tell(f"auth could not tell: {error}")
        self._tell(f"no to {person.name} in {room or 'all rooms'} by {how}, told: {ban.told_at is not None}")
        await asyncio.sleep(fault.seconds)
        ban.until = time.monotonic()

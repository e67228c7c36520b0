"""What goes wrong in a chaos run, and when: drawn from a seed before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

__all__ = ["FAULTS", "QUIET", "WITHOUT_SENTINEL", "WITH_SENTINEL", "Fault", "Kind", "schedule"]


class Kind(NamedTuple):
    """``whose`` it is: that of Redis, the auth service or all clients, or of one gateway, service or person; or
    ``crowd``, of clients that only spoil it for others, which excuses nothing. How often it is drawn, against the
    others; and for how many seconds it lasts, at least and at most.
    """

    whose: str
    weight: int
    least: float
    most: float


FAULTS = {
    "redis killed": Kind("redis", 3, 0.2, 2.5),
    "redis killed and data lost": Kind("redis", 1, 0.2, 2.5),
    "redis stopped": Kind("redis", 3, 0.3, 5.5),
    "redis flushed": Kind("redis", 1, 0.1, 0.1),
    "redis fails over": Kind("redis", 3, 0.1, 0.1),
    "sentinel killed": Kind("sentinel", 2, 0.1, 0.1),
    "redis refuses writes": Kind("redis", 2, 0.5, 3.0),
    "redis cuts subscribers": Kind("redis", 2, 0.1, 0.1),
    "redis cuts commands": Kind("redis", 2, 0.1, 0.1),
    "gateway killed": Kind("gateway", 4, 0.1, 3.0),
    "gateway stopped": Kind("gateway", 4, 0.3, 7.0),
    "gateway restarted": Kind("gateway", 3, 0.1, 1.0),
    "gateway upgraded": Kind("gateway", 3, 0.1, 0.1),
    "service killed": Kind("service", 4, 0.1, 3.0),
    "service stopped": Kind("service", 3, 0.3, 4.0),
    "service restarted": Kind("service", 2, 0.1, 1.0),
    "link to redis cut": Kind("gateway", 4, 0.0, 0.0),
    "link to redis held": Kind("gateway", 4, 0.5, 6.0),
    "link to redis refused": Kind("gateway", 2, 0.5, 3.0),
    "link to redis slow": Kind("gateway", 3, 1.0, 4.0),
    "one connection to redis cut": Kind("gateway", 4, 0.0, 0.0),
    "one connection to redis held": Kind("gateway", 4, 0.5, 6.0),
    "service's link cut": Kind("service", 3, 0.0, 0.0),
    "service's link held": Kind("service", 3, 0.5, 4.0),
    "link to auth held": Kind("gateway", 2, 0.5, 4.0),
    "link to auth cut": Kind("gateway", 2, 0.0, 0.0),
    "auth slow": Kind("auth", 2, 0.5, 3.0),
    "auth silent": Kind("auth", 2, 0.5, 4.0),
    "auth broken": Kind("auth", 1, 0.5, 3.0),
    "auth away": Kind("auth", 1, 0.5, 3.0),
    "clients cut": Kind("clients", 3, 0.0, 0.0),
    "clients held": Kind("clients", 2, 0.5, 4.0),
    "clients slow": Kind("clients", 2, 0.5, 3.0),
    "one client cut": Kind("clients", 4, 0.0, 0.0),
    "one client held": Kind("clients", 4, 0.5, 5.0),
    "flood": Kind("crowd", 3, 0.5, 4.0),
    "stalled clients": Kind("crowd", 3, 1.0, 4.0),
    "revoked by invalidate": Kind("person", 9, 1.0, 4.0),
    "revoked by delete": Kind("person", 6, 1.0, 4.0),
}

WITH_SENTINEL = frozenset({"redis fails over", "sentinel killed"})
WITHOUT_SENTINEL = frozenset(
    kind for kind in FAULTS if "to redis" in kind or "service's link" in kind or kind == "redis killed and data lost"
)
"""What only happens with Sentinel, and what cannot: the sentinels name Redis itself, and no link in front of it."""

QUIET = frozenset(kind for kind, (whose, *_) in FAULTS.items() if whose in ("crowd", "person"))
"""Those by which nobody else may lose anything."""


@dataclass(frozen=True)
class Fault:
    """At so many seconds of its round it begins, and it lasts so long. ``which`` and ``detail``: from 0 to 1, for what
    is to be chosen.
    """

    at: float
    kind: str
    seconds: float
    which: float
    detail: float

    def __str__(self) -> str:
        return f"at {self.at:5.2f} {self.kind} for {self.seconds:.2f} s ({self.which:.3f}, {self.detail:.3f})"


def schedule(random: Random, seconds: float, every: float, only: frozenset[str]) -> list[Fault]:
    """The faults of one round, which lasts so long, of these kinds: one begins ``every`` so many seconds on average."""
    kinds = [kind for kind in FAULTS if kind in only]
    weights = [FAULTS[kind].weight for kind in kinds]
    faults = []
    at = 0.0
    while kinds and (at := at + random.expovariate(1 / every)) < seconds:
        (kind,) = random.choices(kinds, weights)
        _, _, least, most = FAULTS[kind]
        lasts = min(random.uniform(least, most), max(least, seconds - at))
        faults.append(Fault(at, kind, lasts, random.random(), random.random()))
    return faults

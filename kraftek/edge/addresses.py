"""How many there are of each address: of connections, and of clients. Made by :mod:`kraftek.daemon.assembly`.

Connections are counted by :mod:`kraftek.edge.public_site`, clients where they live: those with a WebSocket in
:mod:`kraftek.edge.websocket`, those of Engine.IO in :mod:`kraftek.edge.engineio.clients`.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

__all__ = ["Addresses", "network", "owner"]

_IPV4_PREFIXES = (bytes(10) + b"\xff\xff", bytes.fromhex("0064ff9b") + bytes(8))
"""What stands before an address of IPv4 within one of IPv6: on a port that takes both (RFC 4291, section 2.5.5.2), and
behind a translator (RFC 6052, section 2.1)."""


def network(address: str) -> str:
    """Whose address it is: that of IPv4 itself; of IPv6 its /64, all of which one host may have (RFC 4862).

    What is neither stands for itself.
    """
    if ":" not in address:
        return address
    try:
        packed = inet_pton(AF_INET6, address.partition("%")[0])
    except OSError:
        return address
    if packed[:12] in _IPV4_PREFIXES:
        return inet_ntop(AF_INET, packed[12:])
    return inet_ntop(AF_INET6, packed[:8] + bytes(8))


@lru_cache(8192)
def owner(address: str, *, reported: bool) -> str:
    """Whose budget a client at this address uses up: its network's, or nobody's, which is empty.

    ``reported``: by the proxies in front of the gateway. Otherwise it is that of the socket: unless it is public, all
    clients may have it, as behind a proxy that was not configured. To find out takes 3 to 15 µs, up to a twentieth of a
    connection: what it was is remembered.
    """
    its_network = network(address)
    try:
        its_address = ip_address(its_network)
    except ValueError:
        return ""
    # A proxy on this machine that reported nothing has that of the machine.
    own = its_address.is_loopback or its_address.is_unspecified  # all that is left of ::1
    return its_network if its_address.is_global or (reported and not own) else ""


class Addresses:
    """A number for each network. ``limit``: the largest of them; 0 is none, and then nothing is counted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._numbers: dict[str, int] = {}

    def full(self, address: str) -> bool:
        """Whether there are as many of this address as there may be."""
        return self._limit > 0 and self._numbers.get(network(address), 0) >= self._limit

    def add(self, address: str) -> None:
        """One came."""
        if self._limit:
            key = network(address)
            self._numbers[key] = self._numbers.get(key, 0) + 1

    def remove(self, address: str) -> None:
        """One left."""
        if self._limit:
            key = network(address)
            number = self._numbers.pop(key, 0) - 1
            if number > 0:
                self._numbers[key] = number

    def __len__(self) -> int:
        """How many networks are known."""
        return len(self._numbers)
